"""A vocabulary that grows for a new domain or language: new pieces come after the old ones, whose ids do not change."""

from __future__ import annotations

import heapq
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain, islice
from operator import add
from typing import NamedTuple

import numpy as np
import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto, TrainerSpec

from mt.errors import ConfigError
from mt.text.languages import script_of, units_of
from mt.text.tokenizer import CUTTING, WORD_START, WORDS_PER_BATCH, Piece, Tokenizer, is_too_long, symbol_pieces

_KEY = "train.grow_vocab"
_LEAST_COUNT = 2  # a pair of pieces that occurs once in the new text is not joined
_CANDIDATES_A_PIECE = 3  # a unigram model chooses its new pieces from this many candidates for each
_KEPT_A_ROUND = 0.75  # fraction of the candidates that a round keeps. Source: Kudo 2018, section 3.2


class Growth(NamedTuple):
    """A grown model, and what was added to it."""

    model: bytes
    n_controls: int
    n_symbols: int  # pieces: two for each symbol
    n_characters: int
    n_pieces: int  # merges of a BPE model
    n_unreachable: int  # pieces that were left out, because the model never produces them

    @property
    def facts(self) -> dict[str, int]:
        """The numbers of added pieces, by kind."""
        return {
            "added_controls": self.n_controls,
            "added_symbols": self.n_symbols,
            "added_characters": self.n_characters,
            "added_pieces": self.n_pieces,
        }


def grow_model(
    model: bytes,
    word_counts: Mapping[str, int],
    n: int,
    *,
    controls: Sequence[str] = (),
    symbols: Sequence[str] = (),
) -> Growth:
    """Append up to n pieces to a SentencePiece model; the old pieces, their ids and their scores stay as they are.

    In this order: the controls and symbols that the model lacks; the characters that it lacks, the most frequent first,
    until its character coverage is reached; pieces learned from the new text, as the old model cuts it. A new piece
    joins old pieces and follows the rules by which the old ones were learned (digits, scripts, spaces, length).

    A BPE model gets further merges, which come after all old ones (Sennrich et al. 2016). A unigram model gets pieces
    with the probabilities that they have in the new text: the most likely of three candidates for each, found by
    hard EM (Kudo 2018, section 3.2) while the probabilities of the old pieces are fixed.

    Args:
        word_counts: of normalised new text, as from `count_words`, in any order. The same counts give the same bytes.
        controls: pieces that text never contains, such as the language <2fr>.
        symbols: pieces that are never split, as in `train_tokenizer`.
    Raises:
        ConfigError: the model cannot grow, n is too small for the controls and symbols, or one of them is another
            kind of piece in the model.
    """
    grown = ModelProto.FromString(model)
    spec, n_old = grown.trainer_spec, len(grown.pieces)
    _refuse_models_that_cannot_grow(grown)
    new_controls = _missing(grown, controls, Piece.CONTROL)
    new_symbols = _missing(grown, list(chain.from_iterable(map(symbol_pieces, symbols))), Piece.USER_DEFINED)
    n_named = len(new_controls) + len(new_symbols)
    if n_named > n:
        problem = f"{n:,} is too small: languages, tags and symbols already need {n_named:,} new pieces"
        raise ConfigError(_KEY, problem, f"set it to {n_named:,} or more")
    _append(grown, dict.fromkeys(new_controls, 0.0), Piece.CONTROL)
    _append(grown, dict.fromkeys(new_symbols, 0.0), Piece.USER_DEFINED)
    spec.control_symbols.extend(new_controls)
    spec.user_defined_symbols.extend(new_symbols)

    words = {word: number for word, number in word_counts.items() if word and not is_too_long(word)}
    may_add = _rule(grown)
    lowest = min((piece.score for piece in grown.pieces[:n_old] if piece.type == Piece.NORMAL), default=0.0)
    characters = list(islice(_missing_characters(grown, words, may_add), n - n_named))
    _append(grown, {character: lowest - i for i, character in enumerate(characters, 1)})
    n_left = n - n_named - len(characters)
    if spec.model_type == TrainerSpec.BPE:
        scores = {piece.piece: piece.score for piece in grown.pieces if piece.type == Piece.NORMAL}
        merges = _merges(_segments(grown, words), scores, may_add)
        _append(grown, {merge: scores[merge] for merge, _ in islice(merges, n_left)})
    else:
        candidates = dict(islice(_merges(_segments(grown, words), {}, may_add), _CANDIDATES_A_PIECE * n_left))
        _take_likeliest(grown, words, characters, candidates, n_left)
    n_unreachable = _remove_unreachable(grown, n_old, words)
    spec.vocab_size = len(grown.pieces)
    n_characters = sum(piece.piece in characters for piece in grown.pieces[n_old:])
    n_pieces = len(grown.pieces) - n_old - n_named - n_characters
    return Growth(grown.SerializeToString(), len(new_controls), len(new_symbols), n_characters, n_pieces, n_unreachable)


