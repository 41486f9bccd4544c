"""The counters of the null GPU, for a process that runs on it."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

# Counters of calls that make the host wait for the device, or may do so.
WAITS = ("synchronize", "synchronous_copy", "pageable_copy", "device_to_host", "device_free")


class NullGPU:
    """The preloaded library."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        self._library.null_gpu_counter_name.restype = ctypes.c_char_p
        self._library.null_gpu_counter.restype = ctypes.c_longlong
        self._names: list[str] = []
        for i in count():
            name = self._library.null_gpu_counter_name(i)
            if name is None:
                break
            self._names.append(name.decode())

    @contextmanager
    def counting(self) -> Iterator[dict[str, int]]:
        """Count the calls inside the block, by the names of null_gpu.h. The dict is filled at the end of the block."""
        found: dict[str, int] = {}
        self._library.null_gpu_reset()
        try:
            yield found
        finally:
            found.update((name, self._library.null_gpu_counter(i)) for i, name in enumerate(self._names))

    @contextmanager
    def logging(self, path: Path) -> Iterator[None]:
        """Write a line for each launch, copy and wait inside the block."""
        self._library.null_gpu_log_to(str(path).encode())
        try:
            yield
        finally:
            self._library.null_gpu_log_to(None)


def note(what: str, found: dict[str, int], more: str = "") -> None:
    """Add the counters of a test to the table that scripts/null_gpu.sh prints at the end."""
    row = {"what": what, **found, "more": more}
    if path := os.environ.get("NULL_GPU_TABLE"):
        with Path(path).open("a", encoding="utf-8") as table:
            print(json.dumps(row), file=table)
    print(row)


def waits(found: dict[str, int]) -> dict[str, int]:
    """Return the counters of waits that are not zero."""
    return {name: found[name] for name in WAITS if found[name]}


def _print_table(path: Path) -> None:
    """Print the table of counts, in Markdown."""
    columns = ("kernel", "triton_kernel", "matmul", "device_to_device", "memset", "replay", "collective")
    print(f"\n| what | {' | '.join(columns)} | waits | |\n{'| --- ' * (len(columns) + 3)}|")
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        cells = [row["what"], *(f"{row[name]:,}" for name in columns)]
        cells += [", ".join(f"{n} {name}" for name, n in waits(row).items()) or "none", row["more"]]
        print(f"| {' | '.join(cells)} |")


def _main() -> None:
    if sys.argv[1:]:
        from tests.null_gpu.conftest import environment

        card = {name: value for name, value in os.environ.items() if name.startswith("NULL_GPU_")}
        os.execvpe(sys.argv[1], sys.argv[1:], {**environment(), **card})
    elif Path(os.environ["NULL_GPU_TABLE"]).exists():
        _print_table(Path(os.environ["NULL_GPU_TABLE"]))


if __name__ == "__main__":
    _main()
