"""Files that ship with mt besides its code: configs, documentation, and a demo to start with."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from mt.errors import ConfigError, suggestion
from mt.system.files import explained_writes, whole_file

DEMO_CORPUS = Path("data/demo")

_PACKAGE = Path(__file__).resolve().parent
_PAGE_WIDTH = 120  # of a terminal; longer lines are hard to read


def shipped_folder(name: str | Path) -> Path:
    """Return a folder that pyproject.toml puts into the wheel, inside the package; or in a checkout, next to it."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def write_demo(folder: Path) -> list[Path]:
    """Write the demo's config and corpus into a folder, and return all their paths. Files that exist are kept.

    Raises:
        ConfigError: one of them exists and has other content; nothing is written then.
        WriteError: a file cannot be written.
    """
    sources = {"demo.yaml": shipped_folder("configs") / "demo.yaml"}
    sources |= {str(DEMO_CORPUS / path.name): path for path in sorted(shipped_folder(DEMO_CORPUS).iterdir())}
    missing = {}
    for name, source in sources.items():
        target, content = folder / name, source.read_bytes()
        if not target.exists():
            missing[target] = content
        elif not target.is_file() or target.read_bytes() != content:
            raise ConfigError(target, "exists and is not the demo's file", "give another folder: mt demo DIR")
    for target, content in missing.items():
        with explained_writes(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(target) as stream:
                stream.write(content)
    return [folder / name for name in sources]


def documentation() -> dict[str, Path]:
    """Return name → file of each page of the documentation."""
    return {path.stem: path for path in sorted(shipped_folder("docs").glob("*.md"))}


def page_list() -> str:
    """Return the folder of the documentation, and the name and the title of each page."""
    pages = documentation()
    titles = {name: path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for name, path in pages.items()}
    return "\n".join([f"{shipped_folder('docs')}:", *(f"  {name:<16}{title}" for name, title in titles.items())])


def print_page(name: str) -> None:
    """Print a page of the documentation: rendered on a terminal, as Markdown elsewhere.

    Raises:
        ConfigError: no page has this name.
    """
    pages = documentation()
    stem = Path(name).stem
    if stem not in pages:
        raise ConfigError("PAGE", f"there is no page {name}", suggestion(stem, pages))
    text = pages[stem].read_text(encoding="utf-8")
    if not sys.stdout.isatty():
        print(text, end="")
        return
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    # A link to a file or a heading does not work in a terminal: its text remains.
    text = re.sub(r"\[([^\]]+)\]\((?!http)[^)]*\)", r"\1", text)
    console.print(Markdown(text), width=min(console.width, _PAGE_WIDTH))
