"""The training text of an earlier run as a corpus of another one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from mt.api import TrainedRun
from mt.config.loading import dump_config, load_config
from mt.config.settings import RunConfig
from mt.errors import DataError
from mt.evaluation.report_files import read_evaluation
from mt.pipeline import prepare, train_run
from mt.text.corpora import readers_of
from mt.text.replay import lines_of_run
from mt.text.tokenizer import Tokenizers
from tests.toys import toy_config, toy_text, write_lines


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Path]:
    """A run on two corpora, one of them with a tag and in both directions."""
    folder = tmp_path_factory.mktemp("old")
    config = toy_config(folder / "text", max_steps=2, validate_every=2)
    src, tgt = toy_text(100, 9)
    tagged = {
        "src": str(write_lines(folder / "tagged.en", src)),
        "tgt": str(write_lines(folder / "tagged.de", tgt)),
        "tag": "<bt>",
        "both_directions": True,
    }
    config = load_config(config, {"data.train.1": tagged, "tokenizer.vocab_size": 390})
    train_run(config, folder / "run")
    return config, folder / "run"


def with_replay(folder: Path, run: Path, **entry: Any) -> RunConfig:
    """Return the config of a run on other toy text and on that of a run."""
    config = toy_config(folder, n_train=150, max_steps=2)
    return load_config(config, {"data.train.1": {"run": str(run), **entry}})


def test_the_training_text_of_a_run_is_a_corpus_in_each_of_its_directions(old: tuple[RunConfig, Path], tmp_path: Path):
    config, run = old
    readers = readers_of(with_replay(tmp_path, run, both_directions=True))
    forward = [tuple(pair)[:2] for pair in readers["data.train.1"].pairs()]
    plain, tagged = (
        [*reader.pairs()] for key, reader in readers_of(config).items() if key in ("data.train.0", "data.train.1")
    )
    assert forward == [pair[:2] for pair in plain] + [(f"<bt> {pair.src}", pair.tgt) for pair in tagged]
    assert readers["data.train.1"].count() == len(forward)
    assert next(readers["data.train.1.de-en"].pairs())[:2] == forward[0][::-1]


def test_a_model_is_trained_on_new_text_and_on_that_of_the_run_that_it_comes_from(
    old: tuple[RunConfig, Path], tmp_path: Path
):
    _, run = old
    plain = yaml.safe_load(dump_config(with_replay(tmp_path / "text", run, weight=0.5)))
    plain["train"]["init_from"] = str(run)
    del plain["tokenizer"], plain["model"], plain["data"]["target_language_piece"]
    config = load_config(plain)
    train_run(config, tmp_path / "new")
    corpus = prepare(config)
    assert corpus.corpus_sizes == (150, 350)  # the first 150 pairs of both are the same
    assert config.weights(corpus.corpus_sizes) == [1.0, 0.5]
    told = corpus.manifest["train"]["sources"][1]
    assert (told["source"], told["weight"]) == (f"the training text of {run}", 0.5)
    tokenizer = Tokenizers.load(corpus.tokenizer_paths).src
    (tag,) = (id_ for id_ in tokenizer.encode("<bt>") if id_ > 3)
    assert sum(tag in corpus.train.src[i].tolist() for i in range(150, 500)) == 100


def test_the_prepared_corpus_depends_on_the_text_of_the_run(old: tuple[RunConfig, Path], tmp_path: Path):
    config, run = old
    other = replace(config, data=replace(config.data, train=config.data.train[:1]))
    train_run(other, tmp_path / "other")
    folders = {prepare(with_replay(tmp_path / "text", one)).folder for one in (run, tmp_path / "other", run)}
    assert len(folders) == 2
    copies = set()
    for one in (run, tmp_path / "other"):
        shutil.copytree(one, tmp_path / "copy")
        copies.add(prepare(with_replay(tmp_path / "text", tmp_path / "copy")).folder)
        shutil.rmtree(tmp_path / "copy")
    assert copies == folders


def test_some_lines_of_a_run_are_at_most_as_many_as_asked_for_and_spread_over_all_of_them(old: tuple[RunConfig, Path]):
    _, run = old
    everything = lines_of_run(run, [0], 10_000)
    assert len(everything) == 600  # 400 pairs, and 100 in two directions
    assert lines_of_run(run, [0], 400) == everything[::2]
    assert lines_of_run(run, [0, 1], 400)[:200] == everything[::3]


def test_replay_that_is_not_possible_is_refused_in_one_line(old: tuple[RunConfig, Path], tmp_path: Path):
    _, run = old
    with pytest.raises(DataError, match=r"nowhere.? no such run\. Give the folder of a run"):
        prepare(with_replay(tmp_path, Path("nowhere")))
    with pytest.raises(DataError, match=r"text is not a run\. Give the folder of a run"):
        prepare(with_replay(tmp_path / "text", tmp_path / "text"))
    with pytest.raises(
        DataError, match=r"has no training text from en to fr\. Set src_lang and tgt_lang of this entry to"
    ):
        prepare(with_replay(tmp_path, run, tgt_lang="fr"))
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    text = (copy / "config.yaml").read_text("utf-8")
    (copy / "config.yaml").write_text(text.replace("prepared_dir: ", f"prepared_dir: {tmp_path}/gone"), "utf-8")
    with pytest.raises(DataError, match=r"its prepared corpus .* is gone\. Prepare it again with mt prepare"):
        prepare(with_replay(tmp_path, copy))


def test_the_report_tells_what_was_gained_and_lost_since_the_model_that_training_started_from(tmp_path: Path):
    config = toy_config(tmp_path / "text", max_steps=4, validate_every=4)
    train_run(config, tmp_path / "old")
    plain = yaml.safe_load(dump_config(toy_config(tmp_path / "new", n_train=100, reverse=True, max_steps=4)))
    plain["name"], plain["train"]["init_from"] = "tuned", str(tmp_path / "old")
    del plain["tokenizer"], plain["model"], plain["data"]["target_language_piece"]
    tuned = load_config(plain)
    train_run(tuned, tmp_path / "run")
    before, after = (read_evaluation(tmp_path / name) for name in ("old", "run"))
    assert before is not None
    assert after is not None
    assert after.comparison is not None
    assert [*after.test_sets] == [*after.comparison.test_sets] == ["held_out", "toy.held_out"]
    assert after.comparison.baseline == str(tmp_path / "old")
    compared = {one.name: one for one in after.comparison.test_sets["toy.held_out"].scores}
    for one in before.test_sets["held_out"].scores:
        assert compared[one.name].baseline_score == one.score
    assert (tmp_path / "run/translations/toy.held_out.txt").is_file()
    assert "compared with" in str(TrainedRun(tmp_path / "run"))
    report = (tmp_path / "run/report.json").read_bytes()
    (tmp_path / "old").rename(tmp_path / "gone")
    train_run(tuned, tmp_path / "run")
    assert (tmp_path / "run/report.json").read_bytes() == report


def test_the_same_test_set_is_compared_once(tmp_path: Path):
    config = toy_config(tmp_path / "text", max_steps=2, validate_every=2)
    train_run(config, tmp_path / "old")
    tuned = load_config(config, {"train.init_from": str(tmp_path / "old"), "train.seed": 3})
    train_run(tuned, tmp_path / "run")
    report = read_evaluation(tmp_path / "run")
    assert report is not None
    assert report.comparison is not None
    assert [*report.comparison.test_sets] == ["held_out"]
