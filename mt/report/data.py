"""The report of a prepared corpus: a page for people (report.html), and report.json for programs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mt.errors import with_fix
from mt.report.charts import bars, fraction_bar, histograms, stacked_bars
from mt.report.facts import ChangeExample, Histogram, LengthCounts, Pair, PreparedData, facts_json
from mt.report.page import Number, Text, Unit, code, fraction, page, table
from mt.report.text import character_differences

_N_RULES_IN_BARS = 4  # the most frequent ones; the others share a colour
_SIDE_NAMES = {"src": "source", "tgt": "target"}

_FIGURES_OF_A_LANGUAGE: dict[str, tuple[str, Unit, str]] = {  # key: (name, unit, meaning)
    "words": ("Words", "count", "separated by spaces; in scripts without spaces, characters"),
    "distinct_words": ("Distinct words", "count", "separated by spaces"),
    "tokens": ("Tokens", "count", "ends of sentences not counted"),
    "fertility": ("Tokens per word (fertility)", "count", "1 means a vocabulary of whole words"),
    "characters_a_token": ("Characters per token", "count", ""),
    "split_word_share": ("Split words", "fraction", "into more than one token"),
    "vocab_size": ("Pieces in the vocabulary", "count", ""),
    "unused_pieces": ("Unused pieces", "count", "that do not occur in this text"),
    "byte_share": ("Byte tokens", "fraction", "for characters that are not in the vocabulary"),
    "unknown_share": ("Unknown tokens", "fraction", "their text is lost; 0% with byte fallback"),
}

Rules = Mapping[str, tuple[str, str]]  # name of a rule or change → its setting (below `data`), and its meaning


def write_data_report(facts: Mapping[str, Any], folder: Path, rules: Rules) -> None:
    """Write report.json and report.html.

    Raises:
        OSError: the folder cannot be written.
    """
    # Before the page, so that the facts are saved even if making the page fails.
    (folder / "report.json").write_text(facts_json(facts), encoding="utf-8", newline="\n")
    (folder / "report.html").write_text(
        data_page(PreparedData.model_validate(facts), rules), encoding="utf-8", newline="\n"
    )


def data_page(facts: PreparedData, rules: Rules) -> str:
    """Return the page of a prepared corpus."""
    title = f"Prepared corpus {', '.join(f'{src} → {tgt}' for src, tgt in facts.directions)}"
    functions = {"bars": bars, "fraction_bar": fraction_bar, "with_fix": with_fix}
    return page("data.html.j2", title, facts=facts, view=_DataView(facts, rules), **functions)


@dataclass(frozen=True)
class _Rule:
    """A rule that removed pairs, or a kind of change to sentences."""

    name: str
    count: int  # over all corpora
    meaning: str
    setting: Markup | str
    examples: list[tuple[object, ...]]


@dataclass(frozen=True)
class _DataView:
    """Tables, charts and sentences of the page."""

    facts: PreparedData
    rules: Rules

    def counted(self, kind: str) -> list[_Rule]:
        """Return the rules that removed pairs or the kinds of changes, the most frequent first.

        Args:
            kind: `removed` or `changed`.
        """
        counts: Counter[str] = Counter()
        examples: dict[str, list[tuple[object, ...]]] = defaultdict(list)
        for i, source in enumerate(self.facts.train.sources):
            for name, one in getattr(source, kind).items():
                counts[name] += one.count
                examples[name] += [self.example(i, example) for example in one.examples]
        found = []
        for name, count in (+counts).most_common():
            setting, meaning = self.rules.get(name, ("", ""))
            found.append(_Rule(name, count, meaning, code(f"data.{setting}") if setting else "", examples[name]))
        return found

    def example(self, source: int, one: Pair | ChangeExample) -> tuple[object, ...]:
        """Return the arguments of the macro `example` for a pair, or for a sentence before and after a change."""
        name = f"{self.facts.train.sources[source].source}, " if len(self.facts.train.sources) > 1 else ""
        place = f"{name}line {one.line:,}"
        corpus = self.facts.train.sources[source]
        if isinstance(one, Pair):
            return one.src, one.tgt, self.facts.lang("src", corpus), self.facts.lang("tgt", corpus), place, one.note
        before, after, described = character_differences(one.before, one.after)
        lang = self.facts.lang(one.side, corpus)
        return before, after, lang, lang, f"{place}, {lang}", described

    def source_bars(self, removed: Sequence[_Rule]) -> Markup:
        names = [rule.name for rule in removed]
        rows = {}
        for source in self.facts.train.sources:
            counts = {name: _count(source.removed, name) for name in names}
            row = {"kept": source.pairs_kept, **{name: counts.pop(name) for name in names[:_N_RULES_IN_BARS]}}
            rows[source.source] = row | ({"other rules": sum(counts.values())} if counts else {})
        return stacked_bars("Pairs kept and removed", rows)

    def sources(self, removed: Sequence[_Rule]) -> Markup:
        train, rules = self.facts.train, {rule.name: rule.count for rule in removed}
        has_weights = any(source.weight != 1 or source.tag for source in train.sources)
        rows = [
            [
                one.source,
                *([one.tag or "", Number(one.weight)] if has_weights else []),
                *_kept(one.pairs_read, one.pairs_kept),
                *(_count(one.removed, rule) for rule in rules),
            ]
            for one in train.sources
        ]
        weights = ["", ""] if has_weights else []
        total = ["Total", *weights, *_kept(train.pairs_read, train.pairs_kept), *rules.values()]
        headers = ["Corpus", *(["Tag", "Weight"] if has_weights else []), "Read", "Kept", "Fraction kept", *rules]
        return table(headers, rows, total if len(rows) > 1 else None, sortable=True)

    def skipped(self) -> list[str]:
        """Return a sentence for each kind of line or unit of a corpus that held no pair."""
        held_out = {name: (one.source, one.skipped) for name, one in self.facts.held_out.items()}
        train = [(one.source, one.skipped) for one in self.facts.train.sources]
        return [
            f"{source}: {what} skipped: {count:,}."
            for source, all_ in [*train, *held_out.values()]
            for what, count in all_.items()
        ]

    def changed_by_source(self, changed: Sequence[_Rule]) -> Markup:
        names = [change.name for change in changed]
        rows = [[one.source, *(_count(one.changed, name) for name in names)] for one in self.facts.train.sources]
        return table(["Corpus", *names], rows, sortable=True)

    def overlaps(self) -> list[dict[str, Any]]:
        """Return for each set and language: the number of n-grams, and how many are in the training text."""
        sets = {"valid": self.facts.valid, **self.facts.valid_sets, **self.facts.test}
        return [
            {
                "set": name,
                "lang": self.facts.lang(side, sets.get(name)),
                **one,
                "fraction": fraction(one["found"], one["ngrams"]),
            }
            for name, sides in self.facts.overlap.items()
            for side, one in sides.items()
        ]

    def length_charts(self, lengths: LengthCounts) -> list[Markup]:
        titles = {side: f"Length of the {name} ({self.facts.lang(side)})" for side, name in _SIDE_NAMES.items()}
        return histograms({title: lengths.tokens[side] for side, title in titles.items()}, "tokens", "pairs")

    def ratio_bars(self, ratio: Histogram) -> Markup:
        labels = [f"{low:g} to {high:g}" if high else f"{low:g} and above" for low, high in pairwise(ratio.edges)]
        return bars(
            "Pairs by length ratio (source tokens per target token)", dict(zip(labels, ratio.counts, strict=True))
        )

    def language_figures(self) -> Markup | None:
        sides, rows = self.facts.sides, []
        for key, (name, unit, note) in _FIGURES_OF_A_LANGUAGE.items():
            if any(key in one for one in sides.values()):
                head = Markup('{}<span class="muted">, {}</span>').format(name, note) if note else name
                rows.append([head, *(Number(one.get(key), unit) for one in sides.values())])
        return table(["", *map(self.facts.lang, sides)], rows) if rows else None

    def longest_pieces(self) -> list[Markup]:
        found = {self.facts.lang(side): one.get("longest_pieces", []) for side, one in self.facts.sides.items()}
        rows = {lang: [[Text(one["piece"], lang), one["count"]] for one in pieces] for lang, pieces in found.items()}
        tables = [table([f"Piece ({lang})", "Occurrences"], one, sortable=True) for lang, one in rows.items()]
        return tables if any(rows.values()) else []


def _count(found: Mapping[str, Any], name: str) -> int:
    return found[name].count if name in found else 0


def _kept(n_read: int, n_kept: int) -> list[object]:
    return [n_read, n_kept, Number(fraction(n_kept, n_read), "fraction")]
