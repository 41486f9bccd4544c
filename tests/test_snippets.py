"""Every fenced block of README.md, CONTRIBUTING.md, docs/ and of the README of an export does what a reader tries.

A page is a session in one folder, which has a trained model for each `runs/NAME` that the page names, and a little text
and a config under each other name. Blocks of `sh`, and the lines after `$` in `console`, run in bash, where `mt` is a
fork of a process that has imported it. Then the `python` blocks run as one program. A `yaml` block is loaded as a
config, or as a part of one. What takes minutes, a download or another machine is parsed only: PARSED_ONLY and NOT_RUN.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import shutil
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import pytest
import torch
import typer
import yaml

from mt.cli import app
from mt.config.loading import load_config
from tests.forks import Fork, run_mt
from tests.toys import toy_text, write_lines

markdown_it = pytest.importorskip("markdown_it")

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SHOWN = {"text", "diff", "mermaid"}  # blocks that are not for a program
# Commands of mt whose options are parsed and whose config is loaded, and which do not run here: pattern → why not.
PARSED_ONLY = {
    r"train (?!.*init_from).*--set ": "makes another run of the same name, or trains for minutes",
    r"(doctor|train) .*--config (base|big|multi30k)\b": "downloads text",
    r"train .*--config demo\b": "trains for minutes",
    r"sweep (?!.*--dry-run)": "trains for minutes",
    r"verify-resume ": "trains for minutes",
    r"bench ": "measures for 20 seconds",
}
# Other programs: their file and their options must exist.
NOT_RUN = {
    "pip": "changes the environment",
    "pipx": "changes the environment",
    "uv": "changes the environment",
    "git": "needs a network",
    "tensorboard": "serves until it is stopped",
    "torchrun": "starts several processes",
    "python": "scripts that measure",
    "scripts": "install packages, or take minutes",
}
TEXT = re.compile(r"[\w./-]+\.(en|de|zh|txt|tsv)(\.gz)?|[\w./-]+\.gz|newstest2017\.[ab]|ref")
RUN = re.compile(r"runs/[\w.-]+")
CONFIG = re.compile(r"[\w./-]+\.yaml")
SEVERAL = "toy-europe"
OUTPUT_OPTIONS = {"--output", "--alignments", ">", "init"}
TOY = """
src_lang: en
tgt_lang: de
data:
  train: [{src: toy/train.en, tgt: toy/train.de}]
  valid: {src: toy/valid.en, tgt: toy/valid.de}
  test: {held_out: {src: toy/test.en, tgt: toy/test.de}}
  max_tokens: 64
tokenizer: {vocab_size: 380}
model: {d_model: 32, n_heads: 2, d_ff: 64, n_encoder_layers: 1, n_decoder_layers: 1}
train:
  {batch_tokens: 256, max_steps: 60, warmup_steps: 10, peak_lr: 1e-2, validate_every: 30, checkpoint_every: 30,
  log_every: 20, average_last: 2, device: cpu, precision: fp32}
"""


@dataclass(frozen=True)
class Block:
    language: str
    line: int  # of its first line in the page
    content: str


def blocks_of(text: str) -> list[Block]:
    fences = [token for token in markdown_it.MarkdownIt().parse(text) if token.type == "fence"]
    return [Block(token.info.partition(" ")[0], token.map[0] + 2, token.content) for token in fences]


# --- The folder of a page ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with toy text in `toy`, and two runs that have been trained on it, one of them in several directions."""
    folder = tmp_path_factory.mktemp("snippets")
    for name, n, seed in (("train", 400, 1), ("valid", 20, 2), ("test", 20, 3)):
        for language, lines in zip(("en", "de"), toy_text(n, seed), strict=True):
            write_lines(folder / f"toy/{name}.{language}", lines)
    (folder / "toy.yaml").write_text(f"name: toy\n{TOY}", "utf-8")
    entry = "{src: toy/train.en, tgt: toy/train.de"
    several = f"{entry}, both_directions: true}}, {entry}, tgt_lang: fr}}"
    for run, options in {"toy-run": [], SEVERAL: ["--set", f"data.train=[{several}]"]}.items():
        arguments = ["train", "--config", "toy.yaml", "--run-dir", run, *options]
        done = run_mt(*arguments, before=partial(os.chdir, folder))
        assert done.returncode == 0, done.stderr.decode()
    return folder


