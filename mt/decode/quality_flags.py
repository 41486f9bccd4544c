"""Flags of implausible translations: those in a repetition loop, and those that are far too long or too short.

Human translations pass the thresholds. Of 307,771 pairs of captions, everyday sentences, news, documentation and Bible
verses (English and German, both directions, joint vocabulary of 37,000 pieces), 10 are flagged for a loop and 13 for
their length; those 13 are all verses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# A loop: up to 32 tokens that occur at least three times in a row, with at least 4 repeated tokens in total.
LONGEST_PERIOD, FEWEST_COPIES, FEWEST_REPEATED_TOKENS = 32, 3, 4
# Limits of the number of tokens of a translation, from that of its source.
LONGEST_RATIO, LONGEST_EXTRA = 2, 15
SHORTEST_RATIO, SHORTEST_LESS = 1 / 3, 3


def repeated_tokens(ids: Sequence[int]) -> int:
    """Return the number of repeated tokens in the longest loop; 0 if there is no loop."""
    # A repeated token occurs earlier too, so there are at most len(ids) - len(set(ids)) of them.
    if len(ids) - len(set(ids)) < FEWEST_REPEATED_TOKENS:
        return 0
    tokens = np.asarray(ids)
    most = 0
    for period in range(1, min(LONGEST_PERIOD, len(ids) // FEWEST_COPIES) + 1):
        is_different = np.concatenate([[True], tokens[period:] != tokens[:-period], [True]])
        n_repeated = int(np.diff(np.flatnonzero(is_different)).max()) - 1
        if n_repeated >= period * (FEWEST_COPIES - 1):
            most = max(most, n_repeated)
    return most if most >= FEWEST_REPEATED_TOKENS else 0


def has_repetition_loop(translation: Sequence[int], *given: Sequence[int]) -> bool:
    """Return whether a translation has a loop that no loop in the given texts, source and prefix, explains."""
    n_repeated = repeated_tokens(translation)
    return n_repeated > 0 and n_repeated > 2 * max(repeated_tokens(ids) for ids in given)


def is_too_long(n_source: int, n_translation: int) -> bool:
    return n_translation > LONGEST_RATIO * n_source + LONGEST_EXTRA


def min_plausible_length(n_source: int) -> int:
    """Return the fewest tokens of a translation that is not too short."""
    return max(1, math.ceil(SHORTEST_RATIO * n_source - SHORTEST_LESS))
