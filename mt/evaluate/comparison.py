"""Several systems side by side: scores, which of them can be told apart, how their configs differ, what they cost."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from string import ascii_lowercase
from typing import Any

from mt.evaluate.metrics import Metric, metric_keys, reference_sets
from mt.evaluate.scores import scored_test_set
from mt.evaluate.significance import DEFAULT_SAMPLES, SAMPLE_NAMES, compare_rows
from mt.report.facts import LARGEST_P, NO_DIFFERENCE, ComparedSet, SystemComparison, listed, short_name

COMPARED_METRICS = ("bleu", "chrf")  # unless others are asked for: each takes a test for each pair of systems
_WIDEST_NAMES = 60  # characters of the names of all systems, up to which they head the columns of a terminal


@dataclass(frozen=True)
class System:
    """A system that has translated some test sets."""

    name: str
    hypotheses: Mapping[str, Sequence[str]]  # of each test set
    settings: Mapping[str, Any] = field(default_factory=dict)  # dotted key → value
    figures: Mapping[str, Any] = field(
        default_factory=dict
    )  # steps, n_tgt_tokens, train_seconds, n_parameters, as far as known
    training: Mapping[str, Any] | None = None  # what training_facts returns


@dataclass(frozen=True)
class SharedSet:
    """A test set that all systems have translated."""

    references: Sequence[str] | Sequence[Sequence[str]]  # one set, or a list of sets
    tgt_lang: str

    @property
    def n_lines(self) -> int:
        return len(reference_sets(self.references)[0])


def comparison_facts(
    systems: Sequence[System],
    test_sets: Mapping[str, SharedSet],
    metrics: Sequence[str] | None = None,
    test: str = "randomisation",
    n_samples: int | None = None,
    n_confidence_samples: int = 0,
) -> dict[str, Any]:
    """Each system against each other, on each test set and by each metric.

    Args:
        metrics: by default COMPARED_METRICS.
        test: one of mt.evaluate.significance.TESTS.
        n_samples: of the test; None for its default.
        n_confidence_samples: of intervals of the scores; 0 for none.
    Returns:
        The values of an mt.report.facts.SystemComparison. Systems that share a letter of their groups cannot be told
        apart, and those that share none can. Files of translations have no differences of settings.
    Raises:
        DataError: different numbers of lines.
        ConfigError: an unknown metric; too few or too many samples.
    """
    settings = [system.settings for system in systems]
    keys, n_samples = metric_keys(metrics or COMPARED_METRICS), n_samples or DEFAULT_SAMPLES[test]
    sets = {
        name: {
            "n_lines": one.n_lines,
            "metrics": [_compared(systems, name, one, key, test, n_samples, n_confidence_samples) for key in keys],
        }
        for name, one in test_sets.items()
    }
    return {
        "systems": [{"name": system.name, **system.figures} for system in systems],
        "test": test,
        "n_samples": n_samples,
        "test_sets": sets,
        **({"differences": setting_differences(settings)} if any(settings) else {}),
        "training": [system.training for system in systems],
    }


def setting_differences(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Key → its value in each, of those that are not the same everywhere; None where there is no such key."""
    keys = dict.fromkeys(key for one in settings for key in one)
    values = {key: [one.get(key) for one in settings] for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def _compared(
    systems: Sequence[System],
    test_set: str,
    shared: SharedSet,
    key: str,
    test: str,
    n_samples: int,
    n_confidence_samples: int,
) -> dict[str, Any]:
    lines = [system.hypotheses[test_set] for system in systems]
    entries = [
        scored_test_set(one, shared.references, [key], n_confidence_samples, shared.tgt_lang)["scores"][0]
        for one in lines
    ]
    metric = Metric(key, reference_sets(shared.references), shared.tgt_lang)
    values = [entry["score"] for entry in entries]
    ranking = sorted(range(len(values)), key=lambda i: -values[i] if metric.more_is_better else values[i])
    pairs, test_signature = _pairs(lines, ranking, metric, test, n_samples)
    same = {frozenset((pair["first"], pair["second"])) for pair in pairs if pair["verdict"] == NO_DIFFERENCE}
    entry = {
        "name": entries[0]["name"],
        "signature": entries[0]["signature"],
        "test_signature": test_signature,
        "scores": [{name: score[name] for name in ("score", "confidence") if name in score} for score in entries],
        "groups": letters(ranking, same),
        "ranking": ranking,
        "pairs": pairs,
    }
    return entry | {"verdict": _verdict(entry, [system.name for system in systems])}


def _pairs(
    lines: Sequence[Sequence[str]], ranking: Sequence[int], metric: Metric, test: str, n_samples: int
) -> tuple[list[dict[str, Any]], str]:
    """Each system against the worse ones, so that it makes no difference in which order they are given; a signature."""
    rows = [metric.rows(one) for one in lines]
    pairs, signature = [], ""
    for place in range(1, len(ranking)):
        worse, better = ranking[place], ranking[:place]
        found = compare_rows(metric, rows[worse], [rows[i] for i in better], test, n_samples)
        for i, one in zip(better, found, strict=True):
            signature = one.signature
            pairs.append({"first": i, "second": worse, "p": one.p, "verdict": one.verdict})
    return pairs, signature


def letters(ranking: Sequence[int], same: Collection[frozenset[int]]) -> list[list[str]]:
    """A compact letter display: two systems share a letter if, and only if, they cannot be told apart.

    Args:
        ranking: the systems, best first; the best one has an a.
        same: pairs that cannot be told apart.
    Source: Piepho 2004, An algorithm for a letter-based representation of all-pairwise comparisons.
    """
    neighbours = {i: {j for j in ranking if frozenset((i, j)) in same} for i in ranking}
    rank = {system: place for place, system in enumerate(ranking)}
    groups = sorted(sorted(rank[i] for i in group) for group in _cliques(set(), set(ranking), set(), neighbours))
    found: list[list[str]] = [[] for _ in ranking]
    for number, group in enumerate(groups):
        for place in group:
            found[ranking[place]].append(_letter(number))
    return found


def _cliques(
    chosen: set[int], candidates: set[int], seen: set[int], neighbours: Mapping[int, set[int]]
) -> list[set[int]]:
    """Largest sets of systems of which each two are neighbours.

    Source: Bron and Kerbosch 1973, with the pivot of Tomita et al. 2006.
    """
    if not candidates and not seen:
        return [chosen]
    pivot = max(candidates | seen, key=lambda one: len(candidates & neighbours[one]))
    found = []
    for one in sorted(candidates - neighbours[pivot]):
        found += _cliques(chosen | {one}, candidates & neighbours[one], seen & neighbours[one], neighbours)
        candidates = candidates - {one}
        seen = seen | {one}
    return found


def _letter(number: int) -> str:
    """a to z, and then a2, b2, …"""
    turn, place = divmod(number, len(ascii_lowercase))
    return ascii_lowercase[place] + (str(turn + 1) if turn else "")


def _verdict(entry: Mapping[str, Any], names: Sequence[str]) -> str:
    """Such as `runs/b is better than runs/a`."""
    best, *others = entry["ranking"]
    equal = [i for i in others if set(entry["groups"][i]) & set(entry["groups"][best])]
    if not equal:
        return f"{names[best]} is better than {'all others' if len(others) > 1 else names[others[0]]}"
    if len(others) == 1:
        return f"{NO_DIFFERENCE.capitalize()} between {names[0]} and {names[1]}"
    if len(equal) == len(others):
        return f"{NO_DIFFERENCE.capitalize()} between {names[best]}, which has the best score, and any other"
    return f"{names[best]} has the best score, with {NO_DIFFERENCE} from {listed([names[i] for i in equal])}"


# --------------------------------------------------------------------------------------------------- for a terminal


def comparison_text(found: Mapping[str, Any]) -> str:
    """Return a table for each test set, what can be told apart, and how the configs differ."""
    facts = SystemComparison.model_validate(found)
    kind = SAMPLE_NAMES[facts.test]
    lines = []
    for name, compared in facts.test_sets.items():
        lines.append(f"{name} ({compared.n_lines:,} lines; paired tests, {facts.n_samples:,} {kind})")
        lines += [*_aligned(_rows(facts, compared)), *compared.verdicts]
    metrics = [metric for compared in facts.test_sets.values() for metric in compared.metrics]
    if any(len({*map(tuple, metric.groups)}) > 1 for metric in metrics):
        lines.append(f"Systems that share a letter cannot be told apart at p < {LARGEST_P}.")
    return "\n".join([*lines, *_difference_lines(facts)])


def _rows(facts: SystemComparison, compared: ComparedSet) -> list[list[str]]:
    rows = [["system", *(short_name(metric.name) for metric in compared.metrics), *facts.figures.values()]]
    for i in compared.ranking:
        system = facts.systems[i]
        scores = [f"{metric.scores[i]} {''.join(metric.groups[i]):<2}" for metric in compared.metrics]
        rows.append([system.name, *scores, *map(system.figure, facts.figures)])
    return rows


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align the first column at the left, and the others at the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        f"  {row[0]:<{widths[0]}}  "
        + "  ".join(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]


def _difference_lines(facts: SystemComparison) -> list[str]:
    """List the settings that differ; long names of systems are numbers, which a line each explains."""
    if facts.differences is None:
        return []
    if not facts.differences:
        return ["The configs are the same."]
    names = [system.name for system in facts.systems]
    numbered = [] if sum(map(len, names)) <= _WIDEST_NAMES else list(range(1, len(names) + 1))
    rows = [["setting", *(map(str, numbered) if numbered else names)]]
    rows += [[key, *(_setting(value) for value in values)] for key, values in facts.differences.items()]
    explained = [f"  {number}: {name}" for number, name in zip(numbered, names, strict=False)]
    return ["What differs in the configs", *explained, *_aligned(rows)]


def _setting(value: Any) -> str:
    return "null" if value is None else str(value)
