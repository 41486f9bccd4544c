"""The table of docs/robustness.md: each row has a verdict, and a test that exists unless the verdict is open."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_each_verdict_about_a_report_names_a_test_that_exists():
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (ROOT / "docs" / "robustness.md").read_text("utf-8").splitlines()
        if line.startswith("| ") and line.split()[1].isdecimal()
    ]
    assert [int(row[0]) for row in rows] == list(range(1, 35))
    for *_, verdict, test in rows:
        assert verdict in ("handled", "refused", "told", "open")
        if verdict != "open":
            file, _, name = test.strip("`").partition("::")
            defined = {
                node.name
                for node in ast.walk(ast.parse((ROOT / "tests" / file).read_text("utf-8")))
                if isinstance(node, ast.FunctionDef)
            }
            assert name in defined, test
