"""The memory allocator of glibc, tuned for tensors on a CPU. Does nothing on other systems."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

HUGE_PAGE = 1 << 21  # bytes


def tune_malloc() -> None:
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


def trim_heap() -> None:
    """Hand free blocks of the heap back to Linux, those between used ones too.

    A validation leaves blocks of other sizes than training needs, and more of them each time. Does nothing where the
    allocator is not glibc's.
    """
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
