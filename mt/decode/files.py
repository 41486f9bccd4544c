"""`mt translate`: translate the lines of a file or a pipe into a file or a pipe."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

from mt.config.settings import DecodeConfig
from mt.decode.lines import LineReader, decoded, in_one_line, open_lines, open_rows, require_utf8
from mt.decode.outputs import Outputs, open_outputs
from mt.errors import ConfigError, DataError
from mt.system.console import Meter
from mt.system.signals import exit_on_signals
from mt.text.corpora import is_table
from mt.text.files import format_of

if TYPE_CHECKING:  # imports torch, which takes seconds; errors in files come first
    from mt.decode.translator import Hypothesis, Translator

_log = logging.getLogger(__name__)

PAUSE_SECONDS = 0.2
INVALID_UTF8 = "invalid_utf8"  # flag of a line: invalid bytes were read as U+FFFD
# Messages at the end about lines with a flag.
_REPORTS = {
    INVALID_UTF8: "were not valid UTF-8: invalid bytes were read as U+FFFD",
    "split": "have several sentences and were split at their ends (--split-sentences)",
    "sentences_missing": "have a translation with at most half of their sentences",
    "in_parts": "had more than {max_source_tokens:,} tokens and were translated in parts",
    "repetition": "have a translation that repeats itself",
    "too_long": "have a translation that is far too long",
    "too_short": "have a translation that is far too short",
    "max_length": "have a translation that reached --max-length",
    "retried": "were translated twice, the second time with repetition blocked: the first result was implausible",
}
_OPTIONS = {"no_repeat_ngram_size": "--no-repeat-ngram"}  # options whose name differs from their setting
_JSON_FIELDS = ("text", "score", "log_prob", "log_prob_per_token", "n_tokens", "tokens", "alignment", "flags")
# Some programs end a line at some of them, and a terminal may obey the others.
_ESCAPES = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), 0x2028, 0x2029)}


class InputShard(NamedTuple):
    """Block `number` of `n_shards` blocks of lines, counted from 1."""

    number: int
    n_shards: int

    def __str__(self) -> str:
        return f"{self.number}/{self.n_shards}"

    def lines(self, n_lines: int) -> range:
        """Return its lines, from 0. Blocks differ by one line at most."""
        return range(n_lines * (self.number - 1) // self.n_shards, n_lines * self.number // self.n_shards)


@dataclass(frozen=True, kw_only=True)
class TranslateOptions:
    """The input, the outputs and the formats of `mt translate`."""

    source: str  # a path, or - for standard input
    src_column: str | None = None  # of a table: a name, or a number from 1; None: the one named after the language
    output: str  # a path, or - for standard output
    prefixes: Path | None = None  # a file with the prefix of the translations of each line
    alignments: Path | None = None  # a file to write alignments to, in Pharaoh format
    is_jsonl: bool = False
    is_aligned: bool = False  # alignments are written into the JSON
    n_best: int = 1
    shard: InputShard | None = None
    is_strict: bool = False  # text that is not UTF-8 is an error
    is_resumed: bool = False
    may_overwrite: bool = False  # existing outputs
    has_progress: bool = True

    @property
    def is_table(self) -> bool:
        """Return whether the source is a column of a table, and not plain text."""
        return is_table(Path(self.source))


def option_of(setting: str) -> str:
    """Return the option for a setting of `decode` or an argument of a function; return any other key unchanged."""
    name = setting.removeprefix("decode.")
    return _OPTIONS.get(name, f"--{name.replace('_', '-')}") if name.isidentifier() and name.islower() else setting


def search_settings(base: DecodeConfig, changes: Mapping[str, Any]) -> DecodeConfig:
    """Return the settings with the changes from the options.

    Raises:
        ConfigError: they contradict each other; the message names the options.
    """
    try:
        return base.changed(changes)
    except ConfigError as error:
        raise error.renamed(option_of) from None


def translate_files(options: TranslateOptions, load: Callable[[], Translator], changes: Mapping[str, Any]) -> None:
    """Translate a file or a stream; with `is_resumed`, continue where an interrupted run stopped.

    Args:
        load: returns the translator; it is called after all files have been checked, but before a table is opened.
        changes: search settings that differ from those of the model.
    Raises:
        MTError: something is wrong with the files, the options or the model.
    """
    if options.src_column is not None and (not options.is_table or format_of(Path(options.source)) == ".tmx"):
        fix = "name the file so, or cut the column out"
        raise ConfigError("--src-column", "is for a .tsv, .csv, .jsonl or .parquet file", fix)
    load = cache(load)
    with contextlib.ExitStack() as files:
        if options.is_table:
            src, tgt = load().normalisers
            text = files.enter_context(open_rows(options.source, (src.lang, tgt.lang), options.src_column))
        else:
            text = files.enter_context(open_lines(options.source, is_strict=options.is_strict))
        prefixes = None if options.prefixes is None else files.enter_context(open_lines(str(options.prefixes)))
        _check_number_of_prefixes(prefixes, text)
        lines = _lines_of_shard(options.shard, text)
        translations = cast(BinaryIO, sys.stdout.buffer) if options.output == "-" else Path(options.output)
        modes = {"is_resumed": options.is_resumed, "may_overwrite": options.may_overwrite}
        outputs = files.enter_context(open_outputs(translations, options.alignments, **modes))
        translator = load()
        decode = search_settings(translator.decode, changes)
        outputs.begin(resume_key(options, translator, decode))
        run = _TranslationRun(options, translator, decode, text, prefixes, lines, outputs)
        run.skip_done()
        with _resume_hint(outputs):
            run.translate()
            outputs.finish()
    for flag, report in _REPORTS.items():
        if n := outputs.record.counts.get(flag):
            report = report.format(max_source_tokens=translator.max_source_tokens)
            level = logging.INFO if flag in ("retried", "split") else logging.WARNING
            _log.log(level, f"{n:,} of {outputs.record.counts['lines']:,} lines {report}")


def resume_key(options: TranslateOptions, translator: Translator, decode: DecodeConfig) -> dict[str, Any]:
    """Return everything that the output depends on, except the text, named by option where there is one."""
    from mt import __version__

    return {
        "mt": __version__,
        **{f"--{name}": value for name, value in translator.identity.items()},
        "--retry": translator.retries,
        "--split-sentences": translator.split_sentences,
        "data.max_tokens": translator.max_source_tokens,
        "--src-column": options.src_column,
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
    lines: range | None  # to translate, from 0; None: all lines that arrive
    outputs: Outputs

    def skip_done(self) -> None:
        """Skip the lines of earlier shards and the lines that are already translated.

        Raises:
            DataError: the translated lines differ from those of the interrupted run.
        """
        record = self.outputs.record
        for reader in filter(None, (self.text, self.prefixes)):
            reader.skip((self.lines.start if self.lines else 0) + record.n_lines)
        now = self._digests
        for which, name in (("lines", self.text.name), ("prefixes", str(self.options.prefixes))):
            if record.n_lines and now.get(which) != record.digests.get(which):
                problem = f"has {record.n_lines:,} lines that were translated from other {which} than those in {name}"
                raise DataError(self.outputs.where, problem, "rerun with the same text, or delete it to start over")

    def translate(self) -> None:
        """Translate the remaining lines in batches."""
        n_before, total = self.outputs.record.n_lines, None if self.lines is None else len(self.lines)
        # If lines arrive one by one, someone may be waiting for their translations.
        pause_seconds = PAUSE_SECONDS if self.outputs.are_streamed and self.text.total is None else None
        shown = self.options.has_progress
        with Meter("lines", total or None, before=n_before, is_shown=shown, has_summary=True) as meter:
            n_left = None if total is None else total - n_before
            for batch in self.text.batches(n_left, pause_seconds=pause_seconds):
                if self.text.n_read == len(batch) and not self.options.is_table:
                    self._warn_about_tabs(batch)
                entries = self._entries(batch, meter)
                counts = Counter(flag for entry in entries for flag in entry.flags)
                self.outputs.add(self._contents(entries), len(batch), self._digests, counts)
        if total is not None and self.outputs.record.n_lines < total:
            raise DataError(self.text.name, "has fewer lines than at the start: it was changed while it was read")
        if self.options.shard is None and self.prefixes is not None and self.prefixes.take(1):
            problem = f"has more lines than {self.text.name}"
            raise DataError(self.prefixes.name, problem, "give one prefix for each line")

    def _warn_about_tabs(self, first: Sequence[bytes]) -> None:
        n_with_tabs = sum(b"\t" in line for line in first)
        if 2 * n_with_tabs > len(first):
            where = f"{self.text.name}: {n_with_tabs:,} of the first {len(first):,} lines have tabs"
            fix = "To translate one column, give a file whose name ends in .tsv, with --src-column N if needed"
            _log.warning(f"{where}; whole lines are translated. {fix}")

    @property
    def _digests(self) -> dict[str, str]:
        readers = {"lines": self.text, "prefixes": self.prefixes}
        return {name: reader.digest for name, reader in readers.items() if reader is not None}

    def _entries(self, batch: Sequence[bytes], meter: Meter) -> list[_Entry]:
        """Translate a batch: the lines that were read last."""
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
            raise DataError(name, problem, "give one prefix for each line")
        for number, line in enumerate(taken, start=self.prefixes.n_read - n_lines + 1):
            if not decoded(line)[1]:
                raise DataError(f"{name}, line {number:,}", "is not valid UTF-8", "fix the line")
        return [decoded(line)[0] for line in taken]

    def _contents(self, entries: Sequence[_Entry]) -> list[bytes]:
        """Return the bytes to append to each of the outputs."""
        texts = self._n_best(entries, lambda one: in_one_line(one.text))
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
            "give one prefix for each line; it may be empty",
        )


def _lines_of_shard(shard: InputShard | None, text: LineReader) -> range | None:
    """Return the lines to translate, from 0; None for all lines that arrive."""
    if shard is not None and text.total is None:
        problem = f"needs the number of lines, but {text.name} can be read only once"
        raise ConfigError("--shard", problem, "use a file for --input")
    return None if text.total is None else (shard or InputShard(1, 1)).lines(text.total)


@contextlib.contextmanager
def _resume_hint(outputs: Outputs) -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C: files end with a whole line, and a message says how to continue."""
    try:
        with exit_on_signals():
            yield
    except (KeyboardInterrupt, SystemExit):
        if outputs.can_be_resumed:
            done = f"stopped; the first {outputs.record.n_lines:,} lines are in {outputs.where}"
            _log.info(f"{done}. Run the same command with --resume to continue")
        raise
