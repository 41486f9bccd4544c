"""Building blocks of HTML pages that stand alone: one file, no network, readable without JavaScript and in print.

A plain string is text and gets escaped; only `Html` is taken as markup. Text may hold anything: tags, quotes, control
characters, bidirectional overrides. Each number on a page carries its unrounded value in `data-value`, and in
`data-key` the place it has in the facts that the page shows, so that a program can compare the two (`value_at`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from html import escape
from typing import Any, Literal, TypeAlias

from mt.units import format_duration

Unit = Literal["count", "share", "seconds", "bytes"]

MAX_EXAMPLE_CHARS = 1_000  # of a text that is shown; of longer ones the rest is counted
_MOST_MATCHES = 100_000  # pairs of equal parts of two texts, above which aligning them would take many seconds
_MAX_BARS = 64  # of a histogram; more would be thinner than a finger or a pointer can hit
_PLOT_HEIGHT = 180  # pixels
_N_COLOURS = 6
_LONG_CELL = 20  # characters of a table cell, above which it gets room to wrap in
_UNKNOWN = "–"


class Html(str):
    """Markup, taken as it is. What is made of it with `+` or `format` is a plain string again, and gets escaped."""

    __slots__ = ()


@dataclass(frozen=True)
class Number:
    """A number that is shown rounded and can be had unrounded."""

    value: float | None  # None, NaN or infinity, which JSON has not: shown as a dash
    key: str | None = None  # where the number stands in the facts, as `key_path` writes it; None: it was derived
    unit: Unit = "count"  # of a share the value is from 0 to 1, shown as a percentage
    digits: int | None = None  # after the point; None: what suits the unit

    def __str__(self) -> str:
        if self.value is None or not math.isfinite(self.value):
            return _UNKNOWN
        if self.unit == "share":
            return _percentage(self.value, 1 if self.digits is None else self.digits)
        if self.unit == "seconds":
            return _duration(self.value)
        if self.unit == "bytes":
            return _n_bytes(self.value)
        if isinstance(self.value, int) and not self.digits:
            return f"{self.value:,}"
        return f"{self.value:,.{2 if self.digits is None else self.digits}f}"

    def attributes(self) -> dict[str, str | None]:
        known = self.value is not None and math.isfinite(self.value)
        return {"data-value": json.dumps(self.value if known else None), "data-key": self.key}

    def html(self) -> Html:
        """For use inside of a sentence."""
        return element("span", self.attributes(), str(self))


@dataclass(frozen=True)
class Text:
    """Text of a data set, in its own language and direction, with white space that matters made visible."""

    text: str
    lang: str | None = None


@dataclass(frozen=True)
class Example:
    """A text and its translation, or a text before and after a change."""

    src: str | Html
    tgt: str | Html
    place: str = ""  # such as `line 12`
    note: str = ""


@dataclass(frozen=True)
class Series:
    """A line of a chart."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float | None]  # None or NaN: the line has a gap
    key: str | None = None  # of the list of `ys` in the facts
    field: str | None = None  # in each entry of that list, where it holds more than the number
    x_key: str | None = None  # the same for `xs`
    x_field: str | None = None

    def key_of(self, i: int) -> str | None:
        """Where a y stands in the facts."""
        return _key_of(self.key, i, self.field)

    def x_key_of(self, i: int) -> str | None:
        """Where an x stands in the facts."""
        return _key_of(self.x_key, i, self.x_field)


def _key_of(key: str | None, i: int, field: str | None) -> str | None:
    if key is None:
        return None
    return f"{key}.{i}" + ("" if field is None else f".{key_path(field)}")


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    heading: str
    parts: tuple[str | Html, ...]
    anchor: str | None = None  # None: made of the heading


Cell: TypeAlias = "str | Html | Number | Text"


# Numbers.


def _percentage(share: float, digits: int) -> str:
    """Neither 0% nor 100% unless it is exactly that."""
    smallest = 10.0**-digits
    percent = 100 * share
    if 0 < percent < smallest / 2:
        return f"<{smallest:.{digits}f}%"
    if 100 - smallest / 2 <= percent < 100:
        return f">{100 - smallest:.{digits}f}%"
    return f"{percent:.{0 if percent in (0, 100) else digits}f}%"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    return format_duration(seconds)


def _n_bytes(n_bytes: float) -> str:
    for name, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n_bytes >= size:
            return f"{n_bytes / size:,.1f} {name}"
    return f"{n_bytes:,.0f} bytes"


def _compact(value: float) -> str:
    """At an axis: 1,500 as 1.5k."""
    for suffix, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.4g}"


def key_path(*parts: str | int) -> str:
    """The place of a value in nested facts, such as `train.sources.0.pairs_kept`; a dot in a name becomes `\\.`."""
    return ".".join(str(part).replace("\\", "\\\\").replace(".", "\\.") for part in parts)


def value_at(facts: Any, key: str) -> Any:
    """What stands in nested facts at a place that `key_path` wrote.

    Raises:
        KeyError, IndexError: there is nothing.
    """
    for part in re.findall(r"(?:\\.|[^.\\])+", key):
        name = re.sub(r"\\(.)", r"\1", part)
        facts = facts[int(name)] if isinstance(facts, list) else facts[name]
    return facts


# Text and markup.

# What HTML and UTF-8 cannot hold, and what would turn the text around it.
_HARMFUL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\u202a-\u202e\u2066-\u2069]")
# What cannot be seen or looks like a space. The joiners U+200C and U+200D are left: words and emoji are spelled with
# them.
_INVISIBLE_INSIDE = re.compile(
    "[\x00-\x1f\x7f-\xa0\xad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180e\u2000-\u200b\u200e\u200f\u2028-\u202f"
    "\u205f-\u206f\u3000\u3164\ud800-\udfff\ufeff\uffa0\ufff9-\ufffb\ufffe\uffff\U000e0000-\U000e007f]"
    "| {2,}"
)
_INVISIBLE = re.compile(f"{_INVISIBLE_INSIDE.pattern}|^ +| +$")
_WORDS = re.compile(r"\s+|\w+|[^\w\s]")
_CONTROLS = {"\t": "TAB", "\n": "LINE FEED", "\r": "CARRIAGE RETURN"}  # which Unicode gives no names
_SIGNS = {" ": "·", "\t": "⇥", "\n": "↵", "\xa0": "⍽"}


