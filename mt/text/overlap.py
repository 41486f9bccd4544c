"""Overlap of training text with validation and test sets: segments and n-grams that occur in both."""

from __future__ import annotations

import base64
import functools
import re
import unicodedata
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from mt.config.settings import RunConfig
from mt.system.console import Meter
from mt.text.corpus import SIDES, PreparedCorpus, without_tag
from mt.text.languages import UNSPACED, characters_per_word, n_words
from mt.text.normalise import Normalisers
from mt.text.reader import SentencePair
from mt.text.tokenizer import Tokenizers

_Codes = npt.NDArray[np.uint32]
_Bytes = npt.NDArray[np.uint8]
_Hashes = npt.NDArray[np.uint64]

# Text is processed in blocks whose arrays fit the processor's cache; a block of long lines has fewer of them.
_LINES_PER_BLOCK = 500
_CHARACTERS_PER_BLOCK = 1 << 18
_SENTENCES_AT_ONCE = 50_000  # decoded together
_FILTER_SLOTS_PER_NGRAM = 16
_BASE = 0x9E3779B97F4A7C15  # of the hashes of n-grams: odd, so that it has an inverse
_BASE_INVERSE = pow(_BASE, -1, 2**64)

# ---------------------------------------------------------------------------------------------------- folding

# Punctuation with a meaning in code and figures: += and /= are not the same operator.
_MEANINGFUL = frozenset("/\\%&*#@_^")
# Control and format characters; marks that enclose an emoji; accents without a letter.
_BLANK_CATEGORIES = {"Cc", "Cf", "Me", "Sk"}
_VARIATION_SELECTORS = range(0xFE00, 0xFE10)
_SOFT_HYPHEN = "\xad"  # inside words, where it leaves no gap
_N_UNSPACED_TABLED = 0x40000
_N_TABLED = 0x20000  # code points in the lookup table; above it are rare ideographs, which have no case


def folded(text: str) -> str:
    """Return the case-folded words of a text, joined by single spaces; punctuation becomes space.

    Letters, digits, combining marks and symbols stay, in NFC; format characters become spaces, too. Idempotent. For
    many texts, `folded_all` is several times as fast.
    """
    text = text.replace(_SOFT_HYPHEN, "").casefold().translate(_blanks())
    return unicodedata.normalize("NFC", " ".join(text.split()))


def folded_all(texts: Sequence[str]) -> list[str]:
    """Return `folded` of each text."""
    return [text for block in _blocks(texts) for text in _folded_block(block)]


def _blocks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    for first in range(0, len(texts), _LINES_PER_BLOCK):
        block = texts[first : first + _LINES_PER_BLOCK]
        n_lines = len(block) // (1 + sum(map(len, block)) // _CHARACTERS_PER_BLOCK) or 1
        yield from (block[i : i + n_lines] for i in range(0, len(block), n_lines))


def _folded_block(texts: Sequence[str]) -> list[str]:
    joined = "\n".join(["", *texts, ""])
    is_ascii = joined.isascii()
    codes = _codes(joined if is_ascii else joined.replace(_SOFT_HYPHEN, "").replace("ß", "ss"))
    if joined.count("\n") != len(texts) + 1 or codes.max() >= _N_TABLED:
        return [folded(text) for text in texts]
    codes = _fold_table()[codes]
    if not codes.all():  # some character folds to several others; these are rarer than ß
        codes = _fold_table()[_codes(joined.replace(_SOFT_HYPHEN, "").casefold())]
    # Keep only the last space of a run, and only if a word follows.
    is_kept = codes > ord(" ")
    is_kept[:-1] |= is_kept[1:]
    is_kept |= codes == ord("\n")
    kept = codes[is_kept].astype("<u4", copy=False).tobytes()
    result = kept.decode("utf-32-le", "surrogatepass").replace("\n ", "\n")
    if not is_ascii:
        result = unicodedata.normalize("NFC", result)
    return result.split("\n")[1:-1]


