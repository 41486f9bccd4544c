"""`mt sweep`: its runs, its table, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from mt.cli import app, main
from mt.config.loading import dump_config, load_config
from mt.errors import ConfigError
from mt.evaluation.scores import TranslatedSet
from mt.evaluation.significance import compare
from mt.report.facts import Evaluation, MetricScore, ScoredSet, TrainingCurves
from mt.tools.sweep import Run, Sweep
from mt.tools.sweep_table import Finished, SweepTable
from tests.clock import comes_true
from tests.forks import MT, Fork
from tests.toys import messages, toy_config

RATES = "train.peak_lr=1e-3,1e-2"
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("sweep")
    path = folder / "toy.yaml"
    path.write_text(dump_config(toy_config(folder / "text", max_steps=6, validate_every=3)), "utf-8")
    return str(path)


def train_here(arguments: list[str], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    sys.argv = ["mt", *arguments]
    main()


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """Train in forks, which start quickly; return the names of the runs that were started, and their devices."""
    started: list[tuple[str, str | None]] = []

    def start(run: Run, device: str | None) -> Fork:
        started.append((run.folder.name, device))
        arguments = ["train", "--config", str(run.config_file), "--run-dir", str(run.folder)]
        return Fork(run.log, train_here, arguments, {"OMP_NUM_THREADS": "1"})

    monkeypatch.setattr("mt.tools.sweep.start", start)
    monkeypatch.setattr("mt.tools.sweep._POLL_SECONDS", 0.02)
    return started


def sweep(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["sweep", *map(str, arguments)])


# --- The runs ---------------------------------------------------------------------------------------------------------


def test_runs_are_ordered_by_seed_and_then_by_variant(config: str, tmp_path: Path) -> None:
    found = Sweep(config, [RATES, "model.dropout=0.0,0.1"], ["train.seed=5"], 2, tmp_path)
    variants = [f"peak_lr={rate},dropout={dropout}" for rate in ("1e-3", "1e-2") for dropout in ("0.0", "0.1")]
    assert [(run.variant, run.seed) for run in found.runs] == [(one, seed) for seed in (5, 6) for one in variants]
    assert found.table.baseline == variants[0]
    last = found.runs[-1].config
    assert (last.train.peak_lr, last.model.dropout, last.train.seed) == (0.01, 0.1, 6)
    assert len({run.folder for run in found.runs}) == 8


def test_a_dry_run_lists_the_runs_and_their_time_and_writes_nothing(config: str, tmp_path: Path) -> None:
    options = ("--config", config, "--grid", RATES, "--seeds", 3, "--sweep-dir", tmp_path / "new", "--dry-run")
    header, first, *_, total = sweep(*options, "--budget", "10m").stdout.splitlines()
    assert header.split() == ["folder", "variant", "seed", "state"]
    assert first.split() == [f"{tmp_path}/new/peak_lr=1e-3-seed1", "peak_lr=1e-3", "1", "new"]
    assert total == "6 of 6 runs to train, 1 h 00 min of training in all"
    assert sweep(*options).stdout.splitlines()[-1] == "6 of 6 runs to train"
    assert not (tmp_path / "new").exists()


def test_without_a_grid_one_config_is_trained_with_several_seeds(config: str, tmp_path: Path) -> None:
    runs = Sweep(config, [], [], 2, tmp_path).runs
    assert [run.folder.name for run in runs] == ["toy-seed1", "toy-seed2"]


def test_values_may_be_lists_and_texts(config: str, tmp_path: Path) -> None:
    runs = Sweep(config, ["tokenizer.user_symbols=[],[<a>, <b>]", "model.norm=pre,post"], [], 1, tmp_path).runs
    symbols = [(run.config.tokenizer.user_symbols, run.config.model.norm) for run in runs]
    assert symbols == [((), "pre"), ((), "post"), (("<a>", "<b>"), "pre"), (("<a>", "<b>"), "post")]


def test_keys_that_end_alike_are_written_in_full(config: str, tmp_path: Path) -> None:
    src, tgt = load_config(config).data.train[0].files
    entry = f"data.train.1={{src: {src}, tgt: {tgt}}}"
    found = Sweep(config, ["data.train.0.weight=1,2", "data.train.1.weight=1,2"], [entry], 1, tmp_path)
    assert found.runs[1].variant == "data.train.0.weight=1,data.train.1.weight=2"


def test_long_values_that_begin_alike_have_separate_folders(config: str, tmp_path: Path) -> None:
    entries = ",".join(f"{{src: {'x' * 160}/{name}.en, tgt: {name}.de}}" for name in "ab")
    first, second = Sweep(config, [f"data.train.0={entries}"], [], 1, tmp_path).runs
    assert first.folder != second.folder
    assert max(len(run.config_file.name) for run in (first, second)) < 130


@pytest.mark.parametrize(
    ("grid", "overrides", "message"),
    [
        (["train.peak_lrr=1,2"], [], "--grid train.peak_lrr=1: train.peak_lrr: unknown key, did you mean peak_lr?"),
        (
            ["model.norm=pre,no"],
            [],
            "--grid model.norm=false: model.norm: expected post, pre or deepnorm, got false",
        ),
        (
            ["train.budget=1m,2m"],
            ["train.max_steps=5"],
            "--set train.max_steps=5: train.max_steps is 5, but train.budget (1m) replaces it. Remove one of them.",
        ),
        (["train.peak_lr"], [], "--grid train.peak_lr: expected KEY=VALUE,VALUE, such as model.dropout=0.1,0.3"),
        (["train.peak_lr="], [], "--grid train.peak_lr=: expected KEY=VALUE,VALUE, such as model.dropout=0.1,0.3"),
        (["train.peak_lr=1e-3,0.001"], [], "--grid: peak_lr=1e-3 and peak_lr=0.001 are the same. Remove one of them."),
        (["train.seed=1,2"], [], "--grid train.seed cannot vary. Use --seeds N."),
        (
            ["train.peak_lr=1,2", "train.peak_lr=3,4"],
            [],
            "--grid train.peak_lr is given again by --grid train.peak_lr. Give each setting once.",
        ),
        (
            ["model={d_ff: 8},{d_ff: 16}"],
            ["model.d_ff=64"],
            "--grid model is given again by --set model.d_ff. Give each setting once.",
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


def test_values_that_are_not_yaml_are_refused(config: str, tmp_path: Path) -> None:
    result = sweep("--config", config, "--grid", "train.peak_lr=1,[2", "--sweep-dir", tmp_path)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --grid train.peak_lr=1,[2 is not valid YAML: ")
    assert result.stderr.count("\n") == 1


# --- Training ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(config: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep of RATES with one seed."""
    folder = tmp_path_factory.mktemp("finished") / "sweep"
    with pytest.MonkeyPatch.context() as patch:
        trained.__wrapped__(patch)  # type: ignore[attr-defined]
        result = sweep("--config", config, "--grid", RATES, "--sweep-dir", folder)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "sweep"))


