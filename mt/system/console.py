"""What people are told, on standard error."""

from __future__ import annotations

import sys
from functools import lru_cache


@lru_cache
def note(text: str) -> None:
    """Tell the user something on standard error, once for each text."""
    print(f"note: {text}", file=sys.stderr, flush=True)
