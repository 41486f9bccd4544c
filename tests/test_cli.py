"""The command line: input, output and exit status, with a fake model."""

from __future__ import annotations

import json
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock, call, create_autospec

import pytest

from mt.checkpoint import save_model_folder
from mt.config.loading import dump_config, load_config
from mt.config.settings import DecodeConfig, RunConfig
from mt.decode.lines import LineReader
from mt.decode.search import SearchRequest, SearchResult
from mt.decode.translator import OwnBackend
from mt.errors import ConfigError, DataError, statement
from mt.text.tokenizer import Tokenizer
from mt.tools.verify import Difference, Kill, Verdict
from tests.conftest import Run
from tests.toys import files_up_to, small_model, toy_config

ROOT = Path(__file__).resolve().parent.parent


class Parrot(OwnBackend):
    """A fake model. Its translations are the sentence in capitals, or one from `said`, and the sentence twice."""

    tokenizer: Tokenizer
    said: dict[str, str]
    ended_by: dict[str, BaseException]  # sentence → the exception that its search raises
    requests: list[SearchRequest]

    def search_batches(self, requests: Sequence[SearchRequest]) -> Generator[list[list[SearchResult]], None, None]:
        yield from map(self.search, requests)

    def search(self, request: SearchRequest) -> list[list[SearchResult]]:
        self.requests.append(request)
        texts = [self.tokenizer.decode(ids) for ids in request.sentences]
        for error in filter(None, map(self.ended_by.get, texts)):
            raise error
        found = []
        for text, prefix in zip(texts, request.prefixes or [()] * len(texts), strict=True):
            said = [self.said.get(text, text.upper()), f"{text} {text}"][: request.n_best]
            found.append([SearchResult((*prefix, *self.tokenizer.encode(one)), -1.5, -0.5) for one in said])
        return found

    def align(
        self, sources: list[list[int]], targets: list[tuple[int, ...]], batch_tokens: int, n_first: int
    ) -> list[list[tuple[int, int]]]:
        lengths = [min(len(source) - 1, len(target)) for source, target in zip(sources, targets, strict=True)]
        return [[(i, i) for i in range(n)] for n in lengths]


@pytest.fixture(autouse=True)
def _parrot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer) -> None:
    monkeypatch.setattr("mt.decode.translator.OwnBackend", Parrot)
    for name, value in {"tokenizer": tokenizer, "said": {}, "ended_by": {}, "requests": []}.items():
        monkeypatch.setattr(Parrot, name, value, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def translate(run: Run, toy_model: Path) -> Run:
    """Run `mt translate` with a model that takes at most 64 tokens per line."""
    return lambda *options, **stdin: run("translate", "--model", toy_model, *options, **stdin)


@pytest.fixture
def saved(tokenizer_path: Path) -> Callable[..., Path]:
    """Save a model whose config differs from the default."""

    def save(name: str, **changes: Any) -> Path:
        config = replace(toy_config(Path("text")), **changes)
        model = small_model(vocab_size=380, d_ff=64, n_encoder_layers=1, n_decoder_layers=1)
        manifest = {"vocab_size": 380, "step": 5}
        save_model_folder(Path(name), model.state_dict(), config, [tokenizer_path], manifest)
        return Path(name)

    return save


def replaced(monkeypatch: pytest.MonkeyPatch, name: str, function: Any = None) -> Mock:
    """Replace a function with a mock that has the same signature."""
    stand_in: Mock = create_autospec(pkgutil.resolve_name(name), side_effect=function)
    monkeypatch.setattr(name, stand_in)
    return stand_in


def write_lines(name: str, lines: Sequence[str]) -> str:
    Path(name).write_bytes("".join(f"{line}\n" for line in lines).encode())
    return name


# --- Statuses ---------------------------------------------------------------------------------------------------------


def test_help_lists_every_command(run: Run):
    status, stdout, _ = run("--help")
    assert status == 0
    commands = "train prepare translate score explain export eval average bench config verify-resume"
    for command in commands.split():
        assert f"\n  {command} " in stdout


def test_the_version_is_one_line(run: Run):
    status, stdout, stderr = run("--version")
    assert (status, stderr) == (0, "")
    assert stdout.startswith("mt ")
    assert stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "status", "stderr"),
    [
        (DataError("two\nlines"), 2, "error: two lines\n"),
        (KeyboardInterrupt(), 130, ""),
        (SystemExit(143), 143, ""),
    ],
)
def test_an_error_or_signal_decides_the_exit_status(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, stderr: str
):
    replaced(monkeypatch, "mt.pipeline.average_run", error)
    assert run("average", "--run-dir", "r", "--last", "3") == (status, "", stderr)


def test_an_unknown_option_is_status_2(run: Run):
    status, stdout, stderr = run("train", "--confog", "x.yaml")
    assert (status, stdout) == (2, "")
    assert "No such option" in stderr
    assert "--confog" in stderr


