"""Train, load, encode, decode: one SentencePiece model for both languages. The special ids are fixed here, once."""

from __future__ import annotations

import contextlib
import io
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import sentencepiece

from mt.config import TokenizerConfig
from mt.errors import CheckpointError, ConfigError, DataError

PAD_ID, UNK_ID, BOS_ID, EOS_ID = 0, 1, 2, 3

MAX_TRAINING_LINE_BYTES = 4_192  # SentencePiece's trainer skips longer lines
_TRAINER_RESERVED_CHAR = "\u2585"  # its trainer skips lines that hold this block character, too
# The trainer sums in the order of its threads, so their number is part of the result: the same on every machine.
_N_TRAINER_THREADS = 16
_ERRORS_ONLY = 2  # minloglevel
_SPECIAL_IDS = frozenset({PAD_ID, UNK_ID, BOS_ID, EOS_ID})


def n_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Tokenizer:
    """Text to ids and back. Text goes through as given: `mt.text.normalise` it first."""

    pad_id, bos_id, eos_id = PAD_ID, BOS_ID, EOS_ID

    def __init__(self, model: bytes) -> None:
        """Of a serialised SentencePiece model; `Tokenizer.load` says what is wrong with a file."""
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Of a model file.

        Raises:
            CheckpointError: the file is missing, damaged, or was not made by `train_tokenizer`.
        """
        try:
            model = Path(path).read_bytes()
        except FileNotFoundError:
            raise CheckpointError(f"{path}: no such file, the tokenizer is missing") from None
        except OSError as error:
            raise CheckpointError(f"{path}: the tokenizer cannot be read: {error.strerror}") from None
        damaged = CheckpointError(f"{path}: is no SentencePiece model, or is damaged: put the original file back")
        if not model:
            raise damaged
        try:
            tokenizer = cls(model)
        except RuntimeError:
            raise damaged from None
        special_ids = [getattr(tokenizer._processor, f"{name}_id")() for name in ("pad", "unk", "bos", "eos")]
        has_bytes = tokenizer._processor.is_byte(tokenizer._processor.piece_to_id("<0x00>"))
        if special_ids != [PAD_ID, UNK_ID, BOS_ID, EOS_ID] or not has_bytes:
            raise CheckpointError(
                f"{path}: was not made by mt: it needs pad, unk, bos and eos as pieces {PAD_ID} to {EOS_ID} "
                "and byte fallback"
            )
        return tokenizer

    @property
    def vocab_size(self) -> int:
        size: int = self._processor.get_piece_size()
        return size

    @property
    def line_breaking_ids(self) -> frozenset[int]:
        """Byte pieces that would break a line or end a string: never to be produced by a search."""
        return frozenset(self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in (0x00, 0x0A, 0x0D))

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone, no special ones."""
        ids: list[int] = self._processor.encode(text, out_type=int)
        return ids

    def encode_batch(self, texts: Sequence[str], n_threads: int | None = None) -> list[list[int]]:
        """The same for many texts, on all cores unless told otherwise."""
        if not texts:
            return []
        batch: list[list[int]] = self._processor.encode(list(texts), out_type=int, num_threads=n_threads or n_cores())
        return batch

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; special ones are skipped, and bytes that are no UTF-8 become U+FFFD."""
        text: str = self._processor.decode([int(id_) for id_ in ids if id_ not in _SPECIAL_IDS])
        return text

    def decode_batch(self, batch: Iterable[Iterable[int]]) -> list[str]:
        return [self.decode(ids) for ids in batch]

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The pieces as they stand in the vocabulary, special ones included."""
        return [self._processor.id_to_piece(int(id_)) for id_ in ids]

    def piece_ends(self, ids: Sequence[int]) -> list[int]:
        """For each piece of an encoded text, how many characters of the text there are up to its end.

        The pieces that are the bytes of one character all end with it.
        """
        ends: list[int] = []
        n_characters = n_bytes_left = 0
        for id_, piece in zip(ids, self.pieces(ids), strict=True):
            if not self._processor.is_byte(int(id_)):
                n_characters += len(piece)
            elif n_bytes_left:
                n_bytes_left -= 1
            else:
                n_characters += 1
                n_bytes_left = _n_bytes_behind(int(piece[3:5], 16))
            ends.append(n_characters - 1)  # the space in front of the first word is in no text
        return ends


