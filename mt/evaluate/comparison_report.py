"""The report of a comparison: report.html, report.json and report.md, of the facts of `comparison_facts`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mt.evaluate.comparison import figure_text, known_figures, p_of, score_text, title, verdicts
from mt.evaluate.markdown import as_code, as_text, made_by, markdown_table
from mt.evaluate.report import AXES, made_at, origin_facts, packages, short_name, write_files
from mt.evaluate.significance import LARGEST_P, NO_DIFFERENCE, TEST_NAMES
from mt.facts import Facts, code, facts_json, number_at, shown_value
from mt.page import (
    Cell,
    Html,
    Section,
    Series,
    joined,
    key_path,
    line_chart,
    origin,
    page,
    paragraph,
    section,
    side_by_side,
    subheading,
    table,
)

KIND = "comparison"
_GROUPS = f"Systems that share a letter cannot be told apart at p < {LARGEST_P}; those that share none can."


def write_report(facts: Facts, folder: Path) -> None:
    """Write report.json, report.md and report.html; each is whole or as it was.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    facts = origin_facts(KIND) | dict(facts)
    write_files(folder, facts_json(facts), comparison_markdown(facts), comparison_page(facts))


def comparison_page(facts: Facts) -> str:
    """HTML that stands alone."""
    sentences = [
        paragraph(f"{name}: {sentence}") for name, entry in facts["test_sets"].items() for sentence in verdicts(entry)
    ]
    parts = [
        *(_test_set(facts, name) for name in facts["test_sets"]),
        _curves(facts),
        _differences(facts),
        section("What it stands on", paragraph("Made by ", code(facts["command"])), *packages(facts)),
    ]
    return page(title(facts), [part for part in parts if part is not None], lead=[made_at(facts), *sentences])


def _test_set(facts: Facts, name: str) -> Section:
    entry = facts["test_sets"][name]
    metrics = entry["metrics"]
    figures = known_figures(facts)
    headers = ["System"]
    for metric in metrics:
        has_interval = any("confidence" in score for score in metric["scores"])
        headers += [short_name(metric["name"]), *(["95% low", "95% high"] if has_interval else []), "Group"]
    headers += [name.capitalize() for name in figures.values()]
    rows: list[list[Cell]] = []
    for i in metrics[0]["ranking"]:
        row: list[Cell] = [facts["systems"][i]["name"]]
        for m, metric in enumerate(metrics):
            path = ("test_sets", name, "metrics", m, "scores", i)
            row.append(number_at(facts, *path, "score"))
            if "confidence" in metric["scores"][i]:
                row += [number_at(facts, *path, "confidence", end) for end in ("low", "high")]
            row.append(" ".join(metric["groups"][i]))
        row += [
            number_at(facts, "systems", i, key, unit="seconds" if key == "train_seconds" else "count")
            for key in figures
        ]
        rows.append(row)
    signatures: list[list[Cell]] = [
        [short_name(metric["name"]), code(metric["signature"]), code(metric["test_signature"])] for metric in metrics
    ]
    return section(
        name,
        paragraph(number_at(facts, "test_sets", name, "n_lines").html(), " lines"),
        table(headers, rows),
        origin(_GROUPS),
        *(_pairs(facts, name, m) for m in range(len(metrics))),
        origin(
            f"By {TEST_NAMES[facts['test']]} with ",
            number_at(facts, "n_samples").html(),
            " samples for each pair: p is how often chance alone makes a difference as large. Of twenty pairs of equal "
            "systems, one is called different by chance.",
        ),
        table(["Metric", "Signature", "Of the test"], signatures, sortable=False),
    )


