"""What a run stands on: device, precision, memory allocator, versions, hardware."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from mt.errors import ConfigError

HUGE_PAGE = 1 << 21  # bytes
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def choose_device(name: str) -> torch.device:
    """The device for `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        ConfigError: CUDA is asked for, and there is none, or no device of that number.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type != "cuda":
        raise ConfigError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    if not torch.cuda.is_available():
        raise ConfigError(f"device: {name} is asked for, but torch {torch.__version__} finds no CUDA device: use cpu")
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise ConfigError(f"device: {name} is asked for, but there are {torch.cuda.device_count()} CUDA devices")
    return device


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type of matrix products: bf16 where the hardware multiplies it natively, unless something else is asked for.

    Raises:
        ConfigError: no such precision, or fp16 on a CPU.
    """
    if precision != "auto":
        if precision not in DTYPES:
            raise ConfigError(f"precision: expected auto, bf16, fp16 or fp32, got {precision!r}")
        if precision == "fp16" and device.type == "cpu":
            raise ConfigError("precision: fp16 needs a GPU; on a CPU use bf16, fp32 or auto")
        return DTYPES[precision]
    if device.type == "cuda":
        # Emulated bf16 (before compute capability 8.0) is slower than fp16.
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    return torch.bfloat16 if _cpu_multiplies_bf16() else torch.float32


@lru_cache(maxsize=1)
def _cpu_multiplies_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def why_not_compile() -> str | None:
    """What Triton lacks on this machine to build its launchers; None where it lacks nothing."""
    if not any(shutil.which(name) for name in (os.environ.get("CC", ""), "cc", "gcc", "clang")):
        return "no C compiler is found"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "Python.h is missing (on Debian and Ubuntu it is in python3-dev)"
    return None


def keep_large_blocks() -> None:
    """Tell glibc to keep freed blocks instead of unmapping them, and Linux to back them with huge pages.

    A training step on the CPU frees and takes the same large tensors again and again; mapped afresh, each of their
    pages faults in once a step, which took a third of the time. Does nothing where the allocator is not glibc's.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        mallopt, malloc, free, madvise = libc.mallopt, libc.malloc, libc.free, libc.madvise
    except (OSError, AttributeError):
        return
    m_trim_threshold, m_mmap_threshold, m_mmap_max, madv_hugepage = -1, -3, -4, 14
    mallopt(m_mmap_threshold, 1 << 30)
    mallopt(m_trim_threshold, -1)
    mallopt(m_mmap_max, 0)
    # The heap grows once, to half of the memory, and is advised as a whole. That takes addresses alone: a page costs
    # memory when it is first written to.
    malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    free.restype, free.argtypes = None, [ctypes.c_void_p]
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    n_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    block = malloc(n_bytes)
    if block:
        first = -(-block // HUGE_PAGE) * HUGE_PAGE
        madvise(first, (block + n_bytes - first) // HUGE_PAGE * HUGE_PAGE, madv_hugepage)
        free(block)


def versions() -> dict[str, str]:
    """Versions of everything that can change a result."""
    import numpy
    import sacrebleu
    import sentencepiece

    from mt import __version__

    return {
        "mt": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "sentencepiece": sentencepiece.__version__,
        "sacrebleu": sacrebleu.__version__,
    }


def hardware(device: torch.device) -> dict[str, Any]:
    """What the run computes on."""
    facts: dict[str, Any] = {"machine": platform.machine(), "system": platform.platform(), "cpu": _cpu_name()}
    facts["threads"] = torch.get_num_threads()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"gpu": properties.name, "gpu_memory_bytes": properties.total_memory, "cuda": torch.version.cuda}
    return facts


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def source_commit() -> str | None:
    """The git commit of the code that runs, with `+changes` where the working tree differs; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
        tracked = subprocess.run(
            ["git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no", "."],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if tracked.strip() else "")
