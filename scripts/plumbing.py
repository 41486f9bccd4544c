"""Functions that the scripts in this folder share: commands of mt, tables, messages."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that mt is imported from this checkout


class CommandFailed(Exception):
    """A command of mt ended with an error. The message names the command and quotes the last line that it printed."""


def run_mt(*arguments: str) -> str:
    """Run a command of mt and return its standard output. Print its standard error when it has ended."""
    python_path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "mt", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": python_path},
    )
    say(done.stderr)
    if done.returncode:
        told = [line for line in done.stderr.splitlines() if line.strip()] or ["nothing on standard error"]
        raise CommandFailed(f"mt {arguments[0]} ended with status {done.returncode}: {told[-1]}")
    return done.stdout


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def refuse(problem: str) -> int:
    """Print what the user must correct, and return the exit status."""
    say(f"error: {problem}")
    return 2
