"""Train machine translation models, translate with them and score them: docs/api.md has examples.

Messages go to the logger `mt` of `logging`; errors that a user can fix are subclasses of MTError.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mt.api import TrainedRun, compare, evaluate, prepare, train
    from mt.decode.scorer import PairScore, Scorer
    from mt.decode.translator import Hypothesis, Translator
    from mt.errors import CheckpointError, ConfigError, DataError, MTError, TrainingError

    __version__: str

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Hypothesis",
    "MTError",
    "PairScore",
    "Scorer",
    "TrainedRun",
    "TrainingError",
    "Translator",
    "__version__",
    "compare",
    "evaluate",
    "prepare",
    "train",
]
_MODULES = {"Hypothesis": "decode.translator", "Translator": "decode.translator"}
_MODULES |= {"PairScore": "decode.scorer", "Scorer": "decode.scorer"}
_MODULES |= dict.fromkeys(("TrainedRun", "compare", "evaluate", "prepare", "train"), "api")
_MODULES |= {name: "errors" for name in __all__ if name.endswith("Error")}


if not TYPE_CHECKING:  # for type checkers it would make any name one that exists

    def __getattr__(name: str) -> Any:
        """Import a name when it is used: torch costs seconds, and `import mt` should not."""
        if name in _MODULES:
            return getattr(importlib.import_module(f"mt.{_MODULES[name]}"), name)
        if name == "__version__":
            from importlib import metadata

            try:
                return metadata.version("mt-train")
            except metadata.PackageNotFoundError:
                return "0+unknown"  # run from a checkout that is not installed
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
