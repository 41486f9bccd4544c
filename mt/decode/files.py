"""`mt translate`: text from files or pipes through a translator into files or pipes, line by line."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

from mt.config.settings import DecodeConfig
from mt.decode.lines import LineReader, count_lines, decoded, require_utf8
from mt.decode.outputs import Outputs, Progress, open_outputs
from mt.decode.words import pharaoh
from mt.errors import ConfigError, DataError
from mt.system.console import Meter
from mt.system.signals import exit_on_signals
from mt.text.files import explained, open_bytes, require_text

if TYPE_CHECKING:  # a translator comes with torch, and what is wrong with a file is told before
    from mt.decode.translator import Aligner, Hypothesis, Translator

_log = logging.getLogger(__name__)

PAUSE_SECONDS = 0.2
LINE_SECONDS = 30.0  # between two messages on the progress, if there is no terminal
INVALID_UTF8 = "invalid_utf8"  # a flag of a line: bad bytes were read as U+FFFD
# What is told at the end about lines with a flag.
_REPORTS = {
    INVALID_UTF8: "were not valid UTF-8: their bad bytes were read as U+FFFD",
    "in_parts": "had more than {max_source_tokens:,} tokens and were translated in parts",
    "repetition": "have a translation that repeats itself",
    "too_long": "have a translation that is far too long",
    "too_short": "have a translation that is far too short",
    "max_length": "have a translation that had to end at --max-length",
}
_OPTIONS = {"no_repeat_ngram_size": "--no-repeat-ngram"}  # that are not named as their setting


class Shard(NamedTuple):
    """The `number`-th of `n_shards` blocks of lines, from 1."""

    number: int
    n_shards: int

    def __str__(self) -> str:
        return f"{self.number}/{self.n_shards}"

    def lines(self, n_lines: int) -> range:
        """Its lines, from 0. Blocks differ by one line at most."""
        return range(n_lines * (self.number - 1) // self.n_shards, n_lines * self.number // self.n_shards)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be translated, and how it is to be written."""

    source: str  # a path, or - for standard input
    output: str  # a path, or - for standard output
    prefixes: Path | None = None  # for each line what its translations begin with
    alignments: Path | None = None  # gets the alignments, in Pharaoh format
    is_jsonl: bool = False
    is_aligned: bool = False  # alignments go into the JSON
    n_best: int = 1
    shard: Shard | None = None
    is_strict: bool = False  # about UTF-8
    is_resumed: bool = False
    has_progress: bool = True


@dataclass(frozen=True)
class _Text:
    """Lines to read."""

    name: str
    reader: LineReader
    n_lines: int | None  # None: a pipe, whose lines cannot be counted

    def batches(self, n_lines: int | None, pause_seconds: float | None) -> Iterator[list[bytes]]:
        batches = self.reader.batches(n_lines, pause_seconds=pause_seconds)
        while True:
            with explained(Path(self.name)):  # the reading alone: what goes wrong in between is not this file's fault
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def take(self, n_lines: int) -> list[bytes]:
        with explained(Path(self.name)):
            return self.reader.take(n_lines)

    def skip(self, n_lines: int) -> None:
        with explained(Path(self.name)):
            self.reader.skip(n_lines)


def option_of(setting: str) -> str:
    """Return the option that gives a setting of `decode`, or an argument of a function; any other key as it is."""
    name = setting.removeprefix("decode.")
    return _OPTIONS.get(name, f"--{name.replace('_', '-')}") if name.isidentifier() and name.islower() else setting


def search_settings(base: DecodeConfig, changes: Mapping[str, Any]) -> DecodeConfig:
    """The settings with what the options change.

    Raises:
        ConfigError: they contradict each other; the message names the options.
    """
    if base.sample and "beam_size" in changes:  # a model whose config draws, and a user who searches
        changes = {"sample": False, "temperature": 1.0, "top_k": None, "top_p": None, **changes}
    try:
        return replace(base, **changes)
    except ConfigError as error:
        raise error.renamed(option_of) from None


