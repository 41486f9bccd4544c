"""Search for the line at which two files stop being parallel, based only on the lengths of their lines.

A sentence and its translation have similar lengths: the logarithm of the ratio of their lengths has a small spread.
After a line that is missing on one side, the following lines are paired with unrelated ones unless the other side is
shifted. For each line, take the log likelihood without a shift minus that with the best shift. The cumulative sum of
these differences (CUSUM) is highest where the sides stop being parallel. Source: Page 1954, Continuous Inspection
Schemes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Lengths = Sequence[int] | NDArray[np.integer[Any]]  # characters of each line
_Numbers = NDArray[np.float64]

_WINDOW = 32  # lines that are assumed to have the same shift in the coarse search
_NEAR_WINDOWS = 3  # the break must be likely to be within this many windows of the best one
_SEARCHED_WINDOWS = 8  # before and after the break, in which its line and its shift are searched
_NEAR_SHIFTS = 3  # shifts are tried up to this distance from the shift at the start (0) and at the end
_MANY_SHIFTS = 12  # up to this shift at the end, all shifts between start and end are tried as well
_FEWEST_NATS = 25.0  # by which parallel text around the break must be likelier than chance
_CHANGE_NATS = 5.0  # by which the lines after the break must be likelier with their shift than without
_OUTLIERS = 0.05  # fraction of pairs whose lengths are unrelated
_DOUBT = 0.5  # power of each pair's likelihood, because neighbouring pairs are not independent
_SPREAD_POWER = -0.3  # the spread of the log ratio falls with this power of the length
_SPREADS = 0.1, 1.0  # limits of the spread for lines of one character; copies have none, and would be overrated
_NEIGHBOURHOOD = 256  # lines around a line, from which the distribution of lengths by chance is estimated
_TELLING = 1.5  # the lengths in a neighbourhood must vary by at least this many spreads of the log ratio
_SAMPLED_WINDOWS = 1_000  # from which the usual ratio and its spread are estimated
_FEWEST_LINES = 20  # fewer lines are not enough to decide


class Break(NamedTuple):
    """The place at which two sides stop being parallel."""

    line: int  # 0-based line of the shorter side; its number of lines if all of them match
    shift: int  # from this line on, line i of the shorter side belongs to line i + shift of the longer one


def first_break(src_lengths: Lengths, tgt_lengths: Lengths) -> Break | None:
    """Find the first line that is missing on one side or extra on the other.

    If both sides have the same number of lines, the source counts as the shorter one.

    Returns:
        None if the lengths do not show it.
    """
    sides = (np.log1p(np.asarray(lengths, dtype=np.float64)) for lengths in (src_lengths, tgt_lengths))
    short, long = sorted(sides, key=len)
    n, n_extra = len(short), len(long) - len(short)
    if n < _FEWEST_LINES:
        return None
    near = range(-_NEAR_SHIFTS, _NEAR_SHIFTS + 1)
    between = range(n_extra) if n_extra <= _MANY_SHIFTS else ()
    shifts = sorted({*near, *between, *(n_extra + shift for shift in near)} - {0})
    usual, chance = _usual_ratio(short, long, [0, *shifts]), _chance(short)

    def evidence(shift: int) -> _Numbers:
        return _evidence(short, long, shift, usual, chance)

    starts = np.arange(0, n, _WINDOW)
    aligned, *shifted = (np.add.reduceat(evidence(shift), starts) for shift in (0, *shifts))
    window, is_window_sure = _highest(aligned - np.max(shifted, axis=0), _NEAR_WINDOWS)
    searched = range(max(0, window - _SEARCHED_WINDOWS), window + _SEARCHED_WINDOWS)
    after = [nats[window : searched.stop].sum() for nats in shifted]
    shift = shifts[int(np.argmax(after))] if window < len(starts) else n_extra or shifts[0]

    unshifted, shifted_lines = evidence(0), evidence(shift)
    start, stop = searched.start * _WINDOW, searched.stop * _WINDOW
    line, is_line_sure = _highest((unshifted - shifted_lines)[start:stop], min(100, max(2, n // 20)))
    line += start
    if np.cumsum((shifted_lines - unshifted)[line:]).max(initial=0.0) < _CHANGE_NATS:
        line = n
    around = (np.cumsum(nats).max(initial=0.0) for nats in (unshifted[:line][::-1], shifted_lines[line:]))
    is_parallel = sum(around) >= _FEWEST_NATS
    return Break(line, shift) if is_window_sure and is_line_sure and is_parallel else None


def _highest(nats: _Numbers, near: int) -> tuple[int, bool]:
    """Return the n whose first n numbers have the largest sum, and whether the true n is likely to be near it."""
    sums = np.concatenate([[0.0], np.cumsum(nats)])
    best, likelihood = int(sums.argmax()), np.exp(sums - sums.max())
    return best, bool(likelihood[max(0, best - near) : best + near + 1].sum() >= 0.9 * likelihood.sum())


def _evidence(
    short: _Numbers, long: _Numbers, shift: int, usual: tuple[float, float], chance: tuple[_Numbers, _Numbers]
) -> _Numbers:
    """Return [n]: for each line, the nats by which it is likelier at this shift than by chance."""
    (ratio, spread), (mean, deviation) = usual, chance
    lines = np.arange(len(short)) + shift
    expected = long[lines.clip(0, len(long) - 1)] - ratio
    spreads = spread * np.exp(_SPREAD_POWER * expected)
    odds = ((short - mean) / deviation) ** 2 / 2 - ((short - expected) / spreads) ** 2 / 2 + np.log(deviation / spreads)
    nats: _Numbers = _DOUBT * np.logaddexp(odds + math.log(1 - _OUTLIERS), math.log(_OUTLIERS))
    nats[(lines < 0) | (lines >= len(long))] = _DOUBT * math.log(_OUTLIERS)
    # Lines that all have about the same length, such as those of a sorted corpus, do not distinguish shifts.
    nats[deviation < _TELLING * spread * np.exp(_SPREAD_POWER * mean)] = 0
    return nats


def _chance(lengths: _Numbers) -> tuple[_Numbers, _Numbers]:
    """Return [n] each: the mean and the standard deviation of each line's neighbourhood.

    The last neighbourhood takes the remaining lines and is larger than the others.
    """
    starts = np.arange(0, max(1, len(lengths) - _NEIGHBOURHOOD + 1), _NEIGHBOURHOOD)
    sizes = np.diff(starts, append=len(lengths))
    mean, square = (np.add.reduceat(x, starts) / sizes for x in (lengths, lengths**2))
    return np.repeat(mean, sizes), np.repeat(np.sqrt(np.maximum(square - mean**2, 1e-18)), sizes)


def _usual_ratio(short: _Numbers, long: _Numbers, shifts: Sequence[int]) -> tuple[float, float]:
    """Return the median log ratio of parallel lines and its spread, from windows at their best shift."""
    chosen = np.unique(np.linspace(0, len(short) // _WINDOW, _SAMPLED_WINDOWS).astype(np.int64))
    lines = np.minimum(chosen[:, None] * _WINDOW + np.arange(_WINDOW), len(short) - 1)  # [windows, _WINDOW]
    partners = long[(lines + np.array(shifts)[:, None, None]).clip(0, len(long) - 1)]  # [shifts, windows, _WINDOW]
    ratios, weights = partners - short[lines], np.exp(-_SPREAD_POWER * partners)
    ratio, spread = float(np.median(long) - np.median(short)), 0.0
    for _ in range(3):
        best = (np.abs(ratios - ratio) * weights).mean(axis=2).argmin(axis=0), np.arange(len(chosen))
        ratio = float(np.median(ratios[best]))
        # The standard deviation of a normal distribution, from its median deviation, which outliers hardly change.
        spread = 1.4826 * float(np.median(np.abs(ratios[best] - ratio) * weights[best]))
    return ratio, min(max(spread, _SPREADS[0]), _SPREADS[1])
