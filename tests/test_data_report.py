"""The report of a prepared corpus: its page says what report.json says, whatever the text holds."""

from __future__ import annotations

import html
import json
import math
import random
import re
from pathlib import Path
from typing import Any

from mt.report.data import data_page, write_data_report
from mt.report.facts import PreparedData
from tests.test_page import HOSTILE, PageReader, assert_same_structure

RULES = {
    "duplicate": ("clean.duplicates", "The same pair came before."),
    "copied": ("clean.max_copied", "The two sides are the same sentence, or nearly: it was not translated."),
    "white_space": ("clean.white_space", "Tabs, runs of spaces and spaces at the ends became single spaces or went."),
}
PAIRS = [
    ("The committee adopted the report by 15 votes to 3.", "Der Ausschuss nahm den Bericht mit 15 gegen 3 Stimmen an."),
    ("Two dogs are playing in the snow.", "Zwei Hunde spielen im Schnee."),
    ("Select <b>Save</b> & close the window.", "Wählen Sie <b>Speichern</b> & schließen Sie das Fenster."),
]


def _removal(count: int, src: str, tgt: str, note: str = "") -> dict[str, Any]:
    example = {"src": src, "tgt": tgt, "line": 7, **({"note": note} if note else {})}
    return {"count": count, "examples": [example, example | {"line": 40_213}]}


def _source(name: str, read: int, removed: dict[str, Any], **more: Any) -> dict[str, Any]:
    kept = read - sum(removal["count"] for removal in removed.values())
    counts = {"source": name, "tag": None, "weight": 1.0, "pairs_read": read, "pairs_kept": kept}
    return counts | {"removed": removed, "changed": {}} | more


def _sources() -> list[dict[str, Any]]:
    documentation = {
        "duplicate": _removal(61_240, *PAIRS[2], note="line 3 of the same source"),
        "copied": _removal(12_077, "Microsoft.Azure.Storage", "Microsoft.Azure.Storage"),
        "non_letters": _removal(4_410, "| --- | --- |", "| --- | --- |"),
        "length_ratio": _removal(1_702, "See also", "Weitere Informationen " + "im folgenden Abschnitt " * 12),
        "language": _removal(833, "Siehe auch den nächsten Abschnitt", "Siehe auch den nächsten Abschnitt unten"),
        "empty": _removal(211, "Remarks", ""),
    }
    spoken = {"duplicate": _removal(18_300, *PAIRS[1]), "contamination": _removal(12, *PAIRS[0], note="test newstest")}
    before = "15\u202f000\u00a0€ im Jahr"
    changed = {
        "white_space": {
            "count": 41_033,
            "examples": [{"line": 90, "side": "tgt", "before": before, "after": "15 000 € im Jahr"}],
        },
        "unicode_nfc": {
            "count": 77,
            "examples": [{"line": 5, "side": "tgt", "before": "Mu\u0308ller hört", "after": "Müller hört"}],
        },
    }
    return [
        _source("parallel/msdocs.en.gz + parallel/msdocs.de.gz", 422_399, documentation, changed=changed),
        _source("parallel/tatoeba.en.gz + parallel/tatoeba.de.gz", 159_555, spoken, weight=2.0),
        _source("mono/back-translated.tsv.zst", 75_768, {"empty": _removal(2, "", "Ja.")}, tag="<bt>", weight=0.5),
    ]