def _codes(text: str) -> _Codes:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _is_blank(character: str) -> bool:
    if character in _MEANINGFUL:
        return False
    category = unicodedata.category(character)
    return category[0] in "PZ" or category in _BLANK_CATEGORIES or ord(character) in _VARIATION_SELECTORS


@functools.cache
def _blanks() -> dict[int, str]:
    """Return a table for `str.translate` that maps characters outside words to a space."""
    return {code: " " for code in [*range(_N_TABLED), *range(0xE0000, 0xE0200)] if _is_blank(chr(code))}


@functools.cache
def _fold_table() -> _Codes:
    """Return [_N_TABLED]: code point → its folded code point, 0 if it folds to several. The line feed stays."""
    table = np.arange(_N_TABLED, dtype=np.uint32)
    for code in range(_N_TABLED):
        fold = chr(code).casefold()
        table[code] = ord(fold) if len(fold) == 1 else 0
    table[list(_blanks().keys() & set(range(_N_TABLED)))] = ord(" ")
    table[ord("\n")] = ord("\n")
    return table


# ---------------------------------------------------------------------------------------------------- segments


class HeldOut:
    """Validation and test sets, folded, for finding training pairs that overlap with them. It can be pickled."""

    def __init__(
        self,
        sets: Mapping[str, Sequence[SentencePair]],
        min_words: int,
        ngram_words: int = 8,
        *,
        on_any_side: bool = False,
    ) -> None:
        """
        Args:
            on_any_side: a text of these sets may be on the other side of the training text, in another direction.
            min_words: shorter sides are not compared (see `n_words`): they are equal by chance.
            ngram_words: length of the n-grams of `NgramOverlap`.
        """
        self.ngram_words = ngram_words
        self.names = tuple(sets)
        # Folded texts, [side][set][segment].
        self.texts = [
            [folded_all([getattr(pair, side) for pair in pairs]) for pairs in sets.values()] for side in SIDES
        ]
        # For each side: folded text → index of the first set that has it.
        self._set_of: tuple[dict[str, int], ...] = ({}, {})
        for set_of, texts_of_sets in zip(self._set_of, self.texts, strict=True):
            for number, texts in enumerate(texts_of_sets):
                for text in texts:
                    if text not in set_of and n_words(text) >= min_words:
                        set_of[text] = number
        if on_any_side:
            self._set_of = (self._set_of[1] | self._set_of[0],) * 2

    @classmethod
    def of_run(
        cls,
        config: RunConfig,
        sets: Mapping[str, Sequence[SentencePair]],
        langs: Mapping[str, tuple[str, str]],
    ) -> HeldOut:
        """Return sets for a run, normalised in the same way as its training text.

        Args:
            langs: source and target language of each set.
        """
        normalised = {name: Normalisers.of_run(config, langs[name]).pairs(pairs) for name, pairs in sets.items()}
        return cls(normalised, config.data.clean.contamination_words, on_any_side=len(config.directions) > 1)

    def find(self, folded_src: str, folded_tgt: str) -> str | None:
        """Return the name of the first set that has this source text or this target text; None if no set has."""
        n_sets = len(self.names)
        number = min(self._set_of[0].get(folded_src, n_sets), self._set_of[1].get(folded_tgt, n_sets))
        return self.names[number] if number < n_sets else None


