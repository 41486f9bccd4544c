"""Checks of parallel text on a sample of it; each finding has a place and a fix."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import chain, combinations
from pathlib import Path
from typing import Literal

import numpy as np

from mt.config.settings import RunConfig, Table
from mt.errors import ConfigError, DataError, MTError, NotInstalledError, statement, with_fix
from mt.text.files import format_of
from mt.text.languages import (
    LanguageIdentifier,
    closeness,
    expected_scripts,
    main_script,
    wrong_script_fraction,
)
from mt.text.lengths import first_break
from mt.text.overlap import HeldOut, folded_all
from mt.text.reader import CorpusReader
from mt.text.sample import Sample
from mt.text.shards import pair_keys
from mt.text.tmx import UNTRANSLATED

Level = Literal["error", "warning", "note"]

FEWEST_PAIRS = 50  # a smaller sample says nothing about fractions
FEWEST_TEXTS = 20

_EXAMPLE_CHARS = 60
_BEGINNING_BYTES = 256


@dataclass(frozen=True)
class Finding:
    """A problem that a check found."""

    level: Level  # error: preparing or training will fail; warning: the model will be worse
    check: str  # the check's name, for programs
    key: str  # of the corpus or setting in the config
    problem: str  # where it is and what it is
    fix: str  # what to do

    @classmethod
    def of(cls, error: MTError, check: str, key: str) -> Finding:
        """Return the finding for an error that preparing or training would end with."""
        return cls("error", check, key, error.statement, error.fix or f"correct {key}")

    def __str__(self) -> str:
        return with_fix(self.problem, self.fix)


def quoted(text: str) -> str:
    """Return a text shortened and in quotes, as an example in a finding."""
    text = " ".join(text.split())
    return f"“{text if len(text) <= _EXAMPLE_CHARS else text[: _EXAMPLE_CHARS - 1] + '…'}”"


def percent(fraction: float) -> str:
    """Return a text such as 38%, 2.5% or 0.3%."""
    return f"{fraction:.0%}" if fraction >= 0.0995 else f"{fraction:.1%}"


def rounded(n: float) -> int:
    """Return a number rounded to two significant digits."""
    return round(int(n), 2 - len(str(int(n))))


# ---------------------------------------------------------------------------------------------------- files

_LFS = b"version https://git-lfs.github.com/spec/"
_HTML = re.compile(rb"\s*(<!doctype html|<html|<\?xml)", re.IGNORECASE)


def check_files(key: str, reader: CorpusReader) -> Iterator[Finding]:
    """Find files that can be opened, but are not what their names say."""
    files: list[Path] = []
    with suppress(DataError):  # reading the corpus will report it
        files = reader.files
    for path in files:
        if path.exists() and not path.is_file() and not path.is_dir():
            problem = "is a pipe or a device; it must be a regular file because it is read more than once"
            yield Finding("error", "pipe", key, statement(str(path), problem), "save it as a file")
            continue
        try:
            with path.open("rb") as stream:
                beginning = stream.read(_BEGINNING_BYTES)
        except OSError:
            continue  # reading the corpus will report it
        if beginning.startswith(_LFS):
            problem, fix = "is a Git LFS pointer, not the text itself", "fetch the text with git lfs pull"
            yield Finding("error", "lfs_pointer", key, statement(str(path), problem), fix)
        elif _HTML.match(beginning) and format_of(path) != ".tmx":
            problem, fix = "is a web page, not text", "download the file itself, not the page about it"
            yield Finding("error", "web_page", key, statement(str(path), problem), fix)


_MANY_WRAPPED = 0.5  # fraction of fields in quotes that are read as text
_MANY_SKIPPED = 0.1  # fraction of the units of a translation memory that lack one of the languages


def check_layout(sample: Sample) -> Iterator[Finding]:
    """Find header lines, quotes and units that may be read in another way than the user expects."""
    for path, layout in ({} if sample.error else sample.reader.layouts()).items():
        if layout.header is not None and isinstance(sample.corpus, Table) and sample.corpus.columns is None:
            fix = "set src_column and tgt_column to read other columns"
            yield Finding("note", "header", sample.key, statement(str(path), layout.about_header), fix)
        if layout.suspect is not None:
            problem = f"line 1 looks like a header ({', '.join(layout.suspect)}), but is read as text"
            langs = " and ".join(sample.langs)
            fix = f"if it is a header, remove it, or set src_column and tgt_column to its names for {langs}"
            yield Finding("warning", "header", sample.key, statement(str(path), problem), fix)
        if layout.wrapped > _MANY_WRAPPED:
            problem = f"{percent(layout.wrapped)} of the fields are in quotes, which are read as part of the text"
            fix = "set quoting: csv if they are not part of the text"
            yield Finding("warning", "quotes", sample.key, statement(str(path), problem), fix)
    n = sample.skipped[UNTRANSLATED]
    if n > _MANY_SKIPPED * (n + sample.n_pairs):
        problem = f"{n:,} of {n + sample.n_pairs:,} units have no text in {sample.langs[0]} or {sample.langs[1]}"
        yield warning("units", sample, None, problem, "check src_lang and tgt_lang if this is not intended")


def warning(check: str, sample: Sample, side: int | None, problem: str, fix: str, level: Level = "warning") -> Finding:
    """Return a warning about a sample, or a finding of another level.

    Args:
        side: source side (0) or target side (1), if only one has the problem.
    """
    place = sample.corpus.description if side is None else sample.side_name(side)
    return Finding(level, check, sample.key, statement(place, problem), fix)


def _such_as(sample: Sample, side: int, i: int) -> str:
    return f"for example line {sample.pairs[i].line:,}: {quoted(sample.sides[side][i])}"


# ---------------------------------------------------------------------------------------------------- alignment

_LOW_CORRELATION = 0.3
_COPIED, _ALL_COPIED = 0.1, 0.95


def check_alignment(sample: Sample) -> Iterator[Finding]:
    """Check whether the lines of both sides belong together, by their lengths and by the words they share."""
    if len(sample.pairs) >= FEWEST_PAIRS and (found := _copied(sample) or _shifted(sample) or _unrelated(sample)):
        yield found


def _copied(sample: Sample) -> Finding | None:
    same = [i for i, (src, tgt, _) in enumerate(sample.pairs) if src == tgt and src.strip()]
    fraction = len(same) / len(sample.pairs)
    if fraction < _COPIED:
        return None
    problem, fix = "are the same text", "set tgt to the translations"
    if fraction < _ALL_COPIED:
        problem = f"{percent(fraction)} of the pairs are the same text on both sides, {_such_as(sample, 0, same[0])}"
        fix = "remove them, or let data.clean.max_copied do it: untranslated text does not teach a model to translate"
    return Finding("warning", "copied", sample.key, statement(_both_sides(sample), problem), fix)


def _both_sides(sample: Sample) -> str:
    return f"{sample.side_name(0)} and {sample.side_name(1)}"


def _shifted(sample: Sample) -> Finding | None:
    """Find a line from which on shifting one side makes the lengths of the lines fit much better."""
    found = first_break(*([len(text) for text in side] for side in sample.sides))
    if found is None or found.line == len(sample.pairs):
        return None
    later, earlier = (1, 0) if found.shift > 0 else (0, 1)
    about = f"about line {sample.pairs[found.line].line:,}" if found.line >= 100 else "the beginning"
    problem = f"from {about} on, line N matches line N - {abs(found.shift)} of {sample.side_name(earlier)}"
    return warning("shifted", sample, later, problem, "look for a missing or extra line there")


def _unrelated(sample: Sample) -> Finding | None:
    lengths = np.log1p([[len(src), len(tgt)] for src, tgt, _ in sample.pairs if src and tgt])
    if len(lengths) < FEWEST_PAIRS or lengths.std(axis=0).min() < 0.1:
        return None
    correlation = float(np.corrcoef(lengths.T)[0, 1])
    if correlation >= _LOW_CORRELATION:
        return None
    problem = f"the lengths of their lines have a correlation of {correlation:.2f}; translations have about 0.9"
    fix = "check that each line translates the same line of the other side: one side may be sorted or shuffled"
    return Finding("warning", "unrelated", sample.key, statement(_both_sides(sample), problem), fix)


# ---------------------------------------------------------------------------------------------------- form

_CONTINUATIONS = "\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"  # bytes 0x80 to 0xBF, read as Latin-1 or as Windows-1252
# Traces of earlier processing. Check → the fraction of lines that is tolerated, a pattern, the problem, the fix.
_TRACES: dict[str, tuple[float, str, str, str]] = {
    "mojibake": (
        0.002,
        f"[ÂÃÄÅÎÏÐÑØÙ][{_CONTINUATIONS}]|[à-ï][{_CONTINUATIONS}]{{2}}|[ð-ô][{_CONTINUATIONS}]{{3}}",
        "contain UTF-8 that was decoded as Latin-1",
        "get the text again from its origin, or repair it with ftfy",
    ),
    "replaced": (0.01, "\ufffd", "contain U+FFFD in place of lost characters", "decode the original text again"),
    "tokenised": (
        0.1,
        r" [.,](?: |$)|&(?:apos|quot);|@-@",
        "are already tokenised",
        "detokenise the text (sacremoses detokenize): mt tokenises plain text itself",
    ),
    "pieces": (
        0.01,
        r"@@(?: |$)|\u2581",
        "are already split into subwords",
        "join the subwords (for BPE: sed -E 's/@@( |$)//g'): mt splits plain text itself",
    ),
    "special_tokens": (
        0.001,
        r"<(?:s|/s|unk|pad|0x[0-9A-F]{2})>",
        "contain special tokens as text",
        "remove them: mt adds its special tokens itself",
    ),
    "tags": (
        0.05,
        r"</?[A-Za-z][A-Za-z0-9]*(?:\s[^<>]*)?/?>",
        "contain markup tags",
        "remove the markup, or list the tags in tokenizer.user_symbols",
    ),
    "entities": (
        0.01,
        r"&(?:#\d+|#x[0-9a-fA-F]+|[A-Za-z]{2,8});",
        "contain HTML entities",
        "set data.clean.html_entities: true",
    ),
}


def check_form(sample: Sample, config: RunConfig) -> Iterator[Finding]:
    """Find traces of earlier processing and of wrong decoding."""
    if len(sample.pairs) < FEWEST_PAIRS:
        return
    known_tags = {"<s>", "</s>", *config.tokenizer.user_symbols, *config.data.tags}
    for side, texts in enumerate(sample.sides):
        for check, (max_fraction, pattern, what, fix) in _TRACES.items():
            if check == "entities" and config.data.clean.html_entities:
                continue
            regex = re.compile(pattern)
            found = [i for i, text in enumerate(texts) if regex.search(text)]
            if check == "tags":
                found = [i for i in found if set(regex.findall(texts[i])) - known_tags]
            if len(found) > max(2, max_fraction * len(texts)):
                problem = f"{percent(len(found) / len(texts))} of the lines {what}, {_such_as(sample, side, found[0])}"
                yield warning(check, sample, side, problem, fix)


def check_symbols(sample: Sample, symbols: Iterable[str]) -> Iterator[Finding]:
    """Find tags of corpora that also occur in the text itself."""
    for symbol in symbols:
        for side, texts in enumerate(sample.sides):
            found = next((i for i, text in enumerate(texts) if symbol in text), None)
            if found is not None:
                problem = f"contains the tag {symbol} as text, {_such_as(sample, side, found)}"
                fix = "choose another tag, or remove it from the text: mt adds it to each source sentence itself"
                yield warning("tag_in_text", sample, side, problem, fix)


# Properties that training text should share with validation and test text. Check → a test of a line, its description in
# a finding, the fix.
_HABITS: dict[str, tuple[Callable[[str], bool], str, str]] = {
    "case": (lambda text: text != text.lower(), "have capital letters", "keep the original capitals in all text"),
    "final_punctuation": (
        lambda text: not text.rstrip("\"'”’»)] ")[-1:].isalnum(),
        "end in punctuation",
        "keep the original punctuation in all text",
    ),
}
_RARE, _OFTEN = 0.15, 0.6


def check_habits(train: Sequence[Sample], others: Sequence[Sample]) -> Iterator[Finding]:
    """Find validation and test text that differs from the training text in case or punctuation."""
    for side in (0, 1):
        for other in others:
            alike = [sample for sample in train if sample.langs[side] == other.langs[side]]
            trained = [text for sample in alike for text in sample.sides[side] if text.strip()]
            texts = [text for text in other.sides[side] if text.strip()]
            if min(len(trained), len(texts)) < FEWEST_PAIRS:
                continue
            for check, (holds, usual, fix) in _HABITS.items():
                in_train, here = (sum(map(holds, lines)) / len(lines) for lines in (trained, texts))
                if min(in_train, here) <= _RARE and max(in_train, here) >= _OFTEN:
                    problem = f"{percent(here)} of the lines {usual}, compared with {percent(in_train)} in training"
                    yield warning(check, other, side, problem, fix)


# ---------------------------------------------------------------------------------------------------- held-out sets

SMALLEST_VALIDATION, LARGEST_VALIDATION = 100, 10_000
_SAME_SET = 0.5  # two sets that share this fraction of the smaller one's pairs count as the same


def check_held_out(samples: Sequence[Sample]) -> Iterator[Finding]:
    """Check sizes and emptiness of validation and test sets, and whether two are the same."""
    samples = [sample for sample in samples if sample.pairs]
    for sample in samples:
        yield from _empty_lines(sample)
    for valid in samples:
        if valid.role == "valid":
            yield from _validation_size(valid)
            yield from _same_sets(valid, [sample for sample in samples if sample is not valid])


def _empty_lines(sample: Sample) -> Iterator[Finding]:
    for side, texts in enumerate(sample.sides):
        empty = [i for i, text in enumerate(texts) if not text.strip()]
        if empty:
            first = sample.pairs[empty[0]].line
            verb = "is" if len(empty) == 1 else "are"
            problem = f"{len(empty):,} of {len(texts):,} lines {verb} empty (first: line {first:,})"
            fix = "remove these lines from both sides: empty lines are scored, too"
            yield warning("empty_lines", sample, side, problem, fix)


def _validation_size(valid: Sample) -> Iterator[Finding]:
    if valid.n_pairs < SMALLEST_VALIDATION:
        problem = f"has only {valid.n_pairs:,} pairs, so chance decides which checkpoint has the best score"
        yield warning("valid_size", valid, None, problem, "use 1,000 to 3,000 pairs")
    if valid.n_pairs > LARGEST_VALIDATION:
        problem = f"has {valid.n_pairs:,} pairs; each validation translates all of them, which is slow"
        yield warning("valid_size", valid, None, problem, "use 1,000 to 3,000 of them")


def _same_sets(valid: Sample, tests: Sequence[Sample]) -> Iterator[Finding]:
    seen, *others = (
        {(src.casefold().strip(), tgt.casefold().strip()) for src, tgt, _ in s.pairs} for s in [valid, *tests]
    )
    for sample, here in zip(tests, others, strict=True):
        n_shared = len(seen & here)
        if n_shared >= _SAME_SET * min(len(seen), len(here)):
            description = f"{sample.key} ({sample.corpus.description})"
            problem = f"{n_shared:,} of its {len(valid.pairs):,} pairs are also in {description}"
            fix = "use other text: the checkpoint is chosen by its validation score, so test scores would be too high"
            yield warning("valid_is_test", valid, None, problem, fix)


# ---------------------------------------------------------------------------------------------------- languages

_WRONG_LETTERS = 0.5  # fraction of a side's letters in wrong scripts from which the side counts as wrong
_SCRIPT_LINES = 2_000  # lines whose scripts are counted
_WRONG_TEXTS = 0.15  # tolerated fraction of texts in another language
_SWAPPED_TEXTS = 0.5
_N_TEXTS, _TEXT_CHARS = 200, 80  # the number of texts for py3langid, and their minimum length


def language_identifier(langs: Iterable[str]) -> tuple[LanguageIdentifier | None, list[Finding]]:
    """Return a language identifier, or a note that says why there is none."""
    try:
        return _identifier(*langs), []
    except ConfigError as error:
        check, why, fix = "unknown_language", f": {error.problem}", "correct the language code if it is wrong"
        if isinstance(error, NotInstalledError):
            check, why, fix = "no_py3langid", ", because py3langid is not installed", error.fix
        return None, [Finding("note", check, "languages", f"languages: only scripts were checked{why}", fix)]


def check_codes(langs: Iterable[str]) -> Iterator[Finding]:
    """Find two codes of the same language."""
    for lang, other in combinations(langs, 2):
        if closeness(lang, other) == 3:
            problem = f"languages: {lang} and {other} are codes of the same language, and would be two languages"
            yield Finding("error", "language_codes", "languages", problem, "use one code")


@cache
def _identifier(*langs: str) -> LanguageIdentifier:
    return LanguageIdentifier(langs)


def check_languages(sample: Sample, identifier: LanguageIdentifier | None) -> list[Finding]:
    """Check whether both sides are in their languages, by script and by py3langid."""
    if len(sample.pairs) < FEWEST_PAIRS:
        return []
    return list(_wrong_scripts(sample)) or list(_wrong_languages(sample, identifier) if identifier else ())


def _wrong_scripts(sample: Sample) -> Iterator[Finding]:
    every = max(1, len(sample.pairs) // _SCRIPT_LINES)
    sides = [" ".join(texts[::every]) for texts in sample.sides]
    wrong = [wrong_script_fraction(text, lang) for text, lang in zip(sides, sample.langs, strict=True)]
    if min(wrong) > _WRONG_LETTERS and wrong_script_fraction(sides[0], sample.langs[1]) < _WRONG_LETTERS:
        yield _swapped(sample)
        return
    for side, (text, fraction, lang) in enumerate(zip(sides, wrong, sample.langs, strict=True)):
        if fraction > _WRONG_LETTERS:
            script = main_script(text)
            written = " and ".join(sorted(expected_scripts(lang) or ()))
            problem = f"{percent(fraction)} of its letters are {script}, but {lang} is written in {written}"
            yield _wrong_language(sample, side, problem)


def _swapped(sample: Sample) -> Finding:
    src_lang, tgt_lang = sample.langs
    problem = f"the sides are swapped: src is in {tgt_lang} and tgt is in {src_lang}"
    return warning("swapped", sample, None, problem, "swap src and tgt, or swap src_lang and tgt_lang")


def _wrong_language(sample: Sample, side: int, problem: str) -> Finding:
    setting = ("src_lang", "tgt_lang")[side]
    return warning("language", sample, side, problem, f"give {sample.langs[side]} text, or change {setting}")


def _wrong_languages(sample: Sample, identifier: LanguageIdentifier) -> Iterator[Finding]:
    sides = [_long_texts(side) for side in sample.sides]
    if min(map(len, sides)) < FEWEST_TEXTS:
        return
    others = [
        Counter(identifier.other_language(text, lang) for text in texts)
        for texts, lang in zip(sides, sample.langs, strict=True)
    ]
    swapped = (
        sum(n for found, n in other.items() if identifier.is_in(found, lang)) / other.total()
        for other, lang in zip(others, reversed(sample.langs), strict=True)
    )
    if min(swapped) > _SWAPPED_TEXTS:
        yield _swapped(sample)
        return
    for side, other in enumerate(others):
        fraction = 1 - other.pop(None, 0) / len(sides[side])
        if fraction > _WRONG_TEXTS:
            found = other.most_common(1)[0][0]
            problem = f"{percent(fraction)} of its text is not in {sample.langs[side]} but mostly in {found}"
            yield _wrong_language(sample, side, problem)


def _long_texts(lines: Sequence[str]) -> list[str]:
    """Join consecutive lines into texts long enough to identify their language; return an even sample of these."""
    texts, parts, n_chars = [], list[str](), 0
    for line in lines:
        parts.append(line)
        n_chars += len(line) + 1
        if n_chars > _TEXT_CHARS:
            texts.append(" ".join(parts))
            parts, n_chars = [], 0
    return texts[:: max(1, len(texts) // _N_TEXTS)]


# ---------------------------------------------------------------------------------------------------- repetition

_REMOVED = "check that this is intended: mt prepare removes them"
_MANY_DUPLICATES = 0.15
_CONTAMINATED = 0.01  # tolerated fraction of the smaller one of training sample and held-out set


def check_duplicates(sample: Sample, folds: Sequence[Sequence[str]], config: RunConfig) -> Iterator[Finding]:
    """Check whether many pairs are duplicates.

    Args:
        folds: both sides of the sample, folded.
    """
    n = len(sample.pairs)
    if n < FEWEST_PAIRS:
        return
    exact, folded = (1 - len(np.unique(pair_keys(*sides))) / n for sides in (sample.sides, folds))
    if folded > _MANY_DUPLICATES:
        what = "of the pairs" if sample.is_whole else "of the pairs checked (more in the whole corpus)"
        problem = (
            f"{percent(folded)} {what} repeat earlier ones, ignoring case and punctuation ({percent(exact)} exactly)"
        )
        if config.data.clean.duplicates == "keep":
            yield warning("duplicates", sample, None, problem, "set data.clean.duplicates: folded")
        else:
            yield warning("duplicates", sample, None, problem, _REMOVED, "note")


def check_contamination(
    train: Sequence[Sample], folds: Sequence[Sequence[Sequence[str]]], held_out: Sequence[Sample], config: RunConfig
) -> Iterator[Finding]:
    """Find training pairs with a side that is also in a validation or test set.

    Args:
        folds: both sides of each training sample, folded.
    """
    sets = {sample.key: sample.pairs for sample in held_out}
    sets_to_find = HeldOut(sets, config.data.clean.contamination_words)
    is_removed = config.data.clean.contamination
    fix = "set data.clean.contamination: true, otherwise scores on that set are too high"
    for sample, sides in zip(train, folds, strict=True):
        found: dict[str, list[int]] = {}
        for i, name in enumerate(map(sets_to_find.find, *sides)):
            if name is not None:
                found.setdefault(name, []).append(i)
        for name, places in found.items():
            if len(places) > _CONTAMINATED * min(len(sample.pairs), len(sets[name])):
                verb = "has" if len(places) == 1 else "have"
                n = f"{len(places):,} of the {len(sample.pairs):,} pairs checked {verb}"
                problem = f"{n} a sentence that is also in {name}, {_such_as(sample, 0, places[0])}"
                yield warning(
                    "contamination",
                    sample,
                    None,
                    problem,
                    _REMOVED if is_removed else fix,
                    "note" if is_removed else "warning",
                )


# ---------------------------------------------------------------------------------------------------- all of these


def check_text(config: RunConfig, train: Sequence[Sample], held_out: Sequence[Sample]) -> Iterator[Finding]:
    """Find what is wrong with the text of all corpora, in samples of them.

    Args:
        held_out: validation and test sets.
    """
    langs = dict.fromkeys(chain.from_iterable(entry.direction for entry in config.entries.values()))
    # The other direction of a corpus has the same text.
    train, held_out = (
        [sample for sample in samples if not config.entries[sample.key].is_reversed] for samples in (train, held_out)
    )
    identifier, notes = language_identifier(langs)
    yield from [*notes, *check_codes(langs)]
    for sample in (*train, *held_out):
        yield from check_layout(sample)
        yield from check_alignment(sample)
        yield from check_languages(sample, identifier)
        yield from check_form(sample, config)
        yield from check_symbols(sample, config.data.tags)
    folds = [[folded_all(side) for side in sample.sides] for sample in train]
    for sample, fold in zip(train, folds, strict=True):
        yield from check_duplicates(sample, fold, config)
    yield from check_contamination(train, folds, held_out, config)
    yield from check_habits(train, held_out)
    yield from check_held_out(held_out)
