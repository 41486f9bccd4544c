"""Duplicates: the first of equal pairs is kept, for any number of pairs and with little memory."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt.text.shards import pair_keys, repeated


def write_keys(folder: Path, files: list[list[int]]) -> list[Path]:
    paths = [folder / f"{i}.keys" for i in range(len(files))]
    for path, keys in zip(paths, files, strict=True):
        np.array(keys, dtype=np.uint64).tofile(path)
    return paths


def flags(folder: Path, files: list[list[int]], keys_per_part: int) -> list[list[bool]]:
    return [found.tolist() for found in repeated(write_keys(folder, files), keys_per_part)]


def slow_flags(files: list[list[int]]) -> list[list[bool]]:
    seen: Counter[int] = Counter()
    result = []
    for keys in files:
        result.append([])
        for key in keys:
            result[-1].append(seen[key] > 0)
            seen[key] += 1
    return result


# Few different keys, so that they repeat, and some from the whole range, so that they fall into different parts.
KEYS = st.integers(0, 9) | st.integers(0, 9).map(lambda n: n * 0x1999999999999999) | st.integers(0, 2**64 - 1)
FILES = st.lists(st.lists(KEYS, max_size=30), max_size=6)


@given(FILES, st.integers(1, 100))
@settings(max_examples=150)
def test_any_lists_in_parts_of_any_size_give_the_same_as_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[int]], keys_per_part: int
) -> None:
    assert flags(tmp_path_factory.mktemp("keys"), files, keys_per_part) == slow_flags(files)


@pytest.mark.parametrize("keys_per_part", [1_000_000, 3_000, 700])
def test_many_random_keys_in_parts_give_the_same_as_a_dictionary(tmp_path: Path, keys_per_part: int) -> None:
    drawn = np.random.default_rng(1).integers(0, 2**64, 6_000, dtype=np.uint64)
    keys = np.random.default_rng(2).choice(drawn, 10_000)
    files = [part.tolist() for part in np.split(keys, [10, 10, 999, 4_000, 9_999])]
    expected = slow_flags(files)
    assert sum(map(sum, expected)) == 10_000 - len(set(keys.tolist()))
    assert flags(tmp_path, files, keys_per_part) == expected


def test_only_the_first_of_equal_keys_is_kept(tmp_path: Path) -> None:
    assert flags(tmp_path, [[5, 6, 5], [], [7, 6], [5]], keys_per_part=100) == [
        [False, False, True],
        [],
        [False, True],
        [True],
    ]


def test_pairs_have_equal_keys_exactly_if_they_are_equal() -> None:
    pairs = [("a b", "c"), ("a", "b c"), ("a b", "c"), ("c", "a b"), ("a bc", ""), ("", "a bc"), ("", ""), ("1", "a")]
    keys = pair_keys(*zip(*pairs, strict=True))
    assert keys.dtype == np.uint64
    assert keys[0] == keys[2]
    assert len(set(keys.tolist())) == len(set(pairs)) == 7


def test_keys_are_the_same_in_every_process() -> None:
    # blake2b("5 Größe" + "size"), 8 bytes, read as little-endian.
    keys = pair_keys(["Größe"], ["size"])
    code = "from mt.text.shards import pair_keys; print(pair_keys(['Größe'], ['size'])[0])"
    environment = {"PYTHONHASHSEED": "7", "PYTHONUTF8": "1", "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(other.stdout) == keys[0] == 10_161_483_589_871_621_957


def test_empty_lists_have_no_keys_and_lone_surrogates_have_different_keys() -> None:
    assert len(pair_keys([], [])) == 0
    assert pair_keys(["\ud800"], ["a"])[0] != pair_keys(["\udfff"], ["a"])[0]


@given(st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5)), max_size=20))
def test_different_pairs_have_different_keys(pairs: list[tuple[str, str]]) -> None:
    keys = pair_keys([src for src, _ in pairs], [tgt for _, tgt in pairs]).tolist()
    assert len(set(keys)) == len(set(pairs))
    assert len(set(zip(keys, pairs, strict=True))) == len(set(pairs))