def _code_point(character: str) -> str:
    return f"U+{ord(character):04X}"


def character_name(character: str) -> str:
    """Such as `U+00A0 NO-BREAK SPACE`."""
    name = _CONTROLS.get(character) or unicodedata.name(character, "")
    return f"{_code_point(character)} {name}".rstrip()


def markup(content: str) -> Html:
    """Text escaped; markup as it is."""
    if isinstance(content, Html):
        return content
    return Html(escape(harmless(content)))


def harmless(text: str) -> str:
    """Text with names in place of the characters that cannot be written, or would turn the text around them."""
    return _HARMFUL.sub(lambda match: f"[{_code_point(match[0])}]", text)


def joined(parts: Iterable[str], separator: str = "") -> Html:
    return Html(markup(separator).join(markup(part) for part in parts))


def element(tag: str, attributes: Mapping[str, str | None], *content: str) -> Html:
    """Attributes that are None are left out; text is escaped."""
    written = "".join(f' {name}="{markup(str(value))}"' for name, value in attributes.items() if value is not None)
    return Html(f"<{tag}{written}>{joined(content)}</{tag}>")


def visible(text: str) -> Html:
    """Text in which nothing is hidden: spaces at the ends, double spaces and invisible characters are signs."""
    return _visible(text, _INVISIBLE)


def _visible(text: str, invisible: re.Pattern[str]) -> Html:
    parts, end = [], 0
    for match in invisible.finditer(text):
        parts.append(markup(text[end : match.start()]))
        parts.extend(_sign(character) for character in match[0])
        end = match.end()
    return joined([*parts, text[end:]])


def _sign(character: str) -> Html:
    sign = _SIGNS.get(character, _code_point(character))
    return element("span", {"class": "sign", "title": character_name(character)}, sign)


def shortened(text: str, n_chars: int = MAX_EXAMPLE_CHARS) -> Html:
    """`visible` text; where it is longer than `n_chars`, how much of it is not shown."""
    if len(text) <= n_chars:
        return visible(text)
    return joined([visible(text[:n_chars]), _more(text, n_chars)])


def _more(text: str, n_shown: int = MAX_EXAMPLE_CHARS) -> Html:
    return element("span", {"class": "muted"}, f" … {len(text) - n_shown:,} more characters")


def difference(before: str, after: str) -> tuple[Html, Html, str]:
    """Two versions of a text with what differs marked, and the first few differences as names of characters.

    Of long texts the part from the first difference on is shown.
    """
    before, after = _from_first_difference(before, after)
    marked: tuple[list[Html], list[Html]] = ([], [])
    described: list[str] = []
    for same, old, new in _differences(before[:MAX_EXAMPLE_CHARS], after[:MAX_EXAMPLE_CHARS]):
        for parts, text, tag in ((marked[0], old, "del"), (marked[1], new, "ins")):
            if same:
                parts.append(_visible(text, _INVISIBLE_INSIDE))
            elif text:
                parts.append(element(tag, {}, joined(_sign(c) if _INVISIBLE.match(c) else c for c in text)))
        if not same and max(len(old), len(new)) <= 4:
            described.append(f"{_named(old)} → {_named(new)}")
    for parts, text in zip(marked, (before, after), strict=True):
        if len(text) > MAX_EXAMPLE_CHARS:
            parts.append(_more(text))
    return joined(marked[0]), joined(marked[1]), "; ".join(list(dict.fromkeys(described))[:3])


def word_difference(one: str, other: str) -> tuple[Html, Html]:
    """Two versions of a text with the words marked that the other has not."""
    sides = [_words(text[:MAX_EXAMPLE_CHARS]) for text in (one, other)]
    marked: tuple[list[Html], list[Html]] = ([], [])
    for tag, i, j, k, m in _opcodes(*sides):
        for parts, words in ((marked[0], sides[0][i:j]), (marked[1], sides[1][k:m])):
            text = "".join(words)
            if tag == "equal" or not text.strip():
                parts.append(_visible(text, _INVISIBLE_INSIDE))
            elif text:
                # The space between two words is marked with them, that before or after them is not.
                inner = text.strip()
                start = text.index(inner)
                around = text[:start], text[start + len(inner) :]
                parts.append(joined([around[0], element("mark", {}, _visible(inner, _INVISIBLE_INSIDE)), around[1]]))
    for parts, text in zip(marked, (one, other), strict=True):
        if len(text) > MAX_EXAMPLE_CHARS:
            parts.append(_more(text))
    return joined(marked[0]), joined(marked[1])


def _words(text: str) -> list[str]:
    """Words, signs, and the space between them; combining marks, which are no letters, stay in their word."""
    words: list[str] = []
    for word in _WORDS.findall(text):
        is_mark = unicodedata.category(word[0])[0] == "M"
        follows_mark = bool(words) and word[0].isalnum() and unicodedata.category(words[-1][-1])[0] == "M"
        if words and not words[-1].isspace() and (is_mark or follows_mark):
            words[-1] += word
        else:
            words.append(word)
    return words


