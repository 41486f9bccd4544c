"""The report of an evaluation: report.html for people, report.json for programs, report.md to quote.

All are made of the same facts; each number of the page says in `data-key` where it stands in report.json.

The facts; of those after test_sets anything may be missing:

    kind         "evaluation"
    format_version, made_at (ISO 8601), command, commit (of mt, or null),
                 versions {name: version}
    system       what was scored: a file, a model, or the name of a run
    src_lang, tgt_lang
    test_sets    {NAME: {n_lines, n_references, scores: [{name, score, signature, confidence: {mean, low, high,
                 n_samples}}]}}
    valid        the same of the validation set, of a run
    comparison   {system, baseline, test, n_samples, test_sets: {NAME: {scores: [{name, score, baseline_score, p,
                 difference, verdict, signature, mean, low, high}], verdict}}}
    warnings     {NAME: [line]}
    analysis     {NAME: what mt.evaluate.analysis.analyse returns, without its sentences}
    sentences    {NAME: [sentence]}: all lines, or MOST_SENTENCES of them, evenly
    training     what mt.evaluate.runs.training_facts returns
    manifest     what the model stands on: description, settings {key: value}, changed [key], model {averaged_steps,
                 step, commit, versions, hardware, sha256}, starts [{started_at, command, commit, versions, hardware}],
                 corpus {fingerprint, train, valid, test}, translation {device, precision, hardware}

The report of a model has besides, as far as known: steps, train_seconds, n_tgt_tokens, n_parameters; that of a run:
name, n_src_tokens, src_fill, tgt_fill, basis {averaged_steps, decode}, best {step, bleu or loss}, notes [line],
translations {NAME: SHA-256}.
"""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mt.decode.oddities import (
    FEWEST_COPIES,
    FEWEST_REPEATED_TOKENS,
    LONGEST_EXTRA,
    LONGEST_PERIOD,
    LONGEST_RATIO,
    SHORTEST_LESS,
)
from mt.errors import ConfigError
from mt.evaluate.markdown import report_markdown
from mt.evaluate.significance import NO_DIFFERENCE, TEST_NAMES
from mt.facts import Facts, code, facts_json, number_at, shown_value
from mt.page import (
    Cell,
    Html,
    Number,
    Section,
    Series,
    Text,
    bars,
    element,
    folded,
    joined,
    key_path,
    labelled_texts,
    line_chart,
    notice,
    origin,
    page,
    paragraph,
    section,
    side_by_side,
    subheading,
    table,
    tiles,
    word_difference,
)
from mt.system.files import WriteError, write_text
from mt.system.provenance import source_commit, versions

JSON_NAME, HTML_NAME, MARKDOWN_NAME = "report.json", "report.html", "report.md"
KIND, FORMAT_VERSION = "evaluation", 1
_OTHERS = {"run.json": "a run", "manifest.json": "a model or a prepared corpus"}  # what lies there, by a file of it
MOST_SENTENCES = 5_000  # of a test set
_OPEN_SENTENCES = 1_000  # up to so many in all, tables of sentences are unfolded

AXES = {"step": "updates", "n_tgt_tokens": "target tokens", "train_minutes": "minutes"}  # of curves of training
ODDITIES = {
    "empty": "Empty",
    "repetitions": "In a loop",
    "copies": "Left as the source",
    "too_long": "Far too long",
    "too_short": "Far too short",
}


# --------------------------------------------------------------------------------------------------- facts and files


_ODDITY_RULES = (
    f"In a loop: up to {LONGEST_PERIOD} words come {FEWEST_COPIES} times in a row or more often, at least "
    f"{FEWEST_REPEATED_TOKENS} words are repeated, and more than twice as many as in the {{side}}. Far too long: over "
    f"{LONGEST_RATIO} words for each of the {{side}}, and {LONGEST_EXTRA} more; far too short: under a third of its "
    f"words, less {SHORTEST_LESS}. Translations made by people pass. Numbers: those of the reference, if the source "
    "has them too; it makes no difference how thousands and decimals are written."
)


