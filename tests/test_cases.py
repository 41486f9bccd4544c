"""The commands of the cases in MT_REAL_DATA/cases, as their `cmd` says. Slow, because some need a trained model."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mt.text.tokenizer import Tokenizer

CASES = Path(os.environ.get("MT_REAL_DATA", ".")) / "cases"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CASES.is_dir(), reason="MT_REAL_DATA does not name the folder with cases/"),
]
MT = f"{sys.executable} -m mt"
ROOT = str(Path(__file__).resolve().parent.parent)


def bash(command: str, folder: Path, **env: object) -> tuple[int, str]:
    """Run a command in a folder, and return its exit status and all that it printed."""
    env = {"MT": MT, "PYTHONPATH": ROOT, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"} | env
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=os.environ | {name: str(value) for name, value in env.items()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of demo.yaml: the one that DEMO names, as in the commands, or a new one."""
    if "DEMO" in os.environ:
        return Path(os.environ["DEMO"]).resolve()
    folder = tmp_path_factory.mktemp("demo")
    status, printed = bash("$MT demo . && $MT train --config demo.yaml", folder)
    assert status == 0, printed
    return folder / "runs" / "demo"


@pytest.fixture
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a copy of the case named by the parameter."""
    return Path(shutil.copytree(CASES / request.param, tmp_path / "case"))


def command_of(case: Path) -> str:
    return (case / "cmd").read_text("utf-8")


def bleu_scores(printed: str) -> list[float]:
    return [float(score) for score in re.findall(r"BLEU[^\n]*?(\d+\.\d+)", printed)]


@pytest.mark.parametrize("case", ["glob-shards"], indirect=True)
def test_a_pattern_names_all_files_that_match(case: Path) -> None:
    status, printed = bash(command_of(case), case)
    assert status == 0, printed
    n_lines = sum(len(shard.read_text("utf-8").splitlines()) for shard in case.glob("shard-*.tsv"))
    assert f"{n_lines:,}" in printed


@pytest.mark.parametrize("case", ["quoted-tsv-header"], indirect=True)
def test_a_header_and_quotes_are_not_trained_on(case: Path) -> None:
    status, printed = bash(command_of(case), case)
    assert status == 0, printed
    (model,) = {path.read_bytes(): path for path in case.glob("prepared/*/tokenizer.model")}.values()
    tokenizer = Tokenizer.load(model)
    pieces = tokenizer.pieces(range(tokenizer.vocab_size))
    assert len(pieces) > 300
    assert not [piece for piece in pieces if '"' in piece and len(piece) > 1]


@pytest.mark.parametrize("case", ["split-digits"], indirect=True)
def test_each_digit_is_a_piece(case: Path) -> None:
    # With merged digits the text had 400 pieces. Without them it has 384.
    status, printed = bash(command_of(case).replace("=400", "=384"), case)
    assert status == 0, printed
    assert printed.splitlines()[-1] == str(["▁", *"0768880101"])


@pytest.mark.parametrize("case", ["zh-bleu-zero"], indirect=True)
def test_chinese_is_scored_by_its_characters_and_trained_to_the_end(case: Path) -> None:
    status, printed = bash(command_of(case), case)
    assert status == 0, printed
    ours, sacrebleus, *rest = bleu_scores(re.sub(r"(?m)^([\d.]+)$", r"BLEU \1", printed))
    assert ours == pytest.approx(sacrebleus, abs=0.05)
    assert ours > 80
    assert rest[0] > 0
    assert max(rest) > 90


@pytest.mark.parametrize("case", ["soft-hyphen"], indirect=True)
def test_soft_hyphens_cost_nothing(case: Path, demo: Path) -> None:
    status, printed = bash(command_of(case), case, DEMO=demo)
    assert status == 0, printed
    plain, hyphenated = bleu_scores(printed)
    assert hyphenated == plain > 85


@pytest.mark.parametrize("case", ["two-sentences-one-line"], indirect=True)
def test_both_sentences_of_a_line_are_translated(case: Path, demo: Path) -> None:
    status, printed = bash(command_of(case).replace("| head -5", ""), case, DEMO=demo)
    assert status == 0, printed
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    translations = [line["hypotheses"][0]["text"] for line in lines]
    assert len(translations) == len((case / "two.en").read_text("utf-8").splitlines())
    assert all(len(re.findall(r"[.?!]", translation)) == 2 for translation in translations)


@pytest.mark.parametrize("case", ["forged-models"], indirect=True)
def test_a_forged_model_ends_in_one_line_or_translates(case: Path, demo: Path) -> None:
    (case / "runs").mkdir()
    (case / "runs" / "demo").symlink_to(demo)
    assert bash(f"{sys.executable} forge.py", case)[0] == 0
    folders = sorted(path.parent for path in case.glob("*/manifest.json"))
    assert len(folders) > 30
    for folder in folders:
        status, printed = bash(f"echo A dog. | timeout 100 $MT translate --model {folder}", case)
        assert "Traceback" not in printed
        assert all(map(str.isprintable, printed.splitlines())), printed
        assert status == 0 or (status == 2 and len(printed.splitlines()) == 1), printed
    assert not (case / "PWNED").exists()
