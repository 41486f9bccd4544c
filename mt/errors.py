"""Errors that the user can mend. Each prints as one line: where, what was found, what to do."""

from __future__ import annotations


class MTError(Exception):
    """Base of all errors meant for users; the command line prints it without a traceback and exits with status 2."""


class ConfigError(MTError):
    """A setting is unknown, of the wrong type, or contradicts another one."""


class DataError(MTError):
    """Text or a data set is missing, unreadable or not parallel."""


class CheckpointError(MTError):
    """A model folder or a checkpoint is missing, incomplete, damaged, or does not fit."""


class TrainingError(MTError):
    """Training does not get on, and going on by itself would not help."""