def words_of(block: Block) -> list[str]:
    lines = commands_of(block).replace("\\\n", " ").splitlines()
    return [word for line in lines for word in shlex.split(line, comments=True)]


def commands_of(block: Block) -> str:
    """The lines that a reader would type, each in its place."""
    if block.language != "console":
        return block.content
    lines = block.content.splitlines()
    return "".join(f"{line.removeprefix('$ ') if line.startswith('$ ') else ''}\n" for line in lines)


def provide(folder: Path, blocks: list[Block]) -> None:
    """Write what the blocks read and no command of theirs writes."""
    words = [word for block in blocks if block.language in ("sh", "console") for word in words_of(block)]
    outputs = {word for before, word in pairwise(words) if before in OUTPUT_OPTIONS}
    words += [word.partition("=")[2] for word in words]
    words += [f"{word[:-1]}{name}" for word in words if word.endswith(".*") for name in ("a", "b")]
    programs = "".join(block.content for block in blocks if block.language == "python")
    outputs |= {*re.findall(rf'run_dir="({RUN.pattern})"', programs)}
    words += re.findall(RUN, programs)
    for name in {*words} - outputs:
        path = folder / name
        if RUN.fullmatch(name):
            shutil.copytree(folder / (SEVERAL if name == "runs/europe" else "toy-run"), path)
        elif CONFIG.fullmatch(name) and not (ROOT / "configs" / name).exists():
            path.write_text(f"name: {path.stem}\n{TOY}", "utf-8")
        elif TEXT.fullmatch(name):
            path.parent.mkdir(parents=True, exist_ok=True)
            text = (folder / f"toy/test.{'de' if '.de' in name else 'en'}").read_bytes()
            if ".tsv" in name:
                sides = ((folder / f"toy/test.{side}").read_bytes().splitlines() for side in ("en", "de"))
                text = b"".join(b"%b\t%b\n" % pair for pair in zip(*sides, strict=True))
            path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)


# --- Commands ---------------------------------------------------------------------------------------------------------

CLIENT = f"""#!{sys.executable} -SE
import json, os, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(os.environ["SNIPPETS_SOCKET"])
stdin = "" if sys.stdin.isatty() else sys.stdin.read()
request = {{"argv": [os.path.basename(sys.argv[0]), *sys.argv[1:]], "stdin": stdin, "folder": os.getcwd()}}
connection.sendall(json.dumps(request).encode())
connection.shutdown(socket.SHUT_WR)
answer = json.loads(connection.makefile().read())
sys.stdout.write(answer["out"])
sys.stderr.write(answer["err"])
sys.exit(answer["status"])
"""


class Commands(socketserver.ThreadingUnixStreamServer):
    """Runs the commands that a client in bash is asked for, one at a time."""

    daemon_threads = True
    lock = threading.Lock()

    class RequestHandlerClass(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            request = json.loads(self.rfile.read())
            with Commands.lock:
                try:
                    status, out, err = run_command(request["argv"], request["stdin"], Path(request["folder"]))
                except Exception as error:
                    status, out, err = 99, "", f"{type(error).__name__}: {error}"
            self.wfile.write(json.dumps({"status": status, "out": out, "err": err}).encode())

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), self.RequestHandlerClass)


