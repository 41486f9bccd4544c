"""The package as a library: names, types, options by keyword, and results that can be read."""

from __future__ import annotations

import logging
import subprocess
import sys
import venv
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import mt
from mt.config.loading import dump_config, load_config
from mt.config.settings import DecodeChanges, DecodeConfig
from mt.config.validation import unwrapped
from mt.text.corpora import SentencePair
from tests.toys import toy_config, toy_text, write_lines

ROOT = Path(__file__).resolve().parent.parent
LINES = toy_text(6, 9)[0]

USER_PROGRAM = """
from pathlib import Path

import mt
from mt import DataError, Hypothesis, MTError, PairScore, Scorer, Translator, compare, evaluate, prepare, train

corpus = prepare("demo.yaml", {"data.max_tokens": 128})
n_pairs: int = len(corpus.train)
run = train({"name": "toy", "src_lang": "en", "tgt_lang": "de"}, ["train.max_steps=10"], run_dir=Path("runs/a"))
folder: Path = run.path
translator: Translator = Translator.load(run, device="cpu", precision="fp32")
texts: list[str] = translator.translate(["a", "b"], beam_size=2, length_penalty=1.0)
hypotheses: list[Hypothesis] = next(translator.translate_lines(iter(texts), n_best=2, sample=True, top_k=None))
score: float = hypotheses[0].score
scores: list[PairScore] = list(Scorer.load("runs/a").score([("a", "b")], length_penalty=0.0))
try:
    found = evaluate(hypotheses=texts, references=[texts, Path("ref.de")], metrics=["bleu"], confidence=True)
    found = evaluate(run, tests=["held_out"], baseline="runs/b", device="cpu")
except DataError as error:
    problem: str = error.problem
except MTError:
    raise
bleu: float = found.test_sets["input"].scores[0].score
ranking: list[int] = compare({"a": texts, "b": "b.de"}, references="ref.de").test_sets["input"].ranking
version: str = mt.__version__
"""
WRONG_LINES = {  # a mistake in a line of a user → the code of the error that mypy reports
    "translator.translate(texts, beam_width=2)": "call-arg",
    'translator.translate(texts, beam_size="2")': "typeddict-item|arg-type",
    "evaluate(metric=['bleu'])": "call-arg",
    "train(1)": "arg-type",
    "mt.trian": "attr-defined",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run in `runs/toy`, with its text and its config, toy.yaml."""
    folder = tmp_path_factory.mktemp("api")
    config = toy_config(folder / "text", max_steps=40, peak_lr=1e-2)
    (folder / "toy.yaml").write_text(dump_config(config), "utf-8")
    mt.train(folder / "toy.yaml", run_dir=folder / "runs/toy")
    return folder


@pytest.fixture(scope="module")
def translator(folder: Path) -> mt.Translator:
    return mt.Translator.load(folder / "runs/toy", precision="fp32")


# --- Names ------------------------------------------------------------------------------------------------------------


def test_the_package_imports_a_name_when_it_is_used():
    code = "import mt, sys; heavy = {'torch', 'numpy', 'pydantic'}; assert not heavy & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    light = "from mt import evaluate; evaluate(hypotheses=['a b c d'], references=['a b c d']); import sys"
    subprocess.run([sys.executable, "-c", f"{light}; assert 'torch' not in sys.modules"], cwd=ROOT, check=True)


def test_all_names_are_there_and_listed():
    assert {"Hypothesis", "MTError", "Scorer", "Translator", "compare", "evaluate", "prepare", "train"} < {*mt.__all__}
    assert {*mt.__all__} <= {*dir(mt)}
    assert all(getattr(mt, name) is not None for name in mt.__all__)
    with pytest.raises(AttributeError, match="module 'mt' has no attribute 'trian'"):
        mt.trian  # noqa: B018
    with pytest.raises(ImportError):
        from mt import trian  # noqa: F401


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_functions_are_functions_whatever_is_imported_first(order: tuple[int, int]):
    imports = ["from mt import train, evaluate", "import mt.training.progress, mt.evaluation.scores"]
    checks = ["import mt", "assert callable(train) and train is mt.train and evaluate is mt.evaluate"]
    code = "\n".join([*(imports[i] for i in order), *checks])
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_user_program_is_checked_against_the_types(tmp_path: Path):
    """An installed mt with py.typed; what it is built on is not there, so that mypy answers within seconds."""
    pytest.importorskip("mypy")
    venv.create(tmp_path / "venv", with_pip=False)
    (packages,) = (tmp_path / "venv").glob("lib/*/site-packages")
    (packages / "mt").symlink_to(ROOT / "mt")
    lines = USER_PROGRAM.splitlines()
    (tmp_path / "user.py").write_text("\n".join([*lines, *WRONG_LINES, ""]), "utf-8")
    mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", tmp_path / "venv/bin/python", "user.py"]
    done = subprocess.run([*mypy, "--no-error-summary"], cwd=tmp_path, capture_output=True, text=True)
    found = [line.split(":", 2) for line in done.stdout.splitlines() if ": error:" in line]
    assert [int(number) for _, number, _ in found] == [*range(len(lines) + 1, len(lines) + 1 + len(WRONG_LINES))], done
    for (_, _, message), kinds in zip(found, WRONG_LINES.values(), strict=True):
        assert message.rpartition("[")[2].rstrip("]") in kinds.split("|"), message


# --- Prepare and train ------------------------------------------------------------------------------------------------


def test_a_config_may_be_a_file_a_name_a_mapping_or_a_config(folder: Path):
    config = load_config(folder / "toy.yaml")
    assert load_config(str(folder / "toy.yaml")) == config
    assert load_config(config) is not None
    assert load_config(config) == config
    nested = {
        "name": "toy",
        "src_lang": "en",
        "tgt_lang": "de",
        "data": {
            "train": [{"src": folder / "text/train.en", "tgt": folder / "text/train.de"}],
            "valid": {"src": folder / "text/valid.en", "tgt": folder / "text/valid.de"},
        },
    }
    assert load_config(nested).data.train[0].src == str(folder / "text/train.en")
    assert load_config("demo").name == "demo"


def test_overrides_are_the_same_as_a_mapping_and_as_texts():
    by_text = load_config("demo", ["train.max_steps=7", "train.init_from=runs/a", "data.test={}"])
    assert load_config("demo", {"train.max_steps": 7, "train.init_from": Path("runs/a"), "data.test": {}}) == by_text
    assert load_config(by_text, {"train.max_steps": 8}).train == replace(by_text.train, max_steps=8)


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        (
            "demo",
            {"train.max_step": 7},
            "overrides: train.max_step: unknown key, did you mean max_steps?",
        ),
        ("demo", {"train.max_steps": "x"}, "overrides: train.max_steps: expected an integer of at least 1, got 'x'"),
        ({"nam": "x"}, (), "config: nam: unknown key, did you mean name?"),
    ],
)
def test_a_wrong_setting_is_reported_with_its_place(config: Any, overrides: Any, message: str):
    with pytest.raises(mt.ConfigError) as caught:
        mt.train(config, overrides)
    assert str(caught.value) == message


def test_preparing_returns_the_corpus_in_a_few_words(folder: Path):
    corpus = mt.prepare(folder / "toy.yaml")
    assert repr(corpus) == f"<PreparedCorpus {corpus.folder}: train 400, valid 20, test held_out 20 pairs>"
    assert str(corpus).splitlines()[1] == "tokenizer  bpe, 380 pieces"


def test_training_prints_nothing_and_returns_the_run(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(logging.getLogger("mt"), "handlers", [])  # as in a program that does not show messages
    run = mt.train(folder / "toy.yaml", {"train.max_steps": 42}, run_dir=folder / "runs/toy")
    assert capfd.readouterr() == ("", "")
    assert (run.path, run.report.steps) == (folder / "runs/toy", 42)
    assert str(run).startswith("toy: 33,536 parameters, 42 steps")
    assert mt.Translator.load(run).decode == mt.Translator.load(str(run.path)).decode
    with pytest.raises(mt.DataError) as caught:
        mt.TrainedRun(folder).report  # noqa: B018
    assert str(caught.value) == f"{folder} has no report. Train the run to its end."


# --- Translate and score ----------------------------------------------------------------------------------------------


def test_options_of_the_search_are_keywords(translator: mt.Translator):
    by_config = translator.translate(LINES, replace(translator.decode, beam_size=1, max_length=3))
    assert translator.translate(LINES, beam_size=1, max_length=3) == by_config
    assert translator.translate(LINES, replace(translator.decode, max_length=3), beam_size=1) == by_config
    (best, second) = next(translator.translate_lines(LINES[:1], n_best=2, beam_size=2))
    assert isinstance(best, mt.Hypothesis)
    assert best.score >= second.score
    assert len({*translator.translate(LINES[:1] * 20, sample=True, temperature=4.0, seed=3)}) > 0


def test_options_that_there_are_not_are_refused_by_name(translator: mt.Translator):
    for changes, message in (
        ({"beam": 2}, "decode.beam: unknown key, did you mean beam_size?"),
        ({"beam_size": 0}, "decode.beam_size: expected an integer from 1 to 64, got 0"),
        ({"temperature": 2.0}, "decode.temperature is 2.0, but only sampling uses it. Set decode.sample."),
    ):
        with pytest.raises(mt.ConfigError) as caught:
            translator.translate(LINES, **changes)  # type: ignore[arg-type]
        assert str(caught.value) == message
    with pytest.raises(TypeError, match=r"n_best: .*; use translate_lines for hypotheses"):
        translator.translate(LINES, n_best=2)  # type: ignore[call-arg]


def test_the_typed_options_are_the_settings_of_decoding():
    names = {field.name: unwrapped(get_type_hints(DecodeConfig)[field.name]) for field in fields(DecodeConfig)}
    assert get_type_hints(DecodeChanges) == names


def test_a_translator_is_shown_in_one_line(translator: mt.Translator):
    assert repr(translator) == "<Translator en to de, cpu, float32>"


def test_a_scorer_takes_pairs_of_text(folder: Path):
    scorer = mt.Scorer.load(folder / "runs/toy", precision="fp32")
    first, second = scorer.score([("bar", "BAR"), ("dest", "DEST")], length_penalty=0.0)
    assert (first.pair, second.pair) == (SentencePair("bar", "BAR", 1), SentencePair("dest", "DEST", 2))
    assert first.score == first.log_prob
    (penalised,) = scorer.score([first.pair], length_penalty=1.0, length_penalty_form="plain")
    assert penalised.score == pytest.approx(first.log_prob / first.n_tokens, abs=1e-4)


# --- Evaluate and compare ---------------------------------------------------------------------------------------------

REFERENCES = ["the cat sat on the mat", "it is raining in the town today", "he reads a very long book"]
HYPOTHESES = ["the cat sat on the mat", "it is raining in a town today", "he reads the very long book"]


def test_lists_are_scored_as_files_are(tmp_path: Path):
    hyp, ref = (write_lines(tmp_path / name, lines) for name, lines in (("hyp", HYPOTHESES), ("ref", REFERENCES)))
    by_lists = mt.evaluate(hypotheses=HYPOTHESES, references=REFERENCES)
    by_files = mt.evaluate(hypotheses=str(hyp), references=ref)
    assert by_lists.test_sets == by_files.test_sets
    bleu = by_lists.test_sets["input"].scores[0]
    assert bleu.signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert str(by_lists) == f"input: BLEU {bleu}, {', '.join(str(by_lists).split(', ')[1:])}"
    assert repr(by_lists).startswith(f"<Evaluation of the system: input: BLEU {bleu.score:.2f}, chrF2 ")
    assert repr(by_lists).endswith(" (3 lines)>")
    both = mt.evaluate(hypotheses=HYPOTHESES, references=[REFERENCES, ref], metrics=["bleu"])
    assert both.test_sets["input"].n_references == 2


def test_a_baseline_intervals_and_an_analysis_are_on_request():
    options = {"metrics": ["chrf"], "significance": "bootstrap", "n_samples": 100}
    found = mt.evaluate(
        hypotheses=HYPOTHESES, references=REFERENCES, baseline=REFERENCES, confidence=True, analysis=True, **options
    )
    assert found.comparison is not None
    assert (found.comparison.test, found.comparison.baseline) == ("bootstrap", "the baseline")
    assert found.test_sets["input"].scores[0].confidence is not None
    assert [sentence.hypothesis for sentence in found.sentences["input"]] == HYPOTHESES
    assert str(found).splitlines()[1].startswith("input: ")


def test_lists_of_other_lengths_are_refused():
    with pytest.raises(mt.DataError) as caught:
        mt.evaluate(hypotheses=HYPOTHESES[:2], references=REFERENCES)
    assert str(caught.value) == "2 hypotheses and 3 references: scoring needs the same number of lines"
    with pytest.raises(mt.DataError, match="2 hypotheses and 3 references"):
        mt.compare({"a": HYPOTHESES, "b": HYPOTHESES[:2]}, references=REFERENCES)
    with pytest.raises(TypeError, match="expected a model, or hypotheses and references"):
        mt.evaluate(hypotheses=HYPOTHESES)
    with pytest.raises(TypeError, match="translations by name need references"):
        mt.compare({"a": HYPOTHESES, "b": HYPOTHESES})


def test_a_config_of_another_type_is_refused():
    with pytest.raises(mt.ConfigError, match=r"^expected a config: a path, a name or a mapping .*, got 5$"):
        mt.prepare(5)  # type: ignore[arg-type]


def test_a_model_is_scored_on_its_test_sets(folder: Path):
    found = mt.evaluate(folder / "runs/toy", metrics=["bleu"], baseline=["x"] * 20, precision="fp32")
    assert list(found.test_sets) == ["held_out"]
    assert found.comparison is not None
    with pytest.raises(mt.DataError, match=r"^the baseline has 1 lines and the test set held_out has 20"):
        mt.evaluate(folder / "runs/toy", baseline=["x"])


def test_a_model_is_scored_and_compared_on_any_text(folder: Path):
    src, tgt = toy_text(6, 9)
    lines = mt.evaluate(folder / "runs/toy", sources=src, references=tgt, metrics=["bleu"])
    table = write_lines(folder / "new.tsv", [f"{one}\t{other}" for one, other in zip(src, tgt, strict=True)])
    by_file = mt.evaluate(folder / "runs/toy", data={"file": table}, metrics=["bleu"])
    assert lines.test_sets["input"] == by_file.test_sets["new"]
    options = {"metrics": ["bleu"], "n_samples": 100}
    found = mt.compare({"model": folder / "runs/toy", "references": tgt}, sources=src, references=tgt, **options)
    assert found.test_sets["input"].metrics[0].scores[0].score == lines.test_sets["input"].scores[0].score
    assert found.test_sets["input"].metrics[0].scores[1].score == pytest.approx(100)
    assert [system.name for system in found.systems] == ["model", "references"]
    with pytest.raises(
        mt.DataError, match=r"^other has 1 lines and the test set input has 6\. Give translations of the"
    ):
        mt.compare({"model": folder / "runs/toy", "other": ["x"]}, sources=src, references=tgt, **options)
    with pytest.raises(TypeError, match="expected sources and references, or data without them"):
        mt.evaluate(folder / "runs/toy", references=tgt)
    with pytest.raises(TypeError, match="expected tests of the model, or other text, not both"):
        mt.evaluate(folder / "runs/toy", sources=src, references=tgt, tests=["t"])
    with pytest.raises(mt.ConfigError, match=r"^data: expected one kind of corpus, with the keys"):
        mt.evaluate(folder / "runs/toy", data={"fil": "x.tsv"})


def test_systems_are_compared_by_their_names(folder: Path, tmp_path: Path):
    file = write_lines(tmp_path / "b.txt", REFERENCES)
    found = mt.compare({"a": HYPOTHESES, "b": file}, references=REFERENCES, metrics=["bleu"], n_samples=100)
    assert [system.name for system in found.systems] == ["a", "b"]
    assert found.test_sets["input"].ranking == [1, 0]
    assert repr(found).startswith("<Comparison of a and b: input: ")
    models = mt.compare([folder / "runs/toy", folder / "runs/toy/model"], metrics=["bleu"], n_samples=100)
    assert models.test_sets["held_out"].n_lines == 20
    named = mt.compare({"a": folder / "runs/toy", "b": folder / "runs/toy/model"}, metrics=["bleu"], n_samples=100)
    assert [system.name for system in named.systems] == ["a", "b"]
    assert named.test_sets["held_out"].ranking == models.test_sets["held_out"].ranking
    with pytest.raises(mt.ConfigError, match="systems: expected two or more, got 1"):
        mt.compare({"a": HYPOTHESES}, references=REFERENCES)
