"""The report of an evaluation: page and Markdown have the numbers of report.json, and text is never markup."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from jinja2 import UndefinedError

from mt.errors import ConfigError, MTError
from mt.evaluation import findings
from mt.evaluation.analysis import FLAG_RULES
from mt.evaluation.findings import MOST_SENTENCES, EvalOptions, evaluate
from mt.evaluation.report_files import check_folder, write_report
from mt.evaluation.scores import TranslatedSet
from mt.report.evaluation import evaluation_page
from mt.report.facts import Evaluation, ModelManifest, ScoredSet, TrainingCurves
from mt.report.markdown import markdown
from mt.text.languages import words_of
from tests.test_markdown import TABLE_TAGS, one_line, rendered, tags_of
from tests.test_page import HOSTILE, PageReader, assert_same_structure
from tests.toys import files_up_to

DEMO = Path(__file__).parent.parent / "data/demo"
N = 60
SOURCES, REFERENCES = (
    [*(DEMO / f"test.{lang}").read_text("utf-8").splitlines()[: N - 1], last]
    for lang, last in (("en", "It has 15 rooms and 3 halls."), ("de", "Es hat 15 Zimmer und 3 Säle."))
)
HOSTILE_TEXTS = [
    HOSTILE,
    '<img src="https://example.org/x.png" onerror=alert(1)>',
    '" onmouseover="alert(1)" x="',
    "' autofocus onfocus='alert(1)",
    "$\\sqrt{x}$ & $$x_1$$",
    '=HYPERLINK("https://example.org","click")',
    "</td></tr></table></section><h1>gone</h1>",
    "--><!-- ]]> </style><style>@import url(//example.org)",
    "\u202eevil\u2066 \x00\x08\x1b[31m \x85 \ufffe",
    "half \ud83d of it",
    "&lt;b&gt; &amp;amp; &#60;",
    "| a | `b` | [c](d)",
]
CURVES = {
    "train": {
        "step": [100, 200, 300],
        "n_tgt_tokens": [40_000, 80_000, 120_000],
        "train_minutes": [1.025, 2.0375, 3.05],
        "train_loss": [8.125, None, 5.0625],
        "learning_rate": [0.0001, 0.0002, 0.0003],
        "grad_norm": [1.5, None, 0.75],
        "tgt_tokens_per_second": [650.5, 660.25, 655.125],
    },
    "valid": {
        "step": [150, 300],
        "n_tgt_tokens": [60_000, 120_000],
        "train_minutes": [1.5, 3.25],
        "valid_loss": [6.5, 5.25],
        "valid_bleu": [3.015625, 11.46875],
        "valid_chrf": [20.5, 31.25],
    },
}


def _spoilt(lines: list[str], every: int, by: str = "und so weiter") -> list[str]:
    """Return the lines, with other words at the end of every n-th line."""
    return [f"{line[: len(line) // 2]} {by}" if i % every == 0 else line for i, line in enumerate(lines)]


def _manifest(text: str = "words") -> ModelManifest:
    start = {
        "started_at": "2026-11-22T12:00:00+00:00",
        "command": ["mt", "train", text],
        "commit": text,
        "versions": {"torch": text},
        "hardware": {"cpu": text, "cores": 2},
    }
    source = {"source": text, "tag": None, "weight": 1.0, "pairs_read": 1_234, "pairs_kept": 1_200}
    values = {
        "settings": {
            "src_lang": "en",
            "tgt_lang": "de",
            "train.max_steps": 300,
            "train.learning_rate": 0.0007,
            "data.prepared_dir": text,
            "data.tags": [text],
            "train.save": True,
            "decode.beam_size": 4,
        },
        "description": "the average of 3 checkpoints up to step 3,000",
        "translation": {"device": "cpu", "precision": "bfloat16", "hardware": {"cpu": text}},
        "changed": ["train.max_steps", "data.prepared_dir"],
        "model": {
            "averaged_steps": [100, 200, 300],
            "commit": text,
            "sha256": {"model": text},
            "versions": {"a": text},
        },
        "starts": [start],
        "corpus": {
            "fingerprint": text,
            "train": {"pairs_kept": 1_200, "sources": [source]},
            "valid": {"source": text, "pairs": 300},
            "test": {"first": {"source": text, "pairs": 400}},
        },
    }
    return ModelManifest.model_validate(values)


def _training(text: str = "words") -> TrainingCurves:
    translations = [{"step": 1_500, "translation": text}, {"step": 3_000, "translation": ""}]
    samples = [{"source": text, "reference": text, "translations": translations}]
    return TrainingCurves.model_validate({"curves": CURVES, "samples": samples})


def _found(sets: dict[str, TranslatedSet], system: str = "new", baseline: str = "old") -> Evaluation:
    options = EvalOptions(
        metrics=["bleu", "chrf"], has_confidence=True, baseline=Path(baseline), n_samples=100, has_analysis=True
    )
    counts = Counter(words_of(" ".join(SOURCES[: N // 2])))
    return evaluate(sets, system, options, lambda words: counts)


@pytest.fixture(scope="module")
def found() -> Evaluation:
    """Return an evaluation with everything: two test sets, one with a baseline and two references, and a run."""
    hypotheses = _spoilt(REFERENCES, 3)
    hypotheses[4], hypotheses[5] = "", SOURCES[5]
    hypotheses[6] = "So " * 60
    sets = {
        "first": TranslatedSet(SOURCES, hypotheses, [REFERENCES, _spoilt(REFERENCES, 7)], "de", _spoilt(REFERENCES, 2)),
        "news.2014": TranslatedSet(SOURCES[:20], _spoilt(REFERENCES[:20], 2, "12 Uhr"), [REFERENCES[:20]], "de"),
    }
    found = _found(sets)
    values = {"steps": 3_000, "train_seconds": 190.75, "n_tgt_tokens": 120_000, "n_parameters": 1_234_567}
    values |= {"src_lang": "en", "tgt_lang": "de", "training": _training(), "manifest": _manifest()}
    return found.model_copy(update=values | {"valid": found.test_sets["news.2014"]})


@pytest.fixture(scope="module")
def facts(found: Evaluation) -> dict[str, Any]:
    """Return the evaluation as in report.json."""
    return found.written()


def _report(found: Evaluation, name: str = "words") -> Evaluation:
    origin = {"kind": "evaluation", "format_version": 1, "made_at": "2026-11-22T12:00:00+00:00"}
    origin |= {"command": name, "commit": name, "versions": {name: name}}
    return Evaluation.model_validate(origin | dict(found))


def _page(found: Evaluation, name: str = "words") -> str:
    return evaluation_page(_report(found, name), FLAG_RULES)


def _markdown(found: Evaluation, name: str = "words") -> str:
    return markdown("evaluation.md.j2", _report(found, name))


def _read(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in sorted(folder.iterdir())}


# --------------------------------------------------------------------------------------------------- numbers


def test_the_page_has_the_numbers_of_the_json(found: Evaluation, tmp_path: Path):
    write_report(found, tmp_path)
    facts = json.loads((tmp_path / "report.json").read_text("utf-8"))
    origin = ["kind", "format_version", "made_at", "command", "commit", "versions"]
    assert list(facts) == [*origin, *found.written()]
    page = PageReader((tmp_path / "report.html").read_text("utf-8"))
    assert page.headings == [
        "Scores",
        "Comparison with the baseline",
        "first: Error analysis",
        "first: Best and worst translations",
        "news.2014: Error analysis",
        "news.2014: Best and worst translations",
        "Training",
        "Sample translations during training",
        "first: All sentences",
        "news.2014: All sentences",
        "Provenance",
    ]
    for entry in (*facts["test_sets"].values(), facts["valid"]):
        for score in entry["scores"]:
            ends = (f"{score['confidence'][end]:.2f}" for end in ("low", "high"))
            assert [score["name"], f"{score['score']:.2f}", *ends, score["signature"]] in page.rows
    for score in facts["comparison"]["test_sets"]["first"]["scores"]:
        figures = [f"{score[key]:.2f}" for key in ("score", "baseline_score", "difference")]
        assert [score["name"], *figures, f"{score['p']:.4f}", score["verdict"]] in page.rows
    columns = ("bleu", "baseline_bleu", "chrf", "baseline_chrf")
    for kind in ("by_length", "by_rarest_word"):
        for bucket in facts["analysis"]["first"][kind]:
            figures = [f"{bucket[key]:.2f}" for key in columns]
            assert [bucket["bucket"], str(bucket["n_lines"]), *figures] in page.rows
    for one in facts["sentences"]["first"]:
        texts = [" ".join(one[key].split()) or one[key] for key in ("source", "hypothesis", "baseline", "reference")]
        scores = [f"{one[key]:.1f}" for key in ("chrf", "bleu", "baseline_chrf", "chrf_difference")]
        assert any(row[0] == str(one["line"]) and row[1] == texts[0] and row[5:9] == scores for row in page.rows)
    for row in (
        ["Empty", "1", "0", "5"],
        ["300", "5.0625", "5.2500"],  # the losses of the last update
        ["training", "words", "1,234", "1,200"],
        ["train.learning_rate", "0.0007"],
        ["averaged_steps", "100, 200, 300"],
    ):
        assert row in page.rows, row
    low, high = (facts["test_sets"]["first"]["scores"][0]["confidence"][end] for end in ("low", "high"))
    for text in (
        f"95% interval: {low:.2f} to {high:.2f}",
        "Training time3 min 11 s",
        "60 lines, 2 references each",
        "Warning: first: hypothesis 5 is empty",
        "Translated by the average of 3 checkpoints up to step 3,000.",
        f"Better than the baseline: {len(facts['analysis']['first']['gained'])} sentences",
    ):
        assert text in page.text, text


def test_the_markdown_has_the_numbers_of_the_json(found: Evaluation, facts: dict[str, Any]):
    text = _markdown(found)
    rows = rendered(text).rows
    sets = {**facts["test_sets"], "validation set": facts["valid"]}
    for name, entry in sets.items():
        for score in entry["scores"]:
            confidence = score["confidence"]
            shown = f"{score['score']:.2f} ± {(confidence['high'] - confidence['low']) / 2:.2f}"
            assert [name, score["name"], score["signature"], str(entry["n_lines"]), shown] in rows
    for score in facts["comparison"]["test_sets"]["first"]["scores"]:
        ours, theirs = score["score"], score["baseline_score"]
        figures = [f"{ours:.2f}", f"{theirs:.2f}", f"{ours - theirs:+.2f}", f"{score['p']:.4f}"]
        assert ["first", score["name"], score["verdict"], *figures] in rows
    for bucket in facts["analysis"]["first"]["by_length"]:
        figures = [f"{bucket[key]:.2f}" for key in ("bleu", "baseline_bleu", "chrf", "baseline_chrf")]
        assert [bucket["bucket"], str(bucket["n_lines"]), *figures] in rows
    assert (
        "en → de, the average of 3 checkpoints up to step 3,000, beam size 4, 1.2 M parameters, 3,000 updates, 120,000 "
        "target tokens, 3 min 11 s of training." in text
    )
    assert text[-1] == "\n"
    assert text[-2] != "\n"


def test_non_finite_numbers_are_shown_as_unknown_and_written_as_null(found: Evaluation, tmp_path: Path):
    train: dict[str, Any] = CURVES["train"] | {"train_loss": [math.nan, math.inf, 5.0]}
    training = TrainingCurves(curves={"train": train, "valid": CURVES["valid"]}, samples=[])
    write_report(found.model_copy(update={"training": training}), tmp_path)
    written = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert written["training"]["curves"]["train"]["train_loss"] == [None, None, 5.0]
    assert ["100", "–", ""] in PageReader((tmp_path / "report.html").read_text("utf-8")).rows


# --------------------------------------------------------------------------------------------------- hostile text


def _found_in(texts: list[str], name: str) -> Evaluation:
    """Return an evaluation in which all texts and all names are the given ones."""
    turned = [[*texts[i:], *texts[:i]] for i in range(4)]
    one = TranslatedSet(turned[0], turned[1], [turned[2]], "de", turned[3])
    two = TranslatedSet(turned[0], turned[0], [turned[3]], "de")
    found = _found({name: one, f"{name} 2": two}, system=name, baseline=name)
    values = {"src_lang": name, "tgt_lang": name, "training": _training(name), "manifest": _manifest(name)}
    return found.model_copy(update=values | {"warnings": {name: [name]}})


@pytest.fixture(scope="module")
def hostile() -> Evaluation:
    return _found_in(HOSTILE_TEXTS, HOSTILE)


def test_text_of_the_data_is_never_markup(hostile: Evaluation):
    words = _found_in([f"ein Wort und {'mehr ' * i}" for i in range(len(HOSTILE_TEXTS))], "words")
    # The elements differ in order, because buckets, warnings and oddities depend on the text.
    assert_same_structure(_page(hostile, HOSTILE), _page(words), in_order=False)


def test_all_text_of_the_data_is_on_the_page(hostile: Evaluation):
    shown = "".join(PageReader(_page(hostile, HOSTILE)).texts)
    for text in HOSTILE_TEXTS:
        if not re.search("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe]", text):
            # In the table of sentences, in examples with or without marked words, and as a corpus.
            assert shown.count(text) >= 3, text
    assert "half U+D83D of it" in shown
    assert "U+202EevilU+2066 U+0000U+0008U+001B[31m U+0085 U+FFFE" in shown


def test_no_file_of_a_report_has_control_characters_or_bidi_overrides(
    hostile: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.argv", ["mt", HOSTILE])
    write_report(hostile, tmp_path)
    files = _read(tmp_path)
    assert list(files) == ["report.html", "report.json", "report.md"]
    for name in ("report.html", "report.md"):
        assert not re.search("[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]", files[name])
    written = json.loads(files["report.json"])
    assert [one["source"] for one in written["sentences"][HOSTILE]] == HOSTILE_TEXTS
    assert written["command"] == shlex.join(["mt", HOSTILE])


def test_markdown_shows_hostile_text_as_text(hostile: Evaluation):
    found = rendered(_markdown(hostile, HOSTILE))
    assert tags_of(found) == {"h1", "h2", "h3", "p", "strong", "code", *TABLE_TAGS}
    examples = {row[0] for row in found.rows if len(row) == 6}
    worst = hostile.analysis[HOSTILE].worst[:3]
    assert {one_line(str(one.source)) for one in worst} <= examples
    assert one_line(HOSTILE) in {row[0] for row in found.rows}


# --------------------------------------------------------------------------------------------------- little or much


def test_a_report_with_only_scores_has_a_page(tmp_path: Path):
    found = evaluate({"input": TranslatedSet(None, REFERENCES, [REFERENCES], "de")}, "hyp.txt", EvalOptions())
    assert list(found.written()) == ["system", "test_sets", "warnings"]
    write_report(found, tmp_path)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert re.findall("<h2>(.*?)</h2>", page) == ["Scores", "Provenance"]
    assert re.search(r"<td[^>]*>100.00</td>", page)
    assert "## Scores" in (tmp_path / "report.md").read_text("utf-8")


def test_evenly_chosen_sentences_of_a_large_test_set_are_shown(monkeypatch: pytest.MonkeyPatch):
    assert MOST_SENTENCES == 5_000
    one = TranslatedSet(SOURCES, _spoilt(REFERENCES, 3), [REFERENCES], "de")
    monkeypatch.setattr(findings, "MOST_SENTENCES", 7)
    found = evaluate({"input": one}, "s", EvalOptions(has_analysis=True))
    # The first line of each seventh of the sixty lines.
    assert [entry.line for entry in found.sentences["input"]] == [1, 9, 18, 26, 35, 43, 52]
    page = _page(found)
    assert "7 of 60 sentences, at equal distances; click a header to sort" in page
    assert "<h2>Sentences</h2>" in page
    monkeypatch.setattr(findings, "MOST_SENTENCES", 60)
    page = _page(evaluate({"input": one}, "s", EvalOptions(has_analysis=True)))
    assert "60 sentences; click a header to sort" in page
    assert "<h2>All sentences</h2>" in page


@pytest.mark.parametrize(
    ("source", "hypothesis", "reference"),
    [("A dog.", "Ein Hund.", "Ein Hund."), ("12 %", "", "12 %"), ("", "a", ""), ("x", " ", "")],
)
def test_a_report_of_a_single_line_can_be_written(tmp_path: Path, source: str, hypothesis: str, reference: str):
    for baseline in (None, ["Hund"]):
        one = TranslatedSet([source], [hypothesis], [[reference]], "de", baseline)
        write_report(_found({"input": one}), tmp_path)
        assert any(row[0] == "1" for row in PageReader((tmp_path / "report.html").read_text("utf-8")).rows)
        rendered((tmp_path / "report.md").read_text("utf-8"))


def test_an_empty_hypothesis_is_shown_as_empty(found: Evaluation):
    page = _page(found)
    assert found.sentences["first"][4].hypothesis == ""
    empty = '<span class="muted">(empty)</span>'
    assert f'<dt>System</dt><dd lang="de" dir="auto">{empty}</dd>\n<dt>Baseline</dt>' in page
    assert f'<dt>Update 3,000</dt><dd lang="de" dir="auto">{empty}</dd>' in page
    assert found.analysis["first"].oddities["empty"].lines == [5]
    assert f"| {SOURCES[4]} | {REFERENCES[4]} | *(empty)* |" in _markdown(found)


def test_each_section_has_its_own_anchor_in_the_contents():
    one = TranslatedSet(["A dog runs."], ["Ein Hund schläft."], [["Ein Hund läuft."]], "de")
    page = _page(_found({"a & b": one, "a-b": one}))
    anchors = re.findall('<section id="(.*?)">', page)
    assert re.findall('<a href="#(.*?)">', page) == anchors
    assert {"a-b-all-sentences", "a-b-all-sentences-2"} < {*anchors}
    assert len({*anchors}) == len(anchors)


def test_differing_words_are_marked_and_texts_have_their_language():
    one = TranslatedSet(["A dog runs."], ["Ein Hund schläft."], [["Ein Hund läuft."]], "de")
    page = _page(_found({"input": one}).model_copy(update={"src_lang": "en", "tgt_lang": "de"}))
    assert '<dt>Source</dt><dd lang="en" dir="auto">A dog runs.</dd>' in page
    assert '<dt>Reference</dt><dd lang="de" dir="auto">Ein Hund <mark>läuft</mark>.</dd>' in page
    assert '<dt>Translation</dt><dd lang="de" dir="auto">Ein Hund <mark>schläft</mark>.</dd>' in page


# --------------------------------------------------------------------------------------------------- files


def _small(system: str) -> Evaluation:
    return Evaluation(system=system, test_sets={"input": ScoredSet(n_lines=1, n_references=1, scores=[])})


def test_a_new_report_replaces_the_three_files_of_the_last_one(found: Evaluation, tmp_path: Path):
    write_report(found, tmp_path)
    write_report(_small("second"), tmp_path)
    files = _read(tmp_path)
    assert list(files) == ["report.html", "report.json", "report.md"]
    assert all("second" in text for text in files.values())


def test_a_failed_write_leaves_the_files_of_the_last_report(found: Evaluation, tmp_path: Path):
    write_report(_small("first"), tmp_path)
    before = _read(tmp_path)
    remedy = "File too large. Raise the limit on the size of files (ulimit -f), then run the same command again."
    with files_up_to(10_000), pytest.raises(MTError) as caught:
        write_report(found, tmp_path)
    assert str(caught.value) == f"{tmp_path / 'report.html'} cannot be written: {remedy}"
    assert _read(tmp_path) == before


def test_a_page_that_cannot_be_rendered_leaves_the_files_of_the_last_report(tmp_path: Path):
    write_report(_small("first"), tmp_path)
    before = _read(tmp_path)
    with pytest.raises(UndefinedError):
        write_report(_small("second").model_copy(update={"sentences": {"gone": []}}), tmp_path)
    assert _read(tmp_path) == before


def _refusal(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        check_folder(folder)
    return str(caught.value)


def test_a_report_folder_may_be_new_or_contain_an_earlier_report_that_may_be_overwritten(tmp_path: Path):
    folder = tmp_path / "a/b"
    check_folder(folder)
    assert not folder.parent.exists()  # not created yet, because a later check may still fail
    write_report(_small("first"), folder)
    before = _read(folder)
    check_folder(folder, may_overwrite=True)
    assert _read(folder) == before
    (folder / "report.json").write_text('{"kind": "comparison"}')
    check_folder(folder, may_overwrite=True)
    assert _refusal(folder) == (
        f"report: {folder} contains report.html already. Give another folder, or add --overwrite."
    )


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("file", " is a file. Give a folder."),
        ("file/a", " cannot be written: Not a directory"),
        ("x" * 300, " cannot be written: File name too long"),
        ("page.html", " is the name of a file. Give a folder for report.html and the other files."),
    ],
)
def test_an_invalid_report_folder_is_refused_in_one_line(tmp_path: Path, name: str, problem: str):
    (tmp_path / "file").touch()
    assert _refusal(tmp_path / name) == f"report: {tmp_path / name}{problem}"


@pytest.mark.parametrize(("name", "what"), [("run.json", "a run"), ("manifest.json", "a model or a prepared corpus")])
def test_a_report_inside_a_run_or_a_model_is_refused(tmp_path: Path, name: str, what: str):
    (tmp_path / name).touch()
    for folder in (tmp_path, tmp_path / "translations", tmp_path / "checkpoints/step-1"):
        assert _refusal(folder) == f"report: {folder} is part of {what} ({tmp_path}). Give a separate folder."
    check_folder(tmp_path / "a/b/c")


@pytest.mark.parametrize("content", ['{"format_version": 2}', '{"kind": "data"}', "[]", '"x"', "", "\xff"])
def test_a_report_of_another_kind_is_not_overwritten(tmp_path: Path, content: str):
    (tmp_path / "report.json").write_text(content, encoding="latin-1")
    assert _refusal(tmp_path) == (
        f"report: {tmp_path} contains another kind of report.json, which would be overwritten. Give another folder."
    )
    assert (tmp_path / "report.json").read_text(encoding="latin-1") == content


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("mode", [0o500, 0o000])
def test_a_report_folder_that_cannot_be_written_is_an_error(tmp_path: Path, mode: int):
    folder = tmp_path / "a"
    folder.mkdir()
    folder.chmod(mode)
    try:
        assert _refusal(folder) == f"report: {folder} cannot be written: Permission denied"
    finally:
        folder.chmod(0o700)
