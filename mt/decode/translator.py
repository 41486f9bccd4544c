"""Sentences in, hypotheses out, order kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from weakref import WeakValueDictionary

import torch

from mt.checkpoint import CHECKSUMS, TOKENIZER, WEIGHTS, ModelFolder
from mt.config.settings import MAX_BEAM_SIZE, DecodeConfig
from mt.decode.graphs import Graphs
from mt.decode.oddities import fewest_tokens, is_in_a_loop, is_too_long, repeated_tokens
from mt.decode.parallel import Forks, side_by_side
from mt.decode.search import SearchRequest, SearchResult, length_sorted_batches, longest_translation, search
from mt.decode.splitting import Part, joined, split_text
from mt.decode.words import word_alignment
from mt.errors import CheckpointError, ConfigError, DataError, MTError
from mt.model import Transformer
from mt.run_folder import open_model
from mt.system.console import note
from mt.system.device import choose_device, choose_dtype
from mt.system.malloc import tune_malloc
from mt.text.normalise import Normalisers
from mt.text.tokenizer import Tokenizer

# Lines that are read before the first is translated, so that sentences of equal length can go together.
LINES_AT_A_TIME = 4_096
# No sequence of so many tokens comes twice in the second search for a sentence whose translation was odd.
RETRY_NGRAM_SIZE = 3

# Flags of a hypothesis. The first three are oddities: reasons to search again.
REPETITION = "repetition"  # it is in a loop that its source is not in
TOO_LONG = "too_long"  # for its source, or it had to end at the longest length there is by default
TOO_SHORT = "too_short"  # for its source
MAX_LENGTH = "max_length"  # it had to end at DecodeConfig.max_length
RETRIED = "retried"  # it, or a part of it, was searched for a second time, whichever of the two this is
IN_PARTS = "in_parts"  # the line was longer than the model can take

# Source ids and target ids of sentences, each source ending with EOS and no target, to pairs of places in the two.
Aligner = Callable[[Sequence[Sequence[int]], Sequence[Sequence[int]]], list[list[tuple[int, int]]]]


@dataclass(frozen=True)
class Hypothesis:
    """One translation of one line."""

    text: str
    score: float  # log_prob over the length penalty; hypotheses are ranked by it
    log_prob: float  # sum over tokens, the end of sentence included, in nats
    n_tokens: int  # the end of sentence included
    tokens: tuple[str, ...] = ()  # pieces of words, without the end of sentence
    flags: tuple[str, ...] = ()
    alignment: tuple[tuple[int, int], ...] | None = None  # words of the line and of the text, from 0; None: not asked

    @property
    def log_prob_per_token(self) -> float:
        return self.log_prob / max(self.n_tokens, 1)


EMPTY = Hypothesis("", 0.0, 0.0, 0)


@dataclass(frozen=True)
class _Sentence:
    """What is searched for in one go: a line, or a part of one."""

    ids: list[int]  # EOS included
    prefix: list[int]
    part: Part
    n_positions: int | None  # of the model, see `longest_translation`


@dataclass
class _Found:
    """What was found for a sentence, best first."""

    results: list[SearchResult]
    is_retried: bool = False


class PrefixError(DataError):
    """A prefix that leaves no room for a translation."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line  # of those given, from 0


class Backend(ABC):
    """What finds translations of sentences: our own search, or another program's."""

    n_parallel = 1  # batches that are best searched at a time, by as many threads
    n_positions: int | None = None  # tokens of the longest translation that the model can write; None: any number

    @abstractmethod
    def search(self, request: SearchRequest) -> list[list[SearchResult]]:
        """Return the translations of one batch; see `mt.decode.search.search`."""

    def search_batches(self, requests: Sequence[SearchRequest]) -> Generator[list[list[SearchResult]], None, None]:
        """Yield the translations of each batch, in order; closing the generator ends the work."""
        return side_by_side(self.search, requests, self.n_parallel)


