"""Formatting of numbers for people, and conversion of numbers to values that JSON allows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def format_bytes(n: float) -> str:
    """Return a text such as 1.5 GiB; below 0.1 GiB in MiB."""
    return f"{n / 2**30:,.1f} GiB" if n >= 2**30 / 10 else f"{n / 2**20:,.1f} MiB"


def format_duration(seconds: float) -> str:
    """Return a text such as 3 h 07 min, 2 min 05 s or 42 s."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {whole % 60:02} s" if minutes else f"{whole} s"


def format_count(n: int) -> str:
    """Return a text such as 63.1 M from a million on, or 36,320 below."""
    return f"{n / 1e6:.1f} M" if n >= 1_000_000 else f"{n:,}"


def format_vocabulary(size: int | Sequence[int]) -> str:
    """Return a text such as 8,000 pieces or, for separate vocabularies, 8,000 source and 9,000 target pieces."""
    return f"{size:,} pieces" if isinstance(size, int) else "{:,} source and {:,} target pieces".format(*size)


def listed(names: Sequence[str], word: str = "and") -> str:
    """Return a text such as a, b and c; `word` is written before the last name."""
    return f" {word} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def finite(value: Any) -> Any:
    """Return a copy of nested dicts and lists with None in place of NaN and infinity, which JSON does not allow."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): finite(child) for key, child in value.items()}
    return [finite(child) for child in value] if isinstance(value, (list, tuple)) else value
