"""Tuning of glibc's memory allocator for tensors on a CPU; no effect on other systems."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

HUGE_PAGE = 1 << 21  # bytes


def tune_malloc() -> None:
    """Make glibc keep freed blocks instead of unmapping them, and Linux back them with huge pages.

    Training steps on the CPU free and allocate the same large tensors again and again. With newly mapped memory, each
    of their pages causes a page fault in every step, which took a third of the time. Without glibc, do nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        mallopt, malloc, free, madvise = libc.mallopt, libc.malloc, libc.free, libc.madvise
    except (OSError, AttributeError):
        return
    m_trim_threshold, m_mmap_threshold, m_mmap_max, m_arena_max, madv_hugepage = -1, -3, -4, -8, 14
    mallopt(m_arena_max, 1)  # threads share one heap, so each can reuse memory that another one freed
    mallopt(m_mmap_threshold, 1 << 30)
    mallopt(m_trim_threshold, -1)
    mallopt(m_mmap_max, 0)
    # Grow the heap once, to half of the memory, and advise all of it. This takes only addresses: a page takes memory
    # when it is first written.
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
    """Return free blocks of the heap to Linux, also those between used blocks.

    Each validation leaves more blocks of other sizes than training needs. Without glibc, do nothing.
    """
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
