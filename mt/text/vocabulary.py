"""What a vocabulary does to a language: how finely it cuts words, what it does not know, what of it is used.

Reckoned from counts of words, which a tokenizer that `train_tokenizer` has made cuts one by one: so the numbers are
those of the running text. An adopted model whose pieces go beyond spaces may differ a little.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, islice
from typing import Any

import numpy as np
import numpy.typing as npt

from mt.text.tokenizer import EOS_ID, UNK_ID, WORD_START, Tokenizer

N_LONGEST = 10  # pieces shown
_WORDS_PER_BATCH = 50_000  # encoded together


def vocabulary_facts(
    tokenizer: Tokenizer, src_counts: Mapping[str, int], tgt_counts: Mapping[str, int]
) -> dict[str, Any]:
    """Return what the vocabulary does to the text of each side, and how the two share it.

    Args:
        src_counts: words, as `count_words` counts them.
    Returns:
        `src` and `tgt`, each with `words`, `distinct_words`, `tokens`; `fertility`, tokens a word; `split_word_share`
        of the running words; `byte_share` and `unknown_share` of the tokens; `characters_a_token`, spaces not counted;
        `longest_pieces`, the ten longest in use, each with its `count`. Ratios of a text without words are 0.
        `pieces`: how many are used by `src` alone, `tgt` alone, `both` and `neither`; without special ones and bytes.
    """
    (src, src_uses), (tgt, tgt_uses) = (_side_facts(tokenizer, counts) for counts in (src_counts, tgt_counts))
    is_piece = np.ones(tokenizer.vocab_size, dtype=bool)
    is_piece[[*range(EOS_ID + 1), *tokenizer.byte_ids]] = False
    in_src, in_tgt = src_uses > 0, tgt_uses > 0
    pieces = {"src": in_src & ~in_tgt, "tgt": in_tgt & ~in_src, "both": in_src & in_tgt, "neither": ~in_src & ~in_tgt}
    return {"src": src, "tgt": tgt, "pieces": {users: int((is_piece & used).sum()) for users, used in pieces.items()}}


def _side_facts(tokenizer: Tokenizer, word_counts: Mapping[str, int]) -> tuple[dict[str, Any], npt.NDArray[np.int64]]:
    """Return the facts, and [V]: how often each piece is used."""
    n_words = n_distinct_words = n_split_words = n_characters = 0
    n_uses = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    items = ((word, count) for word, count in word_counts.items() if word)
    while batch := list(islice(items, _WORDS_PER_BATCH)):
        words = [word for word, _ in batch]
        counts = np.array([count for _, count in batch], dtype=np.int64)
        ids = tokenizer.encode_batch(words)
        n_pieces = np.array([len(word_ids) for word_ids in ids], dtype=np.int64)
        flat = np.fromiter(chain.from_iterable(ids), dtype=np.int64, count=int(n_pieces.sum()))
        np.add.at(n_uses, flat, np.repeat(counts, n_pieces))
        n_words += int(counts.sum())
        n_distinct_words += len(batch)
        n_split_words += int(counts[n_pieces > 1].sum())
        n_characters += int(counts @ np.array([len(word) for word in words], dtype=np.int64))
    n_tokens = int(n_uses.sum())
    facts = {
        "words": n_words,
        "distinct_words": n_distinct_words,
        "tokens": n_tokens,
        "fertility": _ratio(n_tokens, n_words),
        "split_word_share": _ratio(n_split_words, n_words),
        "byte_share": _ratio(int(n_uses[sorted(tokenizer.byte_ids)].sum()), n_tokens),
        "unknown_share": _ratio(int(n_uses[UNK_ID]), n_tokens),
        "characters_a_token": _ratio(n_characters, n_tokens),
        "longest_pieces": _longest_pieces(tokenizer, n_uses),
    }
    return facts, n_uses


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _longest_pieces(tokenizer: Tokenizer, n_uses: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
    ids = [id_ for id_ in np.flatnonzero(n_uses).tolist() if id_ > EOS_ID and id_ not in tokenizer.byte_ids]
    pieces = zip(tokenizer.pieces(ids), n_uses[ids].tolist(), strict=True)
    longest = sorted(pieces, key=lambda piece: (-len(piece[0].removeprefix(WORD_START)), piece[0]))[:N_LONGEST]
    return [{"piece": piece, "count": count} for piece, count in longest]