def _from_first_difference(before: str, after: str) -> tuple[str, str]:
    """As they are where they are short, else with a little of what comes before."""
    if max(len(before), len(after)) <= MAX_EXAMPLE_CHARS:
        return before, after
    first = next((i for i, (old, new) in enumerate(zip(before, after, strict=False)) if old != new), None)
    if first is None:  # the one begins with all of the other
        first = min(len(before), len(after))
    start = max(first - MAX_EXAMPLE_CHARS // 10, 0)
    return ("…" if start else "") + before[start:], ("…" if start else "") + after[start:]


def _differences(before: str, after: str) -> list[tuple[bool, str, str]]:
    """(whether both are the same, part of the one, part of the other), in their order."""
    # The combining marks stay with their letters.
    old, new = _clusters(before), _clusters(after)
    blocks = _opcodes(old, new)
    return [(tag == "equal", "".join(old[i:j]), "".join(new[k:m])) for tag, i, j, k, m in blocks]


def _opcodes(old: Sequence[str], new: Sequence[str]) -> list[tuple[str, int, int, int, int]]:
    """As difflib has them; of texts that say the same again and again, all between their common ends is one change."""
    n_old, n_new = Counter(old), Counter(new)
    if sum(n * n_new[part] for part, n in n_old.items()) <= _MOST_MATCHES:
        return [*SequenceMatcher(None, old, new, autojunk=False).get_opcodes()]
    shorter = min(len(old), len(new))
    start = next((i for i in range(shorter) if old[i] != new[i]), shorter)
    n_end = next((i for i in range(shorter - start) if old[-1 - i] != new[-1 - i]), shorter - start)
    old_end, new_end = len(old) - n_end, len(new) - n_end
    return [
        ("equal", 0, start, 0, start),
        ("replace", start, old_end, start, new_end),
        ("equal", old_end, len(old), new_end, len(new)),
    ]


def _clusters(text: str) -> list[str]:
    clusters: list[str] = []
    for character in text:
        if clusters and unicodedata.combining(character):
            clusters[-1] += character
        else:
            clusters.append(character)
    return clusters


def _named(text: str) -> str:
    return " + ".join(character_name(character) for character in text) or "nothing"


# Parts of a page.


def section(heading: str, *parts: str, anchor: str | None = None) -> Section:
    return Section(heading, parts, anchor)


def subheading(text: str) -> Html:
    return element("h3", {}, text)


def paragraph(*parts: str) -> Html:
    return element("p", {}, *parts)


def origin(*parts: str) -> Html:
    """A sentence in small print, such as where the numbers of a table come from."""
    return element("p", {"class": "origin"}, *parts)


def notice(*parts: str, kind: Literal["warning", "info"] = "info") -> Html:
    label = element("strong", {}, {"warning": "Warning: ", "info": "Note: "}[kind])
    return element("p", {"class": f"notice {kind}", "role": "note"}, label, *parts)


def folded(summary: str, *parts: str, opened: bool = False) -> Html:
    return element("details", {"open": "open" if opened else None}, element("summary", {}, summary), *parts)


def tiles(figures: Sequence[tuple[str, Number | str, str]]) -> Html:
    """Key figures: (label, value, small print) each."""
    return element("dl", {"class": "tiles"}, *(_tile(*figure) for figure in figures))


def _tile(label: str, value: Number | str, note: str) -> Html:
    shown = value.html() if isinstance(value, Number) else markup(value)
    small = element("dd", {"class": "muted"}, note) if note else ""
    return element("div", {}, element("dt", {}, label), element("dd", {"class": "figure"}, shown), small)


def side_by_side(*parts: str) -> Html:
    """Next to each other where the page is wide enough."""
    return element("div", {"class": "beside"}, *(element("div", {}, part) for part in parts))


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    total: Sequence[Cell] | None = None,
    sortable: bool = True,
    searchable: bool = False,
) -> Html:
    """Numbers stand at the right; the first cell of a row is its header; a table that is too wide scrolls in its box.

    Args:
        total: a last row, which sorting and searching leave where it is.
        sortable: by a click on a header, where there is JavaScript; so the search field of `searchable`.
    """
    every_row = [*rows, *([total] if total is not None else [])]
    numeric = [any(isinstance(row[column], Number) for row in every_row) for column in range(len(headers))]
    head = joined(
        element("th", {"scope": "col", "class": "n" if is_numeric else None}, header)
        for header, is_numeric in zip(headers, numeric, strict=True)
    )
    parts = [element("thead", {}, element("tr", {}, head)), element("tbody", {}, *map(_row, rows))]
    if total is not None:
        parts.append(element("tfoot", {}, _row(total)))
    names = [name for name, wanted in (("sortable", sortable), ("searchable", searchable)) if wanted and len(rows) > 1]
    content = element("table", {"class": " ".join(names) or None}, *parts)
    return element("div", {"class": "wide", "tabindex": "0", "role": "group", "aria-label": "table"}, content)


def _row(cells: Sequence[Cell]) -> Html:
    first, *others = cells
    return element("tr", {}, _cell(first, "th", {"scope": "row"}), *(_cell(cell, "td", {}) for cell in others))


def _cell(cell: Cell, tag: str, attributes: dict[str, str | None]) -> Html:
    if isinstance(cell, Number):
        return element(tag, attributes | {"class": "n"} | cell.attributes(), str(cell))
    if isinstance(cell, Text):
        return element(tag, attributes | {"lang": cell.lang, "dir": "auto", "class": "text"}, shortened(cell.text))
    # Else a column of long text would be squeezed to the width of its longest word, or letter.
    name = "text" if len(re.sub("<[^>]*>", "", cell)) > _LONG_CELL else None
    return element(tag, attributes | {"class": name, "dir": None if isinstance(cell, Html) else "auto"}, cell)


def heat_map(rows: Sequence[str], columns: Sequence[str], weights: Sequence[Sequence[float]]) -> Html:
    """A table of squares, the stronger in colour the nearer their weight is to 1; the numbers are in tooltips."""
    head = joined(element("th", {"scope": "col"}, column) for column in columns)
    lines = [
        element("tr", {}, element("th", {"scope": "row"}, name), *map(_square, [name] * len(columns), columns, line))
        for name, line in zip(rows, weights, strict=True)
    ]
    corner = element("tr", {}, element("th", {}), head)
    content = element("table", {"class": "map"}, element("thead", {}, corner), element("tbody", {}, *lines))
    return element("div", {"class": "wide", "tabindex": "0", "role": "group", "aria-label": "heat map"}, content)


def _square(row: str, column: str, weight: float) -> Html:
    style = f"background:rgba(var(--map),{weight:.2f})"
    return element("td", {"style": style, "title": f"{row} {column} {weight:.3f}"})