def spellings(old: bytes, grown: bytes, like: Mapping[str, str] | None = None) -> list[list[int]]:
    """Return the old ids that spell each new piece, in the order of the new ids; none for controls and symbols.

    Args:
        old: a serialised model.
        grown: the model that `grow_model` made from it.
        like: control or symbol → the old piece that spells it, such as <2de> for <2nl>.
    """
    before, after = ModelProto.FromString(old), ModelProto.FromString(grown)
    tokenizer, alone = Tokenizer(old), _alone(before)
    ids_of = {piece.piece: i for i, piece in enumerate(before.pieces)}

    def spelled(piece: ModelProto.SentencePiece) -> list[int]:
        if piece.type != Piece.NORMAL:
            return [ids_of[like[piece.piece]]] if like and piece.piece in like else []
        first, text, last = alone(piece.piece)
        ids = tokenizer.encode(first + text + last)
        return ids[len(tokenizer.encode(first)) : len(ids) - len(tokenizer.encode(last))]

    return [spelled(piece) for piece in after.pieces[len(before.pieces) :]]


def tokens_per_word(model: bytes, word_counts: Mapping[str, int]) -> float:
    """Return the fertility of a model on counted words, as in `vocabulary_facts`; 0 without words."""
    n_tokens = sum(len(ids) * number for ids, number in _encoded(Tokenizer(model), word_counts))
    n_words = sum(len(units_of(word)) * number for word, number in word_counts.items())
    return n_tokens / n_words if n_words else 0.0


def fraction_cut_differently(old: Tokenizer, grown: Tokenizer, lines: Iterable[str]) -> float:
    """Return the fraction of normalised lines that a grown tokenizer encodes in other ids than the old one."""
    n_lines = n_differing = 0
    rest = iter(lines)
    while batch := list(islice(rest, WORDS_PER_BATCH)):
        n_lines += len(batch)
        pairs = zip(old.encode_batch(batch), grown.encode_batch(batch), strict=True)
        n_differing += sum(before != after for before, after in pairs)
    return n_differing / max(n_lines, 1)


def _refuse_models_that_cannot_grow(model: ModelProto) -> None:
    kind = TrainerSpec.ModelType.Name(model.trainer_spec.model_type).lower()
    fix = f"remove {_KEY}, or train from scratch with a new tokenizer"
    if kind not in ("bpe", "unigram"):
        raise ConfigError(_KEY, f"this tokenizer cannot grow: it is a {kind} model, neither bpe nor unigram", fix)
    if not model.normalizer_spec.add_dummy_prefix:
        problem = "this tokenizer cannot grow: it cuts the first word of a line in another way than the others"
        raise ConfigError(_KEY, problem, fix)


def _missing(model: ModelProto, names: Iterable[str], kind: int) -> list[str]:
    """Return the names that the model lacks; raise an error if it has one as a piece of another kind."""
    kinds = {piece.piece: piece.type for piece in model.pieces}
    names = list(dict.fromkeys(names))
    for name in names:
        if kinds.get(name, kind) != kind:
            raise ConfigError(name, "is another kind of piece in the old tokenizer", "choose another name")
    return [name for name in names if name not in kinds]


