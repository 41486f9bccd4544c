"""Where two files stop being parallel, seen from the lengths of their lines alone.

A sentence and its translation are about equally long: the logarithm of the ratio of their lengths has a small spread.
Where a line is missing on one side, the lines that follow are paired with strangers until one side is shifted. The most
likely shift of each stretch of lines is found by dynamic programming (Viterbi) over windows, its ends line by line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Lengths = Sequence[int] | NDArray[np.integer[Any]]  # characters of each line

_WINDOW = 32  # lines for which one shift is assumed while stretches are sought
_NEAR = 3  # shifts about the two ends' that are tried
_MANY = 12  # shifts of the ends up to which all between them are tried
_CHANGE_NATS = 25.0  # by which a path with one more change of the shift must explain the lengths better
_OUTLIERS = 0.05  # share of pairs whose lengths tell nothing
_SPREAD_POWER = -0.3  # of the length, with which the spread of the log ratio falls
_MIN_SPREAD = 0.1  # of the log ratio in lines of one character; else copies would prove too much
_MAX_SPREAD = 1.0  # the same; what is spread more is not parallel
_NEIGHBOURHOOD = 256  # lines among which a line could have got its place by chance
_TELLING = 1.5  # spreads of the log ratio that the lengths of a neighbourhood are spread at least
_SAMPLED_WINDOWS = 1_000  # for the usual ratio and its spread
_BLOCK_LINES = 1 << 16
_SEARCHED_LINES = 20_000  # about a change, in which its line is sought
_SHORTEST_STRETCH = 40  # lines, of those that are told; of those that no shift mends:
_SHORTEST_LOST = 200
_FEWEST_LINES = 20  # that can tell anything
_DOUBT = 0.5  # power of each pair's likelihood: neighbours are not independent

_LOST = -1_000_000_000  # no shift: what is there is not parallel


class Stretch(NamedTuple):
    """Lines `start` to `stop` (0-based, `stop` is not one of them) of the side with fewer lines."""

    start: int
    stop: int
    shift: int | None  # tgt line i + shift translates src line i; None: no shift near by makes them parallel


def first_break(src_lengths: Lengths, tgt_lengths: Lengths) -> int | None:
    """How many lines at the beginning are parallel, where the two sides have different numbers of lines.

    Returns:
        The 0-based line at which something is missing on the shorter side, or is too much on the longer one; the number
        of lines of the shorter side where its end is missing; None where the lengths do not tell.
    """
    lines = _Lines.of(src_lengths, tgt_lengths)
    if lines.n_extra == 0 or len(lines.short) < _FEWEST_LINES:
        return None
    path = _path(lines)
    for i, (_, _, shift) in enumerate(path):
        after = next((later.shift for later in path[i + 1 :] if later.shift != _LOST), lines.n_extra)
        if shift == 0 and after != 0:
            return _sure_change(lines, path[i], path[i + 1]) if i + 1 < len(path) else None
    return None


def misaligned(src_lengths: Lengths, tgt_lengths: Lengths) -> list[Stretch]:
    """Stretches of lines whose lengths match only if one side is shifted, or do not match at all."""
    lines = _Lines.of(src_lengths, tgt_lengths)
    if len(lines.short) < _FEWEST_LINES:
        return []
    sign = 1 if len(tgt_lengths) >= len(src_lengths) else -1
    return [
        Stretch(start, stop, None if shift == _LOST else sign * shift)
        for start, stop, shift in _path(lines)
        if shift != 0 and stop - start >= (_SHORTEST_LOST if shift == _LOST else _SHORTEST_STRETCH)
    ]


class _Run(NamedTuple):
    """Lines of the shorter side that have one shift."""

    start: int
    stop: int
    shift: int


@dataclass(frozen=True)
class _Lines:
    """The log lengths of the lines of both sides, and how they are distributed."""

    short: NDArray[np.float32]
    long: NDArray[np.float32]
    ratio: float  # usual log ratio of the long side's line to the short side's where they are parallel
    spread: float  # its standard deviation in lines of one character
    chance_mean: NDArray[np.float64]  # [neighbourhoods] of the log lengths of the short side
    chance_spread: NDArray[np.float64]  # [neighbourhoods]

    @classmethod
    def of(cls, src_lengths: Lengths, tgt_lengths: Lengths) -> _Lines:
        sides = [np.log1p(np.asarray(lengths, dtype=np.float32)) for lengths in (src_lengths, tgt_lengths)]
        short, long = sorted(sides, key=len)
        if len(short) == 0:
            return cls(short, long, 0.0, 1.0, np.zeros(1), np.zeros(1))
        return cls(short, long, *_usual_ratio(short, long), *_chance(short))

    @property
    def n_extra(self) -> int:
        """Lines that the longer side has more: the shift at its end."""
        return len(self.long) - len(self.short)

    def evidence(self, start: int, stop: int, shift: int) -> NDArray[np.float64]:
        """[stop - start]: nats by which each line is likelier at this shift than by chance."""
        if shift == _LOST:
            return np.zeros(stop - start)
        evidence = np.full(stop - start, math.log(_OUTLIERS) * _DOUBT)
        first, last = max(start, -shift), min(stop, len(self.long) - shift)
        if first < last:
            evidence[first - start : last - start] = self._evidence(first, last, shift)
        return evidence

    def _evidence(self, start: int, stop: int, shift: int) -> NDArray[np.float64]:
        lengths = self.short[start:stop].astype(np.float64)
        expected = self.long[start + shift : stop + shift].astype(np.float64) - self.ratio
        spread = self.spread * np.exp(_SPREAD_POWER * expected)
        neighbourhood = np.minimum(np.arange(start, stop) // _NEIGHBOURHOOD, len(self.chance_mean) - 1)
        chance_mean, chance_spread = self.chance_mean[neighbourhood], self.chance_spread[neighbourhood]
        parallel = -0.5 * ((lengths - expected) / spread) ** 2 - np.log(spread)
        chance = -0.5 * ((lengths - chance_mean) / np.maximum(chance_spread, 1e-9)) ** 2 - np.log(
            np.maximum(chance_spread, 1e-9)
        )
        odds = np.logaddexp(parallel - chance + math.log(1 - _OUTLIERS), math.log(_OUTLIERS))
        # Lines that are all of about one length, such as those of a sorted corpus, cannot tell one shift from another.
        tells = chance_spread >= _TELLING * self.spread * np.exp(_SPREAD_POWER * chance_mean)
        evidence: NDArray[np.float64] = np.where(tells, _DOUBT * odds, 0.0)
        return evidence


def _chance(lengths: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[neighbourhoods]: mean and standard deviation in each neighbourhood; a last one that is not full is not one."""
    starts = np.arange(0, max(1, len(lengths) - _NEIGHBOURHOOD + 1), _NEIGHBOURHOOD)
    sizes = np.diff(starts, append=len(lengths))
    mean = np.add.reduceat(lengths.astype(np.float64), starts) / sizes
    square = np.add.reduceat(lengths.astype(np.float64) ** 2, starts) / sizes
    return mean, np.sqrt(np.maximum(square - mean**2, 0))