def n_in_training(
    config: RunConfig,
    corpus: PreparedCorpus,
    sets: Mapping[str, Sequence[SentencePair]],
    langs: Mapping[str, tuple[str, str]],
) -> dict[str, int]:
    """Count the pairs of each test set with a side in the training text, by the rule of data.clean.contamination.

    All of the training text is decoded.

    Args:
        config: of a run that the corpus was prepared for.
        sets: pairs without tags.
        langs: as for `HeldOut.of_run`.
    """
    held_out, tokenizers = HeldOut.of_run(config, sets, langs), Tokenizers.load(corpus.tokenizer_paths)
    found: list[set[str]] = [set(), set()]
    with Meter("sentences", 2 * len(corpus.train), what="comparing test sets with the training text") as meter:
        for side, (tokenizer, sentences) in enumerate(
            zip(tokenizers, (corpus.train.src, corpus.train.tgt), strict=True)
        ):
            for start in range(0, len(sentences), _SENTENCES_AT_ONCE):
                ids = [sentences[i].tolist() for i in range(start, min(start + _SENTENCES_AT_ONCE, len(sentences)))]
                lines = [without_tag(line, config.data.tags) for line in tokenizer.decode_batch(ids)]
                found[side].update(line for line in folded_all(lines) if line in held_out._set_of[side])
                meter.advance(len(ids))
    if len(config.directions) > 1:
        found = [found[0] | found[1]] * 2
    return {
        name: sum(src in found[0] or tgt in found[1] for src, tgt in zip(srcs, tgts, strict=True))
        for name, srcs, tgts in zip(sets, *held_out.texts, strict=True)
    }


# ---------------------------------------------------------------------------------------------------- n-grams


class NgramOverlap:
    """Search for n-grams of the held-out sets in training text, source in source and target in target.

    An n-gram is a number of consecutive folded words. If most of the held-out text of a side is in a script without
    spaces, it consists of characters instead, as many as make up these words (see `n_words`). N-grams are compared by
    64-bit hashes: the probability of any false match between 10^9 words of training text and 10^5 n-grams is
    10^9 · 10^5 / 2^64, one in 200,000.
    """

    def __init__(self, held_out: HeldOut) -> None:
        self._names = held_out.names
        texts = zip(SIDES, held_out.texts, strict=True)
        self._sides = {side: _SideOverlap(texts_of_sets, held_out.ngram_words) for side, texts_of_sets in texts}

    def found_in(self, folded_srcs: Sequence[str], folded_tgts: Sequence[str]) -> dict[str, str]:
        """Search training text for the n-grams; return the result for `merge`, a few KB."""
        return {"src": self._sides["src"].found_in(folded_srcs), "tgt": self._sides["tgt"].found_in(folded_tgts)}

    def merge(self, found: Mapping[str, str]) -> None:
        """Add a result of `found_in`, from this process or from another one with the same held-out sets."""
        for name, side in self._sides.items():
            side.merge(found[name])

    def facts(self) -> dict[str, dict[str, dict[str, int]]]:
        """Return for each set and side the numbers of distinct `ngrams`, and of those `found` in the training text."""
        return {
            name: {side: overlap.facts(number) for side, overlap in self._sides.items()}
            for number, name in enumerate(self._names)
        }


