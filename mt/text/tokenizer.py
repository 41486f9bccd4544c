"""The tokenizers: a SentencePiece model for both languages, or one for each. The special ids are defined here."""

from __future__ import annotations

import functools
import io
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import sentencepiece
from sentencepiece import sentencepiece_pb2
from sentencepiece.sentencepiece_model_pb2 import ModelProto, TrainerSpec

from mt.config.settings import LEAST_COVERAGE, SMALLEST_VOCABULARY, RunConfig, TokenizerConfig, VocabSizes
from mt.errors import CheckpointError, ConfigError, DataError, MTError
from mt.system.files import whole_file
from mt.system.provenance import n_cores
from mt.system.workers import run_apart
from mt.text.languages import units_of

PAD_ID, UNK_ID, BOS_ID, EOS_ID = 0, 1, 2, 3
JOINT_FILE, SEPARATE_FILES = "tokenizer.model", ("tokenizer.src.model", "tokenizer.tgt.model")

Piece = ModelProto.SentencePiece

MAX_WORD_BYTES = 4_192  # longer words, which are not real words, are left out of training
WORD_START = "▁"  # how SentencePiece writes a space
# Written where a word is to be cut: the name of a special piece, which the trainer removes from its text.
_CUT = "<pad>"
# Text that no piece may contain. The trainer itself reads a tab as the end of the word, skips words with U+2585, and
# fails on a zero byte.
CUTTING = r"[\0\t\n\r\u2585]|</?s>|<pad>|<unk>|<0x[0-9A-F]{2}>"
# The ends of digits that the trainer's own split_digits does not know: all but 0 to 9.
_DIGIT_ENDS = r"(?<=[^\D0-9])|(?=[^\D0-9])"
_LEAST_COVERAGE = 0.98  # the smallest character coverage that the trainer accepts
_TRAINER_SETTINGS = {
    "pad_id": PAD_ID,
    "unk_id": UNK_ID,
    "bos_id": BOS_ID,
    "eos_id": EOS_ID,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "byte_fallback": True,
    "input_format": "tsv",
    "input_sentence_size": 0,
    "max_sentence_length": 1 << 20,  # longer than any word, also when its rare characters are replaced
    # The trainer sums in the order of its threads, so the result depends on their number: use the same one everywhere.
    "num_threads": 16,
    "minloglevel": 2,  # errors only
}
_LINE_BREAKERS = frozenset("\0\n\r")
N_LONGEST = 10  # longest pieces that `vocabulary_facts` shows
WORDS_PER_BATCH = 50_000  # encoded together


