"""What a vocabulary does to a language: how finely it cuts words, what it does not know, what of it is used.

Reckoned from counts of words, which a tokenizer that `train_tokenizer` has made cuts one by one: so the numbers are
those of the running text. An adopted model whose pieces go beyond spaces may differ a little.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
import numpy.typing as npt

from mt.text.tokenizer import EOS_ID, UNK_ID, WORD_START, Tokenizer

N_LONGEST = 10  # pieces shown
_WORDS_PER_BATCH = 50_000  # encoded together


def joint_vocabulary_facts(
    tokenizer: Tokenizer, src_counts: Mapping[str, int], tgt_counts: Mapping[str, int]
) -> dict[str, Any]:
    """Return what the vocabulary does to the text of each side, and how the two share it.

    Args:
        src_counts: words, as `count_words` counts them.
    Returns:
        `src` and `tgt`, each with `words`, `distinct_words`, `tokens`; `fertility`, tokens a word; `split_word_share`
        of the running words; `byte_share` and `unknown_share` of the tokens; `characters_a_token`, spaces not counted;
        `longest_pieces`, the ten longest in use, each with its count. Ratios of a text without words are 0.
        `coverage`, how many pieces are used by `src` alone, `tgt` alone, `both` and `neither`, and how many `pieces`
        that makes, special ones and bytes not counted; `unused_pieces`, those of neither, as the vocabulary has them.
    """
    src, tgt = _usage(tokenizer, src_counts), _usage(tokenizer, tgt_counts)
    is_piece = np.ones(tokenizer.vocab_size, dtype=bool)
    is_piece[[*range(EOS_ID + 1), *tokenizer.byte_ids]] = False
    in_src, in_tgt = src.n_uses > 0, tgt.n_uses > 0
    unused = np.flatnonzero(is_piece & ~in_src & ~in_tgt)
    coverage = {
        "pieces": int(is_piece.sum()),
        "src": int((is_piece & in_src & ~in_tgt).sum()),
        "tgt": int((is_piece & in_tgt & ~in_src).sum()),
        "both": int((is_piece & in_src & in_tgt).sum()),
        "neither": len(unused),
    }
    return {
        "src": _facts(tokenizer, src),
        "tgt": _facts(tokenizer, tgt),
        "coverage": coverage,
        "unused_pieces": tokenizer.pieces(unused.tolist()),
    }


@dataclass(frozen=True)
class _Usage:
    n_words: int
    n_distinct_words: int
    n_split_words: int
    n_characters: int
    n_uses: npt.NDArray[np.int64]  # of each piece, by id


def _usage(tokenizer: Tokenizer, word_counts: Mapping[str, int]) -> _Usage:
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
    return _Usage(n_words, n_distinct_words, n_split_words, n_characters, n_uses)


def _facts(tokenizer: Tokenizer, usage: _Usage) -> dict[str, Any]:
    n_tokens = int(usage.n_uses.sum())
    n_bytes = int(usage.n_uses[sorted(tokenizer.byte_ids)].sum())
    return {
        "words": usage.n_words,
        "distinct_words": usage.n_distinct_words,
        "tokens": n_tokens,
        "fertility": _ratio(n_tokens, usage.n_words),
        "split_word_share": _ratio(usage.n_split_words, usage.n_words),
        "byte_share": _ratio(n_bytes, n_tokens),
        "unknown_share": _ratio(int(usage.n_uses[UNK_ID]), n_tokens),
        "characters_a_token": _ratio(usage.n_characters, n_tokens),
        "longest_pieces": _longest_pieces(tokenizer, usage.n_uses),
    }


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _longest_pieces(tokenizer: Tokenizer, n_uses: npt.NDArray[np.int64]) -> list[tuple[str, int]]:
    ids = [id_ for id_ in np.flatnonzero(n_uses).tolist() if id_ > EOS_ID and id_ not in tokenizer.byte_ids]
    pieces = zip(tokenizer.pieces(ids), n_uses[ids].tolist(), strict=True)
    return sorted(pieces, key=lambda piece: (-len(piece[0].removeprefix(WORD_START)), piece[0]))[:N_LONGEST]
