from __future__ import annotations

import copy
import html
import json
import math
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mt.page import key_path, value_at
from mt.text.report import report_page, write_report
from tests.test_page import HOSTILE, PageReader

RULES = {
    "duplicate": ("clean.duplicates", "The same pair came before."),
    "copied": ("clean.max_copied", "The two sides are the same sentence, or nearly: it was not translated."),
    "length_ratio": ("clean.max_length_ratio", "One side is many times as long as the other, in bytes."),
    "white_space": ("clean.white_space", "Tabs, runs of spaces and spaces at the ends became single spaces or went."),
}
PAIRS = [
    ("The committee adopted the report by 15 votes to 3.", "Der Ausschuss nahm den Bericht mit 15 gegen 3 Stimmen an."),
    ("Two dogs are playing in the snow.", "Zwei Hunde spielen im Schnee."),
    ("Select <b>Save</b> & close the window.", "Wählen Sie <b>Speichern</b> & schließen Sie das Fenster."),
    ("In the beginning God created the heaven and the earth.", "Am Anfang schuf Gott Himmel und Erde."),
    ("She asked: “Where is the station?”", "Sie fragte: „Wo ist der Bahnhof?“"),
]


def _removal(count: int, src: str, tgt: str, note: str = "") -> dict[str, Any]:
    example = {"src": src, "tgt": tgt, "line": 7, **({"note": note} if note else {})}
    return {"count": count, "examples": [example, example | {"line": 40_213}, example | {"line": 81_020}]}


def _source(name: str, read: int, removed: dict[str, Any], **more: Any) -> dict[str, Any]:
    kept = read - sum(removal["count"] for removal in removed.values())
    counts = {"source": name, "tag": None, "weight": 1.0, "pairs_read": read, "pairs_kept": kept}
    return counts | {"removed": removed, "changed": {}} | more