def test_a_sweep_continues_with_more_seeds(config: str, folder: Path, trained: list[tuple[str, str | None]]) -> None:
    result = sweep("--config", config, "--grid", RATES, "--seeds", 2, "--sweep-dir", folder)
    assert result.exit_code == 0, result.output
    assert trained == [("peak_lr=1e-3-seed2", None), ("peak_lr=1e-2-seed2", None)]
    assert [line.split()[:2] for line in result.stdout.splitlines()[1:3]] == [
        ["peak_lr=1e-3", "2"],
        ["peak_lr=1e-2", "2"],
    ]
    facts: dict[str, Any] = json.loads((folder / "sweep.json").read_text("utf-8"))
    one, two = facts["variants"]
    assert (facts["baseline"], facts["seeds"], two["seeds"], two["updates"]) == ("peak_lr=1e-3", [1, 2], [1, 2], 6)
    reports = [json.loads((folder / f"peak_lr=1e-2-seed{n}/report.json").read_text("utf-8")) for n in (1, 2)]
    scores = [report["test_sets"]["held_out"]["scores"][0]["score"] for report in reports]
    assert two["bleu"]["held_out"]["mean"] == pytest.approx(sum(scores) / 2)
    assert two["bleu"]["held_out"]["sd"] == pytest.approx(abs(scores[0] - scores[1]) / 2**0.5)
    assert (one["tests"], two["tests"].keys()) == ({}, {"valid", "held_out"})
    assert (folder / "sweep.md").read_text("utf-8").startswith("| variant | seeds | validation set | p | held")
    assert "BLEU on the validation set" in (folder / "sweep.html").read_text("utf-8")