def translate_files(
    job: Job,
    load: Callable[[], Translator],
    changes: Mapping[str, Any],
    aligner_of: Callable[[Translator], Aligner] | None = None,
) -> None:
    """Translate what the job says, from where an interrupted run stopped if it is resumed.

    Args:
        load: gives the translator; called when all files have been found to be in order.
        changes: settings of the search that differ from the model's own.
        aligner_of: gives what finds alignments, where there are to be any.
    Raises:
        MTError: the files, the options or the model need the user's attention.
    """
    with contextlib.ExitStack() as files:
        text = files.enter_context(_opened(job.source, job.is_strict))
        prefixes = None if job.prefixes is None else files.enter_context(_opened_prefixes(job.prefixes, text))
        lines = _lines_of_shard(job, text)
        translations = cast(BinaryIO, sys.stdout.buffer) if job.output == "-" else Path(job.output)
        outputs = files.enter_context(open_outputs(translations, job.alignments, is_resumed=job.is_resumed))
        translator = load()
        decode = search_settings(translator.decode, changes)
        done = outputs.begin(_made_by(job, translator, decode))
        _go_to(lines.start + done.n_lines if lines else done.n_lines, text, prefixes, done, outputs)
        work = _Work(job, translator, decode, aligner_of and aligner_of(translator), text, prefixes, outputs)
        with _told_how_to_go_on(outputs):
            counts = work.do(done, lines)
            outputs.finish()
    _report(counts, translator)


@dataclass(frozen=True)
class _Work:
    """A translation under way."""

    job: Job
    translator: Translator
    decode: DecodeConfig
    aligner: Aligner | None
    text: _Text
    prefixes: _Text | None
    outputs: Outputs

    def do(self, done: Progress, lines: range | None) -> Counter[str]:
        """Translate what is left of the lines, or all there are; returns the number of lines with each flag."""
        counts = Counter(done.counts)
        n_done, n_before = done.n_lines, lines.start if lines else 0
        n_left = None if lines is None else len(lines) - n_done
        with Meter(
            "lines",
            len(lines) if lines else None,
            before=n_done,
            line_seconds=LINE_SECONDS,
            is_shown=self.job.has_progress,
            has_summary=True,
        ) as meter:
            for batch in self.text.batches(n_left, self._pause_seconds):
                entries = self._translated(batch, n_before + n_done, _shown_by(meter, n_done, len(batch)))
                counts.update(flag for entry in entries for flag in entry.flags)
                counts["lines"] += len(batch)
                n_done += len(batch)
                self.outputs.add(self._contents(entries), Progress(n_done, self._digests(), dict(counts)))
        if lines is not None and n_done < len(lines):
            raise DataError(f"{self.text.name}: ended early: it was changed while it was read")
        if self.job.shard is None and self.prefixes is not None and self.prefixes.take(1):
            raise DataError(f"{self.prefixes.name}: has more lines than {self.text.name}: give a prefix for each line")
        return counts

    @property
    def _pause_seconds(self) -> float | None:
        """How long to wait for a list of lines to become long, where somebody may wait for their translations."""
        return PAUSE_SECONDS if self.outputs.are_seen_at_once and self.text.n_lines is None else None

    def _digests(self) -> dict[str, str]:
        return _digests(self.text, self.prefixes)

    def _translated(self, batch: Sequence[bytes], n_before: int, on_progress: Callable[[float], None]) -> list[_Entry]:
        if self.job.is_strict:
            for number, line in enumerate(batch, start=n_before + 1):
                require_utf8(line, Path(self.text.name), number)
        texts, are_valid = zip(*map(decoded, batch), strict=True)
        from mt.decode.translator import PrefixError

        try:
            translated = list(
                self.translator.translate_lines(
                    texts,
                    self.decode,
                    n_best=self.job.n_best,
                    prefixes=self._prefixes(len(batch)),
                    aligner=self.aligner,
                    on_progress=on_progress,
                )
            )
        except PrefixError as error:
            raise DataError(f"{self.job.prefixes}, line {n_before + error.line + 1:,}: {error}") from None
        numbered = enumerate(zip(texts, are_valid, translated, strict=True), start=n_before + 1)
        return [_Entry(number, text, is_valid, found) for number, (text, is_valid, found) in numbered]

    def _prefixes(self, n_lines: int) -> list[str] | None:
        if self.prefixes is None:
            return None
        taken = self.prefixes.take(n_lines)
        if len(taken) < n_lines:
            name, n_taken = self.prefixes.name, self.prefixes.reader.n_lines
            raise DataError(f"{name}: has {n_taken:,} lines and {self.text.name} has more: give a prefix for each line")
        texts, are_valid = zip(*map(decoded, taken), strict=True)
        if not all(are_valid):
            number = self.prefixes.reader.n_lines - n_lines + are_valid.index(False) + 1
            raise DataError(f"{self.prefixes.name}, line {number:,}: is not valid UTF-8: fix the line")
        return list(texts)

    def _contents(self, entries: Sequence[_Entry]) -> list[bytes]:
        """What is added to each of the outputs."""
        n_best = self.job.n_best
        if self.job.is_jsonl:
            translations = [entry.json_line(self.aligner is not None) for entry in entries]
        else:
            translations = [line for entry in entries for line in entry.texts(n_best)]
        contents = [translations]
        if self.job.alignments is not None:
            contents.append([line for entry in entries for line in entry.alignments(n_best)])
        return ["".join(f"{line}\n" for line in lines).encode() for lines in contents]


