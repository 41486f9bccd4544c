"""Run each test marked `null_gpu` in its own process, on a null GPU, with limits on time and memory.

`@pytest.mark.null_gpu(capability=75, gib=15.6, n_devices=2)` describes the card; see README.md.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

FOLDER = "NULL_GPU_FOLDER"  # where scripts/null_gpu.sh has built the libraries
IS_INSIDE = "NULL_GPU_IS_INSIDE"
MOST_BYTES = 9 * 2**30  # of all processes of a test; compiling a base model of 6 + 6 layers takes 5 GiB
MOST_SECONDS = 900.0  # ends a test that hangs
ROOT = Path(__file__).parents[2]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run the test in another process. In that process, let pytest call it."""
    mark = pyfuncitem.get_closest_marker("null_gpu")
    if mark is None or IS_INSIDE in os.environ:
        return None
    if FOLDER not in os.environ:
        pytest.skip("run it with scripts/null_gpu.sh")
    _run(pyfuncitem.nodeid, **mark.kwargs)
    return True


def _run(test: str, **card: Any) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-s", "-m", "null_gpu"]
    command += ["--tb=short", "--show-capture=no", test]
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        started_at = time.monotonic()
        process = subprocess.Popen(command, cwd=ROOT, env=environment(**card), stdout=output, stderr=output)
        problem = None
        try:
            while problem is None and process.poll() is None:
                time.sleep(0.1)
                if time.monotonic() - started_at > MOST_SECONDS:
                    problem = f"took more than {MOST_SECONDS:g} s"
                elif sum(_family(process.pid).values()) > MOST_BYTES:
                    problem = f"took more than {MOST_BYTES / 2**30:g} GiB of memory"
        finally:
            if process.poll() is None:
                for one in _family(process.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(one, signal.SIGKILL)
                process.wait()
        output.seek(0)
        if problem or process.returncode:
            pytest.fail(
                f"{problem or f'ended with status {process.returncode}'}\n{output.read()[-6_000:]}", pytrace=False
            )


def environment(
    *, capability: int = 90, gib: float = 79.1, n_devices: int = 1, name: str = "NVIDIA H100"
) -> dict[str, str]:
    """Return the environment variables for a process with a null GPU."""
    folder = os.environ[FOLDER]
    inherited = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return {
        **inherited,
        IS_INSIDE: "1",
        "NULL_GPU_CAPABILITY": str(capability),
        "NULL_GPU_GIB": str(gib),
        "NULL_GPU_DEVICES": str(n_devices),
        "NULL_GPU_NAME": name,
        "LD_PRELOAD": f"{folder}/libnullgpu.so",
        "LD_LIBRARY_PATH": f"{folder}:{os.environ.get('LD_LIBRARY_PATH', '')}",
        "TRITON_LIBCUDA_PATH": folder,
        "TRITON_CACHE_DIR": f"{folder}/triton",
        "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }


def _family(process: int) -> dict[int, int]:
    """Return process id → resident bytes, of a process and all its descendants in any session."""
    parents, n_bytes = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()  # the name, in brackets, may contain spaces
        except OSError:  # it has ended meanwhile
            continue
        one = int(path.parent.name)
        parents[one], n_bytes[one] = int(fields[1]), int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    family, generation = {process}, {process}
    while generation:
        generation = {one for one, parent in parents.items() if parent in generation}
        family |= generation
    return {one: n_bytes[one] for one in family if one in n_bytes}
