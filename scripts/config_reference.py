"""Write the tables of docs/config.md and the schema mt/config/schema.json: python scripts/config_reference.py

Text above the marker in docs/config.md is written by hand and stays.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mt.config.reference import ROOT, SCHEMA, Setting, config_schema, find_setting, groups
from mt.config.validation import fields_of

PAGE = Path(__file__).resolve().parent.parent / "docs" / "config.md"
MARKER = "<!-- From here on, scripts/config_reference.py writes this page. -->\n"


def page() -> str:
    """Return docs/config.md with the current settings."""
    introduction = PAGE.read_text(encoding="utf-8").partition(MARKER)[0]
    return introduction + MARKER + "\n".join(tables())


def schema() -> str:
    return json.dumps(config_schema(), ensure_ascii=False, indent=1) + "\n"


def tables() -> Iterator[str]:
    """Yield the lines of a table for each section and each kind of corpus."""
    yield from table("## Top level", ROOT, ROOT.sections[""])
    for setting in groups():
        if setting.is_section:
            yield from table(f"## `{setting.key}`", setting, setting.sections[""])
    corpora = find_setting("data.valid")
    yield from (
        "",
        "## Corpora",
        "",
        "Entries of `data.train` and `data.test`, and `data.valid` or its entries. The keys tell the kind.",
    )
    for tag, kind in corpora.sections.items():
        yield from table(f"### A corpus with {' and '.join(f'`{key}`' for key in tag.split(', '))}", corpora, kind)
    yield ""


def table(title: str, setting: Setting, section: Any) -> Iterator[str]:
    yield from ("", title, "", section.__doc__.strip(), "")
    yield from ("| setting | values | default | meaning | change |", "|---|---|---|---|---|")
    for name, one in zip(fields_of(section), setting.inside(section), strict=True):
        default = "" if one.is_section else f"`{one.default}`" if one.default else "required"
        change = "" if one.is_section else "yes" if one.is_changeable else "no"
        values = "section" if one.is_section else one.values
        yield f"| `{name}` | {html.escape(values)} | {default} | {html.escape(one.meaning, quote=False)} | {change} |"


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    SCHEMA.write_text(schema(), encoding="utf-8")


if __name__ == "__main__":
    main()
