"""Whether a difference between two systems may be chance: paired tests by sacreBLEU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sacrebleu.significance import PairedTest

from mt.errors import ConfigError
from mt.evaluate.metrics import (
    SEED,
    Metric,
    Rows,
    check_parallel,
    check_samples,
    metric_keys,
    reference_sets,
    sacrebleu_quiet,
)
from mt.report.facts import BETTER, LARGEST_P, NO_DIFFERENCE, WORSE, listed

TESTS = {"randomisation": "ar", "bootstrap": "bs"}  # as they are asked for, and as sacreBLEU has them
SAMPLE_NAMES = {"randomisation": "shuffles", "bootstrap": "bootstrap samples"}
DEFAULT_SAMPLES = {"randomisation": 10_000, "bootstrap": 1_000}  # sacreBLEU's
# Systems that differ in so few lines are compared in all ways of swapping these lines. sacreBLEU's count of samples
# leaves out those that are as large as the difference itself. Of two systems that differ in one line every sample is
# zero or that, so that the smallest p there is would come out. From a handful of lines on it does not matter.
EXACT_LINES = 12
_BYTES_OF_A_SHUFFLED_LINE = 10  # two choices, and one of them as a number of 8 bytes


@dataclass(frozen=True)
class Comparison:
    """One metric of a system, beside that of a baseline."""

    name: str  # of the metric, as in a Score
    score: float
    baseline_score: float
    p: float  # how often chance alone makes a difference as large as this one
    verdict: str  # of the system: BETTER, WORSE or NO_DIFFERENCE
    signature: str  # sacreBLEU's, with the test, its samples and the seed
    mean: float | None = None  # of the bootstrap's samples of the system, and what holds 95% of them
    low: float | None = None
    high: float | None = None


def compare(
    baseline: tuple[str, Sequence[str]],
    systems: Mapping[str, Sequence[str]],
    references: Sequence[str] | Sequence[Sequence[str]],
    metrics: Sequence[str] | None = None,
    test: str = "randomisation",
    n_samples: int = 0,
    seed: int = SEED,
    tgt_lang: str = "de",
) -> dict[str, list[Comparison]]:
    """Each system against the baseline, by a paired test; a list in the order of the metrics for each system.

    The figures are those of `sacrebleu --paired-ar` and `--paired-bs`, except that systems which differ in hardly any
    line get a p of their own, see EXACT_LINES. sacreBLEU gives intervals with the bootstrap alone.

    Args:
        baseline: its name, and its hypotheses.
        systems: name → hypotheses.
        test: one of TESTS.
        n_samples: shuffles or bootstrap samples; 0 for the default of the test.
        seed: not 0, which sacreBLEU takes for none.
    Raises:
        DataError: different numbers of lines, or none at all.
        ConfigError: an unknown metric or test; too few or too many samples.
    """
    assert seed, "sacreBLEU takes 0 for no seed"
    if test not in TESTS:
        raise ConfigError("significance", f"expected {' or '.join(TESTS)}, got {test}")
    references = reference_sets(references)
    for hypotheses in (baseline[1], *systems.values()):
        check_parallel(hypotheses, references)
    n_samples = n_samples or DEFAULT_SAMPLES[test]
    results: dict[str, list[Comparison]] = {name: [] for name in systems}
    # One metric at a time: sacreBLEU tells them apart by names that several share.
    for key in metric_keys(metrics):
        metric = Metric(key, references, tgt_lang)
        base, *others = (metric.rows(lines) for lines in (baseline[1], *systems.values()))
        compared = compare_rows(metric, base, others, test, n_samples, seed)
        for name, comparison in zip(systems, compared, strict=True):
            results[name].append(comparison)
    return results


def compare_rows(
    metric: Metric, base: Rows, others: Sequence[Rows], test: str, n_samples: int, seed: int = SEED
) -> list[Comparison]:
    """One metric of each of some systems against that of a baseline; arguments and errors as in `compare`.

    Args:
        base: what `metric.rows` counts in the baseline's lines.
        others: the same of each system.
    """
    line_bytes = _BYTES_OF_A_SHUFFLED_LINE if test == "randomisation" else metric.bytes_of_a_bootstrapped_line
    check_samples(n_samples, metric.n_lines, line_bytes)
    named: Any = [(str(number), rows) for number, rows in enumerate((base, *others))]  # it is typed for lines of text
    with sacrebleu_quiet(seed):
        counted: Any = _Counted(metric.sacrebleu)
        signatures, results = PairedTest(named, {"": counted}, None, TESTS[test], n_samples)()
    ((their_name, signature),) = signatures.items()
    base_result, *found = (result for result in results[their_name] if not isinstance(result, str))
    return [
        _comparison(metric, result, base_result.score, _exact_p(metric, base, rows), metric.signature(signature))
        for result, rows in zip(found, others, strict=True)
    ]


class _Counted:
    """A metric of sacreBLEU whose hypotheses have been counted: a system is counted once, and compared often."""

    def __init__(self, metric: Any) -> None:
        self._metric = metric

    def __getattr__(self, name: str) -> Any:
        return getattr(self._metric, name)

    def _extract_corpus_statistics(self, rows: Rows, _references: None) -> Rows:
        return rows


def _comparison(
    metric: Metric, result: Any, baseline_score: float, exact_p: float | None, signature: str
) -> Comparison:
    score, p = float(result.score), float(result.p_value) if exact_p is None else exact_p
    mean, low, high = (
        (None, None, None)
        if result.mean is None
        else (float(result.mean), float(result.mean) - float(result.ci), float(result.mean) + float(result.ci))
    )
    if p >= LARGEST_P:
        verdict = NO_DIFFERENCE
    else:
        verdict = BETTER if (score > baseline_score) == metric.more_is_better else WORSE
    return Comparison(metric.name, score, float(baseline_score), p, verdict, signature, mean, low, high)


def _exact_p(metric: Metric, base: Rows, system: Rows) -> float | None:
    """The share of all swaps of lines that make a difference as large as that of the systems; None of many lines.

    Args:
        base, system: statistics, a row for each line.
    """
    differing = np.flatnonzero((base != system).any(axis=1))
    if len(differing) > EXACT_LINES:
        return None
    total = base.sum(axis=0) + system.sum(axis=0)

    def difference(sums: Any) -> float:
        return abs(metric.score_of(sums) - metric.score_of(total - sums))

    changes = system[differing] - base[differing]
    # One bit for each line: whether it is swapped. The last line need not be: swapping all makes the same difference.
    bits = np.arange(2 ** max(0, len(differing) - 1))[:, None] >> np.arange(len(differing)) & 1
    differences = np.array([difference(sums) for sums in base.sum(axis=0) + bits @ changes])
    # Equal sums may come out unequal in the last digits where they are no whole numbers.
    return float((differences >= differences[0] - 1e-9).mean())


def sentence(name: str, baseline: str, comparisons: Sequence[Comparison]) -> str:
    """The verdict in words, such as "new is better than old by BLEU and chrF2"."""
    parts = []
    for verdict in (BETTER, WORSE):
        if names := [entry.name.partition(" (")[0] for entry in comparisons if entry.verdict == verdict]:
            parts.append(f"{name} is {verdict} than {baseline} by {listed(names)}")
    if names := [entry.name.partition(" (")[0] for entry in comparisons if entry.verdict == NO_DIFFERENCE]:
        prefix = f"{name} and {baseline}: " if not parts else ""
        parts.append(f"{prefix}{NO_DIFFERENCE} by {listed(names)}")
    return "; ".join(parts)
