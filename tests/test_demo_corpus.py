"""The demo corpus: its committed bytes and its splits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parent.parent / "data" / "demo"
N_LINES = {"train": 20_000, "valid": 1_000, "test": 1_000}


def read_lines(split: str, language: str) -> list[str]:
    return (DEMO / f"{split}.{language}").read_text(encoding="utf-8").removesuffix("\n").split("\n")


@pytest.mark.parametrize("split", N_LINES)
@pytest.mark.parametrize("language", ["en", "de"])
def test_a_split_has_the_expected_number_of_sentences_of_4_to_25_words(split: str, language: str) -> None:
    lines = read_lines(split, language)
    assert len(lines) == N_LINES[split]
    assert all(4 <= len(line.split()) <= 25 for line in lines)


@pytest.mark.parametrize("language", ["en", "de"])
def test_no_sentence_occurs_twice_within_or_across_splits(language: str) -> None:
    lines = [line for split in N_LINES for line in read_lines(split, language)]
    assert len(set(lines)) == len(lines) == 22_000


@pytest.mark.parametrize("language", ["en", "de"])
def test_sentences_contain_only_letters_and_plain_punctuation(language: str) -> None:
    for split in N_LINES:
        for line in read_lines(split, language):
            assert re.fullmatch(r"[A-ZÄÖÜ][A-Za-zÄÖÜäöüß' ,-]*[a-zäöüß][.?!]", line), line
            assert not re.search(r"  | ,|,,|,\S", line), line
