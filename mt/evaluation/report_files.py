"""The files of a report: report.html for people, report.json for programs, report.md for quoting."""

from __future__ import annotations

import shlex
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mt.errors import ConfigError
from mt.evaluation.analysis import FLAG_RULES
from mt.report.evaluation import comparison_page, evaluation_page
from mt.report.facts import Evaluation, SystemComparison, facts_json
from mt.report.markdown import markdown
from mt.system.files import WriteError, read_json, write_text
from mt.system.provenance import source_commit, versions

JSON_NAME, HTML_NAME, _MARKDOWN_NAME = "report.json", "report.html", "report.md"
_KIND, _FORMAT_VERSION = "evaluation", 1
_OTHERS = {"run.json": "a run", "manifest.json": "a model or a prepared corpus"}  # a file → what its folder contains


def check_folder(folder: Path, *, may_overwrite: bool = False) -> None:
    """Check that a report can be written to a folder, before hours are spent on its content. Nothing is created.

    Args:
        may_overwrite: an earlier report in the folder may be replaced.
    Raises:
        ConfigError: the folder is a file, is not writable, is part of a run, or contains a report.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise ConfigError("report", f"{folder} is a file", "give a folder")
        if folder.suffix in (".html", ".json", ".md") and not folder.exists():
            fix = f"give a folder for {HTML_NAME} and the other files"
            raise ConfigError("report", f"{folder} is the name of a file", fix)
        inside = folder.resolve()
        for place in (inside, *inside.parents[:2]):
            for name, what in _OTHERS.items():
                if (place / name).exists():
                    raise ConfigError("report", f"{folder} is part of {what} ({place})", "give a separate folder")
        existing = folder / JSON_NAME
        if existing.exists() and json_object(existing).get("kind") not in (_KIND, "comparison"):
            problem = f"{folder} contains another kind of {JSON_NAME}, which would be overwritten"
            raise ConfigError("report", problem, "give another folder")
        for name in () if may_overwrite else (HTML_NAME, _MARKDOWN_NAME, JSON_NAME):
            if (folder / name).exists():
                problem = f"{folder} contains {name} already"
                raise ConfigError("report", problem, "give another folder, or add --overwrite")
        parent = next(place for place in (inside, *inside.parents) if place.exists())
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise ConfigError("report", f"{folder} cannot be written: {error.strerror}") from None


def json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file; return an empty dict if it does not contain an object."""
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def read_evaluation(folder: Path) -> Evaluation | None:
    """Read the report of an evaluation; return None if it is incomplete or of another version."""
    report = json_object(folder / JSON_NAME)
    is_ours = (report.get("kind"), report.get("format_version")) == (_KIND, _FORMAT_VERSION)
    if not is_ours or not all((folder / name).is_file() for name in (HTML_NAME, _MARKDOWN_NAME)):
        return None
    try:
        return Evaluation.model_validate(report)
    except ValidationError:  # somebody has changed it
        return None


def write_report(facts: Evaluation | SystemComparison, folder: Path) -> None:
    """Write report.json, report.md and report.html; a kill leaves each file either old or new, never partial.

    Raises:
        WriteError: the folder cannot be written.
    """
    origin = {
        "format_version": _FORMAT_VERSION,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["mt", *sys.argv[1:]]),
        "commit": source_commit(),
        "versions": versions(),
    }
    if isinstance(facts, Evaluation):
        facts = facts.model_copy(update={"kind": _KIND, **origin})
        html, text = evaluation_page(facts, FLAG_RULES), markdown("evaluation.md.j2", facts)
    else:
        facts = facts.model_copy(update={"kind": "comparison", **origin})
        html, text = comparison_page(facts), markdown("comparison.md.j2", facts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(folder, error) from error
    write_text(folder / HTML_NAME, html)
    write_text(folder / _MARKDOWN_NAME, text)
    # report.json is last, because it marks the report as complete: after a kill before it, all three are written again.
    write_text(folder / JSON_NAME, facts_json(facts.written()))
