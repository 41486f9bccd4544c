"""Reports as GitHub Markdown, short enough to quote."""

from __future__ import annotations

import re

from mt.report.facts import Facts
from mt.report.page import environment
from mt.report.text import harmless
from mt.units import format_count, format_duration

_MOST_CHARS = 200  # shown of a text
# Characters with a meaning in Markdown, in HTML inside it, or on GitHub, where $…$ is a formula.
_MEANINGFUL = re.compile(r"[\\`*_\[\]<>#~&]|^[-+=]")
# Characters that a backslash does not escape: GitHub finds formulas and links before backslashes, and cells end at |.
_REPLACED = re.compile(r"[$|]|(?<=:)/(?=/)|(?<=www)\.")
_NUMBERED = re.compile(r"^(\d+)([.)])")  # would start a list


def as_text(text: str) -> str:
    """Return text that Markdown shows unchanged, in one line; long text is cut."""
    line = " ".join(harmless(text).split())
    if len(line) > _MOST_CHARS:
        line = f"{line[:_MOST_CHARS]}…"
    line = _MEANINGFUL.sub(r"\\\g<0>", line)
    line = _REPLACED.sub(lambda match: f"&#{ord(match[0])};", line)
    return _NUMBERED.sub(r"\1\\\2", line)


def as_code(text: object) -> str:
    """Return text as inline code, in one line."""
    line = " ".join(harmless(str(text)).split())
    if not line:
        return ""
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    padding = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{padding}{line}{padding}{fence}"


def code_cell(text: object) -> str:
    """Return inline code for a table cell, which a bar would end."""
    return as_code(text).replace("|", "\\|")


def markdown(template: str, facts: Facts) -> str:
    """Return the Markdown of a template and its facts, ending with a line break."""
    filters = (as_text, as_code, code_cell, format_count, format_duration)
    found = environment().overlay()
    found.filters = found.filters | {one.__name__: one for one in filters}
    text = found.get_template(template).render(facts=facts)
    return re.sub("\n{3,}", "\n\n", text).strip() + "\n"
