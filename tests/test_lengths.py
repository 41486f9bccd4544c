"""Line lengths show where two files stop being parallel. If the lengths are not conclusive, nothing is reported."""

import gzip
import os
import random
from pathlib import Path
from statistics import median

import pytest

from mt.text.lengths import first_break

REAL_DATA = os.environ.get("MT_REAL_DATA")
needs_real_data = pytest.mark.skipif(not REAL_DATA, reason="MT_REAL_DATA does not name the folder with data/ and hub/")
DEMO = Path(__file__).resolve().parent.parent / "data/demo"


def demo_lengths(name: str = "train") -> tuple[list[int], list[int]]:
    """Return the lengths in characters of the lines of the demo corpus."""
    en, de = ((DEMO / f"{name}.{lang}").read_text(encoding="utf-8").split("\n")[:-1] for lang in ("en", "de"))
    return [len(line) for line in en], [len(line) for line in de]


def real_lengths(name: str) -> tuple[list[int], list[int]]:
    folder = Path(REAL_DATA or "") / "data"
    en, de = (gzip.decompress((folder / f"{name}.{lang}.gz").read_bytes()).split(b"\n")[:-1] for lang in ("en", "de"))
    return [len(line) for line in en], [len(line) for line in de]


def without(lengths: list[int], start: int, n: int = 1) -> list[int]:
    return lengths[:start] + lengths[start + n :]


def line_of(src: list[int], tgt: list[int]) -> int | None:
    found = first_break(src, tgt)
    return None if found is None else found.line


@pytest.mark.parametrize("n", [1, 3, 400])
def test_missing_lines_are_found_on_either_side(n: int) -> None:
    src, tgt = demo_lengths()
    for start in (2_000, 9_999, 17_000):
        for sides in ((src, without(tgt, start, n)), (without(src, start, n), tgt)):
            found = first_break(*sides)
            assert found is not None
            assert (found.line, found.shift) == (pytest.approx(start, abs=5), n)


def test_the_first_of_several_missing_lines_is_reported() -> None:
    src, tgt = demo_lengths()
    assert line_of(src, without(without(tgt, 12_000), 4_000)) == pytest.approx(4_000, abs=5)


def test_a_line_missing_at_the_beginning_or_the_end_is_found() -> None:
    src, tgt = demo_lengths()
    assert line_of(src, tgt[1:]) == pytest.approx(0, abs=5)
    assert line_of(src, tgt[:15_000]) == 15_000  # the whole shorter side matches


def test_a_missing_line_and_an_extra_last_line_are_found_as_a_shift() -> None:
    src, tgt = demo_lengths()
    moved = [*without(tgt, 5_000), 40]
    for sides, shift in (((src, moved), -1), ((moved, src), 1)):
        found = first_break(*sides)
        assert found is not None
        assert (found.line, found.shift) == (pytest.approx(5_000, abs=5), shift)


@pytest.mark.parametrize("src", [[], [7], [20] * 3_000, sorted(random.Random(1).choices(range(9, 99), k=3_000))])
def test_inconclusive_lengths_give_no_result(src: list[int]) -> None:
    """If there are no lengths, or they are equal or sorted, a shift changes nothing."""
    assert first_break(src, [*src, 20]) is None
    assert first_break(src, src) is None


def test_unrelated_lines_give_no_result() -> None:
    rng = random.Random(1)
    src, tgt = ([rng.randint(5, 300) for _ in range(5_000)] for _ in range(2))
    assert first_break(src, tgt[1:]) is None
    assert first_break(src, tgt) is None


@pytest.mark.parametrize("name", ["train", "valid", "test"])
def test_parallel_files_match_to_their_end(name: str) -> None:
    src, tgt = demo_lengths(name)
    assert line_of(src, tgt) == len(src)


@needs_real_data
@pytest.mark.parametrize(
    "name", ["parallel/tatoeba", "parallel/bible", "parallel/news2008-2012", "newstest/newstest2014"]
)
def test_real_corpora_have_no_breaks_and_removed_lines_are_found(name: str) -> None:
    src, tgt = real_lengths(name)
    assert line_of(src, tgt) in (None, len(src))
    rng = random.Random(2)
    places = [rng.randrange(len(src)) for _ in range(5)]
    found = [line_of(src, without(tgt, place)) for place in places]
    if name == "parallel/tatoeba":  # sorted by length
        assert found == [None] * 5
    else:
        assert median(abs(a - b) if a is not None else 99 for a, b in zip(found, places, strict=True)) <= 2