def _language(words: int, tokens: int, piece: str) -> dict[str, Any]:
    shares = {"split_word_share": 0.1873251, "byte_share": 0.0000312, "unknown_share": 0.0}
    counts = {"words": words, "distinct_words": words // 71, "tokens": tokens, "fertility": tokens / words}
    return counts | shares | {"characters_a_token": 4.317, "longest_pieces": [{"piece": piece, "count": 13}]}


def made_up_facts() -> dict[str, Any]:
    sources = _sources()
    read, kept = (sum(source[key] for source in sources) for key in ("pairs_read", "pairs_kept"))
    draw = random.Random(1)
    samples = [
        {"source": draw.randrange(3), "line": draw.randrange(1, 70_000), "src": src, "tgt": tgt} for src, tgt in PAIRS
    ]
    return {
        "format_version": 2,
        "fingerprint": "0f3a5e9b1c2d4e6f",
        "made_at": "2026-11-22T12:00:00+00:00",
        "src_lang": "en",
        "tgt_lang": "de",
        "command": "mt prepare --config wmt14.yaml --set data.clean.language=true",
        "settings": {"data.clean.max_chars": 4_000, "data.clean.min_copied": None, "tokenizer.user_symbols": ["<bt>"]},
        "train": {
            "pairs_read": read,
            "pairs_kept": kept,
            "src_tokens": 11_822_904,
            "tgt_tokens": 12_430_118,
            "src_tokens_per_tgt_token": 11_822_904 / 12_430_118,
            "longest_src": 201,
            "longest_tgt": 243,
            "sources": sources,
        },
        "valid": {"source": "newstest2013", "pairs": 3_000, "empty": 0, "src_tokens": 75_000, "tgt_tokens": 81_003},
        "test": {"newstest2014.full": {"source": "sacrebleu:wmt14/full", "pairs": 3_003, "empty": 1}},
        "lengths": {
            "tokens": {"src": [100, 2_000, 35_000, 400, 0, 0], "tgt": [90, 1_800, 35_000, 500, 110, 0]},
            "ratio": {"edges": [0, 0.5, 1.0, 2, None], "counts": [1_203, 5_120, 20_411, 903]},
        },
        "overlap": {
            "valid": {"src": {"ngrams": 41_230, "found": 73}, "tgt": {"ngrams": 38_110, "found": 12}},
            "newstest2014.full": {"src": {"ngrams": 42_004, "found": 5_120}, "tgt": {"ngrams": 37_990, "found": 0}},
        },
        "tokenizer": {
            "kind": "bpe",
            "vocab_size": 32_000,
            "adopted": False,
            "src": _language(9_320_117, 11_822_904, "▁responsibilities"),
            "tgt": _language(8_930_441, 12_430_118, "▁Wirtschaftswachstum"),
            "pieces": {"src": 10_320, "tgt": 14_020, "both": 7_011, "neither": 649},
        },
        "samples": samples,
        "seconds": {"read and clean": 41.73, "tokenizer": 12.25, "encode": 33.118},
        "peak_memory_bytes": 843_210_752,
        "versions": {"mt-train": "0.1.0", "python": "3.11.7", "sentencepiece": "0.2.1"},
        "hardware": {"cpu": "AMD EPYC 7B13", "cores": 2, "memory_bytes": 16_777_216_000},
    }


def _page(facts: dict[str, Any]) -> str:
    return data_page(PreparedData.model_validate(facts), RULES)


def test_the_page_has_the_numbers_of_the_json(tmp_path: Path):
    write_data_report(made_up_facts(), tmp_path, RULES)
    assert json.loads((tmp_path / "report.json").read_text("utf-8")) == made_up_facts()
    page = PageReader((tmp_path / "report.html").read_text("utf-8"))
    assert page.headings == [
        "Sources",
        "Removed pairs",
        "Changed text",
        "Validation and test sets",
        "Lengths",
        "Overlap with validation and test sets",
        "Vocabulary",
        "Samples of what was kept",
        "Time",
        "Settings and versions",
    ]
    for text in ("Pairs read657,722", "85.0% of those read", "longest 243", "Peak memory804.1 MiB", "in en alone"):
        assert text in page.text
    counts = ["duplicate", "copied", "non_letters", "length_ratio", "language", "empty", "contamination"]
    for row in (
        ["Source", "Tag", "Weight", "Read", "Kept", "Fraction kept", *counts],
        ["mono/back-translated.tsv.zst", "<bt>", "0.50", "75,768", "75,766", ">99.9%", *"00000", "2", "0"],
        ["duplicate", "79,540", "12.09%", "The same pair came before.", "data.clean.duplicates"],
        ["white_space", "41,033", RULES["white_space"][1], "data.clean.white_space"],
        ["parallel/msdocs.en.gz + parallel/msdocs.de.gz", "41,033", "77"],
        ["Validation", "newstest2013", "3,000", "0", "75,000", "81,003"],
        ["Test: newstest2014.full", "sacrebleu:wmt14/full", "3,003", "1", "–", "–"],
        ["5", "110"],
        ["2 and above", "903"],
        ["newstest2014.full", "en", "42,004", "5,120", "12.19%", "12.2%"],
        ["vocab size", "32,000"],
        ["Words that are cut, into more than one token", "18.7%", "18.7%"],
        ["▁Wirtschaftswachstum", "13"],
        ["tokenizer", "12.2 s", "14.1%"],
        ["Total", "1 min 27 s", ""],
        ["data.clean.min_copied", "null"],
        ["tokenizer.user_symbols", '["<bt>"]'],
        ["memory_bytes", "15.6 GiB"],
    ):
        assert row in page.rows, row
    # Kept 341,926 of 422,399; then 61,240 duplicates.
    assert re.findall(r'aria-label="(kept: .*?)"', (tmp_path / "report.html").read_text("utf-8"))[0] == (
        "kept: 341,926; duplicate: 61,240; copied: 12,077; non_letters: 4,410; length_ratio: 1,702; other rules: 1,044"
    )


def test_with_one_source_there_are_no_sums_and_no_names():
    facts = made_up_facts()
    facts["train"]["sources"] = facts["train"]["sources"][:1]
    page = _page(facts)
    assert page.count("<tfoot>") == 1  # that of times
    assert ">line 40,213</span>" in page


def _replaced(facts: Any, text: str, key: str = "") -> Any:
    """The facts with every text and every name from the data replaced, but those that we write ourselves."""
    if isinstance(facts, dict):
        renamed = key in ("removed", "changed", "test", "seconds", "versions")
        return {f"{text}{i}" if renamed else name: _replaced(facts[name], text, name) for i, name in enumerate(facts)}
    if isinstance(facts, list):
        return [_replaced(value, text, key) for value in facts]
    return text if isinstance(facts, str) and key != "side" else facts


def test_text_of_the_data_is_never_markup():
    hostile = _page(_replaced(made_up_facts(), HOSTILE))
    assert_same_structure(hostile, _page(_replaced(made_up_facts(), "words")))
    assert any("=HYPERLINK" in found for found in PageReader(hostile).texts)


def test_half_a_surrogate_pair_and_nan_can_be_written(tmp_path: Path):
    facts = made_up_facts()
    facts["samples"][0]["src"] = "half \ud83d of it"
    facts["tokenizer"]["src"]["fertility"] = math.nan
    facts["lengths"]["ratio"]["edges"][-1] = math.inf
    write_data_report(facts, tmp_path, RULES)
    written = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert written["samples"][0]["src"] == "half \ud83d of it"
    assert written["tokenizer"]["src"]["fertility"] is None
    assert written["lengths"]["ratio"]["edges"][-1] is None
    rows = PageReader((tmp_path / "report.html").read_text("utf-8")).rows
    assert ["Tokens for each word, 1 would be a vocabulary of whole words", "–", "1.39"] in rows
    assert ["2 and above", "903"] in rows


def test_examples_have_the_language_of_their_side():
    page = _page(made_up_facts())
    assert '<p lang="en" dir="auto">Two dogs are playing in the snow.</p><p lang="de" dir="auto">Zwei Hunde' in page
    # An example of a change is one side, before and after.
    assert '<p lang="de" dir="auto">M<del>u\u0308</del>ller hört</p><p lang="de" dir="auto">M<ins>ü</ins>ller' in page
    assert "line 3 of the same source" in page  # the note of an example


def _warnings(facts: dict[str, Any]) -> list[str]:
    found = re.findall('<p class="notice warning" role="note"><strong>Warning: </strong>(.*?)</p>', _page(facts))
    return [html.unescape(warning) for warning in found]


def test_what_a_user_should_look_at_is_said_at_the_top():
    facts = made_up_facts()
    assert _warnings(facts) == [
        "1 of 3,003 pairs of the test set newstest2014.full have an empty side.",
        "12.2% of the 8-grams of newstest2014.full (en) occur in the training text: scores on it may be too high.",
    ]
    facts["test"], facts["overlap"] = {}, {}
    assert _warnings(facts) == []
    facts["tokenizer"]["tgt"]["unknown_share"] = 0.0123
    source = facts["train"]["sources"][2]
    source["removed"]["empty"]["count"], source["pairs_kept"] = 45_461, 30_307
    assert _warnings(facts) == [
        "60.0% of the pairs of mono/back-translated.tsv.zst were removed, most of them by empty. "
        "See its examples below: is that right?",
        "1.23% of the tokens of de are unknown to the vocabulary.",
    ]


def test_a_corpus_of_which_little_is_known_has_a_page():
    facts = made_up_facts()
    for name in ("valid", "test", "lengths", "overlap", "tokenizer", "samples", "seconds", "peak_memory_bytes"):
        del facts[name]
    facts["train"] |= {"sources": [_source("a.tsv", 0, {})], "pairs_read": 0, "pairs_kept": 0}
    page = PageReader(_page(facts))
    assert page.headings == ["Sources", "Removed pairs", "Changed text", "Settings and versions"]
    assert "No pair was removed." in page.text
    assert "No text was changed." in page.text
