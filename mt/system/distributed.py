"""The processes that train together: who they are, how they meet, and how one says that another is lost."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from mt.errors import ConfigError, MTError
from mt.system.signals import sigterm_grace_period

START_TIMEOUT = timedelta(minutes=30)  # of the processes that train together, until all are there
PREPARATION_TIMEOUT = timedelta(days=7)
RANK_0_EXIT_SECONDS = 5.0
GLOO_CLEANUP_SECONDS = 0.1
COLLECTIVE_TIMEOUT = timedelta(hours=2)  # of ranks for rank 0 while it validates and writes


@dataclass(frozen=True)
class Ranks:
    """The processes that train together, one for each device; torchrun starts them and says which is which."""

    rank: int = 0
    n: int = 1
    local_rank: int = 0  # on its machine

    @classmethod
    def from_environment(cls) -> Ranks:
        """Return the ranks that torchrun has set by RANK, WORLD_SIZE and LOCAL_RANK; without them a single process.

        Raises:
            ConfigError: one of them is missing or not a number.
        """
        try:
            n = int(os.environ.get("WORLD_SIZE", "1"))
            if n == 1:
                return cls()
            return cls(int(os.environ["RANK"]), n, int(os.environ["LOCAL_RANK"]))
        except (KeyError, ValueError) as error:
            size, fix = os.environ["WORLD_SIZE"], "start several processes with torchrun, or unset WORLD_SIZE"
            problem = f"WORLD_SIZE is {size}, but RANK or LOCAL_RANK is missing or no number ({error})"
            raise ConfigError("", problem, fix) from error

    @property
    def is_first(self) -> bool:
        """Rank 0 alone prepares, writes, validates and speaks."""
        return self.rank == 0

    def largest(self, number: int) -> int:
        """Return the largest of the numbers that the ranks give."""
        if self.n == 1:
            return number
        tensor = torch.tensor(number)  # on the CPU: the host has to know, and must not wait for a GPU
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
        return int(tensor)

    def smallest(self, number: int) -> int:
        """Return the smallest of the numbers that the ranks give."""
        return -self.largest(-number)

    def summed(self, x: Tensor) -> Tensor:
        """Return the sum of the tensors of all ranks, on the CPU."""
        total = x.cpu()
        if self.n > 1:
            torch.distributed.all_reduce(total)
        return total

    def from_first(self, value: Any) -> Any:
        """Return on every rank what rank 0 gives: numbers, text, and containers of them."""
        values = [value]
        if self.n > 1:
            torch.distributed.broadcast_object_list(values, device=torch.device("cpu"))
        return values[0]


SINGLE_PROCESS = Ranks()


@contextlib.contextmanager
def process_group(ranks: Ranks, prepare: Callable[[], str]) -> Iterator[str]:
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
        store, _, _ = next(rendezvous("env://", timeout=START_TIMEOUT))
        prepared = _prepare_and_publish(store, prepare) if ranks.is_first else _wait_for_rank_0(store, ranks)
        # Numbers that the host needs go over gloo, whatever the device.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(
            backend, store=store, rank=ranks.rank, world_size=ranks.n, timeout=COLLECTIVE_TIMEOUT
        )
        with sigterm_grace_period(ranks.rank):
            yield prepared
    except RuntimeError as error:
        reason = _lost_rank_reason(error)
        if reason is None:
            raise
        fix = "see that rank's message or torchrun's; the same command continues from the last checkpoint"
        raise MTError(f"rank {ranks.rank}", f"lost another rank ({reason})", fix) from error
    finally:
        # gloo's threads let go of the last collective's tensors a moment after it, and need the interpreter for that:
        # one that is ending meanwhile aborts the process.
        time.sleep(GLOO_CLEANUP_SECONDS)
    torch.distributed.destroy_process_group()


def _prepare_and_publish(store: Any, prepare: Callable[[], str]) -> str:
    prepared = ""  # what the others see if it fails
    try:
        prepared = prepare()
    finally:
        store.set("prepared", prepared)
    return prepared


def _wait_for_rank_0(store: Any, ranks: Ranks) -> str:
    store.set_timeout(PREPARATION_TIMEOUT)
    prepared = str(store.get("prepared").decode())
    if not prepared:
        # torchrun ends the others when the first one ends, and rank 0 has a reason to tell.
        time.sleep(RANK_0_EXIT_SECONDS)
        raise MTError(f"rank {ranks.rank}", "rank 0 could not begin", "see its message")
    return prepared


def _lost_rank_reason(error: RuntimeError) -> str | None:
    """Return the reason in a few words of torch's; None if the error has another cause."""
    # gloo raises a plain RuntimeError, with much around what it says.
    found = re.search(r"connection (closed|reset) by peer|broken pipe|timed ?out", str(error), re.IGNORECASE)
    if found:
        return found[0].lower()
    return str(error).partition("\n")[0] if isinstance(error, torch.distributed.DistError) else None