def _append(model: ModelProto, scores: Mapping[str, float], kind: int = Piece.NORMAL) -> None:
    model.pieces.extend(Piece(piece=text, score=score, type=kind) for text, score in scores.items())


# ---------------------------------------------------------------------------------------------------- what may be added


def _rule(model: ModelProto) -> Callable[[str], bool]:
    """Return whether a text may become a piece: the conditions of SentencePiece's trainer, and of `train_tokenizer`."""
    spec, names = model.trainer_spec, {piece.piece for piece in model.pieces}
    symbols = (re.escape(piece.piece) for piece in model.pieces if piece.type == Piece.USER_DEFINED)
    cutting = re.compile("|".join([CUTTING, *symbols]))

    @cache
    def may_add(text: str) -> bool:
        inside = text[:-1] if spec.treat_whitespace_as_suffix else text[1:]
        return (
            len(text) <= spec.max_sentencepiece_length
            and text not in names
            and WORD_START not in inside
            and not (spec.split_digits and len(text) > 1 and any(map(str.isdecimal, text)))
            and not (spec.split_by_unicode_script and len(_scripts(text, spec.split_by_number)) > 1)
            and not cutting.search(text)
        )

    return may_add


def _scripts(text: str, number_is_script: bool) -> set[str]:
    """Return the scripts of a text as SentencePiece's trainer sees them: kana are Han, accents have none."""
    counted = (c for c in text if c != WORD_START and (number_is_script or c not in "0123456789"))
    scripts = {"Han" if c == "ー" else script_of(c) for c in counted} - {"Inherited"}
    return {"Han" if script in ("Hiragana", "Katakana") else script for script in scripts}