def test_an_interrupt_does_not_wait_for_threads_in_the_middle_of_a_batch():
    code = """
import sys, threading, time
from mt import cli
from mt.config import loading
def interrupted(*_):
    threading.Thread(target=time.sleep, args=(100,)).start()
    print("whole lines")
    raise KeyboardInterrupt
loading.load_config = interrupted
sys.argv = ["mt", "config", "show", "demo"]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "whole lines\n", "")


def test_a_bug_is_status_1_with_a_traceback():
    code = "import mt.cli, mt.config.loading; mt.config.loading.dump_config = lambda config: 1 / 0; mt.cli.main()"
    command = [sys.executable, "-c", code, "config", "show", "demo"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 1
    assert finished.stderr.startswith("Traceback")
    assert finished.stderr.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("config list >&-", "error: standard output is closed. Redirect it to a file.\n"),
        ("--help >&-", "error: standard output is closed. Redirect it to a file.\n"),
        ("translate --model m >&- <&-", "error: standard output is closed. Redirect it to a file.\n"),
        ("score --model m --src no --tgt none >&-", "error: no: no such file"),
        ("translate --model m <&-", "error: standard input is closed. Redirect it from a file.\n"),
        (
            "translate --help >&-",
            "error: standard output cannot be written: Bad file descriptor. Redirect it to a file",
        ),
        ("config show no >&- 2>&-", ""),
        ("config show no <&- 2>&-", ""),
    ],
)
def test_a_command_that_needs_a_closed_stream_ends_in_one_line(command: str, message: str) -> None:
    ended = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m mt {command}"], cwd=ROOT, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout, ended.stderr[: len(message)]) == (2, "", message)
    assert ended.stderr.count("\n") == bool(message)


def test_no_file_gets_the_descriptor_of_a_closed_stream(tmp_path: Path) -> None:
    """A message, or a print of a library, would otherwise be written into that file."""
    code = (
        "import sys; from mt.system.console import open_standard_streams; open_standard_streams(); "
        "file = open('out', 'w'); print('lost', file=sys.stderr); sys.exit(file.fileno() < 3)"
    )
    command = ["bash", "-c", f'{sys.executable} -c "{code}" <&- >&- 2>&-']
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(command, cwd=tmp_path, env=environment).returncode == 0
    assert (tmp_path / "out").read_text() == ""


def test_a_translation_contains_no_control_characters(translate: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids: "a\x1b[31mb\x9bc")  # a foreign one can have these pieces
    assert translate(stdin=b"x\n")[1] == "a [31mb c\n"
    line = translate("--format", "jsonl", stdin="\x9b".encode())[1]
    assert line.removesuffix("\n").isprintable()
    assert json.loads(line)["src"] == "\x9b"


def test_a_translation_that_cannot_begin_leaves_no_files(translate: Run) -> None:
    with files_up_to(10):
        status, _, err = translate("--output", "out", stdin=b"x\n")
    assert (status, list(Path.cwd().iterdir())) == (2, [])
    assert err.endswith(
        "cannot be written: File too large. Raise the limit on the size of files (ulimit -f), then run "
        "the same command again.\n"
    )


def test_a_result_is_printed_without_the_control_characters_of_its_text(run: Run, capsys: Any) -> None:
    Path("a").write_text("x\n")
    Path("\x1b[31ma").write_text("x\n")
    status, out, _ = run("compare", "a", "\x1b[31ma", "--ref", "a", "--metric", "chrf", "--samples", "100")
    assert status == 0
    assert "\\u001b[31ma" in out
    assert "\x1b" not in out
    status, out, _ = run("compare", "a", "\x1b[31ma", "--ref", "a", "--metric", "chrf", "--samples", "100", "--json")
    assert [system["name"] for system in json.loads(out)["systems"]] == ["a", "\x1b[31ma"]


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_causes_no_traceback(unbuffered: str):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "mt", "config", "show", "demo"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    finished = subprocess.run(command, cwd=ROOT, env=environment, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (finished.returncode, finished.stderr) == (141, b"")


# --- train, prepare, average, config ----------------------------------------------------------------------------------


def test_train_passes_on_the_config_and_the_run_folder(run: Run, monkeypatch: pytest.MonkeyPatch):
    train_run = replaced(monkeypatch, "mt.pipeline.train_run")
    monkeypatch.setattr("mt.api.TrainedRun", lambda run_dir: f"the report of {run_dir}")
    done = run("train", "--config", "demo", "--set", "name=other", "--set", "train.seed=7")
    assert done == (0, "the report of runs/other\n", "")
    done = run("train", "--config", "demo.yaml", "--run-dir", "elsewhere/x")
    assert done == (0, "the report of elsewhere/x\n", "")
    expected = load_config("demo", ["name=other", "train.seed=7"])
    given = [call(expected, Path("runs/other")), call(load_config("demo"), Path("elsewhere/x"))]
    assert train_run.call_args_list == given


def test_the_error_for_an_unknown_setting_says_where_it_is(run: Run):
    message = "error: --set train.warmup_step=3: train.warmup_step: unknown key, did you mean warmup_steps?\n"
    assert run("train", "--config", "demo", "--set", "train.warmup_step=3") == (2, "", message)


def test_prepare_prints_a_summary(run: Run):
    Path("toy.yaml").write_text(dump_config(toy_config(Path("text"))), "utf-8")
    status, stdout, _ = run("prepare", "--config", "toy.yaml")
    assert status == 0
    assert re.fullmatch(
        r"folder     text/prepared/[0-9a-f]{16}\n"
        r"tokenizer  bpe, 380 pieces\n"
        r"train      400 of 400 pairs kept, \d,\d{3} source and \d,\d{3} target tokens\n"
        r"valid      20 pairs, text/valid\.en \+ text/valid\.de\n"
        r"test       20 pairs, held_out: text/test\.en \+ text/test\.de\n",
        stdout,
    )


def test_average_prints_the_model_folder(run: Run, monkeypatch: pytest.MonkeyPatch):
    replaced(monkeypatch, "mt.pipeline.average_run", lambda run_dir, last: run_dir / f"average-{last}")
    assert run("average", "--run-dir", "runs/a", "--last", "3") == (0, "runs/a/average-3\n", "")
    message = "error: --last: expected at least 1, got 0\n"
    assert run("average", "--run-dir", "runs/a", "--last", "0") == (2, "", message)


def test_verify_resume_prints_the_verdict_and_fails_unless_resume_is_exact(run: Run, monkeypatch: pytest.MonkeyPatch):
    calls: list[Any] = []
    same = Difference(1, 0, 0.0, None, 0.0, 1, 0, None, 1, 0, 0.0, None)

    def verify_resume(config: RunConfig, run_dir: Path | None, *, n_updates: int, n_kills: int) -> Verdict:
        calls.append((config, run_dir, n_updates, n_kills))
        resumed = same if n_kills == 3 else replace(same, n_weights_differing=1)
        return Verdict(n_updates, (Kill(1, True),), resumed, None)

    replaced(monkeypatch, "mt.tools.verify.verify_resume", verify_resume)
    proved = ("verify-resume", "--config", "demo")
    status, stdout, stderr = run(*proved)
    assert (status, stdout.splitlines()[0], stderr) == (0, "resuming is bit-identical", "")
    status, stdout, stderr = run(*proved, "--json")
    assert (status, json.loads(stdout)["proved"], stderr) == (0, True, "")
    options = ("--set", "train.seed=7", "--run-dir", "r", "--updates", "9", "--kills", "2")
    error = "error: resuming changes the result\n"
    status, stdout, stderr = run(*proved, *options)
    assert (status, stdout.splitlines()[0], stderr) == (2, "resuming changes the result", error)
    status, stdout, stderr = run(*proved, *options, "--json")
    assert (status, json.loads(stdout)["proved"], stderr) == (2, False, error)
    demo, changed = load_config("demo"), load_config("demo", ["train.seed=7"])
    assert calls == [(demo, None, 30, 3)] * 2 + [(changed, Path("r"), 9, 2)] * 2


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("verify-resume --updates 1", "--updates: expected at least 2, got 1"),
        ("verify-resume --kills 0", "--kills: expected 1 to 29 (fewer than --updates), got 0"),
        ("verify-resume --updates 5 --kills 5", "--kills: expected 1 to 4 (fewer than --updates), got 5"),
        ("verify-resume", "WORLD_SIZE: resume is verified in one process. Start it without torchrun."),
        ("bench", "WORLD_SIZE: mt bench measures one device. Start it without torchrun."),
        ("train --dry-run", "WORLD_SIZE: a dry run uses one process. Start it without torchrun."),
    ],
)
def test_impossible_options_of_verify_resume_bench_and_dry_run_are_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str, message: str
):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    status, stdout, stderr = run(*command.split(), "--config", "demo")
    assert (status, stdout, stderr.splitlines()[-1]) == (2, "", f"error: {message}")


def test_config_list_names_and_describes_the_shipped_configs(run: Run):
    status, stdout, _ = run("config", "list")
    assert status == 0
    assert [line.split()[0] for line in stdout.splitlines()] == [
        "base.yaml",
        "big.yaml",
        "demo.yaml",
        "multi30k.yaml",
        "multilingual.yaml",
    ]
    assert all(len(line.split()) > 3 for line in stdout.splitlines())


def test_config_show_prints_a_config_that_can_be_read_back(run: Run):
    status, stdout, _ = run("config", "show", "base", "--set", "train.seed=7")
    assert status == 0
    Path("shown.yaml").write_text(stdout, encoding="utf-8")
    assert load_config("shown.yaml") == load_config("base", ["train.seed=7"])


def test_config_explain_prints_each_setting_and_refuses_an_unknown_one(run: Run):
    status, stdout, _ = run("config", "explain", "train.peak_lr", "decode.seed", "--config", "demo")
    assert status == 0
    assert re.findall(r"^[\w.]+$|In this config: \S+", stdout, re.MULTILINE) == [
        "train.peak_lr",
        "In this config: 0.003.",
        "decode.seed",
        "In this config: 1.",
    ]
    status, _, stderr = run("config", "explain", "train.peak_rl")
    assert (status, stderr) == (2, "error: train.peak_rl: unknown key, did you mean peak_lr?\n")


def test_config_init_writes_a_config_and_says_what_to_do_next(run: Run):
    status, stdout, _ = run("config", "init", "captions.yaml")
    assert (status, stdout) == (
        0,
        "wrote captions.yaml: edit its languages and files, then run\n"
        "  mt doctor --config captions.yaml\n"
        "  mt train --config captions.yaml\n",
    )
    status, stdout, _ = run("doctor", "--config", "captions.yaml")
    assert status == 2
    assert f"error     data/train.en: no such file (looked for in {Path.cwd()})" in stdout
    status, _, stderr = run("config", "init", "captions.yaml")
    assert (status, stderr) == (2, "error: captions.yaml exists already. Give the name of a new file.\n")


# --- translate --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stdin", "stdout", "warning"),
    [
        ("ein hund\r\n\nzwei\u2028drei".encode(), "EIN HUND\n\nZWEI DREI\n", ""),
        (b"", "", ""),
        (b"a\nb\xff\nc\n", "A\nB\ufffd\nC\n", "3 lines were not valid UTF-8: invalid bytes were read as U+FFFD"),
        (
            b"a\n" + b"b" * 10_000,
            "A\n" + "B" * 10_000 + "\n",
            "2 lines had more than 64 tokens and were translated in parts",
        ),
    ],
    ids=["lines", "nothing", "bad bytes", "a long line"],
)
def test_each_input_line_gives_one_output_line(translate: Run, stdin: bytes, stdout: str, warning: str):
    stderr = f"warning: 1 of {warning}\n" if warning else ""
    assert translate(stdin=stdin) == (0, stdout, stderr)


def test_files_are_read_and_written(translate: Run):
    write_lines("in.en", ["a", "", "b"])
    assert translate("--input", "in.en", "--output", "out.de") == (0, "", "")
    assert Path("out.de").read_bytes() == b"A\n\nB\n"


def test_n_best_gives_n_output_lines_per_input_line(translate: Run):
    assert translate("--n-best", "3", stdin=b"a\n\n")[1] == "A\na a\n\n\n\n\n"


def test_jsonl_has_one_object_per_line(translate: Run):
    options = ("--n-best", "2", "--format", "jsonl")
    status, stdout, _ = translate(*options, stdin="ä\u2028\x85\n\n?\xff".encode("utf-8", "surrogateescape"))
    assert status == 0
    strange = "ä\u2028\x85"
    first, second, third = (json.loads(line) for line in stdout.splitlines())
    figures = {"score": -0.5, "log_prob": -1.5, "log_prob_per_token": -1.5 / 4, "n_tokens": 4, "alignment": None}
    best, other = first.pop("hypotheses")
    assert first == {"line": 1, "src": strange, "flags": []}
    assert best == {"text": "Ä", **figures, "tokens": ["▁", "<0xC3>", "<0x84>"], "flags": []}
    assert other["text"] == "ä ä"
    figures = dict.fromkeys(("score", "log_prob", "log_prob_per_token"), 0.0) | {"n_tokens": 0, "alignment": None}
    assert second == {
        "line": 2,
        "src": "",
        "flags": [],
        "hypotheses": [{"text": "", **figures, "tokens": [], "flags": []}],
    }
    assert (third["line"], third["src"]) == (3, "?\xff")
    assert '"ä' in stdout


def test_flags_of_lines_are_in_the_json_and_counted(translate: Run):
    Parrot.said["?"] = "FIN " * 9
    _, stdout, stderr = translate("--format", "jsonl", stdin=b"?\na\xff\n?\n" + b"b" * 2_000)
    flags = [json.loads(line)["flags"] for line in stdout.splitlines()]
    assert flags == [["repetition", "retried"], ["invalid_utf8"], ["repetition", "retried"], ["in_parts"]]
    assert stderr == (
        "warning: 1 of 4 lines were not valid UTF-8: invalid bytes were read as U+FFFD\n"
        "warning: 1 of 4 lines had more than 64 tokens and were translated in parts\n"
        "warning: 2 of 4 lines have a translation that repeats itself\n"
        "2 of 4 lines were translated twice, the second time with repetition blocked: the first result was "
        "implausible\n"
    )


def test_alignments_go_into_a_separate_file_or_into_the_json(translate: Run):
    text = b"a b\n\nc d\n"
    status, stdout, _ = translate("--alignments", "al", "--n-best", "2", stdin=text)
    assert (status, len(stdout.splitlines())) == (0, 6)
    assert Path("al").read_text("utf-8") == "0-0 1-1\n0-0 1-1\n\n\n0-0 1-1\n0-0 1-1\n"
    _, stdout, _ = translate("--align", "--format", "jsonl", stdin=text)
    assert [json.loads(line)["hypotheses"][0]["alignment"] for line in stdout.splitlines()] == [
        "0-0 1-1",
        "",
        "0-0 1-1",
    ]
    translate("--alignments", "al", "--output", "out", "--overwrite", stdin=text)
    assert Path("al").read_text("utf-8") == "0-0 1-1\n\n0-0 1-1\n"
    assert sorted(path.name for path in Path().iterdir()) == ["al", "out"]


def test_each_prefix_applies_to_its_line(translate: Run):
    write_lines("in", ["a", "b", "c"])
    write_lines("prefixes", ["X", "", "Z"])
    assert translate("--input", "in", "--prefix", "prefixes")[1] == "X A\nB\nZ C\n"
    assert translate("--prefix", "prefixes", stdin=b"a\nb\nc")[1] == "X A\nB\nZ C\n"
    assert translate("--input", "in", "--prefix", "prefixes", "--shard", "2/2")[1] == "B\nZ C\n"


def test_missing_extra_or_invalid_prefixes_are_refused(translate: Run):
    write_lines("in", ["a", "b", "c"])
    write_lines("two", ["X", "Y"])
    write_lines("four", ["X", "Y", "Z", ""])
    write_lines("long", ["", "", "x" * 60])
    Path("latin").write_bytes(b"\n\xe4\n\n")
    from_file = ("--input", "in", "--prefix")
    advice = "give one prefix for each line; it may be empty"
    assert translate(*from_file, "two")[2] == f"error: two has 2 lines and in has 3: {advice}\n"
    assert translate(*from_file, "latin") == (2, "", "error: latin, line 2 is not valid UTF-8. Fix the line.\n")
    assert translate(*from_file, "long") == (
        2,
        "",
        f"error: long, line 3: the prefix {'x' * 60!r} has 61 tokens, but a translation can have at most 53 "
        "with its end of sentence: shorten the prefix\n",
    )
    status, _, stderr = translate("--prefix", "two", stdin=b"a\nb\nc\n")
    assert (status, stderr) == (
        2,
        "error: two has 2 lines and standard input has more. Give one prefix for each line.\n",
    )
    status, _, stderr = translate("--prefix", "four", "--output", "out", stdin=b"a\nb\nc\n")
    assert (status, stderr) == (2, "error: four has more lines than standard input. Give one prefix for each line.\n")
    assert not Path("out").exists()


def test_concatenated_shards_equal_the_whole_output(translate: Run):
    write_lines("in", [f"line {i}" for i in range(11)])
    _, whole, _ = translate("--input", "in", "--format", "jsonl")
    parts = []
    for number in (1, 2, 3, 4):
        options = ("--input", "in", "--format", "jsonl", "--shard", f"{number}/4")
        parts.append(translate(*options)[1])
    assert [part.count("\n") for part in parts] == [2, 3, 3, 3]
    assert "".join(parts) == whole
    write_lines("one", ["a"])
    outputs = [translate("--input", "one", "--shard", f"{n}/3")[1] for n in (1, 2, 3)]
    assert outputs == ["", "", "A\n"]


def test_strict_refuses_invalid_utf8_before_the_model_is_loaded(translate: Run):
    Path("in").write_bytes(b"a\nb\xff\n")
    advice = "Fix the line, or omit --strict to read invalid bytes as U+FFFD."
    message = f"error: in, line 2: byte 0xff at offset 1 is not UTF-8. {advice}\n"
    assert translate("--input", "in", "--strict") == (2, "", message)
    assert Parrot.requests == []
    message = message.replace("in, line", "standard input, line")
    assert translate("--strict", stdin=b"a\nb\xff\n") == (2, "", message)


@pytest.fixture
def interrupted(translate: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run `mt translate` on 10 lines, 3 at a time, until line 6 raises an exception."""
    monkeypatch.setattr(LineReader.batches, "__kwdefaults__", {**LineReader.batches.__kwdefaults__, "max_lines": 3})
    write_lines("in", [f"line {i}" for i in range(10)])

    def interrupted_run(error: BaseException, *options: str) -> Any:
        Parrot.ended_by["line 6"] = error
        result = translate("--input", "in", "--output", "out", *options)
        Parrot.ended_by.clear()
        Parrot.requests.clear()
        return result

    return interrupted_run


