"""The report of a prepared corpus: the page has the numbers of report.json, and text from the data is never markup."""

from __future__ import annotations

import html
import json
import math
import re
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from mt.report.data import data_page, write_data_report
from mt.report.facts import PreparedData
from mt.text.clean import CHANGE_RULES, RULES
from mt.text.prepare import prepare_corpus
from tests.test_page import HOSTILE, PageReader, assert_same_structure
from tests.toys import toy_config, write_lines

ALL_RULES = dict(chain(RULES.items(), CHANGE_RULES.items()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare a corpus of 200 pairs and one of five: a duplicate, one without a source, and three that are changed."""
    folder = tmp_path_factory.mktemp("data")
    config = toy_config(folder, n_train=200)
    again = [(folder / f"train.{lang}").read_text("utf-8").splitlines()[0] for lang in ("en", "de")]
    pairs = [again, ["", "KU"], ["bar  ku", "BAR KU"], ["bar so", "BAR\xa0SO"], ["Mu\u0308he bar", "BAR"]]
    files = {
        side: str(write_lines(folder / f"more.{side}", lines))
        for side, lines in zip(("src", "tgt"), zip(*pairs, strict=True), strict=True)
    }
    more = replace(config.data.train[0], weight=0.5, **files)
    config = replace(config, data=replace(config.data, train=(*config.data.train, more)))
    return prepare_corpus(config).folder


@pytest.fixture
def facts(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text("utf-8"))
    return found


def _page(facts: dict[str, Any]) -> str:
    return data_page(PreparedData.model_validate(facts), ALL_RULES)


def test_the_page_has_the_numbers_of_the_json(folder: Path, facts: dict[str, Any]):
    written = (folder / "report.html").read_text("utf-8")
    page, train = PageReader(written), facts["train"]
    assert page.headings == [
        "Training corpora",
        "Removed pairs",
        "Changed text",
        "Validation and test sets",
        "Lengths",
        "Overlap with validation and test sets",
        "Vocabulary",
        "Samples of kept pairs",
        "Time",
        "Settings and versions",
    ]
    tokens, found = facts["tokenizer"]["tgt"], facts["overlap"]["held_out"]["tgt"]
    above = f"{facts['lengths']['ratio']['edges'][-2]:g} and above{facts['lengths']['ratio']['counts'][-1]}"
    for text in (
        above,
        "Pairs read205",
        f"Pairs kept{train['pairs_kept']}",
        f"longest {train['longest_tgt']}",
        "only en",
    ):
        assert text in page.text
    name = train["sources"][1]["source"]
    for row in (
        ["Corpus", "Tag", "Weight", "Read", "Kept", "Fraction kept", "empty", "duplicate"],
        [name, "", "0.50", "5", "3", "60.0%", "1", "1"],
        ["Total", "", "", "205", "203", "99.0%", "1", "1"],
        ["empty", "1", "0.49%", ALL_RULES["empty"][1], "data.clean"],
        ["white_space", "2", ALL_RULES["white_space"][1], "data.clean.white_space"],
        [name, "2", "1"],
        ["test set held_out", facts["test"]["held_out"]["source"], "20", "0", "–", "–"],
        ["3", str(facts["lengths"]["tokens"]["src"][2])],
        ["vocab size", "380"],
        ["data.clean.min_copied", "null"],
        ["tokenizer.character_coverage", "0.9999"],
    ):
        assert row in page.rows, row
    overlap = next(row for row in page.rows if row[:2] == ["held_out", "de"])
    assert overlap[2:4] == [f"{found['ngrams']:,}", f"{found['found']:,}"]
    fertility = next(row for row in page.rows if row[0].startswith("Tokens per word"))
    assert fertility[2] == f"{tokens['fertility']:.2f}"
    assert re.findall('aria-label="(kept: .*?)"', written) == [
        "kept: 200; empty: 0; duplicate: 0",
        "kept: 3; empty: 1; duplicate: 1",
    ]


def test_with_one_corpus_the_page_has_no_totals_and_no_corpus_names(facts: dict[str, Any]):
    facts["train"]["sources"] = facts["train"]["sources"][1:]
    facts["samples"] = []
    page = _page(facts)
    assert page.count("<tfoot>") == 1  # that of the table of times
    assert ">line 2</span>" in page


def _replaced(facts: Any, text: str, key: str = "") -> Any:
    """Return the facts with every text and name from the data replaced, except those that we write ourselves."""
    if isinstance(facts, dict):
        renamed = key in ("removed", "changed", "test", "seconds", "versions")
        return {f"{text}{i}" if renamed else name: _replaced(facts[name], text, name) for i, name in enumerate(facts)}
    if isinstance(facts, list):
        return [_replaced(value, text, key) for value in facts]
    return text if isinstance(facts, str) and key != "side" else facts


def test_text_of_the_data_is_never_markup(facts: dict[str, Any]):
    hostile = _page(_replaced(facts, HOSTILE))
    assert_same_structure(hostile, _page(_replaced(facts, "words")))
    assert any("=HYPERLINK" in found for found in PageReader(hostile).texts)


def test_lone_surrogates_and_nan_can_be_written(facts: dict[str, Any], tmp_path: Path):
    facts["samples"][0]["src"] = "half \ud83d of it"
    facts["tokenizer"]["src"]["fertility"] = math.nan
    write_data_report(facts, tmp_path, ALL_RULES)
    written = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert written["samples"][0]["src"] == "half \ud83d of it"
    assert written["tokenizer"]["src"]["fertility"] is None
    page = PageReader((tmp_path / "report.html").read_text("utf-8"))
    assert "half U+D83D of it" in page.text
    assert next(row for row in page.rows if row[0].startswith("Tokens per word"))[1] == "–"


def test_examples_are_marked_with_the_language_of_their_side(facts: dict[str, Any]):
    page = _page(facts)
    sample = facts["samples"][0]
    assert f'<p lang="en" dir="auto">{sample["src"]}</p><p lang="de" dir="auto">{sample["tgt"]}</p>' in page
    # An example of a change is one side, before and after.
    assert '<p lang="en" dir="auto">M<del>u\u0308</del>he bar</p><p lang="en" dir="auto">M<ins>ü</ins>he bar' in page
    assert "U+00A0 NO-BREAK SPACE → U+0020 SPACE" in page  # the note of an example


def _warnings(facts: dict[str, Any]) -> list[str]:
    found = re.findall('<p class="notice warning" role="note"><strong>Warning: </strong>(.*?)</p>', _page(facts))
    return [html.unescape(warning) for warning in found]


def test_warnings_are_at_the_top_of_the_page(facts: dict[str, Any]):
    facts["findings"] = []
    facts["overlap"] = {"held_out": {"src": {"ngrams": 42_004, "found": 5_120}, "tgt": {"ngrams": 5, "found": 0}}}
    assert _warnings(facts) == [
        "12.2% of the 8-grams of held_out (en) occur in the training text: scores on this set may be too high."
    ]
    facts["overlap"] = {}
    assert _warnings(facts) == []
    facts["findings"] = [
        {
            "level": "warning",
            "check": "swapped",
            "key": "data.valid",
            "problem": "v: the sides are swapped",
            "fix": "swap",
        }
    ]
    facts["tokenizer"]["tgt"]["unknown_share"] = 0.0123
    source = facts["train"]["sources"][1]
    source["removed"]["empty"]["count"], source["pairs_kept"] = 3, 1
    assert _warnings(facts) == [
        f"80.0% of the pairs of {source['source']} were removed, most of them by the rule empty. "
        "Check its examples below.",
        "v: the sides are swapped. Swap.",
        "1.23% of the tokens in de are unknown: they are not in the vocabulary.",
    ]


def test_a_report_with_few_facts_has_a_page(facts: dict[str, Any]):
    for name in ("valid", "test", "lengths", "overlap", "tokenizer", "samples", "seconds", "peak_memory_bytes"):
        del facts[name]
    empty = {"source": "a.tsv", "pairs_read": 0, "pairs_kept": 0, "removed": {}, "changed": {}}
    facts["train"] |= {"sources": [empty], "pairs_read": 0, "pairs_kept": 0}
    page = PageReader(_page(facts))
    assert page.headings == ["Training corpora", "Removed pairs", "Changed text", "Settings and versions"]
    assert "No pair was removed." in page.text
    assert "No text was changed." in page.text