@dataclass(frozen=True)
class _Entry:
    """A line with its translations."""

    number: int  # in the input, from 1
    text: str
    is_valid: bool
    hypotheses: Sequence[Hypothesis]

    @property
    def flags(self) -> tuple[str, ...]:
        """Of the line and of its best translation."""
        return (*self.hypotheses[0].flags, *(() if self.is_valid else (INVALID_UTF8,)))

    def texts(self, n_best: int) -> list[str]:
        """Exactly `n_best` lines, empty ones where the search found fewer, so that line numbers can be reckoned."""
        return _filled([hypothesis.text for hypothesis in self.hypotheses], n_best)

    def alignments(self, n_best: int) -> list[str]:
        return _filled([pharaoh(hypothesis.alignment or ()) for hypothesis in self.hypotheses], n_best)

    def json_line(self, is_aligned: bool) -> str:
        hypotheses = [
            {
                "text": hypothesis.text,
                "score": hypothesis.score,
                "log_prob": hypothesis.log_prob,
                "log_prob_per_token": hypothesis.log_prob_per_token,
                "n_tokens": hypothesis.n_tokens,
                "tokens": hypothesis.tokens,
                "alignment": pharaoh(hypothesis.alignment or ()) if is_aligned else None,
                "flags": hypothesis.flags,
            }
            for hypothesis in self.hypotheses
        ]
        line = {"line": self.number, "src": self.text, "flags": self.flags, "hypotheses": hypotheses}
        # Some readers take these for ends of lines.
        return json.dumps(line, ensure_ascii=False).translate(_ESCAPES)


_ESCAPES = {ord(char): f"\\u{ord(char):04x}" for char in "\x7f\x85\u2028\u2029"}


def _shown_by(meter: Meter, n_done: int, n_lines: int) -> Callable[[float], None]:
    """Shows how much of the next `n_lines` is done."""
    return lambda share: meter.show(n_done + share * n_lines)


def _filled(lines: list[str], n: int) -> list[str]:
    return lines + [""] * (n - len(lines))


@contextlib.contextmanager
def _opened(name: str, is_strict: bool = False) -> Iterator[_Text]:
    """Text to read; a regular file is read once to its end before, so that what is wrong with it shows at once."""
    if name == "-":
        if sys.stdin.isatty():
            _log.info("reading from the terminal: one line each, end with Ctrl-D")
        stdin = cast(BinaryIO, getattr(sys.stdin.buffer, "raw", sys.stdin.buffer))
        yield _Text("standard input", LineReader(stdin), None)
        return
    path = Path(name)
    n_lines = None
    with explained(path):
        if path.is_file():
            with open_bytes(path) as beginning:
                require_text(beginning.read(8), path)
            n_lines = count_lines(path, is_strict=is_strict)
            stream = open_bytes(path)
        else:  # a pipe, which cannot be read twice; where it pauses, a buffered stream could not be closed
            stream = cast(BinaryIO, open(path, "rb", buffering=0))  # noqa: SIM115
    with stream:
        yield _Text(name, LineReader(stream), n_lines)