RESUME = ("--input", "in", "--output", "out", "--resume")


def exists(name: str) -> str:
    return f"error: {name} exists already. Delete it, give another name, or add --overwrite.\n"


@pytest.mark.parametrize("option", ["--output", "--alignments"])
def test_an_output_that_exists_is_overwritten_only_if_asked(translate: Run, option: str):
    write_lines("in", ["a b"])
    Path("old").write_text("precious\n")
    options = ("--input", "in", option, "old", *(("--output", "new") if option == "--alignments" else ()))
    assert translate(*options) == (2, "", exists("old"))
    assert Path("old").read_text() == "precious\n"
    assert names() == {"in", "old"}
    assert translate(*options, "--overwrite") == (0, "", "")
    assert Path("old").read_text() == {"--output": "A B\n", "--alignments": "0-0 1-1\n"}[option]


def test_an_empty_output_such_as_one_of_mktemp_has_nothing_to_lose(translate: Run):
    write_lines("in", ["a"])
    Path("out").touch()
    assert translate("--input", "in", "--output", "out") == (0, "", "")
    assert Path("out").read_text() == "A\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--input in --output hard", "--input: in is also the --output"),
        ("--input in --output soft", "--input: in is also the --output"),
        ("--input soft --alignments hard", "--input: soft is also the --alignments"),
        ("--input other --prefix in --output hard", "--prefix: in is also the --output"),
        ("--output hard --alignments in", "--alignments: in is also the --output"),
        ("--output new --alignments ./new", "--alignments: new is also the --output"),
    ],
)
def test_an_output_is_not_an_input_by_any_name_even_to_overwrite_it(translate: Run, options: str, message: str):
    write_lines("in", ["a"])
    write_lines("other", ["a"])
    Path("hard").hardlink_to("in")
    Path("soft").symlink_to("in")
    for more in ((), ("--overwrite",)):
        assert translate(*options.split(), *more) == (2, "", f"error: {message}. Give two different files.\n")
    assert Path("in").read_text() == "a\n"


@pytest.mark.parametrize(
    ("streams", "options", "message"),
    [
        ({0: "in"}, "--output in", "--input: standard input is also the --output"),
        ({0: "in"}, "--input /dev/stdin --output in", "--input: /dev/stdin is also the --output"),
        ({1: "in"}, "--input in", "--input: in is also the --output"),
    ],
)
def test_a_standard_stream_may_be_the_same_file_too(
    translate: Run, monkeypatch: pytest.MonkeyPatch, streams: dict[int, str], options: str, message: str
):
    write_lines("in", ["a"])
    stat = os.stat
    monkeypatch.setattr("mt.cli.os.stat", lambda name: stat(streams.get({"/dev/stdin": 0}.get(name, name), name)))
    assert translate(*options.split(), stdin=b"") == (2, "", f"error: {message}. Give two different files.\n")


def test_a_report_that_exists_is_overwritten_only_if_asked(run: Run):
    write_lines("hyp", HYPOTHESES)
    write_lines("ref", TEXT)
    Path("report").mkdir()
    Path("report/report.html").write_text("mine")
    options = ("eval", "--hyp", "hyp", "--ref", "ref", "--report", "report")
    message = "error: --report: report contains report.html already. Give another folder, or add --overwrite.\n"
    assert run(*options) == (2, "", message)
    assert Path("report/report.html").read_text() == "mine"
    assert run(*options, "--overwrite")[0] == 0
    assert {path.name for path in Path("report").iterdir()} == {"report.html", "report.json", "report.md"}


# --- Tables and sentences ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "lines", "options"),
    [
        ("in.tsv", ["a b\tc", "\td", "e\tf"], ()),
        ("in.tsv", ["a b", "", "e"], ("--src-column", "1")),
        ("in.tsv", ["1\tx\ta b", "2\tx\t", "3\tx\te"], ("--src-column", "3")),
        ("in.tsv", ["text", "a b", "", "e"], ("--src-column", "text")),
        ("in.jsonl", ['{"en": "a b", "de": "c"}', "", '{"en": "", "de": "d"}', '{"en": "e", "de": "f"}'], ()),
        ("in.jsonl", ['{"text": "a\\nb"}', '{"text": ""}', '{"text": "e"}'], ("--src-column", "text")),
        ("in.jsonl", ['{"en": "a b"}', '{"en": ""}', '{"en": "e", "de": "f"}'], ()),
    ],
)
def test_the_source_column_of_a_table_is_translated(
    translate: Run, name: str, lines: list[str], options: tuple[str, ...]
):
    write_lines(name, lines)
    status, stdout, stderr = translate("--input", name, *options)
    assert (status, stdout) == (0, "A B\n\nE\n")
    assert "skipped" not in stderr