class _SideOverlap:
    """The distinct n-grams of one side of all sets, and which of them were found."""

    def __init__(self, texts_of_sets: Sequence[Sequence[str]], ngram_words: int) -> None:
        n_characters = characters_per_word(" ".join(text for texts in texts_of_sets for text in texts))
        self._counts_words = n_characters == 1
        self._n_units = ngram_words * n_characters
        hashes_of_sets = [self._distinct_hashes(texts) for texts in texts_of_sets]
        self._sought = np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *hashes_of_sets]))
        self._is_found = np.zeros(len(self._sought), dtype=np.bool_)
        # For each set, the indices of its n-grams in `_sought`.
        self._places = [np.searchsorted(self._sought, hashes) for hashes in hashes_of_sets]
        # A filter by the first bits of a hash: most n-grams of other text share them with none of those sought.
        n_bits = (_FILTER_SLOTS_PER_NGRAM * len(self._sought) + 1).bit_length()
        self._filter_shift = np.uint64(64 - n_bits)
        self._filter = np.zeros(1 << n_bits, dtype=np.bool_)
        self._filter[self._sought >> self._filter_shift] = True

    def _distinct_hashes(self, texts: Sequence[str]) -> _Hashes:
        hashes = [self._hashes(block, across_lines=False) for block in _blocks(texts)]
        return np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *hashes]))

    def _hashes(self, texts: Sequence[str], across_lines: bool) -> _Hashes:
        """Return the hash of each n-gram of the texts, in order."""
        joined = "\n".join(texts)
        utf8 = np.frombuffer(joined.encode("utf-8", "surrogatepass"), dtype=np.uint8)
        codes = utf8 if self._counts_words else _codes(joined)
        starts, ends = _units(codes, self._counts_words)
        ends = ends[self._n_units - 1 :]
        starts = starts[: len(ends)]
        if not across_lines:
            line = np.cumsum(codes == ord("\n"))
            is_in_one = line[starts] == line[ends - 1]
            starts, ends = starts[is_in_one], ends[is_in_one]
        return _piece_hashes(codes, starts, ends)

    def found_in(self, texts: Sequence[str]) -> str:
        is_found = np.zeros(len(self._sought), dtype=np.bool_)
        for block in _blocks(texts) if len(self._sought) else ():
            # N-grams across line ends do no harm: none of those sought has a line feed.
            hashes = self._hashes(block, across_lines=True)
            hashes = hashes[self._filter[hashes >> self._filter_shift]]
            places = np.minimum(np.searchsorted(self._sought, hashes), len(self._sought) - 1)
            is_found[places[self._sought[places] == hashes]] = True
        return base64.b64encode(zlib.compress(np.packbits(is_found).tobytes())).decode("ascii")

    def merge(self, found: str) -> None:
        bits = np.frombuffer(zlib.decompress(base64.b64decode(found)), dtype=np.uint8)
        assert len(bits) == -(-len(self._is_found) // 8), "found with the same held-out sets"
        self._is_found |= np.unpackbits(bits, count=len(self._is_found)).astype(np.bool_)

    def facts(self, number: int) -> dict[str, int]:
        places = self._places[number]
        return {"ngrams": len(places), "found": int(self._is_found[places].sum())}


def _units(codes: _Codes | _Bytes, counts_words: bool) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return where the units of folded text start and end: words, or the characters of scripts without spaces."""
    is_gap = np.ones(len(codes) + 1, dtype=np.bool_)  # between character i - 1 and i
    is_letter = codes > ord(" ")
    if counts_words:
        is_gap[1:-1] = is_letter[1:] ^ is_letter[:-1]
    else:
        is_unspaced = _unspaced_table()[np.minimum(codes, _N_UNSPACED_TABLED - 1)]
        is_gap[1:-1] = (is_letter[1:] ^ is_letter[:-1]) | is_unspaced[1:] | is_unspaced[:-1]
    return np.flatnonzero(is_gap[:-1] & is_letter), np.flatnonzero(is_gap[1:] & is_letter) + 1


@functools.cache
def _unspaced_table() -> npt.NDArray[np.bool_]:
    table = np.zeros(_N_UNSPACED_TABLED, dtype=np.bool_)
    for run in re.finditer(f"[{UNSPACED}]+", "".join(map(chr, range(_N_UNSPACED_TABLED)))):
        table[slice(*run.span())] = True
    return table


def _piece_hashes(codes: _Codes | _Bytes, starts: npt.NDArray[np.intp], ends: npt.NDArray[np.intp]) -> _Hashes:
    """Return Σ code[start + i] · _BASE^i mod 2^64 for each piece of the text."""
    # Computed from prefix sums over the text: the difference of two, divided by the power of _BASE at the start.
    powers, inverse_powers = _powers(len(codes).bit_length())
    sums = np.zeros(len(codes) + 1, dtype=np.uint64)
    np.cumsum(codes * powers[: len(codes)], out=sums[1:])
    hashes: _Hashes = (sums[ends] - sums[starts]) * inverse_powers[starts]
    return hashes


@functools.lru_cache(maxsize=4)
def _powers(n_bits: int) -> tuple[_Hashes, _Hashes]:
    """Return the first 2^n_bits powers of _BASE and of its inverse, mod 2^64."""
    bases = np.ones((2, 1 << n_bits), dtype=np.uint64)
    bases[:, 1:] = np.array([[_BASE], [_BASE_INVERSE]], dtype=np.uint64)
    of_base, of_inverse = np.cumprod(bases, axis=1, dtype=np.uint64)
    return of_base, of_inverse
