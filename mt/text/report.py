"""What preparing found and did, as a page for people (report.html) and for programs (report.json).

Both are made of the same facts; each number of the page says in `data-key` where it stands in report.json.

The facts, all counts being whole numbers:

    format_version, fingerprint, made_at (ISO 8601), src_lang, tgt_lang, command
    settings     {"data.clean.max_chars": 4000, …}
    train        pairs_read, pairs_kept, src_tokens, tgt_tokens, src_tokens_per_tgt_token,
                 longest_src, longest_tgt (in tokens),
                 sources: a list of source, tag, weight, pairs_read, pairs_kept,
                     removed {reason: {count, examples: [{src, tgt, line, note}]}},
                     changed {change: {count, examples: [{line, side, before, after}]}}
    valid        source, pairs, empty, src_tokens, tgt_tokens
    test         {name: source, pairs, empty, src_tokens, tgt_tokens}
    lengths      tokens: {src: [pairs with 1, 2, 3, … tokens], tgt: […]},
                 ratio: {edges, counts}: tokens of the source for each of the target; the last edge null: no end
    overlap      {set: {src: {ngrams, found}, tgt: …}}
    tokenizer    kind, vocab_size, and what else is known of how it was made; pieces: {src, tgt, both, neither};
                 src, tgt: words, distinct_words, tokens, fertility, split_word_share, byte_share, unknown_share,
                     characters_a_token, longest_pieces: [{piece, count}]
    samples      [{source (its index), line, src, tgt}], of the pairs that were kept
    seconds      {stage: float}, one after the other
    peak_memory_bytes, versions {name: version}, hardware {cpu, cores, memory_bytes}

Of valid, test, lengths, overlap, tokenizer and what comes after it anything may be missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from mt.facts import Facts, code, facts_json, number_at, shown_value
from mt.page import (
    Cell,
    Example,
    Html,
    Number,
    Section,
    Text,
    bars,
    difference,
    element,
    examples,
    folded,
    highest_bar,
    histogram,
    joined,
    key_path,
    notice,
    origin,
    page,
    paragraph,
    section,
    share_bar,
    side_by_side,
    stacked_bars,
    subheading,
    table,
    tiles,
)

JSON_NAME, HTML_NAME = "report.json", "report.html"

_N_REASONS_IN_BARS = 4  # the most frequent ones; the others share a colour
_LOW_SHARE_KEPT = 0.5  # of a source, below which the page warns
_HIGH_OVERLAP = 0.1  # of the 8-grams of a set, above which the page warns
_HIGH_UNKNOWN = 0.001  # of the tokens, above which the page warns

_FIGURES_OF_A_LANGUAGE = {  # key: (name, unit of the number, meaning)
    "words": ("Words", "count", "separated by spaces"),
    "distinct_words": ("Different words", "count", ""),
    "tokens": ("Tokens", "count", "pieces of the vocabulary, ends of sentences not counted"),
    "fertility": ("Tokens for each word", "count", "1 would be a vocabulary of whole words"),
    "characters_a_token": ("Characters in each token", "count", ""),
    "split_word_share": ("Words that are cut", "share", "into more than one token"),
    "byte_share": ("Tokens that are bytes", "share", "of characters that are not in the vocabulary"),
    "unknown_share": ("Tokens that are unknown", "share", "their text is lost; 0% with byte fallback"),
}


def write_report(facts: Facts, folder: Path, rules: Mapping[str, tuple[str, str]] | None = None) -> None:
    """Write report.json and report.html.

    Args:
        rules: of `report_page`.
    Raises:
        OSError: the folder cannot be written.
    """
    # Before the page, so that the facts are safe whatever comes.
    (folder / JSON_NAME).write_text(facts_json(facts), encoding="utf-8", newline="\n")
    (folder / HTML_NAME).write_text(report_page(facts, rules), encoding="utf-8", newline="\n")


def report_page(facts: Facts, rules: Mapping[str, tuple[str, str]] | None = None) -> str:
    """HTML that stands alone.

    Args:
        rules: reason or change: the setting that it comes from (below `data`), and a sentence on what it does.
    """
    rules = rules or {}
    parts = [
        _sources(facts),
        _removed(facts, rules),
        _changed(facts, rules),
        _sets(facts),
        _lengths(facts),
        _overlap(facts),
        _vocabulary(facts),
        _samples(facts),
        _stages(facts),
        _settings(facts),
    ]
    title = f"Prepared corpus {facts['src_lang']} → {facts['tgt_lang']}"
    return page(title, [part for part in parts if part is not None], lead=_summary(facts))


# The summary.


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _summary(facts: Facts) -> list[str]:
    train = facts["train"]
    share = Number(_share(train["pairs_kept"], train["pairs_read"]), unit="share")
    src, tgt = facts["src_lang"], facts["tgt_lang"]
    figures: list[tuple[str, Number | str, str]] = [
        ("Pairs read", number_at(facts, "train", "pairs_read"), _plural(len(train["sources"]), "source")),
        ("Pairs kept", number_at(facts, "train", "pairs_kept"), joined([share.html(), " of those read"])),
        (f"Source tokens ({src})", number_at(facts, "train", "src_tokens"), _longest(facts, "longest_src")),
        (f"Target tokens ({tgt})", number_at(facts, "train", "tgt_tokens"), _longest(facts, "longest_tgt")),
        ("Source tokens for each target token", number_at(facts, "train", "src_tokens_per_tgt_token", digits=3), ""),
    ]
    if "tokenizer" in facts:
        kind = facts["tokenizer"].get("kind") or ""
        figures.append(("Vocabulary", number_at(facts, "tokenizer", "vocab_size"), f"{kind} pieces".strip()))
    if "seconds" in facts:
        figures.append(("Time", Number(float(sum(facts["seconds"].values())), unit="seconds"), ""))
    if "peak_memory_bytes" in facts:
        figures.append(("Most memory", number_at(facts, "peak_memory_bytes", unit="bytes"), ""))
    made_at = facts["made_at"].replace("T", " ").replace("+00:00", " UTC")
    made = f"Made at {made_at}; fingerprint "
    return [
        paragraph(made, element("code", {}, facts["fingerprint"]), ". The same numbers for programs: ", JSON_NAME, "."),
        *(notice(warning, kind="warning") for warning in _warnings(facts)),
        tiles(figures),
        origin(
            "Pairs are counted in the training sources. Tokens are those of the pairs that were kept, each pair once, "
            "whatever the weight of its source; an end of sentence counts as one."
        ),
    ]


def _longest(facts: Facts, name: str) -> Html:
    return joined(["longest ", number_at(facts, "train", name).html()])


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _warnings(facts: Facts) -> list[str]:
    found = []
    for source in facts["train"]["sources"]:
        share = _share(source["pairs_kept"], source["pairs_read"])
        if share is not None and share < _LOW_SHARE_KEPT:
            most = _by_frequency([source])[0]
            lost = Number(1 - share, unit="share")
            found.append(
                f"{lost} of the pairs of {source['source']} were removed, most of them by {most}. "
                "See its examples below: is that right?"
            )
    for name, one in _all_sets(facts):
        if one.get("empty"):
            found.append(f"{one['empty']:,} of {one['pairs']:,} pairs of the {name} have an empty side.")
    for name, sides in facts.get("overlap", {}).items():
        for side, counts in sides.items():
            share = _share(counts["found"], counts["ngrams"])
            if share is not None and share > _HIGH_OVERLAP:
                found.append(
                    f"{Number(share, unit='share')} of the 8-grams of {name} ({facts[f'{side}_lang']}) stand in the "
                    "training text, too: scores on it may be too good."
                )
    for side in ("src", "tgt"):
        unknown = facts.get("tokenizer", {}).get(side, {}).get("unknown_share")
        if unknown is not None and unknown > _HIGH_UNKNOWN:
            share_text = Number(unknown, unit="share", digits=2)
            found.append(f"{share_text} of the tokens of {facts[f'{side}_lang']} are unknown to the vocabulary.")
    return found


# Sources, and what was removed and changed.


def _sources(facts: Facts) -> Section:
    sources = facts["train"]["sources"]
    reasons = _by_frequency(sources)
    with_weights = any(source.get("weight", 1) != 1 or source.get("tag") for source in sources)
    headers = ["Source", "Read", "Kept", "Share kept", *reasons]
    if with_weights:
        headers[1:1] = ["Tag", "Weight"]
    rows = [_source_row(facts, i, reasons, with_weights) for i in range(len(sources))]
    total: list[Cell] = [
        "Together",
        *(["", ""] if with_weights else []),
        number_at(facts, "train", "pairs_read"),
        number_at(facts, "train", "pairs_kept"),
        Number(_share(facts["train"]["pairs_kept"], facts["train"]["pairs_read"]), unit="share"),
        *(Number(sum(_count(source["removed"], reason) for source in sources)) for reason in reasons),
    ]
    return section(
        "Sources",
        _source_bars(sources, reasons),
        table(headers, rows, total=total if len(sources) > 1 else None),
        origin(
            "Counted while reading each source. A pair is counted under the first rule that removes it, so that the "
            "kept and removed pairs of a row add up to those read."
        ),
    )


def _by_frequency(sources: Sequence[Facts], of: str = "removed") -> list[str]:
    """Reasons or changes that occur, the most frequent first."""
    counts: dict[str, int] = {}
    for source in sources:
        for name, found in source[of].items():
            counts[name] = counts.get(name, 0) + found["count"]
    return sorted((name for name, count in counts.items() if count), key=lambda name: -counts[name])


def _source_row(facts: Facts, i: int, reasons: Sequence[str], with_weights: bool) -> list[Cell]:
    source = facts["train"]["sources"][i]
    place = ("train", "sources", i)
    return [
        source["source"],
        *([source.get("tag") or "", number_at(facts, *place, "weight", digits=2)] if with_weights else []),
        number_at(facts, *place, "pairs_read"),
        number_at(facts, *place, "pairs_kept"),
        Number(_share(source["pairs_kept"], source["pairs_read"]), unit="share"),
        *_counts(facts, i, "removed", reasons),
    ]


def _source_bars(sources: Sequence[Facts], reasons: Sequence[str]) -> Html:
    shown, others = reasons[:_N_REASONS_IN_BARS], reasons[_N_REASONS_IN_BARS:]
    rows = []
    for source in sources:
        numbers = [source["pairs_kept"], *(_count(source["removed"], reason) for reason in shown)]
        if others:
            numbers.append(sum(_count(source["removed"], reason) for reason in others))
        rows.append((source["source"], [Number(number) for number in numbers]))
    return stacked_bars("Pairs kept and removed", ["kept", *shown, *(["other rules"] if others else [])], rows)


def _removed(facts: Facts, rules: Mapping[str, tuple[str, str]]) -> Section | None:
    sources = facts["train"]["sources"]
    reasons = _by_frequency(sources)
    if not reasons:
        return section("Removed pairs", paragraph("No pair was removed."))
    rows: list[list[Cell]] = []
    for reason in reasons:
        count = sum(_count(source["removed"], reason) for source in sources)
        share = _share(count, facts["train"]["pairs_read"])
        rows.append([reason, Number(count), Number(share, unit="share", digits=2), *_rule(reason, rules)])
    return section(
        "Removed pairs",
        table(["Rule", "Removed", "Of pairs read", "Meaning", "Setting"], rows),
        origin("Sums over the sources. The first examples of each rule follow, as they were when the rule saw them."),
        *(_removed_examples(facts, reason, rules) for reason in reasons),
    )


def _rule(name: str, rules: Mapping[str, tuple[str, str]]) -> list[Cell]:
    setting, meaning = rules.get(name, ("", ""))
    return [meaning, code(f"data.{setting}") if setting else ""]


def _removed_examples(facts: Facts, reason: str, rules: Mapping[str, tuple[str, str]]) -> Html:
    pairs, count = [], 0
    for source in facts["train"]["sources"]:
        removal = source["removed"].get(reason, {"count": 0, "examples": []})
        count += removal["count"]
        for example in removal["examples"]:
            place = _place(facts, source["source"], example["line"])
            pairs.append(Example(example["src"], example["tgt"], place, example.get("note") or ""))
    summary = joined([element("strong", {}, reason), f": {_plural(count, 'pair')}, {_plural(len(pairs), 'example')}"])
    meaning = rules.get(reason, ("", ""))[1]
    return folded(summary, paragraph(meaning) if meaning else "", examples(pairs, facts["src_lang"], facts["tgt_lang"]))


def _place(facts: Facts, source: str, line: int) -> str:
    """Where a pair stands; the source only where there are several."""
    return f"line {line:,}" if len(facts["train"]["sources"]) == 1 else f"{source}, line {line:,}"


def _changed(facts: Facts, rules: Mapping[str, tuple[str, str]]) -> Section:
    sources = facts["train"]["sources"]
    changes = _by_frequency(sources, "changed")
    if not changes:
        return section("Changed text", paragraph("No text was changed."))
    several = len(sources) > 1
    totals = [Number(sum(_count(source["changed"], change) for source in sources)) for change in changes]
    if not several:
        totals = _counts(facts, 0, "changed", changes)
    rows: list[list[Cell]] = [
        [change, total, *_rule(change, rules)] for change, total in zip(changes, totals, strict=True)
    ]
    by_source: list[list[Cell]] = [
        [source["source"], *_counts(facts, i, "changed", changes)] for i, source in enumerate(sources)
    ]
    return section(
        "Changed text",
        table(["Change", "Texts changed", "Meaning", "Setting"], rows),
        table(["Source", *changes], by_source) if several else "",
        origin(
            "Counted over both sides of all pairs read; a text that is changed in two ways counts under both. The same "
            "changes are made to text that the model translates. Examples show a text before and after all of them."
        ),
        *(_changed_examples(facts, change) for change in changes),
    )


def _count(found: Facts, name: str) -> int:
    return int(found[name]["count"]) if name in found else 0


def _counts(facts: Facts, i: int, of: str, names: Sequence[str]) -> list[Number]:
    """How often a source has each of some reasons or changes."""
    found = facts["train"]["sources"][i][of]
    return [
        number_at(facts, "train", "sources", i, of, name, "count") if name in found else Number(0) for name in names
    ]


def _changed_examples(facts: Facts, change: str) -> Html:
    shown = []
    for source in facts["train"]["sources"]:
        for example in source["changed"].get(change, {"examples": []})["examples"]:
            lang = facts[f"{example['side']}_lang"]
            before, after, described = difference(example["before"], example["after"])
            place = f"{_place(facts, source['source'], example['line'])}, {lang}"
            # Each text in its own language: an example of a change is one side, twice.
            shown.append(examples([Example(before, after, place, described)], lang, lang))
    summary = joined([element("strong", {}, change), f": {_plural(len(shown), 'example')}, before and after"])
    return folded(summary, *shown)


# Validation and test sets.


def _all_sets(facts: Facts) -> list[tuple[str, Facts]]:
    sets = [("validation set", facts["valid"])] if "valid" in facts else []
    return sets + [(f"test set {name}", one) for name, one in facts.get("test", {}).items()]


def _sets(facts: Facts) -> Section | None:
    places: list[tuple[str, tuple[str, ...]]] = [("Validation", ("valid",))] if "valid" in facts else []
    places += [(f"Test: {name}", ("test", name)) for name in facts.get("test", {})]
    if not places:
        return None
    columns = {"pairs": "Pairs", "empty": "With an empty side", "src_tokens": "Source tokens"}
    columns["tgt_tokens"] = "Target tokens"
    sets = dict(zip([name for name, _ in places], [one for _, one in _all_sets(facts)], strict=True))
    columns = {key: header for key, header in columns.items() if any(key in one for one in sets.values())}
    rows: list[list[Cell]] = [
        [name, sets[name]["source"], *(number_at(facts, *path, key) for key in columns)] for name, path in places
    ]
    return section(
        "Validation and test sets",
        table(["Set", "Source", *columns.values()], rows),
        origin("Counted over all pairs of each set: its text is changed as that of training, and no pair is removed."),
    )


# Lengths.


def _lengths(facts: Facts) -> Section | None:
    lengths = facts.get("lengths")
    if lengths is None:
        return None
    tokens, ratio = lengths["tokens"], lengths["ratio"]
    # Cut where both sides end, so that the bars of both stand for as many lengths.
    longest = max((i + 1 for counts in tokens.values() for i, count in enumerate(counts) if count), default=0)
    highest = max(highest_bar(counts[:longest]) for counts in tokens.values())
    charts = [
        histogram(
            f"{name} ({facts[f'{side}_lang']})",
            range(1, len(tokens[side][:longest]) + 2),
            tokens[side][:longest],
            x_label="tokens",
            y_label="pairs",
            key=key_path("lengths", "tokens", side),
            whole_numbers=True,
            highest=highest,
        )
        for side, name in (("src", "Length of the source"), ("tgt", "Length of the target"))
    ]
    edges = [math.inf if edge is None else edge for edge in ratio["edges"]]
    ratios = histogram(
        "Source tokens for each target token",
        edges,
        ratio["counts"],
        x_label="source tokens / target tokens",
        y_label="pairs",
        key=key_path("lengths", "ratio", "counts"),
    )
    return section(
        "Lengths",
        side_by_side(*charts),
        ratios,
        origin("Counted over the pairs that were kept, in tokens; an end of sentence counts as one."),
    )


# Overlap.


def _overlap(facts: Facts) -> Section | None:
    if not facts.get("overlap"):
        return None
    rows: list[list[Cell]] = []
    for name, sides in facts["overlap"].items():
        for side, counts in sides.items():
            share = _share(counts["found"], counts["ngrams"])
            rows.append(
                [
                    name,
                    facts[f"{side}_lang"],
                    number_at(facts, "overlap", name, side, "ngrams"),
                    number_at(facts, "overlap", name, side, "found"),
                    Number(share, unit="share", digits=2),
                    share_bar(share or 0),
                ]
            )
    return section(
        "Overlap with validation and test sets",
        paragraph(
            "Runs of eight words of a set (characters, in a language written without spaces) that also stand in the "
            "training text. Set phrases give a few; many mean that the training text holds parts of the set, and that "
            "scores on it would be too good."
        ),
        table(["Set", "Language", "8-grams", "In training", "Share", ""], rows),
        origin("Counted over the different 8-grams of each side of a set, case and punctuation aside."),
    )


# Vocabulary.


def _vocabulary(facts: Facts) -> Section | None:
    tokenizer = facts.get("tokenizer")
    if tokenizer is None:
        return None
    sides = [side for side in ("src", "tgt") if side in tokenizer]
    rows: list[list[Cell]] = [
        [
            joined([name, element("span", {"class": "muted"}, f", {note}")]) if note else name,
            *(number_at(facts, "tokenizer", side, key, unit=unit) for side in sides),
        ]
        for key, (name, unit, note) in _FIGURES_OF_A_LANGUAGE.items()
        if any(key in tokenizer[side] for side in sides)
    ]
    made: list[list[Cell]] = [
        [name.replace("_", " "), shown_value(value, key_path("tokenizer", name))]
        for name, value in tokenizer.items()
        if not isinstance(value, Mapping)
    ]
    parts: list[str] = [table(["Tokenizer", ""], made, sortable=False)]
    if rows:
        languages = [facts[f"{side}_lang"] for side in sides]
        parts += [table(["", *languages], rows, sortable=False), origin("Counted over the pairs that were kept.")]
    if "pieces" in tokenizer:
        parts.append(_pieces(facts))
    if any("longest_pieces" in tokenizer[side] for side in sides):
        parts += [subheading("Longest pieces"), side_by_side(*(_longest_pieces(facts, side) for side in sides))]
        parts.append(origin("Pieces of the vocabulary with the most characters, and how often the text has them."))
    return section("Vocabulary", *parts)


def _pieces(facts: Facts) -> Html:
    src, tgt = facts["src_lang"], facts["tgt_lang"]
    names = {"src": f"in {src} alone", "tgt": f"in {tgt} alone", "both": "in both", "neither": "in neither"}
    rows = [(name, number_at(facts, "tokenizer", "pieces", key)) for key, name in names.items()]
    note = origin(
        "Pieces of the vocabulary by the language whose text uses them; those in neither cost room for nothing."
    )
    return joined([bars("Pieces of the vocabulary, by where they occur", rows), note])


def _longest_pieces(facts: Facts, side: str) -> Html:
    pieces = facts["tokenizer"][side].get("longest_pieces", [])
    lang = facts[f"{side}_lang"]
    rows: list[list[Cell]] = [
        [Text(one["piece"], lang), number_at(facts, "tokenizer", side, "longest_pieces", i, "count")]
        for i, one in enumerate(pieces)
    ]
    return table([f"Piece ({lang})", "Times"], rows)


# Samples, time and settings.


def _samples(facts: Facts) -> Section | None:
    if not facts.get("samples"):
        return None
    sources = facts["train"]["sources"]
    pairs = [
        Example(one["src"], one["tgt"], _place(facts, sources[one["source"]]["source"], one["line"]))
        for one in facts["samples"]
    ]
    return section(
        "Samples of what was kept",
        origin(
            f"{_plural(len(pairs), 'pair')}, drawn evenly from all pairs that were kept. "
            "Read a few: are they translations?"
        ),
        examples(pairs, facts["src_lang"], facts["tgt_lang"]),
    )


def _stages(facts: Facts) -> Section | None:
    if not facts.get("seconds"):
        return None
    total = sum(facts["seconds"].values())
    rows: list[list[Cell]] = [
        [stage, number_at(facts, "seconds", stage, unit="seconds"), Number(_share(seconds, total), unit="share")]
        for stage, seconds in facts["seconds"].items()
    ]
    together: list[Cell] = ["Together", Number(float(total), unit="seconds"), ""]
    chart = bars("Time of each stage", [(str(row[0]), row[1]) for row in rows if isinstance(row[1], Number)])
    return section(
        "Time",
        chart,
        table(["Stage", "Time", "Share"], rows, total=together),
        origin("Wall time, one stage after the other."),
    )


def _settings(facts: Facts) -> Section:
    parts: list[str] = []
    if facts.get("command"):
        parts.append(paragraph("Made by ", element("code", {}, facts["command"])))
    for heading, name, header in (
        ("Settings", "settings", "Setting"),
        ("Versions", "versions", "Package"),
        ("Hardware", "hardware", "Part"),
    ):
        if facts.get(name):
            rows: list[list[Cell]] = [
                [code(key) if name == "settings" else key, shown_value(value, key_path(name, key))]
                for key, value in facts[name].items()
            ]
            parts += [subheading(heading), table([header, "Value"], rows, searchable=name == "settings")]
    return section("Settings and versions", *parts, anchor="settings")
