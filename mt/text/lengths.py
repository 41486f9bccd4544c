"""Where two files stop being parallel, seen from the lengths of their lines alone.

A sentence and its translation are about equally long, so the logarithm of the ratio of their lengths has a small spread.
Where a line is missing on one side, the lines that follow are paired with strangers until one side is shifted. The most
likely shift of each stretch of lines is found by dynamic programming (Viterbi) over windows, its ends line by line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_WINDOW = 32  # lines for which one shift is assumed while stretches are sought
_NEAR = 3  # shifts about the two ends' that are tried
_MANY = 12  # shifts of the ends up to which all between them are tried
_CHANGE_NATS = 25.0  # by which a path with one more change of the shift must explain the lengths better
_OUTLIERS = 0.05  # share of pairs whose lengths tell nothing
_MIN_SPREAD = 0.03  # of the log ratio; else numbers and copies would prove too much
_SAMPLED_WINDOWS = 1_000  # for the usual ratio and its spread
_BLOCK_LINES = 1 << 16
_SEARCHED_LINES = 20_000  # about a change, in which its line is sought
_SHORTEST_STRETCH = 40  # lines, of those that are told
_DOUBT = 0.5  # power of each pair's likelihood: neighbours are not independent

_LOST = -1_000_000_000  # no shift: what is there is not parallel


class Stretch(NamedTuple):
    """Lines `start` to `stop` (0-based, `stop` is not one of them) of the side with fewer lines."""

    start: int
    stop: int
    shift: int | None  # tgt line i + shift translates src line i; None: no shift near by makes them parallel


def first_break(src_lengths: Sequence[int], tgt_lengths: Sequence[int]) -> int | None:
    """How many lines at the beginning are parallel, where the two sides have different numbers of lines.

    Args:
        src_lengths, tgt_lengths: characters of each line.
    Returns:
        The 0-based line at which something is missing on the shorter side, or is too much on the longer one; the number
        of lines of the shorter side where its end is missing; None where the lengths do not tell.
    """
    lines = _Lines.of(src_lengths, tgt_lengths)
    if lines is None or lines.n_extra == 0:
        return None
    path = _path(lines)
    for i, (_, stop, shift) in enumerate(path):
        after = next((later.shift for later in path[i + 1 :] if later.shift != _LOST), lines.n_extra)
        if shift == 0 and after != 0:
            return _sure_change(lines, path[i], path[i + 1]) if i + 1 < len(path) else None
        assert stop <= len(lines.short)
    return None


def misaligned(src_lengths: Sequence[int], tgt_lengths: Sequence[int]) -> list[Stretch]:
    """Stretches of lines whose lengths match only if one side is shifted, or do not match at all.

    Args:
        src_lengths, tgt_lengths: characters of each line.
    """
    lines = _Lines.of(src_lengths, tgt_lengths)
    if lines is None:
        return []
    sign = 1 if len(tgt_lengths) >= len(src_lengths) else -1
    return [
        Stretch(start, stop, None if shift == _LOST else sign * shift)
        for start, stop, shift in _path(lines)
        if shift != 0 and stop - start >= _SHORTEST_STRETCH
    ]


class _Run(NamedTuple):
    """Lines of the shorter side that have one shift."""

    start: int
    stop: int
    shift: int


@dataclass(frozen=True)
class _Lines:
    """The log lengths of the lines of both sides, and how those of a pair are distributed."""

    short: NDArray[np.float32]
    long: NDArray[np.float32]
    ratio: float  # usual log ratio of a pair
    spread: float  # its standard deviation where they are parallel
    chance_ratio: float  # the same where they are not
    chance_spread: float

    @classmethod
    def of(cls, src_lengths: Sequence[int], tgt_lengths: Sequence[int]) -> _Lines | None:
        """None where the lengths can tell nothing."""
        sides = [np.log1p(np.asarray(lengths, dtype=np.float32)) for lengths in (src_lengths, tgt_lengths)]
        short, long = sorted(sides, key=len)
        if len(short) < 2:
            return None
        chance_spread = math.sqrt(float(short.var(dtype=np.float64)) + float(long.var(dtype=np.float64)))
        chance_ratio = float(long.mean(dtype=np.float64) - short.mean(dtype=np.float64))
        ratio, spread = _usual_ratio(short, long, chance_ratio)
        spread = max(spread, _MIN_SPREAD)
        if chance_spread <= spread:
            return None
        return cls(short, long, ratio, spread, chance_ratio, chance_spread)

    @property
    def n_extra(self) -> int:
        """Lines that the longer side has more: the shift at its end."""
        return len(self.long) - len(self.short)

    def evidence(self, start: int, stop: int, shift: int) -> NDArray[np.float64]:
        """[stop - start]: log likelihood in nats of each line's being parallel with this shift, above that of chance."""
        if shift == _LOST:
            return np.zeros(stop - start)
        evidence = np.full(stop - start, math.log(_OUTLIERS) * _DOUBT)
        first, last = max(start, -shift), min(stop, len(self.long) - shift)
        if first < last:
            ratios = self.long[first + shift : last + shift] - self.short[first:last]
            evidence[first - start : last - start] = self._evidence_of(ratios.astype(np.float64))
        return evidence

    def _evidence_of(self, ratios: NDArray[np.float64]) -> NDArray[np.float64]:
        near = -0.5 * ((ratios - self.ratio) / self.spread) ** 2 - math.log(self.spread)
        chance = -0.5 * ((ratios - self.chance_ratio) / self.chance_spread) ** 2 - math.log(self.chance_spread)
        log_odds: NDArray[np.float64] = np.logaddexp(
            near - chance + math.log(1 - _OUTLIERS), math.log(_OUTLIERS)
        )
        return _DOUBT * log_odds