def test_a_translation_memory_is_translated_where_it_has_no_translation_yet(translate: Run):
    units = [f'<tuv xml:lang="{lang}"><seg>{text}</seg></tuv>' for lang, text in (("en", "a b"), ("de", "c"))]
    body = "".join(f"<tu>{unit}</tu>" for unit in (units[0], "".join(units), units[1]))
    Path("in.tmx").write_text(f'<tmx version="1.4"><header/><body>{body}</body></tmx>')
    status, stdout, stderr = translate("--input", "in.tmx")
    assert (status, stdout) == (0, "A B\nA B\n")
    assert "warning: in.tmx: units without en skipped: 1\n" in stderr


def test_a_row_with_paragraphs_is_one_line_of_text_and_keeps_them_in_jsonl(translate: Run):
    write_lines("in.jsonl", ['{"text": "a.\\n\\nb"}'])
    options = ("--input", "in.jsonl", "--src-column", "text")
    assert translate(*options)[1] == "A. B\n"
    (line,) = map(json.loads, translate(*options, "--format", "jsonl")[1].splitlines())
    assert (line["src"], line["hypotheses"][0]["text"], line["flags"]) == ("a.\n\nb", "A.\n\nB", ["split"])


def test_a_table_can_be_resumed_and_translated_in_shards(translate: Run, interrupted: Callable[..., Any]):
    write_lines("t.tsv", [f"line {i}\tx" for i in range(10)])
    for shard in ("1/2", "2/2"):
        assert translate("--input", "t.tsv", "--shard", shard, "--output", f"out{shard[0]}")[0] == 0
    text = "".join(f"LINE {i}\n" for i in range(10))
    assert Path("out1").read_text() + Path("out2").read_text() == text
    Parrot.ended_by["line 6"] = KeyboardInterrupt()
    options = ("--input", "t.tsv", "--output", "out", "--resume")
    assert translate(*options)[0] == 130
    Parrot.ended_by.clear()
    assert translate(*options) == (0, "", "")
    assert Path("out").read_text() == text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--input in.jsonl", "in.jsonl, line 1 has no key en, its keys are text. Set --src-column to the keys of the "
         "text, or fix the line."),
        ("--input missing.tsv", "missing.tsv: no such file (looked for in {cwd})"),
        ("--input plain --src-column 1", "--src-column is for a .tsv, .csv, .jsonl or .parquet file. Name the file so, "
         "or cut the column out."),
        ("--src-column 1", "--src-column is for a .tsv, .csv, .jsonl or .parquet file. Name the file so, or cut the "
         "column out."),
        ("--input memory.tmx --src-column fr", "--src-column is for a .tsv, .csv, .jsonl or .parquet file. Name the "
         "file so, or cut the column out."),
        ("--input in.tsv --src-column 0", "--src-column: expected an integer of at least 1 or text, got 0"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_read_is_an_error(translate: Run, options: str, message: str):
    write_lines("in.jsonl", ['{"text": "a"}'])
    write_lines("plain", ["a"])
    message = message.replace("{cwd}", str(Path.cwd()))
    assert translate(*options.split(), stdin=b"a\n") == (2, "", f"error: {message}\n")


def test_tabs_in_most_lines_of_plain_text_are_warned_about(translate: Run):
    status, stdout, stderr = translate(stdin=b"a\tb\nc\td\ne\n")
    assert (status, stdout) == (0, "A B\nC D\nE\n")
    assert stderr == (
        "warning: standard input: 2 of the first 3 lines have tabs; whole lines are translated. To translate one "
        "column, give a file whose name ends in .tsv, with --src-column N if needed\n"
    )
    assert translate(stdin=b"a\tb\nc\n")[2] == ""


def test_sentences_are_split_as_asked_and_counted(translate: Run):
    text = b"Ein Hund. Eine Katze.\nEin Hund.\n"
    status, stdout, stderr = translate("--split-sentences", "always", stdin=text)
    assert (status, stdout) == (0, "EIN HUND. EINE KATZE.\nEIN HUND.\n")
    assert stderr == "1 of 2 lines have several sentences and were split at their ends (--split-sentences)\n"
    assert translate("--split-sentences", "never", stdin=text) == (0, stdout, "")
    Parrot.said["Ein Hund. Eine Katze."] = "EIN HUND"
    stderr = translate(stdin=text)[2]
    assert stderr == "warning: 1 of 2 lines have a translation with at most half of their sentences\n"


def test_a_translation_is_not_resumed_with_sentences_split_otherwise(translate: Run, interrupted: Callable[..., Any]):
    interrupted(KeyboardInterrupt())
    message = f"{Path.cwd()}/out.part was started with --split-sentences auto, not never"
    fix = "Rerun with --split-sentences auto, or delete it to start over"
    assert translate(*RESUME, "--split-sentences", "never") == (2, "", f"error: {message}. {fix}.\n")


def names() -> set[str]:
    return {path.name for path in Path().iterdir()}


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143)])
def test_resume_continues_an_interrupted_translation(
    translate: Run, interrupted: Callable[..., Any], error: BaseException, status: int
):
    stopped = "stopped; the first 6 lines are in {}/out.part. Run the same command with --resume to continue\n"
    assert interrupted(error) == (status, "", stopped.format(Path.cwd()))
    assert names() == {"in", "out.part", "out.part.json"}
    assert Path("out.part").read_text("utf-8") == "".join(f"LINE {i}\n" for i in range(6))
    assert translate(*RESUME) == (0, "", "")
    assert Path("out").read_text("utf-8") == "".join(f"LINE {i}\n" for i in range(10))
    assert names() == {"in", "out"}
    assert [len(request.sentences) for request in Parrot.requests] == [3, 1]


def test_standard_input_can_be_resumed_if_it_is_given_again(translate: Run, interrupted: Callable[..., Any]):
    interrupted(KeyboardInterrupt())
    again = ("--output", "out", "--resume")
    text = Path("in").read_bytes()
    status, _, stderr = translate(*again, stdin=text.replace(b"line 3", b"line three"))
    assert (status, stderr.count("\n")) == (2, 1)
    assert "has 6 lines that were translated from other lines than those in standard input" in stderr
    assert translate(*again, stdin=text) == (0, "", "")
    assert Path("out").read_text("utf-8") == "".join(f"LINE {i}\n" for i in range(10))


def test_lines_written_after_the_last_step_are_translated_again(translate: Run, interrupted: Callable[..., Any]):
    interrupted(KeyboardInterrupt())
    with open("out.part", "ab") as stream:
        stream.write(b"LINE 6\nLIN")
    assert translate(*RESUME)[0] == 0
    assert Path("out").read_text("utf-8") == "".join(f"LINE {i}\n" for i in range(10))


def test_resume_starts_over_if_there_is_nothing_to_continue(translate: Run):
    write_lines("in", ["a", "b"])
    assert translate(*RESUME) == (0, "", "")
    assert Path("out").read_text("utf-8") == "A\nB\n"
    assert translate(*RESUME) == (2, "", exists("out"))
    assert Path("out").read_text("utf-8") == "A\nB\n"
    write_lines("in", ["c"])
    assert translate(*RESUME, "--overwrite") == (0, "", "")
    assert Path("out").read_text("utf-8") == "C\n"


@pytest.mark.usefixtures("interrupted")
def test_resume_continues_all_output_files_together(translate: Run):
    options = ("--alignments", "al", "--shard", "1/2", "--format", "jsonl", "--prefix", "in")
    write_lines("in", [f"{i}" for i in range(20)])
    Parrot.ended_by["6"] = KeyboardInterrupt()
    assert translate(*RESUME, *options)[0] == 130
    Parrot.ended_by.clear()
    assert names() == {"in", "out.part", "out.part.json", "al.part"}
    message = f"error: {Path.cwd()}/al.part is missing. To start over, delete {Path.cwd()}/out.part too.\n"
    Path("al.part").rename("elsewhere")
    assert translate(*RESUME, *options) == (2, "", message)
    Path("elsewhere").rename("al.part")
    assert translate(*RESUME, *options)[0] == 0
    entries = [json.loads(line) for line in Path("out").read_text("utf-8").splitlines()]
    assert [(entry["line"], entry["hypotheses"][0]["text"]) for entry in entries] == [
        (i + 1, f"{i} {i}") for i in range(10)
    ]
    assert Path("al").read_text("utf-8") == "0-0\n" * 10
    assert names() == {"in", "out", "al"}


def test_an_interrupted_translation_is_not_overwritten_without_resume(translate: Run, interrupted: Callable[..., Any]):
    interrupted(KeyboardInterrupt())
    message = "is an interrupted translation of 6 lines. Add --resume to continue it, or delete it to start over."
    assert translate(*RESUME[:-1]) == (2, "", f"error: {Path.cwd()}/out.part {message}\n")
    Path("out.part").unlink()
    assert translate(*RESUME[:-1]) == (0, "", "")
    assert names() == {"in", "out"}


