"""The page of a comparison of several systems."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from mt.report.charts import Series, line_chart
from mt.report.evaluation import AXES
from mt.report.facts import BETTER, LARGEST_P, WORSE, ComparedMetric, ComparedSet, SystemComparison, short_name
from mt.report.page import Number, code, page, setting_value, table


def comparison_page(facts: SystemComparison) -> str:
    return page("comparison.html.j2", facts.title, facts=facts, view=_ComparisonView(facts))


@dataclass(frozen=True)
class _ComparisonView:
    """Tables and charts of the page."""

    facts: SystemComparison

    def scores(self, compared: ComparedSet) -> Markup:
        headers = ["System"]
        for metric in compared.metrics:
            has_interval = any(score.confidence for score in metric.scores)
            headers += [short_name(metric.name), *(["95% low", "95% high"] if has_interval else []), "Group"]
        rows = []
        for i in compared.ranking:
            system = self.facts.systems[i]
            row: list[object] = [system.name]
            for metric in compared.metrics:
                score = metric.scores[i]
                ends = [score.confidence.low, score.confidence.high] if score.confidence else []
                row += [score.score, *ends, " ".join(metric.groups[i])]
            for key in self.facts.figures:
                row.append(Number(getattr(system, key), "seconds" if key == "train_seconds" else "count"))
            rows.append(row)
        return table([*headers, *(name.capitalize() for name in self.facts.figures.values())], rows, sortable=True)

    def pairs(self, metric: ComparedMetric) -> Markup:
        """Return p of each two systems with the verdict of the row's."""
        cells = {}
        for one in metric.pairs:
            verdict = one.verdict.removesuffix(f" at p < {LARGEST_P}")
            cells[one.first, one.second] = f"{one.p:.4f} {verdict}"
            cells[one.second, one.first] = f"{one.p:.4f} {verdict.replace(BETTER, WORSE)}"  # the first is never worse
        rows = [
            [f"{place}. {self.facts.systems[i].name}", *(cells.get((i, j), "") for j in metric.ranking)]
            for place, i in enumerate(metric.ranking, start=1)
        ]
        return table(["p", *(f"{place}." for place, _ in enumerate(rows, start=1))], rows)

    def curves(self) -> list[Markup]:
        found = {label: self._series(x) for x, label in AXES.items()}
        title = "BLEU on the validation set against"
        return [line_chart(f"{title} {label}", series, label, "BLEU") for label, series in found.items() if series]

    def _series(self, x: str) -> list[Series]:
        """Return a line for each run that has some; two models of one run share one."""
        found: list[Series] = []
        seen = []
        for system, training in zip(self.facts.systems, self.facts.training, strict=True):
            curve = training.curves["valid"] if training else {"step": []}
            if curve["step"] and None not in curve[x] and curve not in seen:
                seen.append(curve)
                found.append(Series(system.name, curve[x], curve["valid_bleu"]))
        return found

    def differences(self, differences: Mapping[str, list[Any]]) -> Markup:
        rows = [[code(key), *map(setting_value, values)] for key, values in differences.items()]
        return table(["Setting", *(system.name for system in self.facts.systems)], rows, sortable=True)
