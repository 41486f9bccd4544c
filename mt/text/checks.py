"""What is wrong with parallel text, seen on a sample of it: each finding with its place and its fix."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mt.config.settings import Corpus, RunConfig
from mt.errors import ConfigError, MTError
from mt.text.corpora import SentencePair
from mt.text.duplicates import pair_keys
from mt.text.languages import LanguageIdentifier, NotInstalledError
from mt.text.lengths import first_break
from mt.text.overlap import HeldOut
from mt.text.sample import Sample
from mt.text.scripts import expected_scripts, script_fractions, wrong_script_fraction

Level = Literal["error", "warning", "note"]

FEWEST_PAIRS = 50  # of which a share says something
FEWEST_TEXTS = 20

_EXAMPLE_CHARS = 60
_BEGINNING_BYTES = 256


@dataclass(frozen=True)
class Finding:
    """Something that will go wrong."""

    level: Level  # error: preparing or training fails; warning: training goes badly
    check: str  # one word for programs
    key: str  # of the source or setting in the config
    problem: str  # where and what
    fix: str  # what to do

    @classmethod
    def of(cls, error: MTError, check: str, key: str) -> Finding:
        """Return the finding for an error that preparing or training would end with."""
        problem = f"{error.place}: {error.problem}" if error.place else error.problem
        return cls("error", check, key, problem, error.fix or f"correct {key}")

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def quoted(text: str) -> str:
    """As an example in a finding."""
    text = " ".join(text.split())
    return f"“{text if len(text) <= _EXAMPLE_CHARS else text[: _EXAMPLE_CHARS - 1] + '…'}”"


def percent(share: float) -> str:
    """38%, 2.5% or 0.3%."""
    return f"{share:.0%}" if share >= 0.0995 else f"{share:.1%}"


def rounded(n: float) -> int:
    """To two digits."""
    return round(int(n), 2 - len(str(int(n))))


# ---------------------------------------------------------------------------------------------------- files

_LFS = b"version https://git-lfs.github.com/spec/"
_HTML = re.compile(rb"\s*(<!doctype html|<html|<\?xml)", re.IGNORECASE)


def check_files(key: str, corpus: Corpus) -> list[Finding]:
    """Files that hold something else than their name says, though they could be opened."""
    findings = []
    for name in corpus.files:
        if Path(name).exists() and not (Path(name).is_file() or Path(name).is_dir()):
            problem = "is no file but a pipe or a device, and this text is read several times"
            findings.append(Finding("error", "pipe", key, f"{name}: {problem}", "save it as a file"))
            continue
        try:
            with Path(name).open("rb") as stream:
                beginning = stream.read(_BEGINNING_BYTES)
        except OSError:
            continue  # reading the corpus says why
        if beginning.startswith(_LFS):
            problem, fix = "is a Git LFS pointer, not the text itself", "fetch the text with git lfs pull"
            findings.append(Finding("error", "lfs_pointer", key, f"{name}: {problem}", fix))
        elif _HTML.match(beginning):
            problem, fix = "is a web page, not text", "download the file itself, not the page about it"
            findings.append(Finding("error", "web_page", key, f"{name}: {problem}", fix))
    return findings


# ---------------------------------------------------------------------------------------------------- alignment

_LOW_CORRELATION = 0.3
_COPIED, _ALL_COPIED = 0.1, 0.95


def check_alignment(sample: Sample) -> list[Finding]:
    """Whether line i of the one side goes with line i of the other, by lengths and by words that both have."""
    if len(sample.src) < FEWEST_PAIRS:
        return []
    return _copied(sample) or _shifted(sample) or _unrelated(sample)


def _copied(sample: Sample) -> list[Finding]:
    same = [i for i, (src, tgt) in enumerate(zip(sample.src, sample.tgt, strict=True)) if src == tgt and src.strip()]
    share = len(same) / len(sample.src)
    if share < _COPIED:
        return []
    place = f"{sample.side_name(0)} and {sample.side_name(1)}"
    if share >= _ALL_COPIED:
        fix = "give the translation as tgt"
        return [Finding("warning", "copied", sample.key, f"{place}: are the same text", fix)]
    problem = f"{percent(share)} of the pairs are the same text on both sides, such as {_such_as(sample, 0, same[0])}"
    fix = "remove them, or data.clean.max_copied will; text that was never translated does not teach to translate"
    return [Finding("warning", "copied", sample.key, f"{place}: {problem}", fix)]


def _such_as(sample: Sample, side: int, i: int) -> str:
    text = (sample.src, sample.tgt)[side][i]
    return f"line {sample.lines[i]:,}, {quoted(text)}"


def _shifted(sample: Sample) -> list[Finding]:
    """The one shift from some line on that explains the lengths of the lines much better than no shift does."""
    found = first_break(*([len(text) for text in side] for side in (sample.src, sample.tgt)))
    if found is None or found.line == len(sample.src):
        return []
    later, earlier = map(sample.side_name, (1, 0) if found.shift > 0 else (0, 1))
    lines = "1 line" if abs(found.shift) == 1 else f"{abs(found.shift)} lines"
    about = f"about line {sample.lines[found.line]:,}" if found.line >= 100 else "the beginning"
    problem = f"from {about} on it is {lines} behind {earlier}"
    fix = "look for a missing or an extra line there"
    return [Finding("warning", "shifted", sample.key, f"{later}: {problem}", fix)]


def _unrelated(sample: Sample) -> list[Finding]:
    lengths = np.log1p([[len(src), len(tgt)] for src, tgt in zip(sample.src, sample.tgt, strict=True) if src and tgt])
    if len(lengths) < FEWEST_PAIRS or lengths.std(axis=0).min() < 0.1:
        return []
    correlation = float(np.corrcoef(lengths.T)[0, 1])
    if correlation >= _LOW_CORRELATION:
        return []
    place = f"{sample.side_name(0)} and {sample.side_name(1)}"
    problem = (
        f"the lengths of the lines do not go together (correlation {correlation:.2f}; translations have about 0.9)"
    )
    fix = "see whether line i of the one translates line i of the other: one side may be sorted or shuffled"
    return [Finding("warning", "unrelated", sample.key, f"{place}: {problem}", fix)]


# ---------------------------------------------------------------------------------------------------- form

_CONTINUATIONS = "\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"  # bytes 0x80 to 0xBF, read as Latin-1 or as Windows-1252
_MOJIBAKE = re.compile(f"[ÂÃÄÅÎÏÐÑØÙ][{_CONTINUATIONS}]|[à-ï][{_CONTINUATIONS}]{{2}}|[ð-ô][{_CONTINUATIONS}]{{3}}")
_TOKENISED = re.compile(r" [.,](?: |$)|&(?:apos|quot);|@-@")
_PIECES = re.compile(r"@@(?: |$)|\u2581")
_SPECIAL = re.compile(r"<(?:s|/s|unk|pad|0x[0-9A-F]{2})>")
_TAG = re.compile(r"</?[A-Za-z][A-Za-z0-9]*(?:\s[^<>]*)?/?>")
_ENTITY = re.compile(r"&(?:#\d+|#x[0-9a-fA-F]+|[A-Za-z]{2,8});")


@dataclass(frozen=True)
class _Trace:
    """Something in the text that should not be there."""

    check: str
    pattern: re.Pattern[str]
    max_share: float  # of the lines, that is let pass
    what: str  # such lines …
    fix: str


_TRACES = (
    _Trace(
        "mojibake",
        _MOJIBAKE,
        0.002,
        "hold UTF-8 that was read as Latin-1",
        "get the text from where it was whole, or fix it with ftfy",
    ),
    _Trace("replaced", re.compile("\ufffd"), 0.01, "hold U+FFFD for lost characters", "decode the original text anew"),
    _Trace(
        "tokenised",
        _TOKENISED,
        0.1,
        "are tokenised already",
        "give raw text, detokenised (sacremoses detokenize); the tokenizer cuts it itself",
    ),
    _Trace(
        "pieces",
        _PIECES,
        0.01,
        "are cut into pieces already",
        "give raw text: join the pieces (sed -E 's/@@( |$)//g' for BPE)",
    ),
    _Trace(
        "special_tokens",
        _SPECIAL,
        0.001,
        "hold special tokens as text",
        "remove them: mt puts in what sentences begin and end with",
    ),
)
_TAGS = _Trace("tags", _TAG, 0.05, "hold tags", "remove the markup, or name the tags in tokenizer.user_symbols")
_ENTITIES = _Trace("entities", _ENTITY, 0.01, "hold HTML entities", "set data.clean.html_entities: true")


def check_form(sample: Sample, config: RunConfig) -> list[Finding]:
    """Traces of earlier processing, and of wrong decoding."""
    if len(sample.src) < FEWEST_PAIRS:
        return []
    symbols = {*config.tokenizer.user_symbols, *config.data.tags}
    traces = [*_TRACES, _TAGS] if config.data.clean.html_entities else [*_TRACES, _TAGS, _ENTITIES]
    findings = []
    for side, texts in enumerate((sample.src, sample.tgt)):
        for trace in traces:
            found = _lines_with(trace, texts, symbols)
            if len(found) > max(2, trace.max_share * len(texts)):
                share = percent(len(found) / len(texts))
                problem = f"{share} of the lines {trace.what}, such as {_such_as(sample, side, found[0])}"
                findings.append(
                    Finding("warning", trace.check, sample.key, f"{sample.side_name(side)}: {problem}", trace.fix)
                )
    return findings


def _lines_with(trace: _Trace, texts: Sequence[str], symbols: set[str]) -> list[int]:
    found = [i for i, text in enumerate(texts) if trace.pattern.search(text)]
    if trace is _TAGS:
        found = [i for i in found if set(trace.pattern.findall(texts[i])) - symbols - _SPECIAL_TAGS]
    return found


_SPECIAL_TAGS = {"<s>", "</s>"}


def check_symbols(sample: Sample, symbols: Iterable[str]) -> list[Finding]:
    """Tags of corpora that stand in the text of it, too."""
    findings = []
    for symbol in symbols:
        for side, texts in enumerate((sample.src, sample.tgt)):
            found = [i for i, text in enumerate(texts) if symbol in text]
            if found:
                problem = f"holds the tag {symbol} as text, such as {_such_as(sample, side, found[0])}"
                fix = "choose another tag, or remove it from the text: mt puts it in front of the source itself"
                findings.append(
                    Finding("warning", "tag_in_text", sample.key, f"{sample.side_name(side)}: {problem}", fix)
                )
    return findings


@dataclass(frozen=True)
class _Habit:
    """A way of writing that training and test text should have in common."""

    check: str
    holds: Callable[[str], bool]  # of a line
    usual: str  # N% of the lines …
    fix: str


_HABITS = (
    _Habit(
        "case",
        lambda text: text != text.lower(),
        "have capital letters",
        "write both in true case",
    ),
    _Habit(
        "final_punctuation",
        lambda text: not text.rstrip("\"'”’»)] ")[-1:].isalnum(),
        "end in punctuation",
        "give both as they were written",
    ),
)
_RARE, _OFTEN = 0.15, 0.6


def check_habits(train: Sequence[Sample], others: Sequence[Sample]) -> list[Finding]:
    """Validation and test text that is written in another way than the training text."""
    findings = []
    for side in (0, 1):
        trained = [text for sample in train for text in (sample.src, sample.tgt)[side] if text.strip()]
        for other in others:
            texts = [text for text in (other.src, other.tgt)[side] if text.strip()]
            if min(len(trained), len(texts)) < FEWEST_PAIRS:
                continue
            for habit in _HABITS:
                in_train, here = (sum(map(habit.holds, lines)) / len(lines) for lines in (trained, texts))
                if min(in_train, here) <= _RARE and max(in_train, here) >= _OFTEN:
                    problem = f"{percent(here)} of the lines {habit.usual}, and {percent(in_train)} in training"
                    findings.append(
                        Finding("warning", habit.check, other.key, f"{other.side_name(side)}: {problem}", habit.fix)
                    )
    return findings


# ---------------------------------------------------------------------------------------------------- held-out sets

SMALLEST_VALIDATION, LARGEST_VALIDATION = 100, 10_000
_SAME_SET = 0.5  # of the shorter set's segments, from which two sets are the same


def check_held_out(samples: Sequence[Sample]) -> list[Finding]:
    """Sizes and emptiness of validation and test sets, and whether two are the same."""
    findings = []
    for sample in samples:
        if sample.src:
            findings += _empty_lines(sample)
    valid = next((sample for sample in samples if sample.role == "valid" and sample.src), None)
    if valid is None:
        return findings
    findings += _validation_size(valid)
    seen = set(_plain(valid))
    for sample in samples:
        if sample is valid or not sample.src:
            continue
        here = set(_plain(sample))
        n_shared = len(seen & here)
        if n_shared >= _SAME_SET * min(len(seen), len(here)):
            problem = (
                f"{n_shared:,} of its {len(valid.src):,} pairs are in {sample.key} ({sample.corpus.description}), too"
            )
            fix = "give other text: what chooses the checkpoint cannot judge it, too"
            findings.append(
                Finding("warning", "valid_is_test", valid.key, f"{valid.corpus.description}: {problem}", fix)
            )
    return findings


def _plain(sample: Sample) -> list[tuple[str, str]]:
    return [(src.casefold().strip(), tgt.casefold().strip()) for src, tgt in zip(sample.src, sample.tgt, strict=True)]


def _empty_lines(sample: Sample) -> list[Finding]:
    findings = []
    for side, texts in enumerate((sample.src, sample.tgt)):
        empty = [i for i, text in enumerate(texts) if not text.strip()]
        if empty:
            problem = f"{len(empty):,} of {len(texts):,} lines are empty, the first is line {sample.lines[empty[0]]:,}"
            fix = "remove them with their counterparts: they are scored as they stand"
            findings.append(Finding("warning", "empty_lines", sample.key, f"{sample.side_name(side)}: {problem}", fix))
    return findings


def _validation_size(valid: Sample) -> list[Finding]:
    place = valid.corpus.description
    if valid.n_pairs < SMALLEST_VALIDATION:
        problem = f"has {valid.n_pairs:,} pairs: scores of so few leave the choice of a checkpoint to chance"
        return [Finding("warning", "valid_size", valid.key, f"{place}: {problem}", "give 1,000 to 3,000")]
    if valid.n_pairs > LARGEST_VALIDATION:
        problem = f"has {valid.n_pairs:,} pairs, which each validation translates: that takes long"
        return [Finding("warning", "valid_size", valid.key, f"{place}: {problem}", "give 1,000 to 3,000 of them")]
    return []


# ---------------------------------------------------------------------------------------------------- languages

_WRONG_LETTERS = 0.5  # share of a side's letters in scripts of other languages
_SCRIPT_LINES = 2_000  # that are looked at
_WRONG_TEXTS = 0.15  # share of the texts in another language that is let pass
_SWAPPED_TEXTS = 0.5
_N_TEXTS, _TEXT_CHARS = 200, 80  # that py3langid looks at, and how long they are at least


def language_identifier(config: RunConfig) -> tuple[LanguageIdentifier | None, list[Finding]]:
    """What tells languages apart, or a note why there is nothing."""
    try:
        return _identifier(config.src_lang, config.tgt_lang), []
    except NotInstalledError as error:
        problem = "languages: were looked at by their scripts alone, for py3langid is not installed"
        return None, [Finding("note", "no_py3langid", "languages", problem, error.fix)]
    except ConfigError as error:
        problem = f"languages: were looked at by their scripts alone: {error.problem}"
        return None, [Finding("note", "unknown_language", "languages", problem, "correct the code, if it is wrong")]


@cache
def _identifier(*langs: str) -> LanguageIdentifier:
    return LanguageIdentifier(langs)


def check_languages(sample: Sample, identifier: LanguageIdentifier | None) -> list[Finding]:
    """Whether both sides are in their languages, by script and by py3langid."""
    if len(sample.src) < FEWEST_PAIRS:
        return []
    findings = _wrong_scripts(sample)
    return findings if findings or identifier is None else _wrong_languages(sample, identifier)


def _wrong_scripts(sample: Sample) -> list[Finding]:
    every = max(1, len(sample.src) // _SCRIPT_LINES)
    src, tgt = (" ".join(texts[::every]) for texts in (sample.src, sample.tgt))
    wrong = [wrong_script_fraction(text, lang) for text, lang in zip((src, tgt), sample.langs, strict=True)]
    if min(wrong) > _WRONG_LETTERS and wrong_script_fraction(src, sample.langs[1]) < _WRONG_LETTERS:
        return [_swapped(sample)]
    findings = []
    for side, (text, share) in enumerate(zip((src, tgt), wrong, strict=True)):
        if share > _WRONG_LETTERS:
            script = next(iter(script_fractions(text)))
            written = " and ".join(sorted(expected_scripts(sample.langs[side]) or ()))
            lang = sample.langs[side]
            problem = f"{percent(share)} of its letters are {script}, and {lang} is written in {written}"
            findings.append(_wrong_language(sample, side, problem))
    return findings


def _swapped(sample: Sample) -> Finding:
    src_lang, tgt_lang = sample.langs
    problem = f"{sample.corpus.description}: the sides are swapped: src is {tgt_lang}, and tgt is {src_lang}"
    return Finding("warning", "swapped", sample.key, problem, "swap them, or src_lang and tgt_lang")


def _wrong_language(sample: Sample, side: int, problem: str) -> Finding:
    setting = ("src_lang", "tgt_lang")[side]
    fix = f"give {sample.langs[side]} text, or change {setting}"
    return Finding("warning", "language", sample.key, f"{sample.side_name(side)}: {problem}", fix)


def _wrong_languages(sample: Sample, identifier: LanguageIdentifier) -> list[Finding]:
    texts = [_long_texts(side) for side in (sample.src, sample.tgt)]
    if min(map(len, texts)) < FEWEST_TEXTS:
        return []
    others = [
        Counter(identifier.other_language(text, lang) for text in side)
        for side, lang in zip(texts, sample.langs, strict=True)
    ]
    swapped = (
        sum(n for found, n in other.items() if identifier.is_in(found, lang)) / len(side)
        for side, other, lang in zip(texts, others, reversed(sample.langs), strict=True)
    )
    if min(swapped) > _SWAPPED_TEXTS:
        return [_swapped(sample)]
    findings = []
    for side, other in enumerate(others):
        del other[None]
        share = sum(other.values()) / len(texts[side])
        if share > _WRONG_TEXTS:
            found = other.most_common(1)[0][0]
            problem = f"{percent(share)} of its text is not {sample.langs[side]}, but mostly {found}"
            findings.append(_wrong_language(sample, side, problem))
    return findings


def _long_texts(lines: Sequence[str]) -> list[str]:
    """Texts long enough to tell their language by, of lines that follow each other, drawn evenly."""
    texts, parts, n_chars = [], list[str](), 0
    for line in lines:
        parts.append(line)
        n_chars += len(line) + 1
        if n_chars > _TEXT_CHARS:
            texts.append(" ".join(parts))
            parts, n_chars = [], 0
    return texts[:: max(1, len(texts) // _N_TEXTS)]


# ---------------------------------------------------------------------------------------------------- repetition

_MANY_DUPLICATES = 0.15
_CONTAMINATED = 0.01  # of the pairs looked at, or as many as this share of the held-out set


def check_duplicates(sample: Sample, folds: Sequence[Sequence[str]], config: RunConfig) -> list[Finding]:
    """
    Args:
        folds: both sides of the sample, folded.
    """
    n = len(sample.src)
    if n < FEWEST_PAIRS:
        return []
    exact, folded = (1 - len(np.unique(pair_keys(*sides))) / n for sides in ((sample.src, sample.tgt), folds))
    if folded <= _MANY_DUPLICATES:
        return []
    what = "of the pairs" if sample.is_whole else "of the pairs looked at, and so more of the whole,"
    problem = (
        f"{sample.corpus.description}: {percent(folded)} {what} came before, case and punctuation aside "
        f"({percent(exact)} to the letter)"
    )
    is_kept = config.data.clean.duplicates == "keep"
    fix = "set data.clean.duplicates: folded" if is_kept else "see that this is no mistake; preparing removes them"
    return [Finding("warning", "duplicates", sample.key, problem, fix)]


def check_contamination(
    train: Sequence[Sample], folds: Sequence[Sequence[Sequence[str]]], held_out: Sequence[Sample], config: RunConfig
) -> list[Finding]:
    """Training pairs of which a side stands in a validation or test set.

    Args:
        folds: for each training sample, both sides of it, folded.
    """
    sets = {
        sample.key: [SentencePair(*pair) for pair in zip(sample.src, sample.tgt, sample.lines, strict=True)]
        for sample in held_out
    }
    sought = HeldOut(sets, config.data.clean.contamination_words)
    findings = []
    for sample, (src, tgt) in zip(train, folds, strict=True):
        found: dict[str, list[int]] = {}
        for i, name in enumerate(map(sought.find, src, tgt)):
            if name is not None:
                found.setdefault(name, []).append(i)
        for name, places in found.items():
            if len(places) > _CONTAMINATED * min(len(sample.src), len(sets[name])):
                findings.append(_contamination(sample, name, places, config))
    return findings


def _contamination(sample: Sample, name: str, places: Sequence[int], config: RunConfig) -> Finding:
    problem = (
        f"{sample.corpus.description}: {len(places):,} of the {len(sample.src):,} pairs looked at have a side in "
        f"{name}, such as {_such_as(sample, 0, places[0])}"
    )
    fix = "set data.clean.contamination: true, or its scores mean little"
    if config.data.clean.contamination:
        fix = "see that this is no mistake; preparing removes them"
    return Finding("warning", "contamination", sample.key, problem, fix)
