"""Translating lines of text: tokenizing, batching, searching, retries, and joining the parts of long lines."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice, repeat, takewhile
from os import PathLike
from typing import Unpack
from weakref import WeakValueDictionary

import torch

from mt.checkpoint import CHECKSUMS, WEIGHTS, ModelFolder
from mt.config.settings import MAX_BEAM_SIZE, DecodeChanges, DecodeConfig, Direction, RunConfig
from mt.decode.alignment import Pairs, align, word_alignment
from mt.decode.graphs import Graphs
from mt.decode.parallel import ForkPool, map_in_threads
from mt.decode.quality_flags import has_repetition_loop, is_too_long, min_plausible_length, repeated_tokens
from mt.decode.search import SearchRequest, SearchResult, length_sorted_batches, longest_translation, search
from mt.decode.splitting import Part, SplitSentences, gap_after, grouped, join_parts, split_sentences, split_text
from mt.errors import CheckpointError, ConfigError, DataError, MTError
from mt.model import Transformer
from mt.run_folder import open_model
from mt.system.console import note
from mt.system.device import choose_device, choose_dtype
from mt.system.malloc import tune_malloc
from mt.text.languages import base_language, chosen_direction
from mt.text.normalise import TAGS, Normalisers
from mt.text.sentences import UNMARKED_ENDS, UsualLines, count_sentences
from mt.text.tokenizer import EOS_ID, Tokenizers

# Lines that are read before the first is translated, so that sentences of equal length can share a batch.
LINES_AT_A_TIME = 4_096
# If a translation is implausible, a second search allows no n-gram of this length twice.
RETRY_NGRAM_SIZE = 3

# Characters that a translation never has. A tokenizer of another program may have them in pieces or as bytes.
# Line feeds and tabs are those between the sentences of a line; no piece with a line feed is ever chosen.
_CONTROLS = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {*map(ord, "\t\n")}, " ")

# Flags of a hypothesis.
REPETITION = "repetition"  # it repeats itself in a loop, unlike its source
TOO_LONG = "too_long"  # for its source, or it was cut off at the default length limit
TOO_SHORT = "too_short"  # for its source
MAX_LENGTH = "max_length"  # it was cut off at DecodeConfig.max_length
RETRIED = "retried"  # it or a part of it was searched twice; this is the better of the two results
SPLIT = "split"  # the line was split at ends of sentences, and its parts were translated one by one
IN_PARTS = "in_parts"  # it or a sentence of it was too long for the model, and was translated in parts
SENTENCES_MISSING = "sentences_missing"  # the source of it or of a part has at least twice as many sentences
IMPLAUSIBLE = frozenset({REPETITION, TOO_LONG, TOO_SHORT})  # reasons to search again


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


@dataclass
class _Sentence:
    """A line, or a part of one, that is translated as a whole, and its results."""

    ids: list[int]  # pieces of languages and EOS included
    n_first: int  # pieces of languages
    prefix: list[int]
    part: Part
    decode: DecodeConfig
    longest: int  # limit of the tokens of a translation, EOS included
    results: list[SearchResult] = field(default_factory=list)  # best first
    is_retried: bool = False
    alignments: list[Pairs] = field(default_factory=list)  # of tokens, for each result

    def flags(self, result: SearchResult) -> list[str]:
        """Return the flags of a translation. A length that the settings require is not implausible."""
        source, n_tokens = self.ids[self.n_first : -1], len(result.ids)
        has_to_end, has_limit = result.n_tokens >= self.longest, self.decode.max_length is not None
        is_wanted = n_tokens <= max(len(self.prefix), self.decode.min_length)
        flags = {
            REPETITION: has_repetition_loop(result.ids, source, self.prefix),
            TOO_LONG: not is_wanted and (is_too_long(len(source), n_tokens) or (has_to_end and not has_limit)),
            TOO_SHORT: n_tokens < min_plausible_length(len(source)) and not has_to_end,
            MAX_LENGTH: has_to_end and has_limit,
            RETRIED: self.is_retried,
        }
        return [flag for flag, is_raised in flags.items() if is_raised]

    def implausibility(self, result: SearchResult) -> tuple[int, int]:
        """Return a key for comparing two translations: the better one has the lower key."""
        return len(IMPLAUSIBLE.intersection(self.flags(result))), repeated_tokens(result.ids)

    def retry_settings(self) -> DecodeConfig:
        """Return settings that block the faults of the best translation; unchanged settings if it is plausible."""
        flags = IMPLAUSIBLE.intersection(self.flags(self.results[0]))
        if not flags:
            return self.decode
        n_source = len(self.ids) - self.n_first - 1
        shortest = min(min_plausible_length(n_source), self.longest - 1) if TOO_SHORT in flags else 0
        return replace(
            self.decode,
            no_repeat_ngram_size=self.decode.no_repeat_ngram_size or RETRY_NGRAM_SIZE,
            min_length=max(self.decode.min_length, shortest),
        )


class PrefixError(DataError):
    """A prefix is so long that there is no room for a translation."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line  # index of the line, from 0


