"""`mt translate`: text from files or pipes through a translator into files or pipes, line by line."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

from mt.config.settings import DecodeConfig
from mt.decode.lines import LineReader, decoded, open_lines, require_utf8
from mt.decode.outputs import Outputs, open_outputs
from mt.errors import ConfigError, DataError
from mt.system.console import Meter
from mt.system.signals import exit_on_signals

if TYPE_CHECKING:  # a translator comes with torch, and what is wrong with a file is told before
    from mt.decode.translator import Hypothesis, Translator

_log = logging.getLogger(__name__)

PAUSE_SECONDS = 0.2
INVALID_UTF8 = "invalid_utf8"  # a flag of a line: bad bytes were read as U+FFFD
# What is told at the end about lines with a flag.
_REPORTS = {
    INVALID_UTF8: "were not valid UTF-8: their bad bytes were read as U+FFFD",
    "in_parts": "had more than {max_source_tokens:,} tokens and were translated in parts",
    "repetition": "have a translation that repeats itself",
    "too_long": "have a translation that is far too long",
    "too_short": "have a translation that is far too short",
    "max_length": "have a translation that had to end at --max-length",
    "retried": "were searched twice, the second time with repetition blocked: their first translation was odd",
}
_OPTIONS = {"no_repeat_ngram_size": "--no-repeat-ngram"}  # that are not named as their setting
_JSON_FIELDS = ("text", "score", "log_prob", "log_prob_per_token", "n_tokens", "tokens", "alignment", "flags")
_ESCAPES = {ord(char): f"\\u{ord(char):04x}" for char in "\x7f\x85\u2028\u2029"}  # some readers end a line there


class InputShard(NamedTuple):
    """The `number`-th of `n_shards` blocks of lines, from 1."""

    number: int
    n_shards: int

    def __str__(self) -> str:
        return f"{self.number}/{self.n_shards}"

    def lines(self, n_lines: int) -> range:
        """Return its lines, from 0. Blocks differ by one line at most."""
        return range(n_lines * (self.number - 1) // self.n_shards, n_lines * self.number // self.n_shards)


@dataclass(frozen=True, kw_only=True)
class TranslateOptions:
    """What is to be translated, and how it is to be written."""

    source: str  # a path, or - for standard input
    output: str  # a path, or - for standard output
    prefixes: Path | None = None  # for each line what its translations begin with
    alignments: Path | None = None  # gets the alignments, in Pharaoh format
    is_jsonl: bool = False
    is_aligned: bool = False  # alignments go into the JSON
    n_best: int = 1
    shard: InputShard | None = None
    is_strict: bool = False  # about UTF-8
    is_resumed: bool = False
    has_progress: bool = True


def option_of(setting: str) -> str:
    """Return the option that gives a setting of `decode`, or an argument of a function; any other key as it is."""
    name = setting.removeprefix("decode.")
    return _OPTIONS.get(name, f"--{name.replace('_', '-')}") if name.isidentifier() and name.islower() else setting


def search_settings(base: DecodeConfig, changes: Mapping[str, Any]) -> DecodeConfig:
    """Return the settings with what the options change.

    Raises:
        ConfigError: they contradict each other; the message names the options.
    """
    try:
        return base.changed(changes)
    except ConfigError as error:
        raise error.renamed(option_of) from None


def translate_files(options: TranslateOptions, load: Callable[[], Translator], changes: Mapping[str, Any]) -> None:
    """Translate a file or a stream, from where an interrupted run stopped if that is resumed.

    Args:
        load: returns the translator; called once all files have been found to be in order.
        changes: settings of the search that differ from the model's own.
    Raises:
        MTError: the files, the options or the model need the user's attention.
    """
    with contextlib.ExitStack() as files:
        text = files.enter_context(open_lines(options.source, is_strict=options.is_strict))
        prefixes = None if options.prefixes is None else files.enter_context(open_lines(str(options.prefixes)))
        _check_number_of_prefixes(prefixes, text)
        lines = _lines_of_shard(options.shard, text)
        translations = cast(BinaryIO, sys.stdout.buffer) if options.output == "-" else Path(options.output)
        outputs = files.enter_context(open_outputs(translations, options.alignments, is_resumed=options.is_resumed))
        translator = load()
        decode = search_settings(translator.decode, changes)
        outputs.begin(resume_key(options, translator, decode))
        run = _TranslationRun(options, translator, decode, text, prefixes, lines, outputs)
        run.skip_done()
        with _resume_hint(outputs):
            run.translate()
            outputs.finish()
    for flag, told in _REPORTS.items():
        if n := outputs.record.counts.get(flag):
            told = told.format(max_source_tokens=translator.max_source_tokens)
            level = logging.INFO if flag == "retried" else logging.WARNING
            _log.log(level, f"{n:,} of {outputs.record.counts['lines']:,} lines {told}")


def resume_key(options: TranslateOptions, translator: Translator, decode: DecodeConfig) -> dict[str, Any]:
    """Return all that the output depends on but the text. Names are those of options, if there is one."""
    from mt import __version__

    return {
        "mt": __version__,
        **{f"--{name}": value for name, value in translator.identity.items()},
        "--retry": translator.retries,
        "data.max_tokens": translator.max_source_tokens,
        "--format": "jsonl" if options.is_jsonl else "text",
        "--n-best": options.n_best,
        "--prefix": options.prefixes is not None,
        "--align": options.is_aligned,
        "--alignments": options.alignments is not None,
        "--shard": options.shard and str(options.shard),
        **{option_of(name): value for name, value in asdict(decode).items()},
    }


@dataclass(frozen=True)
class _TranslationRun:
    """A translation in progress."""

    options: TranslateOptions
    translator: Translator
    decode: DecodeConfig
    text: LineReader
    prefixes: LineReader | None
    lines: range | None  # to be translated, from 0; None: all that come
    outputs: Outputs

    def skip_done(self) -> None:
        """Pass over the lines before the first to be translated.

        Raises:
            DataError: they are not those that the run to be resumed has translated.
        """
        record = self.outputs.record
        for reader in filter(None, (self.text, self.prefixes)):
            reader.skip((self.lines.start if self.lines else 0) + record.n_lines)
        now = self._digests
        for which, name in (("lines", self.text.name), ("prefixes", str(self.options.prefixes))):
            if record.n_lines and now.get(which) != record.digests.get(which):
                problem = f"its {record.n_lines:,} lines were translated from other {which} than those in {name}"
                raise DataError(self.outputs.where, problem, "give the same text, or delete it to start over")

    def translate(self) -> None:
        """Translate the lines that are left, step by step."""
        n_before, total = self.outputs.record.n_lines, None if self.lines is None else len(self.lines)
        # Someone may wait for the translations of lines that come one by one.
        pause_seconds = PAUSE_SECONDS if self.outputs.are_seen_at_once and self.text.total is None else None
        shown = self.options.has_progress
        with Meter("lines", total or None, before=n_before, is_shown=shown, has_summary=True) as meter:
            n_left = None if total is None else total - n_before
            for batch in self.text.batches(n_left, pause_seconds=pause_seconds):
                entries = self._entries(batch, meter)
                counts = Counter(flag for entry in entries for flag in entry.flags)
                self.outputs.add(self._contents(entries), len(batch), self._digests, counts)
        if total is not None and self.outputs.record.n_lines < total:
            raise DataError(self.text.name, "ended early", "it was changed while it was read")
        if self.options.shard is None and self.prefixes is not None and self.prefixes.take(1):
            problem = f"has more lines than {self.text.name}"
            raise DataError(self.prefixes.name, problem, "give a prefix for each line")

    @property
    def _digests(self) -> dict[str, str]:
        readers = {"lines": self.text, "prefixes": self.prefixes}
        return {name: reader.digest for name, reader in readers.items() if reader is not None}

    def _entries(self, batch: Sequence[bytes], meter: Meter) -> list[_Entry]:
        """Translate the lines that were read last."""
        n_done, n_before = self.outputs.record.n_lines, self.text.n_read - len(batch)
        if self.options.is_strict:
            for number, line in enumerate(batch, start=n_before + 1):
                require_utf8(line, self.text.name, number)
        texts, are_valid = zip(*map(decoded, batch), strict=True)
        from mt.decode.translator import PrefixError

        try:
            translated = list(
                self.translator.translate_lines(
                    texts,
                    self.decode,
                    n_best=self.options.n_best,
                    prefixes=self._next_prefixes(len(batch)),
                    is_aligned=self.options.is_aligned or self.options.alignments is not None,
                    on_progress=lambda fraction: meter.show(n_done + fraction * len(batch)),
                )
            )
        except PrefixError as error:
            raise DataError(f"{self.options.prefixes}, line {n_before + error.line + 1:,}: {error}") from None
        numbers = range(n_before + 1, n_before + len(batch) + 1)
        return [_Entry(*entry) for entry in zip(numbers, texts, are_valid, translated, strict=True)]

    def _next_prefixes(self, n_lines: int) -> list[str] | None:
        if self.prefixes is None:
            return None
        name, taken = self.prefixes.name, self.prefixes.take(n_lines)
        if len(taken) < n_lines:
            problem = f"has {self.prefixes.n_read:,} lines and {self.text.name} has more"
            raise DataError(name, problem, "give a prefix for each line")
        for number, line in enumerate(taken, start=self.prefixes.n_read - n_lines + 1):
            if not decoded(line)[1]:
                raise DataError(f"{name}, line {number:,}", "is not valid UTF-8", "fix the line")
        return [decoded(line)[0] for line in taken]

    def _contents(self, entries: Sequence[_Entry]) -> list[bytes]:
        """Return what is added to each of the outputs."""
        texts = self._n_best(entries, lambda one: one.text)
        contents = [map(_Entry.json_line, entries) if self.options.is_jsonl else texts]
        if self.options.alignments is not None:
            contents.append(self._n_best(entries, lambda one: _pharaoh(one.alignment) or ""))
        return ["".join(f"{line}\n" for line in lines).encode() for lines in contents]

    def _n_best(self, entries: Sequence[_Entry], text_of: Callable[[Hypothesis], str]) -> Iterator[str]:
        """Yield exactly n_best lines of each, empty ones if fewer were found, so that line numbers can be computed."""
        for entry in entries:
            lines = [text_of(hypothesis) for hypothesis in entry.hypotheses]
            yield from [*lines, *[""] * (self.options.n_best - len(lines))]


class _Entry(NamedTuple):
    """A line with its translations."""

    number: int  # in the input, from 1
    text: str
    is_valid: bool
    hypotheses: Sequence[Hypothesis]

    @property
    def flags(self) -> tuple[str, ...]:
        """Return the flags of the line and of its best translation."""
        return (*self.hypotheses[0].flags, *(() if self.is_valid else (INVALID_UTF8,)))

    def json_line(self) -> str:
        hypotheses = [{name: getattr(hypothesis, name) for name in _JSON_FIELDS} for hypothesis in self.hypotheses]
        for hypothesis in hypotheses:
            hypothesis["alignment"] = _pharaoh(hypothesis["alignment"])
        line = {"line": self.number, "src": self.text, "flags": self.flags, "hypotheses": hypotheses}
        return json.dumps(line, ensure_ascii=False).translate(_ESCAPES)


def _pharaoh(pairs: Iterable[tuple[int, int]] | None) -> str | None:
    """Return pairs of words as text, `0-0 1-2`: source before target."""
    return None if pairs is None else " ".join(f"{i}-{j}" for i, j in pairs)


def _check_number_of_prefixes(prefixes: LineReader | None, text: LineReader) -> None:
    if prefixes is not None and None not in (prefixes.total, text.total) and prefixes.total != text.total:
        raise DataError(
            f"{prefixes.name} has {prefixes.total:,} lines and {text.name} has {text.total:,}",
            "give a prefix for each line, an empty one where there is none",
        )


def _lines_of_shard(shard: InputShard | None, text: LineReader) -> range | None:
    """Return the lines to be translated, from 0; None for all that come."""
    if shard is not None and text.total is None:
        problem = f"needs to count lines, and {text.name} can be read once only"
        raise ConfigError("--shard", problem, "give a file to --input")
    return None if text.total is None else (shard or InputShard(1, 1)).lines(text.total)


@contextlib.contextmanager
def _resume_hint(outputs: Outputs) -> Iterator[None]:
    """End on SIGTERM as on Ctrl-C: with files that end with a whole line, and a word about what became of them."""
    try:
        with exit_on_signals():
            yield
    except (KeyboardInterrupt, SystemExit):
        if outputs.can_be_resumed:
            done = f"stopped: the first {outputs.record.n_lines:,} lines are in {outputs.where}"
            _log.info(f"{done}: the same command with --resume continues")
        raise