def _shifts(n_extra: int) -> list[int]:
    """Shifts that are tried: those about 0, about that of the ends, and between them if they are few."""
    between = range(n_extra) if n_extra <= _MANY else ()
    return sorted({*range(-_NEAR, _NEAR + 1), *between, *range(n_extra - _NEAR, n_extra + _NEAR + 1)})


def _usual_ratio(short: NDArray[np.float32], long: NDArray[np.float32]) -> tuple[float, float]:
    """Median log ratio of parallel lines and its spread: of windows at the shift that suits each of them best."""
    n_windows = max(1, len(short) // _WINDOW)
    chosen = np.unique(np.linspace(0, n_windows - 1, min(n_windows, _SAMPLED_WINDOWS)).astype(np.int64))
    lines = np.minimum(chosen[:, None] * _WINDOW + np.arange(_WINDOW), len(short) - 1)  # [windows, _WINDOW]
    shifts = np.array(_shifts(len(long) - len(short)))[:, None, None]
    partners = long[np.clip(lines + shifts, 0, len(long) - 1)]  # [shifts, windows, _WINDOW]
    ratios = partners - short[lines]
    weights = np.exp(-_SPREAD_POWER * partners)
    ratio, spread = float(np.median(long) - np.median(short)), 0.0
    for _ in range(3):
        deviations = np.abs(ratios - ratio) * weights
        best = deviations.mean(axis=2).argmin(axis=0)
        suited = best, np.arange(len(chosen))
        ratio = float(np.median(ratios[suited]))
        # Of a normal distribution, from the median, which outliers do not move.
        spread = 1.4826 * float(np.median(np.abs(ratios[suited] - ratio) * weights[suited]))
    return ratio, min(max(spread, _MIN_SPREAD), _MAX_SPREAD)


def _path(lines: _Lines) -> list[_Run]:
    """The most likely shift of every line, from 0 before the first to `n_extra` after the last.

    The first run may be empty, and so may the last.
    """
    shifts = [*_shifts(lines.n_extra), _LOST]
    best = _best_of_windows(_window_evidence(lines, shifts), shifts.index(0), shifts.index(lines.n_extra))
    runs = [_Run(0, 0, 0)]
    for window, choice in enumerate(best):
        start, stop = window * _WINDOW, min((window + 1) * _WINDOW, len(lines.short))
        if shifts[choice] == runs[-1].shift:
            runs[-1] = runs[-1]._replace(stop=stop)
        else:
            runs.append(_Run(start, stop, shifts[choice]))
    if runs[-1].shift != lines.n_extra:
        runs.append(_Run(len(lines.short), len(lines.short), lines.n_extra))
    for i in range(len(runs) - 1):
        change = _change(lines, runs[i], runs[i + 1])
        runs[i], runs[i + 1] = runs[i]._replace(stop=change), runs[i + 1]._replace(start=change)
    return runs


def _window_evidence(lines: _Lines, shifts: Sequence[int]) -> NDArray[np.float64]:
    """[windows, shifts], in nats."""
    n = len(lines.short)
    blocks = []
    for start in range(0, n, _BLOCK_LINES):
        stop = min(start + _BLOCK_LINES, n)
        starts = np.arange(0, stop - start, _WINDOW)
        blocks.append(
            np.stack([np.add.reduceat(lines.evidence(start, stop, shift), starts) for shift in shifts], axis=1)
        )
    return np.concatenate(blocks)


def _best_of_windows(evidence: NDArray[np.float64], first: int, last: int) -> list[int]:
    """The shift of each window: Viterbi, each change at the price of _CHANGE_NATS."""
    n_windows, n_shifts = evidence.shape
    came_from = np.empty((n_windows, n_shifts), dtype=np.int16)
    own = np.arange(n_shifts)
    score = np.where(own == first, 0.0, -_CHANGE_NATS)
    for window in range(n_windows):
        top = int(score.argmax())
        changed = score[top] - _CHANGE_NATS
        came_from[window] = np.where(score >= changed, own, top)
        score = np.maximum(score, changed) + evidence[window]
    score = score - np.where(own == last, 0.0, _CHANGE_NATS)
    choice = int(score.argmax())
    path = []
    for window in range(n_windows - 1, -1, -1):
        path.append(choice)
        choice = int(came_from[window, choice])
    return path[::-1]


def _change(lines: _Lines, before: _Run, after: _Run) -> int:
    """The most likely line of the change between two runs."""
    start, nats = _change_scores(lines, before, after)
    return start + int(nats.argmax())


def _change_scores(lines: _Lines, before: _Run, after: _Run) -> tuple[int, NDArray[np.float64]]:
    """The first line at which the change may be; for it and those after it, nats in favour of the change there."""
    start = max(before.start, before.stop - _SEARCHED_LINES)
    stop = min(after.stop, before.stop + _SEARCHED_LINES)
    old, new = lines.evidence(start, stop, before.shift), lines.evidence(start, stop, after.shift)
    return start, new.sum() + np.concatenate([[0.0], np.cumsum(old - new)])


def _sure_change(lines: _Lines, before: _Run, after: _Run) -> int | None:
    """The line of the change, if there is parallel text about it, and it is likely to be there or near by."""
    start, nats = _change_scores(lines, before, after)
    best = int(nats.argmax())
    likelihood = np.exp(nats - nats[best])
    near = min(100, max(2, len(lines.short) // 20))
    is_near = likelihood[max(0, best - near) : best + near + 1].sum() >= 0.9 * likelihood.sum()
    return start + best if is_near and nats[best] >= _CHANGE_NATS else None
