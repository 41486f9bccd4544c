""".ci/run and scripts/test.sh in a small project: which tests run once more, and which failures fail the run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / ".ci").exists(), reason="not in a checkout")

PASSES = "def test_passes(): pass\n"
FAILS = "def test_fails(): assert 0\n"
FLAKY = """
from pathlib import Path
def test_flaky():
    tried = Path("tried")
    has_failed = tried.exists()
    tried.touch()
    assert has_failed
"""
# A script instead of Python: ruff and mypy fail if the project has a file "ugly".
PYTHON = f"""#!/bin/sh
if [ "$2" != pytest ]; then ! [ -e ugly ]; exit; fi
exec {sys.executable} "$@"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for script in (".ci/run", "scripts/test.sh"):
        (tmp_path / script).parent.mkdir()
        shutil.copy(ROOT / script, tmp_path / script)
    (tmp_path / "scripts/setup.sh").write_text("python=./python")
    null_gpu(tmp_path, "echo 2 passed in 0.10s")
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "test_good.py").write_text(PASSES)
    return tmp_path


def null_gpu(project: Path, script: str) -> None:
    (project / "scripts/null_gpu.sh").write_text(f"#!/bin/sh\n{script}\n")
    (project / "scripts/null_gpu.sh").chmod(0o755)


class Run:
    """A run of .ci/run, without standard input and from another folder."""

    def __init__(self, project: Path) -> None:
        plugins = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "xdist.plugin"}
        command, environment = project / ".ci/run", {**os.environ, **plugins}
        done = subprocess.run(
            command, cwd="/", env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        lines = done.stdout.splitlines()
        self.status = done.returncode
        self.flaky = [line for line in lines if line.startswith("flaky: ")]
        self.last_line = lines[-1] if lines else ""
        self.steps = [line[3:] for line in done.stderr.splitlines() if line.startswith("== ")]


CHECKS = ["ruff format", "ruff check", "mypy", "English"]
FLAKY_LINE = 'flaky: "test_flaky.py::test_flaky" failed, then passed by itself'


def test_tests_that_pass_run_once(project: Path) -> None:
    run = Run(project)
    assert (run.status, run.last_line, run.steps) == (0, "3 passed, 0 failed", [*CHECKS, "pytest"])


def test_a_failed_test_that_then_passes_by_itself_is_flaky(project: Path) -> None:
    (project / "test_flaky.py").write_text(FLAKY)
    # Failures of an earlier run must not count.
    cache = project / ".pytest_cache/v/cache"
    cache.mkdir(parents=True)
    (cache / "lastfailed").write_text(json.dumps({"test_good.py::test_passes": True, "test_gone.py::test": True}))
    run = Run(project)
    assert (run.status, run.flaky, run.last_line) == (0, [FLAKY_LINE], "4 passed, 0 failed")


def test_a_test_that_fails_again_fails_the_run(project: Path) -> None:
    (project / "test_bad.py").write_text(FAILS)
    run = Run(project)
    assert (run.status, run.flaky, run.last_line) == (3, [], "1 passed, 1 failed")
    (project / "test_flaky.py").write_text(FLAKY)
    run = Run(project)
    assert (run.status, run.flaky, run.last_line) == (3, [FLAKY_LINE], "2 passed, 1 failed")


@pytest.mark.parametrize("cause", ["import of_nothing\n", "import os\ndef test_crashes(): os.abort()\n"])
def test_an_import_error_or_a_crash_fails_the_run_like_a_failed_test(project: Path, cause: str) -> None:
    (project / "test_flaky.py").write_text(FLAKY)
    (project / "test_worse.py").write_text(cause)
    run = Run(project)
    assert (run.status, run.flaky, run.last_line) == (3, [FLAKY_LINE], "2 passed, 1 failed")


def test_an_error_that_keeps_pytest_from_starting_fails_the_run_at_once(project: Path) -> None:
    (project / "conftest.py").write_text("import of_nothing\n")
    run = Run(project)
    assert (run.status, run.flaky, run.steps) == (1, [], [*CHECKS, "pytest"])
    assert not run.last_line.endswith(" 0 failed")


def test_a_failed_lint_step_fails_the_run_at_once(project: Path) -> None:
    (project / "ugly").touch()
    run = Run(project)
    assert (run.status, run.last_line, run.steps) == (1, "", ["ruff format"])


def test_a_null_gpu_that_cannot_be_set_up_is_reported_but_does_not_fail_the_run(project: Path) -> None:
    null_gpu(project, "echo error: no null GPU: gcc is not found: install it >&2; exit 77")
    run = Run(project)
    loud = "!!! THE NULL GPU WAS NOT RUN: the CUDA path is not tested, see the error above !!!"
    assert (run.status, run.last_line) == (0, loud)


def test_a_failure_of_the_null_gpu_script_fails_the_run(project: Path) -> None:
    null_gpu(project, "exit 1")
    assert Run(project).status == 1
