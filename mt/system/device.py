"""Choice of device and precision; facts about a device, such as its memory and its peak speed."""

from __future__ import annotations

import os
import re
import shutil
import sysconfig
import time
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from mt.errors import ConfigError
from mt.system.console import note
from mt.system.provenance import host_memory_bytes, machine, peak_host_memory_bytes

NVIDIA_DRIVER = Path("/dev/nvidiactl")  # exists if the driver is loaded
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

# Speed of dense matrix products in bf16 or fp16 with sums in fp32, in TFLOP/s, from NVIDIA's data sheets. The first
# entry whose words are all in the device's name applies. Other devices are measured.
DATA_SHEET_TFLOPS = (
    ("B200", 2_250),
    ("H200 NVL", 835),
    ("H200", 989),
    ("H100 NVL", 835),
    ("H100 PCIe", 756),
    ("H100", 989),
    ("A100", 312),
    ("A40", 149.7),
    ("A30", 165),
    ("L40S", 362),
    ("L4", 121),
    ("RTX 4090", 165.2),
    ("RTX 3090", 71),
    ("V100 PCIE", 112),
    ("V100", 125),
    ("T4", 65),
)


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda` or `cuda:N`; a CUDA device always has an index.

    If `auto` cannot use a GPU of this machine, a note on standard error says why.

    Args:
        local_rank: number of this process on its machine; `auto` and `cuda` choose the device with this number.
    Raises:
        ConfigError: CUDA was requested, but torch cannot use it or there is no device with that number.
    """
    if name == "cpu":
        return torch.device("cpu")
    asked = re.fullmatch(r"auto|cuda(?::(\d+))?", name)
    if asked is None:
        raise ConfigError("device", f"expected auto, cpu, cuda or cuda:N, got {name!r}")
    has_cuda = torch.cuda.is_available()
    if has_cuda:
        with warnings.catch_warnings():  # hides many lines of torch about a GPU it has no code for; we print one
            warnings.filterwarnings("ignore", "(?s).*(compute|CUDA) capability")
            current = torch.cuda.current_device()
        index = int(asked[1]) if asked[1] else current if local_rank is None else local_rank
        if index >= (n_devices := torch.cuda.device_count()):
            raise ConfigError("device", f"cuda:{index} was requested, but the last CUDA device is cuda:{n_devices - 1}")
        obstacle = _why_no_code_for(index)
        if obstacle is None:
            if torch.version.hip:
                note("mt is not tested with ROCm; it uses plain attention kernels and compiles nothing")
            return torch.device("cuda", index)
    else:
        obstacle = _why_no_gpu()
    # A single rank must not fall back to the CPU: the others may have a GPU that works.
    if name != "auto" or (has_cuda and local_rank is not None):
        obstacle = obstacle or f"torch {torch.__version__} finds no CUDA device"
        raise ConfigError("device", f"{name} was requested, but {obstacle}", "use cpu")
    if obstacle and not local_rank:
        note(f"running on the CPU: {obstacle}")
    return torch.device("cpu")


def _why_no_gpu() -> str | None:
    """Return the reason why torch cannot use the GPU that this machine seems to have; None if it seems to have none."""
    if torch.backends.mps.is_available():
        return "mt does not support Apple GPUs (MPS)"
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if is_hidden or not (shutil.which("nvidia-smi") or NVIDIA_DRIVER.exists()):
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA (install its CUDA build to use the NVIDIA GPU)"
    return (
        f"torch {torch.__version__} cannot use the NVIDIA GPU (it needs a driver for CUDA {torch.version.cuda}; "
        "nvidia-smi shows which one is installed)"
    )


def _why_no_code_for(index: int) -> str | None:
    """Return a message if torch has no kernels for a GPU; None if it has some or is not built for CUDA."""
    capability, architectures = torch.cuda.get_device_capability(index), torch.cuda.get_arch_list()
    for kind, major, minor in re.findall(r"(sm|compute)_(\d+)(\d)", " ".join(architectures)):
        # Kernels for 8.6 run on 8.6 and later 8.x, intermediate code (compute_86) on all later GPUs.
        built_for = int(major), int(minor)
        if built_for <= capability and (kind == "compute" or built_for[0] == capability[0]):
            return None
    if torch.version.hip:
        return None
    return (
        f"torch {torch.__version__} has no code for {torch.cuda.get_device_name(index)} (compute capability "
        f"{capability[0]}.{capability[1]}; it has {', '.join(architectures)}; another build of torch may have it)"
    )


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the type of matrix products; `auto` is bf16 if the hardware supports it natively.

    Raises:
        ConfigError: the precision is unknown, fp16 on a CPU, or bf16 on a GPU that would emulate it.
    """
    is_cuda = device.type == "cuda"
    has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0) if is_cuda else _cpu_multiplies_bf16()
    if precision == "auto":
        return torch.bfloat16 if has_bf16 else torch.float16 if is_cuda else torch.float32
    if precision not in DTYPES:
        raise ConfigError("precision", f"expected auto, bf16, fp16 or fp32, got {precision!r}")
    if precision == "fp16" and not is_cuda:
        raise ConfigError("precision", "fp16 needs a GPU", "on a CPU use bf16, fp32 or auto")
    if precision == "bf16" and is_cuda and not has_bf16:
        raise ConfigError("precision", "bf16 needs a GPU of compute capability 8.0", "use fp16, fp32 or auto")
    return DTYPES[precision]


@lru_cache(maxsize=1)
def _cpu_multiplies_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def compile_blocker() -> str | None:
    """Return what is missing on this machine for Triton to build its launchers; None if nothing is."""
    if not any(shutil.which(name) for name in (os.environ.get("CC", ""), "cc", "gcc", "clang")):
        return "no C compiler was found"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "Python.h is missing (on Debian and Ubuntu it is in python3-dev)"
    return None


def memory_bytes(device: torch.device) -> int:
    """Return the total memory of a device; for the CPU, the memory that this process may use."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return host_memory_bytes()


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the peak FLOP/s of matrix products on a device, from its data sheet if known, otherwise measured."""
    return data_sheet_flops(device, dtype) or _measured_flops(device, dtype, torch.get_float32_matmul_precision())


def data_sheet_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the peak FLOP/s from the data sheet; None for a CPU, for fp32, and for devices that are not listed."""
    if device.type != "cuda" or dtype == torch.float32:
        return None
    if dtype == torch.bfloat16 and torch.cuda.get_device_capability(device) < (8, 0):  # emulated there
        return None
    words = set(torch.cuda.get_device_name(device).replace("-", " ").split())
    if words & {"MIG", "Laptop", "Max", "Ti", "D"}:  # a part or a variant of a listed device
        return None
    return next((tflops * 1e12 for name, tflops in DATA_SHEET_TFLOPS if set(name.split()) <= words), None)


@lru_cache
def _measured_flops(device: torch.device, dtype: torch.dtype, _float32_precision: str) -> float:
    """Return the FLOP/s of the fastest of several square matrix products, whose size grows while they are quick."""
    fastest, seconds, n = 0.0, 0.0, 512
    while n <= 4_096 and 40 * seconds < 0.1:  # 40 = five products of twice the size
        a = torch.randn(n, n, device=device).to(dtype)
        torch.mm(a, a).sum().item()  # loads the library and waits for it
        for _ in range(5):
            started_at = time.perf_counter()
            torch.mm(a, a)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds = time.perf_counter() - started_at
            fastest = max(fastest, 2 * n**3 / seconds)
        n *= 2
    return fastest


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory of this process: on CUDA since the last reset, on the CPU its largest resident set."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_host_memory_bytes()


def hardware(device: torch.device) -> dict[str, Any]:
    """Return facts about the computer and the device that a run uses."""
    facts: dict[str, Any] = {**machine(), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"gpu": properties.name, "gpu_memory_bytes": properties.total_memory, "cuda": torch.version.cuda}
    return facts