def examples(pairs: Sequence[Example], src_lang: str | None, tgt_lang: str | None) -> Html:
    """Two columns; one below the other on a phone."""
    return element("div", {"class": "examples"}, *(_example(pair, src_lang, tgt_lang) for pair in pairs))


def _example(pair: Example, src_lang: str | None, tgt_lang: str | None) -> Html:
    sides = [
        element("p", {"lang": lang, "dir": "auto"}, _example_text(text))
        for text, lang in ((pair.src, src_lang), (pair.tgt, tgt_lang))
    ]
    notes = [element("span", {"dir": "auto"}, text) for text in (pair.place, pair.note) if text]
    footer = [element("p", {"class": "place"}, joined(notes, " · "))] if notes else []
    return element("div", {"class": "example"}, *sides, *footer)


def _example_text(text: str | Html) -> Html:
    if isinstance(text, Html):
        return text
    return shortened(text) if text else element("span", {"class": "muted"}, "(empty)")


def labelled_texts(texts: Sequence[tuple[str, str | Html, str | None]], heading: str | Html = "") -> Html:
    """Texts below each other, such as a sentence and its translations: (label, text, language) each."""
    rows = [
        joined([element("dt", {}, label), element("dd", {"lang": lang, "dir": "auto"}, _example_text(text))])
        for label, text, lang in texts
    ]
    head = [element("p", {"class": "place"}, heading)] if heading else []
    return element("div", {"class": "labelled"}, *head, element("dl", {}, *rows))


# Charts. The width of a plot is that of the page, in percent, so that its text keeps its size on a phone.


def bars(title: str, rows: Sequence[tuple[str, Number]]) -> Html:
    """Horizontal bars from zero, each with its label and its number."""
    longest = max((number.value or 0 for _, number in rows), default=0) or 1
    return _bar_rows(
        title, [(label, [(100 * (number.value or 0) / longest, 1, "")], number) for label, number in rows], ""
    )


def stacked_bars(title: str, names: Sequence[str], rows: Sequence[tuple[str, Sequence[Number]]]) -> Html:
    """One horizontal bar for each row, cut into the shares of its numbers; `names` says what the numbers are.

    The numbers are in tooltips alone: show them in a table beside it. Past six names colours repeat.
    """
    shown = []
    for label, numbers in rows:
        total = sum(number.value or 0 for number in numbers)
        segments = [
            (100 * (number.value or 0) / (total or 1), index + 1, f"{name}: {number}")
            for index, (name, number) in enumerate(zip(names, numbers, strict=True))
        ]
        shown.append((label, segments, Number(total)))
    return _bar_rows(title, shown, _legend(names))


def _bar_rows(
    title: str, rows: Sequence[tuple[str, Sequence[tuple[float, int, str]], Number]], legend: str | Html
) -> Html:
    """Rows of (label, segments as (percent, number of the colour, tooltip), number at the end)."""
    shown = []
    for label, segments, number in rows:
        rects, left = [], 0.0
        for percent, colour, tooltip in segments:
            if percent > 0:
                title_of_bar = element("title", {}, tooltip or f"{label}: {number}")
                rects.append(_rect(f"{left:.3f}%", "0", f"{percent:.3f}%", "100%", colour, title_of_bar))
            left += percent
        spoken = "; ".join(tooltip for _, _, tooltip in segments if tooltip)
        hidden = None if spoken else "true"  # the label and the number say it all
        svg = element("svg", {"role": "img", "aria-label": spoken or None, "aria-hidden": hidden}, *rects)
        value = element("span", {"class": "n"} | number.attributes(), str(number))
        shown.append(element("div", {}, element("span", {"class": "label", "dir": "auto"}, label), svg, value))
    return _figure(title, legend, element("div", {"class": "bars"}, *shown))


def share_bar(share: float, tooltip: str = "") -> Html:
    """A bar for a table cell, from 0 to 1."""
    text = tooltip or _percentage(share, 1)
    rect = _rect("0", "0", f"{100 * min(max(share, 0), 1):.3f}%", "100%", 1, element("title", {}, text))
    return element("svg", {"class": "share", "role": "img", "aria-label": text}, rect)


def histogram(
    title: str,
    edges: Sequence[float],
    counts: Sequence[int],
    *,
    x_label: str,
    y_label: str,
    key: str | None = None,
    whole_numbers: bool = False,
    highest: float | None = None,
) -> Html:
    """Vertical bars, equally wide, and all numbers in a table that unfolds.

    Args:
        edges: one more than counts; count i lies from edge i, included, to edge i + 1, excluded.
        key: of the list of counts in the facts.
        whole_numbers: what is counted has no fractions, so that 5 up to 9 reads as 5–8.
        highest: end of the y axis, so that several histograms can be compared.
    """
    assert len(edges) == len(counts) + 1, f"{len(edges)} edges and {len(counts)} counts"
    if not any(counts):
        return _figure(title, "", paragraph("There is nothing to show."))
    labels = [_bin_label(edges[i], edges[i + 1], whole_numbers) for i in range(len(counts))]
    starts, heights = _merged(counts)
    width = starts[1] if len(starts) > 1 else 1
    tooltips = [
        f"{_bin_label(edges[start], edges[min(start + width, len(counts))], whole_numbers)} {x_label}: "
        f"{height:,} {y_label}"
        for start, height in zip(starts, heights, strict=True)
    ]
    top = highest or max(heights)
    step = 100 / len(starts)
    parts = _grid([tick for tick in _ticks(0, top) if tick == int(tick)], 0, top)
    for i, (height, tooltip) in enumerate(zip(heights, tooltips, strict=True)):
        if height:
            pixels = max(_PLOT_HEIGHT * height / top, 1)
            place = (f"{i * step + step * 0.06:.3f}%", f"{_PLOT_HEIGHT - pixels:.2f}", f"{step * 0.88:.3f}%")
            parts.append(_rect(*place, f"{pixels:.2f}", 1, element("title", {}, tooltip)))
    parts += _edge_ticks(edges, len(starts) * width, whole_numbers)
    most = max(range(len(heights)), key=heights.__getitem__)
    spoken = f"Histogram: {title}. {len(starts)} bars; the highest is {tooltips[most]}. All numbers are in the table."
    numbers = [
        (label, Number(count, None if key is None else f"{key}.{i}"))
        for i, (label, count) in enumerate(zip(labels, counts, strict=True))
    ]
    folded_table = folded("Numbers", table([x_label, y_label], numbers))
    return _figure(title, "", _plot(spoken, parts, x_label, y_label), folded_table)