def _missing_characters(model: ModelProto, words: Mapping[str, int], may_add: Callable[[str], bool]) -> Iterator[str]:
    """Yield the characters that the model lacks, the most frequent first, until its character coverage is reached."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    totals: Counter[str] = Counter()
    items = iter(words.items())
    while batch := list(islice(items, WORDS_PER_BATCH)):
        for text, (_, number) in zip(processor.normalize([word for word, _ in batch]), batch, strict=True):
            for character in text:
                totals[character] += number
    known = {piece.piece for piece in model.pieces}
    covered = sum(number for character, number in totals.items() if character in known)
    for character, number in sorted(totals.items(), key=lambda item: (-item[1], item[0])):
        if covered >= model.trainer_spec.character_coverage * totals.total():
            return
        if character not in known and may_add(character):
            covered += number
            yield character


# ---------------------------------------------------------------------------------------------------- new pieces


def _segments(model: ModelProto, words: Mapping[str, int]) -> Counter[tuple[str, ...]]:
    """Count the sequences of pieces that may be joined: words cut by the model, without bytes, symbols and the like."""
    spec = model.trainer_spec
    texts = [piece.piece if piece.type == Piece.NORMAL else "" for piece in model.pieces]

    @cache
    def are_separate(last: str, first: str) -> bool:
        if spec.split_digits and (last.isdecimal() or first.isdecimal()):
            return True
        return spec.split_by_unicode_script and len(_scripts(last + first, spec.split_by_number)) > 1

    segments: Counter[tuple[str, ...]] = Counter()
    for ids, number in _encoded(Tokenizer(model.SerializeToString()), words):
        segment: list[str] = []
        for text in (texts[id_] for id_ in ids):
            if segment and (not text or are_separate(segment[-1][-1], text[0])):
                segments[tuple(segment)] += number
                segment = []
            if text:
                segment.append(text)
        segments[tuple(segment)] += number
    return Counter({segment: number for segment, number in segments.items() if len(segment) > 1})


def _encoded(tokenizer: Tokenizer, words: Mapping[str, int]) -> Iterator[tuple[list[int], int]]:
    """Yield the ids and the count of each word."""
    items = iter(words.items())
    while batch := list(islice(items, WORDS_PER_BATCH)):
        yield from zip(
            tokenizer.encode_batch([word for word, _ in batch]), (number for _, number in batch), strict=True
        )


def _merges(
    segments: Mapping[tuple[str, ...], int], scores: dict[str, float], may_add: Callable[[str], bool]
) -> Iterator[tuple[str, int]]:
    """Join the most frequent adjacent pieces again and again; yield each joined piece, and how often it occurred.

    As SentencePiece does, it joins any two pieces that make up a known piece, whatever its parts were when it was
    learned. So a new merge may make an old one possible, which then comes first because its score is higher.

    Args:
        segments: sequences of pieces → how often they occur. No two adjacent pieces make up one of `scores`.
        scores: pieces that are joined at once → their scores; each new piece is added with a score below all others.
    """
    learner = _Segments(segments)
    # Counts change: an entry that is no longer right is replaced when it comes first.
    queue = [(-total, len(pair), pair) for pair, total in learner.totals.items()]
    heapq.heapify(queue)
    lowest = min(scores.values(), default=0.0)
    while queue and -queue[0][0] >= _LEAST_COUNT:
        negative, length, pair = heapq.heappop(queue)
        total = learner.totals[pair]
        if total != -negative:
            if 0 < total < -negative:
                heapq.heappush(queue, (-total, length, pair))
        elif may_add(pair):
            lowest = scores[pair] = _next_below(lowest)
            yield pair, total
            for more in learner.join(pair, scores):
                heapq.heappush(queue, (-learner.totals[more], len(more), more))


def _next_below(score: float) -> float:
    """Return score - 1, or the next lower number in float32, the type of scores."""
    return float(min(np.float32(score - 1), np.nextafter(np.float32(score), np.float32(-np.inf))))


class _Segments:
    """Sequences of pieces, and how often each pair of adjacent pieces occurs in them."""

    def __init__(self, segments: Mapping[tuple[str, ...], int]) -> None:
        self.pieces = [list(segment) for segment in segments]
        self.weights = list(segments.values())
        self.totals: Counter[str] = Counter()  # of pairs, by their joined text
        self.users: defaultdict[str, list[int]] = defaultdict(list)  # of a pair: segments that have it, or had it
        for i, (pieces, weight) in enumerate(zip(self.pieces, self.weights, strict=True)):
            for pair in map(add, pieces, pieces[1:]):
                self.totals[pair] += weight
                self.users[pair].append(i)

    def join(self, pair: str, scores: Mapping[str, float]) -> list[str]:
        """Join a pair everywhere, and then what this makes possible; return the pairs that are now more frequent."""
        changes: Counter[str] = Counter()
        for i in self.users.pop(pair):
            pieces = self.pieces[i]
            while pair in (pairs := list(map(add, pieces, pieces[1:]))):
                at: int | None = pairs.index(pair)
                while at is not None:
                    near = self._join_at(i, at, changes)
                    known = [place for place, text in near.items() if text in scores and text != pair]
                    at = max(known, key=lambda place: (scores[near[place]], -place), default=None)
        for changed, change in changes.items():
            self.totals[changed] += change
        return [changed for changed, change in changes.items() if change > 0]

    def _join_at(self, i: int, at: int, changes: Counter[str]) -> dict[int, str]:
        """Join the pieces `at` and `at` + 1 of segment i; return the pairs of the result by the place of the first."""
        pieces, weight, first = self.pieces[i], self.weights[i], max(at - 1, 0)
        for gone in map(add, pieces[first : at + 2], pieces[first + 1 : at + 3]):
            changes[gone] -= weight
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        near = dict(enumerate(map(add, pieces[first : at + 1], pieces[first + 1 : at + 2]), first))
        for new in near.values():
            changes[new] += weight
            self.users[new].append(i)
        return near


def _take_likeliest(
    model: ModelProto, words: Mapping[str, int], characters: Sequence[str], candidates: Mapping[str, int], n: int
) -> None:
    """Append the n most useful candidates to a unigram model, and set the scores of its new characters.

    In each round, the score of a piece becomes its log-probability in the best cuts of the new text. Then the pieces
    go whose loss changes the likelihood least: their count times the score that they have above their best other cut.
    """
    n_fixed = len(model.pieces) - len(characters)
    fixed = {piece.piece: piece.score for piece in model.pieces[:n_fixed] if piece.type == Piece.NORMAL}
    total = sum(_uses(model, words))
    new = {piece.piece: piece.score for piece in model.pieces[n_fixed:]}
    new |= {candidate: math.log(number / total) for candidate, number in candidates.items()}
    while True:
        del model.pieces[n_fixed:]
        _append(model, new)
        uses = _uses(model, words)
        total, n_uses = sum(uses), dict(zip(new, uses[n_fixed:], strict=True))
        kept = [piece for piece in new if n_uses[piece] or piece in characters]
        n_excess = len(kept) - len(characters) - n
        if n_excess <= 0 and len(kept) == len(new):
            return
        new = {piece: math.log(max(n_uses[piece], 1) / total) for piece in kept}
        if n_excess > 0:
            known, others = fixed | new, kept[len(characters) :]
            gains = {piece: n_uses[piece] * (new[piece] - _other_score(piece, known)) for piece in others}
            n_removed = min(n_excess, math.ceil((1 - _KEPT_A_ROUND) * len(others)))
            for piece in sorted(others, key=lambda piece: (gains[piece], piece))[:n_removed]:
                del new[piece]


def _uses(model: ModelProto, words: Mapping[str, int]) -> list[int]:
    """Return how often each piece is used in the words."""
    uses = [0] * len(model.pieces)
    for ids, number in _encoded(Tokenizer(model.SerializeToString()), words):
        for id_ in ids:
            uses[id_] += number
    return uses


def _other_score(text: str, scores: Mapping[str, float]) -> float:
    """Return the score of the best cut of a piece into other pieces."""
    best = [0.0, *[-math.inf] * len(text)]
    for end in range(1, len(text) + 1):
        parts = ((start, text[start:end]) for start in range(end) if end - start < len(text))
        best[end] = max((best[start] + scores.get(part, -math.inf) for start, part in parts), default=-math.inf)
    return best[-1]


# ---------------------------------------------------------------------------------------------------- reachability


def _remove_unreachable(model: ModelProto, n_old: int, words: Mapping[str, int]) -> int:
    """Remove the new pieces that the model produces neither from their own text nor in the words; return their number.

    With the normalisation of other programs, it may read the text of a piece as other text.
    """
    alone, n_all = _alone(model), len(model.pieces)
    while True:
        tokenizer = Tokenizer(model.SerializeToString())
        new = [i for i in range(n_old, len(model.pieces)) if model.pieces[i].type == Piece.NORMAL]
        encoded = tokenizer.encode_batch(["".join(alone(model.pieces[i].piece)) for i in new])
        unreachable = {i for i, ids in zip(new, encoded, strict=True) if i not in ids}
        if unreachable:
            unreachable.difference_update(chain.from_iterable(ids for ids, _ in _encoded(tokenizer, words)))
        if not unreachable:
            return n_all - len(model.pieces)
        for i in sorted(unreachable, reverse=True):  # other pieces may have been made from them: look again
            del model.pieces[i]


def _alone(model: ModelProto) -> Callable[[str], tuple[str, str, str]]:
    """Return a function that gives the text of a piece, with what has to be before and after it.

    A space is put before each text, or after it, so a piece without it needs a character that the model does not know.
    """
    known = set(chain.from_iterable(piece.piece for piece in model.pieces))
    stranger = next(character for character in map(chr, range(0xE000, 0xF900)) if character not in known)
    if model.trainer_spec.treat_whitespace_as_suffix:
        return lambda piece: ("", piece.removesuffix(WORD_START), "" if piece.endswith(WORD_START) else stranger)
    return lambda piece: ("" if piece.startswith(WORD_START) else stranger, piece.removeprefix(WORD_START), "")
