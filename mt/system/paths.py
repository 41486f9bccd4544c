"""Paths as users write them: with ~, environment variables and wildcards, from the current or another folder."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from mt.errors import DataError

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|([A-Za-z_]\w*))")
_WILDCARD = re.compile(r"(\*\*/|\*+|\?|\[[^\]/]+\])")
_MOST_NAMES = 3  # files that a message names


def expanded(name: str, escape: Callable[[str], str] = str) -> str:
    """Return a path with its ~ and its environment variables ($NAME, ${NAME}) replaced.

    Args:
        escape: applied to each text that is inserted.
    Raises:
        DataError: an environment variable is not set.
    """

    def value(match: re.Match[str]) -> str:
        variable = match[1] or match[2]
        if variable not in os.environ:
            raise DataError(name, f"the environment variable {variable} is not set", "set it, or write out the path")
        return escape(os.environ[variable])

    first, slash, rest = name.partition("/")
    home = os.path.expanduser(first)
    return (_VARIABLE.sub(value, first) if home == first else escape(home)) + slash + _VARIABLE.sub(value, rest)


def is_pattern(name: str) -> bool:
    """Return whether a name has wildcards: *, ?, [abc] or ** (folders at any depth)."""
    return glob.has_magic(name)


def matching(name: str, folder: str = "") -> list[Path]:
    """Return the files that a name means, in natural order (shard-2 before shard-10); none if there is no such file.

    A file with exactly this name takes precedence, then the name after `expanded`, then its matches as a pattern.

    Args:
        folder: for a relative name that matches nothing in the current folder.
    Raises:
        DataError: an environment variable is not set.
    """
    if os.path.lexists(name):
        return [Path(name)]
    literal, pattern = expanded(name), expanded(name, glob.escape)
    for place in dict.fromkeys(["", folder]):
        if os.path.lexists(path := os.path.join(place, name)) or os.path.lexists(path := os.path.join(place, literal)):
            return [Path(path)]
        found = glob.glob(os.path.join(glob.escape(place), pattern), recursive=True) if is_pattern(pattern) else []
        if files := [Path(path) for path in found if not os.path.isdir(path)]:
            return sorted(files, key=lambda file: _natural_order(str(file)))
    return []


def _natural_order(text: str) -> list[str | int]:
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", text))]


def located(name: str, folder: str) -> str:
    """Return a name as it is, or with the folder in front if it matches files only there."""
    try:
        if not folder or matching(name) or not matching(name, folder):
            return name
    except DataError:
        return name  # reading the file will raise it again
    there = os.path.join(folder, name)
    return there if os.path.lexists(there) else os.path.join(glob.escape(folder), name)


def in_pairs(names: Sequence[str], files: Sequence[Sequence[Path]]) -> list[tuple[Path, Path]]:
    """Return the files of two sides that belong together.

    If wildcards match the same text on both sides (the 0 of shard-0.en and shard-0.de), files with the same text belong
    together; otherwise, the order decides.

    Args:
        names: the two names or patterns.
        files: what they match.
    Raises:
        DataError: a file has no counterpart; the message names it.
    """
    src, tgt = (_by_matched_text(name, of_side) for name, of_side in zip(names, files, strict=True))
    shared = [key for key in src if key in tgt]
    alone = [path for key, path in [*src.items(), *tgt.items()] if key not in shared] if shared else []
    if alone or len(src) != len(tgt):
        place = f"{names[0]} + {names[1]}"
        problem = f"{len(src):,} files match on the source side and {len(tgt):,} on the target side"
        found = "; there is no counterpart of " + _few(alone) if alone else f": {_few(files[0])}; {_few(files[1])}"
        raise DataError(place, problem + found, "add what is missing, or list the files in src and in tgt")
    return [(src[key], tgt[key]) for key in shared] or list(zip(*files, strict=True))


def _few(files: Sequence[Path]) -> str:
    more = len(files) - _MOST_NAMES
    return ", ".join(map(str, files[:_MOST_NAMES])) + (f" and {more:,} more" if more > 0 else "")


def _by_matched_text(name: str, files: Sequence[Path]) -> dict[object, Path]:
    """Return the files by the texts that the wildcards match in them, or by their numbers if this is not known."""
    parts = _WILDCARD.split(expanded(name))
    pattern = "".join("(.*)" if i % 2 else re.escape(part) for i, part in enumerate(parts))
    # A folder in front, such as that of the config, is as short as possible: ** matches the folders behind it.
    matches = [re.fullmatch(f"(?:.*/)??{pattern}", str(file)) for file in files]
    return {match.groups() if match else i: file for i, (match, file) in enumerate(zip(matches, files, strict=True))}
