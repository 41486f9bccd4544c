"""Self-contained HTML pages: one file, no network, readable without JavaScript and in print.

Pages are Jinja2 templates that escape every string except `Markup`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib.resources import files
from itertools import count
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined, pass_context, select_autoescape
from jinja2.runtime import Context
from markupsafe import Markup

from mt.report.facts import LARGEST_P, NO_DIFFERENCE, TEST_NAMES, short_name
from mt.report.text import harmless, truncated
from mt.units import format_duration

Unit = Literal["count", "fraction", "seconds", "bytes"]


@dataclass(frozen=True)
class Number:
    """A number that is shown rounded. Table cells sort by its unrounded value in `data-value`."""

    value: float | None  # None, NaN and infinity are shown as a dash
    unit: Unit = "count"  # a fraction from 0 to 1 is shown as a percentage
    digits: int | None = None  # after the point; None: the default of the unit

    @property
    def known(self) -> float | None:
        return None if self.value is None or not math.isfinite(self.value) else self.value

    def __str__(self) -> str:
        value = self.known
        if value is None:
            return "–"
        if self.unit == "fraction":
            return _percentage(value, 1 if self.digits is None else self.digits)
        if self.unit == "seconds":
            return f"{value:.{2 if value < 10 else 1}f} s" if value < 60 else format_duration(value)
        if self.unit == "bytes":
            return _n_bytes(value)
        if isinstance(value, int) and not self.digits:
            return f"{value:,}"
        return f"{value:,.{2 if self.digits is None else self.digits}f}"


@dataclass(frozen=True)
class Text:
    """Text from data in a table cell, with its own language and direction."""

    text: str
    lang: str | None = None


def _percentage(fraction: float, digits: int) -> str:
    """Return a percentage; 0% and 100% only if they are exact, otherwise <0.1% and >99.9%."""
    smallest = 10.0**-digits
    percent = 100 * fraction
    if 0 < percent < smallest / 2:
        return f"<{smallest:.{digits}f}%"
    if 100 - smallest / 2 <= percent < 100:
        return f">{100 - smallest:.{digits}f}%"
    return f"{percent:.{0 if percent in (0, 100) else digits}f}%"


def _n_bytes(n_bytes: float) -> str:
    for name, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n_bytes >= size:
            return f"{n_bytes / size:,.1f} {name}"
    return f"{n_bytes:,.0f} bytes"


def code(text: str) -> Markup:
    return Markup("<code>{}</code>").format(text)


def setting_value(value: Any, key: str = "") -> Markup:
    """Return a value as YAML writes it, and a number with all of its digits."""
    if isinstance(value, bool) or value is None or isinstance(value, (list, tuple, dict)):
        return code(json.dumps(value, ensure_ascii=False))
    if key.endswith("_bytes"):
        return Markup(Number(value, "bytes"))
    if isinstance(value, (int, float)):
        return Markup(Number(value, digits=len(format(Decimal(repr(value)), "f").partition(".")[2])))
    return truncated(str(value))


def setting_rows(values: dict[str, Any], as_code: bool = True) -> list[list[str]]:
    return [[code(key) if as_code else key, setting_value(value, key)] for key, value in values.items()]


def plain_value(value: Any) -> str:
    """Return a value of a manifest as text."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {one}" for key, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def fraction(part: float, whole: float) -> float | None:
    return part / whole if whole else None


@cache
def environment() -> Environment:
    found = Environment(
        loader=PackageLoader("mt.report"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"code": code, "number": Number, "rows": setting_rows, "short": short_name, "truncated": truncated}
    found.filters |= {"plain": plain_value, "text": lambda text, lang: None if text is None else Text(text, lang)}
    found.filters["plural"] = lambda n, one, many="": f"{n:,} {one if n == 1 else many or f'{one}s'}"
    found.filters["date"] = lambda iso: iso.replace("T", " ").replace("+00:00", " UTC")
    found.globals |= {
        "fraction": fraction,
        "listing": listing,
        "table": table,
        "largest_p": LARGEST_P,
        "no_difference": NO_DIFFERENCE,
    }
    found.globals["test_names"] = TEST_NAMES
    found.tests |= {"a_number": lambda cell: isinstance(cell, Number), "a_text": lambda cell: isinstance(cell, Text)}
    return found


def macro(name: str, *arguments: Any) -> Markup:
    """Call a macro of parts.html.j2."""
    found: Markup = getattr(environment().get_template("parts.html.j2").module, name)(*arguments)
    return found


def table(
    headers: Sequence[str],
    rows: Iterable[Sequence[object]],
    total: Sequence[object] | None = None,
    sortable: bool = False,
    searchable: bool = False,
) -> Markup:
    """Return a table, numbers at the right; one that is too wide scrolls in its box.

    Args:
        rows: cells, which are strings, numbers, `Number`s or `Text`s; the first of each row is its header.
        total: a last row, which sorting and searching do not move or hide.
        sortable: a click on a header sorts (needs JavaScript).
        searchable: adds a search field, and implies sortable.
    """
    shown, last = (
        [[Number(cell) if cell is None or isinstance(cell, (int, float)) else cell for cell in row] for row in part]
        for part in (rows, [] if total is None else [total])
    )
    columns = zip(*shown, *last, strict=True)
    numeric = [any(isinstance(cell, Number) for cell in column) for column in columns] or [False] * len(headers)
    wanted = {"sortable": sortable or searchable, "searchable": searchable} if len(shown) > 1 else {}
    names = [name for name in wanted if wanted[name]]
    return macro("table_of", zip(headers, numeric, strict=True), shown, last, names)


@pass_context
def listing(
    context: Context, items: Iterable[object], columns: Mapping[str, str], total: Iterable[object] = (), **options: Any
) -> Markup:
    """Return a table of items, one per row; columns without any known value are left out.

    Args:
        columns: header → a Jinja expression in which the item is called `one`.
        total: a last row, with a cell for each of the columns.
        options: arguments of `table`.
    """
    row = environment().compile_expression(f"[{', '.join(columns.values())}]", undefined_to_none=False)
    known = context.get_all()
    rows: list[Any] = [row(known, one=item) for item in items]
    found = {header: [cells[i] for cells in rows] for i, header in enumerate(columns)}
    shown = {header: cells for header, cells in found.items() if not rows or any(map(_is_known, cells))}
    last = [cell for header, cell in zip(columns, total, strict=False) if header in shown]
    return table([*shown], zip(*shown.values(), strict=True), last or None, **options)


def _is_known(cell: object) -> bool:
    return cell is not None and not (isinstance(cell, Number) and cell.value is None)


def page(template: str, title: str, **values: Any) -> str:
    """Return an HTML file made from a template, with a table of contents at the top."""
    contents: dict[str, str] = {}  # anchor → heading

    def section(heading: str) -> Markup:
        wanted = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") or "section"
        anchors = (wanted if number == 1 else f"{wanted}-{number}" for number in count(1))
        anchor = next(anchor for anchor in anchors if anchor not in contents)
        contents[anchor] = heading
        return Markup('<section id="{}">\n<h2>{}</h2>').format(anchor, heading)

    script = files("mt.report").joinpath("templates/script.js").read_text("utf-8")
    # The browser runs only this script and fetches nothing, whatever the text contains.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = {"title": title, "section": section, "contents": contents, "script": Markup(script), "digest": digest}
    return harmless(environment().get_template(template).render(values | parts))