def _shifts(n_extra: int) -> list[int]:
    """Shifts that are tried: those about 0, about that of the ends, and between them if they are few."""
    between = range(n_extra) if n_extra <= _MANY else ()
    return sorted({*range(-_NEAR, _NEAR + 1), *between, *range(n_extra - _NEAR, n_extra + _NEAR + 1)})


def _usual_ratio(short: NDArray[np.float32], long: NDArray[np.float32], ratio: float) -> tuple[float, float]:
    """Median log ratio of parallel lines and its spread: of windows at the shift that suits each of them best."""
    n_windows = max(1, len(short) // _WINDOW)
    chosen = np.unique(np.linspace(0, n_windows - 1, min(n_windows, _SAMPLED_WINDOWS)).astype(np.int64))
    lines = np.minimum(chosen[:, None] * _WINDOW + np.arange(_WINDOW), len(short) - 1)  # [windows, _WINDOW]
    shifts = np.array(_shifts(len(long) - len(short)))[:, None, None]
    ratios = long[np.clip(lines + shifts, 0, len(long) - 1)] - short[lines]  # [shifts, windows, _WINDOW]
    spread = 0.0
    for _ in range(3):
        deviations = np.abs(ratios - ratio)
        best = deviations.mean(axis=2).argmin(axis=0)
        suited = ratios[best, np.arange(len(chosen))]
        ratio = float(np.median(suited))
        spread = 1.4826 * float(np.median(np.abs(suited - ratio)))  # of a normal distribution, from the median
    return ratio, spread


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
    start, scores = _change_scores(lines, before, after)
    return start + int(scores.argmax())


def _change_scores(lines: _Lines, before: _Run, after: _Run) -> tuple[int, NDArray[np.float64]]:
    """The first line at which the change may be, and for it and those after it how likely it is there, in nats."""
    start = max(before.start, before.stop - _SEARCHED_LINES)
    stop = min(after.stop, before.stop + _SEARCHED_LINES)
    gains = lines.evidence(start, stop, before.shift) - lines.evidence(start, stop, after.shift)
    return start, np.concatenate([[0.0], np.cumsum(gains)])


def _sure_change(lines: _Lines, before: _Run, after: _Run) -> int | None:
    """The line of the change, if it is likely to be there or near by."""
    start, scores = _change_scores(lines, before, after)
    best = int(scores.argmax())
    likelihood = np.exp(scores - scores[best])
    near = min(100, max(2, len(lines.short) // 20))
    is_sure = likelihood[max(0, best - near) : best + near + 1].sum() >= 0.9 * likelihood.sum()
    return start + best if is_sure else None
