"""The facts that a run folder has about its training."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mt.config.settings import RunConfig
from mt.errors import CheckpointError
from mt.evaluation.runs import MOST_POINTS, RunArtifacts, read_training
from mt.pipeline import train_run
from mt.run_folder import RunFolder
from mt.text.corpus import PreparedCorpus
from mt.text.languages import words_of
from mt.text.normalise import Normalisers
from tests.toys import toy_config, toy_text, write_lines


def _write(run_dir: Path, metrics: list[Any], samples: list[Any] | None = None) -> None:
    for name, entries in (("metrics.jsonl", metrics), ("samples.jsonl", samples or [])):
        write_lines(run_dir / name, [line if isinstance(line, str) else json.dumps(line) for line in entries])


def _trained(step: int, **values: Any) -> dict[str, Any]:
    return {"step": step, "train_loss": 9.0, "learning_rate": 0.5, "grad_norm": 2.0, "tgt_tokens_per_second": 8.0} | {
        "n_tgt_tokens": 100 * step,
        "train_seconds": step / 2,
        **values,
    }


# --------------------------------------------------------------------------------------------------- curves


def test_a_curve_of_many_points_is_thinned_evenly_and_keeps_the_last_point(tmp_path: Path):
    _write(tmp_path, [_trained(step, train_loss=1 / step) for step in range(1, 1_002)])
    curve = read_training(RunFolder(tmp_path)).curves["train"]
    # 1,001 points are more than 5 × 200, so every sixth is taken, counted from the last.
    assert curve["step"] == list(range(5, 1_002, 6))
    assert len(curve["step"]) == 167 <= MOST_POINTS
    assert curve["train_loss"] == [1 / step for step in curve["step"]]
    assert curve["n_tgt_tokens"] == [100 * step for step in curve["step"]]
    assert curve["train_minutes"] == [step / 120 for step in curve["step"]]


def test_a_curve_of_few_points_keeps_all_of_them(tmp_path: Path):
    _write(tmp_path, [_trained(step) for step in range(1, MOST_POINTS + 1)])
    assert read_training(RunFolder(tmp_path)).curves["train"]["step"] == list(range(1, 201))


def test_lines_without_measurements_are_ignored(tmp_path: Path):
    odd = ["[" * 200_000, '{"step": ' + "9" * 5_000 + "}", '{"step": 1' + "0" * 30 + ', "train_loss": 1}', "[1]"]
    _write(tmp_path, [_trained(10), *odd, _trained(20, train_loss=1e300, train_seconds=10**30)])
    curve = read_training(RunFolder(tmp_path)).curves["train"]
    assert (curve["step"], curve["train_loss"], curve["train_minutes"]) == ([10, 20], [9.0, None], [5 / 60, None])


def test_training_and_validation_have_separate_curves_with_gaps_for_missing_values(tmp_path: Path):
    validated = {"step": 20, "valid_loss": None, "valid_bleu": 12.5, "n_tgt_tokens": 2_000, "train_seconds": 10.0}
    _write(tmp_path, [_trained(10), _trained(20, train_loss=None), validated, {"step": 30, "train_loss": 7.5}])
    curves = read_training(RunFolder(tmp_path)).curves
    assert curves["train"] == {
        "step": [10, 20, 30],
        "n_tgt_tokens": [1_000, 2_000, None],  # an older version did not record it
        "train_minutes": [5 / 60, 10 / 60, None],
        "train_loss": [9.0, None, 7.5],
        "learning_rate": [0.5, 0.5, None],
        "grad_norm": [2.0, 2.0, None],
        "tgt_tokens_per_second": [8.0, 8.0, None],
    }
    assert curves["valid"] == {
        "step": [20],
        "n_tgt_tokens": [2_000],
        "train_minutes": [10 / 60],
        "valid_loss": [None],
        "valid_bleu": [12.5],
        "valid_chrf": [None],
    }


def test_unreadable_lines_are_ignored(tmp_path: Path):
    torn = json.dumps(_trained(20))[:30]
    others = [{"step": 10}, *({"step": 10, "samples": samples} for samples in (None, ["a"], [{"source": "a"}]))]
    _write(tmp_path, [_trained(10), torn, "", "[1]", "null", '{"train_loss": 3}', _trained(40)], others)
    with (tmp_path / "metrics.jsonl").open("ab") as stream:
        stream.write(b'{"step": 50, "train_loss": 1.0, "note": "\xff"}\n{"step": 60, "tr')
    training = read_training(RunFolder(tmp_path))
    assert training.curves["train"]["step"] == [10, 40]
    assert training.samples == []


def test_values_that_are_not_numbers_count_as_missing(tmp_path: Path):
    _write(
        tmp_path, [_trained(10), '{"step": 20, "train_loss": NaN, "grad_norm": Infinity, "learning_rate": -Infinity}']
    )
    curve = read_training(RunFolder(tmp_path)).curves["train"]
    assert (curve["train_loss"], curve["grad_norm"], curve["learning_rate"]) == ([9.0, None], [2.0, None], [0.5, None])
    _write(tmp_path, [_trained(10, train_loss="9", train_seconds="5"), _trained(20, grad_norm=[1])])
    curve = read_training(RunFolder(tmp_path)).curves["train"]
    assert (curve["train_loss"], curve["grad_norm"]) == ([None, 9.0], [2.0, None])
    assert curve["train_minutes"] == [None, 10 / 60]


def test_a_folder_without_files_has_empty_curves_and_no_samples(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "missing"):
        training = read_training(RunFolder(folder))
        assert {key for curve in training.curves.values() for key in curve} >= {"step", "train_loss", "valid_bleu"}
        assert not any(values for curve in training.curves.values() for values in curve.values())
        assert training.samples == []


# --------------------------------------------------------------------------------------------------- samples


def _sampled(step: int, n: int = 2) -> dict[str, Any]:
    samples = [{"source": f"s{i}", "reference": f"r{i}", "translation": f"{i} at {step}"} for i in range(n)]
    return {"step": step, "samples": samples}


def test_sample_translations_are_shown_at_exponentially_spaced_steps(tmp_path: Path):
    _write(tmp_path, [], [_sampled(step) for step in range(100, 10_100, 100)])
    one, other = read_training(RunFolder(tmp_path)).samples
    assert (other["source"], other["reference"]) == ("s1", "r1")
    # Among 100 validations, those numbered 100 ** (i / 7): 1, 1.9, 3.7, 7.2, 13.9, 26.8, 51.8, 100.
    assert one["translations"] == [
        {"step": step, "translation": f"0 at {step}"} for step in (100, 200, 400, 700, 1_400, 2_700, 5_200, 10_000)
    ]


@pytest.mark.parametrize(("n", "numbers"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (9, [1, 2, 3, 4, 5, 7, 9])])
def test_samples_include_the_first_and_the_last_validation(tmp_path: Path, n: int, numbers: list[int]):
    _write(tmp_path, [], [_sampled(step) for step in range(1, n + 1)])
    (one, _) = read_training(RunFolder(tmp_path)).samples
    assert [translation["step"] for translation in one["translations"]] == numbers


def test_a_step_is_left_out_for_samples_that_it_does_not_have(tmp_path: Path):
    _write(tmp_path, [], [_sampled(1), _sampled(2, n=1)])
    steps = [[one["step"] for one in sample["translations"]] for sample in read_training(RunFolder(tmp_path)).samples]
    assert steps == [[1, 2], [1]]


def test_a_sample_may_contain_unicode_line_separators(tmp_path: Path):
    entry = _sampled(1, n=1)
    entry["samples"][0]["translation"] = "one\u2028two\x85three"
    _write(tmp_path, [], [json.dumps(entry, ensure_ascii=False)])
    ((one,),) = [sample["translations"] for sample in read_training(RunFolder(tmp_path)).samples]
    assert one == {"step": 1, "translation": "one\u2028two\x85three"}


# --------------------------------------------------------------------------------------------------- a trained model


@dataclass(frozen=True)
class Run:
    config: RunConfig
    folder: Path
    src: list[str]  # the source side of the training text, as in the file


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("toy")
    config = toy_config(folder, n_train=120, max_steps=4, validate_every=2, checkpoint_every=2, log_every=2)
    src, tgt = toy_text(120, seed=1)
    # Text that normalisation changes, pairs that cleaning removes, and a word that occurs with other capitals.
    src += ["bar  der\tfin", "cafe\u0301 bar", "Bar bar", src[0], ""]
    tgt += ["BAR DER FIN", "CAFÉ BAR", "BAR BAR", tgt[0], "NICHTS"]
    write_lines(folder / "train.en", src)
    write_lines(folder / "train.de", tgt)
    train_run(config, folder / "run")
    return Run(config, folder / "run", src)


def test_the_run_and_corpus_are_found_from_a_run_a_checkpoint_or_a_model_folder(run: Run):
    last = RunFolder(run.folder).checkpoints()[-1]
    assert last == RunFolder(run.folder).checkpoint(4)
    known = {path: RunArtifacts.of(path) for path in (run.folder, run.folder / "model", last)}
    assert [one.folder.path for one in known.values()] == [run.folder / "model", run.folder / "model", last]
    assert {one.run and one.run.path for one in known.values()} == {run.folder}
    corpora = [one.corpus for one in known.values()]
    assert {corpus and corpus.folder.parent for corpus in corpora} == {run.folder.parent / "prepared"}
    training, _, of_checkpoint = (one.facts("cpu", "fp32")["training"] for one in known.values())
    assert training == of_checkpoint == read_training(RunFolder(run.folder))
    assert training.curves["train"]["step"] == training.curves["valid"]["step"] == [2, 4]
    assert [one["step"] for one in training.samples[0]["translations"]] == [2, 4]


def test_the_facts_of_a_run_include_settings_starts_and_corpus(run: Run):
    facts = RunArtifacts.of(run.folder).facts("cpu", "fp32")
    assert (facts["src_lang"], facts["tgt_lang"]) == ("en", "de")
    manifest = facts["manifest"].written()
    assert manifest["settings"]["train.max_steps"] == 4
    assert manifest["settings"]["train.label_smoothing"] == 0.1
    assert "train.max_steps" in manifest["changed"]
    assert "train.label_smoothing" not in manifest["changed"]  # the default
    assert manifest["model"]["averaged_steps"][-1] == 4
    assert set(manifest["model"]) >= {"averaged_steps", "commit", "versions", "hardware", "sha256"}
    (start,) = manifest["starts"]
    assert set(start) >= {"started_at", "command", "commit", "versions", "hardware"}
    (source,) = manifest["corpus"]["train"]["sources"]
    assert set(source) == {"source", "tag", "weight", "pairs_read", "pairs_kept"}
    assert source["pairs_read"] == 125
    # Without the duplicate, and the pair with an empty side.
    assert source["pairs_kept"] == manifest["corpus"]["train"]["pairs_kept"] == 123
    assert manifest["corpus"]["valid"]["pairs"] == manifest["corpus"]["test"]["held_out"]["pairs"] == 20
    json.dumps(manifest, allow_nan=False)


def test_words_are_counted_in_the_cleaned_training_text(run: Run):
    known = RunArtifacts.of(run.folder)
    assert known.corpus is not None
    normalise = Normalisers.of_run(run.config, ("en", "de")).src
    kept = [normalise(run.src[line - 1]) for line in known.corpus.train_lines]
    assert len(kept) == 123
    wanted = Counter(words_of(" ".join(kept)))
    counts = known.count_words(wanted.keys() | {"unheard"})
    assert counts is not None
    assert counts == wanted
    assert (counts["Bar"], counts["café"], counts["unheard"]) == (1, 1, 0)
    assert known.count_words({"Bar"}) == {"Bar": 1}
    assert known.count_words([]) == {}


def test_word_counts_do_not_depend_on_the_batch_size_of_decoding(run: Run, monkeypatch: pytest.MonkeyPatch):
    known, words = RunArtifacts.of(run.folder), set(words_of(" ".join(run.src)))
    whole = known.count_words(words)
    monkeypatch.setattr("mt.evaluation.runs._SENTENCES_AT_ONCE", 7)  # 123 is not a multiple of 7
    assert known.count_words(words) == whole


def test_without_its_corpus_a_model_still_has_facts(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def gone(folder: Path) -> PreparedCorpus:
        return real(tmp_path / "gone")

    real = PreparedCorpus.open
    monkeypatch.setattr(PreparedCorpus, "open", gone)
    known = RunArtifacts.of(run.folder)
    assert known.corpus is None
    assert known.count_words({"Bar"}) is None
    corpus = known.facts("cpu", "fp32")["manifest"].corpus
    assert list(corpus) == ["fingerprint"]
    assert len(corpus["fingerprint"]) >= 8


def test_a_model_outside_its_run_still_has_facts(run: Run, tmp_path: Path):
    shutil.copytree(run.folder / "model", tmp_path / "a/b/model")
    known = RunArtifacts.of(tmp_path / "a/b/model")
    assert known.run is None
    facts = known.facts("cpu", "fp32")
    assert facts["training"] is None
    assert facts["manifest"].starts == []
    assert "train" in facts["manifest"].corpus  # the settings say where the corpus is


def test_a_damaged_record_of_a_run_is_treated_as_empty(run: Run, tmp_path: Path):
    shutil.copytree(run.folder, tmp_path / "run")
    for damaged in (b"{", b"[]", b"\xff", b"[" * 200_000, b'{"corpus_fingerprint": null, "starts": ["<b>"]}'):
        (tmp_path / "run/run.json").write_bytes(damaged)
        known = RunArtifacts.of(tmp_path / "run")
        assert known.run is not None
        assert known.run.path == tmp_path / "run"
        assert known.facts("cpu", "fp32")["manifest"].starts == []


def test_a_folder_without_a_model_is_an_error(tmp_path: Path):
    with pytest.raises(CheckpointError) as caught:
        RunArtifacts.of(tmp_path / "missing")
    assert str(caught.value) == (
        f"{tmp_path / 'missing'}: no such folder. Give a run folder, a checkpoint or a model folder."
    )
