"""Facts: what a report says, as nested dicts and lists that JSON can hold; and how a page shows a value of them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, TypeAlias

from mt.page import Html, Number, element, key_path, shortened

Facts: TypeAlias = "Mapping[str, Any]"

_SURROGATES = re.compile("[\ud800-\udfff]")


def facts_json(facts: Facts) -> str:
    """NaN and infinity, which JSON has not, become null; half a surrogate pair, which UTF-8 has not, an escape."""
    text = json.dumps(_finite(facts), indent=1, ensure_ascii=False, allow_nan=False)
    return _SURROGATES.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(child) for key, child in value.items()}
    return [_finite(child) for child in value] if isinstance(value, (list, tuple)) else value


def number_at(facts: Facts, *path: str | int, **how: Any) -> Number:
    """What stands at a place in the facts, and where that is; a dash where nothing does.

    Args:
        path: keys and indices.
        how: unit and digits of the Number.
    """
    value: Any = facts
    for part in path:
        if not isinstance(part, int) and part not in value:
            return Number(None)
        value = value[part]
    return Number(value, key_path(*path), **how)


def code(text: str) -> Html:
    return element("code", {}, text)


def shown_value(value: Any, key: str) -> Html:
    """As YAML writes it; numbers with all of their digits."""
    if isinstance(value, bool) or value is None or isinstance(value, (list, tuple, dict)):
        return code(json.dumps(value, ensure_ascii=False))
    if key.endswith("_bytes"):
        return Number(value, key, "bytes").html()
    if isinstance(value, (int, float)):
        digits = len(format(Decimal(repr(value)), "f").partition(".")[2])
        return Number(value, key, digits=digits).html()
    return shortened(str(value))
