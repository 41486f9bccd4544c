from __future__ import annotations

import json
import math
import threading
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import mt.training.tracker
from mt.run_folder import RunFolder
from mt.system.files import WriteError
from mt.training.progress import Progress
from mt.training.tracker import Tracker
from mt.training.validation import ValidationResult
from tests.clock import Clock
from tests.toys import files_up_to, measured

TRAINED = {"train_loss": 5.5, "learning_rate": 1e-3, "grad_norm": 0.25, "tgt_tokens_per_second": 1_000.0}
VALIDATED = ValidationResult(5.25, 12.5, 30.0, {"1-10": 4.5, "41-": 6.0}, [("Ein Satz.", "A line.", "A sentence.")])
REMEDY = "File too large. Raise the limit on the size of files (ulimit -f), then run the same command again."


def tracker(run_dir: Path, progress: Progress) -> Tracker:
    run_dir.mkdir(exist_ok=True)
    return Tracker(RunFolder(run_dir), progress, max_steps=100, updates_per_epoch=40)


def test_progress_lines_show_step_speed_and_a_remaining_time_that_follows_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr(mt.training.tracker, "time", clock)
    progress = Progress(step=20, train_seconds=60)
    running = tracker(tmp_path, progress)
    assert running._times() == "1 min 00 s elapsed"
    clock.now, progress.step = clock.now + 1, 21
    running.advance()
    running.show(**TRAINED)
    clock.now, progress.step = clock.now + 9, 30
    running.advance()
    running.log(**TRAINED)
    clock.now += 5  # no update ends during this time
    assert running._times() == "1 min 15 s elapsed · 1 min 05 s left"
    running.close()
    values = "loss 5.500 · lr 1.00e-03 · 1,000 tok/s"
    assert capsys.readouterr().err.splitlines() == [
        f"step 21/100 (21.0%) · epoch 0.5 · {values} · 1 min 01 s elapsed · 1 min 19 s left",
        f"step 30/100 (30.0%) · epoch 0.8 · {values} · 1 min 10 s elapsed · 1 min 10 s left",
    ]
    # Values that are only shown are not recorded.
    (line,) = (tmp_path / "metrics.jsonl").read_text("utf-8").splitlines()
    assert json.loads(line)["step"] == 30


def shown_by_tensorboard(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_shows_measurements_before_the_tracker_is_closed(tmp_path: Path) -> None:
    n_threads = threading.active_count()
    progress = Progress(step=10, n_tgt_tokens=40_000, train_seconds=2.5)
    running = tracker(tmp_path, progress)
    running.log(**TRAINED)
    running.log_validation(VALIDATED)
    progress.step = 20
    running.log(**{**TRAINED, "train_loss": math.nan})
    shown = shown_by_tensorboard(tmp_path)  # nothing is closed yet
    assert sorted(shown) == [
        "train/grad_norm",
        "train/learning_rate",
        "train/loss",
        "train/tgt_tokens_per_second",
        "valid/bleu",
        "valid/chrf",
        "valid/loss",
        "valid_loss_by_length/1-10",
        "valid_loss_by_length/41-",
    ]
    assert shown["valid_loss_by_length/41-"] == [(10, 6.0)]
    assert shown["valid/bleu"] == [(10, 12.5)]
    assert shown["train/grad_norm"] == [(10, 0.25), (20, 0.25)]
    assert math.isnan(shown["train/loss"][1][1])
    assert threading.active_count() == n_threads
    running.close()
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert logged[1] == {
        "step": 10,
        "valid_loss": 5.25,
        "valid_bleu": 12.5,
        "valid_chrf": 30.0,
        "valid_loss_by_length": {"1-10": 4.5, "41-": 6.0},
        "n_tgt_tokens": 40_000,
        "train_seconds": 2.5,
    }
    assert logged[2]["train_loss"] is None  # JSON has no NaN


def test_tensorboard_shows_translations_as_text(tmp_path: Path) -> None:
    running = tracker(tmp_path, Progress(step=10))
    running.log_validation(VALIDATED)
    running.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.SummaryMetadata("samples/1").plugin_data.plugin_name == "text"
    (event,) = events.Tensors("samples/1")
    assert (event.step, list(event.tensor_proto.string_val)) == (
        10,
        [b"    Ein Satz.\n    A line.\n    A sentence."],
    )


def test_sample_translations_of_steps_that_are_rolled_back_are_removed(tmp_path: Path) -> None:
    progress = Progress(step=10)
    running = tracker(tmp_path, progress)
    running.log_validation(VALIDATED)
    progress.step = 20
    running.log_validation(VALIDATED)
    progress.step = 10
    running.roll_back()
    running.close()
    (entry,) = map(json.loads, (tmp_path / "samples.jsonl").read_text("utf-8").splitlines())
    assert entry == {
        "step": 10,
        "samples": [{"source": "Ein Satz.", "translation": "A line.", "reference": "A sentence."}],
    }


def test_measurements_after_the_resumed_step_are_replaced(tmp_path: Path) -> None:
    progress = Progress()
    first = tracker(tmp_path, progress)
    for progress.step in (10, 20, 30):
        first.log(**TRAINED)
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 40, "train_')  # cut off by a kill
    progress.step = 20
    second = tracker(tmp_path, progress)
    progress.step = 30
    second.log(**{**TRAINED, "train_loss": 4.5})
    second.close()
    losses = measured(tmp_path, "train_loss")
    assert losses == shown_by_tensorboard(tmp_path)["train/loss"] == [(10, 5.5), (20, 5.5), (30, 4.5)]


def log_often(running: Tracker) -> None:
    for _ in range(98):
        running.log(**TRAINED)
        running.log_validation(VALIDATED)


def test_a_failed_write_of_metrics_is_one_error_that_names_the_file(tmp_path: Path) -> None:
    # The longest file reaches the limit first.
    first, second, third = (tracker(tmp_path / name, Progress()) for name in ("first", "second", "third"))
    first._metrics.write_line({"step": 0, "note": "x" * 1_000})
    second._events.add_text(0, "note", "x" * 1_000)
    third._samples.write_line({"step": 0, "note": "x" * 1_900})
    (event_file,) = (tmp_path / "second" / "tensorboard").iterdir()
    for running, path in (
        (first, tmp_path / "first" / "metrics.jsonl"),
        (second, event_file),
        (third, tmp_path / "third" / "samples.jsonl"),
    ):
        with files_up_to(2_000), pytest.raises(WriteError) as caught:
            log_often(running)
        assert str(caught.value) == f"{path} cannot be written: {REMEDY}"
        running.close()  # no buffer has content that could fail to be written again


def test_a_run_folder_that_cannot_be_written_is_reported_once(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file where a folder should be")
    with pytest.raises(WriteError) as caught:
        tracker(tmp_path, Progress())
    event_file = str(caught.value).partition(" cannot")[0]
    assert event_file.startswith(f"{tmp_path / 'tensorboard'}/events.out.tfevents.")
    assert str(caught.value) == f"{event_file} cannot be written: File exists"