def test_an_unrelated_file_named_like_a_part_is_not_touched(translate: Run):
    write_lines("in", ["a"])
    write_lines("out.part", ["something else"])
    message = (
        f"error: {Path.cwd()}/out.part exists, but there is no {Path.cwd()}/out.part.json that says which translation "
        "it belongs to. Move it to another place, or delete it.\n"
    )
    for options in (RESUME, RESUME[:-1]):
        assert translate(*options) == (2, "", message)
    assert Path("out.part").read_text("utf-8") == "something else\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--beam-size", "5"], "was started with --beam-size 4, not 5. Rerun with --beam-size 4"),
        (["--sample"], "was started without --sample. Rerun without --sample"),
        (["--format", "jsonl"], "was started with --format text, not jsonl. Rerun with --format text"),
        (["--shard", "1/2"], "was started without --shard. Rerun without --shard"),
        (["--no-repeat-ngram", "3"], "was started with --no-repeat-ngram 0, not 3. Rerun with --no-repeat-ngram 0"),
        (["--no-retry"], "was started with --retry. Rerun with --retry"),
        (["--prefix", "in"], "was started without --prefix. Rerun without --prefix"),
        ("identity", "was started with another model. Give that model"),
        ("part", "is shorter than when it was written. Delete it to start over."),
        ("text", "has 6 lines that were translated from other lines than those in in. Rerun with the same text"),
        ("fewer", "has 6 lines that were translated from other lines than those in in. Rerun with the same text"),
    ],
)
def test_a_part_that_another_command_started_is_refused(
    translate: Run, interrupted: Callable[..., Any], saved: Callable[..., Path], change: Any, message: str
):
    interrupted(KeyboardInterrupt())
    part = Path("out.part")
    options: list[str] = []
    if change == "identity":
        options = ["--model", str(saved("../other"))]  # the last one counts
    elif change == "part":
        part.write_bytes(part.read_bytes()[:-1])
    elif change == "text":
        write_lines("in", [f"line {i + (i == 5)}" for i in range(10)])
    elif change == "fewer":
        write_lines("in", [f"line {i}" for i in range(5)])
    else:
        options = change
    content = part.read_bytes()
    start_over = "" if change == "part" else ", or delete it to start over."
    assert translate(*RESUME, *options) == (
        2,
        "",
        f"error: {statement(f'{Path.cwd()}/out.part', message)}{start_over}\n",
    )
    assert part.read_bytes() == content


def test_a_damaged_resume_record_is_refused(translate: Run, interrupted: Callable[..., Any]):
    interrupted(KeyboardInterrupt())
    Path("out.part.json").write_text('{"format": 1', "utf-8")
    message = f"is damaged, or was written by another version of mt. Delete it and {Path.cwd()}/out.part to start over."
    assert translate(*RESUME) == (2, "", f"error: {Path.cwd()}/out.part.json {message}\n")


def test_resume_continues_files_that_already_have_their_final_names(translate: Run, interrupted: Callable[..., Any]):
    """A kill between the last step and the end leaves this state."""
    interrupted(KeyboardInterrupt())
    record = json.loads(Path("out.part.json").read_text("utf-8"))
    Path("out.part").rename("out")
    assert Path("out").stat().st_size == record["files"][0]["bytes"]
    assert translate(*RESUME) == (0, "", "")
    assert Path("out").read_text("utf-8") == "".join(f"LINE {i}\n" for i in range(10))
    assert names() == {"in", "out"}


def test_two_commands_cannot_write_the_same_output_at_once(translate: Run):
    from mt.decode.outputs import open_outputs

    write_lines("in", ["a"])
    with open_outputs(Path("out")):
        message = f"error: {Path.cwd()}/out.part: another mt translate is writing it. Wait for it, or stop it.\n"
        assert translate(*RESUME[:-1]) == (2, "", message)
        assert names() == {"in", "out.part", "out.part.json", ".out.part.lock"}
    assert names() == {"in"}


def test_a_full_disk_leaves_whole_lines_and_resume_continues(translate: Run, interrupted: Callable[..., Any]):
    whole = 3 * len("LINE 0\n")
    write_lines("in", [f"line {i}" + "x" * 3_000 for i in range(10)])
    with files_up_to(12_000):
        status, stdout, stderr = translate(*RESUME[:-1])
    assert (status, stdout) == (2, "")
    remedy = "Raise the limit on the size of files (ulimit -f), then run the same command with --resume."
    assert stderr == f"error: out cannot be written: File too large. {remedy}\n"
    assert Path("out.part").stat().st_size == whole + 9_000
    assert translate(*RESUME)[0] == 0
    assert Path("out").read_bytes() == Path("in").read_bytes().upper()
    with files_up_to(5_000):
        remedy = "Raise the limit on the size of files (ulimit -f), then run the same command again."
        message = f"error: other cannot be written: File too large. {remedy}\n"
        assert translate("--input", "in", "--output", "other") == (2, "", message)
    assert names() == {"in", "out"}


def test_without_a_terminal_progress_is_logged_in_lines(translate: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mt.system.console.LINE_SECONDS", 0.0)
    write_lines("in", [f"line {i}" for i in range(5_000)])
    _, _, stderr = translate("--input", "in", "--output", "out")
    *shown, last = stderr.splitlines()
    for line in shown:
        assert re.fullmatch(r"[\d,]+ of 5,000 lines · [\d,.]+ lines/s · \d+ s left", line)
    assert shown[-1].startswith("5,000 of 5,000 lines · ")
    assert re.fullmatch(r"5,000 lines in \d+ s · [\d,.]+ lines/s", last)
    assert translate("--input", "in", "--output", "out", "--overwrite", "--no-progress")[2] == ""
    assert re.match(r"1 lines · [\d,.]+ lines/s\n", translate(stdin=b"a\n")[2])


def test_options_reach_the_translator(translate: Run):
    Parrot.said["a"] = "FIN " * 9
    translate("--device", "cpu", "--precision", "fp32", "--n-best", "2", "--no-retry", stdin=b"a\n")
    (request,) = Parrot.requests
    assert (request.decode, request.n_best) == (DecodeConfig(), 2)


DRAWING = DecodeConfig(sample=True, temperature=0.7, top_k=10, top_p=0.9, seed=0)


@pytest.mark.parametrize(
    ("options", "of_model", "decode"),
    [
        ("--beam-size 6 --batch-tokens 99", DecodeConfig(), DecodeConfig(beam_size=6, batch_tokens=99)),
        ("--length-penalty 0", DecodeConfig(), DecodeConfig(length_penalty=0.0)),
        ("--length-penalty-form plain", DecodeConfig(), DecodeConfig(length_penalty_form="plain")),
        ("--min-length 3 --max-length 9", DecodeConfig(), DecodeConfig(min_length=3, max_length=9)),
        ("--no-repeat-ngram 3", DecodeConfig(), DecodeConfig(no_repeat_ngram_size=3)),
        ("--batch-sentences 7", DecodeConfig(), DecodeConfig(batch_sentences=7)),
        ("--sample --temperature 0.7 --top-k 10 --top-p 0.9 --seed 0", DecodeConfig(), DRAWING),
        ("", DRAWING, DRAWING),
        ("--beam-size 6", replace(DRAWING, seed=1), DecodeConfig(beam_size=6)),
    ],
)
def test_options_override_the_search_settings_of_the_model(
    run: Run, saved: Callable[..., Path], options: str, of_model: DecodeConfig, decode: DecodeConfig
):
    assert run("translate", "--model", saved("m", decode=of_model), *options.split(), stdin=b"a\n")[0] == 0
    assert Parrot.requests[0].decode == decode


def test_an_option_that_contradicts_a_setting_of_the_model_is_refused(run: Run, saved: Callable[..., Path]):
    model = saved("m", decode=DecodeConfig(max_length=9))
    message = "error: --min-length is 9, but --max-length (9) allows only 8 tokens and the end of sentence\n"
    assert run("translate", "--model", model, "--min-length", "9", stdin=b"a\n") == (2, "", message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--beam-size 0", "--beam-size: expected an integer from 1 to 64, got 0"),
        ("--beam-size 65", "--beam-size: expected an integer from 1 to 64, got 65"),
        ("--length-penalty -1", "--length-penalty: expected a number from 0 to 10, got -1.0"),
        ("--batch-tokens 0", "--batch-tokens: expected an integer of at least 1, got 0"),
        ("--n-best 0", "--n-best: expected at least 1, got 0"),
        ("--n-best 5 --beam-size 4", "--n-best is 5, more than --beam-size (4). Raise --beam-size or lower --n-best."),
        ("--min-length -1", "--min-length: expected an integer from 0 to 10,000, got -1"),
        ("--max-length 0", "--max-length: expected an integer from 1 to 10,000, got 0"),
        (
            "--min-length 9 --max-length 9",
            "--min-length is 9, but --max-length (9) allows only 8 tokens and the end of sentence",
        ),
        ("--no-repeat-ngram -1", "--no-repeat-ngram: expected an integer of at least 0, got -1"),
        ("--batch-sentences 0", "--batch-sentences: expected an integer of at least 1, got 0"),
        ("--temperature 0.5", "--temperature is for sampling. Add --sample."),
        ("--top-k 5", "--top-k is for sampling. Add --sample."),
        ("--top-p 0.5", "--top-p is for sampling. Add --sample."),
        ("--seed 0", "--seed is for sampling. Add --sample."),
        ("--sample --beam-size 5", "--beam-size cannot be combined with --sample. Remove one of them."),
        ("--sample --temperature 0", "--temperature: expected a number from 0.01 to 100, got 0.0"),
        ("--sample --top-k 0", "--top-k: expected an integer of at least 1, got 0"),
        ("--sample --top-p 1.5", "--top-p: expected a number above 0 and up to 1, got 1.5"),
        ("--prefix -", "--prefix needs a file, not -"),
        ("--prefix missing", "missing: no such file (looked for in {cwd})"),
        ("--alignments -", "--alignments needs a file, not -"),
        ("--input in --output ./in", "--input: in is also the --output. Give two different files."),
        ("--alignments x --output ./x", "--alignments: x is also the --output. Give two different files."),
        ("--alignments missing/x", "missing/x cannot be written: No such file or directory"),
        ("--align", "--align needs --format jsonl. Add it, or use --alignments FILE to write a separate file."),
        ("--shard 3", "--shard: expected I/N, such as 3/8, with I from 1 to N, got 3"),
        ("--shard 0/8", "--shard: expected I/N, such as 3/8, with I from 1 to N, got 0/8"),
        ("--shard 9/8", "--shard: expected I/N, such as 3/8, with I from 1 to N, got 9/8"),
        (
            "--shard 1/8",
            "--shard needs the number of lines, but standard input can be read only once. Use a file for --input.",
        ),
        ("--resume", "--resume needs an output file to continue. Give --output FILE."),
        (
            "--resume --output /dev/null",
            "--resume can only continue regular files. Use regular files for --output and --alignments.",
        ),
        (
            "--output out --alignments /dev/null",
            "--alignments: /dev/null is not a regular file, but --output is. Use regular files for both or neither.",
        ),
        ("--input missing.en", "missing.en: no such file (looked for in {cwd})"),
        ("--input .", ". is a folder, expected a text file"),
        ("--output missing/out.de", "missing/out.de cannot be written: No such file or directory"),
    ],
)
def test_wrong_options_are_refused_before_the_model_is_loaded(run: Run, options: str, message: str):
    message = message.replace("{cwd}", str(Path.cwd()))
    assert run("translate", "--model", "missing", *options.split()) == (2, "", f"error: {message}\n")


