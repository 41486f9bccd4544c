"""Text that is segmented differently in each epoch: worker processes encode an epoch while the one before is in use.

Imports no torch, so that workers start quickly.
"""

from __future__ import annotations

import functools
import os
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mt.errors import DataError
from mt.system.files import remove_folder, remove_leftovers, whole_folder
from mt.system.workers import Workers
from mt.text.corpus import FlatIds, ParallelIds, write_parallel_ids
from mt.text.subwords import SubwordSampler
from mt.text.tokenizer import Tokenizers

PAIRS_PER_TASK = 20_000
WORKER_NICENESS = 10  # training goes first
LONGEST_WAIT_SECONDS = 3_600.0  # of another rank for rank 0
_NAME = "train"


@dataclass(frozen=True)
class Sampling:
    """The text that is segmented again for each epoch, and how; see `mt.text.subwords`."""

    corpus: Path  # folder of the prepared corpus
    dtype: str  # of its ids
    tokenizers: tuple[Path, ...]
    alpha: float
    seed: int
    max_tokens: int  # pairs with a longer side keep their plain segmentation


class SampledEpochs:
    """The training pairs of each epoch. Epoch 0 has the plain segmentation, so that training starts at once.

    Args:
        plain: the pairs of the prepared corpus.
        folder: where the epochs are written.
        n_workers: processes that encode; None: rank 0 does it, in the same folder.
        n_kept: epochs of this many latest calls stay on the disk, for ranks that are behind and for repeated updates.
    """

    def __init__(
        self, plain: ParallelIds, sampling: Sampling, folder: Path, *, n_workers: int | None, n_kept: int
    ) -> None:
        self._sampling, self._folder = sampling, folder
        self._opened, self._latest = {0: plain}, deque([0], maxlen=n_kept)
        self._written: dict[int, Future[None]] = {}
        self._workers = None if n_workers is None else Workers(n_workers, os.nice, (WORKER_NICENESS,)).__enter__()
        self._thread = ThreadPoolExecutor(1, "epochs ahead")
        if self._workers is not None:
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)

    def pairs(self, epoch: int) -> ParallelIds:
        """Return the pairs of an epoch; encoding of the next one begins.

        Raises:
            WriteError: the disk is full.
        """
        self._latest.append(epoch)
        for wanted in (epoch, epoch + 1):
            if self._workers is not None and wanted and wanted not in {*self._opened, *self._written}:
                self._written[wanted] = self._thread.submit(self._write, wanted)
        if epoch not in self._opened:
            self._wait_for(epoch)
            self._opened[epoch] = ParallelIds.open(self._path(epoch), _NAME, self._sampling.dtype)
            for old in self._opened.keys() - {0, *self._latest}:
                del self._opened[old]
                if self._workers is not None:
                    remove_folder(self._path(old))
        return self._opened[epoch]

    def _path(self, epoch: int) -> Path:
        return self._folder / f"epoch-{epoch}"

    def _wait_for(self, epoch: int) -> None:
        if epoch in self._written:
            self._written.pop(epoch).result()
        ends_at = time.monotonic() + LONGEST_WAIT_SECONDS
        while not self._path(epoch).is_dir():
            if time.monotonic() > ends_at:
                raise DataError(self._path(epoch), "rank 0 did not write it", "see the messages of rank 0")
            time.sleep(0.02)

    def _write(self, epoch: int) -> None:
        assert self._workers is not None
        path, n_pairs = self._path(epoch), len(self._opened[0])
        if path.is_dir():
            return
        starts = range(0, n_pairs, PAIRS_PER_TASK)
        with whole_folder(path) as building:
            tasks = self._workers.map(partial(_sampled, self._sampling, epoch), starts, ahead=2 * self._workers.n + 2)
            write_parallel_ids(building, _NAME, tasks)

    def close(self) -> None:
        """End the workers. Complete epochs stay on the disk, for the next start."""
        if self._workers is not None:
            self._workers.kill()
        self._thread.shutdown(cancel_futures=True)


@functools.cache
def _opened(sampling: Sampling) -> tuple[ParallelIds, list[SubwordSampler]]:
    pairs = ParallelIds.open(sampling.corpus, _NAME, sampling.dtype)
    return pairs, [SubwordSampler(tokenizer, sampling.alpha) for tokenizer in Tokenizers.load(sampling.tokenizers)]


def _sampled(sampling: Sampling, epoch: int, start: int) -> Sequence[FlatIds]:
    """Return the two sides of some pairs, which depend only on the settings, the epoch and the number of the first."""
    pairs, samplers = _opened(sampling)
    part = pairs.part(start, min(start + PAIRS_PER_TASK, len(pairs)))
    plain = [side.flat for side in (part.src, part.tgt)]
    # A digest and not a sum, so that no two tasks have the same seed.
    seeds = np.random.SeedSequence([sampling.seed, epoch, start]).generate_state(2, np.uint64).tolist()
    new = [sampler.sample(*one) for sampler, one in zip(samplers, zip(plain, seeds, strict=True), strict=True)]
    fits = np.maximum(new[0][1], new[1][1]) <= sampling.max_tokens
    return [_chosen(fits, *each) for each in zip(new, plain, strict=True)]


def _chosen(is_new: npt.NDArray[np.bool_], new: FlatIds, plain: FlatIds) -> FlatIds:
    """Return the sentences of `new` where it says so, and the others of `plain`."""
    if is_new.all():
        return new
    parts = zip(*(np.split(ids, np.cumsum(lengths)[:-1]) for ids, lengths in (new, plain)), strict=True)
    ids = [pair[0] if taken else pair[1] for taken, pair in zip(is_new.tolist(), parts, strict=True)]
    return np.concatenate(ids), np.where(is_new, new[1], plain[1])
