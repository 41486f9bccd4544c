from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import mt.tools.verify
from mt.checkpoint import ModelFolder, save_model_folder
from mt.config.settings import RunConfig
from mt.errors import ConfigError, MTError
from mt.run_folder import RunFolder
from mt.system.workers import Workers
from mt.tools.verify import Difference, Kill, Verdict, compare_runs, reaches, short_config, train_in, verify_resume
from mt.training.optimizer import Optimizer
from tests.toys import toy_config, write_lines

# 33 weights, 174 entries of the state and 96 logged figures, none of which differ.
NONE = Difference(33, 0, 0.0, None, 0.0, 174, 0, None, 96, 0, 0.0, None)
SOME = replace(NONE, n_weights_differing=2, largest=0.001, largest_in="embedding.weight", relative=1e-6)
KILLS = (Kill(3, True), Kill(12, False))


# --- Trainings, whole and broken --------------------------------------------------------------------------------------


def reset_the_plan(state: dict[str, Any]) -> None:
    state["progress"]["plan_state"].update(position=0, epoch=0)


def reset_the_moments(state: dict[str, Any]) -> None:
    for moments in state["optimizer"]["adam"]["state"].values():
        moments["exp_avg"].zero_()


@pytest.fixture
def resume_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    load = ModelFolder.load_training_state

    def with_changed_state(change: Any) -> None:
        def load_changed(folder: ModelFolder) -> dict[str, Any]:
            state = load(folder)
            change(state)
            return state

        monkeypatch.setattr(ModelFolder, "load_training_state", load_changed)

    return with_changed_state


