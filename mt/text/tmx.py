"""Reading translation memories (.tmx), unit by unit."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from mt.errors import DataError
from mt.text.delimited import Rows
from mt.text.files import explained, open_bytes
from mt.text.languages import closeness

UNTRANSLATED = "units without both languages"  # name of skipped units in the report
_XML_LANG = "{http://www.w3.org/XML/1998/namespace}lang"
_CODES = frozenset(["bpt", "ept", "it", "ph", "ut"])  # their content is formatting, not text; hi contains text
_MOST_LANGS = 20  # that a message names
_LINE_ENDS = re.compile(r"[\r\n]+")


def read_tmx(path: Path, langs: tuple[str, str], size: int, skipped: Counter[str]) -> Iterator[Rows]:
    """Yield both sides of a translation memory and the numbers of their units, `size` units at a time.

    Memory is that of the longest unit. Formatting codes inside of segments are left out.

    Args:
        langs: of both sides; twice the same language reads only that side.
        skipped: the number of units that lack one of the languages is added to it.
    Raises:
        DataError: the file is missing, damaged or not TMX, declares entities, or no unit has both languages.
    """
    src, tgt, numbers = list[str](), list[str](), list[int]()
    n_units = n_pairs = 0
    found: set[str] = set()
    for n_units, unit in enumerate(_units(path), start=1):
        variants = [
            (one.get(_XML_LANG) or one.get("lang") or "", one.find("{*}seg")) for one in unit.iterfind("{*}tuv")
        ]
        if len(found) < _MOST_LANGS:
            found.update(lang for lang, _ in variants)
        texts = [_text_in(lang, variants) for lang in langs]
        if texts[0] is None or texts[1] is None:
            skipped[UNTRANSLATED if langs[0] != langs[1] else f"units without {langs[0]}"] += 1
            continue
        src.append(texts[0])
        tgt.append(texts[1])
        numbers.append(n_units)
        n_pairs += 1
        if len(src) >= size:
            yield src, tgt, numbers, n_units
            src, tgt, numbers = [], [], []
    yield src, tgt, numbers, n_units
    if n_units and not n_pairs:
        wanted = f"both {langs[0]} and {langs[1]}" if langs[0] != langs[1] else langs[0]
        problem = f"none of its {n_units:,} units has {wanted}"
        raise DataError(path, f"{problem}; its languages are {', '.join(sorted(filter(None, found))) or 'not given'}")


def _units(path: Path) -> Iterator[Element]:
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import iterparse

    with explained(path), open_bytes(path) as stream:
        opened: list[Element] = []
        try:
            for event, element in iterparse(stream, events=("start", "end")):
                if event == "start":
                    if not opened and _name(element) != "tmx":
                        raise DataError(path, f"is not TMX: its outermost element is {_name(element)}")
                    opened.append(element)
                    continue
                opened.pop()
                if (name := _name(element)) in _CODES:
                    element.text = None
                    del element[:]
                if name == "tu":
                    yield element
                if len(opened) == 2 or name == "tu":  # an element of the body, or of the header
                    opened[-1].clear()
        except ParseError as error:
            raise _xml_error(path, error) from None
        except DefusedXmlException as error:
            name = getattr(error, "name", "") or "an external one"
            problem = f"has XML entities ({name}), which can make a small file huge or read other files"
            raise DataError(path, problem, "replace them by their text") from None
        except (LookupError, ValueError) as error:
            raise DataError(path, f"has an encoding that cannot be read ({error})", "convert it to UTF-8") from None


def _xml_error(path: Path, error: ParseError) -> DataError:
    reason, line = str(error).partition(": line")[0], error.position[0]
    if reason in ("no element found", "unclosed token"):
        return DataError(
            path, "is empty" if line == 1 and "element" in reason else "is truncated", "copy or download it again"
        )
    return DataError(f"{path}, line {line:,}", f"is not valid XML ({reason})", "fix the line")


def _name(element: Element) -> str:
    """Return an element's name without its namespace."""
    return element.tag.rpartition("}")[2]


def _text_in(lang: str, variants: list[tuple[str, Element | None]]) -> str | None:
    """Return the segment of the variant that fits a language best, the first of equal ones; None without one."""
    fits = [closeness(written, lang) for written, _ in variants]
    if not any(fits):
        return None
    segment = variants[fits.index(max(fits))][1]
    lines = [""] if segment is None else _LINE_ENDS.split("".join(segment.itertext()))
    return lines[0] if len(lines) == 1 else " ".join(filter(None, map(str.strip, lines)))
