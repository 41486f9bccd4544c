"""What preparing found and did, as a page for people (report.html) and for programs (report.json)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mt.report.charts import bars, fraction_bar, highest_bar, histogram, stacked_bars
from mt.report.facts import HeldOutSet, PreparedData, facts_json
from mt.report.page import Number, Text, Unit, code, fraction, page, table
from mt.report.text import character_differences

_N_RULES_IN_BARS = 4  # the most frequent ones; the others share a colour
_LOW_FRACTION_KEPT = 0.5  # of a corpus, below which the page warns
_HIGH_OVERLAP = 0.1  # of the 8-grams of a set, above which the page warns
_HIGH_UNKNOWN = 0.001  # of the tokens, above which the page warns

_FIGURES_OF_A_LANGUAGE: dict[str, tuple[str, Unit, str]] = {  # key: (name, unit, meaning)
    "words": ("Words", "count", "separated by spaces"),
    "distinct_words": ("Different words", "count", ""),
    "tokens": ("Tokens", "count", "pieces of the vocabulary, ends of sentences not counted"),
    "fertility": ("Tokens for each word", "count", "1 would be a vocabulary of whole words"),
    "characters_a_token": ("Characters in each token", "count", ""),
    "split_word_share": ("Words that are cut", "fraction", "into more than one token"),
    "byte_share": ("Tokens that are bytes", "fraction", "of characters that are not in the vocabulary"),
    "unknown_share": ("Tokens that are unknown", "fraction", "their text is lost; 0% with byte fallback"),
}

Rules = Mapping[str, tuple[str, str]]  # rule or change: its setting (below `data`), and a sentence on what it does


def write_data_report(facts: Mapping[str, Any], folder: Path, rules: Rules) -> None:
    """Write report.json and report.html.

    Raises:
        OSError: the folder cannot be written.
    """
    # Before the page, so that the facts are safe whatever comes.
    (folder / "report.json").write_text(facts_json(facts), encoding="utf-8", newline="\n")
    (folder / "report.html").write_text(
        data_page(PreparedData.model_validate(facts), rules), encoding="utf-8", newline="\n"
    )


def data_page(facts: PreparedData, rules: Rules) -> str:
    """Return the page of a prepared corpus."""
    title = f"Prepared corpus {facts.src_lang} → {facts.tgt_lang}"
    return page("data.html.j2", title, facts=facts, view=_DataView(facts, rules))


@dataclass(frozen=True)
class _DataView:
    """Tables, charts and sentences of the page."""

    facts: PreparedData
    rules: Rules

    def rules_that_removed(self) -> dict[str, int]:
        """Return how many pairs each rule removed, the most frequent first."""
        return _by_frequency([source.removed for source in self.facts.train.sources])

    def changes(self) -> dict[str, int]:
        """Return how many texts each change was made to, the most frequent first."""
        return _by_frequency([source.changed for source in self.facts.train.sources])

    def rule(self, name: str) -> tuple[str, str]:
        """Return what a rule does, and its setting."""
        setting, meaning = self.rules.get(name, ("", ""))
        return meaning, code(f"data.{setting}") if setting else ""

    def place(self, index: int, line: int) -> str:
        """Name the line of a pair, and its source where there are several."""
        sources = self.facts.train.sources
        return f"line {line:,}" if len(sources) == 1 else f"{sources[index].source}, line {line:,}"

    def source_bars(self) -> Markup:
        names = list(self.rules_that_removed())
        rows = {}
        for source in self.facts.train.sources:
            counts = {name: _count(source.removed, name) for name in names}
            row = {"kept": source.pairs_kept, **{name: counts.pop(name) for name in names[:_N_RULES_IN_BARS]}}
            rows[source.source] = row | ({"other rules": sum(counts.values())} if counts else {})
        return stacked_bars("Pairs kept and removed", rows)

    def sources(self) -> Markup:
        train, rules = self.facts.train, self.rules_that_removed()
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
        headers = ["Source", *(["Tag", "Weight"] if has_weights else []), "Read", "Kept", "Fraction kept", *rules]
        return table(headers, rows, total if len(rows) > 1 else None, sortable=True)

    def removed(self) -> Markup:
        n_read, rules = self.facts.train.pairs_read, self.rules_that_removed()
        rows = [[one, n, Number(fraction(n, n_read), "fraction", 2), *self.rule(one)] for one, n in rules.items()]
        return table(["Rule", "Removed", "Of pairs read", "Meaning", "Setting"], rows, sortable=True)

    def changed(self) -> Markup:
        rows = [[name, count, *self.rule(name)] for name, count in self.changes().items()]
        return table(["Change", "Texts changed", "Meaning", "Setting"], rows, sortable=True)

    def changed_by_source(self) -> Markup:
        names = list(self.changes())
        rows = [[one.source, *(_count(one.changed, name) for name in names)] for one in self.facts.train.sources]
        return table(["Source", *names], rows, sortable=True)

    def removed_examples(self, rule: str) -> list[tuple[str, str, str, str, str, str | None]]:
        """Return the arguments of the macro `example`."""
        return [
            (one.src, one.tgt, self.facts.src_lang, self.facts.tgt_lang, self.place(i, one.line), one.note)
            for i, source in enumerate(self.facts.train.sources)
            for one in (source.removed[rule].examples if rule in source.removed else [])
        ]

    def changed_examples(self, change: str) -> list[tuple[str, str, str, str, str, str]]:
        """Return the arguments of the macro `example`: one side before and after the change, in its language."""
        found: list[tuple[str, str, str, str, str, str]] = []
        for i, source in enumerate(self.facts.train.sources):
            for one in source.changed[change].examples if change in source.changed else []:
                before, after, described = character_differences(one.before, one.after)
                lang = self.facts.lang(one.side)
                found.append((before, after, lang, lang, f"{self.place(i, one.line)}, {lang}", described))
        return found

    def _held_out(self) -> Iterator[tuple[str, str, HeldOutSet]]:
        """Yield (name in a table, name in a sentence, set)."""
        if self.facts.valid:
            yield "Validation", "validation set", self.facts.valid
        for name, one in self.facts.test.items():
            yield f"Test: {name}", f"test set {name}", one

    def held_out_sets(self) -> Markup | None:
        sets = {name: one for name, _, one in self._held_out()}
        titles = {"pairs": "Pairs", "empty": "With an empty side"}
        titles |= {"src_tokens": "Source tokens", "tgt_tokens": "Target tokens"}
        keys = [key for key in titles if any(getattr(one, key) is not None for one in sets.values())]
        rows = [[name, one.source, *(Number(getattr(one, key)) for key in keys)] for name, one in sets.items()]
        return table(["Set", "Source", *(titles[key] for key in keys)], rows, sortable=True) if rows else None

    def _overlaps(self) -> Iterator[tuple[str, str, int, int, float | None]]:
        """Yield (set, language, n-grams, those that training text has, their fraction)."""
        for name, sides in self.facts.overlap.items():
            for side, one in sides.items():
                yield name, self.facts.lang(side), one["ngrams"], one["found"], fraction(one["found"], one["ngrams"])

    def overlap(self) -> Markup:
        rows = [[*counts, Number(part, "fraction", 2), fraction_bar(part)] for *counts, part in self._overlaps()]
        return table(["Set", "Language", "8-grams", "In training", "Fraction", ""], rows, sortable=True)

    def length_charts(self) -> list[Markup]:
        assert self.facts.lengths is not None
        tokens = self.facts.lengths.tokens
        # Cut where both sides end, so that the bars of both have as many lengths each.
        longest = max((i + 1 for counts in tokens.values() for i, count in enumerate(counts) if count), default=0)
        shown = {side: counts[:longest] for side, counts in tokens.items()}
        highest = max(map(highest_bar, shown.values()))
        titles = {side: f"Length of the {name} ({self.facts.lang(side)})" for side, name in _SIDE_NAMES.items()}
        return [
            histogram(title, range(1, len(shown[side]) + 2), shown[side], "tokens", "pairs", True, highest)
            for side, title in titles.items()
        ]

    def ratio_chart(self) -> Markup:
        assert self.facts.lengths is not None
        ratio = self.facts.lengths.ratio
        edges = [math.inf if edge is None else edge for edge in ratio.edges]
        title = "Source tokens for each target token"
        return histogram(title, edges, ratio.counts, "source tokens / target tokens", "pairs")

    def language_figures(self) -> Markup | None:
        sides, rows = self.facts.sides, []
        for key, (name, unit, note) in _FIGURES_OF_A_LANGUAGE.items():
            if any(key in one for one in sides.values()):
                head = Markup('{}<span class="muted">, {}</span>').format(name, note) if note else name
                rows.append([head, *(Number(one.get(key), unit) for one in sides.values())])
        return table(["", *map(self.facts.lang, sides)], rows) if rows else None

    def piece_bars(self, pieces: Mapping[str, int]) -> Markup:
        names = {side: f"in {self.facts.lang(side)} alone" for side in _SIDE_NAMES}
        names |= {"both": "in both", "neither": "in neither"}
        rows = {name: Number(pieces[key]) for key, name in names.items()}
        return bars("Pieces of the vocabulary, by where they occur", rows)

    def longest_pieces(self) -> list[Markup]:
        found = {self.facts.lang(side): one.get("longest_pieces", []) for side, one in self.facts.sides.items()}
        rows = {lang: [[Text(one["piece"], lang), one["count"]] for one in pieces] for lang, pieces in found.items()}
        tables = [table([f"Piece ({lang})", "Times"], one, sortable=True) for lang, one in rows.items()]
        return tables if any(rows.values()) else []

    def stages(self) -> Markup:
        seconds = {name: Number(value, "seconds") for name, value in self.facts.seconds.items()}
        total = sum(self.facts.seconds.values())
        rows = [[name, one, Number(fraction(one.value or 0, total), "fraction")] for name, one in seconds.items()]
        together = ["Total", Number(total, "seconds"), ""]
        return bars("Time of each stage", seconds) + table(["Stage", "Time", "Fraction"], rows, together, sortable=True)

    def warnings(self) -> Iterator[str]:
        for source in self.facts.train.sources:
            kept = fraction(source.pairs_kept, source.pairs_read)
            if kept is not None and kept < _LOW_FRACTION_KEPT:
                most = next(iter(_by_frequency([source.removed])))
                yield (
                    f"{Number(1 - kept, 'fraction')} of the pairs of {source.source} were removed, most of them by "
                    f"{most}. See its examples below: is that right?"
                )
        for _, name, one in self._held_out():
            if one.empty:
                yield f"{one.empty:,} of {one.pairs:,} pairs of the {name} have an empty side."
        for name, lang, _, _, found in self._overlaps():
            if found is not None and found > _HIGH_OVERLAP:
                yield (
                    f"{Number(found, 'fraction')} of the 8-grams of {name} ({lang}) occur in the training text: "
                    "scores on it may be too high."
                )
        for side, figures in self.facts.sides.items():
            unknown = figures.get("unknown_share")
            if unknown is not None and unknown > _HIGH_UNKNOWN:
                shown = Number(unknown, "fraction", 2)
                yield f"{shown} of the tokens of {self.facts.lang(side)} are unknown to the vocabulary."


_SIDE_NAMES = {"src": "source", "tgt": "target"}


def _count(found: Mapping[str, Any], name: str) -> int:
    return found[name].count if name in found else 0


def _by_frequency(sources: list[Mapping[str, Any]]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for found in sources:
        counts.update({name: one.count for name, one in found.items() if one.count})
    return dict(counts.most_common())


def _kept(n_read: int, n_kept: int) -> list[object]:
    return [n_read, n_kept, Number(fraction(n_kept, n_read), "fraction")]