class OwnBackend(Backend):
    """`mt.decode.search.search` with a model made for inference.

    On CUDA as captured graphs, on a CPU with a batch on each core.

    Args:
        n_processes: that may work on the CPU, each on a batch; with 1 as many threads do as torch has.
    """

    def __init__(self, model: Transformer, n_processes: int = 1) -> None:
        self.model, self.n_positions = model, model.positions.n_positions
        self._graphs: Graphs | None = None
        self._processes = Forks(1)
        if model.embedding.weight.device.type == "cuda":
            self._graphs = Graphs(model)
        else:
            self.n_parallel = torch.get_num_threads()
            self._processes = Forks(n_processes)
            _known[id(self)] = self

    def search(self, request: SearchRequest) -> list[list[SearchResult]]:
        n, device = len(request.sentences), self.model.embedding.weight.device
        try:
            return search(self.model, request) if self._graphs is None else self._graphs.search(request)
        except torch.OutOfMemoryError:
            if n == 1:
                raise MTError(
                    f"out of memory on {device} with one sentence of {len(request.sentences[0]):,} tokens: lower the "
                    "beam size, or use the CPU"
                ) from None
        # Out of the handler, whose traceback holds the tensors of the search.
        if self._graphs is not None:
            self._graphs.clear()
        torch.cuda.empty_cache()
        note(f"out of memory on {device}: batches are searched in halves; lower decode.batch_tokens to avoid that")
        return self.search(request.rows(slice(n // 2))) + self.search(request.rows(slice(n // 2, n)))

    @property
    def capture_error(self) -> str | None:
        """What keeps steps from being captured as CUDA graphs; None where nothing does."""
        return "no CUDA device" if self._graphs is None else self._graphs.capture_error

    def search_batches(self, requests: Sequence[SearchRequest]) -> Generator[list[list[SearchResult]], None, None]:
        if self._processes.n == 1 or len(requests) == 1:
            return super().search_batches(requests)
        return self._processes.map(_search_in_process, [id(self)] * len(requests), requests)


# A forked process finds the backend here: only ids and settings go through its pipe.
_known: WeakValueDictionary[int, OwnBackend] = WeakValueDictionary()


def _search_in_process(backend: int, request: SearchRequest) -> list[list[SearchResult]]:
    return _known[backend].search(request)


class Translator:
    """A model with its tokenizer, ready to translate.

    Args:
        backend: what searches; a model for inference (see `Transformer.for_inference`) stands for our own.
        decode: the settings that `translate` goes by unless told otherwise.
        max_source_tokens: longer lines are translated in parts, for the model has not seen longer ones in training.
        normalisers: how the text of the two sides is changed first, as in training; by default as the settings of
            cleaning are unless changed.
        retries: whether what is odd (see `mt.decode.oddities`) is searched again, with repetition blocked. Drawn
            translations never are.
        identity: what output depends on besides settings and text: checksums of the model, device, precision.
    """

    def __init__(
        self,
        backend: Backend | Transformer,
        tokenizer: Tokenizer,
        decode: DecodeConfig,
        *,
        max_source_tokens: int,
        normalisers: Normalisers | None = None,
        retries: bool = True,
        identity: Mapping[str, str] | None = None,
    ) -> None:
        self.backend = OwnBackend(backend) if isinstance(backend, Transformer) else backend
        self.tokenizer = tokenizer
        self.decode = decode
        self.max_source_tokens = max_source_tokens
        self.normalisers = normalisers or Normalisers.by_default()
        self.retries = retries
        self.identity = dict(identity or {})

    @property
    def model(self) -> Transformer:
        """The model of our own search; another backend has none."""
        assert isinstance(self.backend, OwnBackend)
        return self.backend.model

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "auto",
        precision: str = "auto",
        *,
        retries: bool = True,
        n_processes: int | None = 1,
    ) -> Translator:
        """Load the translator in a run folder (while it runs, its best so far), a checkpoint or a model folder.

        Raises:
            CheckpointError: there is no complete model of this version there.
            ConfigError: see `Translator.of`.
        """
        return cls.of(open_model(path), device, precision, retries=retries, n_processes=n_processes)

    @classmethod
    def of(
        cls,
        folder: ModelFolder,
        device: str = "auto",
        precision: str = "auto",
        *,
        retries: bool = True,
        n_processes: int | None = 1,
    ) -> Translator:
        """Load the translator in a model folder.

        Args:
            n_processes: that may be forked to translate long texts on the CPU; None: as many as torch has threads.
                For programs that no other thread of theirs computes in.
        Raises:
            CheckpointError: a file is damaged.
            ConfigError: no such device or precision; a package that the model's text was normalised with is missing.
        """
        tune_malloc()
        chosen_device = choose_device(device)
        dtype = choose_dtype(precision, chosen_device)
        checksums = folder.manifest[CHECKSUMS]
        return cls(
            OwnBackend(folder.load_model(dtype, chosen_device), n_processes or torch.get_num_threads()),
            folder.load_tokenizer(),
            folder.config.decode,
            max_source_tokens=folder.config.data.max_tokens,
            normalisers=Normalisers.of_run(folder.config),
            retries=retries,
            identity={
                "model": f"{checksums.get(WEIGHTS)} {checksums.get(TOKENIZER)}",
                "device": chosen_device.type,
                "precision": str(dtype).removeprefix("torch."),
            },
        )

    def translate(
        self, lines: Iterable[str], decode: DecodeConfig | None = None, *, prefixes: Iterable[str] | None = None
    ) -> list[str]:
        """The best translation of each line; a blank line gives an empty one. See `translate_lines`.

        Raises:
            TypeError: a bare string is given instead of a list of them.
        """
        return [best[0].text for best in self.translate_lines(lines, decode, prefixes=prefixes)]

    def translate_lines(
        self,
        lines: Iterable[str],
        decode: DecodeConfig | None = None,
        *,
        n_best: int = 1,
        prefixes: Iterable[str] | None = None,
        aligner: Aligner | None = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> Iterator[list[Hypothesis]]:
        """The n best translations of each line, best first, as they are made and in the order of the lines.

        Args:
            decode: the model's own settings unless given; `dataclasses.replace(translator.decode, beam_size=1)`.
            n_best: up to the beam size, or any number of draws.
            prefixes: for each line the text that its translations begin with; may be empty. A blank line has none.
            aligner: what finds the alignments, if there are to be any.
            on_progress: told the share of the lines taken in, up to LINES_AT_A_TIME, that has been searched for.
        Raises:
            ConfigError: n_best is larger than the beam size.
            PrefixError: a prefix is too long for the longest translation.
        """
        if isinstance(lines, str):
            raise TypeError("lines: expected a list of str, got a str: write [text]")
        decode = decode or self.decode
        most = MAX_BEAM_SIZE if decode.sample else decode.beam_size
        if not 1 <= n_best <= most:
            limit, remedy = str(most), "ask for fewer"
            if not decode.sample:
                limit, remedy = (
                    f"the beam size ({most})",
                    f"raise the beam size (up to {MAX_BEAM_SIZE}) or ask for fewer",
                )
            raise ConfigError("n_best", f"expected 1 to {limit}, got {n_best}", remedy)
        begun = None if prefixes is None else iter(prefixes)
        return self._translate_lines(iter(lines), decode, n_best, begun, aligner, on_progress or (lambda _: None))

    def _translate_lines(
        self,
        lines: Iterator[str],
        decode: DecodeConfig,
        n_best: int,
        prefixes: Iterator[str] | None,
        aligner: Aligner | None,
        on_progress: Callable[[float], None],
    ) -> Iterator[list[Hypothesis]]:
        n_lines = 0
        while chunk := list(islice(lines, LINES_AT_A_TIME)):
            begun = [""] * len(chunk) if prefixes is None else list(islice(prefixes, len(chunk)))
            assert len(begun) == len(chunk), "fewer prefixes than lines"
            sentences, of_line = self._sentences(chunk, begun, n_lines, decode)
            found = self._search(sentences, decode, n_best, on_progress)
            if self.retries and not decode.sample:
                self._search_again(sentences, found, decode, n_best)
            alignments = None if aligner is None else self._alignments(sentences, found, decode, aligner)
            n_lines += len(chunk)
            for which in of_line:
                aligned = None if alignments is None else alignments[which]
                yield self._line_hypotheses(sentences[which], found[which], decode, aligned)

    def _sentences(
        self, lines: Sequence[str], prefixes: Sequence[str], n_lines_before: int, decode: DecodeConfig
    ) -> tuple[list[_Sentence], list[slice]]:
        """What is to be searched for, and which of it makes up each line."""
        texts = [self.normalisers.src(line) for line in lines]
        begun = self.tokenizer.encode_batch([self.normalisers.tgt(prefix) for prefix in prefixes])
        sentences: list[_Sentence] = []
        of_line: list[slice] = []
        for number, (text, ids) in enumerate(zip(texts, self.tokenizer.encode_batch(texts), strict=True)):
            n_before = len(sentences)
            prefix = begun[number]  # a translation begins in its first part
            for part, part_ids in self._parts(Part(text, 0), ids):
                sentences.append(_Sentence([*part_ids, self.tokenizer.eos_id], prefix, part, self.backend.n_positions))
                prefix = []
            of_line.append(slice(n_before, len(sentences)))
            if n_before < len(sentences):
                self._check_prefix(sentences[n_before], n_lines_before + number, decode)
        return sentences, of_line

    def _parts(self, whole: Part, ids: list[int]) -> Iterator[tuple[Part, list[int]]]:
        """A line and its ids, or where it is too long its parts and theirs; nothing for an empty line."""
        room = max(self.max_source_tokens - 1, 1)  # EOS takes one
        if len(ids) <= room or len(whole.text) == 1:
            if ids:
                yield whole, ids
            return
        # A part may take a piece or two more than within the line: its first word begins anew.
        parts = split_text(whole.text, self.tokenizer.piece_ends(whole.text), max(room - 2, 1))
        for part, part_ids in zip(parts, self.tokenizer.encode_batch([part.text for part in parts]), strict=True):
            continues_word = part.continues_word if part is not parts[0] else whole.continues_word
            placed = Part(part.text, whole.n_words_before + part.n_words_before, continues_word)
            yield from self._parts(placed, part_ids)

    def _check_prefix(self, sentence: _Sentence, line: int, decode: DecodeConfig) -> None:
        longest = _longest_translation(sentence, decode)
        if len(sentence.prefix) >= longest:
            raise PrefixError(
                line,
                f"the prefix {self.tokenizer.decode(sentence.prefix)[:80]!r} has {len(sentence.prefix):,} tokens, and "
                f"a translation may have {longest:,} with its end: shorten it",
            )

    def _search(
        self,
        sentences: Sequence[_Sentence],
        decode: DecodeConfig,
        n_best: int,
        on_progress: Callable[[float], None] = lambda _: None,
        *,
        requires_all: bool = True,
    ) -> list[_Found]:
        found: list[_Found] = [_Found([]) for _ in sentences]
        banned = tuple(sorted(self.tokenizer.line_breaking_ids))
        has_prefixes = any(sentence.prefix for sentence in sentences)
        lengths = [len(sentence.ids) for sentence in sentences]
        n_tokens_done = 0
        n_beams = n_best if decode.sample else decode.beam_size
        batches = length_sorted_batches(lengths, decode.batch_tokens, n_beams, decode.batch_sentences)
        requests = [
            SearchRequest(
                [sentences[i].ids for i in which],
                decode,
                n_best=n_best,
                prefixes=[sentences[i].prefix for i in which] if has_prefixes else None,
                banned_ids=banned,
            )
            for which in batches
        ]
        searched = self.backend.search_batches(requests)
        with closing(searched):  # so that nothing goes on behind an error or a signal
            for batch, results in zip(batches, searched, strict=True):
                for i, hypotheses in zip(batch, results, strict=True):
                    if not hypotheses and requires_all:
                        raise self._why_nothing_is_found(sentences[i], decode)
                    found[i] = _Found(hypotheses)
                    n_tokens_done += lengths[i]
                on_progress(n_tokens_done / sum(lengths))
        return found

    def _why_nothing_is_found(self, sentence: _Sentence, decode: DecodeConfig) -> MTError:
        if decode.no_repeat_ngram_size and decode.min_length:
            return ConfigError(
                "decode.min_length",
                f"no translation has {decode.min_length} tokens if no {decode.no_repeat_ngram_size} "
                "of them may come twice",
                "lower decode.min_length or raise decode.no_repeat_ngram_size",
                others=("decode.min_length", "decode.no_repeat_ngram_size"),
            )
        return CheckpointError(
            f"the model returns NaN for {self.tokenizer.decode(sentence.ids)[:80]!r}: try --precision fp32; if "
            "that does not help, its weights are damaged"
        )

    def _search_again(
        self, sentences: Sequence[_Sentence], found: list[_Found], decode: DecodeConfig, n_best: int
    ) -> None:
        """Where the best translation is odd, search with repetition blocked and keep what is less odd."""
        again: dict[DecodeConfig, list[int]] = {}
        for i, (sentence, outcome) in enumerate(zip(sentences, found, strict=True)):
            odd = _oddities(sentence, outcome.results[0], decode)
            if odd and (changed := _retry_settings(sentence, odd, decode)) != decode:
                again.setdefault(changed, []).append(i)
        for changed, which in again.items():
            seconds = self._search([sentences[i] for i in which], changed, n_best, requires_all=False)
            for i, second in zip(which, seconds, strict=True):
                first = found[i].results
                is_better = second.results and (
                    _oddness(sentences[i], second.results[0], decode) < _oddness(sentences[i], first[0], decode)
                )
                found[i] = _Found(second.results if is_better else first, is_retried=True)

    def _alignments(
        self, sentences: Sequence[_Sentence], found: Sequence[_Found], decode: DecodeConfig, aligner: Aligner
    ) -> list[list[list[tuple[int, int]]]]:
        """For each sentence and each of its hypotheses the pairs of tokens."""
        flat = [(i, result.ids) for i, outcome in enumerate(found) for result in outcome.results]
        lengths = [max(len(sentences[i].ids), len(ids) + 1) for i, ids in flat]
        pairs: list[list[tuple[int, int]]] = [[] for _ in flat]
        for batch in length_sorted_batches(lengths, decode.batch_tokens, 1, decode.batch_sentences):
            aligned = aligner([sentences[flat[k][0]].ids for k in batch], [flat[k][1] for k in batch])
            for k, token_pairs in zip(batch, aligned, strict=True):
                pairs[k] = token_pairs
        in_order = iter(pairs)
        return [list(islice(in_order, len(outcome.results))) for outcome in found]

    def _line_hypotheses(
        self,
        sentences: Sequence[_Sentence],
        found: Sequence[_Found],
        decode: DecodeConfig,
        alignments: Sequence[Sequence[Sequence[tuple[int, int]]]] | None,
    ) -> list[Hypothesis]:
        """The translations of a line from those of its parts."""
        if not sentences:
            return [EMPTY if alignments is None else replace(EMPTY, alignment=())]
        n_hypotheses = min(len(outcome.results) for outcome in found)
        return [
            self._hypothesis(
                sentences,
                [outcome.results[k] for outcome in found],
                _flags(sentences, found, k, decode),
                None if alignments is None else [of_part[k] for of_part in alignments],
            )
            for k in range(n_hypotheses)
        ]

    def _hypothesis(
        self,
        sentences: Sequence[_Sentence],
        results: Sequence[SearchResult],
        flags: tuple[str, ...],
        alignments: Sequence[Sequence[tuple[int, int]]] | None,
    ) -> Hypothesis:
        text = ""
        tokens: list[str] = []
        alignment: list[tuple[int, int]] = []
        for k, (sentence, result) in enumerate(zip(sentences, results, strict=True)):
            pieces = self.tokenizer.pieces(result.ids)
            tokens += pieces
            part_text = self.tokenizer.decode(result.ids)
            whole = joined(text, part_text, sentence.part.continues_word)
            if alignments is not None:
                n_words_before = len(whole.split()) - len(part_text.split())
                alignment += self._word_alignment(sentence, pieces, n_words_before, alignments[k])
            text = whole
        return Hypothesis(
            text=text,
            score=sum(result.score for result in results),
            log_prob=sum(result.log_prob for result in results),
            n_tokens=sum(result.n_tokens for result in results),
            tokens=tuple(tokens),
            flags=flags,
            alignment=None if alignments is None else tuple(sorted(set(alignment))),
        )

    def _word_alignment(
        self,
        sentence: _Sentence,
        tgt_pieces: Sequence[str],
        n_tgt_words_before: int,
        token_pairs: Sequence[tuple[int, int]],
    ) -> list[tuple[int, int]]:
        pairs = word_alignment(self.tokenizer.pieces(sentence.ids[:-1]), tgt_pieces, token_pairs)
        return [(i + sentence.part.n_words_before, j + n_tgt_words_before) for i, j in pairs]


def _longest_translation(sentence: _Sentence, decode: DecodeConfig) -> int:
    """In tokens, EOS included: as the search has it."""
    return longest_translation(len(sentence.ids), decode, sentence.n_positions)


def _oddities(sentence: _Sentence, result: SearchResult, decode: DecodeConfig) -> tuple[str, ...]:
    """Which of the oddities a translation has. What the settings make it do is not odd."""
    source, n_tokens = sentence.ids[:-1], len(result.ids)
    has_to_end = result.n_tokens >= _longest_translation(sentence, decode)
    is_wanted = n_tokens <= max(len(sentence.prefix), decode.min_length)
    odd = []
    if is_in_a_loop(result.ids, source, sentence.prefix):
        odd.append(REPETITION)
    if not is_wanted and (is_too_long(len(source), n_tokens) or (has_to_end and decode.max_length is None)):
        odd.append(TOO_LONG)
    if n_tokens < fewest_tokens(len(source)) and not has_to_end:
        odd.append(TOO_SHORT)
    return tuple(odd)


def _retry_settings(sentence: _Sentence, odd: Sequence[str], decode: DecodeConfig) -> DecodeConfig:
    """Repetition blocked, if it is not already; and no translation that is too short if the first one was."""
    shortest = decode.min_length
    if TOO_SHORT in odd:
        shortest = min(fewest_tokens(len(sentence.ids) - 1), _longest_translation(sentence, decode) - 1)
    return replace(
        decode,
        no_repeat_ngram_size=decode.no_repeat_ngram_size or RETRY_NGRAM_SIZE,
        min_length=max(decode.min_length, shortest),
    )


def _oddness(sentence: _Sentence, result: SearchResult, decode: DecodeConfig) -> tuple[int, int]:
    """Of two searches for the same sentence the one with less of it is better; the first if they have the same."""
    return len(_oddities(sentence, result, decode)), repeated_tokens(result.ids)


def _flags(sentences: Sequence[_Sentence], found: Sequence[_Found], k: int, decode: DecodeConfig) -> tuple[str, ...]:
    """Of the k-th hypothesis of a line."""
    flags: list[str] = []
    for sentence, outcome in zip(sentences, found, strict=True):
        flags += _oddities(sentence, outcome.results[k], decode)
        if decode.max_length is not None and outcome.results[k].n_tokens >= _longest_translation(sentence, decode):
            flags.append(MAX_LENGTH)
        if outcome.is_retried:
            flags.append(RETRIED)
    if len(sentences) > 1:
        flags.append(IN_PARTS)
    return tuple(dict.fromkeys(flags))
