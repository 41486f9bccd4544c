"""`mt sweep`: its runs, its table, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mt.cli import app
from mt.config.loading import dump_config
from mt.errors import ConfigError
from mt.tools.sweep import Sweep
from tests.forks import run_mt
from tests.toys import messages, toy_config

GRID = ["train.peak_lr=1e-3,1e-2"]  # as written, these are the names of the variants


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("sweep")
    path = folder / "toy.yaml"
    path.write_text(dump_config(toy_config(folder / "text", max_steps=12, validate_every=4)), "utf-8")
    return str(path)


def test_runs_are_ordered_by_seed_and_then_by_variant(config: str, tmp_path: Path) -> None:
    sweep = Sweep(config, [*GRID, "model.dropout=0.0,0.1"], ["train.seed=5"], 2, tmp_path)
    variants = [f"peak_lr={rate},dropout={dropout}" for rate in ("1e-3", "1e-2") for dropout in ("0.0", "0.1")]
    assert [(run.variant, run.seed) for run in sweep.runs] == [(one, seed) for seed in (5, 6) for one in variants]
    assert sweep.baseline == variants[0]
    last = sweep.runs[-1].config
    assert (last.train.peak_lr, last.model.dropout, last.train.seed) == (0.01, 0.1, 6)
    assert len({run.folder for run in sweep.runs}) == len({run.log for run in sweep.runs}) == 8
    plan = sweep.plan().splitlines()
    assert len(plan) == 8
    assert plan[0].startswith(
        f"{tmp_path}/peak_lr=1e-3,dropout=0.0-seed5  (new)  --set train.seed=5 --set train.peak_lr="
    )
    timed = Sweep(config, GRID, ["train.budget=10m"], 3, tmp_path)
    assert timed.plan().splitlines()[-1] == "6 runs to train, 1 h 00 min in all, on one device"


def test_values_may_be_lists_and_texts(config: str, tmp_path: Path) -> None:
    sweep = Sweep(config, ["tokenizer.user_symbols=[],[<a>, <b>]", "model.norm=pre,post"], [], 1, tmp_path)
    symbols = [(run.config.tokenizer.user_symbols, run.config.model.norm) for run in sweep.runs]
    assert symbols == [((), "pre"), ((), "post"), (("<a>", "<b>"), "pre"), (("<a>", "<b>"), "post")]
    assert "/" not in sweep.runs[-1].folder.name


@pytest.mark.parametrize(
    ("grid", "overrides", "message"),
    [
        (["train.peak_lrr=1,2"], [], "--set train.peak_lrr=1: train.peak_lrr: unknown key, did you mean peak_lr?"),
        (["train.peak_lr"], [], "--grid train.peak_lr: expected KEY=VALUE,VALUE, such as model.dropout=0.1,0.3"),
        (["train.peak_lr="], [], "--grid train.peak_lr=: expected KEY=VALUE,VALUE, such as model.dropout=0.1,0.3"),
        (["train.peak_lr=1,[2"], [], "--grid train.peak_lr=1,[2: the values are not valid YAML"),
        (["train.peak_lr=1,1"], [], "--grid train.peak_lr=1,1 has the same value twice. Remove one of them."),
        (["train.seed=1,2"], [], "--grid train.seed cannot vary. Use --seeds N."),
        (
            ["train.peak_lr=1,2", "train.peak_lr=3,4"],
            [],
            "--grid train.peak_lr is given twice. Give each setting once, in --grid or in --set.",
        ),
        (
            ["train.peak_lr=1,2"],
            ["train.peak_lr=3"],
            "--grid train.peak_lr is given twice. Give each setting once, in --grid or in --set.",
        ),
    ],
)
def test_a_wrong_grid_is_refused_before_anything_is_trained(
    config: str, tmp_path: Path, grid: list[str], overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Sweep(config, grid, overrides, 1, tmp_path / "sweep")
    assert str(caught.value) == message
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_trains_compares_and_continues(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["sweep", "--config", config, "--grid", GRID[0], "--sweep-dir", str(tmp_path)]
    trained: list[Path] = []

    def forked(command: list[str], log: Path, _environment: object) -> int:
        trained.append(log)
        result = run_mt(*command[3:])
        log.write_bytes(result.stderr)
        return result.returncode

    monkeypatch.setattr("mt.tools.sweep._run", forked)
    first = CliRunner().invoke(app, [*arguments, "--seeds", "1"])
    assert first.exit_code == 0, first.output
    second = CliRunner().invoke(app, [*arguments, "--seeds", "2"])
    assert second.exit_code == 0, second.output
    assert [path.name for path in trained] == [
        f"peak_lr={rate}-seed{n}.log" for n in (1, 2) for rate in ("1e-3", "1e-2")
    ]
    header, baseline, better = second.stdout.splitlines()
    assert " ".join(header.split()) == (
        "variant seeds held_out validation set p against peak_lr=1e-3 minutes updates parameters"
    )
    assert baseline.startswith("peak_lr=1e-3  2 ")
    assert "±" in better
    facts: dict[str, Any] = json.loads((tmp_path / "sweep.json").read_text("utf-8"))
    one, two = facts["variants"]
    assert (facts["baseline"], one["variant"], one["seeds"], two["steps"]) == (
        "peak_lr=1e-3",
        "peak_lr=1e-3",
        [1, 2],
        12,
    )
    assert "p" not in one
    assert 0 < two["p"]["held_out"] <= 1
    reports = [
        json.loads((tmp_path / path.name.removesuffix(".log") / "report.json").read_text("utf-8"))
        for path in trained[1::2]
    ]
    scores = [report["test_sets"]["held_out"]["scores"][0]["score"] for report in reports]
    assert two["bleu"]["held_out"] == [
        pytest.approx(sum(scores) / 2),
        pytest.approx(abs(scores[0] - scores[1]) / 2**0.5),
    ]
    assert (tmp_path / "sweep.md").read_text("utf-8").count("\n") == 4
    html = (tmp_path / "sweep.html").read_text("utf-8")
    assert "BLEU on the validation set" in html
    # Other settings belong into another folder.
    with pytest.raises(
        ConfigError, match=r"was started with other settings \(model\.dropout was 0\.1 and is now 0\.2\)"
    ):
        Sweep(config, GRID, ["model.dropout=0.2"], 1, tmp_path)


def test_a_variant_that_fails_is_a_row_and_the_others_are_trained(config: str, tmp_path: Path) -> None:
    with messages() as said:
        result = CliRunner().invoke(
            app,
            ["sweep", "--config", config, "--grid", "tokenizer.vocab_size=380,9000", "--sweep-dir", str(tmp_path)],
        )
    assert result.exit_code == 1
    reason = "tokenizer.vocab_size: 9,000 is too large for this corpus, which gives at most "
    assert reason in result.stdout.splitlines()[2]
    assert result.stdout.splitlines()[1].startswith("vocab_size=380")
    assert any(reason in line for line in said)
    facts = json.loads((tmp_path / "sweep.json").read_text("utf-8"))
    assert facts["variants"][1]["seeds"] == []
    assert reason in facts["variants"][1]["failed"][0]