class Backend(ABC):
    """A search engine for translations, and for alignments: our own model, or another program."""

    n_parallel = 1  # number of batches to search in parallel, one per thread
    n_positions: int | None = None  # most tokens that a translation can have; None: no limit

    @abstractmethod
    def search(self, request: SearchRequest) -> list[list[SearchResult]]:
        """Return the translations of one batch; see `mt.decode.search.search`."""

    def search_batches(self, requests: Sequence[SearchRequest]) -> Generator[list[list[SearchResult]], None, None]:
        """Yield the translations of each batch, in order; closing the generator ends the work."""
        return map_in_threads(self.search, requests, self.n_parallel)

    def align(
        self, sources: list[list[int]], targets: list[tuple[int, ...]], batch_tokens: int, n_first: int
    ) -> list[Pairs]:
        """Return the alignments of tokens, see `mt.decode.alignment.align`; raise a ConfigError if there are none."""
        raise ConfigError("is_aligned", "only the backend of mt itself finds alignments")


class OwnBackend(Backend):
    """The search of `mt.decode.search` with a model made for inference.

    On CUDA it uses captured graphs, on a CPU it searches one batch on each core.

    Args:
        n_processes: processes that search batches on the CPU; 1: only this process, with as many threads as torch has.
    """

    def __init__(self, model: Transformer, n_processes: int = 1) -> None:
        self.model, self.n_positions = model, model.positions.n_positions
        is_cuda = model.embedding.weight.device.type == "cuda"
        self._graphs = Graphs(model) if is_cuda else None
        self.n_parallel = 1 if is_cuda else torch.get_num_threads()
        self._processes = ForkPool(1 if is_cuda else n_processes)
        _backends[id(self)] = self

    def search(self, request: SearchRequest) -> list[list[SearchResult]]:
        n, device = len(request.sentences), self.model.embedding.weight.device
        try:
            return search(self.model, request) if self._graphs is None else self._graphs.search(request)
        except torch.OutOfMemoryError:
            if n == 1:
                problem = f"out of memory on {device} with one sentence of {len(request.sentences[0]):,} tokens"
                raise MTError("", problem, "lower the beam size, or use the CPU") from None
        # After the handler, because its traceback holds the tensors of the search.
        if self._graphs is not None:
            self._graphs.clear()
        torch.cuda.empty_cache()
        note(f"out of memory on {device}: batches are searched in two halves; lower decode.batch_tokens to avoid that")
        return self.search(request.rows(slice(n // 2))) + self.search(request.rows(slice(n // 2, n)))

    @property
    def capture_error(self) -> str | None:
        """Why steps are not captured as CUDA graphs; None if they are."""
        return "no CUDA device" if self._graphs is None else self._graphs.capture_error

    def search_batches(self, requests: Sequence[SearchRequest]) -> Generator[list[list[SearchResult]], None, None]:
        if self._processes.n == 1 or len(requests) == 1:
            return super().search_batches(requests)
        return self._processes.map(partial(_search_in_process, id(self)), requests)

    def align(
        self, sources: list[list[int]], targets: list[tuple[int, ...]], batch_tokens: int, n_first: int
    ) -> list[Pairs]:
        return align(self.model, sources, targets, batch_tokens, n_first)


# Forked processes find the backend here, so that only ids and settings go through their pipes.
_backends: WeakValueDictionary[int, OwnBackend] = WeakValueDictionary()


def _search_in_process(backend: int, request: SearchRequest) -> list[list[SearchResult]]:
    return _backends[backend].search(request)


@dataclass(repr=False)
class Translator:
    """A model with its tokenizers, ready to translate. Make one with `Translator.load`."""

    backend: Backend
    tokenizers: Tokenizers  # of source and target
    decode: DecodeConfig  # the default settings of `translate`
    max_source_tokens: int  # longer lines are translated in parts: the model has not seen longer ones in training
    normalisers: Normalisers = field(default_factory=Normalisers.by_default)  # of source and target text
    # Search implausible translations again, with repetition blocked; sampled ones are never searched again.
    retries: bool = True
    # Split lines at ends of sentences. auto: lines with more sentences or tokens than `usual_lines`, and at line feeds.
    split_sentences: SplitSentences = "auto"
    usual_lines: UsualLines | None = None  # of training; None: not known, then auto splits at line feeds alone
    # Everything that the output depends on besides settings and text: checksums of the model, device, precision, and
    # the direction if the model has several.
    identity: Mapping[str, str] = field(default_factory=dict)
    first_ids: tuple[int, ...] = ()  # pieces of languages, which each source sentence begins with
    config: RunConfig | None = None  # of the model; None: it has one direction

    @property
    def model(self) -> Transformer:
        """The model; only `OwnBackend` has one."""
        assert isinstance(self.backend, OwnBackend)
        return self.backend.model

    @classmethod
    def load(
        cls,
        path: str | PathLike[str] | ModelFolder,
        device: str = "auto",
        precision: str = "auto",
        *,
        retries: bool = True,
        split_sentences: SplitSentences = "auto",
        n_processes: int | None = 1,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
    ) -> Translator:
        """Load the translator in a run folder (while it runs, its best so far), a checkpoint or a model folder.

        Args:
            device: auto, cpu, cuda or cuda:N.
            precision: of matrix products: auto, bf16, fp16 or fp32.
            retries: search again for translations that loop, or are far too long or short, with repetition blocked.
            split_sentences: translate the sentences of a line one by one: always, never, or if the line has more
                sentences or tokens than most lines that the model was trained on.
            n_processes: that may be forked to translate long texts on the CPU; None: as many as torch has threads.
                For programs in which no other thread computes.
            src_lang, tgt_lang: as in `between`. A model with several target languages needs `tgt_lang`, or `between`
                before it translates.
        Raises:
            CheckpointError: there is no complete model of this version there.
            ConfigError: no such device, precision or language; a package that the model's text was normalised with is
                missing.
        """
        tune_malloc()
        chosen_device = choose_device(device)
        dtype = choose_dtype(precision, chosen_device)
        folder = path if isinstance(path, ModelFolder) else open_model(path)
        config, checksums = folder.config, folder.manifest[CHECKSUMS]
        backend = OwnBackend(folder.load_model(dtype, chosen_device), n_processes or torch.get_num_threads())
        direction = config.directions[0]
        tokenizers, normalisers = folder.load_tokenizers(), Normalisers.of_run(config, direction)
        files = WEIGHTS, *(path.name for path in folder.tokenizer_paths)
        identity = {
            "model": " ".join(str(checksums.get(name)) for name in files),
            "device": chosen_device.type,
            "precision": str(dtype).removeprefix("torch."),
        }
        translator = cls(
            backend,
            tokenizers,
            config.decode,
            config.data.max_tokens,
            normalisers,
            retries,
            split_sentences,
            UsualLines.of_manifest(folder.manifest),
            identity,
            config=config,
        )
        return translator.between(src_lang, tgt_lang)

    def between(self, src_lang: str | None = None, tgt_lang: str | None = None) -> Translator:
        """Return a translator of the same model from one language into another; each may be left out if it is clear.

        A direction that the model was not trained in is translated with a warning, if training had text into
        `tgt_lang`.

        Args:
            src_lang, tgt_lang: codes or names of languages, such as pt, pt-BR, por or Portuguese.
        Raises:
            ConfigError: the model does not have this language.
        """
        if self.config is None:
            return self
        is_open = src_lang is None and tgt_lang is None and len(self.config.directions) > 1
        if is_open and self.config.language_pieces:
            return self
        direction = chosen_direction(self.config, src_lang, tgt_lang)
        if direction not in self.config.directions:
            note(f"the model was not trained to translate {direction}: expect worse translations")
        return self.in_direction(direction)

    def in_direction(self, direction: Direction) -> Translator:
        """Return a translator of the same model in a direction whose target language it was trained with."""
        assert self.config is not None
        first_ids = tuple(self.tokenizers.src.ids_of(self.config.pieces_of(direction)))
        identity = {**self.identity, **({"direction": str(direction)} if len(self.config.directions) > 1 else {})}
        normalisers = Normalisers.of_run(self.config, direction)
        return replace(self, normalisers=normalisers, identity=identity, first_ids=first_ids)

    def require_direction(self) -> None:
        """Raise a ConfigError if the model has several target languages and none of them is chosen."""
        if self.config is not None and self.config.language_pieces and not self.first_ids:
            chosen_direction(self.config, None, None)

    def __repr__(self) -> str:
        is_chosen = self.config is None or not self.config.language_pieces or self.first_ids
        languages = "several languages"
        if is_chosen:
            languages = f"{self.normalisers.src.lang} to {self.normalisers.tgt.lang}"
        known = [self.identity[key] for key in ("backend", "device", "precision") if key in self.identity]
        return f"<Translator {', '.join([languages, *known])}>"

    def translate(
        self,
        lines: Iterable[str],
        decode: DecodeConfig | None = None,
        *,
        prefixes: Iterable[str] | None = None,
        **changes: Unpack[DecodeChanges],
    ) -> list[str]:
        """Return the best translation of each line; a blank line gives an empty one.

        `translate_lines` gives several of each line, with scores.

        Args:
            lines: one segment each.
            decode: the settings of the search; the model's own unless given.
            prefixes: for each line the text that its translation begins with; may be empty. A blank line has none.
            changes: settings that differ from `decode`, such as `beam_size=2`; DecodeConfig explains them.
        Raises:
            TypeError: a bare string is given instead of a list of them.
            ConfigError: a setting is unknown, has a wrong value, or contradicts another one.
            PrefixError: a prefix is too long for the longest translation.
        """
        if "n_best" in changes:
            raise TypeError("n_best: translate returns one text for each line; use translate_lines for hypotheses")
        return [best[0].text for best in self.translate_lines(lines, decode, prefixes=prefixes, **changes)]

    def translate_lines(
        self,
        lines: Iterable[str],
        decode: DecodeConfig | None = None,
        *,
        n_best: int = 1,
        prefixes: Iterable[str] | None = None,
        is_aligned: bool = False,
        on_progress: Callable[[float], None] = lambda _: None,
        **changes: Unpack[DecodeChanges],
    ) -> Iterator[list[Hypothesis]]:
        """Yield the n best translations of each line, best first, as they are made and in the order of the lines.

        LINES_AT_A_TIME lines are read before the first is translated, and so on: `lines` may be a file or endless.

        Args:
            lines, decode, prefixes, changes: as in `translate`.
            n_best: up to the beam size, or any number of draws.
            is_aligned: find the alignments of words too, which only our own model has.
            on_progress: told the fraction of the lines taken in, up to LINES_AT_A_TIME, that has been searched for.
        Raises:
            TypeError, ConfigError, PrefixError: as in `translate`, and n_best is larger than the beam size.
        """
        if isinstance(lines, str):
            raise TypeError("lines: expected a list of str, got a str: write [text]")
        self.require_direction()
        decode = (decode or self.decode).changed(changes)
        if not 1 <= n_best <= MAX_BEAM_SIZE:
            raise ConfigError("n_best", f"expected 1 to {MAX_BEAM_SIZE}, got {n_best}")
        if n_best > decode.beam_size and not decode.sample:
            problem, fix = f"is {n_best}, more than beam_size ({decode.beam_size})", "raise beam_size or lower n_best"
            raise ConfigError("n_best", problem, fix, others=("beam_size", "n_best"))
        all_prefixes = repeat("") if prefixes is None else iter(prefixes)
        return self._translate_lines(iter(lines), decode, n_best, all_prefixes, is_aligned, on_progress)

    def _translate_lines(
        self,
        lines: Iterator[str],
        decode: DecodeConfig,
        n_best: int,
        prefixes: Iterator[str],
        is_aligned: bool,
        on_progress: Callable[[float], None],
    ) -> Iterator[list[Hypothesis]]:
        n_lines = 0
        while chunk := list(islice(lines, LINES_AT_A_TIME)):
            chunk_prefixes = list(islice(prefixes, len(chunk)))
            assert len(chunk_prefixes) == len(chunk), "fewer prefixes than lines"
            sentences_of_lines = self._sentences(chunk, chunk_prefixes, n_lines, decode)
            sentences = list(chain.from_iterable(sentences_of_lines))
            self._search(sentences, decode, n_best, on_progress)
            if self.retries and not decode.sample:
                self._retry_implausible(sentences, n_best)
            if is_aligned:
                self._align(sentences, decode.batch_tokens)
            n_lines += len(chunk)
            yield from (self._line_hypotheses(of_line, is_aligned) for of_line in sentences_of_lines)

    def _sentences(
        self, lines: Sequence[str], prefixes: Sequence[str], n_lines_before: int, decode: DecodeConfig
    ) -> list[list[_Sentence]]:
        """Return the sentences to translate for each line: the line itself, or its parts."""
        groups = [self._sentence_groups(line) for line in lines]
        ids_of_groups = iter(self.tokenizers.src.encode_batch([group.text for group in chain.from_iterable(groups)]))
        prefix_ids = self.tokenizers.tgt.encode_batch([self.normalisers.tgt(prefix) for prefix in prefixes])
        of_lines: list[list[_Sentence]] = []
        for of_line, prefix in zip(groups, prefix_ids, strict=True):
            sentences: list[_Sentence] = []
            parts = chain.from_iterable(self._parts(group, next(ids_of_groups)) for group in of_line)
            for part, part_ids in parts:
                longest = longest_translation(len(part_ids) + 1, decode, self.backend.n_positions)
                part_prefix = [] if sentences else prefix  # the first part has the prefix
                ids = [*self.first_ids, *part_ids, EOS_ID]
                sentences.append(_Sentence(ids, len(self.first_ids), part_prefix, part, decode, longest))
            if sentences and len(prefix) >= sentences[0].longest:
                raise PrefixError(
                    n_lines_before + len(of_lines),
                    f"the prefix {self.tokenizers.tgt.decode(prefix)[:80]!r} has {len(prefix):,} tokens, but a "
                    f"translation can have at most {sentences[0].longest:,} with its end of sentence: shorten the "
                    "prefix",
                )
            of_lines.append(sentences)
        return of_lines

    def _sentence_groups(self, line: str) -> list[Part]:
        """Return the normalised line as one part or, if it is to be split, its sentences in groups."""
        normalise, usual = self.normalisers.src, self.usual_lines
        whole = [Part(normalise(line), 0)]
        if self.split_sentences == "never" or len(sentences := split_sentences(line, normalise.lang)) < 2:
            return whole
        limits = (len(sentences), sys.maxsize) if usual is None else (usual.sentences, usual.src_tokens - 1)
        if self.split_sentences == "always":
            limits = 1, 1
        ids = self.tokenizers.src.encode_batch([normalise(sentence) for sentence in sentences], n_threads=1)
        groups = grouped(sentences, list(map(len, ids)), *limits)
        if len(groups) == 1:
            return whole
        parts: list[Part] = []
        gap, n_words, tags = "", 0, self._tags(whole[0].text)
        for group in groups:
            if text := normalise(group):
                n_before = n_words - (gap == "" and n_words > 0)
                n_words = n_before + len(text.split(" "))
                repeated = tags if parts else []
                parts.append(Part(" ".join([*repeated, text]), n_before, gap=gap, n_tags=len(repeated)))
            gap = gap_after(group)
        return parts

    def _tags(self, text: str) -> list[str]:
        """Return the tags at the beginning of a line; they say of all its sentences where they come from or go to."""
        found = TAGS.match(text)
        assert found is not None
        return list(takewhile(lambda tag: len(self.tokenizers.src.encode(tag)) == 1, found[0].split()))

    def _parts(self, whole: Part, ids: list[int]) -> Iterator[tuple[Part, list[int]]]:
        """Yield a line and its ids or, if it is too long, its parts and their ids; nothing for an empty line."""
        max_pieces = max(self.max_source_tokens - 1 - len(self.first_ids), 1)  # without EOS
        if len(ids) <= max_pieces or len(whole.text) == 1:
            if ids:
                yield whole, ids
            return
        tags = self._tags(whole.text)
        tags = tags if 4 * len(tags) < max_pieces else []
        # A part may have one or two pieces more than it had in the line, since its first word is tokenized again.
        room, ends = max(max_pieces - 2 - len(tags), 1), self.tokenizers.src.piece_ends(whole.text)
        first, *others = split_text(whole.text, ends, room, self.normalisers.src.lang)
        parts = [replace(whole, text=first.text)]
        for part in others:
            n_before = whole.n_words_before - whole.n_tags + part.n_words_before
            text = " ".join([*tags, part.text])
            parts.append(replace(part, text=text, n_words_before=n_before, n_tags=len(tags)))
        for part, part_ids in zip(parts, self.tokenizers.src.encode_batch([part.text for part in parts]), strict=True):
            yield from self._parts(part, part_ids)

    def _search(
        self,
        sentences: Sequence[_Sentence],
        decode: DecodeConfig,
        n_best: int,
        on_progress: Callable[[float], None] = lambda _: None,
    ) -> None:
        """Translate sentences. Raise an error for a sentence that has no results, neither new nor earlier ones."""
        banned = tuple(sorted(self.tokenizers.tgt.line_breaking_ids))
        lengths = [len(sentence.ids) for sentence in sentences]
        n_tokens_done = 0
        n_beams = n_best if decode.sample else decode.beam_size
        indices = length_sorted_batches(lengths, decode.batch_tokens, n_beams, decode.batch_sentences)
        batches = [[sentences[i] for i in which] for which in indices]
        requests = [
            SearchRequest([one.ids for one in batch], decode, n_best, [one.prefix for one in batch], banned)
            for batch in batches
        ]
        searched = self.backend.search_batches(requests)
        with closing(searched):  # so that nothing continues after an error or a signal
            for batch, found in zip(batches, searched, strict=True):
                for sentence, results in zip(batch, found, strict=True):
                    if not results and not sentence.results:
                        raise self._no_results_error(sentence)
                    sentence.results = results
                    n_tokens_done += len(sentence.ids)
                on_progress(n_tokens_done / sum(lengths))

    def _no_results_error(self, sentence: _Sentence) -> MTError:
        decode = sentence.decode
        if decode.no_repeat_ngram_size and decode.min_length:
            return ConfigError(
                "decode.min_length",
                f"no translation has {decode.min_length} tokens without repeating a {decode.no_repeat_ngram_size}-gram",
                "lower decode.min_length or raise decode.no_repeat_ngram_size",
                others=("decode.min_length", "decode.no_repeat_ngram_size"),
            )
        return nan_error(repr(self.tokenizers.src.decode(sentence.ids)[:80]))

    def _retry_implausible(self, sentences: Sequence[_Sentence], n_best: int) -> None:
        """Search again with repetition blocked if the best translation is implausible; keep the better result."""
        by_settings: dict[DecodeConfig, list[_Sentence]] = defaultdict(list)
        for sentence in sentences:
            if (settings := sentence.retry_settings()) != sentence.decode:
                by_settings[settings].append(sentence)
        for settings, retried in by_settings.items():
            firsts = [sentence.results for sentence in retried]
            self._search(retried, settings, n_best)
            for sentence, first in zip(retried, firsts, strict=True):
                second, sentence.is_retried = sentence.results, True
                if not second or sentence.implausibility(second[0]) >= sentence.implausibility(first[0]):
                    sentence.results = first

    def _align(self, sentences: Sequence[_Sentence], batch_tokens: int) -> None:
        """Find the alignments of tokens of all translations of the sentences."""
        flat = [(sentence, result.ids) for sentence in sentences for result in sentence.results]
        sources, targets = [sentence.ids for sentence, _ in flat], [ids for _, ids in flat]
        aligned = self.backend.align(sources, targets, batch_tokens, len(self.first_ids))
        for (sentence, _), pairs in zip(flat, aligned, strict=True):
            sentence.alignments.append(pairs)

    def _line_hypotheses(self, sentences: Sequence[_Sentence], is_aligned: bool) -> list[Hypothesis]:
        """Return the translations of a line, joined from those of its parts."""
        if not sentences:
            return [replace(EMPTY, alignment=()) if is_aligned else EMPTY]
        n_hypotheses = min(len(sentence.results) for sentence in sentences)
        return [self._hypothesis(sentences, k, is_aligned) for k in range(n_hypotheses)]

    def _hypothesis(self, sentences: Sequence[_Sentence], k: int, is_aligned: bool) -> Hypothesis:
        text = ""
        tokens: list[str] = []
        flags: list[str] = []
        alignment: set[tuple[int, int]] = set()
        results = [sentence.results[k] for sentence in sentences]
        for sentence, result in zip(sentences, results, strict=True):
            pieces = self.tokenizers.tgt.pieces(result.ids)
            tokens += pieces
            part_text = self.tokenizers.tgt.decode(result.ids)
            flags += sentence.flags(result)
            if self._misses_sentences(sentence.part.text, part_text):
                flags.append(SENTENCES_MISSING)
            text = join_parts(text, part_text, sentence.part.continues_word, sentence.part.gap)
            if is_aligned:
                part = sentence.part
                n_before = part.n_words_before - part.n_tags, len(text.split()) - len(part_text.split())
                n_first = sentence.n_first
                of_text = [(i - n_first, j) for i, j in sentence.alignments[k]]
                pairs = word_alignment(self.tokenizers.src.pieces(sentence.ids[n_first:-1]), pieces, of_text)
                alignment |= {(i + n_before[0], j + n_before[1]) for i, j in pairs if i >= part.n_tags}
        cuts = {SPLIT if sentence.part.gap is not None else IN_PARTS for sentence in sentences[1:]}
        return Hypothesis(
            text=text.translate(_CONTROLS),
            score=sum(result.score for result in results),
            log_prob=sum(result.log_prob for result in results),
            n_tokens=sum(result.n_tokens for result in results),
            tokens=tuple(tokens),
            flags=tuple(dict.fromkeys([*flags, *sorted(cuts)])),
            alignment=tuple(sorted(alignment)) if is_aligned else None,
        )

    def _misses_sentences(self, source: str, translation: str) -> bool:
        src_lang, tgt_lang = self.normalisers.src.lang, self.normalisers.tgt.lang
        if base_language(tgt_lang) in UNMARKED_ENDS or not translation:
            return False
        n_sentences = count_sentences(source, src_lang)
        return n_sentences > 1 and 2 * count_sentences(translation, tgt_lang) <= n_sentences


def nan_error(text: str) -> CheckpointError:
    """Return the error for a text for which the model returns NaN."""
    problem = f"the model returns NaN for {text}"
    return CheckpointError("", problem, "try --precision fp32; if that does not help, its weights are damaged")
