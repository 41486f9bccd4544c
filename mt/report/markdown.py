"""Reports as Markdown, short enough to be quoted: GitHub's, which has tables."""

from __future__ import annotations

import re

from mt.report.facts import Facts
from mt.report.page import environment
from mt.report.text import harmless
from mt.units import format_count, format_duration

_MOST_CHARS = 200  # of a text
# What means something to Markdown, to HTML inside of it, or to GitHub, where $…$ is a formula.
_MEANINGFUL = re.compile(r"[\\`*_\[\]<>#~&]|^[-+=]")
# Where a backslash is not enough: GitHub sees formulas and links before it sees that, and tables split at bars.
_STUBBORN = re.compile(r"[$|]|(?<=:)/(?=/)|(?<=www)\.")
_NUMBERED = re.compile(r"^(\d+)([.)])")  # an entry of a list


def as_text(text: str) -> str:
    """Return text that Markdown shows as it is, in one line; of a long one the beginning."""
    line = " ".join(harmless(text).split())
    if len(line) > _MOST_CHARS:
        line = f"{line[:_MOST_CHARS]}…"
    line = _MEANINGFUL.sub(r"\\\g<0>", line)
    line = _STUBBORN.sub(lambda match: f"&#{ord(match[0])};", line)
    return _NUMBERED.sub(r"\1\\\2", line)


def as_code(text: object) -> str:
    """Return text in a fixed width, in one line."""
    line = " ".join(harmless(str(text)).split())
    if not line:
        return ""
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    padding = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{padding}{line}{padding}{fence}"


def code_cell(text: object) -> str:
    """Return code for a table, where a bar would end the cell."""
    return as_code(text).replace("|", "\\|")


def markdown(template: str, facts: Facts) -> str:
    """Return a Markdown template with its facts, ending with a line break."""
    filters = (as_text, as_code, code_cell, format_count, format_duration)
    found = environment().overlay()
    found.filters = found.filters | {one.__name__: one for one in filters}
    text = found.get_template(template).render(facts=facts)
    return re.sub("\n{3,}", "\n\n", text).strip() + "\n"
