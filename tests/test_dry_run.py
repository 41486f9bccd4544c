from __future__ import annotations

import re
import shutil
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mt.cli import app
from mt.config.settings import RunConfig, TrainConfig
from mt.errors import ConfigError, DataError, MTError
from mt.pipeline import train_run
from mt.text.prepare import prepare_corpus
from mt.tools import bench
from mt.tools import dry_run as dry_run_module
from mt.tools.dry_run import dry_run, parameters_by_part, plot_schedule
from mt.training.engine import Engine, OutOfMemory, Update
from tests.clock import Clock
from tests.conftest import Run
from tests.toys import messages, small_model, toy_config


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(dry_run_module, "MEASURED_SECONDS", 0.0)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)


def with_train(config: RunConfig, **changes: object) -> RunConfig:
    return replace(config, train=replace(config.train, **changes))


def everything_in(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the size and modification time of each path."""
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in [folder, *sorted(folder.rglob("*"))]}


def section(text: str, name: str) -> list[str]:
    (found,) = (part for part in text.split("\n\n") if part.startswith(f"{name} "))
    return [line[10:] for line in found.splitlines()]


# --- Data, files, and errors before training --------------------------------------------------------------------------


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    config = toy_config(tmp_path / "text")
    before = everything_in(tmp_path)
    dry_run(config, Path("runs/toy"))
    assert everything_in(tmp_path) == before
    train_run(config, Path("runs/toy"))
    before = everything_in(tmp_path)
    dry_run(config, Path("runs/toy"))
    assert everything_in(tmp_path) == before


def test_before_the_data_is_prepared_a_dry_run_says_what_is_not_known(tmp_path: Path) -> None:
    config = toy_config(tmp_path / "text")
    text = dry_run(config, Path("runs/toy"))
    source = config.data.train[0]
    assert section(text, "data") == [
        "not prepared yet: the numbers of pairs, tokens and epochs are known after mt prepare",
        f"{source.src} + {source.tgt}",
    ]
    files = section(text, "files")
    assert files[0] == "run folder   runs/toy (new)"
    assert re.fullmatch(rf"corpus       {tmp_path}/text/prepared/[0-9a-f]{{16}} \(to be prepared\)", files[1])
    assert "micro-batches of random sentences on cpu (" in section(text, "time")[2]
    assert "embedding of source, target, output (380 pieces × 32)" in section(text, "model")[1]


def test_with_prepared_data_the_figures_are_exact(tmp_path: Path) -> None:
    config = with_train(toy_config(tmp_path / "text"), max_steps=70)
    corpus = prepare_corpus(config)
    text = dry_run(config, Path("runs/toy"))
    n_pairs, n_src, n_tgt = len(corpus.train), corpus.train.src.lengths.sum(), corpus.train.tgt.lengths.sum()
    # Updates have up to 256 target tokens. The source side has a capacity of 5% more than it needs on average.
    per_epoch = n_tgt / 256
    assert section(text, "data") == [
        f"{n_pairs:>13,} pairs, {n_src:,} source and {n_tgt:,} target tokens",
        f"{20:>13,} pairs for validation, 20 for held_out",
        f"{per_epoch:>13,.1f} updates per epoch; 70 updates are {70 / per_epoch:,.1f} epochs",
    ]
    assert section(text, "files")[1] == f"corpus       {corpus.folder} (prepared)"
    assert "random" not in text


def test_a_dry_run_says_from_which_step_a_run_continues(tmp_path: Path) -> None:
    config = toy_config(tmp_path / "text")
    train_run(with_train(config, max_steps=8), Path("runs/toy"))
    text = dry_run(config, Path("runs/toy"))
    assert section(text, "files")[0] == "run folder   runs/toy (resumes from step 8)"
    assert " for 4 updates after the 8 already done, " in section(text, "time")[0]
    text = dry_run(with_train(config, max_steps=8), Path("runs/toy"))
    assert section(text, "files")[0] == "run folder   runs/toy (already trained)"
    assert section(text, "time")[0].startswith("0 s for 0 updates after the 8 already done, ")


def test_a_dry_run_fails_with_the_same_error_as_training(tmp_path: Path) -> None:
    config = toy_config(tmp_path / "text")
    train_run(with_train(config, max_steps=4), Path("runs/toy"))
    other_seed = with_train(config, seed=9)
    cases: list[tuple[RunConfig, type[MTError]]] = [(other_seed, ConfigError)]
    if not torch.cuda.is_available():
        cases.append((with_train(config, device="cuda"), ConfigError))
    shutil.rmtree(tmp_path / "text" / "prepared")
    (tmp_path / "text" / "train.en").write_text("other text\n" * 400)
    cases.append((config, DataError))
    for wrong, kind in cases:
        messages = []
        for function in (train_run, dry_run):
            with pytest.raises(kind) as caught:
                function(wrong, Path("runs/toy"))
            messages.append(str(caught.value))
        assert messages[0] == messages[1]
    (tmp_path / "text" / "train.en").unlink()
    with pytest.raises(DataError) as caught:
        dry_run(config, Path("runs/other"))
    assert str(caught.value).startswith(f"{tmp_path / 'text' / 'train.en'}: no such file")


def test_a_run_folder_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(MTError) as caught:
        dry_run(toy_config(tmp_path / "text"), Path("runs/toy"))
    assert str(caught.value) == f"runs/toy: the run folder cannot be written: {tmp_path / 'runs'} is not a folder"


def test_a_warning_says_if_the_disk_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", ["free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(2 * 2**20))
    config = toy_config(tmp_path / "text", max_steps=100, keep_last=3, average_last=2, keep_best=2, checkpoint_every=1)
    engine = Engine(config, bench.random_corpus(380, 64, 100), 380)
    n_bytes = 4 * sum(p.numel() for p in engine.model.parameters())
    *_, checkpoints, disk, warning = section(dry_run(config, Path("runs/toy")), "files")
    assert checkpoints == f"checkpoints  runs/toy/checkpoints, {3 * n_bytes / 2**20:.1f} MiB each, up to 5 at a time"
    assert disk == f"disk         at most {(5 * 3 + 1) * n_bytes / 2**20:.1f} MiB; 2.0 MiB are free"
    assert warning == "warning: the disk has too little free space: keep fewer checkpoints"


# --- Time and memory --------------------------------------------------------------------------------------------------


def test_the_forecast_is_the_time_of_a_micro_batch_times_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_computation(monkeypatch)
    config = toy_config(tmp_path / "text", micro_batch_tokens=86, max_steps=1_000)
    prepare_corpus(config)
    lines = section(dry_run(config, Path("runs/toy")), "time")
    # Three micro-batches and the optimizer: 3 * (0.125 + 0.25) + 0.125 s.
    assert lines[0] == "20 min 50 s for 1,000 updates, 1.25 s each"
    found = re.fullmatch(r"(\d+) target tokens/s: (\d+) per update, in 3 micro-batches of up to 88", lines[1])
    assert found is not None
    assert int(found[1]) == pytest.approx(int(found[2]) / 1.25, abs=1)
    assert lines[2].startswith("measured over 3 micro-batches on cpu (")


def test_micro_batches_are_measured_for_a_minimum_number_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_computation(monkeypatch)
    monkeypatch.setattr(dry_run_module, "MEASURED_SECONDS", 2.0)
    lines = section(dry_run(toy_config(tmp_path / "text"), Path("runs/toy")), "time")
    assert lines[2].startswith("measured over 4 micro-batches of random sentences on cpu (")  # 0.5 s each


def slow_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a micro-batch take 1/8 s to assemble and 1/4 s to compute, and the optimizer 1/8 s."""
    clock = Clock()
    for module in (bench, dry_run_module):
        monkeypatch.setattr(module, "time", clock)
    clock.slow(monkeypatch, Engine, "_assemble", 0.125)
    clock.slow(monkeypatch, Engine, "micro_batch_loss", 0.25)
    clock.slow(monkeypatch, torch.optim.Adam, "step", 0.125)


def test_the_forecast_says_if_the_time_limit_ends_training_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_computation(monkeypatch)
    config = toy_config(tmp_path / "text", max_steps=61, stop_after="30s")
    lines = section(dry_run(config, Path("runs/toy")), "time")
    assert lines[-1] == "train.stop_after (30s) ends training earlier, after 60 updates at most"  # 0.5 s each
    lines = section(dry_run(with_train(config, max_steps=60), Path("runs/toy")), "time")
    assert lines[-1] == "preparation, validation, checkpoints and the final evaluation are not included"


def test_out_of_memory_halves_micro_batches_as_in_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Engine.step

    def step_of_little(engine: Engine, update: Update, lr: float) -> Any:
        if engine.budget.tgt_tokens > 80:
            raise OutOfMemory("CUDA out of memory.")
        return step(engine, update, lr)

    monkeypatch.setattr(Engine, "step", step_of_little)
    config = toy_config(tmp_path / "text", micro_batch_tokens=256)
    prepare_corpus(config)
    assert section(dry_run(config, Path("runs/toy")), "time")[1].endswith(" micro-batches of up to 66")

    def never(engine: Engine, update: Update, lr: float) -> Any:
        raise OutOfMemory("CUDA out of memory.")

    monkeypatch.setattr(Engine, "step", never)
    with pytest.raises(ConfigError) as caught:
        dry_run(config, Path("runs/toy"))
    assert str(caught.value) == (
        "train.micro_batch_tokens: out of memory on cpu with micro-batches of 12 target tokens (CUDA out of memory.), "
        "and no micro-batch can be smaller than the longest sentence. Set train.activation_checkpointing, lower "
        "data.max_tokens, or make the model smaller."
    )


def test_memory_is_listed_by_use(tmp_path: Path) -> None:
    config = toy_config(tmp_path / "text", ema_decay=0.9)
    config = replace(config, model=replace(config.model, d_model=256, d_ff=512))
    lines = section(dry_run(config, Path("runs/toy")), "memory")
    engine = Engine(config, bench.random_corpus(380, 64, 100), 380)
    n_mib = 4 * sum(p.numel() for p in engine.model.parameters()) / 2**20
    assert re.fullmatch(r"[\d.]+ GiB of the [\d,.]+ GiB of cpu, not counting validation", lines[0])
    assert lines[1:5] == [
        f"{f'{n_mib:.1f} MiB':>13}  weights",
        f"{f'{n_mib:.1f} MiB':>13}  gradients",
        f"{f'{2 * n_mib:.1f} MiB':>13}  the moments of Adam",
        f"{f'{n_mib:.1f} MiB':>13}  the moving average",
    ]
    assert lines[5].endswith("  activations, data and the program")


def test_parameters_by_part_add_up_to_all_parameters() -> None:
    model = small_model(norm="pre")  # d_model 32, d_ff 48, 2 + 2 layers, 50 pieces
    attention, cross, feed_forward = 4 * (32 * 32 + 32), 4 * (32 * 32 + 32), 2 * 32 * 48 + 48 + 32
    parts = parameters_by_part(model)
    assert parts == {
        "embedding of source, target, output (50 pieces × 32)": 50 * 32,
        "encoder, self attention": 2 * attention,
        "encoder, feed forward": 2 * feed_forward,
        "encoder, norms": (2 * 2 + 1) * 64,
        "decoder, self attention": 2 * attention,
        "decoder, cross attention": 2 * cross,
        "decoder, feed forward": 2 * feed_forward,
        "decoder, norms": (2 * 3 + 1) * 64,
    }
    assert sum(parts.values()) == model.n_parameters
    assert list(parts)[-1] == "decoder, norms"


# --- The schedule -----------------------------------------------------------------------------------------------------


def test_the_plot_of_the_schedule_has_its_peak_and_its_end() -> None:
    train = TrainConfig(schedule="linear", max_steps=41, warmup_steps=21, peak_lr=8e-4)
    rows = plot_schedule(train, 512, 51)
    assert len({len(row) for row in rows[:9]}) == 1
    assert len(rows[0]) == 51
    assert rows[0].startswith("8.00e-04 ┤")
    assert rows[4].startswith("4.00e-04 ┤")
    assert rows[8] == "       0 └" + "─" * 41
    # One column for each step: 21 rising, then falling to nothing.
    heights = [sum(" ▁▂▃▄▅▆▇█".index(row[10 + i]) for row in rows[:8]) for i in range(41)]
    assert heights == [round(64 * step / 21) for step in range(1, 22)] + [
        round(64 * (1 - step / 20)) for step in range(1, 21)
    ]
    assert rows[9] == " " * 10 + "1" + " " * 19 + "↑ 21" + " " * 10 + "step 41"


def test_the_schedule_is_described_in_numbers(tmp_path: Path) -> None:
    config = toy_config(
        tmp_path / "text",
        max_steps=400,
        warmup_steps=100,
        peak_lr=1e-3,
        validate_every=150,
        checkpoint_every=50,
        keep_every=100,
        average_last=7,
    )
    assert section(dry_run(config, Path("runs/toy")), "schedule")[-3:] == [
        "inverse_sqrt: learning rate 0.001 at step 100, 0.0005 at the end (step 400)",
        "validation every 150 updates, 3 in total",
        "checkpoint every 50 updates, 8 in total; kept: the last 7, the best 1, those of multiples of 100",
    ]
    config = with_train(config, warmup_steps=800)
    assert section(dry_run(config, Path("runs/toy")), "schedule")[-4:-2] == [
        "inverse_sqrt: learning rate 0.0005 at step 400, 0.0005 at the end (step 400)",
        "train.warmup_steps is 800, more than train.max_steps: the learning rate never falls",
    ]


@pytest.mark.parametrize(
    ("average_last", "max_steps", "model"),
    [
        (5, 12, "the average of the last 3 checkpoints"),
        (2, 12, "the average of the last 2 checkpoints"),
        (5, 4, "the last checkpoint"),
        (0, 12, "the best checkpoint"),
    ],
)
def test_the_model_is_the_average_of_the_checkpoints_that_there_will_be(
    tmp_path: Path, average_last: int, max_steps: int, model: str
) -> None:
    config = toy_config(tmp_path / "text", max_steps=max_steps, average_last=average_last)
    assert f"model        runs/toy/model, {model}" in section(dry_run(config, Path("runs/toy")), "files")


@pytest.mark.parametrize("columns", ["60", "80", "140"])
def test_the_plot_is_as_wide_as_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    lines = dry_run(toy_config(tmp_path / "text"), Path("runs/toy")).splitlines()
    (axis,) = (line for line in lines if "└" in line)
    assert len(axis) == int(columns)


# --- The command ------------------------------------------------------------------------------------------------------


def test_dry_run_does_not_train(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(dry_run_module, "dry_run", lambda config, run_dir: f"{config.name} in {run_dir}")
    status, stdout, _ = run("train", "--config", "base", "--dry-run", "--set", "name=other")
    assert (status, stdout) == (0, "other in runs/other\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("command", "module"), [("train --dry-run", "dry_run"), ("doctor", "doctor")])
def test_a_command_logs_what_it_does_before_it_imports_torch(
    monkeypatch: pytest.MonkeyPatch, command: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, f"mt.tools.{module}", None)  # so that importing it fails
    with messages() as said, pytest.raises(ImportError):
        app([*command.split(), "--config", "base"], prog_name="mt", standalone_mode=False)
    assert len(said) == 1


def test_each_stage_is_logged(tmp_path: Path) -> None:
    with messages() as said:
        dry_run(toy_config(tmp_path / "text"), Path("runs/toy"))
    assert said == ["looking for the corpus", "building the model", "measuring updates on cpu"]
