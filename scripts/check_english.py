"""Check prose for words that our readers have to read twice: scripts/check_english.py [FILE...]

Reads Markdown, docstrings, comments, messages and names of tests, of the whole repository or of the given files. Prints
each finding with its place and a suggestion. Exit status 1 if there are any findings.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("mt", "tests", "scripts", "configs", "docs", "data")
SUFFIXES = {".py", ".md", ".sh", ".yaml", ".html", ".j2", ".js", ".css", ".c", ".h"}

# Regular expression → what to write instead.
WORDS = {
    r"\bstands?\b(?! for\b|-)": "is, exists, holds",
    r"\b(goes|go|going|gone|went) on\b": "continues",
    r"\banew\b": "again, from the start",
    r"\b(mend|mends|mended|mending)\b": "fix",
    r"\bso many\b": "N, that many",
    r"\bwhoever\b": "anyone who",
    r"\bat hand\b": "available",
    r"\bof (its|their|our) own\b": "its own, separate",
    r"(?<!there )\b(is|are|was|were|be) no\b(?! (longer|more|less|fewer)\b)": "is not a, has no",
    r"\bheld beside\b": "compared with",
    r"(?<!\bno )\bsuch\b(?! (as|a|an)\b)": "this kind of, these",
    r"\b(forget|forgets|forgotten)\b": "reset, drop, remove",
    r"\bset aside\b": "quarantine, reserve",
    r"\b(go|goes|went) back\b": "roll back, return",
    r"\bbegun\b": "started",
    r"\b(thereof|therein|whereof|herein|whereby)\b": "of it, in it, by which",
    r"\bbut for\b": "except for",
    r"(?<=[a-z,)] )beside(?= [a-z0-9`])": "next to, together with, besides",
    r"\bfor want of\b": "because of too little",
    r"\breckon": "compute",
    r", for (it|its|they|there|we|these|nothing|no|both)\b(?! in\b)": "because",
    r"(?<=[a-z] )(?<!left )(?<!stand )alone[.,;:](?=\s|\"|$)": "only, before the word that it limits",
    r"(?:^|[.:;] )(Kept|Read|Written|Given|Refused|Measured|Counted|Removed|Left|Said|Printed|Skipped) (is|are)\b": (
        "the subject first: the last 5 are kept"
    ),
    r"(?:(?<!#)#|//|/\*) (what(?! to)|whose|(?-i:Of|Whether|How|Which|Those|That of|The same for))\b": (
        "a noun or a sentence"
    ),
    r"def test (what|of|whether|how|which|where|whatever|whoever)\b": "the subject, as a noun",
}
# First words of docstrings that do not begin with a verb.
HEADLESS = r"(What|Of|Whether|How|Where|Which|That|Nothing|Without|The same)\b"
PATTERN = re.compile("|".join(f"(?P<w{number}>{word})" for number, word in enumerate(WORDS)), re.IGNORECASE)
ADVICE = list(WORDS.values())


def findings(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line, text found and advice."""
    text = path.read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        line = re.sub(r"(?<=def )test_\w+", lambda name: name[0].replace("_", " "), line)  # these names are sentences
        for match in PATTERN.finditer(line):
            yield number, match[0].strip(), ADVICE[int(str(match.lastgroup).removeprefix("w"))]
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node) or ""
                if match := re.match(HEADLESS, docstring):
                    yield getattr(node, "lineno", 1), f'"""{match[0]}', "the verb first: Return, Write, Raise"


def main() -> None:
    paths = [Path(name).resolve() for name in sys.argv[1:]] or [
        path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")) if path.suffix in SUFFIXES
    ] + sorted(ROOT.glob("*.md"))
    n_found = 0
    for path in paths:
        if path == Path(__file__):  # it has all the words
            continue
        for line, found, advice in findings(path):
            n_found += 1
            print(f"{path.relative_to(ROOT)}:{line}: {found!r}: write instead: {advice}")
    if n_found:
        sys.exit(f"{n_found} findings")


if __name__ == "__main__":
    main()