def _pairs(facts: Facts, name: str, m: int) -> Html:
    """p of each two systems, those of the row against those of the column."""
    metric = facts["test_sets"][name]["metrics"][m]
    ranking = metric["ranking"]
    names = [facts["systems"][i]["name"] for i in ranking]
    rows: list[list[Cell]] = []
    for place, i in enumerate(ranking):
        row: list[Cell] = [f"{place + 1}. {names[place]}"]
        for j in ranking:
            found = p_of(metric, i, j)
            if found is None:
                row.append("")
                continue
            number, verdict = found
            p = number_at(facts, "test_sets", name, "metrics", m, "pairs", number, "p", digits=4)
            sign = "no difference" if verdict == NO_DIFFERENCE else verdict
            row.append(joined([p.html(), f" {sign}"]))
        rows.append(row)
    headers = ["p", *(f"{place + 1}." for place in range(len(names)))]
    heading = subheading(f"{short_name(metric['name'])}: is the system of the row better than that of the column?")
    return joined([heading, table(headers, rows, sortable=False)])


def _curves(facts: Facts) -> Section | None:
    charts = []
    for x, label in AXES.items():
        series = _series(facts, x)
        if series:
            charts.append(
                line_chart(f"BLEU on the validation set against {label}", series, x_label=label, y_label="BLEU")
            )
    if not charts:
        return None
    note = origin("Of the whole run that a model comes from, by a quick search.")
    return section("Training", side_by_side(*charts), note)


def _series(facts: Facts, x: str) -> list[Series]:
    """A line for each run that has some; two models of one run have one together."""
    found: list[Series] = []
    for i, training in enumerate(facts["training"]):
        curve = (training or {}).get("curves", {}).get("valid", {"step": []})
        if not curve["step"] or any(value is None for value in curve[x]):
            continue
        if any(curve == facts["training"][j]["curves"]["valid"] for j in range(i) if facts["training"][j]):
            continue
        y_key, x_key = (key_path("training", i, "curves", "valid", name) for name in ("valid_bleu", x))
        found.append(Series(facts["systems"][i]["name"], curve[x], curve["valid_bleu"], y_key, x_key=x_key))
    return found


def _differences(facts: Facts) -> Section | None:
    if "differences" not in facts:
        return None
    if not facts["differences"]:
        return section("Configs", paragraph("The configs are the same."))
    names = [system["name"] for system in facts["systems"]]
    rows: list[list[Cell]] = [
        [code(key), *(shown_value(value, key_path("differences", key, i)) for i, value in enumerate(values))]
        for key, values in facts["differences"].items()
    ]
    return section("Configs", table(["Setting", *names], rows), origin("Settings that are not the same in all."))


# --------------------------------------------------------------------------------------------------- Markdown


def comparison_markdown(facts: Facts) -> str:
    """The tables of a comparison, ending with a line break."""
    parts = [f"# {as_text(title(facts))}"]
    for name, entry in facts["test_sets"].items():
        parts += [f"## {as_text(name)}, {entry['n_lines']:,} lines", _scores(facts, entry), _GROUPS]
        parts += [as_text(sentence) for sentence in verdicts(entry)]
        parts.append(
            f"{TEST_NAMES[facts['test']].capitalize()}, {facts['n_samples']:,} samples. Signatures: {_signed(entry)}."
        )
    if "differences" in facts:
        names = [as_text(system["name"]) for system in facts["systems"]]
        rows = [[as_code(key), *(as_code(str(one)) for one in values)] for key, values in facts["differences"].items()]
        table_of_rows = markdown_table(["Setting", *names], rows, len(names) + 1)
        parts += ["## Configs", table_of_rows if rows else "The configs are the same."]
    parts.append(made_by(facts))
    return "\n\n".join(parts) + "\n"


def _signed(entry: Mapping[str, Any]) -> str:
    return ", ".join(as_code(metric["test_signature"]) for metric in entry["metrics"])


def _scores(facts: Facts, entry: Mapping[str, Any]) -> str:
    figures = known_figures(facts)
    headers = ["System", *(short_name(metric["name"]) for metric in entry["metrics"])]
    rows: list[Sequence[str]] = []
    for i in entry["metrics"][0]["ranking"]:
        system = facts["systems"][i]
        scores = [f"{score_text(metric['scores'][i])} {' '.join(metric['groups'][i])}" for metric in entry["metrics"]]
        rows.append([as_text(system["name"]), *scores, *(figure_text(key, system.get(key)) for key in figures)])
    return markdown_table([*headers, *(name.capitalize() for name in figures.values())], rows)
