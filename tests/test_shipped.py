"""`mt demo`, `mt docs` and shell completion: what ships with mt besides its code, in a checkout and in a wheel."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest

from mt import shipped
from mt.config.loading import load_config
from mt.config.settings import TextFiles
from tests.conftest import Run

ROOT = Path(__file__).resolve().parent.parent
NAMES = [f"{split}.{language}" for split in ("test", "train", "valid") for language in ("de", "en")]


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_demo_is_a_config_and_the_corpus_that_it_names(run: Run):
    status, stdout, stderr = run("demo")
    assert (status, stderr) == (0, "")
    assert stdout.startswith("demo.yaml and 20,000 pairs of English and German are ready. Next:\n\n  mt train --config")
    written = files_in(Path())
    assert sorted(written) == sorted(["demo.yaml", "data/demo/README.md", *(f"data/demo/{name}" for name in NAMES)])
    corpus = load_config("demo.yaml").data.train[0]
    assert isinstance(corpus, TextFiles)
    assert written[corpus.src].count(b"\n") == written[corpus.tgt].count(b"\n") == 20_000


def test_the_demo_goes_into_another_folder_with_the_command_that_leads_there(run: Run):
    status, stdout, _ = run("demo", "a b/c")
    assert status == 0
    assert "\n  cd 'a b/c'\n  mt train --config demo.yaml " in stdout
    assert (Path("a b/c") / "data/demo/train.en").is_file()


def test_the_demo_is_completed_where_files_are_missing(run: Run):
    run("demo")
    before = files_in(Path())
    Path("data/demo/valid.de").unlink()
    changed = Path("data/demo/valid.en").stat().st_mtime_ns
    assert run("demo")[0] == 0
    assert files_in(Path()) == before
    assert Path("data/demo/valid.en").stat().st_mtime_ns == changed


def test_the_demo_overwrites_no_other_file_and_writes_nothing_next_to_it(run: Run):
    Path("demo.yaml").write_text("name: mine\n", "utf-8")
    error = "error: demo.yaml exists and is not the demo's file. Give another folder: mt demo DIR.\n"
    assert run("demo") == (2, "", error)
    assert files_in(Path()) == {"demo.yaml": b"name: mine\n"}


def test_the_commands_that_the_demo_recommends_exist(run: Run):
    recommended = re.findall(r"\bmt ([^#\n]+)", run("demo")[1])
    assert [shlex.split(command)[0] for command in recommended] == ["train", "translate", "eval", "docs"]
    for command in recommended:
        name, *options = shlex.split(command)
        help_text = run(name, "--help")[1]
        assert all(f"{option} " in help_text for option in options if option.startswith("--"))


def test_a_user_who_trains_on_the_demo_without_its_corpus_is_told_where_to_get_it(run: Run, tmp_path: Path):
    error = f"error: data/demo/train.en: no such file (looked for in {tmp_path}). Run mt demo to write it.\n"
    assert run("prepare", "--config", "demo.yaml")[2].endswith(error)


def test_docs_lists_the_pages_with_their_folder_and_title(run: Run):
    status, stdout, _ = run("docs")
    first, *pages = stdout.splitlines()
    assert (status, first) == (0, f"{ROOT / 'docs'}:")
    assert [page.split()[0] for page in pages] == [path.stem for path in sorted((ROOT / "docs").glob("*.md"))]
    assert "  score           Scoring given translations" in pages


@pytest.mark.parametrize("name", ["score", "score.md", "docs/score.md"])
def test_docs_prints_a_page_as_it_is_into_a_pipe(run: Run, name: str):
    assert run("docs", name) == (0, (ROOT / "docs/score.md").read_text("utf-8"), "")


def test_docs_renders_a_page_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    shipped.print_page("translate")
    shown = re.sub(r"\x1b(\[[0-9;]*m|\]8;[^\x1b]*\x1b\\)", "", capsys.readouterr().out)  # without colours and links
    assert "##" not in shown
    assert "mt translate --model runs/captions" in shown
    assert "(export.md)" in shown
    assert "[export.md]" not in shown
    assert max(map(len, shown.splitlines())) == 120


def test_a_page_that_does_not_exist_is_named_with_one_that_does(run: Run):
    assert run("docs", "trainings") == (2, "", "error: PAGE: there is no page trainings. Did you mean training?\n")
    status, _, stderr = run("docs", "x")
    assert status == 2
    assert stderr.startswith("error: PAGE: there is no page x. Choose from README, ")


@pytest.mark.parametrize("command", ["doctor", "translate", "eval", "compare"])
def test_help_names_a_page_that_exists(run: Run, command: str):
    (page,) = re.findall(r"More: mt docs (\w+)", " ".join(run(command, "--help")[1].split()))
    assert page in shipped.documentation()


def test_the_wheel_has_every_folder_that_the_code_looks_for():
    """At the same path below the package as in a checkout below its root."""
    built = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]["targets"]
    code = "".join(path.read_text("utf-8") for path in (ROOT / "mt").rglob("*.py"))
    wanted = {*re.findall(r'shipped_folder\("([^"]+)"\)', code), str(shipped.DEMO_CORPUS)}
    assert wanted == {"configs", "data/demo", "docs"}
    assert built["wheel"]["force-include"] == {name: f"mt/{name}" for name in wanted}
    assert wanted <= set(built["sdist"]["include"])


def test_folders_in_the_wheel_are_found_inside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "mt")
    assert shipped.shipped_folder("docs") == tmp_path / "docs"
    (tmp_path / "mt/docs").mkdir(parents=True)
    assert shipped.shipped_folder("docs") == tmp_path / "mt/docs"


def test_a_shell_completes_commands_and_options(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("_MT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "mt translate --be")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert run()[1].split() == ["--beam-size"]


def test_the_readme_is_short_and_has_every_image_each_of_them_small():
    text = (ROOT / "README.md").read_text("utf-8")
    assert text.count("\n") <= 150
    images = sorted((ROOT / "docs/images").iterdir())
    assert sorted(re.findall(r"!\[.+\]\((.+)\)", text)) == [str(image.relative_to(ROOT)) for image in images]
    assert max(image.stat().st_size for image in images) < 200_000
