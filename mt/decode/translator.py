"""Sentences in, hypotheses out, order kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from mt.checkpoint import ModelFolder, find_model_folder
from mt.config import MAX_BEAM_SIZE, DecodeConfig
from mt.decode.search import SearchResult, beam_search, length_sorted_batches
from mt.errors import CheckpointError, ConfigError
from mt.model import Transformer
from mt.runtime import choose_device, choose_dtype, keep_large_blocks
from mt.text.clean import normalise
from mt.text.tokenizer import Tokenizer

# Lines that are read before the first is translated, so that sentences of equal length can go together.
LINES_AT_A_TIME = 4_096
# A source that is too long is cut behind one of these if there is one in the last half of what fits.
SENTENCE_ENDS = (".", "!", "?", ";", ":", "。", "！", "？")
WORD_START = "▁"


@dataclass(frozen=True)
class Hypothesis:
    """One translation of one line."""

    text: str
    score: float  # log_prob over the length penalty; hypotheses are ranked by it
    log_prob: float  # sum over tokens, the end of sentence included, in nats
    n_tokens: int  # the end of sentence included


EMPTY = Hypothesis("", 0.0, 0.0, 0)


class Translator:
    """A model with its tokenizer, ready to translate.

    Args:
        model: for inference; see `Transformer.for_inference`.
        decode: the settings that `translate` goes by unless told otherwise.
        max_source_tokens: longer lines are translated in parts, for the model has not seen longer ones in training.
    """

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, decode: DecodeConfig, *, max_source_tokens: int
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.decode = decode
        self.max_source_tokens = max_source_tokens
        self.n_lines_in_parts = 0  # lines so far that were too long to translate in one piece

    @classmethod
    def load(cls, path: str | Path, device: str = "auto", precision: str = "auto") -> Translator:
        """The translator in a run folder (while it runs, its best so far), a checkpoint or a model folder.

        Raises:
            CheckpointError: there is no complete model of this version there.
            ConfigError: no such device or precision.
        """
        keep_large_blocks()
        chosen_device = choose_device(device)
        dtype = choose_dtype(precision, chosen_device)
        folder = ModelFolder.open(find_model_folder(Path(path)))
        return cls(
            folder.load_model(dtype, chosen_device),
            folder.load_tokenizer(),
            folder.config.decode,
            max_source_tokens=folder.config.data.max_tokens,
        )

    def translate(
        self,
        lines: Iterable[str],
        *,
        beam_size: int | None = None,
        length_penalty: float | None = None,
        max_length: int | None = None,
        batch_tokens: int | None = None,
    ) -> list[str]:
        """The best translation of each line; a blank line gives an empty one. The arguments are `DecodeConfig`'s.

        Raises:
            TypeError: a bare string is given instead of a list of them.
        """
        hypotheses = self.translate_lines(
            lines,
            beam_size=beam_size,
            length_penalty=length_penalty,
            max_length=max_length,
            batch_tokens=batch_tokens,
        )
        return [best[0].text for best in hypotheses]

    def translate_lines(
        self,
        lines: Iterable[str],
        *,
        beam_size: int | None = None,
        length_penalty: float | None = None,
        max_length: int | None = None,
        n_best: int = 1,
        batch_tokens: int | None = None,
    ) -> Iterator[list[Hypothesis]]:
        """The n best translations of each line, best first, as they are made and in the order of the lines.

        Raises:
            ConfigError: a setting is out of range, or n_best is larger than beam_size.
        """
        if isinstance(lines, str):
            raise TypeError("lines: expected a list of str, got a str: write [text]")
        changes: dict[str, Any] = {
            "beam_size": beam_size,
            "length_penalty": length_penalty,
            "max_length": max_length,
            "batch_tokens": batch_tokens,
        }
        decode = replace(self.decode, **{key: value for key, value in changes.items() if value is not None})
        if not 1 <= n_best <= decode.beam_size:
            raise ConfigError(
                f"n_best: expected 1 to the beam size ({decode.beam_size}), got {n_best}: "
                f"raise the beam size (up to {MAX_BEAM_SIZE}) or ask for fewer"
            )
        return self._translate_lines(iter(lines), decode, n_best)

    def _translate_lines(self, lines: Iterator[str], decode: DecodeConfig, n_best: int) -> Iterator[list[Hypothesis]]:
        while chunk := list(islice(lines, LINES_AT_A_TIME)):
            yield from self._translate_chunk(chunk, decode, n_best)

    def _translate_chunk(self, lines: Sequence[str], decode: DecodeConfig, n_best: int) -> list[list[Hypothesis]]:
        encoded = self.tokenizer.encode_batch([normalise(line) for line in lines])
        parts: list[list[int]] = []  # source ids, EOS included, of all parts of all lines
        line_parts: list[range] = []
        for ids in encoded:
            first = len(parts)
            if ids:
                parts += self._split(ids)
            line_parts.append(range(first, len(parts)))
            self.n_lines_in_parts += len(parts) - first > 1
        results = self._search(parts, decode, n_best)
        return [self._line_hypotheses(parts, results, which) for which in line_parts]

    def _search(self, parts: list[list[int]], decode: DecodeConfig, n_best: int) -> list[list[SearchResult]]:
        results: list[list[SearchResult]] = [[] for _ in parts]
        banned = sorted(self.tokenizer.line_breaking_ids)
        for batch in length_sorted_batches([len(part) for part in parts], decode.batch_tokens, decode.beam_size):
            found = beam_search(
                self.model,
                [parts[i] for i in batch],
                beam_size=decode.beam_size,
                alpha=decode.length_penalty,
                max_length=decode.max_length,
                n_best=n_best,
                banned_ids=banned,
            )
            for i, hypotheses in zip(batch, found, strict=True):
                if not hypotheses:
                    raise CheckpointError(
                        f"the model gives no numbers for {self.tokenizer.decode(parts[i])[:80]!r} in "
                        f"{str(self.model.dtype).removeprefix('torch.')}: try --precision fp32; if that does not help, "
                        "its weights are damaged"
                    )
                results[i] = hypotheses
        return results

    def _line_hypotheses(
        self, parts: list[list[int]], results: list[list[SearchResult]], which: range
    ) -> list[Hypothesis]:
        if not which:
            return [EMPTY]
        hypotheses = []
        for k in range(min(len(results[i]) for i in which)):
            text = ""
            for i in which:
                # A part that continues a word is joined to it.
                starts_word = self.tokenizer.pieces(parts[i][:1])[0].startswith(WORD_START)
                text += (" " if text and starts_word else "") + self.tokenizer.decode(results[i][k].ids)
            chosen = [results[i][k] for i in which]
            hypotheses.append(
                Hypothesis(
                    text=text,
                    score=sum(result.score for result in chosen),
                    log_prob=sum(result.log_prob for result in chosen),
                    n_tokens=sum(result.n_tokens for result in chosen),
                )
            )
        return hypotheses

    def _split(self, ids: list[int]) -> list[list[int]]:
        """Parts of at most max_source_tokens, EOS included: cut behind sentences, or else words, or else anywhere."""
        room = max(self.max_source_tokens - 1, 1)
        if len(ids) <= room:
            return [[*ids, self.tokenizer.eos_id]]
        pieces = self.tokenizer.pieces(ids)
        parts, start = [], 0
        while start < len(ids):
            stop = min(start + room, len(ids))
            if stop < len(ids):
                words = [i for i in range(start + max(room // 2, 1), stop + 1) if pieces[i].startswith(WORD_START)]
                sentences = [i for i in words if pieces[i - 1].endswith(SENTENCE_ENDS)]
                stop = (sentences or words or [stop])[-1]
            parts.append([*ids[start:stop], self.tokenizer.eos_id])
            start = stop
        return parts
