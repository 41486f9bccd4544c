"""The pages of an evaluation, and of a comparison of several systems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from mt.report.charts import Series, bars, line_chart
from mt.report.facts import (
    BETTER,
    LARGEST_P,
    WORSE,
    Analysis,
    Bucket,
    ComparedMetric,
    ComparedSet,
    Curve,
    Evaluation,
    ModelManifest,
    Sentence,
    SystemComparison,
    short_name,
)
from mt.report.page import Number, code, page, plain_value, setting_value, table
from mt.report.text import truncated, word_differences

AXES = {"step": "updates", "n_tgt_tokens": "target tokens", "train_minutes": "minutes"}  # x axes of training curves
QUALITY_FLAGS = {
    "empty": "Empty",
    "repetitions": "Repetition loop",
    "copies": "Copy of the source",
    "too_long": "Far too long",
    "too_short": "Far too short",
}


def evaluation_page(facts: Evaluation, flag_rules: str) -> str:
    """Return the page of an evaluation.

    Args:
        flag_rules: the rules of the quality flags, with {side} for the text that translations are compared with.
    """
    title = f"Evaluation of {facts.system}"
    return page("evaluation.html.j2", title, facts=facts, view=_EvaluationView(facts), flag_rules=flag_rules)


@dataclass(frozen=True)
class _EvaluationView:
    """Tables, charts and texts of the page."""

    facts: Evaluation

    def length_chart(self, analysis: Analysis) -> Markup:
        begins = [one.begin for one in analysis.by_length]
        series = [Series(self.facts.system, begins, [one.bleu for one in analysis.by_length])]
        if analysis.has_baseline:
            baseline = self.facts.comparison.baseline if self.facts.comparison else "baseline"
            series.append(Series(baseline, begins, [one.baseline_bleu for one in analysis.by_length]))
        return line_chart(
            "BLEU by length",
            series,
            f"{analysis.unit.capitalize()} in the {analysis.beside}, from",
            "BLEU",
            from_zero=True,
        )

    def rarity_bars(self, buckets: Sequence[Bucket]) -> Markup:
        return bars("BLEU", {one.bucket: one.bleu for one in buckets})

    def quality_flags(self, analysis: Analysis) -> list[tuple[object, ...]]:
        """Return rows of (name, value of the system, value of the baseline, line numbers)."""
        numbers = analysis.numbers
        rows: list[tuple[object, ...]] = [
            (QUALITY_FLAGS[name], one.n_lines, one.baseline_n_lines, _line_numbers(one.lines, one.n_lines))
            for name, one in analysis.oddities.items()
        ]
        if numbers.n:
            fractions = [Number(one, "fraction") for one in (numbers.kept_share, numbers.baseline_kept_share)]
            lost = f"; missing in lines {_line_numbers(numbers.lines, numbers.n_lines)}" if numbers.n_lines else ""
            rows.append(("Numbers preserved", *fractions, f"{numbers.n_kept:,} of {numbers.n:,}{lost}"))
        if numbers.n_added or numbers.baseline_n_added:
            where = "in neither source nor reference" if analysis.beside == "source" else "not in the reference"
            added = _line_numbers(numbers.added_lines, numbers.n_added_lines)
            rows.append((f"Numbers {where}", numbers.n_added, numbers.baseline_n_added, added))
        ratios = [Number(one, digits=3) for one in (analysis.length_ratio, analysis.baseline_length_ratio)]
        return [*rows, (f"Length ratio to the reference, in {analysis.tgt_unit}", *ratios, "")]

    def texts(self, one: Sentence) -> list[tuple[str, str, str | None]]:
        """Return (label, text, language) for a sentence and its translations, with differing words marked."""
        source = [] if one.source is None else [("Source", one.source, self.facts.src_lang)]
        if one.baseline is None:
            hypothesis, reference = word_differences(one.hypothesis, one.reference)
            texts = {"Reference": reference, "Translation": hypothesis}
        else:
            hypothesis, baseline = word_differences(one.hypothesis, one.baseline)
            texts = {"Reference": truncated(one.reference), "System": hypothesis, "Baseline": baseline}
        return [*source, *((label, text, self.facts.tgt_lang) for label, text in texts.items())]

    def heading(self, one: Sentence) -> str:
        chrf, bleu = f"chrF2 {one.chrf:.2f}", f"BLEU {one.bleu:.2f}"
        if one.baseline is not None:
            chrf, bleu = f"{chrf} (baseline {one.baseline_chrf:.2f})", f"{bleu} (baseline {one.baseline_bleu:.2f})"
        return " · ".join([f"line {one.line:,}", chrf, bleu, *self.flags_of(one)])

    def flags_of(self, one: Sentence) -> list[str]:
        return [QUALITY_FLAGS[name].lower() for name in one.oddities]

    def curves(self, curves: Mapping[str, Curve]) -> list[Markup]:
        def chart(title: str, y_label: str, lines: Mapping[str, tuple[str, str]], x: str = "step") -> Markup:
            series = [Series(name, curves[curve][x], curves[curve][y]) for name, (curve, y) in lines.items()]
            return line_chart(title, series, AXES[x], y_label)

        loss = {"training, with label smoothing": ("train", "train_loss"), "validation": ("valid", "valid_loss")}
        bleu = {"validation set": ("valid", "valid_bleu")}
        charts = []
        for x, label in AXES.items():
            # Older runs did not record all x axes.
            if all(None not in curve[x] for curve in curves.values()):
                charts.append(chart(f"Loss against {label}", "nats per target token", loss, x))
                charts.append(chart(f"BLEU against {label}", "BLEU", bleu, x))
        rate, unit = "learning rate", "target tokens per second"
        charts.append(chart("Learning rate", rate, {rate: ("train", "learning_rate")}))
        return [*charts, chart("Speed", unit, {unit: ("train", "tgt_tokens_per_second")})]

    def corpus(self, corpus: Mapping[str, Any]) -> Markup:
        """Return a table of the corpora for training, validation and test."""
        read = corpus["train"]["sources"]
        rows = [["training", one["source"], one["pairs_read"], one["pairs_kept"]] for one in read]
        sets = {"validation": corpus["valid"], **{f"test: {name}": one for name, one in corpus["test"].items()}}
        rows += [[name, one["source"], one["pairs"], ""] for name, one in sets.items()]
        return table(["Use", "Corpus", "Pairs read", "Pairs kept"], rows)

    def model(self, manifest: ModelManifest) -> Markup:
        values = {key: value for key, value in manifest.model.items() if key not in ("versions", "hardware")}
        values |= {f"translated on: {key}": value for key, value in manifest.translation.items()}
        return table(["", "Value"], [[key, plain_value(value)] for key, value in values.items()])


def _line_numbers(lines: Sequence[int], n_lines: int) -> str:
    """Return the first line numbers as text, with … if there are more."""
    return ", ".join([*(f"{line:,}" for line in lines), *(["…"] if n_lines > len(lines) else [])])


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
        """Return a table of p and the verdict on the row's system, for each pair of systems."""
        cells = {}
        for one in metric.pairs:
            verdict = one.verdict.removesuffix(f" at p < {LARGEST_P}")
            cells[one.first, one.second] = f"{one.p:.4f} {verdict}"
            cells[one.second, one.first] = f"{one.p:.4f} {verdict.replace(BETTER, WORSE)}"  # `first` is never worse
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
        """Return one line per run that has data; models of the same run share a line."""
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