def test_values_may_be_added_at_the_end_of_a_grid(config: str, finished: Path) -> None:
    found = Sweep(config, [f"{RATES},3e-3"], [], 1, finished)
    assert [run.folder.name for run in found.waiting] == ["peak_lr=3e-3-seed1"]


def test_variants_share_a_prepared_corpus_if_their_data_agree(config: str, finished: Path) -> None:
    records = [json.loads((finished / f"peak_lr={rate}-seed1/run.json").read_text()) for rate in ("1e-3", "1e-2")]
    assert len({record["corpus_fingerprint"] for record in records}) == 1


@pytest.mark.parametrize(
    ("grid", "overrides", "n_seeds", "changed"),
    [
        ([RATES], ["train.max_steps=24"], 1, "train.max_steps was 6 and is now 24"),
        ([RATES], ["model.dropout=0.2"], 1, "model.dropout was 0.1 and is now 0.2"),
        (
            ["train.peak_lr=1e-2,1e-3"],
            [],
            1,
            "train.peak_lr had the values 1e-3, 1e-2 and now has 1e-2, 1e-3",
        ),
        (["train.peak_lr=1e-3"], [], 1, "train.peak_lr had the values 1e-3, 1e-2 and now has 1e-3"),
        ([RATES, "model.dropout=0.1"], [], 1, "model.dropout had the values none and now has 0.1"),
        ([RATES], ["train.seed=2"], 1, "train.seed had the values 1 and now has 2"),
    ],
)
def test_a_folder_of_another_sweep_is_refused_with_what_differs(
    config: str, finished: Path, grid: list[str], overrides: list[str], n_seeds: int, changed: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Sweep(config, grid, overrides, n_seeds, finished)
    assert str(caught.value) == (
        f"{finished} has a sweep with other settings ({changed}). "
        "Give another --sweep-dir; seeds, and values at the end of a grid, may be added."
    )


def test_the_order_of_the_grid_belongs_to_a_sweep(config: str, folder: Path) -> None:
    record = json.loads((folder / "sweep.json").read_text("utf-8"))
    record["grid"] = {"model.dropout": ["0.1"], **record["grid"]}
    (folder / "sweep.json").write_text(json.dumps(record), "utf-8")
    with pytest.raises(ConfigError, match=r"the order of --grid was model\.dropout, train\.peak_lr\)"):
        Sweep(config, [RATES, "model.dropout=0.1"], [], 1, folder)


def test_a_folder_with_something_else_is_refused(config: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty, and is not the folder of a sweep"):
        Sweep(config, [RATES], [], 1, tmp_path)


def test_a_config_that_changes_while_a_sweep_runs_does_not_change_its_runs(
    config: str, tmp_path: Path, trained: list[tuple[str, str | None]]
) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text(Path(config).read_text("utf-8"), "utf-8")
    found = Sweep(str(path), [], ["train.max_steps=4"], 1, tmp_path / "sweep")
    path.write_text("nothing: true\n", "utf-8")
    found.train()
    assert found.table.rows()[0]["updates"] == 4


def test_a_variant_that_fails_is_a_row_and_the_others_are_trained(
    config: str, tmp_path: Path, trained: list[tuple[str, str | None]]
) -> None:
    grid = "tokenizer.vocab_size=9000,380"
    with messages() as said:
        result = sweep("--config", config, "--grid", grid, "--set", "train.max_steps=4", "--sweep-dir", tmp_path)
    assert result.exit_code == 1
    reason = "tokenizer.vocab_size: 9,000 is too large for this corpus, which gives at most "
    _, failed, other, note, *_ = result.stdout.splitlines()
    assert failed.split()[:5] == ["vocab_size=9000", "0", "of", "1", "–"]
    assert other.split()[:2] == ["vocab_size=380", "1"]
    assert note.startswith(f"vocab_size=9000, seed 1 failed: {reason}")
    assert any(reason in line for line in said)
    facts = json.loads((tmp_path / "sweep.json").read_text("utf-8"))
    assert facts["variants"][0]["failed"]["1"].startswith(reason)
    assert f"\n`{note}`\n" in (tmp_path / "sweep.md").read_text("utf-8")
    assert [name for name, _ in trained] == ["vocab_size=9000-seed1", "vocab_size=380-seed1"]


class Ended:
    """A process that has ended at once."""

    def __init__(self, status: int) -> None:
        self.returncode = status

    def poll(self) -> int:
        return self.returncode


def test_the_reason_of_a_failure_is_from_its_own_start(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = iter([("error: a disk is full\n", 2), ("", -signal.SIGKILL), ("warming up\nValueError: a bug\n", 1)])

    def start(run: Run, _device: str | None) -> Ended:
        text, status = next(ends)
        with run.log.open("a") as log:
            log.write(text)
        return Ended(status)

    monkeypatch.setattr("mt.tools.sweep.start", start)
    reasons = []
    for _ in range(3):
        found = Sweep(config, [], [], 1, tmp_path / "sweep")
        found.train()
        reasons += found.table.failed.values()
    assert reasons == ["a disk is full", "the training was ended by SIGKILL", "ValueError: a bug"]


@pytest.mark.parametrize(("visible", "names"), [(None, {"0", "1"}), ("2,GPU-7", {"2", "GPU-7"})])
def test_each_of_several_gpus_trains_one_run_at_a_time(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, names: set[str]
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    used: list[str | None] = []

    def start(run: Run, device: str | None) -> Ended:
        run.log.touch()
        used.append(device)
        return Ended(1)

    monkeypatch.setattr("mt.tools.sweep.start", start)
    monkeypatch.setattr("mt.tools.sweep._POLL_SECONDS", 0.0)
    Sweep(config, [RATES], ["train.device=auto"], 2, tmp_path / "auto").train()
    assert (set(used[:2]), set(used[2:])) == (names, names)
    used.clear()
    Sweep(config, [RATES], ["train.device=cpu"], 1, tmp_path / "cpu").train()
    assert used == [None, None]


def test_ctrl_c_stops_the_training_which_saves_and_the_sweep(config: str, tmp_path: Path) -> None:
    limits = ["--set", "train.max_steps=100000", "--set", "train.checkpoint_every=100000", "--seeds", "2"]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = tmp_path / "sweep/toy-seed1"
    with MT("sweep", "--config", config, "--sweep-dir", run.parent, *limits, environment=environment) as process:
        assert comes_true(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size > 0)
        os.kill(process.pid, signal.SIGINT)  # only the sweep, which tells its training
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.endswith(b"the same command continues this sweep\n")
    assert [*(run / "checkpoints").glob("step-*")]
    assert not (run / ".lock").exists()  # its training has ended
    assert not (tmp_path / "sweep/toy-seed2").exists()


class Training:
    """A process that ends at a signal, after saving."""

    returncode: int | None = None

    def __init__(self) -> None:
        self.received: list[int] = []

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        self.received.append(number)
        self.returncode = 128 + number


@pytest.mark.parametrize(
    ("number", "ended_by"), [(signal.SIGINT, KeyboardInterrupt()), (signal.SIGTERM, SystemExit(143))]
)
def test_a_signal_is_passed_to_the_training_which_has_then_not_failed(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, ended_by: BaseException
) -> None:
    trainings: list[Training] = []

    def start(_run: Run, _device: str | None) -> Training:
        trainings.append(Training())
        os.kill(os.getpid(), number)
        return trainings[-1]

    monkeypatch.setattr("mt.tools.sweep.start", start)
    found = Sweep(config, [RATES], [], 1, tmp_path / "sweep")
    with pytest.raises(type(ended_by)) as caught:
        found.train()
    assert caught.value.args == ended_by.args
    assert [one.received for one in trainings] == [[number]]
    assert found.table.failed == {}


def test_an_error_of_the_sweep_ends_its_trainings(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended_trainings = []

    class Endless(Training):
        def poll(self) -> int | None:
            raise OSError("broken")

        def terminate(self) -> None:
            ended_trainings.append("told")

        def wait(self) -> None:
            ended_trainings.append("ended")

    monkeypatch.setattr("mt.tools.sweep.start", lambda run, device: Endless())
    with pytest.raises(OSError, match="broken"):
        Sweep(config, [], [], 1, tmp_path / "sweep").train()
    assert ended_trainings == ["told", "ended"]


def test_a_second_sweep_in_the_same_folder_is_refused(config: str, folder: Path) -> None:
    from filelock import FileLock

    with FileLock(folder / ".lock"):
        result = sweep("--config", config, "--grid", RATES, "--sweep-dir", folder)
    assert (result.exit_code, result.stderr) == (
        2,
        f"error: {folder}: another sweep is running in this folder. Wait for it.\n",
    )


# --- The table --------------------------------------------------------------------------------------------------------

REFERENCES = [f"the cat number {i} sat on the mat with dog {i + 1}" for i in range(40)]
GOOD = [line.replace("mat", "rug") if i % 4 else line for i, line in enumerate(REFERENCES)]
BAD = [line.replace("cat number", "bird count") for line in REFERENCES]


def ended(
    hypotheses: list[str], bleu: float, valid: list[float | None], references: list[str] = REFERENCES
) -> Finished:
    scored = ScoredSet(n_lines=40, n_references=1, scores=[MetricScore(name="BLEU", score=bleu)])
    curve = {"step": [1, 2], "train_minutes": [1.0, 2.0], "valid_bleu": valid}
    report = Evaluation(
        system="x",
        test_sets={"t": scored},
        valid=scored,
        train_seconds=120.0,
        steps=10,
        n_parameters=2_000_000,
        training=TrainingCurves(curves={"train": {}, "valid": curve}, samples=[]),
    )
    return Finished(report, {"t": TranslatedSet(None, hypotheses, [references])})


@pytest.fixture
def table() -> SweepTable:
    found = SweepTable(["a=1", "a=2"], [1, 2, 3])
    found.finished = {
        ("a=1", 1): ended(BAD, 10.0, [1.0, 4.0]),
        ("a=1", 2): ended(BAD, 14.0, [3.0, 8.0]),
        ("a=2", 1): ended(GOOD, 20.0, [2.0, 5.0]),
        ("a=2", 2): ended(BAD, 22.0, [2.0, None]),
        ("a=2", 3): ended(GOOD, 30.0, [2.0, 5.0]),
    }
    return found


def test_the_table_has_means_and_standard_deviations_over_the_finished_seeds(table: SweepTable) -> None:
    header, first, second = table.cells(table.rows())
    assert header == ["variant", "seeds", "validation set", "p", "t", "p", "minutes", "updates", "parameters"]
    assert first == ["a=1", "2 of 3", "12.00 ± 2.83", "", "12.00 ± 2.83", "", "2.0", "10", "2.0 M"]
    assert second[:3] == ["a=2", "3", "24.00 ± 5.29"]


def test_p_is_that_of_a_paired_test_over_the_lines_of_the_seeds_that_both_have(table: SweepTable) -> None:
    whole = TranslatedSet(None, GOOD + BAD, [REFERENCES * 2], baseline=BAD + BAD)
    expected = compare(whole, ["bleu"], "randomisation", 10_000)[0]
    test = table.rows()[1]["tests"]["t"]
    assert (test["p"], test["verdict"], test["difference"]) == (expected.p, "better", expected.difference)
    assert table.cells(table.rows())[2][5] == f"{expected.p:.4f}"


def test_sets_with_other_references_or_tokenizers_are_not_tested(table: SweepTable) -> None:
    table.finished["a=2", 2] = ended(GOOD, 22.0, [2.0, 2.0], references=[*REFERENCES[1:], "x"])
    assert table.rows()[1]["tests"] == {}
    sets = {"t": replace(table.finished["a=1", 1].sets["t"], tokenize="intl")}
    found = SweepTable(["a=1", "a=2"], [1])
    found.finished = {("a=1", 1): table.finished["a=1", 1], ("a=2", 1): replace(table.finished["a=2", 1], sets=sets)}
    assert found.rows()[1]["tests"] == {}


def test_curves_are_means_over_seeds_and_have_a_gap_where_one_is_not_known(table: SweepTable) -> None:
    first, second = table.curves()
    assert (first.xs, first.ys) == ([1.0, 2.0], [2.0, 6.0])
    assert (second.xs, second.ys) == ([1.0, 2.0], [2.0, None])


def test_a_run_whose_model_was_deleted_keeps_its_scores(finished: Path, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(finished / "peak_lr=1e-2-seed1", tmp_path / "run"))
    whole = Finished.read(run_dir)
    shutil.rmtree(run_dir / "model")
    shutil.rmtree(run_dir / "checkpoints")
    found = Finished.read(run_dir)
    assert whole is not None
    assert found is not None
    assert (found.bleu, found.sets, [*whole.sets]) == (whole.bleu, {}, ["held_out", "valid"])