def _edge_ticks(edges: Sequence[float], n_bins: int, whole_numbers: bool) -> list[Html]:
    """At round numbers where bins stand for one whole number each, else at edges."""
    if whole_numbers and edges[-1] - edges[0] == len(edges) - 1:
        ticks = [tick for tick in _ticks(edges[0], edges[-2]) if tick == int(tick)] if len(edges) > 2 else [edges[0]]
        return [_x_tick(100 * (tick - edges[0] + 0.5) / n_bins, f"{tick:g}") for tick in ticks]
    every = math.ceil(len(edges) / 7)
    return [
        _x_tick(100 * i / n_bins, "" if math.isinf(edges[i]) else f"{edges[i]:g}") for i in range(0, len(edges), every)
    ]


def highest_bar(counts: Sequence[int]) -> int:
    """Of a histogram, for the `highest` of several histograms of as many counts."""
    return max(_merged(counts)[1], default=0)


def _merged(counts: Sequence[int]) -> tuple[list[int], list[int]]:
    """The first count of each bar, and the sum of its counts."""
    width = math.ceil(len(counts) / _MAX_BARS) or 1
    starts = list(range(0, len(counts), width))
    return starts, [sum(counts[start : start + width]) for start in starts]


def _bin_label(start: float, end: float, whole_numbers: bool) -> str:
    if math.isinf(end):
        return f"{start:g} and above"
    if whole_numbers:
        return f"{start:g}" if end - start == 1 else f"{start:g}–{end - 1:g}"
    return f"{start:g} up to {end:g}"


def line_chart(
    title: str, series: Sequence[Series], *, x_label: str, y_label: str, log_x: bool = False, from_zero: bool = False
) -> Html:
    """Lines with a legend, and all numbers in a table that unfolds.

    Args:
        log_x: a logarithmic x axis; points at zero and below are in the table alone.
        from_zero: the y axis begins at zero, so that small differences look small.
    """
    points = [_points(line, log_x) for line in series]
    known = [point for line in points for point in line if point is not None]
    if not known:
        return _figure(title, "", paragraph("There is nothing to show."))
    left, right = _widened(min(x for x, _ in known), max(x for x, _ in known), 0)
    low, high = _widened(min(y for _, y in known), max(y for _, y in known), 0.05)
    if from_zero:
        low = min(0.0, low)
    parts = _grid(_ticks(low, high), low, high)
    for x, label in _log_ticks(left, right) if log_x else [(x, _compact(x)) for x in _ticks(left, right)]:
        parts.append(_x_tick(100 * (x - left) / (right - left), label))
    for index, (line, places) in enumerate(zip(series, points, strict=True)):
        placed = [
            None if place is None else (100 * (place[0] - left) / (right - left), _height(place[1], low, high))
            for place in places
        ]
        parts.append(_line(placed, index + 1))
        parts.extend(_dots(line, placed, index + 1))
    spoken = f"Line chart: {title}. " + " ".join(_spoken(line) for line in series) + " All numbers are in the table."
    return _figure(
        title,
        _legend([line.name for line in series], lines=True),
        _plot(spoken, parts, x_label, y_label),
        folded("Numbers", _line_table(series, x_label)),
    )


def _points(line: Series, log_x: bool) -> list[tuple[float, float] | None]:
    """On linear axes; None is a gap."""
    points: list[tuple[float, float] | None] = []
    for x, y in zip(line.xs, line.ys, strict=True):
        if y is None or not math.isfinite(y) or (log_x and x <= 0):
            points.append(None)
        else:
            points.append((math.log10(x) if log_x else x, y))
    return points


def _line(placed: Sequence[tuple[float, float] | None], colour: int) -> Html:
    """In a picture of its own that is stretched, because a line's points cannot be given in percent."""
    commands, pen_is_down = [], False
    for place in placed:
        if place is not None:
            commands.append(f"{'L' if pen_is_down else 'M'}{place[0]:.3f} {place[1]:.2f}")
        pen_is_down = place is not None
    path = element("path", {"d": "".join(commands), "class": f"line s{_colour(colour)}"})
    size = {"width": "100%", "height": str(_PLOT_HEIGHT), "viewBox": f"0 0 100 {_PLOT_HEIGHT}"}
    return element("svg", size | {"preserveAspectRatio": "none"}, path)


def _dots(line: Series, placed: Sequence[tuple[float, float] | None], colour: int) -> list[Html]:
    """Where a pointer finds the numbers; drawn only where they are few, or a point has no neighbour."""
    dots = []
    for i, place in enumerate(placed):
        if place is not None:
            y = line.ys[i]
            tooltip = element("title", {}, f"{line.name}: {y:,.4g} at {line.xs[i]:,g}")
            alone = (i == 0 or placed[i - 1] is None) and (i == len(placed) - 1 or placed[i + 1] is None)
            name = f"dot f{_colour(colour)}" + ("" if len(placed) <= 30 or alone else " faint")
            dots.append(
                element("circle", {"cx": f"{place[0]:.3f}%", "cy": f"{place[1]:.2f}", "r": "4", "class": name}, tooltip)
            )
    return dots


def _spoken(line: Series) -> str:
    known = [(x, y) for x, y in zip(line.xs, line.ys, strict=True) if y is not None and math.isfinite(y)]
    if not known:
        return f"{line.name}: no points."
    (first_x, first_y), (last_x, last_y) = known[0], known[-1]
    return f"{line.name}: from {first_y:,.4g} at {first_x:,g} to {last_y:,.4g} at {last_x:,g}."


