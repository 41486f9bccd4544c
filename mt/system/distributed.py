"""Distributed training: the ranks, their process group, and errors when a rank is lost."""

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

START_TIMEOUT = timedelta(minutes=30)  # until all ranks have started
PREPARATION_TIMEOUT = timedelta(days=7)
RANK_0_EXIT_SECONDS = 5.0
GLOO_CLEANUP_SECONDS = 0.1
COLLECTIVE_TIMEOUT = timedelta(hours=2)  # other ranks wait this long for rank 0, which validates and writes


@dataclass(frozen=True)
class Ranks:
    """The processes that train together, one for each device, started and numbered by torchrun."""

    rank: int = 0
    n: int = 1
    local_rank: int = 0  # on its machine

    @classmethod
    def from_environment(cls) -> Ranks:
        """Read torchrun's variables RANK, WORLD_SIZE and LOCAL_RANK; without them, return a single process.

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
            problem = f"WORLD_SIZE is {size}, but RANK or LOCAL_RANK is missing or not a number ({error})"
            raise ConfigError("", problem, fix) from error

    @property
    def is_first(self) -> bool:
        """True on rank 0, the only one that prepares, writes, validates and logs."""
        return self.rank == 0

    def largest(self, number: int) -> int:
        """Return the largest of all ranks' numbers."""
        if self.n == 1:
            return number
        tensor = torch.tensor(number)  # on the CPU, because the host needs it and must not wait for a GPU
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
        return int(tensor)

    def smallest(self, number: int) -> int:
        """Return the smallest of all ranks' numbers."""
        return -self.largest(-number)

    def summed(self, x: Tensor) -> Tensor:
        """Return the sum of all ranks' tensors, on the CPU."""
        total = x.cpu()
        if self.n > 1:
            torch.distributed.all_reduce(total)
        return total

    def from_first(self, value: Any) -> Any:
        """Return rank 0's value on every rank: numbers, text, or containers of these."""
        values = [value]
        if self.n > 1:
            torch.distributed.broadcast_object_list(values, device=torch.device("cpu"))
        return values[0]


SINGLE_PROCESS = Ranks()


@contextlib.contextmanager
def process_group(ranks: Ranks, prepare: Callable[[], str]) -> Iterator[str]:
    """Let rank 0 prepare something, then join all ranks into one process group.

    Args:
        prepare: runs only on rank 0, before the group exists, so that no collective can time out meanwhile.
    Yields:
        The result of `prepare`, on every rank.
    Raises:
        MTError: `prepare` failed on rank 0, or a rank was lost.
    """
    if ranks.n == 1:
        yield prepare()
        return
    from torch.distributed.rendezvous import rendezvous

    try:
        store, _, _ = next(rendezvous("env://", timeout=START_TIMEOUT))
        prepared = _prepare_and_publish(store, prepare) if ranks.is_first else _wait_for_rank_0(store, ranks)
        # Numbers that the host needs are exchanged by gloo, whatever the device.
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
        fix = "see the message of that rank or of torchrun; the same command continues from the last checkpoint"
        raise MTError(f"rank {ranks.rank}", f"lost another rank ({reason})", fix) from error
    finally:
        # gloo's threads release the tensors of the last collective a moment later and need the interpreter for it. If
        # the interpreter is ending at that moment, the process aborts.
        time.sleep(GLOO_CLEANUP_SECONDS)
    torch.distributed.destroy_process_group()


def _prepare_and_publish(store: Any, prepare: Callable[[], str]) -> str:
    prepared = ""  # the value for the other ranks if it fails
    try:
        prepared = prepare()
    finally:
        store.set("prepared", prepared)
    return prepared


def _wait_for_rank_0(store: Any, ranks: Ranks) -> str:
    store.set_timeout(PREPARATION_TIMEOUT)
    prepared = str(store.get("prepared").decode())
    if not prepared:
        # torchrun ends all ranks when one has ended, and rank 0 must have time to print the reason.
        time.sleep(RANK_0_EXIT_SECONDS)
        raise MTError(f"rank {ranks.rank}", "rank 0 could not start", "see its message")
    return prepared


def _lost_rank_reason(error: RuntimeError) -> str | None:
    """Return the reason in a few words from torch's message; None if the error has another cause."""
    # gloo raises a plain RuntimeError with a long message.
    found = re.search(r"connection (closed|reset) by peer|broken pipe|timed ?out", str(error), re.IGNORECASE)
    if found:
        return found[0].lower()
    return str(error).partition("\n")[0] if isinstance(error, torch.distributed.DistError) else None
