"""What a run stands on: device, precision, memory allocator, versions, hardware."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from mt.errors import ConfigError, MTError

LONGEST_START = timedelta(minutes=30)  # of the processes that train together, until all are there
LONGEST_PREPARATION = timedelta(days=7)
RANK_0_SECONDS = 5.0
LAST_WORDS_SECONDS = 5.0
STUCK_SECONDS = 25.0  # after SIGTERM; torchrun kills what is left 30 s after it
GLOO_SECONDS = 0.1
LONGEST_WAIT = timedelta(hours=2)  # of ranks for rank 0 while it validates and writes
HUGE_PAGE = 1 << 21  # bytes
NVIDIA_DRIVER = Path("/dev/nvidiactl")  # is there where the driver is loaded
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

# Dense matrix products in bf16 or fp16 with sums in fp32, in TFLOP/s, as NVIDIA's data sheets have them; the first
# whose words are all in the name of the device. A device that is not here is measured.
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


@dataclass(frozen=True)
class Ranks:
    """The processes that train together, one for each device; torchrun starts them and says which is which."""

    rank: int = 0
    n: int = 1
    local_rank: int = 0  # on its machine

    @classmethod
    def from_environment(cls) -> Ranks:
        """As torchrun has set RANK, WORLD_SIZE and LOCAL_RANK; without them one process alone.

        Raises:
            ConfigError: one of them is missing or no number.
        """
        try:
            n = int(os.environ.get("WORLD_SIZE", "1"))
            if n == 1:
                return cls()
            return cls(int(os.environ["RANK"]), n, int(os.environ["LOCAL_RANK"]))
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but RANK or LOCAL_RANK is missing or no number ({error}): "
                "start several processes with torchrun, or unset WORLD_SIZE"
            ) from error

    @property
    def is_first(self) -> bool:
        """Rank 0 alone prepares, writes, validates and speaks."""
        return self.rank == 0

    def largest(self, number: int) -> int:
        """The largest of the numbers that the ranks give."""
        return self._reduced(number, torch.distributed.ReduceOp.MAX) if self.n > 1 else number

    def smallest(self, number: int) -> int:
        """The smallest of the numbers that the ranks give."""
        return self._reduced(number, torch.distributed.ReduceOp.MIN) if self.n > 1 else number

    def summed(self, x: Tensor) -> Tensor:
        """The sum of the tensors of all ranks, on the CPU."""
        total = x.cpu()
        if self.n > 1:
            torch.distributed.all_reduce(total)
        return total

    def from_first(self, value: Any) -> Any:
        """What rank 0 gives, on every rank: numbers, text, and containers of them."""
        values = [value]
        if self.n > 1:
            torch.distributed.broadcast_object_list(values, device=torch.device("cpu"))
        return values[0]

    @staticmethod
    def _reduced(number: int, operation: Any) -> int:
        # On the CPU: the host has to know, and must not wait for a GPU.
        tensor = torch.tensor(number)
        torch.distributed.all_reduce(tensor, operation)
        return int(tensor)


ALONE = Ranks()


@contextlib.contextmanager
def joined(ranks: Ranks, prepare: Callable[[], str]) -> Iterator[str]:
    """Let rank 0 prepare something, then join all ranks into one process group.

    Args:
        prepare: runs on rank 0 alone, before the group exists, so that it may take as long as it likes.
    Yields:
        What `prepare` gave, on every rank.
    Raises:
        MTError: rank 0 could not prepare, or a rank was lost.
    """
    if ranks.n == 1:
        yield prepare()
        return
    from torch.distributed.rendezvous import rendezvous

    try:
        store, _, _ = next(rendezvous("env://", timeout=LONGEST_START))
        prepared = _announced(store, prepare) if ranks.is_first else _awaited(store, ranks)
        # Numbers that the host needs go over gloo, whatever the device.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(
            backend, store=store, rank=ranks.rank, world_size=ranks.n, timeout=LONGEST_WAIT
        )
        with time_for_last_words(ranks.rank):
            yield prepared
    except RuntimeError as error:
        reason = _why_a_rank_is_lost(error)
        if reason is None:
            raise
        raise MTError(
            f"rank {ranks.rank}: lost another rank ({reason}): see that rank's message or torchrun's; the same command "
            "goes on from the last checkpoint"
        ) from error
    finally:
        # gloo's threads let go of the last collective's tensors a moment after it, and need the interpreter for that:
        # one that is ending meanwhile aborts the process.
        time.sleep(GLOO_SECONDS)
    torch.distributed.destroy_process_group()


@contextlib.contextmanager
def time_for_last_words(rank: int) -> Iterator[None]:
    """SIGTERM ends the process in a few seconds only, and after an error in here it still does.

    torchrun sends it when another rank is lost. This one finds that out in the same moment, or in the next exchange,
    and has to say so. An exchange may also never end: then it is told what may be the reason, before torchrun kills.
    """

    def end_soon(number: int, _frame: FrameType | None) -> None:
        timer = threading.Timer(LAST_WORDS_SECONDS, os._exit, (128 + number,))
        timer.daemon = True
        timer.start()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    is_over = threading.Event()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    threading.Thread(target=_tell_if_stuck, args=(reading, rank, is_over), daemon=True).start()
    before = signal.signal(signal.SIGTERM, end_soon)
    # A handler runs between two instructions of Python, and there may be no next one; the pipe gets the number at once.
    fd_before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    yield
    signal.set_wakeup_fd(fd_before)
    signal.signal(signal.SIGTERM, before)
    is_over.set()
    os.close(writing)


def _tell_if_stuck(reading: int, rank: int, is_over: threading.Event) -> None:
    while number := os.read(reading, 1):
        if number[0] == signal.SIGTERM and "TORCHELASTIC_RUN_ID" in os.environ and not is_over.wait(STUCK_SECONDS):
            message = (
                f"error: rank {rank}: not at an end {STUCK_SECONDS:g} s after SIGTERM: another rank was lost, or a "
                "step or a save takes that long: see torchrun's message; the same command goes on from the last "
                "checkpoint\n"
            )
            os.write(2, message.encode())
            os._exit(2)
    os.close(reading)


def _announced(store: Any, prepare: Callable[[], str]) -> str:
    prepared = ""  # what the others see if it fails
    try:
        prepared = prepare()
    finally:
        store.set("prepared", prepared)
    return prepared


def _awaited(store: Any, ranks: Ranks) -> str:
    store.set_timeout(LONGEST_PREPARATION)
    prepared = str(store.get("prepared").decode())
    if not prepared:
        time.sleep(RANK_0_SECONDS)  # torchrun ends the others when the first one ends, and rank 0 has a reason to tell
        raise MTError(f"rank {ranks.rank}: rank 0 could not begin: see its message")
    return prepared


def _why_a_rank_is_lost(error: RuntimeError) -> str | None:
    """In a few words of torch's; None where the error is another one."""
    # gloo raises a plain RuntimeError, with much around what it says.
    found = re.search(r"connection (closed|reset) by peer|broken pipe|timed ?out", str(error), re.IGNORECASE)
    if found:
        return found[0].lower()
    return str(error).partition("\n")[0] if isinstance(error, torch.distributed.DistError) else None


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda` or `cuda:N`; a CUDA device always has its index.

    Where `auto` cannot use a GPU of this machine, a note on standard error says why.

    Args:
        local_rank: number of this process on its machine; `auto` and `cuda` take the device of this number.
    Raises:
        ConfigError: CUDA is asked for, and this torch cannot use it, or has no device of that number.
    """
    if name == "cpu":
        return torch.device("cpu")
    asked = re.fullmatch(r"auto|cuda(?::(\d+))?", name)
    if asked is None:
        raise ConfigError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    has_cuda = torch.cuda.is_available()
    if has_cuda:
        with warnings.catch_warnings():  # torch's many lines on a card that it has no code for: we say it in one
            warnings.filterwarnings("ignore", "(?s).*(compute|CUDA) capability")
            current = torch.cuda.current_device()
        index = int(asked[1]) if asked[1] else current if local_rank is None else local_rank
        if index >= (n_devices := torch.cuda.device_count()):
            raise ConfigError(f"device: cuda:{index} is asked for, but the last CUDA device is cuda:{n_devices - 1}")
        obstacle = _why_no_code_for(index)
        if obstacle is None:
            if torch.version.hip:
                note("ROCm is not tested with mt: attention is written out, and nothing is compiled")
            return torch.device("cuda", index)
    else:
        obstacle = _why_no_gpu()
    # Ranks must not choose for themselves: the others may have a card that works.
    if name != "auto" or (has_cuda and local_rank is not None):
        obstacle = obstacle or f"torch {torch.__version__} finds no CUDA device"
        raise ConfigError(f"device: {name} is asked for, but {obstacle}: use cpu")
    if obstacle and not local_rank:
        note(f"running on the CPU: {obstacle}")
    return torch.device("cpu")


def _why_no_gpu() -> str | None:
    """Say what keeps torch from the GPU that this machine seems to have; None where it seems to have none."""
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
    """Say which card this torch has no kernels for; None where it has some, or is not built for CUDA."""
    capability, architectures = torch.cuda.get_device_capability(index), torch.cuda.get_arch_list()
    for kind, major, minor in re.findall(r"(sm|compute)_(\d+)(\d)", " ".join(architectures)):
        # Kernels for 8.6 run on 8.6 and later 8.x, intermediate code (compute_86) on all later cards.
        built_for = int(major), int(minor)
        if built_for <= capability and (kind == "compute" or built_for[0] == capability[0]):
            return None
    if torch.version.hip:
        return None
    return (
        f"torch {torch.__version__} has no code for {torch.cuda.get_device_name(index)} (compute capability "
        f"{capability[0]}.{capability[1]}; it has {', '.join(architectures)}; another build of torch may have it)"
    )


@lru_cache
def note(text: str) -> None:
    """Tell the user something on standard error, once for each text."""
    print(f"note: {text}", file=sys.stderr, flush=True)


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type of matrix products: bf16 where the hardware multiplies it natively, unless something else is asked for.

    Raises:
        ConfigError: no such precision, fp16 on a CPU, or bf16 on a GPU that has to emulate it.
    """
    has_bf16 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    if precision != "auto":
        if precision not in DTYPES:
            raise ConfigError(f"precision: expected auto, bf16, fp16 or fp32, got {precision!r}")
        if precision == "fp16" and device.type == "cpu":
            raise ConfigError("precision: fp16 needs a GPU; on a CPU use bf16, fp32 or auto")
        if precision == "bf16" and device.type == "cuda" and not has_bf16:
            raise ConfigError("precision: bf16 needs a GPU of compute capability 8.0; use fp16, fp32 or auto")
        return DTYPES[precision]
    if device.type == "cuda":
        return torch.bfloat16 if has_bf16 else torch.float16
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


def memory_bytes(device: torch.device) -> int:
    """All memory of a device; of the CPU what this process may use of it."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = [sys.maxsize]
    with contextlib.suppress(AttributeError, ValueError, OSError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(ValueError, OSError):  # "max" where there is no limit
            limits.append(int(Path(path).read_text(encoding="ascii")))
    return min(limits)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s that matrix products can reach on a device: of its data sheet if that is known, else measured."""
    return data_sheet_flops(device, dtype) or _measured_flops(device, dtype, torch.get_float32_matmul_precision())


def data_sheet_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s of the data sheet; None for a CPU, for fp32, and for devices that DATA_SHEET_TFLOPS does not have."""
    if device.type != "cuda" or dtype == torch.float32:
        return None
    if dtype == torch.bfloat16 and torch.cuda.get_device_capability(device) < (8, 0):  # emulated there
        return None
    words = set(torch.cuda.get_device_name(device).replace("-", " ").split())
    if words & {"MIG", "Laptop", "Max", "Ti", "D"}:  # a part of a device, or a relative of it
        return None
    return next((tflops * 1e12 for name, tflops in DATA_SHEET_TFLOPS if set(name.split()) <= words), None)


@lru_cache
def _measured_flops(device: torch.device, dtype: torch.dtype, _float32_precision: str) -> float:
    """The fastest of some square products, larger and larger ones while that takes no time to speak of."""
    fastest, seconds, n = 0.0, 0.0, 512
    while n <= 4_096 and 40 * seconds < 0.1:  # five products of the size after it
        a = torch.randn(n, n, device=device).to(dtype)
        torch.mm(a, a).sum().item()  # brings up the library, and waits
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
    """The most memory that this process has held: on CUDA since the count was reset, else its resident set so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


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
    m_trim_threshold, m_mmap_threshold, m_mmap_max, m_arena_max, madv_hugepage = -1, -3, -4, -8, 14
    mallopt(m_arena_max, 1)  # threads take from the same heap: what one of them frees the next one gets
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


def give_back_free_memory() -> None:
    """Hand free blocks of the heap back to Linux, those between used ones too.

    A validation leaves blocks of other sizes than training needs, and more of them each time. Does nothing where the
    allocator is not glibc's.
    """
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


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
