"""A report as Markdown, short enough to be quoted: GitHub's, which has tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from mt.evaluate.significance import TEST_NAMES
from mt.facts import Facts
from mt.page import harmless
from mt.units import format_count, format_duration

_MOST_CHARS = 200  # of a text
_MOST_EXAMPLES = 3  # of each kind
# What means something to Markdown, to HTML inside of it, or to GitHub, where $…$ is a formula.
_MEANINGFUL = re.compile(r"[\\`*_\[\]<>#~&]|^[-+=]")
# Where a backslash is not enough: GitHub sees formulas and links before it sees that, and tables split at bars.
_STUBBORN = re.compile(r"[$|]|(?<=:)/(?=/)|(?<=www)\.")
_NUMBERED = re.compile(r"^(\d+)([.)])")  # an entry of a list


def as_text(text: str) -> str:
    """Text that Markdown shows as it is, in one line; of a long one the beginning."""
    line = " ".join(harmless(text).split())
    if len(line) > _MOST_CHARS:
        line = f"{line[:_MOST_CHARS]}…"
    line = _MEANINGFUL.sub(r"\\\g<0>", line)
    line = _STUBBORN.sub(lambda match: f"&#{ord(match[0])};", line)
    return _NUMBERED.sub(r"\1\\\2", line)


def as_code(text: str) -> str:
    """Text in a fixed width, in one line."""
    line = " ".join(harmless(text).split())
    if not line:
        return ""
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    padding = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{padding}{line}{padding}{fence}"


def markdown_table(headers: Sequence[str], rows: Iterable[Sequence[str]], n_text_columns: int = 1) -> str:
    """Of cells that are Markdown already; the columns after the first few are numbers, at the right.

    Args:
        n_text_columns: at the left.
    """
    aligned = ["---" if i < n_text_columns else "---:" for i in range(len(headers))]
    # A bar would end the cell, even inside of code.
    lines = ([cell.replace("|", "\\|") for cell in row] for row in (headers, aligned, *rows))
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def report_markdown(facts: Facts) -> str:
    """The main figures of a report, ending with a line break."""
    parts = [
        f"# Evaluation of {as_text(facts['system'])}",
        _facts_of_training(facts),
        *_warnings(facts),
        *_scores(facts),
        *_comparison(facts),
    ]
    for name in facts.get("analysis", {}):
        parts += _analysis(facts, name)
    parts += [_origin(facts)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts_of_training(facts: Facts) -> str:
    """Which model it is, and what it took."""
    parts = []
    if facts.get("src_lang"):
        parts.append(f"{as_text(facts['src_lang'])} → {as_text(facts['tgt_lang'])}")
    manifest: Any = facts.get("manifest") or {}
    if "description" in manifest:
        parts.append(as_text(manifest["description"]))
        parts.append(f"a beam of {manifest['settings'].get('decode.beam_size')}")
    if facts.get("n_parameters"):
        parts.append(f"{format_count(facts['n_parameters'])} parameters")
    if facts.get("steps"):
        parts.append(f"{facts['steps']:,} updates")
    if facts.get("n_tgt_tokens"):
        parts.append(f"{facts['n_tgt_tokens']:,} target tokens")
    if facts.get("train_seconds"):
        parts.append(f"{format_duration(facts['train_seconds'])} of training")
    return f"{', '.join(parts)}." if parts else ""


def _warnings(facts: Facts) -> list[str]:
    lines = [(name, line) for name, lines in facts.get("warnings", {}).items() for line in lines]
    notes = [f"Note: {as_text(note)}" for note in facts.get("notes", [])]
    return [*(f"**Warning:** {as_text(name)}: {as_text(line)}" for name, line in lines), *notes]


def _scores(facts: Facts) -> list[str]:
    sets = dict(facts["test_sets"])
    if "valid" in facts:
        sets["validation set"] = facts["valid"]
    rows = []
    for name, entry in sets.items():
        for score in entry["scores"]:
            confidence = score.get("confidence")
            interval = f" ± {(confidence['high'] - confidence['low']) / 2:.2f}" if confidence else ""
            cells = [as_text(name), as_text(score["name"]), as_code(score["signature"])]
            rows.append([*cells, f"{entry['n_lines']:,}", f"{score['score']:.2f}{interval}"])
    return ["## Scores", markdown_table(["Test set", "Metric", "Signature", "Lines", "Score"], rows, 3)]


def _comparison(facts: Facts) -> list[str]:
    comparison = facts.get("comparison")
    if comparison is None:
        return []
    rows, verdicts = [], []
    for name, entry in comparison["test_sets"].items():
        for score in entry["scores"]:
            rows.append(
                [
                    as_text(name),
                    as_text(score["name"].partition(" (")[0]),
                    as_text(score["verdict"]),
                    f"{score['score']:.2f}",
                    f"{score['baseline_score']:.2f}",
                    f"{score['difference']:+.2f}",
                    f"{score['p']:.4f}",
                ]
            )
        verdicts.append(f"{as_text(name)}: {as_text(entry['verdict'])}.")
    headers = ["Test set", "Metric", "The system is", "System", "Baseline", "Difference", "p"]
    note = f"{TEST_NAMES[comparison['test']].capitalize()}, {comparison['n_samples']:,} samples; the baseline is "
    return [
        "## Against the baseline",
        markdown_table(headers, rows, 3),
        *verdicts,
        f"{note}{as_code(comparison['baseline'])}.",
    ]


def _analysis(facts: Facts, name: str) -> list[str]:
    analysis = facts["analysis"][name]
    parts = [f"## {as_text(name)}: where it is good and bad"]
    for kind, header in (("by_length", f"Words of the {analysis['beside']}"), ("by_rarest_word", "Rarest word")):
        if kind in analysis:
            parts.append(_buckets(analysis[kind], header))
    odd = [f"{kind.replace('_', ' ')} {entry['n_lines']:,}" for kind, entry in analysis["oddities"].items()]
    numbers = analysis["numbers"]
    kept = f"; numbers preserved: {numbers['n_kept']:,} of {numbers['n']:,}" if numbers["n"] else ""
    parts.append(f"Lines that are {', '.join(odd)}{kept}; length ratio {analysis['length_ratio']:.3f}.")
    for kind in ("gained", "lost", "worst"):
        if analysis.get(kind):
            parts += [f"### {kind.capitalize()}", _examples(analysis[kind][:_MOST_EXAMPLES])]
    return parts


def _buckets(buckets: Sequence[Facts], header: str) -> str:
    columns = {"bleu": "BLEU", "baseline_bleu": "baseline", "chrf": "chrF2", "baseline_chrf": "baseline"}
    columns = {key: title for key, title in columns.items() if key in buckets[0]} if buckets else columns
    rows = [
        [as_text(bucket["bucket"]), f"{bucket['n_lines']:,}", *(f"{bucket[key]:.2f}" for key in columns)]
        for bucket in buckets
    ]
    return markdown_table([header, "Lines", *columns.values()], rows)


def _examples(sentences: Sequence[Facts]) -> str:
    keys = {"source": "Source", "reference": "Reference", "hypothesis": "Translation", "baseline": "Baseline"}
    keys = {key: title for key, title in keys.items() if key in sentences[0]}
    rows = [
        [*(as_text(entry[key]) or "*(empty)*" for key in keys), f"{entry['line']:,}", _chrf(entry)]
        for entry in sentences
    ]
    return markdown_table([*keys.values(), "Line", "chrF2"], rows, len(keys))


def _chrf(entry: Facts) -> str:
    against = f" against {entry['baseline_chrf']:.1f}" if "baseline_chrf" in entry else ""
    return f"{entry['chrf']:.1f}{against}"


def _origin(facts: Facts) -> str:
    manifest: Any = facts.get("manifest") or {}
    changed = [
        f"{as_code(key)} {as_code(str(manifest['settings'][key]))}"
        for key in manifest.get("changed", [])
        if key in manifest["settings"]
    ]
    parts = [f"Settings that are not the defaults: {', '.join(changed)}."] if changed else []
    return "\n\n".join([*parts, made_by(facts)])


def made_by(facts: Facts) -> str:
    """When, by which command, and with which versions."""
    packages = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    commit = f", commit {as_code(facts['commit'])}" if facts.get("commit") else ""
    manifest: Any = facts.get("manifest") or {}
    trained_by = manifest.get("model", {}).get("commit")  # of the last start that trained
    trained = f" Trained by commit {as_code(str(trained_by))}." if trained_by else ""
    corpus = f" Data {as_code(manifest['corpus']['fingerprint'])}." if manifest else ""
    made = f"Made at {facts['made_at']} by {as_code(facts['command'])} with {as_text(packages)}{commit}."
    return f"{made}{trained}{corpus}"
