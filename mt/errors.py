"""Errors that users can fix. Each prints as one line: where the problem is, what it is, what to do."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self


class MTError(Exception):
    """The base class of errors for users; the command line prints them without a traceback and exits with status 2.

    An error prints as one line, `place: problem: fix`.

    Args:
        place: the file, setting or option that is wrong. If it is the only argument, it is the problem instead.
        fix: what the user can do.
    """

    def __init__(self, place: str | Path, problem: str = "", fix: str = "") -> None:
        super().__init__(place, problem, fix)
        self.place, self.problem = (str(place), problem) if problem else ("", str(place))
        self.fix = fix

    def __str__(self) -> str:
        return ": ".join(part for part in (self.place, self.problem, self.fix) if part)

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
        raise NotInstalledError(key, problem, f"pip install 'mt-train[{extra}]'") from None


class DataError(MTError):
    """Text or a data set is missing, unreadable or not parallel."""


class CheckpointError(MTError):
    """A model folder or a checkpoint is missing, incomplete, damaged, or does not fit the config."""


class TrainingError(MTError):
    """Training makes no progress, and continuing would not help."""
