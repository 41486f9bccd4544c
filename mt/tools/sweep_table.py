"""The table of `mt sweep`: figures of each variant over its seeds, and paired tests against the first variant."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from mt.errors import MTError
from mt.evaluation.report_files import read_evaluation
from mt.evaluation.runs import RunArtifacts
from mt.evaluation.scores import TranslatedSet
from mt.evaluation.significance import DEFAULT_SAMPLES, compare
from mt.report.charts import Series, line_chart
from mt.report.facts import LARGEST_P, Evaluation, PairedScore, valid_title
from mt.report.markdown import as_code, code_cell
from mt.report.page import page, table
from mt.report.terminal import aligned
from mt.system.files import write_json, write_text
from mt.system.provenance import source_commit, versions
from mt.units import finite, format_count

RESULT = "sweep.json"

_TEST = "randomisation"
_MOST_SHUFFLED_LINES = 10**8  # 1 GB, because sacreBLEU keeps all shuffles in memory
_FEWEST_SHUFFLES = 100


@dataclass(frozen=True)
class Finished:
    """The report of a finished run, and its validation and test sets with their translations."""

    report: Evaluation
    sets: dict[str, TranslatedSet]

    @classmethod
    def read(cls, run_dir: Path) -> Finished | None:
        """Read a run; return None if it is not finished."""
        if (report := read_evaluation(run_dir)) is None:
            return None
        sets: dict[str, TranslatedSet] = {}
        with suppress(MTError):  # the model may have been deleted to save space: then there are scores but no tests
            artifacts = RunArtifacts.of(run_dir)
            pairs = artifacts.test_pairs(list(artifacts.folder.config.tests))
            pairs |= {} if artifacts.corpus is None else artifacts.corpus.valid_sets
            directions = artifacts.directions(pairs)
            sets = {
                name: replace(one, tokenize=artifacts.bleu_tokenizer(directions[name]))
                for name, one in artifacts.kept_translations(pairs, directions).items()
            }
        return cls(report.model_copy(update={"sentences": {}, "analysis": {}}), sets)  # without what is large

    @property
    def bleu(self) -> dict[str, float]:
        """BLEU of each validation and test set."""
        scores = {name: one.score_of("BLEU") for name, one in (self.report.validated | self.report.test_sets).items()}
        return {name: score for name, score in scores.items() if score is not None}


class SweepTable:
    """The runs that have ended, by variant and seed. The first variant is the baseline."""

    def __init__(self, variants: Sequence[str], seeds: Sequence[int]) -> None:
        self.variants, self.seeds, self.baseline = list(variants), list(seeds), variants[0]
        self.finished: dict[tuple[str, int], Finished] = {}
        self.failed: dict[tuple[str, int], str] = {}  # reasons
        self._tests: dict[tuple[str, tuple[int, ...]], dict[str, PairedScore]] = {}

    def rows(self) -> list[dict[str, Any]]:
        """Return the figures of each variant; means and standard deviations are over its finished seeds."""
        found = []
        for variant in self.variants:
            runs = self._of(variant)
            row: dict[str, Any] = {"variant": variant, "seeds": list(runs)}
            if runs:
                reports = [one.report for one in runs.values()]
                scores = [one.bleu for one in runs.values()]
                row["bleu"] = {name: _spread([one[name] for one in scores]) for name in scores[0]}
                row["minutes"] = fmean(one.train_seconds or 0 for one in reports) / 60
                row["updates"], row["parameters"] = fmean(one.steps or 0 for one in reports), reports[0].n_parameters
                row["tests"] = {
                    name: {"difference": one.difference, "p": one.p, "verdict": one.verdict, "signature": one.signature}
                    for name, one in self._tested(variant).items()
                }
            row["failed"] = {str(seed): reason for (one, seed), reason in self.failed.items() if one == variant}
            found.append(row)
        return found

    def write(self, folder: Path, facts: dict[str, Any]) -> None:
        """Write the result so far as JSON, Markdown and HTML.

        Args:
            facts: about the sweep, for the JSON.
        """
        rows = self.rows()
        origin = {"commit": source_commit(), "versions": versions()}
        write_json(folder / RESULT, finite({**facts, **origin, "variants": rows}))
        (header, *cells), failures, notes = self.cells(rows), self.failures, self.notes(rows)
        lines = [header, ["---"] * len(header), *([code_cell(variant), *others] for variant, *others in cells)]
        text = [f"| {' | '.join(line)} |\n" for line in lines]
        text += [f"\n{note}\n" for note in (*map(as_code, failures), *notes)]
        write_text(folder / "sweep.md", "".join(text))
        chart = line_chart("BLEU on the validation set", self.curves(), "minutes of training", "BLEU")
        html = page(
            "sweep.html.j2", f"Sweep of {facts['config']}", table=table(header, cells), notes=notes, chart=chart
        )
        write_text(folder / "sweep.html", html)

    def __str__(self) -> str:
        """Return the result as text for a terminal."""
        rows = self.rows()
        return "\n".join([*map(str.rstrip, aligned(self.cells(rows))), *self.failures, *self.notes(rows)])

    def cells(self, rows: Sequence[dict[str, Any]]) -> list[list[str]]:
        """Return the rows as text, with a header."""
        names = list(dict.fromkeys(name for row in rows for name in row.get("bleu", ())))
        titles = [(valid_title(name) if name in ("valid", *self._valid) else name, "p") for name in names]
        found = [["variant", "seeds", *chain.from_iterable(titles), "minutes", "updates", "parameters"]]
        for row in rows:
            n, scores = len(row["seeds"]), list[str]()
            for name in names:
                score, test = row.get("bleu", {}).get(name), row.get("tests", {}).get(name)
                scores += ["–" if score is None else _score_text(score), "" if test is None else f"{test['p']:.4f}"]
            figures = ["–"] * 3
            if n:
                figures = [f"{row['minutes']:.1f}", f"{row['updates']:,.0f}", format_count(row["parameters"] or 0)]
            n_text = str(n) if n == len(self.seeds) else f"{n} of {len(self.seeds)}"
            found.append([row["variant"], n_text, *scores, *figures])
        return found

    @property
    def failures(self) -> list[str]:
        return [f"{variant}, seed {seed} failed: {reason}" for (variant, seed), reason in self.failed.items()]

    def notes(self, rows: Sequence[dict[str, Any]]) -> list[str]:
        """Return the meaning of the numbers in the table."""
        has_several = len(self.seeds) > 1
        notes = [f"BLEU of the final models{', as mean ± standard deviation over the seeds' if has_several else ''}."]
        if any(row.get("tests") for row in rows):
            lines = "the lines of all seeds together" if has_several else "the lines"
            test = f"p: paired approximate randomisation against the first variant, over {lines}"
            notes.append(f"{test}; below {LARGEST_P}, the difference is called significant.")
        return notes

    def curves(self) -> list[Series]:
        """Return BLEU on the validation set by minutes of training, as the mean of each variant's seeds."""
        found = []
        for variant in self.variants:
            curves = [one.report.training.curves["valid"] for one in self._of(variant).values() if one.report.training]
            columns = [
                list(zip(*(one[key] for one in curves), strict=False)) for key in ("train_minutes", "valid_bleu")
            ]
            xs, ys = ([None if None in column else fmean(column) for column in one] for one in columns)
            found.append(Series(variant, xs, ys))
        return found

    def _of(self, variant: str) -> dict[int, Finished]:
        return {seed: one for seed in self.seeds if (one := self.finished.get((variant, seed))) is not None}

    @property
    def _valid(self) -> set[str]:
        return {name for one in self.finished.values() for name in one.report.validated}

    def _tested(self, variant: str) -> dict[str, PairedScore]:
        """Compare a variant with the baseline on each set, over the lines of all seeds that both have finished."""
        ours, theirs = self._of(variant), self._of(self.baseline)
        seeds = tuple(seed for seed in ours if seed in theirs)
        if variant == self.baseline or not seeds:
            return {}
        if (variant, seeds) not in self._tests:  # a test takes about a second
            pairs = [(ours[seed].sets, theirs[seed].sets) for seed in seeds]
            names = [name for name in pairs[0][0] if all(name in sets for pair in pairs for sets in pair)]
            tests = {name: _paired([(one[name], base[name]) for one, base in pairs]) for name in names}
            self._tests[variant, seeds] = {name: test for name, test in tests.items() if test is not None}
        return self._tests[variant, seeds]


def _paired(pairs: Sequence[tuple[TranslatedSet, TranslatedSet]]) -> PairedScore | None:
    """Compare systems with baselines, over all pairs together; None if text or tokenizer are not the same."""
    if any((one.references, one.tokenize) != (base.references, base.tokenize) for one, base in pairs):
        return None
    first, _ = pairs[0]
    ours, theirs = (list(chain.from_iterable(one.hypotheses for one in side)) for side in zip(*pairs, strict=True))
    references = list(chain.from_iterable(one.references[0] for one, _ in pairs))
    pooled = replace(first, sources=None, hypotheses=ours, references=[references], baseline=theirs)
    n_shuffles = min(DEFAULT_SAMPLES[_TEST], max(_MOST_SHUFFLED_LINES // len(ours), _FEWEST_SHUFFLES))
    return compare(pooled, ["bleu"], _TEST, n_shuffles)[0]


def _spread(scores: Sequence[float]) -> dict[str, Any]:
    return {"mean": fmean(scores), "sd": stdev(scores) if len(scores) > 1 else None, "scores": list(scores)}


def _score_text(spread: dict[str, Any]) -> str:
    return f"{spread['mean']:.2f}" + ("" if spread["sd"] is None else f" ± {spread['sd']:.2f}")
