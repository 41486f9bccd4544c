"""Significance of the difference between two systems: paired tests by sacreBLEU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mt.evaluation.metrics import Metric, Stats
from mt.evaluation.scores import TranslatedSet
from mt.report.facts import BETTER, LARGEST_P, NO_DIFFERENCE, WORSE, PairedScore, short_name
from mt.units import listed

DEFAULT_SAMPLES = {"randomisation": 10_000, "bootstrap": 1_000}  # sacreBLEU's
# If at most this number of lines differ, all ways of swapping these lines are tried. sacreBLEU counts samples that are
# larger than the observed difference, but not those that are equal to it. If two systems differ in one line, every
# sample is either zero or equal to it, so sacreBLEU would return the smallest possible p. With more lines it does not
# matter.
_EXACT_LINES = 12


def compare(translated: TranslatedSet, metrics: Sequence[str] | None, test: str, n_samples: int) -> list[PairedScore]:
    """Compare a system with its baseline by a paired test, in the order of the metrics.

    Results equal those of `sacrebleu --paired-ar` and `--paired-bs`, except that systems which differ in very few
    lines get an exact p, see _EXACT_LINES. sacreBLEU gives intervals only with the bootstrap.

    Args:
        test: one of TESTS.
        n_samples: shuffles or bootstrap samples.
    Raises:
        ConfigError: an unknown metric; too few or too many samples.
    """
    assert translated.baseline is not None
    found = []
    # One metric at a time: sacreBLEU identifies metrics by names that several of them share.
    for metric in translated.metrics(metrics):
        base, ours = metric.rows(translated.baseline), metric.rows(translated.hypotheses)
        found += compare_rows(metric, base, [ours], test, n_samples)
    return found


def compare_rows(metric: Metric, base: Stats, others: Sequence[Stats], test: str, n_samples: int) -> list[PairedScore]:
    """Compare systems with a baseline by one metric; other arguments and errors are those of `compare`.

    Args:
        base: `metric.rows` of the baseline.
        others: `metric.rows` of each system.
    """
    signature, (base_result, *results) = metric.paired_test(base, others, test, n_samples)
    found = []
    for result, rows in zip(results, others, strict=True):
        difference, exact_p = float(result.score - base_result.score), _exact_p(metric, base, rows)
        p = float(result.p_value) if exact_p is None else exact_p
        interval = {}
        if result.mean is not None:
            ends = {"mean": result.mean, "low": result.mean - result.ci, "high": result.mean + result.ci}
            interval = {name: float(value) for name, value in ends.items()}
        verdict = BETTER if (difference > 0) == metric.more_is_better else WORSE
        one = PairedScore(
            name=metric.name,
            score=float(result.score),
            baseline_score=float(base_result.score),
            difference=difference,
            p=p,
            verdict=verdict if p < LARGEST_P else NO_DIFFERENCE,
            signature=signature,
            **interval,
        )
        found.append(one)
    return found


def _exact_p(metric: Metric, base: Stats, system: Stats) -> float | None:
    """Return the fraction of all swaps of lines that make a difference at least as large; None if many lines differ.

    Args:
        base, system: statistics, one row per line.
    """
    differing = np.flatnonzero((base != system).any(axis=1))
    if len(differing) > _EXACT_LINES:
        return None
    total = base.sum(axis=0) + system.sum(axis=0)
    # One bit per line: whether it is swapped. The last one never is, because swapping all makes the same difference.
    bits = np.arange(2 ** max(0, len(differing) - 1))[:, None] >> np.arange(len(differing)) & 1
    swapped = base.sum(axis=0) + bits @ (system[differing] - base[differing])
    differences = np.array([abs(metric.score_of(sums) - metric.score_of(total - sums)) for sums in swapped])
    # Equal sums of fractions may differ in their last digits.
    return float((differences >= differences[0] - 1e-9).mean())


def verdict_text(name: str, baseline: str, scores: Sequence[PairedScore]) -> str:
    """Return the verdict in words, such as "new is better than old by BLEU and chrF2"."""
    parts: list[str] = []
    for verdict in (BETTER, WORSE, NO_DIFFERENCE):
        if names := [short_name(one.name) for one in scores if one.verdict == verdict]:
            subject = f"{name} is {verdict} than {baseline}"
            if verdict == NO_DIFFERENCE:
                subject = verdict if parts else f"{name} and {baseline}: {verdict}"
            parts.append(f"{subject} by {listed(names)}")
    return "; ".join(parts)
