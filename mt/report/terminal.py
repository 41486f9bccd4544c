"""Scores, evaluations and comparisons as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mt.report.facts import (
    LARGEST_P,
    SAMPLE_NAMES,
    ComparedSet,
    Evaluation,
    MetricScore,
    PairedScore,
    ScoredSet,
    SystemComparison,
    short_name,
)

_WIDEST_NAMES = 60  # characters of all systems' names together; longer ones do not fit as column headers


def scores_text(sets: Mapping[str, ScoredSet]) -> str:
    """Return a table for each test set: name, score, interval and signature of each metric."""
    lines = []
    for name, scored in sets.items():
        references = f", {scored.n_references} references" if scored.n_references > 1 else ""
        lines.append(f"{name} ({scored.n_lines:,} lines{references})")
        width = _name_width(scored.scores)
        for one in scored.scores:
            # The part of a name in brackets goes to the end of the line.
            head, bracket, remark = one.name.partition(" (")
            score, *interval = str(one).partition(" ")
            lines.append(f"  {head:<{width}}{score:>7}{''.join(interval)}   {one.signature}{bracket}{remark}")
    return "\n".join(lines)


def direction_lines(facts: Evaluation) -> list[str]:
    """Return the table of the scores in each direction; no lines if there is only one direction."""
    rows = facts.by_direction
    return ["by direction", *map(str.rstrip, aligned(rows))] if rows else []


def evaluation_text(facts: Evaluation) -> str:
    """Return the scores, by direction if there are several, and the comparison with a baseline if there is one."""
    return "\n".join([scores_text(facts.test_sets), *direction_lines(facts), *comparison_lines(facts)])


def comparison_lines(facts: Evaluation) -> list[str]:
    """Return the comparison with a baseline; no lines if there is none."""
    lines = []
    if test := facts.comparison:
        for name, paired in test.test_sets.items():
            kind = f"paired test, {test.n_samples:,} {SAMPLE_NAMES[test.test]}"
            lines.append(f"{name}, compared with {test.baseline} ({kind})")
            width = _name_width(paired.scores)
            lines += [
                f"  {short_name(one.name):<{width}}{one.score:>7.2f} against {one.baseline_score:.2f}   "
                f"{one.difference:+.2f}   p = {one.p:.4f}   {one.verdict}"
                for one in paired.scores
            ]
            lines.append(f"{paired.verdict}.")
    return lines


def _name_width(scores: Sequence[MetricScore] | Sequence[PairedScore]) -> int:
    return max([6, *(len(short_name(one.name)) + 1 for one in scores)])


def comparison_text(facts: SystemComparison) -> str:
    """Return a table for each test set, the verdicts, and the settings that differ."""
    lines = []
    for name, compared in facts.test_sets.items():
        kind = f"paired tests, {facts.n_samples:,} {SAMPLE_NAMES[facts.test]}"
        lines += [f"{name} ({compared.n_lines:,} lines; {kind})", *aligned(_rows(facts, compared))]
        lines += compared.verdicts
    metrics = [metric for compared in facts.test_sets.values() for metric in compared.metrics]
    if any(len({*map(tuple, metric.groups)}) > 1 for metric in metrics):
        lines.append(f"Systems that share a letter do not differ significantly (p < {LARGEST_P}).")
    return "\n".join([*lines, *_difference_lines(facts)])


def _rows(facts: SystemComparison, compared: ComparedSet) -> list[list[str]]:
    rows = [["system", *(short_name(metric.name) for metric in compared.metrics), *facts.figures.values()]]
    for i in compared.ranking:
        system = facts.systems[i]
        scores = [f"{metric.scores[i]} {''.join(metric.groups[i]):<2}" for metric in compared.metrics]
        rows.append([system.name, *scores, *map(system.figure, facts.figures)])
    return rows


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines, the first column aligned at the left, the others at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]) for first, *others in rows]


def _difference_lines(facts: SystemComparison) -> list[str]:
    """Return the settings that differ; long names of systems are replaced by numbers, with a line to explain each."""
    if facts.differences is None:
        return []
    if not facts.differences:
        return ["The configs are the same."]
    names, explained = [system.name for system in facts.systems], []
    if sum(map(len, names)) > _WIDEST_NAMES:
        explained = [f"  {number}: {name}" for number, name in enumerate(names, start=1)]
        names = [str(number) for number, _ in enumerate(names, start=1)]
    rows = [["setting", *names]]
    for key, values in facts.differences.items():
        rows.append([key, *("null" if value is None else str(value) for value in values)])
    return ["Settings that differ", *explained, *aligned(rows)]