NO_MODEL = "error: missing: no such folder. Give a run folder, a checkpoint or a model folder.\n"


def test_a_missing_model_leaves_no_output_file(run: Run):
    assert run("translate", "--model", "missing", "--output", "out.de") == (2, "", NO_MODEL)
    assert list(Path().iterdir()) == []


def test_the_first_lines_are_written_before_the_input_ends(toy_model: Path):
    command = [sys.executable, "-m", "mt", "translate", "--model", str(toy_model), "--max-length", "9"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in (b"one\n", b"two\n"):
            process.stdin.write(line)
            process.stdin.flush()
            assert process.stdout.readline().endswith(b"\n")
        process.stdin.close()
        assert process.stdout.read() == b""
    assert process.returncode == 0


# --- score ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def score_pairs(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Let each token of a translation, and its end, cost two nats."""

    def two_nats(model: Any, sources: Any, targets: Sequence[Sequence[int]], *, batch_tokens: int) -> Any:
        return [[-2 - 1e-9] * (len(target) + 1) for target in targets]

    return replaced(monkeypatch, "mt.decode.scorer.score_pairs", two_nats)


@pytest.fixture
def score(run: Run, toy_model: Path, score_pairs: Mock) -> Callable[..., tuple[int, str, str]]:
    """Run `mt score` on two.src and two.tgt, with a length penalty of ((5 + n) / 6)^1."""
    write_lines("two.src", ["ä", ""])
    write_lines("two.tgt", ["bcd", ""])
    given = ("score", "--model", toy_model, "--src", "two.src", "--tgt", "two.tgt", "--length-penalty", "1")
    return lambda *options: run(*given, *options)


def test_score_prints_four_figures_for_each_pair_of_lines(score: Run):
    assert score() == (0, "-10.0000\t-2.0000\t-6.0000\t5\n0.0000\t0.0000\t0.0000\t0\n", "")


def test_score_as_jsonl_has_the_tokens(score: Run):
    write_lines("two.tgt", ["bcd", "x" * 1_100])
    status, stdout, _ = score("--format", "jsonl")
    assert status == 0
    first, second = (json.loads(line) for line in stdout.splitlines())
    figures = {name: first.pop(name) for name in ("log_prob", "mean_log_prob", "score")}
    assert figures == pytest.approx({"log_prob": -10, "mean_log_prob": -2, "score": -6})
    assert first == {
        "line": 1,
        "src": "ä",
        "tgt": "bcd",
        "n_tokens": 5,
        "pieces": ["▁", "b", "<0x63>", "d", "</s>"],
        "token_log_probs": [-2.0] * 5,
    }
    none = {"log_prob": None, "mean_log_prob": None, "score": None, "pieces": [], "token_log_probs": []}
    assert second == {"line": 2, "src": "", "tgt": "x" * 1_100, "n_tokens": 1_102, **none}
    assert '"ä"' in stdout


def test_score_warns_about_pairs_that_are_too_long(score: Run):
    write_lines("two.tgt", ["x" * 100, "x" * 1_100])
    status, stdout, stderr = score()
    assert (status, stdout.splitlines()[1]) == (0, "-inf\t-inf\t-inf\t1102")
    assert stderr == (
        "warning: 1 of 2 pairs had a side of more than 64 tokens, longer than any in training: "
        "their scores are less reliable\n"
        "warning: 1 of 2 pairs had a side of more than 1,024 tokens and were not scored: they get -inf (jsonl: null)\n"
    )


def test_options_reach_the_scorer(score: Run, score_pairs: Mock):
    options = ["--device", "cpu", "--precision", "fp32", "--length-penalty", "0", "--batch-tokens", "99"]
    assert score(*options, "--output", "scores") == (0, "", "")
    assert Path("scores").read_text().splitlines()[0] == "-10.0000\t-2.0000\t-10.0000\t5"
    assert score_pairs.call_args.kwargs == {"batch_tokens": 99}


def test_scores_are_not_overwritten_unasked_and_never_replace_the_source(score: Run):
    Path("scores").write_text("precious")
    assert score("--output", "scores") == (2, "", exists("scores"))
    assert score("--output", "scores", "--overwrite") == (0, "", "")
    message = "error: --tgt: two.tgt is also the --output. Give two different files.\n"
    assert score("--output", "two.tgt", "--overwrite") == (2, "", message)


@pytest.mark.parametrize(
    ("name", "line", "options"),
    [
        ("two.tsv", "ä\tbcd", ()),
        ("two.jsonl", '{"en": "ä", "de": "bcd"}', ()),
        ("two.tsv", "bcd\tä", ("--src-column", "2", "--tgt-column", "1")),
    ],
)
def test_pairs_of_a_table_are_scored(
    run: Run, toy_model: Path, score_pairs: Mock, name: str, line: str, options: tuple[str, ...]
):
    write_lines(name, [line])
    given = ("score", "--model", toy_model, "--length-penalty", "1", "--file", name)
    assert run(*given, *options) == (0, "-10.0000\t-2.0000\t-6.0000\t5\n", "")


def test_an_error_about_the_columns_of_a_table_names_the_options(run: Run, toy_model: Path):
    write_lines("two.jsonl", ['{"a": "b"}'])
    problem = "two.jsonl, line 1 has no key en, its keys are a"
    fix = "Set --src-column and --tgt-column to the keys of the text, or fix the line"
    assert run("score", "--model", toy_model, "--file", "two.jsonl") == (2, "", f"error: {problem}. {fix}.\n")


def test_score_needs_pairs_from_two_texts_or_one_table(run: Run):
    fix = "The pairs come from two files or from one. Give --src and --tgt, or --file.\n"
    for options in ("", "--src a", "--src a --tgt b --file c", "--tgt b --file c"):
        status, _, stderr = run("score", "--model", "m", *options.split())
        assert (status, stderr.lower()) == (2, f"error: {fix}".lower())
    message = "error: --src: a.tsv is a table. Give --file a.tsv, or a file of plain text.\n"
    assert run("score", "--model", "m", "--src", "a.tsv", "--tgt", "b") == (2, "", message)


def test_files_without_lines_have_no_scores(score: Run):
    write_lines("two.src", [])
    write_lines("two.tgt", [])
    assert score() == (0, "", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--length-penalty -1", "--length-penalty: expected a number from 0 to 10, got -1.0"),
        ("--batch-tokens 0", "--batch-tokens: expected an integer of at least 1, got 0"),
        ("--tgt missing.de", "missing.de: no such file (looked for in {cwd})"),
        ("--src .", ". is a folder, expected a text file"),
        ("--output missing/scores", "missing/scores cannot be written: No such file or directory"),
    ],
)
def test_wrong_options_of_score_are_refused_before_the_model_is_loaded(score: Run, options: str, message: str):
    status = score("--model", "missing", *options.split())
    assert status == (2, "", f"error: {message.replace('{cwd}', str(Path.cwd()))}\n")


def test_files_that_are_not_parallel_leave_no_output_file(score: Run):
    write_lines("two.tgt", ["b", "c", "d"])
    message = "two.tgt has 3 lines and two.src has 2, but both files need the same number of lines"
    assert score("--output", "scores") == (2, "", f"error: {message}\n")
    assert not Path("scores").exists()


def test_a_missing_model_for_score_leaves_no_output_file(score: Run):
    assert score("--model", "missing", "--output", "scores") == (2, "", NO_MODEL)
    assert not Path("scores").exists()


# --- explain ----------------------------------------------------------------------------------------------------------


def test_explain_writes_the_page(run: Run, monkeypatch: pytest.MonkeyPatch):
    def explained_page(*arguments: str | None) -> str:
        if arguments[1] == "":
            raise ConfigError("src", "is blank", "give a sentence")
        return f"<p>{arguments}</p>\n"

    replaced(monkeypatch, "mt.explain.attention.explained_page", explained_page)
    given = ("explain", "--model", "m", "--output", "page.html")
    assert run(*given, "--src", "ä", "--tgt", "b", "--device", "cpu", "--precision", "fp32") == (0, "", "")
    assert Path("page.html").read_text(encoding="utf-8") == "<p>('m', 'ä', 'b', 'cpu', 'fp32', None, None)</p>\n"
    assert run(*given, "--src", "ä") == (2, "", exists("page.html"))
    assert run(*given, "--src", "ä", "--overwrite") == (0, "", "")
    assert Path("page.html").read_text(encoding="utf-8") == "<p>('m', 'ä', None, 'auto', 'auto', None, None)</p>\n"
    Path("page.html").unlink()
    assert run(*given, "--src", "") == (2, "", "error: --src is blank. Give a sentence.\n")
    assert not Path("page.html").exists()