class Tokenizer:
    """Conversion of text to ids and back. The text is not changed: normalise it first with `mt.text.normalise`."""

    pad_id, bos_id, eos_id = PAD_ID, BOS_ID, EOS_ID

    def __init__(self, model: bytes) -> None:
        """Load a serialised SentencePiece model; `Tokenizer.load` loads a file and explains errors."""
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Load the tokenizer from a model file.

        Raises:
            CheckpointError: the file is missing, damaged, or was neither trained nor adopted by mt.
        """
        tokenizer = cls(_read_model(path, CheckpointError, "restore the original file"))
        if not tokenizer._has_our_ids:
            problem = f"was not made by mt, which needs pad, unk, bos and eos as pieces {PAD_ID} to {EOS_ID}"
            raise CheckpointError(path, problem, "to use this model, set tokenizer.model to it and prepare the corpus")
        return tokenizer

    @property
    def model(self) -> bytes:
        """The serialised SentencePiece model."""
        return self._processor.serialized_model_proto()

    @property
    def _has_our_ids(self) -> bool:
        special_ids = [getattr(self._processor, f"{name}_id")() for name in ("pad", "unk", "bos", "eos")]
        return special_ids == [PAD_ID, UNK_ID, BOS_ID, EOS_ID]

    @property
    def vocab_size(self) -> int:
        return int(self._processor.get_piece_size())

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """The pieces that stand for no text: pad, unk, bos, eos, and the languages."""
        return frozenset({UNK_ID, *filter(self._processor.is_control, range(self.vocab_size))})

    def has_control(self, piece: str) -> bool:
        """Return whether a piece of a language is in the vocabulary."""
        return self._processor.piece_to_id(piece) in self.special_ids - {UNK_ID}

    def ids_of(self, pieces: Iterable[str]) -> list[int]:
        """Return the ids of pieces of languages.

        Raises:
            CheckpointError: the tokenizer does not have one of them.
        """
        ids = {piece: int(self._processor.piece_to_id(piece)) for piece in pieces}
        for piece in ids:
            if not self.has_control(piece):
                problem = f"the tokenizer does not have the piece {piece} of a language"
                raise CheckpointError("", problem, "start from a model that was trained with this language")
        return [*ids.values()]

    @functools.cached_property
    def byte_ids(self) -> frozenset[int]:
        """The pieces that are single bytes. An adopted model without byte fallback has none: it produces <unk>."""
        return frozenset(id_ for id_ in range(self.vocab_size) if self._processor.is_byte(id_))

    @functools.cached_property
    def line_breaking_ids(self) -> frozenset[int]:
        """The pieces that would break a line or end a string; a search must never produce them."""
        bytes_ = {f"<0x{ord(character):02X}>" for character in _LINE_BREAKERS}
        pieces = enumerate(self.pieces(range(self.vocab_size)))
        return frozenset(
            id_ for id_, piece in pieces if (piece in bytes_ and id_ in self.byte_ids) or _LINE_BREAKERS & set(piece)
        )

    def encode(self, text: str) -> list[int]:
        """Return the ids of the text, without special ids."""
        return cast("list[int]", self._processor.encode(text, out_type=int))

    def encode_batch(self, texts: Sequence[str], n_threads: int | None = None) -> list[list[int]]:
        """Return the ids of many texts; by default all cores encode."""
        if not texts:
            return []
        batch = self._processor.encode(list(texts), out_type=int, num_threads=n_threads or n_cores())
        return cast("list[list[int]]", batch)

    @functools.cached_property
    def proto(self) -> ModelProto:
        """The model as a protocol buffer."""
        return ModelProto.FromString(self.model)

    @property
    def kind(self) -> str:
        """The type of the model: unigram, bpe, word or char."""
        return str(TrainerSpec.ModelType.Name(self.proto.trainer_spec.model_type)).lower()

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of the ids. Special ids are skipped, and bytes that are not UTF-8 become U+FFFD."""
        return str(self._processor.decode([int(id_) for id_ in ids if id_ not in self.special_ids]))

    def decode_batch(self, batch: Iterable[Iterable[int]]) -> list[str]:
        return [self.decode(ids) for ids in batch]

    def has_symbol(self, symbol: str) -> bool:
        """Return whether the text of a symbol is one piece, which is never split."""
        ids = self.encode(symbol)
        return len(ids) == 1 and self.decode(ids).strip() == symbol

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Return the pieces as they are in the vocabulary, special pieces included."""
        return [self._processor.id_to_piece(int(id_)) for id_ in ids]

    def piece_ends(self, text: str) -> list[int]:
        """Return the end of each piece of a text, in the order of `encode`, as a number of characters from the start.

        Pieces that are bytes of the same character all have the end of this character.
        """
        encoded = self._processor.encode(text, out_type="serialized_proto")
        pieces = sentencepiece_pb2.SentencePieceText.FromString(encoded).pieces
        ends = list(accumulate(len(piece.surface) for piece in pieces))
        # Only the last of the bytes of a character has the character as its surface.
        for place in range(len(ends) - 2, -1, -1):
            if not pieces[place].surface and pieces[place].id in self.byte_ids:
                ends[place] = ends[place + 1]
        return ends


class Tokenizers(NamedTuple):
    """The tokenizers of both sides: twice the same object if they have a joint vocabulary."""

    src: Tokenizer
    tgt: Tokenizer

    @classmethod
    def load(cls, paths: Sequence[Path]) -> Tokenizers:
        """Load the files of `tokenizer_paths`; see `Tokenizer.load`."""
        return cls.of([Tokenizer.load(path) for path in paths])

    @classmethod
    def of(cls, given: Sequence[Tokenizer]) -> Tokenizers:
        """Return the tokenizers of both sides: the one that is given, or the source's and the target's."""
        return cls(given[0], given[-1])

    @property
    def vocab_size(self) -> VocabSizes:
        """The number of pieces of the joint vocabulary, or of the two vocabularies."""
        return self.src.vocab_size if self.src is self.tgt else (self.src.vocab_size, self.tgt.vocab_size)


def tokenizer_paths(folder: Path) -> tuple[Path, ...]:
    """Return the paths of the files in a folder: of its joint tokenizer, or of the source's and the target's."""
    separate = tuple(folder / name for name in SEPARATE_FILES)
    is_joint = (folder / JOINT_FILE).is_file() or not any(path.is_file() for path in separate)
    return (folder / JOINT_FILE,) if is_joint else separate


class Vocabulary(NamedTuple):
    """A vocabulary of a run: the joint one, or that of one side."""

    name: str  # in messages; empty for the joint one
    file_name: str
    sides: tuple[int, ...]  # 0: source, 1: target
    settings: TokenizerConfig  # its own `model` and `vocab_size`
    symbols: tuple[str, ...]
    controls: tuple[str, ...]  # pieces that text never has: those of languages
    size_key: str  # the setting that gives its size


def vocabularies(config: RunConfig) -> list[Vocabulary]:
    """Return the vocabularies that a config describes: one, or the source's and the target's."""
    settings, key = config.tokenizer, "tokenizer.vocab_size"
    of_src = config.symbols, config.language_pieces
    if settings.joint:
        return [Vocabulary("", JOINT_FILE, (0, 1), settings, *of_src, key)]
    of_tgt = replace(settings, model=settings.tgt_model, vocab_size=settings.tgt_vocab_size or settings.vocab_size)
    return [
        Vocabulary("source", SEPARATE_FILES[0], (0,), settings, *of_src, key),
        # Tags and languages are in front of source segments only.
        Vocabulary("target", SEPARATE_FILES[1], (1,), of_tgt, settings.user_symbols, (), "tokenizer.tgt_vocab_size"),
    ]


def _read_model(path: Path, kind: type[MTError], advice: str) -> bytes:
    """Return the bytes of a file that SentencePiece can load; raise an error of the given kind if it cannot."""
    try:
        model = Path(path).read_bytes()
    except FileNotFoundError:
        raise kind(path, "no such tokenizer file") from None
    except OSError as error:
        raise kind(path, f"the tokenizer cannot be read ({error.strerror})") from None
    damaged = kind(path, "is damaged, or is not a SentencePiece model", advice)
    if not model:
        raise damaged
    try:
        sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError:
        raise damaged from None
    return model


def count_words(lines: Iterable[str]) -> Counter[str]:
    """Count how often each word occurs; words are separated by single spaces, as in normalised text."""
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(line.split(" "))
    del counts[""]
    return counts


def train_tokenizer(
    word_counts: Mapping[str, int],
    config: TokenizerConfig,
    model_path: Path,
    symbols: Sequence[str] = (),
    controls: Sequence[str] = (),
    while_waiting: Callable[[], None] = lambda: None,
    size_key: str = "tokenizer.vocab_size",
) -> None:
    """Train a model on word counts and write it to `model_path`. The same counts give the same bytes everywhere.

    SentencePiece's BPE depends only on counts, so the pieces and their scores are the same as from the full text. Its
    unigram model starts from frequent parts of the text, and here from frequent parts of the distinct words: about 1%
    of the pieces differ and are as good, and training takes two thirds of the time.

    Args:
        word_counts: of normalised text, as from `count_words`, in any order.
        symbols: pieces that are never split, such as <bt>. Each becomes two pieces, with a space before it and without.
        controls: pieces that no text has, such as <2de>: the same characters in a text are other pieces.
        while_waiting: called about once a second. Training runs in a separate process, to free its memory at the end.
        size_key: the setting that gives the size of the vocabulary, for errors.
    Raises:
        ConfigError: the vocabulary is too large or too small for these words.
        DataError: there are no words to train on.
    """
    n_words = sum(count for word, count in word_counts.items() if word)
    n_skipped = n_skipped_words(word_counts)
    if n_words == n_skipped:
        given = f"of {n_words:,} words, {n_skipped:,} are too long (over {MAX_WORD_BYTES:,} bytes)"
        raise DataError(f"there is no text to train the tokenizer on: {given}")
    settings = {
        "model_type": config.kind,
        "vocab_size": config.vocab_size,
        "character_coverage": 1.0 if config.character_coverage < _LEAST_COVERAGE else config.character_coverage,
        "split_digits": config.split_digits,
        "user_defined_symbols": list(chain.from_iterable(map(symbol_pieces, symbols))),
        "control_symbols": list(controls),
        **_TRAINER_SETTINGS,
    }
    with tempfile.NamedTemporaryFile(prefix=f".{model_path.name}.words-", dir=model_path.parent) as file:
        file.writelines(_trainer_lines(word_counts, config, symbols, controls))
        file.flush()
        try:
            model = run_apart(_train, file.name, settings, while_waiting=while_waiting)
        except RuntimeError as failure:
            raise _explained(failure, size_key, config) from None
    with whole_file(model_path) as stream:
        stream.write(model)


def n_skipped_words(word_counts: Mapping[str, int]) -> int:
    """Return how many words training leaves out because they have more than MAX_WORD_BYTES, repetitions counted."""
    return sum(count for word, count in word_counts.items() if is_too_long(word))


def is_too_long(word: str) -> bool:
    """Return whether training leaves the word out, see MAX_WORD_BYTES."""
    # A character takes at most 4 bytes, so most words need not be encoded to be measured.
    return 4 * len(word) > MAX_WORD_BYTES and len(word.encode()) > MAX_WORD_BYTES


def symbol_pieces(symbol: str) -> tuple[str, str]:
    """Return the two pieces of a symbol: with a space before it, and without.

    Without the first one, the space would be a separate piece.
    """
    return WORD_START + symbol, symbol


def _trainer_lines(
    counts: Mapping[str, int], config: TokenizerConfig, symbols: Sequence[str], controls: Sequence[str]
) -> Iterator[bytes]:
    """Yield `word<TAB>count`, sorted. Text that no piece may contain, and rare characters if needed, become `_CUT`."""
    coverage = config.character_coverage
    pieces = sorted(chain(controls, *map(symbol_pieces, symbols)), key=len, reverse=True)
    cutting = "|".join([CUTTING, *map(re.escape, pieces), *([_DIGIT_ENDS] if config.split_digits else [])])
    if coverage < _LEAST_COVERAGE:
        required = _required_characters(counts, coverage, re.compile(cutting))
        cutting += f"|[^{re.escape(''.join(required))}]"
    pattern = re.compile(cutting)
    for word in sorted(counts):
        if word and not is_too_long(word):
            yield f"{pattern.sub(_CUT, word)}\t{counts[word]}\n".encode()


def _required_characters(counts: Mapping[str, int], coverage: float, cutting: re.Pattern[str]) -> Iterator[str]:
    """Yield the most frequent characters, which make up the fraction `coverage` of the text, as the trainer does."""
    characters: Counter[str] = Counter()
    for word, count in counts.items():
        if word and not is_too_long(word):
            for character in cutting.sub("\t", WORD_START + word):  # the trainer counts a cut as a character
                characters[character] += count
    total, covered = sum(characters.values()), 0
    for character, count in sorted(characters.items(), key=lambda item: (-item[1], item[0])):
        if covered >= coverage * total:
            return
        covered += count
        if character != "\t":
            yield character


def _train(words_path: str, settings: Mapping[str, Any]) -> bytes:
    model = io.BytesIO()
    with open(words_path, encoding="utf-8", newline="\n") as lines:
        # Lines instead of a file name, which would become part of the model.
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line[:-1] for line in lines), model_writer=model, **settings
        )
    return model.getvalue()


def _explained(failure: RuntimeError, key: str, config: TokenizerConfig) -> Exception:
    size = f"{config.vocab_size:,}"
    if found := re.search(r"Vocabulary size too high \(\d+\)\. Please set it to a value <= (\d+)", str(failure)):
        problem = f"{size} is too large for this corpus, which gives at most {int(found[1]):,} pieces"
        is_allowed = int(found[1]) >= SMALLEST_VOCABULARY
        return ConfigError(key, problem, f"{f'set it to {found[1]} or less, or ' * is_allowed}give more text")
    if found := re.search(r"Vocabulary size is smaller than required_chars\. \d+ vs (\d+)", str(failure)):
        problem = f"{size} is too small: the characters, 256 bytes and special pieces already take {int(found[1]):,}"
        can_cover_less = config.character_coverage > LEAST_COVERAGE
        less = ", or lower tokenizer.character_coverage" if can_cover_less else ""
        return ConfigError(key, problem, f"set it to {found[1]} or more{less}")
    return failure


def adopt_model(path: Path, symbols: Sequence[str], controls: Sequence[str] = ()) -> bytes:
    """Return a given SentencePiece model with our special ids; unchanged if it has all pieces that are wanted.

    It segments and normalises text as before, except for the symbols. Missing pad, bos and eos are added; missing
    symbols and controls are added as in `train_tokenizer`.

    Raises:
        DataError: the file is missing, damaged, or uses one piece for two purposes.
        ConfigError: a symbol is a special piece of the model, or a control is another piece of it.
    """
    serialized = _read_model(path, DataError, "give a .model file written by SentencePiece")
    model = ModelProto.FromString(serialized)
    kinds = {piece.piece: piece.type for piece in model.pieces}
    for control in controls:
        if kinds.get(control, Piece.CONTROL) != Piece.CONTROL:
            problem = f"{control} is a piece of this model, and mt needs it for a language"
            raise ConfigError(path, problem, "use another model, or another code of this language")
    added = [control for control in controls if control not in kinds]
    has_symbols = all(kinds.get(symbol) == Piece.USER_DEFINED for symbol in symbols)
    if Tokenizer(serialized)._has_our_ids and has_symbols and not added:
        return serialized
    spec = model.trainer_spec
    # SentencePiece loads only models that have an unknown piece.
    unk = next(piece.piece for piece in model.pieces if piece.type == Piece.UNKNOWN)
    pad, bos, eos = spec.pad_piece or "<pad>", spec.bos_piece or "<s>", spec.eos_piece or "</s>"
    names = (pad, unk, bos, eos)
    if len(set(names)) < len(names):
        problem = f"uses one piece for two purposes (pad {pad}, unk {unk}, bos {bos}, eos {eos})"
        raise DataError(path, problem, "give a model with a separate piece for each")
    by_text = {piece.piece: piece for piece in model.pieces}
    special = [by_text.get(name) or Piece(piece=name, score=0.0) for name in names]
    for piece in special:
        if piece.type != Piece.UNKNOWN:
            piece.type = Piece.CONTROL
    others = [piece for piece in model.pieces if piece.piece not in names]
    for symbol in symbols:
        if symbol in names:
            raise ConfigError(path, f"{symbol} is a special piece of this model", "choose another symbol or tag")
        if symbol in by_text:
            by_text[symbol].type = Piece.USER_DEFINED
        else:
            new = (text for text in symbol_pieces(symbol) if text not in by_text)
            others += [Piece(piece=text, score=0.0, type=Piece.USER_DEFINED) for text in new]
    others += [Piece(piece=control, score=0.0, type=Piece.CONTROL) for control in added]
    # Copies, because the model's own pieces are deleted next.
    pieces = [Piece.FromString(piece.SerializeToString()) for piece in (*special, *others)]
    del model.pieces[:]
    model.pieces.extend(pieces)
    spec.pad_id, spec.unk_id, spec.bos_id, spec.eos_id = PAD_ID, UNK_ID, BOS_ID, EOS_ID
    spec.pad_piece, spec.bos_piece, spec.eos_piece = pad, bos, eos
    spec.vocab_size = len(pieces)
    known = set(spec.user_defined_symbols)
    named = (piece.piece for piece in pieces if piece.type == Piece.USER_DEFINED)
    spec.user_defined_symbols.extend(text for text in named if text not in known)
    spec.control_symbols.extend(added)
    return cast(bytes, model.SerializeToString())


# ---------------------------------------------------------------------------------------------------- facts


def vocabulary_facts(
    tokenizers: Tokenizers, src_counts: Mapping[str, int], tgt_counts: Mapping[str, int]
) -> dict[str, Any]:
    """Return statistics of how the vocabulary segments each side, and of the pieces that both sides use.

    They are computed from word counts. A tokenizer from `train_tokenizer` segments word by word, so the numbers equal
    those of the full text. For an adopted model with pieces that contain spaces they may differ a little.

    Args:
        src_counts: word counts, as from `count_words`.
        tgt_counts: the same for the target side.
    Returns:
        `src` and `tgt`, each with `words`, in scripts without spaces characters; `distinct_words`, separated by spaces;
        `tokens`; `fertility`, the tokens per word;
        `split_word_share`, the fraction of words with more than one piece; `byte_share` and `unknown_share`, fractions
        of the tokens; `characters_a_token`, without spaces; `longest_pieces`, the ten longest used, each with its
        `count`. Ratios are 0 for a text without words.
        `pieces`: the numbers of pieces used only by `src`, only by `tgt`, by `both` and by `neither`, without special
        pieces and bytes. With separate vocabularies, `src` and `tgt` have `vocab_size` and `unused_pieces` instead.
    """
    counts = src_counts, tgt_counts
    (src, src_uses), (tgt, tgt_uses) = (_side_facts(*one) for one in zip(tokenizers, counts, strict=True))
    if tokenizers.src is not tokenizers.tgt:
        for tokenizer, facts, n_uses in zip(tokenizers, (src, tgt), (src_uses, tgt_uses), strict=True):
            n_unused = int((_is_real_piece(tokenizer) & (n_uses == 0)).sum())
            facts |= {"vocab_size": tokenizer.vocab_size, "unused_pieces": n_unused}
        return {"src": src, "tgt": tgt}
    is_piece = _is_real_piece(tokenizers.src)
    in_src, in_tgt = src_uses > 0, tgt_uses > 0
    pieces = {"src": in_src & ~in_tgt, "tgt": in_tgt & ~in_src, "both": in_src & in_tgt, "neither": ~in_src & ~in_tgt}
    return {"src": src, "tgt": tgt, "pieces": {users: int((is_piece & used).sum()) for users, used in pieces.items()}}


def _is_real_piece(tokenizer: Tokenizer) -> npt.NDArray[np.bool_]:
    """Return [V]: whether a piece is neither special nor a byte."""
    is_piece = np.ones(tokenizer.vocab_size, dtype=np.bool_)
    is_piece[[*tokenizer.special_ids, *tokenizer.byte_ids]] = False
    return is_piece


def _side_facts(tokenizer: Tokenizer, word_counts: Mapping[str, int]) -> tuple[dict[str, Any], npt.NDArray[np.int64]]:
    """Return the statistics of one side, and [V]: how often each piece is used."""
    n_words = n_spaced = n_distinct_words = n_split_words = n_characters = 0
    n_uses = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    items = ((word, count) for word, count in word_counts.items() if word)
    while batch := list(islice(items, WORDS_PER_BATCH)):
        words = [word for word, _ in batch]
        counts = np.array([count for _, count in batch], dtype=np.int64)
        ids = tokenizer.encode_batch(words)
        n_pieces = np.array([len(word_ids) for word_ids in ids], dtype=np.int64)
        flat = np.fromiter(chain.from_iterable(ids), dtype=np.int64, count=int(n_pieces.sum()))
        np.add.at(n_uses, flat, np.repeat(counts, n_pieces))
        n_words += int(counts @ np.array([len(units_of(word)) for word in words], dtype=np.int64))
        n_spaced += int(counts.sum())
        n_distinct_words += len(batch)
        n_split_words += int(counts[n_pieces > 1].sum())
        n_characters += int(counts @ np.array([len(word) for word in words], dtype=np.int64))
    n_tokens = int(n_uses.sum())
    facts = {
        "words": n_words,
        "distinct_words": n_distinct_words,
        "tokens": n_tokens,
        "fertility": _ratio(n_tokens, n_words),
        "split_word_share": _ratio(n_split_words, n_spaced),
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