def _line_table(series: Sequence[Series], x_label: str) -> Html:
    cells = [
        {x: Number(y, line.key_of(i), digits=_digits(line.ys)) for i, (x, y) in enumerate(points)}
        for line, points in ((line, list(zip(line.xs, line.ys, strict=True))) for line in series)
    ]
    # Lines that share an x may have it at several places of the facts; the first of them is as good as any.
    keys = {x: line.x_key_of(i) for line in reversed(series) for i, x in enumerate(line.xs)}
    rows = [
        [Number(x, keys[x], digits=None if isinstance(x, int) else 2), *(line.get(x, "") for line in cells)]
        for x in sorted(keys)
    ]
    return table([x_label, *(line.name for line in series)], rows)


def _digits(ys: Sequence[float | None]) -> int:
    """After the point: four, and of small numbers, such as learning rates, as many as show four of the largest one."""
    largest = max((abs(y) for y in ys if y and math.isfinite(y)), default=1.0)
    return max(4, 3 - math.floor(math.log10(largest)))


def _figure(title: str, *parts: str) -> Html:
    return element("figure", {}, element("figcaption", {}, title), *parts)


def _legend(names: Sequence[str], lines: bool = False) -> Html:
    items = []
    for index, name in enumerate(names):
        colour = _colour(index + 1)
        shape = (
            element("path", {"d": "M0 6H24", "class": f"line s{colour}"})
            if lines
            else element("rect", {"width": "12", "height": "12", "class": f"f{colour}"})
        )
        size = {"width": "24" if lines else "12", "height": "12", "aria-hidden": "true"}
        items.append(element("li", {}, element("svg", size, shape), " ", name))
    return element("ul", {"class": "legend"}, *items)


def _plot(spoken: str, parts: Sequence[Html], x_label: str, y_label: str) -> Html:
    svg = element("svg", {"role": "img", "aria-label": spoken, "height": str(_PLOT_HEIGHT)}, *parts)
    return joined(
        [
            element("p", {"class": "axis", "aria-hidden": "true"}, y_label),
            element("div", {"class": "plot"}, svg),
            element("p", {"class": "axis x", "aria-hidden": "true"}, x_label),
        ]
    )


def _rect(x: str, y: str, width: str, height: str, colour: int, *content: Html) -> Html:
    place = {"x": x, "y": y, "width": width, "height": height, "class": f"f{_colour(colour)}"}
    return element("rect", place, *content)


def _colour(number: int) -> int:
    return (number - 1) % _N_COLOURS + 1


def _height(y: float, low: float, high: float) -> float:
    return _PLOT_HEIGHT * (high - y) / (high - low)


def _grid(ticks: Sequence[float], low: float, high: float) -> list[Html]:
    parts = []
    for tick in ticks:
        y = f"{_height(tick, low, high):.2f}"
        parts.append(element("line", {"x1": "0", "x2": "100%", "y1": y, "y2": y, "class": "grid"}))
        parts.append(element("text", {"x": "-8", "y": y, "dy": "0.35em", "text-anchor": "end"}, _compact(tick)))
    return parts


def _x_tick(percent: float, label: str) -> Html:
    return element("text", {"x": f"{percent:.3f}%", "y": str(_PLOT_HEIGHT + 18), "text-anchor": "middle"}, label)


