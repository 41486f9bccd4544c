"""Comparison of several systems: scores, significance groups, differences of their configs, cost of training."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations, count
from string import ascii_lowercase
from typing import Any

from mt.evaluation.findings import EvalOptions
from mt.evaluation.metrics import Metric
from mt.evaluation.scores import TranslatedSet
from mt.evaluation.significance import compare_rows
from mt.evaluation.tokenization import DEFAULT_TOKENIZER
from mt.evaluation.warnings import check_scores
from mt.report.facts import (
    NO_DIFFERENCE,
    ComparedMetric,
    ComparedSet,
    MetricScore,
    PairedSystems,
    SystemComparison,
    SystemFigures,
    TrainingCurves,
)
from mt.units import listed

_log = logging.getLogger(__name__)

_MANY_SYSTEMS = 5
COMPARED_METRICS = ("bleu", "chrf")  # the default; each metric takes a test for each pair of systems


@dataclass(frozen=True)
class System:
    """A system that has translated some test sets."""

    name: str
    hypotheses: Mapping[str, Sequence[str]]  # by test set
    settings: Mapping[str, Any] = field(default_factory=dict)  # dotted key → value; empty for files of translations
    figures: Mapping[str, Any] = field(default_factory=dict)  # fields of SystemFigures, as far as known
    training: TrainingCurves | None = None


def compare_systems(
    systems: Sequence[System],
    test_sets: Mapping[str, Sequence[Sequence[str]]],
    options: EvalOptions,
    languages: Mapping[str, tuple[str | None, str]] | None = None,
) -> SystemComparison:
    """Compare each pair of systems on each test set and by each metric.

    Args:
        test_sets: name → its sets of references.
        languages: test set → `tgt_lang` and `tokenize` as in `TranslatedSet`.
    Raises:
        ConfigError: too many samples for the memory; the tokenizer cannot be used.
    """
    if (n := len(systems)) >= _MANY_SYSTEMS:  # each test takes about a second
        _log.info(f"comparing {n * (n - 1) // 2:,} pairs of systems")
    compared = {}
    for name, references in test_sets.items():
        tgt_lang, tokenize = (languages or {}).get(name, (None, DEFAULT_TOKENIZER))
        wanted = TranslatedSet(None, references[0], references, tgt_lang, tokenize=tokenize)
        metrics = wanted.metrics(options.metrics or COMPARED_METRICS)
        found = [_compared(systems, name, metric, options) for metric in metrics]
        compared[name] = ComparedSet(n_lines=len(references[0]), metrics=found)
        best = [one.scores[one.ranking[0]].model_copy(update={"name": one.name}) for one in found]
        for warning in check_scores(wanted, best):
            _log.warning(f"{name}: {warning}")
    settings = [system.settings for system in systems]
    of_models = [one for one in settings if one]
    # Files of translations have no settings.
    differences = {key: [one.get(key) if one else "" for one in settings] for key in setting_differences(of_models)}
    return SystemComparison(
        systems=[SystemFigures(name=system.name, **system.figures) for system in systems],
        test=options.test,
        n_samples=options.n_test_samples,
        test_sets=compared,
        differences=differences if of_models else None,
        training=[system.training for system in systems],
    )


def setting_differences(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return key → values, for keys that are not the same everywhere; the value of a missing key is None."""
    keys = dict.fromkeys(key for one in settings for key in one)
    values = {key: [one.get(key) for one in settings] for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def _compared(systems: Sequence[System], test_set: str, metric: Metric, options: EvalOptions) -> ComparedMetric:
    rows = [metric.rows(system.hypotheses[test_set]) for system in systems]
    scores = [metric.score(one, options.n_confidence_samples) for one in rows]
    sign = -1 if metric.more_is_better else 1
    ranking = sorted(range(len(systems)), key=lambda i: sign * scores[i].score)
    pairs, test_signature = [], ""
    # Each system is tested against those with a lower score, so the order in which systems are given does not matter.
    for place in range(1, len(ranking)):
        worse, better = ranking[place], ranking[:place]
        found = compare_rows(metric, rows[worse], [rows[i] for i in better], options.test, options.n_test_samples)
        test_signature = found[-1].signature
        pairs += [
            PairedSystems(first=i, second=worse, p=one.p, verdict=one.verdict)
            for i, one in zip(better, found, strict=True)
        ]
    groups = significance_groups(
        ranking, {frozenset((one.first, one.second)) for one in pairs if one.verdict == NO_DIFFERENCE}
    )
    return ComparedMetric(
        name=metric.name,
        signature=scores[0].signature,
        test_signature=test_signature,
        scores=[MetricScore(score=one.score, confidence=one.confidence) for one in scores],
        groups=groups,
        ranking=ranking,
        pairs=pairs,
        verdict=_verdict(ranking, groups, [system.name for system in systems]),
    )


def significance_groups(ranking: Sequence[int], same: Collection[frozenset[int]]) -> list[list[str]]:
    """Return a compact letter display: two systems share a letter if and only if they do not differ significantly.

    Args:
        ranking: the systems, best first; the best one gets an a.
        same: pairs that do not differ significantly.
    Source: Piepho 2004, An algorithm for a letter-based representation of all-pairwise comparisons.
    """
    groups = [frozenset(range(len(ranking)))]  # ranks; the largest groups without a pair that differs
    for pair in combinations(range(len(ranking)), 2):
        if frozenset(ranking[place] for place in pair) not in same:
            whole = [group for group in groups if not group.issuperset(pair)]
            halves = [group - {place} for group in groups if group.issuperset(pair) for place in pair]
            groups = whole + [half for half in halves if not any(half <= group for group in whole)]
    found: list[list[str]] = [[] for _ in ranking]
    names = chain(ascii_lowercase, (f"{letter}{turn}" for turn in count(2) for letter in ascii_lowercase))
    for name, group in zip(names, sorted(map(sorted, groups)), strict=False):
        for place in group:
            found[ranking[place]].append(name)
    return found


def _verdict(ranking: Sequence[int], groups: Sequence[Sequence[str]], names: Sequence[str]) -> str:
    """Return a sentence such as `runs/b is better than runs/a`."""
    best, *others = ranking
    equal = [i for i in others if set(groups[i]) & set(groups[best])]
    if not equal:
        return f"{names[best]} is better than {'all others' if len(others) > 1 else names[others[0]]}"
    if len(others) == 1:
        return f"{NO_DIFFERENCE.capitalize()} between {names[0]} and {names[1]}"
    if len(equal) == len(others):
        return f"{NO_DIFFERENCE.capitalize()} between {names[best]}, which has the best score, and any other"
    return f"{names[best]} has the best score, with {NO_DIFFERENCE} from {listed([names[i] for i in equal])}"