def _n_bytes_behind(first_byte: int) -> int:
    """How many bytes follow the first one of a character in UTF-8."""
    return 0 if first_byte < 0xC0 else 1 if first_byte < 0xE0 else 2 if first_byte < 0xF0 else 3


@dataclass(frozen=True)
class TokenizerStats:
    """What the training of a tokenizer has seen."""

    n_lines: int  # lines given
    n_skipped_lines: int  # of these, lines that SentencePiece's trainer skips: over 4,192 bytes, or with U+2585 in them


class _CountedLines:
    """Lines on their way to the trainer: counted, and an error on the way kept for the caller."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = lines
        self.n_lines = 0
        self.n_skipped = 0
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            for line in self._lines:
                self.n_lines += 1
                self.n_skipped += _is_skipped_by_trainer(line)
                yield line
        except Exception as error:
            self.error = error


def _is_skipped_by_trainer(line: str) -> bool:
    # No character takes more than 4 bytes: most lines need no encoding to be measured.
    long = 4 * len(line) > MAX_TRAINING_LINE_BYTES and len(line.encode()) > MAX_TRAINING_LINE_BYTES
    return long or _TRAINER_RESERVED_CHAR in line


def train_tokenizer(
    lines: Iterable[str],
    config: TokenizerConfig,
    model_path: Path,
    while_waiting: Callable[[], None] = lambda: None,
) -> TokenizerStats:
    """Train a model on normalised lines and write it to `model_path`. The same lines give the same bytes everywhere.

    Args:
        lines: all of them are used; draw the sample of `config.sample_lines` before.
        while_waiting: called about once a second.
    Raises:
        ConfigError: the vocabulary is too large or too small for these lines.
        DataError: there is no line to train on.
    """
    counted = _CountedLines(lines)
    model = io.BytesIO()
    failures: list[RuntimeError] = []

    def train() -> None:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(counted),
                model_writer=model,
                model_type=config.kind,
                vocab_size=config.vocab_size,
                character_coverage=config.character_coverage,
                pad_id=PAD_ID,
                unk_id=UNK_ID,
                bos_id=BOS_ID,
                eos_id=EOS_ID,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                byte_fallback=True,
                input_sentence_size=0,
                max_sentence_length=MAX_TRAINING_LINE_BYTES,
                num_threads=_N_TRAINER_THREADS,
                minloglevel=_ERRORS_ONLY,
            )
        except RuntimeError as failure:
            failures.append(failure)

    # In a thread, because Ctrl-C would otherwise wait for minutes until the C++ code returns.
    thread = threading.Thread(target=train, name="tokenizer-training", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(timeout=1.0)
        while_waiting()
    if counted.error is not None:
        raise counted.error
    if failures:
        raise _explained(failures[0], counted, config) from None
    _write_whole(model_path, model.getvalue())
    return TokenizerStats(n_lines=counted.n_lines, n_skipped_lines=counted.n_skipped)


def _explained(failure: RuntimeError, counted: _CountedLines, config: TokenizerConfig) -> Exception:
    if counted.n_lines == counted.n_skipped:
        return DataError(
            f"no text to train the tokenizer on: {counted.n_lines:,} lines were given, of which SentencePiece skips "
            f"{counted.n_skipped:,} as too long (over {MAX_TRAINING_LINE_BYTES:,} bytes)"
        )
    too_large = re.search(r"Vocabulary size too high \(\d+\)\. Please set it to a value <= (\d+)", str(failure))
    if too_large:
        return ConfigError(
            f"tokenizer.vocab_size: {config.vocab_size:,} is too large for this corpus, which yields at most "
            f"{int(too_large[1]):,} pieces: set it to {too_large[1]} or less, or give more text"
        )
    too_small = re.search(r"Vocabulary size is smaller than required_chars\. \d+ vs (\d+)", str(failure))
    if too_small:
        return ConfigError(
            f"tokenizer.vocab_size: {config.vocab_size:,} is too small for this corpus, whose characters take "
            f"{int(too_small[1]):,} pieces with the 256 bytes and the 4 special ones: set it above {too_small[1]}, "
            "or lower tokenizer.character_coverage"
        )
    return failure


def _write_whole(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.writing-{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