@pytest.fixture
def rounding_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add random rounding errors to gradients, as on a device that sums in a different order each time."""
    step = Optimizer.step

    def disturbed(optimizer: Optimizer, lr: float) -> torch.Tensor:
        generator = torch.Generator().manual_seed(int.from_bytes(os.urandom(4), "little"))
        for parameter in optimizer.parameters:
            if parameter.grad is not None:
                parameter.grad *= 1 + 1e-6 * torch.randn(parameter.shape, generator=generator)
        return step(optimizer, lr)

    monkeypatch.setattr(Optimizer, "step", disturbed)


@pytest.fixture
def verdict_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Verdict]:
    """Verify in forks of this process: they have torch and the patches of the test, but not the threads."""
    forked = partial(Workers, initializer=torch.set_num_threads, initargs=(1,), are_forked=True)
    monkeypatch.setattr(mt.tools.verify, "Workers", forked)

    def verdict(train: Any = train_in, *, peak_lr: float | None = None, **options: int) -> Verdict:
        monkeypatch.setattr(mt.tools.verify, "train_in", train)
        return verify_resume(toy_config(tmp_path, peak_lr=peak_lr), tmp_path / "runs", **options)

    return verdict


def test_a_correct_resume_is_proved(verdict_of: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verdict = verdict_of()
    assert (verdict.is_proved, verdict.resumed.is_none, verdict.again) == (True, True, None)
    assert [kill.step for kill in verdict.kills] == sorted(kill.step for kill in verdict.kills)
    assert len(verdict.kills) == 3
    assert any(kill.while_saving for kill in verdict.kills)
    compared = verdict.resumed
    # 30 updates with three figures each, and two validations with three each.
    assert (compared.n_weights_differing, compared.n_state_differing, compared.n_logged) == (0, 0, 30 * 3 + 2 * 3)
    weights = ModelFolder.open(RunFolder(tmp_path / "runs" / "killed").checkpoint(30)).load_weights()
    assert compared.n_weights == len(weights)
    first, second, third = verdict.kills
    assert str(verdict).splitlines() == [
        "resuming is bit-identical",
        f"  30 updates without interruption, and again killed 3 times: {first}, {second}, {third}",
        f"  bit-identical: {len(weights)} weights, {compared.n_state} entries of the training state, 96 logged figures",
    ]
    assert capsys.readouterr().err.splitlines()[-6:] == [
        "30 updates without interruption",
        "30 updates, killed 3 times",
        f"killed {first} (1 of 3)",
        f"killed {second} (2 of 3)",
        f"killed {third} (3 of 3)",
        "resumed to the end",
    ]


@pytest.mark.parametrize("change", [reset_the_plan, reset_the_moments])
def test_a_resume_that_loses_state_is_detected(verdict_of: Any, resume_with: Any, tmp_path: Path, change: Any) -> None:
    resume_with(change)
    verdict = verdict_of(n_updates=10, n_kills=1)
    assert not verdict.is_proved
    assert verdict.again is not None
    assert verdict.again.is_none
    found = verdict.resumed
    assert found.n_weights_differing == found.n_weights
    assert found.largest_in in ModelFolder.open(RunFolder(tmp_path / "runs" / "killed").checkpoint(10)).load_weights()
    assert found.largest > 1e-4
    assert 1e-5 < found.relative < 1
    assert found.first_logged_differing is not None
    assert str(verdict).splitlines()[0] == "resuming changes the result"
    assert str(verdict).splitlines()[-1] == "  two uninterrupted runs: bit-identical"


def test_a_resumed_run_may_differ_as_much_as_two_uninterrupted_runs(verdict_of: Any, rounding_noise: None) -> None:
    verdict = verdict_of(peak_lr=1e-3, n_kills=2)
    assert (verdict.is_proved, verdict.resumed.is_none) == (True, False)
    assert verdict.again is not None
    assert 0 < verdict.resumed.relative < 10 * verdict.again.relative
    assert verdict.summary == "resuming adds no difference beyond that between two uninterrupted runs on this machine"


def test_a_broken_resume_is_detected_even_if_uninterrupted_runs_differ(
    verdict_of: Any, resume_with: Any, rounding_noise: None
) -> None:
    resume_with(reset_the_plan)
    verdict = verdict_of(peak_lr=1e-3, n_kills=2)
    assert not verdict.is_proved
    assert verdict.again is not None
    assert verdict.resumed.relative > verdict.again.relative > 0
    assert verdict.resumed.largest_loss > 0.001 > 100 * verdict.again.largest_loss
    assert verdict.summary == "resuming changes the result"


def test_worker_processes_run_the_same_package_as_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mt").mkdir()
    (tmp_path / "mt" / "__init__.py").write_text("raise SystemExit('another package of that name')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    verdict = verify_resume(toy_config(tmp_path / "text"), n_updates=6, n_kills=1)
    assert verdict.resumed.is_none
    # The temporary folder is gone; the folder of torch is not ours.
    assert sorted(path.name for path in tmp_path.iterdir() if "inductor" not in path.name) == ["mt", "text"]


# --- The verdict ------------------------------------------------------------------------------------------------------


def test_a_verdict_says_what_differs_and_how_much() -> None:
    resumed = replace(
        SOME,
        n_state_differing=3,
        first_state_differing="progress.plan_state.position, 214 and 107",
        n_logged_differing=40,
        largest_loss=0.5,
        first_logged_differing="train_loss of update 13, 5.25 and 5.5",
    )
    assert str(Verdict(30, KILLS, resumed, NONE)).splitlines() == [
        "resuming changes the result",
        "  30 updates without interruption, and again killed 2 times: after update 3 while saving, after update 12",
        "  killed run against uninterrupted run:",
        "    2 of 33 weights differ, by up to 1.0e-03 (embedding.weight), 1.0e-06 of their norm",
        "    3 of 174 entries of the training state differ; first: progress.plan_state.position, 214 and 107",
        "    40 of 96 logged figures differ, train_loss by up to 5.0e-01; first: train_loss of update 13, 5.25 and 5.5",
        "  two uninterrupted runs: bit-identical",
    ]
    assert str(Verdict(30, (Kill(9, False),), NONE, None)).splitlines() == [
        "resuming is bit-identical",
        "  30 updates without interruption, and again killed once: after update 9",
        "  no kill happened during a save: saves are too short here",
        "  bit-identical: 33 weights, 174 entries of the training state, 96 logged figures",
    ]


def test_a_resumed_run_is_compared_with_two_uninterrupted_runs() -> None:
    for losses, is_proved in (
        # losses of the resumed run, and of the second uninterrupted run
        ((9.9e-6, 0.0), True),  # only rounding
        ((1.1e-5, 0.0), False),
        ((9.9e-3, 1e-3), True),
        ((1.1e-2, 1e-3), False),
    ):
        resumed, again = (replace(SOME, largest_loss=loss) for loss in losses)
        assert Verdict(30, KILLS, resumed, again).is_proved == is_proved
    for times, is_proved in ((0.5, True), (9.9, True), (10.1, False), (math.inf, False)):
        verdict = Verdict(30, KILLS, replace(SOME, relative=1e-6 * times), SOME)
        assert verdict.is_proved == is_proved
        assert not verdict.resumed.is_none
    assert str(verdict).splitlines()[-4:] == [
        "  two uninterrupted runs:",
        "    2 of 33 weights differ, by up to 1.0e-03 (embedding.weight), 1.0e-06 of their norm",
        "    0 of 174 entries of the training state differ",
        "    0 of 96 logged figures differ",
    ]
    found = json.loads(json.dumps(verdict.as_json()))
    assert (found["proved"], found["bit_identical"], found["resumed"]["relative"]) == (False, False, None)
    assert found["again"]["largest_in"] == "embedding.weight"
    assert found["kills"] == [{"step": 3, "while_saving": True}, {"step": 12, "while_saving": False}]


# --- Comparing --------------------------------------------------------------------------------------------------------


def write_run(
    run_dir: Path,
    config: RunConfig,
    weights: dict[str, torch.Tensor],
    state: dict[str, Any],
    logged: list[dict[str, Any]],
) -> Path:
    tokenizer = run_dir.with_name("tokenizer.model")
    tokenizer.write_bytes(b"pieces")
    save_model_folder(RunFolder(run_dir).checkpoint(2), weights, config, [tokenizer], {"vocab_size": 380}, state)
    write_lines(run_dir / "metrics.jsonl", [json.dumps(entry) for entry in logged])
    return run_dir


def test_differences_are_counted_and_the_largest_is_named(tmp_path: Path) -> None:
    config = toy_config(tmp_path / "text")
    weights = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0]), "c": torch.tensor([0.0, 2.0])}
    state = {
        "optimizer": {"moments": [torch.tensor([1.0]), torch.tensor(2)]},
        "progress": {"step": 2, "train_seconds": 1.5, "best": None, "loss": math.nan},
    }
    logged = [{"step": 1, "train_loss": 5.0, "tgt_tokens_per_second": 9.0}, {"step": 2, "train_loss": 4.0}]
    first = write_run(tmp_path / "first", config, weights, state, logged)
    same = write_run(
        tmp_path / "same",
        config,
        weights,
        {**state, "progress": {**state["progress"], "train_seconds": 7.0}},
        [{**logged[0], "tgt_tokens_per_second": 1.0}, logged[1]],
    )
    assert compare_runs(first, same, 2) == Difference(3, 0, 0.0, None, 0.0, 5, 0, None, 2, 0, 0.0, None)

    other = write_run(
        tmp_path / "other",
        config,
        {"a": torch.tensor([3.0, -0.0]), "b": torch.tensor([4.5]), "c": weights["c"]},
        {
            "optimizer": {"moments": [torch.tensor([1.5]), torch.tensor(2)]},
            "progress": {"step": 1, "train_seconds": 1.5, "best": 3, "loss": math.nan},
        },
        [logged[0], {"step": 2, "train_loss": 4.5}, {"step": 2, "valid_loss": 6.0}],
    )
    found = compare_runs(first, other, 2)
    assert found == Difference(
        n_weights=3,
        n_weights_differing=2,  # 0.0 and -0.0 are not the same bits
        largest=0.5,
        largest_in="b",
        relative=pytest.approx(0.5 / math.sqrt(3**2 + 4**2 + 2**2)),
        n_state=5,
        n_state_differing=3,
        first_state_differing="progress.step, 2 and 1",
        n_logged=3,
        n_logged_differing=2,
        largest_loss=0.5,
        first_logged_differing="train_loss of update 2, 4.0 and 4.5",
    )


def test_the_relative_difference_is_a_ratio_of_norms(tmp_path: Path) -> None:
    config = toy_config(tmp_path / "text")
    first = write_run(tmp_path / "first", config, {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}, {}, [])
    second = write_run(tmp_path / "second", config, {"a": torch.tensor([3.3]), "b": torch.tensor([4.4])}, {}, [])
    assert compare_runs(first, second, 2).relative == pytest.approx(0.1)
    third = write_run(tmp_path / "third", config, {"a": torch.tensor([3.0, 1.0])}, {}, [])
    found = compare_runs(first, third, 2)
    assert (found.n_weights_differing, found.largest, found.relative) == (2, math.inf, math.inf)


# --- Errors -----------------------------------------------------------------------------------------------------------


def fail_as_the_user_did(run_dir: Path, corpus: Path) -> None:
    raise ConfigError("train.compile", "compilation is not possible here")


def be_killed(run_dir: Path, corpus: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(run_dir: Path, corpus: Path) -> None:
    raise ZeroDivisionError


def do_nothing(run_dir: Path, corpus: Path) -> None:
    pass


def sleep(run_dir: Path, corpus: Path) -> None:
    (run_dir / "process").write_text(str(os.getpid()))
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(1_000)


@pytest.mark.parametrize(
    ("train", "kind", "message"),
    [
        (fail_as_the_user_did, ConfigError, "train.compile: compilation is not possible here"),
        (be_killed, MTError, "a worker process was killed, probably because memory ran out: free some, .*"),
        (fail, ZeroDivisionError, ""),
        (do_nothing, ConfigError, "--updates: all 30 were done before the first kill. Give more."),
    ],
)
def test_the_error_of_a_failed_training_is_passed_on(
    verdict_of: Any, train: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as caught:
        verdict_of(train)
    assert re.fullmatch(message, str(caught.value))


def test_an_existing_run_folder_is_refused(verdict_of: Any, tmp_path: Path) -> None:
    (tmp_path / "runs" / "one-go").mkdir(parents=True)
    with pytest.raises(ConfigError) as caught:
        verdict_of(do_nothing)
    assert str(caught.value) == f"--run-dir: {tmp_path / 'runs' / 'one-go'} exists already. Give a new folder."


def test_an_interrupt_also_ends_the_training_process(verdict_of: Any, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        verdict_of(sleep)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "runs" / "one-go" / "process").read_text()), 0)


def test_leftovers_of_another_process_do_not_count_as_a_save(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / ".step-00000004.writing").mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text('{"step": 7}\n{"step": 8, "tra')
    code = (
        "import os, sys, time; time.sleep(0.5); os.rmdir(sys.argv[1] + '/.step-00000004.writing'); time.sleep(0.5); "
        "os.mkdir(sys.argv[1] + '/.step-00000008.writing'); time.sleep(100)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "checkpoints")]) as child:
        assert reaches(7, tmp_path, lambda: child.poll() is not None, in_save=True)
        child.kill()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [".step-00000008.writing"]


def test_the_short_training_differs_only_in_its_length(tmp_path: Path) -> None:
    config = toy_config(tmp_path, max_steps=9_000, patience=3, stop_after="2h", keep_every=4, log_every=50)
    short = short_config(config, 40)
    assert (short.train.max_steps, short.train.patience, short.train.stop_after) == (40, None, None)
    assert (short.train.checkpoint_every, short.train.validate_every, short.train.log_every) == (4, 20, 1)
    assert short.model == config.model
    assert short.train.seed == config.train.seed
    assert mt.tools.verify.N_VALIDATION_PAIRS < 20
