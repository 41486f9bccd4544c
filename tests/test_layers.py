"""The layers of the package: a module imports its own layer and lower ones. LAYERS lists them, the lowest first."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "mt"

LAYERS: list[set[str]] = [
    {
        "errors",
        "units",
        "shipped",
        "system.console",
        "system.files",
        "system.locks",
        "system.malloc",
        "system.paths",
        "system.provenance",
        "system.signals",
        "system.workers",
    },
    {
        "report.charts",
        "report.data",
        "report.evaluation",
        "report.facts",
        "report.markdown",
        "report.page",
        "report.terminal",
        "report.text",
    },
    {"config.validation", "config.settings", "config.loading", "config.reference"},
    {
        "text.files",
        "text.delimited",
        "text.tmx",
        "text.hub",
        "text.lengths",
        "text.corpora",
        "text.tables",
        "text.normalise",
        "text.sentences",
        "text.languages",
        "text.clean",
        "text.overlap",
        "text.tokenizer",
        "text.growth",
        "text.corpus",
        "text.subwords",
        "text.shards",
        "text.prepare",
        "text.sample",
        "text.checks",
        "text.rehearsal",
        "text.reader",
        "text.replay",
    },
    {"capture", "system.device", "system.distributed", "data.packing", "data.backwards", "data.batch", "data.epochs"},
    {"dropout", "loss"},
    {
        "model",
        "model.context",
        "model.cpu",
        "model.fused",
        "model.kernels",
        "model.layers",
        "model.packed_attention",
        "model.positions",
        "model.training",
        "model.transformer",
    },
    {"checkpoint", "run_folder"},
    {
        "decode.alignment",
        "decode.candidates",
        "decode.files",
        "decode.graphs",
        "decode.lines",
        "decode.quality_flags",
        "decode.outputs",
        "decode.scorer",
        "decode.parallel",
        "decode.search",
        "decode.splitting",
        "decode.translator",
    },
    {
        "evaluation.metrics",
        "evaluation.scores",
        "evaluation.tokenization",
        "evaluation.significance",
        "evaluation.analysis",
        "evaluation.warnings",
        "evaluation.report_files",
        "evaluation.runs",
        "evaluation.findings",
        "evaluation.command",
        "evaluation.comparison",
        "explain.attention",
        "export.ctranslate2",
    },
    {
        "training.budget",
        "training.muon",
        "training.optimizer",
        "training.engine",
        "training.progress",
        "training.tracker",
        "training.validation",
        "training.loop",
    },
    {
        "api",
        "pipeline",
        "tools.bench",
        "tools.doctor",
        "tools.dry_run",
        "tools.sweep",
        "tools.sweep_table",
        "tools.verify",
    },
    {"cli", "__main__"},
]
LAYER_OF = {f"mt.{name}": number for number, names in enumerate(LAYERS) for name in names}
# `from mt import …` is for users. It imports on demand.
LAYER_OF["mt"] = LAYER_OF["mt.api"]


def _modules() -> dict[str, Path]:
    """Return dotted name → file for every module, without the `__init__` of the packages inside mt."""
    modules = {"mt": PACKAGE / "__init__.py"}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name != "__init__.py":
            modules[".".join(("mt", *path.relative_to(PACKAGE).with_suffix("").parts))] = path
    return modules


def _imports(path: Path, anywhere: bool = True) -> Iterator[str]:
    """Yield the dotted names that a file imports, optionally also inside functions; `from a import b` gives a.b."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside_functions = set()
    for function in ast.walk(tree):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            inside_functions.update(ast.walk(function))
    for node in ast.walk(tree):
        if not anywhere and node in inside_functions:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}, line {node.lineno}: write the import in full, from mt…"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _imported_modules(path: Path) -> set[str]:
    """Return the modules of mt that a file imports, with `mt.config.RunConfig` cut to `mt.config`."""
    found = set()
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] == "mt" and not (len(parts) == 2 and parts[1] == "__version__"):
            candidates = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
            found.add(next((module for module in candidates if module in LAYER_OF), name))
    return found


MODULES = _modules()


def test_every_module_has_a_layer():
    assert sorted(MODULES.keys() - LAYER_OF.keys()) == []


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_its_own_layer_and_lower_ones(module: str):
    imported = _imported_modules(MODULES[module])
    assert sorted(imported - LAYER_OF.keys()) == []
    assert [name for name in sorted(imported) if LAYER_OF[name] > LAYER_OF[module]] == []


def test_there_are_no_import_cycles():
    unvisited = {module: _imported_modules(path) & MODULES.keys() for module, path in MODULES.items()}
    while unvisited:
        free = [module for module, imported in unvisited.items() if not imported & unvisited.keys()]
        assert free, f"these import each other: {sorted(unvisited)}"
        for module in free:
            del unvisited[module]


def test_the_table_of_the_documentation_has_every_module_with_its_layer_the_lowest_at_the_bottom():
    text = (PACKAGE.parent / "docs/architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.+?) \|", text, re.MULTILINE)
    listed = [(file, int(layer)) for layer, files in rows for file in re.findall(r"`(mt/[\w/]+\.py)`", files)]
    expected = {str(path.relative_to(PACKAGE.parent)): LAYER_OF[module] for module, path in MODULES.items()}
    assert sorted(listed) == sorted(expected.items())
    assert [layer for _, layer in listed] == sorted(expected.values(), reverse=True)


@pytest.mark.parametrize("module", [module for module in MODULES if LAYER_OF.get(module, 9) <= 3])
def test_settings_and_text_do_not_import_torch(module: str):
    assert "torch" not in {name.partition(".")[0] for name in _imports(MODULES[module])}


def test_only_hub_imports_datasets_and_only_inside_functions():
    importers = [module for module in MODULES if _imports_datasets(module, anywhere=True)]
    assert importers == ["mt.text.hub"]
    assert not any(_imports_datasets(module, anywhere=False) for module in MODULES)


def _imports_datasets(module: str, anywhere: bool) -> bool:
    return "datasets" in {name.partition(".")[0] for name in _imports(MODULES[module], anywhere)}


def test_help_imports_only_what_any_typer_app_imports():
    """Help must appear at once: importing torch takes seconds."""
    code = """
import sys, typer
app = typer.Typer()
app.command()(lambda: None)
def packages(app):
    try: app(["--help"], prog_name="mt")
    except SystemExit: return {name.partition(".")[0] for name in sys.modules}
before = packages(app)
import mt.cli
print("imported:", *sorted(packages(mt.cli.app) - before - sys.stdlib_module_names))
"""
    told = subprocess.check_output([sys.executable, "-c", code], cwd=PACKAGE.parent, text=True)
    assert told.splitlines()[-1] == "imported: mt"
