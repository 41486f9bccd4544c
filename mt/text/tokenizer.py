"""Train, adopt, load, encode, decode: one SentencePiece model for both languages. Special ids are fixed here, once."""

from __future__ import annotations

import functools
import io
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import sentencepiece
from sentencepiece import sentencepiece_pb2
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from mt.config.settings import TokenizerConfig
from mt.errors import CheckpointError, ConfigError, DataError, MTError
from mt.system.files import whole_file
from mt.system.provenance import n_cores
from mt.system.workers import run_apart

PAD_ID, UNK_ID, BOS_ID, EOS_ID = 0, 1, 2, 3

Piece = ModelProto.SentencePiece

MAX_WORD_BYTES = 4_192  # longer words, which are no words, are left out of training
WORD_START = "▁"  # how SentencePiece writes a space
# Cuts a word: the name of a special piece, which the trainer takes out of its text.
_CUT = "<pad>"
# In no piece. The trainer itself takes a tab for the end of the word, skips what has U+2585, and stumbles over a zero.
_CUTTING = r"[\0\t\n\r\u2585]|</?s>|<pad>|<unk>|<0x[0-9A-F]{2}>"
_LEAST_COVERAGE = 0.98  # that the trainer takes
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
    "max_sentence_length": 1 << 20,  # beyond any word, with its rare characters replaced
    # The trainer sums in the order of its threads, so their number is part of the result: the same on every machine.
    "num_threads": 16,
    "minloglevel": 2,  # errors only
}
_SPECIAL_IDS = frozenset({PAD_ID, UNK_ID, BOS_ID, EOS_ID})
_LINE_BREAKERS = frozenset("\0\n\r")
N_LONGEST = 10  # pieces that `vocabulary_facts` shows
_WORDS_PER_BATCH = 50_000  # encoded together


