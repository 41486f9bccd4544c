"""Train machine translation models, and translate with them: `from mt import Translator`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mt.decode.translator import Translator

    __version__: str

__all__ = ["Translator", "__version__"]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: torch costs seconds, and `import mt` should not."""
    if name == "Translator":
        from mt.decode.translator import Translator

        return Translator
    if name == "__version__":
        from importlib import metadata

        try:
            return metadata.version("mt-train")
        except metadata.PackageNotFoundError:
            return "0+unknown"  # run from a checkout that is not installed
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
