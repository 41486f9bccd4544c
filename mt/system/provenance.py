"""Facts that a result depends on besides text and settings: versions, the commit, the machine. Imports no torch."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "numpy", "sentencepiece", "sacrebleu")


def versions() -> dict[str, str]:
    """Return the versions of all packages that can change a trained model or a score."""
    from mt import __version__

    return {"mt": __version__, **package_versions(*_PACKAGES)}


def package_versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of the packages, `not installed` for missing ones."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def source_commit() -> str | None:
    """Return the git commit of the running code, with `+changes` if files differ from it; None outside a checkout."""
    try:
        commit = _git("rev-parse", "HEAD")
        changes = _git("status", "--porcelain", "--untracked-files=no", ".")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changes else "")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent.parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()


def machine() -> dict[str, Any]:
    """Return facts about the computer."""
    return {"machine": platform.machine(), "system": platform.platform(), "cpu": _cpu_name()}


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def n_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def host_memory_bytes() -> int:
    """Return the memory that this process may use."""
    limits = [sys.maxsize]
    with contextlib.suppress(AttributeError, ValueError, OSError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(ValueError, OSError):  # the file says "max" if there is no limit
            limits.append(int(Path(path).read_text(encoding="ascii")))
    return min(limits)


def peak_host_memory_bytes(n_workers: int = 0) -> int:
    """Return the largest resident set of this process so far; 0 if the system does not report it.

    Args:
        n_workers: the number of worker processes to add, each as large as the largest one that has ended.
    """
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    own, largest_worker = (
        resource.getrusage(who).ru_maxrss * unit for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return int(own + n_workers * largest_worker)
