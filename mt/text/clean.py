"""Which pairs are kept, and for each reason they are not: a count and a few examples."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mt.config import CleanConfig
from mt.text.sources import SentencePair

Reason = Literal["empty", "too_long", "length_ratio", "too_many_tokens"]

MAX_EXAMPLES = 3  # of each reason
EXAMPLE_CHARS = 200  # shown of each side
RATIO_SLACK_BYTES = 16  # added to both sides, so that short sentences may differ by a word or two

# White space, control characters, and the invisible U+200B and U+FEFF, which SentencePiece's own NMT rules turn into
# spaces as well. U+2581 is how SentencePiece writes a space: it could not be told from one after decoding. The joiners
# U+200C and U+200D stay, because Persian, the Indic scripts and emoji are spelled with them.
_SPACES = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u200b\u2581\ufeff]+")
_SURROGATES = re.compile(r"[\ud800-\udfff]")


def normalise(text: str) -> str:
    """Unicode NFC, with every run of white space and control characters as one space, and none at the ends.

    The one change that is ever made to text, the same for preparing and for translating; idempotent. Half a surrogate
    pair, which no UTF-8 can hold, becomes U+FFFD.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", _SURROGATES.sub("\ufffd", text))
    return _SPACES.sub(" ", text).strip(" ")


def _shortened(text: str) -> str:
    return text if len(text) <= EXAMPLE_CHARS else text[: EXAMPLE_CHARS - 1] + "…"


@dataclass
class Removal:
    """The pairs that were removed for one reason."""

    count: int = 0
    examples: list[SentencePair] = field(default_factory=list)  # the first few, shortened

    def add(self, pair: SentencePair) -> None:
        self.count += 1
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(SentencePair(_shortened(pair.src), _shortened(pair.tgt), pair.line))

    def as_json(self) -> dict[str, Any]:
        return {"count": self.count, "examples": [pair._asdict() for pair in self.examples]}


class Cleaner:
    """Normalises the pairs of one source, keeps the good ones, and remembers why the others went."""

    def __init__(self, config: CleanConfig) -> None:
        self.config = config
        self.n_read = 0
        self.removals: dict[Reason, Removal] = {}

    @property
    def n_kept(self) -> int:
        return self.n_read - sum(removal.count for removal in self.removals.values())

    def clean(self, pair: SentencePair) -> SentencePair | None:
        """The pair with both sides normalised, or None where it is to be removed."""
        self.n_read += 1
        cleaned = SentencePair(normalise(pair.src), normalise(pair.tgt), pair.line)
        reason = self._reason_to_remove(cleaned)
        if reason is None:
            return cleaned
        self.remove(cleaned, reason)
        return None

    def remove(self, pair: SentencePair, reason: Reason) -> None:
        """Count a pair as removed: for the rules that need more than its text."""
        self.removals.setdefault(reason, Removal()).add(pair)

    def _reason_to_remove(self, pair: SentencePair) -> Reason | None:
        src, tgt, _ = pair
        if not src or not tgt:
            return "empty"
        if len(src) > self.config.max_chars or len(tgt) > self.config.max_chars:
            return "too_long"
        # Bytes, because a Chinese character says about as much as three Latin letters.
        n_src_bytes, n_tgt_bytes = len(src.encode()) + RATIO_SLACK_BYTES, len(tgt.encode()) + RATIO_SLACK_BYTES
        ratio = self.config.max_length_ratio
        if ratio is not None and max(n_src_bytes, n_tgt_bytes) > ratio * min(n_src_bytes, n_tgt_bytes):
            return "length_ratio"
        return None


def removed_text(removals: Mapping[Reason, Removal]) -> str:
    """Such as `8 empty, 2 length_ratio`."""
    return ", ".join(f"{removal.count:,} {reason}" for reason, removal in removals.items()) or "none"