def _widened(low: float, high: float, share: float) -> tuple[float, float]:
    if low == high:
        return low - 0.5, high + 0.5
    return low - share * (high - low), high + share * (high - low)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`, about five."""
    rough = (high - low) / 5
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(left: float, right: float) -> list[tuple[float, str]]:
    """(logarithm, label) of the powers of ten; with 2 and 5 between them where they are few."""
    for factors in ((1,), (1, 2, 5), (1, 2, 3, 4, 5, 6, 7, 8, 9)):
        ticks = [
            math.log10(factor * 10.0**power)
            for power in range(math.floor(left), math.ceil(right) + 1)
            for factor in factors
        ]
        ticks = [tick for tick in ticks if left - 1e-9 <= tick <= right + 1e-9]
        if len(ticks) >= 3:
            break
    every = math.ceil(len(ticks) / 7) or 1
    return [(tick, _compact(10.0**tick)) for tick in ticks[::every]]


# The page.


def page(title: str, sections: Sequence[Section], *, lead: Sequence[str] = (), lang: str = "en") -> str:
    """A whole HTML file.

    Args:
        lead: parts between the title and the table of contents.
        lang: of the page's own words.
    """
    anchors = _anchors(sections)
    links = [
        element("li", {}, element("a", {"href": f"#{anchor}"}, part.heading))
        for part, anchor in zip(sections, anchors, strict=True)
    ]
    contents = element("nav", {"aria-label": "Contents"}, element("ul", {}, *links)) if len(links) > 2 else ""
    body = joined(
        element("section", {"id": anchor}, joined([element("h2", {}, part.heading), *part.parts], "\n"))
        for part, anchor in zip(sections, anchors, strict=True)
    )
    header = element("header", {}, element("h1", {"dir": "auto"}, title), *lead, contents)
    script = element("script", {}, Html(_SCRIPT)) if 'class="sortable' in body or 'class="searchable' in body else ""
    # Of the scripts in the file the browser runs this one alone, and it fetches nothing, whatever the text holds.
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    head = joined(
        [
            Html('<meta charset="utf-8">'),
            Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
            Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            Html('<meta name="color-scheme" content="light dark">'),
            element("title", {}, title),
            element("style", {}, Html(_style())),
        ],
        "\n",
    )
    main = element("main", {}, header, body)
    html = element("html", {"lang": lang}, element("head", {}, head), "\n", element("body", {}, main, script))
    return f"<!doctype html>\n{html}\n"


def _anchors(sections: Sequence[Section]) -> list[str]:
    anchors: list[str] = []
    for part in sections:
        wanted = part.anchor or re.sub(r"[^a-z0-9]+", "-", part.heading.lower()).strip("-") or "section"
        anchor, number = wanted, 1
        while anchor in anchors:
            number += 1
            anchor = f"{wanted}-{number}"
        anchors.append(anchor)
    return anchors


# Text has at least 4.5:1 against what it stands on, shapes at least 3:1.
LIGHT = {
    "page": "#ffffff",
    "panel": "#f4f6f8",
    "text": "#1b1e22",
    "muted": "#565d66",
    "rule": "#d3d8de",
    "link": "#0a54c4",
    "warning": "#fff1d6",
    "info": "#e6f0fd",
    "old": "#ffdfda",
    "new": "#d2f1da",
    "mark": "#ffe9a8",
    "c1": "#2368b5",
    "c2": "#c4560f",
    "c3": "#1b8060",
    "c4": "#9441a0",
    "c5": "#8a6d00",
    "c6": "#66707a",
}
DARK = {
    "page": "#14171a",
    "panel": "#1e2226",
    "text": "#e4e7ea",
    "muted": "#a7aeb6",
    "rule": "#3b4249",
    "link": "#8ab6fa",
    "warning": "#40310f",
    "info": "#17304e",
    "old": "#5a2620",
    "new": "#1d4a2b",
    "mark": "#57470f",
    "c1": "#6aaaf0",
    "c2": "#f0935a",
    "c3": "#56c39a",
    "c4": "#d08bdc",
    "c5": "#d6b848",
    "c6": "#98a1aa",
}


def _style() -> str:
    light, dark = (
        ";".join(f"--{name}:{value}" for name, value in {**colours, "map": _rgb(colours["c1"])}.items())
        for colours in (LIGHT, DARK)
    )
    series = "\n".join(
        f".f{i} {{ fill: var(--c{i}) }} .s{i} {{ stroke: var(--c{i}) }}" for i in range(1, _N_COLOURS + 1)
    )
    dark_mode = f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
    return f":root {{ {light} }}\n{dark_mode}\n{_CSS}{series}\n"


def _rgb(colour: str) -> str:
    return ",".join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))


_CSS = """
:root { color-scheme: light dark }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--text); overflow-wrap: anywhere;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif }
main { max-width: 76rem; margin: 0 auto; padding: 1rem clamp(.9rem, 3vw, 2.5rem) 4rem }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0 }
h2 { font-size: 1.3rem; margin: 2.8rem 0 .8rem; padding-top: .7rem; border-top: 1px solid var(--rule) }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .5rem }
p { margin: .5rem 0; max-width: 48rem }
a { color: var(--link) }
code { font: .9em ui-monospace, "Cascadia Mono", Menlo, Consolas, monospace }
.muted, .origin, .place, .axis, figcaption + .legend { color: var(--muted) }
.origin { font-size: .875rem; margin: .5rem 0 1rem }
nav ul, .legend { list-style: none; margin: .8rem 0; padding: 0; display: flex; flex-wrap: wrap; gap: .3rem 1.1rem }
nav a { display: inline-block; padding: .2rem 0 }
.notice { padding: .6rem .9rem; border-radius: 6px }
.notice.warning { background: var(--warning) }
.notice.info { background: var(--info) }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: .7rem; margin: 1rem 0 }
.tiles div { background: var(--panel); border-radius: 8px; padding: .7rem .9rem }
.tiles dt { font-size: .875rem; color: var(--muted) }
.tiles dd { margin: 0; font-size: .875rem }
.tiles .figure { font-size: 1.45rem; font-weight: 600; line-height: 1.3; font-variant-numeric: tabular-nums }
.wide { overflow-x: auto; margin: .6rem 0; max-width: 100%; position: relative }
table { border-collapse: separate; border-spacing: 0; font-size: 15px; line-height: 22px }
th, td { text-align: start; vertical-align: top; padding: 6px 11px; border-bottom: 1px solid var(--rule);
  min-width: 3.5em; max-width: 30em; overflow-wrap: break-word }
thead th { vertical-align: bottom; font-weight: 600; overflow-wrap: normal }
tbody th, tfoot th { font-weight: 400; max-width: 20em; position: sticky; left: 0; background: var(--page) }
thead th:first-child { position: sticky; left: 0; background: var(--page) }
th:first-child { padding-left: 0 }
tfoot th, tfoot td { font-weight: 600; border-top: 2px solid var(--rule) }
.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
.map th { min-width: 0; padding: 0 6px; white-space: nowrap; text-align: right; border: 0 }
.map thead th { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; padding: 6px 0;
  font-weight: 400; position: static }
.map td { min-width: 24px; width: 24px; height: 24px; padding: 0; border: 1px solid var(--rule) }
td.text { min-width: 14em; overflow-wrap: anywhere }
td:has(> code) { max-width: 46em }
tbody th.text { min-width: 12em; overflow-wrap: anywhere }
th:not(.n):not(.text) { white-space: nowrap }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0; margin: 0; cursor: pointer;
  text-align: inherit }
th button:hover { text-decoration: underline }
th[aria-sort] button::after { content: " \\25B2"; font-size: .7em }
th[aria-sort=descending] button::after { content: " \\25BC" }
.search { display: flex; flex-wrap: wrap; gap: .3rem .8rem; align-items: center; margin: .6rem 0; font-size: .9375rem }
.search input { font: inherit; color: inherit; background: var(--page); border: 1px solid var(--muted);
  border-radius: 6px; padding: .35rem .6rem; width: 20rem; max-width: 100% }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px }
details { margin: .5rem 0 }
summary { cursor: pointer; padding: .25rem 0 }
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 0 2.5rem }
.beside > div { min-width: 0 }
.examples { margin: .6rem 0 1.2rem }
.example { display: grid; grid-template-columns: 1fr 1fr; gap: .1rem 1.8rem; padding: .55rem 0;
  border-bottom: 1px solid var(--rule) }
.example p { margin: 0; min-width: 0 }
.example .place { grid-column: 1 / -1; font-size: .875rem; max-width: none }
.example del, .example ins { text-decoration: none; border-radius: 3px; padding: 0 .1em }
.labelled { padding: .55rem 0; border-bottom: 1px solid var(--rule) }
.labelled .place { font-size: .875rem; margin: 0 0 .15rem; max-width: none }
.labelled dl { display: grid; grid-template-columns: 8.5rem 1fr; gap: .1rem 1rem; margin: 0 }
.labelled dt { font-size: .875rem; color: var(--muted); line-height: 1.7 }
.labelled dd { margin: 0; min-width: 0 }
mark { background: var(--mark); color: inherit; border-radius: 3px; padding: 0 .1em }
del { background: var(--old) }
ins { background: var(--new) }
.sign { font: .75em ui-monospace, Menlo, Consolas, monospace; color: var(--muted); border: 1px solid var(--rule);
  border-radius: 3px; padding: 0 .15em; unicode-bidi: isolate; direction: ltr; display: inline-block;
  line-height: 1.2 }
del .sign, ins .sign { color: inherit; border-color: currentColor }
figure { margin: 1rem 0 1.6rem }
figcaption { font-weight: 600; margin-bottom: .2rem }
.legend { font-size: .875rem; margin: .3rem 0 .6rem }
.axis { font-size: .8125rem; margin: 0 }
.axis.x { text-align: center; padding-left: 3rem; max-width: none }
.plot { padding: .6rem .9rem 1.6rem 3rem }
.plot > svg { display: block; width: 100%; overflow: visible }
.plot > svg > svg { overflow: visible }
.plot text { font-size: 12px; fill: var(--muted); font-variant-numeric: tabular-nums }
.grid { stroke: var(--rule); stroke-width: 1 }
.line { fill: none; stroke-width: 2; vector-effect: non-scaling-stroke; stroke-linejoin: round }
.s2 { stroke-dasharray: 7 3 } .s3 { stroke-dasharray: 2 3 } .s4 { stroke-dasharray: 10 3 2 3 }
.s5 { stroke-dasharray: 4 4 } .s6 { stroke-dasharray: 12 4 }
.dot.faint { opacity: 0 } .dot.faint:hover { opacity: 1 }
.plot rect:hover, .bars rect:hover { opacity: .75 }
.bars > div { display: grid; grid-template-columns: minmax(5rem, 16rem) minmax(4rem, 1fr) minmax(4.5rem, auto);
  gap: 0 .8rem; align-items: center; padding: .2rem 0; font-size: .9375rem }
.bars svg { display: block; width: 100%; height: 1rem; background: var(--panel) }
.bars rect { stroke: var(--page); stroke-width: 1 }
.share { display: inline-block; width: 6rem; height: .75rem; background: var(--panel); vertical-align: -1px }
@media (max-width: 40rem) {
  body { font-size: 15px }
  h1 { font-size: 1.4rem }
  .tiles { grid-template-columns: 1fr 1fr }
  .tiles .figure { font-size: 1.2rem }
  .example { grid-template-columns: 1fr; gap: .3rem }
  .labelled dl { grid-template-columns: 1fr; gap: 0 }
  .labelled dd { margin-bottom: .25rem }
  .example p + p:not(.place) { padding-inline-start: .7rem; border-inline-start: 3px solid var(--rule) }
  tbody th.text { min-width: 8.5em; max-width: 9.5em }
  .bars > div { grid-template-columns: 1fr auto }
  .bars svg { grid-column: 1 / -1; grid-row: 2 }
}
@media print {
  :root { color-scheme: light }
  body { font-size: 10pt }
  main { max-width: none; padding: 0 }
  nav, .search { display: none }
  .wide { overflow: visible }
  table, th, td { max-width: none }
  tr, .example, .labelled, figure, .tiles div { break-inside: avoid }
  h2, h3 { break-after: avoid }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact }
}
"""

_SCRIPT = """
(function () {
  "use strict";
  var collator = new Intl.Collator(undefined, {numeric: true, sensitivity: "base"});
  function number(cell) {
    var value = cell.hasAttribute("data-value") ? parseFloat(cell.getAttribute("data-value")) : NaN;
    return isNaN(value) ? -Infinity : value;
  }
  function sort(table, column, th) {
    var isNumber = th.classList.contains("n"), body = table.tBodies[0];
    var was = th.getAttribute("aria-sort");
    var down = was ? was === "ascending" : isNumber;
    Array.prototype.forEach.call(table.tHead.rows[0].cells, function (other) { other.removeAttribute("aria-sort"); });
    th.setAttribute("aria-sort", down ? "descending" : "ascending");
    var rows = Array.prototype.slice.call(body.rows);
    rows.sort(function (a, b) {
      var x = a.cells[column], y = b.cells[column];
      var order = isNumber ? number(x) - number(y) || 0 : collator.compare(x.textContent, y.textContent);
      return down ? -order : order;
    });
    rows.forEach(function (row) { body.appendChild(row); });
  }
  document.querySelectorAll("table.sortable").forEach(function (table) {
    Array.prototype.forEach.call(table.tHead.rows[0].cells, function (th, column) {
      if (!th.textContent) return;
      var button = document.createElement("button");
      button.type = "button";
      while (th.firstChild) button.appendChild(th.firstChild);
      th.appendChild(button);
      button.addEventListener("click", function () { sort(table, column, th); });
    });
  });
  document.querySelectorAll("table.searchable").forEach(function (table) {
    var label = document.createElement("label"), input = document.createElement("input");
    var found = document.createElement("span"), rows = table.tBodies[0].rows;
    input.type = "search";
    input.placeholder = "Search";
    input.setAttribute("aria-label", "Search in the table");
    found.setAttribute("aria-live", "polite");
    label.className = "search";
    label.appendChild(input);
    label.appendChild(found);
    table.parentNode.parentNode.insertBefore(label, table.parentNode);
    input.addEventListener("input", function () {
      var wanted = input.value.trim().toLowerCase(), count = 0;
      Array.prototype.forEach.call(rows, function (row) {
        row.hidden = row.textContent.toLowerCase().indexOf(wanted) < 0;
        if (!row.hidden) count += 1;
      });
      found.textContent = wanted ? count + " of " + rows.length + " rows" : "";
    });
  });
})();
"""