# --- eval -------------------------------------------------------------------------------------------------------------


HYPOTHESES = ["Ein Hund läuft im Schnee.", "Zwei Männer spielen Schach."]
TEXT = ["Ein Hund läuft durch den Schnee.", "Zwei Männer spielen im Park Schach."]


def test_files_are_scored_as_a_test_set_named_input(run: Run):
    hyp, ref = write_lines("hyp", HYPOTHESES), write_lines("ref", TEXT)
    status, stdout, stderr = run("eval", "--hyp", hyp, "--ref", ref, "--src", write_lines("src", ["a", "b"]), "--json")
    assert (status, stderr) == (0, "")
    report = json.loads(stdout)
    assert list(report) == ["test_sets"]
    entry = report["test_sets"]["input"]
    assert (entry["n_lines"], entry["n_references"]) == (2, 1)
    assert [score["name"] for score in entry["scores"]] == ["BLEU", "chrF2", "chrF2++", "BLEU-lc"]
    assert all(set(score) == {"name", "score", "signature"} for score in entry["scores"])
    assert entry["scores"][0]["signature"].startswith("nrefs:1|case:mixed|")
    status, stdout, _ = run("eval", "--hyp", hyp, "--ref", ref)
    bleu = entry["scores"][0]
    assert stdout.startswith(f"input (2 lines)\n  BLEU    {bleu['score']:>7.2f}   {bleu['signature']}\n  chrF2 ")
    assert len(stdout.splitlines()) == 5


def test_metrics_references_and_intervals_can_be_chosen(run: Run):
    hyp, ref, other = write_lines("hyp", HYPOTHESES), write_lines("ref", TEXT), write_lines("other", TEXT[::-1])
    options = ("--metric", "ter", "--metric", "bleu", "--confidence", "--samples", "100")
    status, stdout, stderr = run("eval", "--hyp", hyp, "--ref", ref, "--ref", other, *options)
    assert (status, stderr) == (0, "")
    assert re.fullmatch(
        r"input \(2 lines, 2 references\)\n"
        r"  BLEU  +\d+\.\d\d ± \d+\.\d\d   nrefs:2\|bs:100\|seed:12345\|case:mixed\|\S+\n"
        r"  TER   +\d+\.\d\d ± \d+\.\d\d   nrefs:2\|bs:100\|seed:12345\|case:lc\|\S+\n",
        stdout,
    )
    entry = json.loads(run("eval", "--hyp", hyp, "--ref", ref, *options, "--json")[1])["test_sets"]["input"]
    assert entry["scores"][0]["confidence"]["n_samples"] == 100


@pytest.mark.parametrize("test", ["randomisation", "bootstrap"])
def test_a_comparison_with_a_baseline_ends_with_a_verdict_in_words(run: Run, test: str):
    lines = [f"Der Hund Nummer {number} läuft durch den hohen Schnee." for number in range(40)]
    ref, old = write_lines("ref", lines), write_lines("old", [line.replace("läuft", "geht") for line in lines])
    new = write_lines("new", [*lines[:39], "Nichts."])
    options = ("--metric", "bleu", "--significance", test, "--samples", "200")
    status, stdout, stderr = run("eval", "--hyp", new, "--ref", ref, "--baseline", old, *options)
    assert (status, stderr) == (0, "")
    kind = {"randomisation": "shuffles", "bootstrap": "bootstrap samples"}[test]
    _, _, title, scores, verdict = stdout.splitlines()
    assert title == f"input, compared with old (paired test, 200 {kind})"
    assert scores == "  BLEU    97.85 against 65.80   +32.04   p = 0.0050   better"
    assert verdict == "new is better than old by BLEU."
    report = json.loads(run("eval", "--hyp", new, "--ref", ref, "--baseline", old, *options, "--json")[1])
    comparison = report["comparison"]
    assert (comparison["system"], comparison["baseline"]) == ("new", "old")
    assert (comparison["test"], comparison["n_samples"]) == (test, 200)
    entry = comparison["test_sets"]["input"]
    assert entry["verdict"] == "new is better than old by BLEU"
    assert entry["scores"][0]["verdict"] == "better"
    assert entry["scores"][0]["score"] == report["test_sets"]["input"]["scores"][0]["score"]


def test_warnings_go_to_standard_error_or_into_the_json(run: Run):
    ref = write_lines("ref", TEXT)
    said = [
        "the hypotheses are identical to the references: a score of 100.0 says nothing about a system",
        "the hypotheses are identical to those of the baseline: was the same file given twice?",
        "the baseline is identical to the references: was the same file given twice?",
    ]
    given = ("eval", "--hyp", ref, "--ref", ref, "--baseline", ref, "--metric", "bleu", "--samples", "100")
    status, stdout, stderr = run(*given)
    assert (status, stderr) == (0, "".join(f"warning: {line}\n" for line in said))
    assert stdout.splitlines()[-1] == "ref and ref: no difference at p < 0.05 by BLEU."
    status, stdout, stderr = run(*given, "--json")
    assert (status, stderr) == (0, "")
    assert json.loads(stdout)["warnings"] == {"input": said}


def test_the_baseline_of_a_file_may_be_a_run(run: Run):
    hyp, ref = write_lines("hyp", HYPOTHESES), write_lines("ref", TEXT)
    folder = Path("runs/old/translations")
    folder.mkdir(parents=True)
    given = ("eval", "--hyp", hyp, "--ref", ref, "--metric", "bleu", "--samples", "100", "--baseline", "runs/old")
    assert run(*given) == (
        2,
        "",
        "error: runs/old has no translations, because it is not a finished run. Let it finish, give a file of "
        "translations, or compare models with mt compare.\n",
    )
    write_lines("runs/old/translations/valid.txt", ["a"])
    assert run(*given) == (
        2,
        "",
        "error: runs/old: none of its files translates the text of --ref (2 lines): valid.txt (1). Give the right "
        "file instead of the run.\n",
    )
    write_lines("runs/old/translations/wmt.txt", TEXT)
    assert run(*given)[1].endswith("hyp and runs/old: no difference at p < 0.05 by BLEU.\n")
    write_lines("runs/old/translations/ted.txt", TEXT)
    assert run(*given) == (
        2,
        "",
        "error: runs/old: several of its files may translate the text of --ref (2 lines): ted.txt (2), wmt.txt (2), "
        "valid.txt (1). Give the right file instead of the run.\n",
    )


@pytest.fixture
def two_test_sets(saved: Callable[..., Path]) -> None:
    """Save a model `m` with the test sets wmt and ted. It translates them as HYPOTHESES and as TEXT."""
    corpora = {}
    for name, src in (("wmt", ["a", "b"]), ("ted", ["c", "d"])):
        corpora[name] = {"src": write_lines(f"{name}.src", src), "tgt": write_lines(f"{name}.tgt", TEXT)}
    Parrot.said = dict(zip("abcd", [*HYPOTHESES, *TEXT], strict=True))
    saved("m", data=replace(toy_config(Path("text")).data, test=corpora))


@pytest.mark.usefixtures("two_test_sets")
def test_a_model_is_scored_on_its_test_sets(run: Run):
    status, stdout, stderr = run("eval", "--model", "m", "--metric", "bleu")
    assert status == 0
    assert [line.split("  ")[0] for line in stdout.splitlines()] == ["wmt (2 lines)", "", "ted (2 lines)", ""]
    assert stderr == (
        "m: translating wmt, ted with the model of step 5\n"
        "warning: ted: the hypotheses are identical to the references: a score of 100.0 says nothing about a system\n"
    )
    report = json.loads(run("eval", "--model", "m", "--test", "wmt", "--json")[1])
    assert list(report["test_sets"]) == ["wmt"]


@pytest.mark.usefixtures("two_test_sets")
def test_the_baseline_of_a_model_is_a_run_or_a_file_of_one_test_set(run: Run):
    Path("old/translations").mkdir(parents=True)
    write_lines("old/translations/wmt.txt", TEXT)
    write_lines("three", ["a", "b", "c"])
    given = ("eval", "--model", "m", "--metric", "bleu", "--samples", "100", "--baseline")
    assert run(*given, "old") == (
        2,
        "",
        "error: old has no translations of ted, only of wmt. Give another run, or choose a test set with --test.\n",
    )
    assert run(*given, "old/translations/wmt.txt") == (
        2,
        "",
        "error: --baseline: old/translations/wmt.txt translates one test set, but the model has wmt, ted. Choose one "
        "with --test, or give a run.\n",
    )
    assert run(*given, "three", "--test", "wmt") == (
        2,
        "",
        "error: three has 3 lines and the test set wmt has 2. Give translations of the same text.\n",
    )
    for baseline in ("old", "old/translations/wmt.txt"):
        status, stdout, _ = run(*given, baseline, "--test", "wmt")
        assert status == 0
        assert stdout.endswith(f"m and {baseline}: no difference at p < 0.05 by BLEU.\n")
    write_lines("old/translations/ted.txt", TEXT)
    report = json.loads(run(*given, "old", "--json")[1])
    assert list(report["comparison"]["test_sets"]) == ["wmt", "ted"]


