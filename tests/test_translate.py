"""`mt translate` in its own process, with a small model of random weights."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from mt.decode.lines import LineReader
from tests.forks import MT, run_mt
from tests.toys import toy_text, write_lines

LINES_AT_A_TIME = 64


def take_few_lines_at_a_time() -> None:
    """Let a short text take many steps."""
    LineReader.batches.__kwdefaults__["max_lines"] = LINES_AT_A_TIME


@pytest.fixture
def model(toy_model: Path) -> Path:
    return toy_model


def wait_after(n_steps: int) -> None:
    """Stop after some steps, so that the process still runs when it is killed, even on a fast machine."""
    take_few_lines_at_a_time()
    batches = LineReader.batches

    def waiting(*arguments: Any, **options: Any) -> Iterator[list[bytes]]:
        is_skipping = "pause_seconds" not in options
        yield from islice(batches(*arguments, **options), None if is_skipping else n_steps)
        if not is_skipping:
            time.sleep(1_000)

    LineReader.batches = waiting  # type: ignore[method-assign]


def run(
    model: Path, *options: str | Path, stdin: bytes = b"", before: Callable[[], None] = take_few_lines_at_a_time
) -> subprocess.CompletedProcess[bytes]:
    done = run_mt("translate", "--model", model, *options, stdin=stdin, before=before)
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done


def odd_lines(seed: int) -> list[bytes]:
    """Return very unusual lines, which users will nevertheless translate."""
    rng = random.Random(seed)
    odd = [bytes(rng.choices([b for b in range(256) if b != 10], k=rng.randrange(200))) for _ in range(60)]
    odd += ["".join(chr(rng.choice([*range(10), *range(11, 32), 127, *range(128, 160)])) for _ in range(20)).encode()]
    odd += [
        b"",
        b" ",
        b"\t",
        b"\r",
        b"\r\r",
        b"\x00",
        b"\xef\xbb\xbfbar",
        "\u2028".encode(),
        "bar\u2028dest\u2029fin".encode(),
    ]
    odd += ["שלום עולם, זה מבחן.", "مرحبا بالعالم ؟", "\u202eabc\u202c def", "a\u0301e\u0308" * 30]
    odd += [
        "👩‍👩‍👧‍👦🏳️‍🌈" * 20,
        "🙂" * 300,
        "漢字。かな、" * 60,
        "ไทย" * 50,
        "\ufffd\ufffe\U0010ffff",
        "a\x85b\x0bc\x0cd\x1ce",
    ]
    odd += ["bar dest " * 500, "bar dest. " * 100, "x" * 3_000, "<0x0A> <s> </s> <pad> ▁ ▁▁", "</s>" * 5]
    lines = [line if isinstance(line, bytes) else line.encode() for line in odd]
    rng.shuffle(lines)
    return lines


@pytest.mark.parametrize(
    ("seed", "longest"), [(1, ["--max-length", "12"]), pytest.param(2, [], marks=pytest.mark.slow)]
)
def test_any_input_gives_one_output_line_per_line(model: Path, tmp_path: Path, seed: int, longest: list[str]) -> None:
    lines = odd_lines(seed)
    (tmp_path / "in").write_bytes(b"\n".join(lines) + b"\n")
    options = ("--input", tmp_path / "in", "--precision", "fp32", "--beam-size", "2", *longest)
    done = run(model, *options, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr.decode()
    out = (tmp_path / "out").read_bytes()
    out.decode()
    assert not set(b"\x00\r") & set(out)
    assert out.count(b"\n") == len(lines)
    assert out.endswith(b"\n")
    (tmp_path / "sane").write_bytes(b"bar dest\n" * len(lines))
    for as_json in (
        run(model, *options, "--format", "jsonl"),
        run(model, *options[2:], "--format", "jsonl", stdin=b"\n".join(lines)),
    ):
        # splitlines() finds all kinds of line breaks: the JSON has none inside its lines.
        entries = [json.loads(line) for line in as_json.stdout.decode().splitlines()]
        assert [entry["line"] for entry in entries] == list(range(1, len(lines) + 1))
        assert "".join(entry["hypotheses"][0]["text"] + "\n" for entry in entries) == out.decode()
        n_invalid = sum("invalid_utf8" in entry["flags"] for entry in entries)
        assert f"warning: {n_invalid} of {len(lines)} lines were not valid UTF-8".encode() in done.stderr
        assert 50 < n_invalid < 62


def test_a_line_of_one_megabyte_is_translated_in_parts(model: Path) -> None:
    lines = [b"bar", b"bar dest fin. " * 75_000, b"bar", b"x" * 200_000]
    done = run(model, "--beam-size", "1", "--max-length", "4", stdin=b"\n".join(lines))
    assert done.returncode == 0
    out = done.stdout.split(b"\n")
    assert len(out) == len(lines) + 1
    assert out[0] == out[2]
    assert b"2 of 4 lines had more than 64 tokens and were translated in parts" in done.stderr


def steps_until(process: MT, record: Path, n_lines: int, seconds: float) -> None:
    """Wait until `n_lines` are done, and then `seconds` longer."""
    while process.poll() is None:
        if record.exists() and json.loads(record.read_bytes())["n_lines"] >= n_lines:
            break
        time.sleep(0.001)
    time.sleep(seconds)


@pytest.mark.parametrize(
    ("number", "precision"),
    [
        (signal.SIGKILL, "bf16"),
        (signal.SIGTERM, "fp32"),
        pytest.param(signal.SIGKILL, "fp32", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, "bf16", marks=pytest.mark.slow),
    ],
)
def test_a_killed_and_resumed_translation_writes_the_same_bytes(
    model: Path, tmp_path: Path, number: int, precision: str
) -> None:
    write_lines(tmp_path / "in", toy_text(8 * LINES_AT_A_TIME + 7, 5)[0])
    options = ("--input", tmp_path / "in", "--precision", precision, "--beam-size", "2", "--max-length", "16")
    options = (*options, "--format", "jsonl")
    assert run(model, *options, "--output", tmp_path / "whole").returncode == 0
    again = (*options, "--output", tmp_path / "out", "--resume")
    record, part = tmp_path / "out.part.json", tmp_path / "out.part"
    rng = random.Random(number)
    n_done = 0
    for n_steps in (0, 2, 5):
        n_more = n_steps + 2 - n_done // LINES_AT_A_TIME
        with MT("translate", "--model", model, *again, before=partial(wait_after, n_more)) as process:
            steps_until(process, record, n_steps * LINES_AT_A_TIME, rng.random() * 0.1)
            os.kill(process.pid, number)
            _, errors = process.communicate(timeout=60)
        assert not (tmp_path / "out").exists()
        assert (
            process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number] or n_steps == 0
        )
        n_done = json.loads(record.read_bytes())["n_lines"] if record.exists() else 0
        assert n_done >= n_steps * LINES_AT_A_TIME
        if number != signal.SIGKILL and n_done:
            # A signal may come after lines are written and before they are recorded. All of them are right.
            assert part.read_bytes().count(b"\n") >= n_done
            assert (tmp_path / "whole").read_bytes().startswith(part.read_bytes())
            assert part.read_bytes().endswith(b"\n")
            assert f"the first {n_done:,} lines are in {part}".encode() in errors
    done = run(model, *again)
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "whole"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_interrupts_batches(model: Path, tmp_path: Path, number: int, status: int) -> None:
    part, record = tmp_path / "out.part", tmp_path / "out.part.json"
    write_lines(tmp_path / "in", [""] * LINES_AT_A_TIME + toy_text(LINES_AT_A_TIME, 5)[0])
    endless = ("--batch-sentences", "8", "--min-length", "9999", "--max-length", "10000")
    files = ("--input", tmp_path / "in", "--output", tmp_path / "out", "--no-progress")
    arguments = ("translate", "--model", model, *files, *endless)
    two_more = {"OMP_NUM_THREADS": "2"}  # two more processes
    with MT(*arguments, environment=two_more, before=take_few_lines_at_a_time) as process:
        steps_until(process, record, LINES_AT_A_TIME, 0.3)
        # Ctrl-C reaches all processes of a terminal.
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        _, errors = process.communicate(timeout=60)  # no batch comes to its end in so little time
    told = f"stopped; the first {LINES_AT_A_TIME} lines are in {part}. Run the same command with --resume to continue\n"
    assert (process.returncode, errors.decode()) == (status, told)
    assert part.read_bytes() == b"\n" * LINES_AT_A_TIME


def sampled(model: Path, *options: str, lines: Sequence[str]) -> list[str]:
    text = "".join(line + "\n" for line in lines).encode()
    return run(model, "--sample", "--precision", "fp32", *options, stdin=text).stdout.decode().split("\n")[:-1]


def test_samples_depend_only_on_the_line_and_the_seed(model: Path) -> None:
    lines = toy_text(20, 7)[0]
    drawn = sampled(model, lines=lines)
    assert sampled(model, "--batch-sentences", "3", lines=lines[::-1]) == drawn[::-1]
    assert sampled(model, "--seed", "2", lines=lines) != drawn
    assert len(sampled(model, "--n-best", "3", "--top-k", "5", "--top-p", "0.9", lines=lines)) == 60


def limit_file_size() -> None:
    take_few_lines_at_a_time()
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 10, 8 << 10))


def test_redirected_output_to_a_full_disk_ends_with_a_whole_line(model: Path, tmp_path: Path) -> None:
    """A limit on the size of files simulates the full disk."""
    write_lines(tmp_path / "in", toy_text(400, 8)[0])
    options = ("--input", tmp_path / "in", "--beam-size", "1", "--no-retry")
    whole = run(model, *options).stdout
    done = run(model, *options, before=limit_file_size)
    fix = b"Raise the limit on the size of files (ulimit -f), then run the same command again.\n"
    assert (done.returncode, done.stderr) == (2, b"error: standard output cannot be written: File too large. " + fix)
    assert done.stdout
    assert done.stdout.endswith(b"\n")
    assert whole.startswith(done.stdout)


def test_alignments_come_from_the_attention_of_the_model(model: Path, tmp_path: Path) -> None:
    lines = [*toy_text(5, 9)[0], "", " ".join(toy_text(12, 10)[0])]
    write_lines(tmp_path / "in", lines)
    options = ("--input", tmp_path / "in", "--beam-size", "1", "--max-length", "8", "--alignments", tmp_path / "al")
    texts = run(model, *options).stdout.decode().split("\n")[:-1]
    alignments = (tmp_path / "al").read_text("utf-8").split("\n")[:-1]
    assert len(alignments) == len(texts) == len(lines)
    for line, text, alignment in zip(lines, texts, alignments, strict=True):
        pairs = [tuple(map(int, pair.split("-"))) for pair in alignment.split()]
        assert {j for _, j in pairs} == set(range(len(text.split())))  # each target token is aligned
        assert all(i < len(line.split()) for i, _ in pairs)
    entries = map(json.loads, run(model, *options[:-2], "--align", "--format", "jsonl").stdout.decode().splitlines())
    assert [entry["hypotheses"][0]["alignment"] for entry in entries] == alignments
