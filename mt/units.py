"""Numbers as people read them, and as JSON can hold them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def format_bytes(n: float) -> str:
    """1.5 GiB, or MiB below a tenth of one."""
    return f"{n / 2**30:,.1f} GiB" if n >= 2**30 / 10 else f"{n / 2**20:,.1f} MiB"


def format_duration(seconds: float) -> str:
    """3 h 07 min, 2 min 05 s or 42 s."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {whole % 60:02} s" if minutes else f"{whole} s"


def format_count(n: int) -> str:
    """63.1 M from a million on, else 36,320."""
    return f"{n / 1e6:.1f} M" if n >= 1_000_000 else f"{n:,}"


def listed(names: Sequence[str], word: str = "and") -> str:
    """Return the names as text: a, b and c; `word` comes before the last."""
    return f" {word} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def finite(value: Any) -> Any:
    """Return a value of dicts and lists with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): finite(child) for key, child in value.items()}
    return [finite(child) for child in value] if isinstance(value, (list, tuple)) else value