@pytest.mark.usefixtures("two_test_sets")
def test_a_model_is_scored_on_any_text_under_the_name_of_its_file(run: Run, monkeypatch: pytest.MonkeyPatch):
    def sets(*options: str) -> dict[str, Any]:
        status, stdout, stderr = run("eval", "--model", "m", "--metric", "bleu", "--json", *options)
        found: dict[str, Any] = json.loads(stdout)["test_sets"]
        (name,) = found
        assert (status, stderr) == (0, f"m: translating {name} with the model of step 5\n")
        return found

    src, ref = write_lines("news.en", ["a", "b"]), write_lines("news.2.de", TEXT)
    given = sets("--src", src, "--ref", ref)
    assert list(given) == ["news"]
    assert given["news"]["n_lines"] == 2
    assert given["news"]["scores"] == sets("--test", "wmt")["wmt"]["scores"]
    assert sets("--src", src, "--ref", ref, "--ref", ref)["news"]["n_references"] == 2
    table = write_lines("talks.2014.tsv", ["a\t" + TEXT[0], "b\t" + TEXT[1]])
    assert sets("--file", table) == {"talks.2014": given["news"]}
    columns = write_lines("c.tsv", ["1\t" + TEXT[0] + "\ta", "2\t" + TEXT[1] + "\tb"])
    assert sets("--data", f"{{file: {columns}, src_column: 3, tgt_column: 2}}") == {"c": given["news"]}
    monkeypatch.setattr("mt.text.corpora._sacrebleu_files", lambda name, *langs: (Path(src), Path(ref)))
    assert sets("--sacrebleu", "wmt14/full") == {"wmt14/full": given["news"]}
    assert run("eval", "--model", "m", "--file", table, "--report", "report")[0] == 0
    report = json.loads(Path("report/report.json").read_text("utf-8"))
    assert [one["source"] for one in report["sentences"]["talks.2014"]] == ["a", "b"]
    assert "talks.2014" in Path("report/report.html").read_text("utf-8")


@pytest.mark.usefixtures("two_test_sets")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--src", "two", "--ref", "three"],
            "three has 3 lines and two has 2, but both files need the same number of lines",
        ),
        (["--file", "empty.tsv"], "empty.tsv has no sentence pairs, expected at least one"),
        (["--file", ""], "--file: expected a path or a list of paths, got ''"),
        (["--sacrebleu", ""], "sacreBLEU test set is not known. Run `sacrebleu --list` to see all names."),
        (["--data", ""], "--data: expected a corpus such as {src: FILE, tgt: FILE}, got null"),
        (["--data", "{file: t.tsv, tag: <x>}"], "data.tag: m does not know <x>. Remove the tag."),
        (
            ["--file", "t.tsv", "--baseline", "three"],
            "three has 3 lines and the test set t has 1. Give translations of the same text.",
        ),
        (
            ["--file", "t.tsv", "--baseline", "folder"],
            "folder is not a model folder. Give a run folder, a checkpoint or a model folder.",
        ),
    ],
)
def test_unusable_text_for_a_model_is_refused_in_one_line(run: Run, options: list[str], message: str):
    Path("folder").mkdir()
    for name, lines in (("two", ["a"] * 2), ("three", ["a"] * 3), ("t.tsv", ["a\tb"]), ("empty.tsv", [])):
        write_lines(name, lines)
    assert run("eval", "--model", "m", *options) == (2, "", f"error: {message}\n")


@pytest.mark.usefixtures("two_test_sets")
def test_a_baseline_that_is_a_model_translates_the_same_text(run: Run, saved: Callable[..., Path]):
    saved("old")  # it does not have these test sets
    for options, name in ((["--test", "wmt"], "wmt"), (["--file", write_lines("t.tsv", ["a\tA b", "b\tB c"])], "t")):
        given = ("eval", "--model", "m", "--metric", "bleu", "--samples", "100", *options)
        status, stdout, stderr = run(*given, "--baseline", "old")
        assert status == 0
        assert stdout.endswith("m and old: no difference at p < 0.05 by BLEU.\n")
        assert stderr.startswith(f"old: translating {name} with the model of step 5\nm: translating {name} with ")
        assert [request.sentences for request in Parrot.requests[-2:]] == [Parrot.requests[-1].sentences] * 2


@pytest.mark.usefixtures("two_test_sets")
def test_models_and_translations_are_compared_on_any_text(run: Run, saved: Callable[..., Path]):
    saved("old")
    write_lines("t.tsv", [f"a\t{TEXT[0]}", f"b\t{TEXT[1]}"])
    other = write_lines("other.de", TEXT)
    given = ("--metric", "bleu", "--samples", "100", "--json")
    status, stdout, stderr = run("compare", "m", "old", other, "--file", "t.tsv", *given)
    assert (status, stderr.count("translating t with")) == (0, 2)
    found = json.loads(stdout)
    (metric,) = found["test_sets"]["t"]["metrics"]
    assert [round(one["score"]) for one in metric["scores"][1:]] == [round(metric["scores"][0]["score"]), 100]
    assert [system.get("n_parameters") for system in found["systems"]] == [found["systems"][0]["n_parameters"]] * 2 + [
        None
    ]
    assert all(key.startswith("data.test.") for key in found["differences"])
    assert {values[2] for values in found["differences"].values()} == {""}
    src, ref = write_lines("t.en", ["a", "b"]), write_lines("t.de", TEXT)
    assert json.loads(run("compare", "m", "old", other, "--src", src, "--ref", ref, *given)[1]) == found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "--model is missing. Give --model DIR, or --hyp FILE and --ref FILE."),
        ("--hyp two", "--hyp needs --ref. Add --ref FILE."),
        ("--ref two", "--ref needs --hyp. Add --hyp FILE."),
        ("--hyp two --ref two --test wmt", "--test needs --model. Give --model DIR."),
        ("--hyp two --ref two --device cpu", "--device needs --model. Give --model DIR."),
        (
            "--model m --hyp two",
            "--hyp is for files of translations and cannot be combined with --model. Remove one of them.",
        ),
        ("--model m --ref two", "--ref needs --src. Add --src FILE."),
        ("--model m --src two", "--src needs --ref. Add --ref FILE."),
        ("--model m --src two --ref two --test a", "--test cannot be combined with --src. Remove one of them."),
        ("--model m --file a.tsv --test a", "--test cannot be combined with --file. Remove one of them."),
        ("--model m --src two --ref two --file a.tsv", "--file cannot be combined with --src. Give one text."),
        ("--model m --file a.tsv --sacrebleu wmt14", "--sacrebleu cannot be combined with --file. Give one text."),
        ("--hyp two --ref two --file a.tsv", "--file needs --model. Give --model DIR."),
        ("--model m --data [a.tsv]", "--data: expected a corpus such as {src: FILE, tgt: FILE}, got a list"),
        (
            '--model m --data {"file":"a.tsv","tgt_colum":2}',
            "--data.tgt_colum: unknown key, did you mean tgt_column?",
        ),
        (
            "--hyp three --ref two",
            "three has 3 lines and two has 2, but both files need the same number of lines",
        ),
        (
            "--hyp two --ref two --ref three",
            "three has 3 lines and two has 2, but both files need the same number of lines",
        ),
        (
            "--hyp two --ref two --src three",
            "three has 3 lines and two has 2, but both files need the same number of lines",
        ),
        (
            "--hyp three --ref three --baseline two",
            "three has 3 lines and two has 2, but both files need the same number of lines",
        ),
        ("--hyp empty --ref empty", "empty has no lines to score"),
        ("--hyp empty --ref two", "empty has no lines to score"),
        ("--hyp two --ref two --baseline empty", "empty has no lines to score"),
        ("--hyp gone --ref two", "gone: no such file (looked for in FOLDER)"),
        ("--hyp two --ref two --baseline gone", "gone does not exist (looked for in FOLDER)"),
        ("--hyp two --ref FOLDER", "FOLDER is a folder, expected a text file"),
        (
            "--hyp latin --ref two",
            "latin, line 2: byte 0xe4 at offset 6 is not UTF-8. Fix the line, or convert the file to "
            "UTF-8 (if it is Latin-1: iconv -f LATIN1 -t UTF-8).",
        ),
        (
            "--hyp two --ref two --metric bleu,chrf",
            "--metric: expected one name, got bleu,chrf. Give --metric bleu --metric chrf.",
        ),
        ("--hyp two --ref two --metric blue", "--metric: unknown metric blue. Did you mean bleu?"),
        (
            "--hyp two --ref two --significance bootstrap",
            "--significance needs --baseline. Add --baseline, or use mt compare.",
        ),
        (
            "--hyp two --ref two --samples 1000",
            "--samples needs --confidence or --baseline. Add one of them.",
        ),
        ("--hyp two --ref two --confidence --samples 0", "--samples: expected at least 100, got 0"),
        ("--model m --metric chr", "--metric: unknown metric chr. Did you mean chrf?"),
    ],
)
def test_invalid_options_of_eval_are_refused_in_one_line(run: Run, options: str, message: str, tmp_path: Path):
    write_lines("two", ["a", "b"])
    write_lines("three", ["a", "b", "c"])
    write_lines("empty", [])
    Path("latin").write_bytes("gut\nspät\n".encode("latin1"))
    arguments = options.replace("FOLDER", str(tmp_path)).split()
    assert run("eval", *arguments) == (2, "", f"error: {message.replace('FOLDER', str(tmp_path))}\n")
