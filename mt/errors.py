"""Errors that the user can fix. Each prints as one line: what is wrong, where, what to do."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Self

# A problem that starts with one of these continues a sentence whose subject is the place.
_VERB = re.compile(
    r"(is|are|was|were|has|have|had|does|can|cannot|could|must|needs|measures|holds|ends|ended|exists|expects|contains|uses)\b"
)


def statement(place: str, problem: str) -> str:
    """Return a sentence, such as `a.en is empty`, or `a.en: no such file` where the problem is a sentence itself."""
    return f"{place} {problem}" if _VERB.match(problem) else f"{place}: {problem}"


def with_fix(problem: str, fix: str) -> str:
    """Return a statement, followed by a sentence that says what to do."""
    return f"{problem}. {fix[0].upper()}{fix[1:]}{'' if fix.endswith('?') else '.'}" if fix else problem


def suggestion(name: str, known: Collection[str], otherwise: str = "") -> str:
    """Return the fix for an unknown name: the most similar known one, or else `otherwise`, by default all of them."""
    if close := difflib.get_close_matches(name, known, n=1):
        return f"did you mean {close[0]}?"
    return otherwise or f"choose from {', '.join(known)}"


class MTError(Exception):
    """The base class of errors for users; the command line prints them without a traceback and exits with status 2.

    Args:
        place: the file, setting or option that is wrong. A single argument is the problem of an error without a place.
        problem: what is wrong: either a statement, or a predicate such as "is empty" whose subject is the place.
        fix: what to do, as an imperative.
    """

    def __init__(self, place: str | Path, problem: str = "", fix: str = "") -> None:
        super().__init__(place, problem, fix)
        self.place, self.problem = (str(place), problem) if problem else ("", str(place))
        self.fix = fix

    @property
    def statement(self) -> str:
        """The place and the problem, without the fix."""
        return statement(self.place, self.problem) if self.place else self.problem

    def __str__(self) -> str:
        return with_fix(self.statement, self.fix)

    def within(self, where: str) -> Self:
        """Return the same error with `where` in front of its place, such as the file that contains the setting."""
        return type(self)(f"{where}: {self.place}" if self.place else where, self.problem, self.fix)


class ConfigError(MTError):
    """A setting is unknown, has the wrong type, or contradicts another one.

    Args:
        key: dotted key of the setting, an option, or the name of a function's argument.
        others: keys of other settings that the message mentions.
    """

    def __init__(self, key: str | Path, problem: str = "", fix: str = "", *, others: Sequence[str] = ()) -> None:
        super().__init__(key, problem, fix)
        self.others = others

    def under(self, key: str) -> ConfigError:
        """Return the same error with `key` in front of the setting's key."""
        inside = ".".join(part for part in (key, self.place) if part)
        return ConfigError(inside, self.problem, self.fix, others=self.others)

    def renamed(self, name_of: Callable[[str], str]) -> ConfigError:
        """Return the same error with other names of the settings, such as the options that set them.

        If the place is a path, it stays.
        """
        problem, fix = self.problem, self.fix
        for other in self.others:
            problem, fix = problem.replace(other, name_of(other)), fix.replace(other, name_of(other))
        return ConfigError(self.place if isinstance(self.args[0], Path) else name_of(self.place), problem, fix)


class NotInstalledError(ConfigError):
    """A setting or a command needs a package that is not installed."""


def optional_package(name: str, extra: str, key: str = "") -> Any:
    """Import a module of a package that one of our extras installs.

    Args:
        key: the setting or option that needs it, for the error.
    Raises:
        NotInstalledError: the package is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        problem = f"{name.partition('.')[0]} is not installed"
        raise NotInstalledError(key, problem, f"run pip install 'mt-train[{extra}]'") from None


class DataError(MTError):
    """Text or a data set is missing, unreadable or not parallel."""


class CheckpointError(MTError):
    """A model folder or a checkpoint is missing, incomplete, damaged, or does not fit the config."""


class TrainingError(MTError):
    """Training makes no progress, and continuing would not help."""