class Tokenizer:
    """Text to ids and back. Text goes through as given: `mt.text.normalise` it first."""

    pad_id, bos_id, eos_id = PAD_ID, BOS_ID, EOS_ID

    def __init__(self, model: bytes) -> None:
        """Take a serialised SentencePiece model; `Tokenizer.load` says what is wrong with a file."""
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Return the tokenizer of a model file.

        Raises:
            CheckpointError: the file is missing, damaged, or was neither made nor adopted by mt.
        """
        tokenizer = cls(_read_model(path, CheckpointError, "put the original file back"))
        if not tokenizer._has_our_ids:
            problem = f"was not made by mt: it needs pad, unk, bos and eos as pieces {PAD_ID} to {EOS_ID}"
            raise CheckpointError(path, problem, "give it as tokenizer.model when the corpus is prepared")
        return tokenizer

    @property
    def _has_our_ids(self) -> bool:
        special_ids = [getattr(self._processor, f"{name}_id")() for name in ("pad", "unk", "bos", "eos")]
        return special_ids == [PAD_ID, UNK_ID, BOS_ID, EOS_ID]

    @property
    def vocab_size(self) -> int:
        return int(self._processor.get_piece_size())

    @functools.cached_property
    def byte_ids(self) -> frozenset[int]:
        """Return the pieces that are bytes. An adopted model that makes <unk> of unknown characters has none."""
        return frozenset(id_ for id_ in range(self.vocab_size) if self._processor.is_byte(id_))

    @functools.cached_property
    def line_breaking_ids(self) -> frozenset[int]:
        """Return the pieces that would break a line or end a string: never to be produced by a search."""
        bytes_ = {f"<0x{ord(character):02X}>" for character in _LINE_BREAKERS}
        pieces = enumerate(self.pieces(range(self.vocab_size)))
        return frozenset(
            id_ for id_, piece in pieces if (piece in bytes_ and id_ in self.byte_ids) or _LINE_BREAKERS & set(piece)
        )

    def encode(self, text: str) -> list[int]:
        """Return the ids of the text alone, no special ones."""
        return cast("list[int]", self._processor.encode(text, out_type=int))

    def encode_batch(self, texts: Sequence[str], n_threads: int | None = None) -> list[list[int]]:
        """Return the ids of many texts, encoded on all cores unless told otherwise."""
        if not texts:
            return []
        batch = self._processor.encode(list(texts), out_type=int, num_threads=n_threads or n_cores())
        return cast("list[list[int]]", batch)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of the ids; special ones are skipped, and bytes that are not UTF-8 become U+FFFD."""
        return str(self._processor.decode([int(id_) for id_ in ids if id_ not in _SPECIAL_IDS]))

    def decode_batch(self, batch: Iterable[Iterable[int]]) -> list[str]:
        return [self.decode(ids) for ids in batch]

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Return the pieces as the vocabulary has them, special ones included."""
        return [self._processor.id_to_piece(int(id_)) for id_ in ids]

    def piece_ends(self, text: str) -> list[int]:
        """Return for each piece of a text, in the order of `encode`, how many of its characters end with the piece.

        The pieces that are the bytes of one character all end with it.
        """
        encoded = self._processor.encode(text, out_type="serialized_proto")
        pieces = sentencepiece_pb2.SentencePieceText.FromString(encoded).pieces
        ends = list(accumulate(len(piece.surface) for piece in pieces))
        # Of the bytes of a character, the last one has it as its surface, and the others have none.
        for place in range(len(ends) - 2, -1, -1):
            if not pieces[place].surface and pieces[place].id in self.byte_ids:
                ends[place] = ends[place + 1]
        return ends


def _read_model(path: Path, kind: type[MTError], advice: str) -> bytes:
    """Return the bytes of a file that SentencePiece can load, or raise an error of the kind."""
    try:
        model = Path(path).read_bytes()
    except FileNotFoundError:
        raise kind(path, "no such file, the tokenizer is missing") from None
    except OSError as error:
        raise kind(path, f"the tokenizer cannot be read: {error.strerror}") from None
    damaged = kind(path, "is no SentencePiece model, or is damaged", advice)
    if not model:
        raise damaged
    try:
        sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError:
        raise damaged from None
    return model


def count_words(lines: Iterable[str]) -> Counter[str]:
    """Count how often each word comes; words are what single spaces part, as in normalised text."""
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
    while_waiting: Callable[[], None] = lambda: None,
) -> None:
    """Train a model on counts of words and write it to `model_path`. The same counts give the same bytes everywhere.

    SentencePiece's BPE depends on counts alone: the pieces and their scores are those that the lines would give. Its
    unigram model begins with the frequent parts of the running text, and here with those of the different words: other
    pieces in about one case of a hundred, as good, in two thirds of the time.

    Args:
        word_counts: of normalised text, as `count_words` counts them, in any order.
        symbols: pieces that are never cut, such as <bt>. Each becomes two: with a space before it, and without.
        while_waiting: called about once a second. Training runs in its own process, whose memory ends with it.
    Raises:
        ConfigError: the vocabulary is too large or too small for these words.
        DataError: there is no word to train on.
    """
    n_words = sum(count for word, count in word_counts.items() if word)
    n_skipped = n_skipped_words(word_counts)
    if n_words == n_skipped:
        given = f"{n_words:,} words were given, of which {n_skipped:,} are too long (over {MAX_WORD_BYTES:,} bytes)"
        raise DataError(f"no text to train the tokenizer on: {given}")
    settings = {
        "model_type": config.kind,
        "vocab_size": config.vocab_size,
        "character_coverage": 1.0 if config.character_coverage < _LEAST_COVERAGE else config.character_coverage,
        "user_defined_symbols": list(chain.from_iterable(map(_symbol_pieces, symbols))),
        **_TRAINER_SETTINGS,
    }
    with tempfile.NamedTemporaryFile(prefix=f".{model_path.name}.words-", dir=model_path.parent) as file:
        file.writelines(_trainer_lines(word_counts, config.character_coverage, symbols))
        file.flush()
        try:
            model = run_apart(_train, file.name, settings, while_waiting=while_waiting)
        except RuntimeError as failure:
            raise _explained(failure, config) from None
    with whole_file(model_path) as stream:
        stream.write(model)


def n_skipped_words(word_counts: Mapping[str, int]) -> int:
    """Return how many of the running words training leaves out, as they have more than MAX_WORD_BYTES."""
    return sum(count for word, count in word_counts.items() if _is_too_long(word))


def _is_too_long(word: str) -> bool:
    # No character takes more than 4 bytes: most words need no encoding to be measured.
    return 4 * len(word) > MAX_WORD_BYTES and len(word.encode()) > MAX_WORD_BYTES


def _symbol_pieces(symbol: str) -> tuple[str, str]:
    """Return a symbol behind a space, which else would be a piece before it, and one that something else touches."""
    return WORD_START + symbol, symbol


def _trainer_lines(counts: Mapping[str, int], coverage: float, symbols: Sequence[str]) -> Iterator[bytes]:
    """Yield `word<TAB>count`, sorted; what cuts words becomes a special piece, and so do rare characters if need be."""
    pieces = sorted(chain.from_iterable(map(_symbol_pieces, symbols)), key=len, reverse=True)
    cutting = "|".join([_CUTTING, *map(re.escape, pieces)])
    if coverage < _LEAST_COVERAGE:
        required = _required_characters(counts, coverage, re.compile(cutting))
        cutting += f"|[^{re.escape(''.join(required))}]"
    pattern = re.compile(cutting)
    for word in sorted(counts):
        if word and not _is_too_long(word):
            yield f"{pattern.sub(_CUT, word)}\t{counts[word]}\n".encode()


def _required_characters(counts: Mapping[str, int], coverage: float, cutting: re.Pattern[str]) -> Iterator[str]:
    """Yield the most frequent characters, which make up the share of the text, as the trainer chooses them."""
    characters: Counter[str] = Counter()
    for word, count in counts.items():
        if word and not _is_too_long(word):
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
        # Not as a file, whose name would be part of the model.
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line[:-1] for line in lines), model_writer=model, **settings
        )
    return model.getvalue()


def _explained(failure: RuntimeError, config: TokenizerConfig) -> Exception:
    key, size = "tokenizer.vocab_size", f"{config.vocab_size:,}"
    if found := re.search(r"Vocabulary size too high \(\d+\)\. Please set it to a value <= (\d+)", str(failure)):
        problem = f"{size} is too large for this corpus, which yields at most {int(found[1]):,} pieces"
        return ConfigError(key, problem, f"set it to {found[1]} or less, or give more text")
    if found := re.search(r"Vocabulary size is smaller than required_chars\. \d+ vs (\d+)", str(failure)):
        pieces = f"{int(found[1]):,} pieces with the 256 bytes and the special ones"
        problem = f"{size} is too small for this corpus, whose characters take {pieces}"
        return ConfigError(key, problem, f"set it above {found[1]}, or lower tokenizer.character_coverage")
    return failure


def adopt_model(path: Path, symbols: Sequence[str]) -> bytes:
    """Return a given SentencePiece model with our special ids, unchanged if it has them and the symbols.

    Its segmentations stay what they were, but for the symbols, and so does its normalisation of text. What it lacks of
    pad, bos and eos is added; symbols that it lacks are added as by `train_tokenizer`.

    Raises:
        DataError: the file is missing, damaged, or uses one piece for two purposes.
        ConfigError: a symbol is a special piece of the model.
    """
    serialized = _read_model(path, DataError, "set tokenizer.model to the .model file that SentencePiece has written")
    model = ModelProto.FromString(serialized)
    texts = {piece.piece for piece in model.pieces if piece.type == Piece.USER_DEFINED}
    if Tokenizer(serialized)._has_our_ids and texts.issuperset(symbols):
        return serialized
    spec = model.trainer_spec
    # SentencePiece loads no model without an unknown piece.
    unk = next(piece.piece for piece in model.pieces if piece.type == Piece.UNKNOWN)
    pad, bos, eos = spec.pad_piece or "<pad>", spec.bos_piece or "<s>", spec.eos_piece or "</s>"
    names = (pad, unk, bos, eos)
    if len(set(names)) < len(names):
        problem = f"uses one piece for two purposes (pad {pad}, unk {unk}, bos {bos}, eos {eos})"
        raise DataError(path, problem, "set tokenizer.model to a model that has a piece for each")
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
            added = (text for text in _symbol_pieces(symbol) if text not in by_text)
            others += [Piece(piece=text, score=0.0, type=Piece.USER_DEFINED) for text in added]
    pieces = [Piece.FromString(piece.SerializeToString()) for piece in (*special, *others)]  # those of the model go
    del model.pieces[:]
    model.pieces.extend(pieces)
    spec.pad_id, spec.unk_id, spec.bos_id, spec.eos_id = PAD_ID, UNK_ID, BOS_ID, EOS_ID
    spec.pad_piece, spec.bos_piece, spec.eos_piece = pad, bos, eos
    spec.vocab_size = len(pieces)
    known = set(spec.user_defined_symbols)
    named = (piece.piece for piece in pieces if piece.type == Piece.USER_DEFINED)
    spec.user_defined_symbols.extend(text for text in named if text not in known)
    return cast(bytes, model.SerializeToString())


# ---------------------------------------------------------------------------------------------------- facts


def vocabulary_facts(
    tokenizer: Tokenizer, src_counts: Mapping[str, int], tgt_counts: Mapping[str, int]
) -> dict[str, Any]:
    """Return what the vocabulary does to the text of each side, and how the two share it.

    It is computed from counts of words, which a tokenizer that `train_tokenizer` has made cuts one by one: so the
    numbers are those of the running text. An adopted model whose pieces go beyond spaces may differ a little.

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
