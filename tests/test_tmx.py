"""Translation memories are read unit by unit, without formatting codes, and without entities."""

import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

import pytest

from mt.text.tmx import read_tmx
from tests.parallel_text import error_of, read, reader, write

DECLARATIONS = '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE tmx SYSTEM "tmx14.dtd">\n'
HEAD = f'{DECLARATIONS}<tmx version="1.4"><header srclang="en"/>'


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def unit(**segments: str) -> str:
    variants = (f'<tuv xml:lang="{lang.replace("_", "-")}"><seg>{seg}</seg></tuv>' for lang, seg in segments.items())
    return f"<tu><prop type='x'>y</prop>{''.join(variants)}</tu>"


def tmx(*units: str) -> str:
    return "\n".join([f"{HEAD}<body>", *units, "</body></tmx>"])


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".zst"])
def test_units_are_read_in_both_languages_whatever_their_order_and_region(suffix: str) -> None:
    write(f"a.tmx{suffix}", tmx(unit(en="one", de="eins"), unit(DE_de="zwei", fr="deux", en_GB="two &amp; more")))
    assert read(file=f"a.tmx{suffix}") == [("one", "eins", 1), ("two & more", "zwei", 2)]


def test_the_variant_that_fits_best_is_read() -> None:
    write("a.tmx", tmx(unit(en_GB="colour", en="color", en_US="color!", de_AT="a", de_DE="b")))
    assert read(file="a.tmx") == [("color", "a", 1)]
    write("b.tmx", tmx('<tu><tuv lang="EN"><seg>old</seg></tuv><tuv lang="ger"><seg>alt</seg></tuv></tu>'))
    assert read(file="b.tmx") == [("old", "alt", 1)]


def test_units_without_both_languages_are_skipped_and_counted() -> None:
    write("a.tmx", tmx(unit(en="one"), unit(en="two", de="zwei"), unit(fr="trois", de="drei"), "<tu/>"))
    skipped: Counter[str] = Counter()
    assert list(reader(file="a.tmx").pairs(skipped)) == [("two", "zwei", 2)]
    assert skipped == {"units without both languages": 3}
    write("b.tmx", tmx(unit(fr="un", es="uno")))
    assert error_of(file="b.tmx") == "b.tmx: none of its 1 units has both en and de; its languages are es, fr"


def test_formatting_codes_are_left_out_and_highlighted_text_stays() -> None:
    inline = (
        '<bpt i="1">&lt;b&gt;</bpt>Bold<ept i="1">&lt;/b&gt;</ept>, <hi type="x">high<it pos="begin">x</it>light</hi>'
        '<ph>&lt;img alt="<sub>picture</sub>"/&gt;</ph> and\n   a line end<ut>{\\f0}</ut>.'
    )
    write("a.tmx", tmx(unit(en=inline, de="Fett")))
    assert read(file="a.tmx") == [("Bold, highlight and a line end.", "Fett", 1)]


def test_highlights_may_be_nested_deeply_and_a_pretty_printed_segment_is_one_line() -> None:
    nested = "<hi>" * 5_000 + "one" + "</hi>" * 5_000
    write("a.tmx", tmx(unit(en=nested, de="\n    eins,\n\n    zwei  \n"), unit(en=" two ", de=f"a{' ' * 9}b\nc")))
    assert read(file="a.tmx") == [("one", "eins, zwei", 1), (" two ", f"a{' ' * 9}b c", 2)]


def test_a_file_in_utf16_or_with_a_namespace_is_read() -> None:
    text = tmx(unit(en="one", de="größer")).replace("UTF-8", "UTF-16")
    write("a.tmx", text.encode("utf-16"))
    assert read(file="a.tmx") == [("one", "größer", 1)]
    text = tmx(unit(en="one<ph>x</ph>", de="eins")).replace("<tmx ", '<tmx xmlns="http://www.lisa.org/tmx14" ')
    write("b.tmx", text)
    assert read(file="b.tmx") == [("one", "eins", 1)]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", " is empty. Copy or download it again."),
        (tmx(unit(en="one", de="eins"))[:-30], " is truncated. Copy or download it again."),
        (tmx("<tu><seg></tu>"), ", line 4 is not valid XML (mismatched tag). Fix the line."),
        ("<xliff/>", " is not TMX: its outermost element is xliff"),
        (
            HEAD.replace("UTF-8", "x-unknown"),
            " has an encoding that cannot be read (unknown encoding: x-unknown). Convert it to UTF-8.",
        ),
    ],
)
def test_the_error_for_a_file_that_is_not_tmx_says_where(text: str, problem: str) -> None:
    assert error_of(file=write("a.tmx", text)) == f"a.tmx{problem}"


@pytest.mark.parametrize(
    "declared",
    [
        '<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">',
        '<!ENTITY a SYSTEM "file:///etc/passwd">',
        '<!ENTITY % a SYSTEM "file:///etc/passwd"> %a;',
    ],
)
def test_entities_are_refused(declared: str) -> None:
    write("a.tmx", f"<?xml version='1.0'?><!DOCTYPE tmx [{declared}]><tmx><body>{unit(en='&a;', de='x')}</body></tmx>")
    assert error_of(file="a.tmx") == (
        "a.tmx has XML entities (a), which can make a small file huge or read other files. Replace them by their text."
    )


def test_units_are_dropped_once_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    import mt.text.tmx

    units, seen, most = mt.text.tmx._units, list[weakref.ref[Element]](), 0

    def watched(path: Path) -> Iterator[Element]:
        nonlocal most
        for unit in units(path):
            seen.append(weakref.ref(unit))
            most = max(most, sum(one() is not None for one in seen[-1_000:]))
            yield unit

    monkeypatch.setattr(mt.text.tmx, "_units", watched)
    write("a.tmx", tmx(*[unit(en="one", de="eins")] * 2_000))
    assert sum(len(src) for src, *_ in read_tmx(Path("a.tmx"), ("en", "de"), 500, Counter())) == 2_000
    assert most < 300
