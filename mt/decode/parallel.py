"""Batches side by side on the cores of a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(function: Callable[[Item], Result], items: Sequence[Item], n_workers: int) -> Iterator[Result]:
    """The function of each item, in order; so many at a time, each on one core.

    The operators of a search are small: cores that share one of them wait for each other most of the time, and cores
    that work on batches of their own never do.
    """
    if n_workers == 1 or len(items) == 1:
        yield from map(function, items)
        return
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(n_workers)
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(n_threads)