def run_command(argv: list[str], stdin: str, folder: Path) -> tuple[int, str, str]:
    program, *arguments = argv
    if program == "torchrun":
        parse(arguments[arguments.index("mt") + 1 :])
    elif program == "python" or (ROOT / "scripts" / program).exists():
        script = Path(arguments.pop(0) if program == "python" else f"scripts/{program}")
        check_options(script, arguments)
    elif program == "mt" and parse(arguments) and is_parsed_only(arguments):
        load_named_config(arguments, folder)
    elif program == "mt":
        done = run_mt(
            *arguments, stdin=stdin.encode(), before=partial(os.chdir, folder), environment={"OMP_NUM_THREADS": "1"}
        )
        if arguments[:2] == ["config", "init"]:  # and now the reader enters languages and files
            (folder / arguments[2]).write_text(f"name: {Path(arguments[2]).stem}\n{TOY}", "utf-8")
        return done.returncode, done.stdout.decode(), done.stderr.decode()
    return 0, "", ""


def is_parsed_only(arguments: list[str]) -> bool:
    return any(re.match(pattern, " ".join(arguments)) for pattern in PARSED_ONLY)


def load_named_config(arguments: list[str], folder: Path) -> None:
    following: dict[str, list[str]] = defaultdict(list)
    for before, word in pairwise(arguments):
        following[before].append(word)
    for name in following["--config"]:
        load_config(folder / name if (folder / name).exists() else name, following["--set"])


def parse(arguments: list[str]) -> bool:
    """Parse the arguments of `mt` as it does itself; True, or a click.UsageError."""
    command: Any = typer.main.get_command(app)
    context, name = None, "mt"
    while True:
        context = command.make_context(name, list(arguments), parent=context)
        if not isinstance(command, click.Group | typer.core.TyperGroup):
            return True
        name, command, arguments = command.resolve_command(context, [*context._protected_args, *context.args])


def check_options(script: Path, arguments: list[str]) -> None:
    """Check that a script exists, and that it, or the Python script of that name, has the options."""
    files = [file for file in (ROOT / script, ROOT / script.with_suffix(".py")) if file.exists()]
    assert files, f"{script} does not exist"
    for before, module in pairwise(arguments):
        files += [ROOT / f"{module.replace('.', '/')}.py"] if before == "-m" and "." in module else []
    if script.name == "test.sh":  # they are pytest's
        return
    text = "".join(file.read_text("utf-8") for file in files)
    missing = [word for word in arguments if word.startswith("--") and word not in text]
    assert not missing, f"{script} has no {' '.join(missing)}"


@contextmanager
def shell() -> Iterator[dict[str, str]]:
    """Yield the environment of a bash in which `mt` and what is not run are ours."""
    with tempfile.TemporaryDirectory() as home, Commands(Path(home, "socket")) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        for name in ("mt", *(name for name in NOT_RUN if name != "scripts")):
            client(Path(home, "bin", name))
        path = f"{home}/bin:{os.environ['PATH']}"
        yield {**os.environ, "PATH": path, "SNIPPETS_SOCKET": str(Path(home, "socket"))}
        server.shutdown()