def evaluation_facts(system: str, **facts: Any) -> dict[str, Any]:
    """The facts of a report, with what every report says of itself; those that are None are left out.

    Args:
        facts: by name; the analysis of each test set with its sentences.
    """
    kept = {name: value for name, value in facts.items() if value is not None}
    if "analysis" in kept:
        kept["sentences"] = {name: _evenly(one["sentences"]) for name, one in kept["analysis"].items()}
        kept["analysis"] = {
            name: {key: value for key, value in one.items() if key != "sentences"}
            for name, one in kept["analysis"].items()
        }
    return origin_facts(KIND) | {"system": system} | kept


def origin_facts(kind: str) -> dict[str, Any]:
    """What every report says of itself."""
    return {
        "kind": kind,
        "format_version": FORMAT_VERSION,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["mt", *sys.argv[1:]]),
        "commit": source_commit(),
        "versions": versions(),
    }


def _evenly(sentences: Sequence[Any]) -> list[Any]:
    n = len(sentences)
    if n <= MOST_SENTENCES:
        return list(sentences)
    return [sentences[i * n // MOST_SENTENCES] for i in range(MOST_SENTENCES)]


def check_folder(folder: Path) -> None:
    """Whether a report may be written there, before hours are spent on what it says; nothing is made yet.

    Raises:
        ConfigError: it is a file, cannot be written, or has another kind of report, or a run, in it.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"report: {folder} is a file: give a folder")
        if folder.suffix in (".html", ".json", ".md") and not folder.exists():
            raise ConfigError(f"report: {folder}: give a folder, where {HTML_NAME} and the others will lie")
        inside = folder.resolve()
        for place in (inside, *inside.parents[:2]):
            for name, what in _OTHERS.items():
                if (place / name).exists():
                    raise ConfigError(f"report: {folder} is part of {what} ({place}): give a folder of its own")
        if _is_other_report(folder / JSON_NAME):
            raise ConfigError(f"report: {folder} holds another {JSON_NAME}, which would be lost: give another folder")
        existing = next(place for place in (inside, *inside.parents) if place.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ConfigError(f"report: {folder} cannot be written: {error.strerror}") from None


def _is_other_report(path: Path) -> bool:
    """Whether there is a report.json that is not that of an evaluation."""
    try:
        kind = json.loads(path.read_text(encoding="utf-8"))["kind"]
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError):
        return True
    return kind not in (KIND, "comparison")


def write_report(facts: Facts, folder: Path) -> None:
    """Write report.json, report.md and report.html; each is whole or as it was.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    write_files(folder, facts_json(facts), report_markdown(facts), report_page(facts))


def write_files(folder: Path, json_text: str, markdown: str, html: str) -> None:
    """The three files of a report; the folder is made where there is none.

    Raises:
        CheckpointError: one cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(folder, error) from error
    write_text(folder / HTML_NAME, html)
    write_text(folder / MARKDOWN_NAME, markdown)
    # Last, since it says whether a report stands: after a kill in between, all three are written again.
    write_text(folder / JSON_NAME, json_text)


# --------------------------------------------------------------------------------------------------- the page


def report_page(facts: Facts) -> str:
    """HTML that stands alone."""
    analysed = facts.get("analysis", {})
    several = len(analysed) > 1
    parts: list[Section | None] = [_scores(facts), _comparison(facts)]
    for name in analysed:
        prefix = f"{name}: " if several else ""
        parts += [_where(facts, name, prefix), _examples(facts, name, prefix)]
    parts += [_curves(facts), _samples(facts)]
    parts += [_all_sentences(facts, name, f"{name}: " if several else "") for name in facts.get("sentences", {})]
    parts += [_manifest(facts)]
    title = f"Evaluation of {facts['system']}"
    return page(title, [part for part in parts if part is not None], lead=_summary(facts))


def _languages(facts: Facts) -> tuple[str | None, str | None]:
    return facts.get("src_lang"), facts.get("tgt_lang")


def short_name(name: str) -> str:
    """Of a metric, without what stands in brackets."""
    return name.partition(" (")[0]


# The summary.


def _summary(facts: Facts) -> list[str]:
    figures: list[tuple[str, Number | str, str]] = []
    for name, entry in facts["test_sets"].items():
        for i, score in enumerate(entry["scores"][:2]):
            number = number_at(facts, "test_sets", name, "scores", i, "score")
            interval = _interval(facts, ("test_sets", name, "scores", i, "confidence")) if "confidence" in score else ""
            figures.append((f"{short_name(score['name'])} on {name}", number, interval))
    for label, key, unit in (
        ("Updates", "steps", "count"),
        ("Time of training", "train_seconds", "seconds"),
        ("Parameters", "n_parameters", "count"),
        ("Target tokens learned from", "n_tgt_tokens", "count"),
    ):
        if key in facts:
            figures.append((label, number_at(facts, key, unit=unit), ""))
    warnings = [
        notice(f"{name}: {line}" if len(facts["test_sets"]) > 1 else line, kind="warning")
        for name, lines in facts.get("warnings", {}).items()
        for line in lines
    ]
    notes = [notice(note) for note in facts.get("notes", [])]
    verdicts = [
        paragraph(element("strong", {}, f"{name}: " if len(facts["test_sets"]) > 1 else ""), f"{entry['verdict']}.")
        for name, entry in facts.get("comparison", {}).get("test_sets", {}).items()
    ]
    return [made_at(facts), *warnings, *notes, tiles(figures), *verdicts]


def made_at(facts: Facts) -> Html:
    """When, and which files say the same."""
    when = facts["made_at"].replace("T", " ").replace("+00:00", " UTC")
    files = joined(["The same for programs: ", code(JSON_NAME), "; to quote: ", code(MARKDOWN_NAME), "."])
    return paragraph(f"Made at {when}. ", files)


def _interval(facts: Facts, path: tuple[str | int, ...]) -> Html:
    low, high = (number_at(facts, *path, end).html() for end in ("low", "high"))
    return joined(["95% between ", low, " and ", high])


# Scores.


def _scores(facts: Facts) -> Section:
    entries = [((("valid",)), "validation set", facts["valid"])] if "valid" in facts else []
    sets: list[tuple[tuple[str, ...], str, Facts]] = [
        *((("test_sets", name), name, entry) for name, entry in facts["test_sets"].items()),
        *entries,
    ]
    parts = []
    for path, name, entry in sets:
        n_references = entry.get("n_references", 1)
        more = f", {n_references} references for each" if n_references > 1 else ""
        has_intervals = any("confidence" in score for score in entry["scores"])
        headers = ["Metric", "Score", *(["95% low", "95% high"] if has_intervals else []), "Signature"]
        rows: list[list[Cell]] = []
        for i, score in enumerate(entry["scores"]):
            interval: list[Cell] = []
            if has_intervals:
                known = "confidence" in score
                interval = [
                    number_at(facts, *path, "scores", i, "confidence", end) if known else "" for end in ("low", "high")
                ]
            rows.append(
                [
                    score["name"],
                    number_at(facts, *path, "scores", i, "score"),
                    *interval,
                    code(score["signature"]),
                ]
            )
        parts += [
            subheading(name),
            paragraph(number_at(facts, *path, "n_lines").html(), f" lines{more}"),
            table(headers, rows, sortable=False),
        ]
    note = "sacreBLEU's figures: equal to what its command prints. Scores with different signatures are not comparable."
    if model := facts.get("manifest", {}).get("description"):
        note += f" It is {model} that translated."
    return section("Scores", *parts, origin(note))


def _comparison(facts: Facts) -> Section | None:
    comparison = facts.get("comparison")
    if comparison is None:
        return None
    parts: list[str] = [paragraph("The baseline is ", code(comparison["baseline"]), ".")]
    signatures: dict[str, str] = {}
    for name, entry in comparison["test_sets"].items():
        path = ("comparison", "test_sets", name, "scores")
        rows: list[list[Cell]] = []
        for i, score in enumerate(entry["scores"]):
            rows.append(
                [
                    short_name(score["name"]),
                    number_at(facts, *path, i, "score"),
                    number_at(facts, *path, i, "baseline_score"),
                    number_at(facts, *path, i, "difference"),
                    number_at(facts, *path, i, "p", digits=4),
                    score["verdict"],
                ]
            )
            signatures[score["name"]] = score["signature"]
        headers = ["Metric", "System", "Baseline", "Difference", "p", "The system is"]
        if len(comparison["test_sets"]) > 1:
            parts.append(subheading(name))
        parts.append(table(headers, rows, sortable=False))
    samples = number_at(facts, "comparison", "n_samples").html()
    parts.append(
        origin(
            f"By {TEST_NAMES[comparison['test']]} with ",
            samples,
            f" samples: p is how often chance alone makes a difference as large. “{NO_DIFFERENCE}” does not mean that "
            "the systems are equally good, but that this test set cannot tell.",
        )
    )
    signed = table(["Metric", "Signature"], [[name, code(one)] for name, one in signatures.items()], sortable=False)
    return section("Against the baseline", *parts, folded("Signatures of the test", signed))


# Where the system is good and bad.


def _where(facts: Facts, name: str, prefix: str) -> Section:
    analysis = facts["analysis"][name]
    side = analysis["beside"]
    has_baseline = "baseline_length_ratio" in analysis
    parts: list[str] = [
        subheading(f"By length of the {side}"),
        *_bucket_parts(facts, name, "by_length", f"Words of the {side}", has_baseline),
        origin("A score of few lines says little: look at their number."),
    ]
    if "by_rarest_word" in analysis:
        parts += [
            subheading("By the rarest word of the source"),
            *_bucket_parts(facts, name, "by_rarest_word", "Times in training", has_baseline),
            origin(
                "How often the source side of the training text has the word of a line that it has least often; "
                "0: a word that it never saw."
            ),
        ]
    parts += [subheading("Oddities"), _oddities(facts, name, has_baseline), origin(_ODDITY_RULES.format(side=side))]
    return section(f"{prefix}Where it is good and bad", *parts)


def _bucket_parts(facts: Facts, name: str, kind: str, header: str, has_baseline: bool) -> list[str]:
    buckets = facts["analysis"][name][kind]
    path = ("analysis", name, kind)
    columns = ["bleu", "baseline_bleu", "chrf", "baseline_chrf"] if has_baseline else ["bleu", "chrf"]
    titles = {"bleu": "BLEU", "chrf": "chrF2", "baseline_bleu": "baseline", "baseline_chrf": "baseline"}
    rows: list[list[Cell]] = [
        [
            bucket["bucket"],
            number_at(facts, *path, i, "n_lines"),
            *(number_at(facts, *path, i, column) for column in columns),
        ]
        for i, bucket in enumerate(buckets)
    ]
    shown = table([header, "Lines", *(titles[column] for column in columns)], rows, sortable=False)
    if kind != "by_length":
        bleu = [(bucket["bucket"], number_at(facts, *path, i, "bleu")) for i, bucket in enumerate(buckets)]
        return [shown] if has_baseline else [side_by_side(shown, bars("BLEU", bleu))]
    systems = {"bleu": facts["system"], "baseline_bleu": facts.get("comparison", {}).get("baseline", "baseline")}
    series = [
        Series(
            systems[column],
            [bucket["begin"] for bucket in buckets],
            [bucket[column] for bucket in buckets],
            key_path(*path),
            column,
            x_key=key_path(*path),
            x_field="begin",
        )
        for column in columns
        if column.endswith("bleu")
    ]
    if len(buckets) < 2:
        return [shown]
    chart = line_chart("BLEU by length", series, x_label=f"{header}, from", y_label="BLEU", from_zero=True)
    return [side_by_side(shown, chart)]


def _oddities(facts: Facts, name: str, has_baseline: bool) -> Html:
    analysis = facts["analysis"][name]
    path = ("analysis", name)
    rows: list[list[Cell]] = []
    for kind in analysis["oddities"]:
        place = (*path, "oddities", kind)
        baseline = [number_at(facts, *place, "baseline_n_lines")] if has_baseline else []
        rows.append([ODDITIES[kind], number_at(facts, *place, "n_lines"), *baseline, _lines(facts, place)])
    numbers = analysis["numbers"]
    if numbers["n"]:
        kept = [
            number_at(facts, *path, "numbers", f"{prefix}kept_share", unit="share")
            for prefix in ("", *(["baseline_"] if has_baseline else []))
        ]
        note = joined(
            [
                number_at(facts, *path, "numbers", "n_kept").html(),
                " of ",
                number_at(facts, *path, "numbers", "n").html(),
                *(["; lost in lines ", _lines(facts, (*path, "numbers"))] if numbers["n_lines"] else []),
            ]
        )
        rows.append(["Numbers preserved", *kept, note])
    ratios = [number_at(facts, *path, "length_ratio", digits=3)]
    if has_baseline:
        ratios.append(number_at(facts, *path, "baseline_length_ratio", digits=3))
    rows.append(["Words for each word of the reference", *ratios, ""])
    headers = ["", "System", *(["Baseline"] if has_baseline else []), "Lines"]
    return table(headers, rows, sortable=False)


def _lines(facts: Facts, path: tuple[str | int, ...]) -> Html:
    """The numbers of the first lines of some kind."""
    entry: Any = facts
    for part in path:
        entry = entry[part]
    shown: list[str] = [number_at(facts, *path, "lines", i).html() for i in range(len(entry["lines"]))]
    return joined([*shown, "…"] if entry["n_lines"] > len(shown) else shown, ", ")


# Sentences.


def _examples(facts: Facts, name: str, prefix: str) -> Section:
    analysis = facts["analysis"][name]
    has_baseline = "gained" in analysis
    titles = {"gained": "Better than the baseline", "lost": "Worse than the baseline"} if has_baseline else {}
    titles |= {"worst": "The worst", "best": "The best"}
    differing = "the two systems" if has_baseline else "translation and reference"
    parts: list[str] = [origin(f"By chrF2 of single sentences. Words in which {differing} differ are marked.")]
    for kind, title in titles.items():
        shown = [_case(facts, ("analysis", name, kind, i), entry) for i, entry in enumerate(analysis[kind])]
        count = f"{title}: {len(shown)} sentences" if len(shown) != 1 else f"{title}: 1 sentence"
        parts.append(folded(count, *shown, opened=kind in ("worst", "gained")))
    return section(f"{prefix}The best and the worst", *parts)


def _case(facts: Facts, path: tuple[str | int, ...], entry: Facts) -> Html:
    src_lang, tgt_lang = _languages(facts)
    texts: list[tuple[str, str | Html, str | None]] = []
    if "source" in entry:
        texts.append(("Source", entry["source"], src_lang))
    if "baseline" in entry:
        hypothesis, baseline = word_difference(entry["hypothesis"], entry["baseline"])
        texts.append(("Reference", entry["reference"], tgt_lang))
        texts += [("System", _or_empty(hypothesis), tgt_lang), ("Baseline", _or_empty(baseline), tgt_lang)]
    else:
        hypothesis, reference = word_difference(entry["hypothesis"], entry["reference"])
        texts += [("Reference", _or_empty(reference), tgt_lang), ("Translation", _or_empty(hypothesis), tgt_lang)]
    heading = [
        f"line {entry['line']:,} · chrF2 ",
        number_at(facts, *path, "chrf").html(),
        *([" against ", number_at(facts, *path, "baseline_chrf").html()] if "baseline" in entry else []),
        " · BLEU ",
        number_at(facts, *path, "bleu").html(),
        *([" against ", number_at(facts, *path, "baseline_bleu").html()] if "baseline" in entry else []),
        *(f" · {ODDITIES[oddity].lower()}" for oddity in entry["oddities"]),
    ]
    return labelled_texts(texts, joined(heading))


def _or_empty(text: Html) -> str | Html:
    return text if text else ""


def _all_sentences(facts: Facts, name: str, prefix: str) -> Section | None:
    sentences = facts["sentences"][name]
    src_lang, tgt_lang = _languages(facts)
    n_lines = facts["test_sets"][name]["n_lines"]
    first = sentences[0]
    has_source, has_baseline = "source" in first, "baseline" in first
    headers = [
        "Line",
        *(["Source"] if has_source else []),
        "Translation",
        *(["Baseline"] if has_baseline else []),
        "Reference",
        "chrF2",
        "BLEU",
        *(["chrF2 of the baseline", "Difference"] if has_baseline else []),
        "Oddities",
    ]
    rows: list[list[Cell]] = []
    for i, entry in enumerate(sentences):
        path = ("sentences", name, i)
        row: list[Cell] = [number_at(facts, *path, "line")]
        if has_source:
            row.append(Text(entry["source"], src_lang))
        row.append(Text(entry["hypothesis"], tgt_lang))
        if has_baseline:
            row.append(Text(entry["baseline"], tgt_lang))
        row += [Text(entry["reference"], tgt_lang), number_at(facts, *path, "chrf", digits=1)]
        row.append(number_at(facts, *path, "bleu", digits=1))
        if has_baseline:
            row.append(number_at(facts, *path, "baseline_chrf", digits=1))
            row.append(number_at(facts, *path, "chrf_difference", digits=1))
        row.append(", ".join(ODDITIES[oddity].lower() for oddity in entry["oddities"]))
        rows.append(row)
    is_whole = len(sentences) == n_lines
    count = f"{n_lines:,} sentences" if is_whole else f"{len(sentences):,} of {n_lines:,} sentences, evenly chosen"
    n_shown = sum(len(one) for one in facts["sentences"].values())
    shown = table(headers, rows, searchable=True)
    return section(
        f"{prefix}All sentences" if is_whole else f"{prefix}Sentences",
        folded(f"{count}; a click on a header sorts", shown, opened=n_shown <= _OPEN_SENTENCES),
    )


# Training.


def _curves(facts: Facts) -> Section | None:
    curves = facts.get("training", {}).get("curves", {})
    if not any(curve["step"] for curve in curves.values()):
        return None
    parts: list[str] = []
    for x, label in AXES.items():
        if any(None in curve[x] for curve in curves.values()):  # an older run, which did not record it all the time
            continue
        loss = line_chart(
            f"Loss against {label}",
            [
                _series(facts, "train", "train_loss", "training, smoothed labels", x),
                _series(facts, "valid", "valid_loss", "validation", x),
            ],
            x_label=label,
            y_label="nats per target token",
        )
        bleu = line_chart(
            f"BLEU against {label}",
            [_series(facts, "valid", "valid_bleu", "validation set", x)],
            x_label=label,
            y_label="BLEU",
        )
        parts.append(side_by_side(loss, bleu))
    parts.append(
        side_by_side(
            line_chart(
                "Learning rate",
                [_series(facts, "train", "learning_rate", "learning rate", "step")],
                x_label="updates",
                y_label="learning rate",
            ),
            line_chart(
                "Speed",
                [_series(facts, "train", "tgt_tokens_per_second", "target tokens a second", "step")],
                x_label="updates",
                y_label="target tokens a second",
            ),
        )
    )
    parts.append(
        origin(
            "Validation is measured without label smoothing and without dropout, so its loss lies below that of "
            "training at first. Its translations are those of a quick search; the scores above are of the whole one. "
            "Minutes count everything from the start, validation included. All points are in ",
            code("metrics.jsonl"),
            ".",
        )
    )
    return section("Training", *parts)


def _series(facts: Facts, curve: str, y: str, name: str, x: str) -> Series:
    columns = facts["training"]["curves"][curve]
    place = ("training", "curves", curve)
    return Series(name, columns[x], columns[y], key_path(*place, y), x_key=key_path(*place, x))


def _samples(facts: Facts) -> Section | None:
    samples = facts.get("training", {}).get("samples")
    if not samples:
        return None
    src_lang, tgt_lang = _languages(facts)
    shown = []
    for sample in samples:
        texts: list[tuple[str, str | Html, str | None]] = [
            ("Source", sample["source"], src_lang),
            ("Reference", sample["reference"], tgt_lang),
        ]
        texts += [(f"Update {one['step']:,}", one["translation"], tgt_lang) for one in sample["translations"]]
        shown.append(labelled_texts(texts))
    note = origin("The first lines of the validation set, as they were translated at some of the validations.")
    return section("Translations over time", note, *shown)


# What it stands on.


def _manifest(facts: Facts) -> Section:
    parts: list[str] = [paragraph("Made by ", code(facts["command"]))]
    manifest = facts.get("manifest")
    if manifest is not None:
        parts += [*_corpus(facts, manifest["corpus"]), *_starts(manifest["starts"])]
        model = {key: value for key, value in manifest["model"].items() if key not in ("versions", "hardware")}
        translation = manifest.get("translation", {})
        model |= {f"translated on: {key}": value for key, value in translation.items()}
        rows: list[list[Cell]] = [[key, _plain(value)] for key, value in model.items()]
        parts += [subheading("Model"), table(["", "Value"], rows, sortable=False)]
        changed = [key for key in manifest["changed"] if key in manifest["settings"]]
        settings: list[list[Cell]] = [
            [code(key), shown_value(manifest["settings"][key], key_path("manifest", "settings", key))]
            for key in manifest["settings"]
        ]
        chosen = [row for key, row in zip(manifest["settings"], settings, strict=True) if key in changed or _names(key)]
        parts += [
            subheading("Settings that are not the defaults"),
            table(["Setting", "Value"], chosen, sortable=False),
            folded("All settings", table(["Setting", "Value"], settings, searchable=True)),
        ]
    return section("What it stands on", *parts, *packages(facts))


def packages(facts: Facts) -> list[str]:
    """Versions of what made the report."""
    rows: list[list[Cell]] = [[name, version] for name, version in facts["versions"].items()]
    rows.append(["commit of mt", code(str(facts["commit"]))])
    return [subheading("Versions of this evaluation"), table(["", "Version"], rows, sortable=False)]


def _names(key: str) -> bool:
    return key in ("src_lang", "tgt_lang")


def _plain(value: Any) -> Html:
    if isinstance(value, Mapping):
        return joined([f"{key}: {one}" for key, one in value.items()], ", ")
    if isinstance(value, list):
        return joined([", ".join(str(one) for one in value)])
    return joined([str(value)])


def _corpus(facts: Facts, corpus: Facts) -> list[str]:
    parts: list[str] = [subheading("Data"), paragraph("Fingerprint ", code(corpus["fingerprint"]))]
    if "train" not in corpus:
        return parts
    place = ("manifest", "corpus")
    rows: list[list[Cell]] = []
    for i, source in enumerate(corpus["train"]["sources"]):
        path = (*place, "train", "sources", i)
        counts = [number_at(facts, *path, key) for key in ("pairs_read", "pairs_kept")]
        rows.append(["training", source["source"], *counts])
    others = [("validation", ("valid",)), *((f"test: {name}", ("test", name)) for name in corpus["test"])]
    for label, keys in others:
        entry: Any = corpus
        for key in keys:
            entry = entry[key]
        rows.append([label, entry["source"], number_at(facts, *place, *keys, "pairs"), ""])
    return [*parts, table(["Use", "Source", "Pairs read", "Pairs kept"], rows, sortable=False)]


def _starts(starts: Sequence[Facts]) -> list[str]:
    rows: list[list[Cell]] = [
        [
            start.get("started_at", ""),
            code(" ".join(start.get("command", []))),
            code(str(start.get("commit"))),
            _plain(start.get("versions", {})),
            _plain(start.get("hardware", {})),
        ]
        for start in starts
    ]
    if not rows:
        return []
    headers = ["Started at", "Command", "Commit", "Versions", "Hardware"]
    return [subheading("Starts of the training"), table(headers, rows, sortable=False)]