def _sources() -> list[dict[str, Any]]:
    documentation = {
        "duplicate": _removal(61_240, *PAIRS[2], note="line 3 of the same source"),
        "copied": _removal(12_077, "Microsoft.Azure.Storage", "Microsoft.Azure.Storage"),
        "non_letters": _removal(4_410, "| --- | --- |", "| --- | --- |"),
        "length_ratio": _removal(
            1_702, "See also", "Weitere Informationen finden Sie " + "im folgenden Abschnitt " * 12
        ),
        "language": _removal(833, "Siehe auch den nächsten Abschnitt", "Siehe auch den nächsten Abschnitt unten"),
        "empty": _removal(211, "Remarks", ""),
    }
    spoken = {"duplicate": _removal(18_300, *PAIRS[1]), "contamination": _removal(12, *PAIRS[0], note="test newstest")}
    changed = {
        "white_space": {
            "count": 41_033,
            "examples": [
                {"line": 12, "side": "src", "before": " Two  dogs\tplay ", "after": "Two dogs play"},
                {"line": 90, "side": "tgt", "before": "15\u202f000\u00a0€ im Jahr", "after": "15 000 € im Jahr"},
            ],
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


def _bell(n: int, centre: float, spread: float, pairs: int) -> list[int]:
    weights = [math.exp(-((math.log(i) - math.log(centre)) ** 2) / spread) for i in range(1, n + 1)]
    return [round(pairs * weight / sum(weights)) for weight in weights]


def _language(words: int, tokens: int, pieces: list[str]) -> dict[str, Any]:
    longest = [{"piece": piece, "count": 10 + 3 * i} for i, piece in enumerate(pieces)]
    shares = {"split_word_share": 0.1873251, "byte_share": 0.0000312, "unknown_share": 0.0}
    counts = {"words": words, "distinct_words": words // 71, "tokens": tokens, "fertility": tokens / words}
    return counts | shares | {"characters_a_token": 4.317, "longest_pieces": longest}


def made_up_facts() -> dict[str, Any]:
    sources = _sources()
    read, kept = (sum(source[key] for source in sources) for key in ("pairs_read", "pairs_kept"))
    draw = random.Random(1)
    samples = []
    for i in range(50):
        src, tgt = PAIRS[i % len(PAIRS)]
        samples.append({"source": draw.randrange(3), "line": draw.randrange(1, 70_000), "src": src, "tgt": tgt})
    return {
        "format_version": 2,
        "fingerprint": "0f3a5e9b1c2d4e6f",
        "made_at": "2026-11-22T12:00:00+00:00",
        "src_lang": "en",
        "tgt_lang": "de",
        "command": "mt prepare --config wmt14.yaml --set data.clean.language=true",
        "settings": {
            "data.clean.max_chars": 4_000,
            "data.clean.max_length_ratio": 4.0,
            "data.clean.min_copied": None,
            "data.clean.duplicates": "folded",
            "data.clean.language": True,
            "data.max_tokens": 256,
            "tokenizer.character_coverage": 0.9999,
            "tokenizer.user_symbols": ["<bt>", "<name>"],
        },
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
            "tokens": {"src": [*_bell(240, 16, 0.9, kept), *[0] * 16], "tgt": [*_bell(250, 18, 0.9, kept), *[0] * 6]},
            "ratio": {
                "edges": [0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.5, 2, None],
                "counts": [1_203, 5_120, 20_411, 71_000, 140_031, 133_321, 98_711, 51_200, 20_019, 11_000, 4_016, 903],
            },
        },
        "overlap": {
            "valid": {"src": {"ngrams": 41_230, "found": 73}, "tgt": {"ngrams": 38_110, "found": 12}},
            "newstest2014.full": {"src": {"ngrams": 42_004, "found": 5_120}, "tgt": {"ngrams": 37_990, "found": 0}},
        },
        "tokenizer": {
            "kind": "bpe",
            "vocab_size": 32_000,
            "lines": 1_120_004,
            "seconds": 12.25,
            "adopted": False,
            "src": _language(9_320_117, 11_822_904, ["▁responsibilities", "▁recommendations", "--------"]),
            "tgt": _language(8_930_441, 12_430_118, ["▁Wirtschaftswachstum", "▁Informationen"]),
            "pieces": {"src": 10_320, "tgt": 14_020, "both": 7_011, "neither": 649},
        },
        "samples": samples,
        "seconds": {"read and clean": 41.73, "duplicates": 0.8, "tokenizer": 12.25, "encode": 33.118, "join": 2.5},
        "peak_memory_bytes": 843_210_752,
        "versions": {"mt-train": "0.1.0", "python": "3.11.7", "sentencepiece": "0.2.1"},
        "hardware": {"cpu": "AMD EPYC 7B13", "cores": 2, "memory_bytes": 16_777_216_000},
    }


def _numbers(facts: Any, path: tuple[str | int, ...] = ()) -> Iterator[str]:
    """The key of every number in the facts."""
    if isinstance(facts, dict):
        for name, value in facts.items():
            yield from _numbers(value, (*path, name))
    elif isinstance(facts, list):
        for i, value in enumerate(facts):
            yield from _numbers(value, (*path, i))
    elif isinstance(facts, (int, float)) and not isinstance(facts, bool):
        yield key_path(*path)


def test_every_number_of_the_page_is_that_of_the_json(tmp_path: Path):
    write_report(made_up_facts(), tmp_path, RULES)
    facts = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert facts == made_up_facts()
    found = PageReader((tmp_path / "report.html").read_text("utf-8")).numbers
    assert {key: value_at(facts, key) for key in found} == {key: json.loads(value) for key, value in found.items()}


def test_every_number_of_the_json_is_on_the_page():
    facts = made_up_facts()
    found = PageReader(report_page(facts, RULES)).numbers
    # Places of examples are sentences, edges are axes, and past the longest sentence there is nothing to show.
    elsewhere = re.compile(r"format_version|.*\.line|samples\..*|lengths\.ratio\.edges\..*|lengths\.tokens\.\w+\.25\d")
    missing = [key for key in _numbers(facts) if key not in found and not elsewhere.fullmatch(key)]
    assert missing == []


def test_with_one_source_its_numbers_are_on_the_page_too():
    facts = made_up_facts()
    facts["train"]["sources"] = facts["train"]["sources"][:1]
    facts["samples"] = []
    text = report_page(facts)
    found = PageReader(text).numbers
    keys = [key for key in _numbers(facts["train"]["sources"], ("train", "sources")) if not key.endswith(".line")]
    assert [key for key in keys if key not in found] == ["train.sources.0.weight"]  # it means nothing here
    assert ">line 40,213</span>" in text  # of the one source there is


def test_the_sums_over_sources_add_up():
    text = report_page(made_up_facts(), RULES)
    # 61,240 duplicates in one source and 18,300 in another.
    share = f'<td class="n" data-value="{79_540 / 657_722}">12.09%</td>'
    assert f'<td class="n" data-value="79540">79,540</td>{share}' in text
    assert f'<span data-value="{558_935 / 657_722}">85.0%</span> of those read' in text
    # Kept 341,926 of 422,399; then 61,240 duplicates.
    segments = re.findall(r'aria-label="(kept: .*?)"', text)
    assert segments[0] == (
        "kept: 341,926; duplicate: 61,240; copied: 12,077; non_letters: 4,410; length_ratio: 1,702; other rules: 1,044"
    )


def _replaced(facts: Any, text: str, path: tuple[str, ...] = ()) -> Any:
    """The facts with every text of them replaced, but those that we write ourselves."""
    if isinstance(facts, dict):
        return {name: _replaced(value, text, (*path, name)) for name, value in facts.items()}
    if isinstance(facts, list):
        return [_replaced(value, text, path) for value in facts]
    return text if isinstance(facts, str) and path[-1] != "side" else facts


def test_text_of_the_data_is_never_markup():
    harmless = PageReader(report_page(_replaced(made_up_facts(), "words"), RULES))
    text = report_page(_replaced(made_up_facts(), HOSTILE), {"copied": (HOSTILE, HOSTILE)})
    hostile = PageReader(text)
    assert [tag for tag, _ in hostile.tags].count("script") == [tag for tag, _ in harmless.tags].count("script") == 1
    assert {tag for tag, _ in hostile.tags} == {tag for tag, _ in harmless.tags}
    assert not {name for _, attributes in hostile.tags for name in attributes if name.startswith("on")}
    assert hostile.numbers == harmless.numbers
    assert any("=HYPERLINK" in found for found in hostile.texts)
    assert not re.search("[\x00\ud800\u202e]", text)


def test_hostile_names_are_found_by_their_keys(tmp_path: Path):
    facts = made_up_facts()
    removed = facts["train"]["sources"][0]["removed"]
    removed[HOSTILE] = removed.pop("duplicate")
    facts["test"] = {"a.b": {"source": "x", "pairs": 77, "empty": 0}}
    write_report(facts, tmp_path)
    found = PageReader((tmp_path / "report.html").read_text("utf-8")).numbers
    assert found["test.a\\.b.pairs"] == "77"
    assert json.loads((tmp_path / "report.json").read_text("utf-8")) == facts


def test_half_a_surrogate_pair_and_nan_can_be_written(tmp_path: Path):
    facts = made_up_facts()
    facts["samples"][0]["src"] = "half \ud83d of it"
    facts["tokenizer"]["src"]["fertility"] = math.nan
    facts["lengths"]["ratio"]["edges"][-1] = math.inf
    write_report(facts, tmp_path)
    written = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert written["samples"][0]["src"] == "half \ud83d of it"
    assert written["tokenizer"]["src"]["fertility"] is None
    assert written["lengths"]["ratio"]["edges"][-1] is None
    page = (tmp_path / "report.html").read_text("utf-8")
    assert PageReader(page).numbers["tokenizer.src.fertility"] == "null"
    assert "2 and above" in page


def test_a_rule_says_what_it_removes_and_which_setting_it_comes_from():
    text = report_page(made_up_facts(), RULES)
    assert text.count("The same pair came before.") == 2  # in the table and above the examples
    assert len(re.findall("<td[^>]*><code>data.clean.duplicates</code></td>", text)) == 1
    assert "line 3 of the same source" in text  # the note of an example


def test_examples_have_the_language_of_their_side():
    text = report_page(made_up_facts(), RULES)
    assert '<p lang="en" dir="auto">Two dogs are playing in the snow.</p><p lang="de" dir="auto">Zwei Hunde' in text
    # An example of a change is one side, before and after.
    assert '<p lang="de" dir="auto">M<del>u\u0308</del>ller hört</p><p lang="de" dir="auto">M<ins>ü</ins>ller' in text


def _warnings(facts: dict[str, Any]) -> list[str]:
    found = re.findall('<p class="notice warning" role="note"><strong>Warning: </strong>(.*?)</p>', report_page(facts))
    return [html.unescape(warning) for warning in found]


def test_what_a_user_should_look_at_is_said_at_the_top():
    facts = made_up_facts()
    assert _warnings(facts) == [
        "1 of 3,003 pairs of the test set newstest2014.full have an empty side.",
        "12.2% of the 8-grams of newstest2014.full (en) stand in the training text, too: scores on it may be too good.",
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
    facts = copy.deepcopy(made_up_facts())
    for name in ("valid", "test", "lengths", "overlap", "tokenizer", "samples", "seconds", "peak_memory_bytes"):
        del facts[name]
    facts["train"] |= {"sources": [_source("a.tsv", 0, {})], "pairs_read": 0, "pairs_kept": 0}
    text = report_page(facts)
    assert re.findall("<h2>(.*?)</h2>", text) == ["Sources", "Removed pairs", "Changed text", "Settings and versions"]
    assert "No pair was removed." in text
    assert "No text was changed." in text
    PageReader(text)


def test_settings_are_shown_with_all_of_their_digits():
    text = report_page(made_up_facts())
    assert 'data-value="0.9999" data-key="settings.tokenizer\\.character_coverage">0.9999<' in text
    assert "<code>null</code>" in text
    assert "<code>[&quot;&lt;bt&gt;&quot;, &quot;&lt;name&gt;&quot;]</code>" in text