def client(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(CLIENT)
    path.chmod(0o755)


def run_shell(block: Block, folder: Path, environment: dict[str, str]) -> str:
    """Return what went wrong."""
    # Lines have the numbers that they have in the page.
    start = "set -Eeuo pipefail; trap 'echo \"line $LINENO: $BASH_COMMAND\" >&2' ERR"
    (folder / ".block.sh").write_text(start + "\n" * (block.line - 1) + commands_of(block) + "wait\n")
    command = ["bash", ".block.sh"]
    done = subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    return "" if done.returncode == 0 else done.stderr


# --- Configs and programs ---------------------------------------------------------------------------------------------


def load_yaml(block: Block, folder: Path) -> None:
    part = yaml.safe_load(block.content) or {}  # a comment, such as the line for editors
    if isinstance(part, dict) and {"name", "data"} <= part.keys():
        (folder / ".block.yaml").write_text(block.content, "utf-8")
        load_config(folder / ".block.yaml")
        return
    whole = {"name": "part", **yaml.safe_load(TOY)}
    for key, value in (part if isinstance(part, dict) else {"data": {"train": part}}).items():
        whole[key] = whole.get(key, {}) | value if isinstance(value, dict) else value
    load_config(whole)


def run_program(folder: Path, page: str, code: str) -> None:
    torch.set_num_threads(1)
    os.chdir(folder)
    exec(compile(code, page, "exec"), {"__name__": "__main__"})


def problems_of(page: str, text: str, folder: Path) -> list[str]:
    """Try all blocks of a page; return what goes wrong, with the page and the line."""
    blocks, problems = blocks_of(text), []
    provide(folder, blocks)
    (folder / "scripts").mkdir(exist_ok=True)
    for script in (ROOT / "scripts").glob("*.sh"):
        client(folder / "scripts" / script.name)
    known = {"sh", "console", "yaml", "python", *SHOWN}
    with shell() as environment:
        for block in blocks:
            problem = ""
            if block.language not in known:
                problem = f"is tagged {block.language!r}: expected one of {', '.join(sorted(known))}"
            elif block.language in ("sh", "console"):
                problem = run_shell(block, folder, environment)
            elif block.language == "yaml":
                try:
                    load_yaml(block, folder)
                except Exception as error:
                    problem = f"{type(error).__name__}: {error}"
            problems += [f"{page}:{block.line}: {problem}"] if problem else []
    code = ""
    for block in blocks:
        if block.language == "python":
            code += "\n" * (block.line - 1 - code.count("\n")) + block.content
    if code:
        program = Fork(folder / ".log", run_program, folder, page, code)
        if program.wait(300):
            problems.append(f"{page}: {(folder / '.log').read_text('utf-8')}")
    return problems


@pytest.fixture
def folder(toy_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_folder, tmp_path / "page"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_blocks_of_a_page_work(page: Path, folder: Path) -> None:
    problems = problems_of(page.name, page.read_text("utf-8"), folder)
    assert not problems, "\n".join(problems)


def test_the_blocks_in_the_readme_of_an_export_work(folder: Path) -> None:
    pytest.importorskip("ctranslate2")
    command = ("export", "--to", "ctranslate2", "--model", "toy-run", "--output", "export")
    done = run_mt(*command, before=partial(os.chdir, folder))
    assert done.returncode == 0, done.stderr.decode()
    for name in ("toy", "toy-run"):
        shutil.move(folder / name, folder / "export" / name)
    problems = problems_of("README.md", (folder / "export/README.md").read_text("utf-8"), folder / "export")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("```\nls\n```", "page:2: is tagged '': expected one of console, "),
        ("\n```sh\nls\nmt translate --model runs/a --beam 2\n```", "line 4: mt translate --model runs/a --beam 2"),
        ("```sh\nmt train --config base.yaml --sets a=b\n```", "option: --sets"),
        ("```console\n$ mt eval --model runs/a --test no\nBLEU\n```", "has no test set no"),
        ("```sh\nmt translate --model modles/a < toy/test.en > /dev/null\n```", "error: modles/a"),
        ("```sh\nfor i in 1 2; do\n  mt score --model runs/a --src a.en --tgt b | cat\ndone\n```", "error: b: "),
        ("```sh\nmt train --config my.yaml --set train.max_step=9\n```", "unknown key, did you mean max_steps?"),
        ("```sh\nscripts/tests.sh\n```", "scripts/tests.sh: No "),
        ("```sh\nscripts/gpu_check.sh --hours 8\n```", "scripts/gpu_check.sh has no --hours"),
        ("```sh\ntorchrun --nproc-per-node 8 -m mt train --confg big.yaml\n```", "option: --confg"),
        ("```yaml\ntrain: {max_step: 5}\n```", "page:2: ConfigError: config: train.max_step: unknown key"),
        ("```python\nimport mt\n```\n\n```python\nfrom mt.text import normalise_all\n```", 'File "page", line 6'),
    ],
)  # fmt: skip
def test_mistakes_in_a_block_are_found(folder: Path, text: str, problem: str) -> None:
    assert problem in "\n".join(problems_of("page", text, folder))