@contextlib.contextmanager
def _opened_prefixes(path: Path, text: _Text) -> Iterator[_Text]:
    with _opened(str(path)) as prefixes:
        if None not in (prefixes.n_lines, text.n_lines) and prefixes.n_lines != text.n_lines:
            raise DataError(
                f"{path} has {prefixes.n_lines:,} lines and {text.name} has {text.n_lines:,}: give a prefix for each "
                "line, an empty one where there is none"
            )
        yield prefixes


def _lines_of_shard(job: Job, text: _Text) -> range | None:
    """The lines to be translated, from 0; None for all that come."""
    if job.shard is None:
        return None if text.n_lines is None else range(text.n_lines)
    if text.n_lines is None:
        raise ConfigError(
            "--shard", f"needs to count lines, and {text.name} can be read once only", "give a file to --input"
        )
    return job.shard.lines(text.n_lines)


def _made_by(job: Job, translator: Translator, decode: DecodeConfig) -> dict[str, Any]:
    """All that the output depends on but the text. Names are those of options where there is one."""
    from mt import __version__

    return {
        "mt": __version__,
        **{f"--{name}": value for name, value in translator.identity.items()},
        "--retry": translator.retries,
        "data.max_tokens": translator.max_source_tokens,
        "--format": "jsonl" if job.is_jsonl else "text",
        "--n-best": job.n_best,
        "--prefix": job.prefixes is not None,
        "--align": job.is_aligned,
        "--alignments": job.alignments is not None,
        "--shard": None if job.shard is None else str(job.shard),
        **{option_of(name): value for name, value in asdict(decode).items()},
    }


def _digests(text: _Text, prefixes: _Text | None) -> dict[str, str]:
    return {"lines": text.reader.digest} | ({} if prefixes is None else {"prefixes": prefixes.reader.digest})


def _go_to(n_lines: int, text: _Text, prefixes: _Text | None, done: Progress, outputs: Outputs) -> None:
    """Pass over the lines before the first to be translated; those that are done have to be the same as then."""
    for each in (text, *([] if prefixes is None else [prefixes])):
        each.skip(n_lines)
    if not done.n_lines:
        return
    now = _digests(text, prefixes)
    for which, name in (("lines", text.name), ("prefixes", prefixes.name if prefixes else "")):
        if now.get(which) != done.digests.get(which):
            raise DataError(
                f"{outputs.where}: is no beginning of what this command writes: what it has of {done.n_lines:,} lines "
                f"was made from others than those in {name}: give the same text, or delete it to begin anew"
            )


@contextlib.contextmanager
def _told_how_to_go_on(outputs: Outputs) -> Iterator[None]:
    """End on SIGTERM as on Ctrl-C: with files that end with a whole line, and a word about what became of them."""
    try:
        with exit_on_signals():
            yield
    except (KeyboardInterrupt, SystemExit):
        if outputs.can_go_on:
            done = f"stopped: the first {outputs.n_lines:,} lines are in {outputs.where}"
            _log.info(f"{done}: the same command with --resume goes on")
        raise


def _report(counts: Mapping[str, int], translator: Translator) -> None:
    """Which lines were not translated as they are, or not well."""
    for flag, problem in _REPORTS.items():
        if counts.get(flag):
            told = problem.format(max_source_tokens=translator.max_source_tokens)
            _log.warning(f"{counts[flag]:,} of {counts['lines']:,} lines {told}")
    if counts.get("retried"):
        told = "were searched twice, the second time with repetition blocked: their first translation was odd"
        _log.info(f"{counts['retried']:,} of {counts['lines']:,} lines {told}")
