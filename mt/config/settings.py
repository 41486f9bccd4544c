"""All settings of a run: name, type, default and meaning. Settings that contradict each other raise an error.

The comment on a setting, above or behind it, is its text in `mt config explain`, docs/config.md and the JSON schema.
"""

from __future__ import annotations

import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from itertools import chain, count
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, TypedDict, TypeVar

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Strict, Tag, ValidationInfo
from pydantic_core import PydanticCustomError

from mt.config.validation import Contradiction, fields_of, kinds_of, section
from mt.errors import DataError
from mt.system import paths

T = TypeVar("T")
VocabSizes: TypeAlias = int | tuple[int, int]  # pieces of a joint vocabulary, or of source's and target's


def of_both_sides(sizes: VocabSizes) -> tuple[int, int]:
    """Return the number of pieces of the source's and of the target's vocabulary."""
    return (sizes, sizes) if isinstance(sizes, int) else sizes


MAX_BEAM_SIZE = 64
SMALLEST_VOCABULARY, LEAST_COVERAGE = 300, 0.9
_LARGEST = 2**63 - 1  # that torch and numpy can hold
# YAML 1.1 reads a number with an exponent as text, unless it has both a point and a sign: 3e-4, 1e6, 1.5e3.
_NUMBER_WITH_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
# Angle brackets keep a symbol from matching inside a word; <s>, <unk> and the bytes belong to SentencePiece.
SYMBOL = re.compile(r"<(?!(?:s|pad|unk|0x[0-9A-F]{2})>)[^\W_][\w.:+-]*>")


def parse_duration(text: str) -> float:
    """Return the seconds in a duration such as `90s`, `30m`, `2h` or `1h30m`.

    Raises:
        ValueError: the text is not a duration.
    """
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", text.strip())
    if match is None or not any(match.groups()):
        raise ValueError(f"expected a duration such as 90s, 30m or 1h30m, got {text!r}")
    hours, minutes, seconds = (float(group or 0) for group in match.groups())
    duration = hours * 3600 + minutes * 60 + seconds
    if not 0 < duration < math.inf:
        raise ValueError(f"expected a duration above 0, got {text!r}")
    return duration


def _is_duration(text: str) -> str:
    parse_duration(text)
    return text


def _as_float(value: Any) -> Any:
    return float(value) if isinstance(value, str) and _NUMBER_WITH_EXPONENT.fullmatch(value) else value


def _as_int(value: Any) -> Any:
    number = _as_float(value)
    if isinstance(number, int | float) and abs(number) > _LARGEST:
        raise ValueError(f"expected an integer up to {_LARGEST}, got a larger one")
    return int(number) if isinstance(number, float) and number.is_integer() else value


def _matching(pattern: str) -> AfterValidator:
    """Return a validator that refuses text which does not match the pattern as a whole."""

    def check(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise PydanticCustomError("not_matching", "does not match")  # the message comes from the description
        return text

    return AfterValidator(check)


_AS_INT, _AS_FLOAT = BeforeValidator(_as_int), BeforeValidator(_as_float)
# Strict: true and "3" are not numbers. A description completes the sentence "expected …" in messages.
Flag = Annotated[bool, Strict()]
Int = Annotated[int, Strict(), _AS_INT]
Natural = Annotated[int, Strict(), Field(ge=0, description="an integer of at least 0"), _AS_INT]
Positive = Annotated[int, Strict(), Field(ge=1, description="an integer of at least 1"), _AS_INT]
NonNegative = Annotated[
    float, Strict(), Field(ge=0, allow_inf_nan=False, description="a number of at least 0"), _AS_FLOAT
]
PositiveFloat = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False, description="a number above 0"), _AS_FLOAT]
Fraction = Annotated[float, Strict(), Field(ge=0, le=1, description="a number from 0 to 1"), _AS_FLOAT]
Probability = Annotated[float, Strict(), Field(ge=0, lt=1, description="a number of at least 0 and below 1"), _AS_FLOAT]
# A started run may change these settings; a change to any other setting makes another run.
CHANGEABLE = "may change"
Changeable = Annotated[T, CHANGEABLE]
# Tokenizers of BLEU, by sacreBLEU's names.
BleuTokenizer = Literal["13a", "intl", "zh", "ja-mecab", "ko-mecab", "char", "flores101", "flores200", "none"]
# Settings of the learning rate, by name in `train`. A started run changes them with train.restart_schedule.
SCHEDULE = ("schedule", "peak_lr", "warmup_steps", "decay_share", "final_lr_share")
# Settings of `train` that a budget replaces, and the values that they may then have.
BUDGET_REPLACES: dict[str, tuple[object, ...]] = {
    "max_steps": (100_000,),
    "stop_after": (None,),
    "schedule": ("inverse_sqrt", "warmup_stable_decay"),
    "restart_schedule": (False,),
}
# An empty section, list or mapping may be written as null.
Section = Annotated[T, BeforeValidator(lambda value: {} if value is None else value)]
_AS_LIST = BeforeValidator(lambda value: [] if value is None else value)
Entries = Annotated[tuple[T, ...], _AS_LIST]
Symbol = Annotated[str, Field(description="a symbol such as <bt> (not <s>, <pad> or <unk>)"), _matching(SYMBOL.pattern)]
Name = Annotated[str, Field(description="a name of letters, digits and . _ + -"), _matching(r"[\w+-][\w.+-]*")]
Lang = Annotated[str, Field(min_length=1, description="a language code such as en")]
Device = Annotated[str, Field(description="auto, cpu, cuda or cuda:N"), _matching(r"auto|cpu|cuda(:\d+)?")]
Duration = Annotated[str, Field(description="a duration such as 1h30m"), AfterValidator(_is_duration)]
LengthRatio = Annotated[float, Strict(), Field(ge=1, description="a number of at least 1"), _AS_FLOAT]
MixTemperature = Annotated[float, Strict(), Field(ge=1, le=1000, description="a number from 1 to 1000"), _AS_FLOAT]
Weight = Annotated[float, Strict(), Field(gt=0, le=1000, description="a number above 0 and up to 1000"), _AS_FLOAT]
VocabSize = Annotated[
    int, Strict(), Field(ge=SMALLEST_VOCABULARY, description=f"an integer of at least {SMALLEST_VOCABULARY}"), _AS_INT
]
Coverage = Annotated[
    float, Strict(), Field(ge=LEAST_COVERAGE, le=1, description=f"a number from {LEAST_COVERAGE} to 1"), _AS_FLOAT
]
MaxTokens = Annotated[int, Strict(), Field(ge=2, le=100_000, description="an integer from 2 to 100,000"), _AS_INT]
MinLength = Annotated[int, Strict(), Field(ge=0, le=10_000, description="an integer from 0 to 10,000"), _AS_INT]
MaxLength = Annotated[int, Strict(), Field(ge=1, le=10_000, description="an integer from 1 to 10,000"), _AS_INT]
Decay = Annotated[float, Strict(), Field(gt=0, lt=1, description="a number above 0 and below 1"), _AS_FLOAT]
BeamSize = Annotated[
    int, Strict(), Field(ge=1, le=MAX_BEAM_SIZE, description=f"an integer from 1 to {MAX_BEAM_SIZE}"), _AS_INT
]
PenaltyExponent = Annotated[float, Strict(), Field(ge=0, le=10, description="a number from 0 to 10"), _AS_FLOAT]
Temperature = Annotated[float, Strict(), Field(ge=0.01, le=100, description="a number from 0.01 to 100"), _AS_FLOAT]
TopP = Annotated[float, Strict(), Field(gt=0, le=1, description="a number above 0 and up to 1"), _AS_FLOAT]
FOLDER = "folder"  # key of the context of validation: the folder of the file that a config is read from


def _in_place(path: str, info: ValidationInfo) -> str:
    """Return a path as it is, or with the folder of the config file in front if its files are only there."""
    return paths.located(path, info.context[FOLDER]) if info.context else path


def _expanded(path: str, info: ValidationInfo) -> str:
    """Return a path without ~ and environment variables."""
    if not info.context or os.path.lexists(path):
        return path
    try:
        return paths.expanded(path)
    except DataError as error:
        raise ValueError(error.problem) from None


# Paths of text may have ~, environment variables and wildcards, which are replaced when the text is read.
_TextPath = Annotated[str, Field(min_length=1, description="a path"), AfterValidator(_in_place)]
TextPaths = _TextPath | Annotated[tuple[_TextPath, ...], Field(min_length=1, description="a list of paths")]
OutputPath = Annotated[str, AfterValidator(_expanded)]
InputPath = Annotated[str, AfterValidator(_expanded), AfterValidator(_in_place)]


# --- Corpora ----------------------------------------------------------------------------------------------------------


class Direction(NamedTuple):
    """The languages of a translation."""

    src: str
    tgt: str

    def __str__(self) -> str:
        return f"{self.src}-{self.tgt}"

    @property
    def reversed(self) -> Direction:
        return Direction(self.tgt, self.src)

    def in_words(self) -> dict[str, str]:
        """Return the languages by the names of their settings, for manifests and reports."""
        return {"src_lang": self.src, "tgt_lang": self.tgt}

    @property
    def pieces(self) -> tuple[str, str]:
        """The pieces that stand for the target and the source language before a source sentence."""
        return f"<2{self.tgt}>", f"<{self.src}>"


@section()
class Corpus(ABC):
    """Parallel text of any kind."""

    src_lang: Lang | None = None  # Code of the source language. null: the run's src_lang.
    tgt_lang: Lang | None = None  # Code of the target language. null: the run's tgt_lang.
    # Use the corpus twice, also as translations from tgt_lang to src_lang.
    both_directions: Flag = False
    # Copies of each training pair in an epoch. 2.0: each pair twice; 0.5: half of them, drawn again for each epoch.
    weight: Weight = 1.0
    # Symbol in front of each source segment, such as <bt> for back-translations (Caswell et al. 2019). null: none.
    tag: Symbol | None = None

    @property
    @abstractmethod
    def description(self) -> str:
        """The corpus as the user wrote it, in a few words."""

    @property
    def files(self) -> tuple[str, ...]:
        """The files that the user named, and patterns of names."""
        return ()

    def side(self, number: int, lang: str) -> str:
        """Return the name of the source side (0) or the target side (1): its file, or corpus and language."""
        return f"{self.description} ({lang})"


@section()
class TextFiles(Corpus):
    """Two text files with one segment per line, plain or compressed (.gz, .xz, .zst), or several pairs of files."""

    # Path of the source text; a pattern such as shard-*.en or a list: of several files, which are read in order.
    src: TextPaths
    # Path of the target text; its line i translates line i of src. Several files belong to those of src one by one.
    tgt: TextPaths

    def __post_init__(self) -> None:
        src, tgt = (_as_tuple(side) for side in (self.src, self.tgt))
        if len(src) != len(tgt):
            raise Contradiction("", f"src and tgt need the same number of files, got {len(src)} and {len(tgt)}")
        if same := set(src) & set(tgt):
            raise Contradiction("", f"src and tgt are the same file, {min(same)}")

    @property
    def description(self) -> str:
        return f"{self.side(0, '')} + {self.side(1, '')}"

    @property
    def files(self) -> tuple[str, ...]:
        return _as_tuple(self.src) + _as_tuple(self.tgt)

    def side(self, number: int, lang: str) -> str:
        return _in_words(_as_tuple((self.src, self.tgt)[number]))


def _as_tuple(paths: str | tuple[str, ...]) -> tuple[str, ...]:
    return (paths,) if isinstance(paths, str) else paths


def _in_words(paths: tuple[str, ...]) -> str:
    return ", ".join(paths) if len(paths) <= 3 else f"{paths[0]}, …, {paths[-1]}"


@section()
class _Columns(Corpus):
    """A corpus with columns, two of which hold the text."""

    # Source column: a name, or a number from 1. null: the column named like src_lang; in .tsv and .csv without a header
    # line, the first.
    src_column: Positive | str | None = None
    # Target column: a name, or a number from 1. null: the column named like tgt_lang; in .tsv and .csv without a header
    # line, the second of two.
    tgt_column: Positive | str | None = None

    def __post_init__(self) -> None:
        if (self.src_column is None) != (self.tgt_column is None):
            raise Contradiction("", "src_column and tgt_column belong together", "give both or neither")
        if self.src_column is not None and self.src_column == self.tgt_column:
            raise Contradiction("", f"src_column and tgt_column are the same column, {self.src_column}")

    @property
    def columns(self) -> tuple[int | str, int | str] | None:
        """The columns of the two sides; None if they are not given."""
        return None if self.src_column is None or self.tgt_column is None else (self.src_column, self.tgt_column)


@section()
class Table(_Columns):
    """A file with both sides, or several."""

    # Path of a .tsv, .csv, .jsonl, .tmx or .parquet file; all but .parquet may be compressed (.gz, .xz, .zst). A
    # pattern such as shard-*.tsv, or a list: several files, which are read in order.
    file: TextPaths
    # Quotes around the fields of .tsv and .csv files. csv: they are not part of the text, and a field in quotes may
    # contain separators and line ends; none: a quote is a character; auto: csv for .csv files, and for .tsv files that
    # were written with quotes.
    quoting: Literal["auto", "csv", "none"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quoting != "auto" and all(re.search(r"\.(jsonl|tmx|parquet)\b", name) for name in self.files):
            raise Contradiction("quoting", f"is {self.quoting}, but only .tsv and .csv files have quotes", "remove it")

    @property
    def description(self) -> str:
        return _in_words(self.files)

    @property
    def files(self) -> tuple[str, ...]:
        return _as_tuple(self.file)


@section()
class HubDataset(_Columns):
    """A data set of the Hugging Face hub, or a local folder in its layout."""

    dataset: InputPath  # Name on the hub, such as wmt/wmt14, or path of a local folder.
    config: str | None = None  # Configuration of the data set, such as de-en. null: its only one.
    # Split or split expression, such as train[:10%]. null: train, validation or test, by the corpus' key in data.
    split: str | None = None
    # true: read the data set over the network each time instead of storing it on disk; only for whole splits.
    streaming: Flag = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.streaming and "[" in (self.split or ""):
            problem = f"{self.split} is a part of a split, and streaming reads only whole splits"
            raise Contradiction("split", problem, "give a whole split, or remove streaming")

    @property
    def description(self) -> str:
        return ":".join(part for part in (self.dataset, self.config, self.split) if part)


@section()
class SacrebleuSet(Corpus):
    """A test set that sacreBLEU downloads."""

    sacrebleu: str  # Name of the test set in sacreBLEU, such as wmt14/full.

    @property
    def description(self) -> str:
        return f"sacrebleu:{self.sacrebleu}"


@section()
class RunText(Corpus):
    """The training text of an earlier run in this direction, as it was prepared, for a model that must not lose it."""

    run: InputPath  # Folder of the run, such as runs/general. Its prepared corpus must still exist.

    @property
    def description(self) -> str:
        return f"the training text of {self.run}"


def _kind(value: Any) -> str | None:
    """Return the name in `AnyCorpus` of the one kind of corpus whose keys are given; None without exactly one kind."""
    kinds = kinds_of(AnyCorpus)
    if not isinstance(value, Mapping):
        return next((tag for tag, kind in kinds.items() if isinstance(value, kind)), None)
    tag = ", ".join(key for key in ", ".join(kinds).split(", ") if key in value)
    return tag if tag in kinds else None


def _without_nulls(value: Any) -> Any:
    """Return a corpus without the keys that are null or false, some of which its kind may not have."""
    if not isinstance(value, Mapping):
        return value
    keys = fields_of(AnyCorpus).keys() & value.keys() - {"weight"}
    unset = {key for key in keys if value[key] is None or (key == "streaming" and value[key] is False)}
    return {key: entry for key, entry in value.items() if key not in unset}


_Kinds: TypeAlias = (
    Annotated[TextFiles, Tag("src, tgt")]
    | Annotated[Table, Tag("file")]
    | Annotated[HubDataset, Tag("dataset")]
    | Annotated[SacrebleuSet, Tag("sacrebleu")]
    | Annotated[RunText, Tag("run")]
)
AnyCorpus = Annotated[_Kinds, Discriminator(_kind), BeforeValidator(_without_nulls)]
_SEVERAL = "several"
AnyCorpora = Annotated[  # one corpus, or a list
    _Kinds
    | Annotated[tuple[AnyCorpus, ...], Field(min_length=1, description="a list of at least one corpus"), Tag(_SEVERAL)],
    Discriminator(lambda value: _SEVERAL if isinstance(value, list | tuple) else _kind(value)),
    BeforeValidator(_without_nulls),
]


class Entry(NamedTuple):
    """A corpus in one direction."""

    corpus: Corpus
    direction: Direction
    is_reversed: bool  # the sides of the corpus are exchanged
    place: str  # the key of the corpus in the config


# --- Sections ---------------------------------------------------------------------------------------------------------


@section("data.clean")
class CleanConfig:
    """Changes to all text, also before translation, and rules that remove training pairs."""

    # --- Changes

    unicode_nfc: Flag = True  # Compose a letter and its accent into one character (Unicode NFC).
    # Replace control characters by spaces, and remove soft hyphens and other invisible characters from words.
    control_characters: Flag = True
    # Replace ligatures, special hyphens, Arabic presentation forms, half-width katakana and mathematical letters by the
    # usual characters.
    presentation_forms: Flag = True
    html_entities: Flag = True  # Replace HTML entities such as &amp; and &#39; by their characters.
    # Rewrite quotes, dashes and the spaces next to them as Moses does; needs pip install 'mt-train[punctuation]'.
    punctuation: Flag = False
    white_space: Flag = True  # Reduce white space to single spaces, and remove it at both ends.

    # --- Rules, in the order in which they apply

    max_chars: Positive = 4_000  # Longest side allowed, in characters.
    # Largest ratio of lengths allowed: (bytes + 16) of one side over (bytes + 16) of the other. 2 to 3 for crawled
    # text; null: no limit.
    max_length_ratio: LengthRatio | None = 4.0
    # Largest fraction allowed of the longer side's words that are on both sides, in prose of at least 4 words. null: no
    # limit.
    max_copied: Fraction | None = 0.9
    # Smallest fraction allowed of words and numbers that are on both sides. About 0.2 for text that must keep names,
    # such as software strings; null: no limit.
    min_copied: Fraction | None = None
    # Largest fraction allowed of digits, punctuation and symbols on a side of at least 8 characters. null: no limit,
    # for tables and formulas.
    max_non_letters: Fraction | None = 0.8
    # Largest fraction allowed of letters in a script that the language does not use, on a side of at least 10 letters.
    # 0.2 for crawled text; null: no limit, for transliterated text.
    max_wrong_script: Fraction | None = 0.5
    # Remove pairs with a side in another language, for crawled text; needs pip install 'mt-train[language]'.
    language: Flag = False
    numbers: Flag = False  # Remove pairs whose sides have different numbers.
    # Repeated pairs. keep: keep all; exact: keep the first of identical pairs; folded: keep the first of pairs that
    # differ only in case and punctuation.
    duplicates: Literal["keep", "exact", "folded"] = "folded"
    # Remove pairs with a side that is in a validation or test set, ignoring case and punctuation.
    contamination: Flag = True
    contamination_words: Positive = 6  # Sides with fewer words than this are not checked for contamination.

    # --- Limit

    # Largest fraction of a training corpus that may be removed; more is an error. Duplicates and pairs of validation
    # and test sets do not count, and corpora of fewer than 50 pairs are not checked. null: no limit.
    max_removed: Changeable[Fraction | None] = 0.5

    def __post_init__(self) -> None:
        if self.max_copied is not None and self.min_copied is not None and self.min_copied > self.max_copied:
            problem = f"is {self.min_copied}, above data.clean.max_copied ({self.max_copied}): no pair would be left"
            raise Contradiction("min_copied", problem)


@section("data")
class DataConfig:
    """Corpora and their preparation."""

    # Training corpora, joined in this order.
    train: Annotated[tuple[AnyCorpus, ...], Field(min_length=1, description="a list of at least one corpus"), _AS_LIST]
    # Validation set, or a list of them. It is scored during training and chooses the best checkpoint; of several sets,
    # by the mean of their scores.
    valid: AnyCorpora
    # Test sets by name; they are scored at the end of training. A started run may get more of them, and may change or
    # remove these, but not those that its corpus was prepared with.
    test: Changeable[Section[dict[Name, AnyCorpus]]] = field(default_factory=dict)
    # Folder of prepared corpora; each has a subfolder, named by a hash of text and settings.
    prepared_dir: Changeable[OutputPath] = "data/prepared"
    # Longest side in tokens, end of sentence included; longer training pairs are removed.
    max_tokens: MaxTokens = 256
    # With corpora in several directions: a direction with n pairs is drawn with a probability proportional to n^(1/T),
    # times the weights of its corpora (Arivazhagan et al. 2019). 1: as much as there is; 5: small ones often.
    mix_temperature: MixTemperature = 1.0
    # Begin each source sentence with a piece of its target language, such as <2de> (Johnson et al. 2017). auto: if the
    # training text has several target languages.
    target_language_piece: Flag | Literal["auto"] = "auto"
    # Begin each source sentence with a piece of the source language, such as <en>, after that of the target language.
    source_language_piece: Flag = False
    clean: Section[CleanConfig] = CleanConfig()

    def __post_init__(self) -> None:
        for name in self.test:
            if f"{name}.".startswith("valid."):
                raise Contradiction(f"test.{name}", "is the name of a validation set", "choose another name")

    @property
    def valid_corpora(self) -> tuple[Corpus, ...]:
        return self.valid if isinstance(self.valid, tuple) else (self.valid,)

    @property
    def tags(self) -> tuple[str, ...]:
        """The distinct tags of all corpora, in order."""
        corpora = (*self.train, *self.valid_corpora, *self.test.values())
        return tuple(dict.fromkeys(corpus.tag for corpus in corpora if corpus.tag is not None))


@section("tokenizer")
class TokenizerConfig:
    """The tokenizer: SentencePiece models with byte fallback, one for both languages or one for each."""

    # true: one vocabulary for both languages; false: one for each, for languages in different scripts, such as English
    # and Japanese, with model.tied_embeddings decoder or none.
    joint: Flag = True
    # Path of a SentencePiece model to use as it is; the settings of training then have no effect. null: train one.
    model: InputPath | None = None
    # The model of the target language if joint is false; model is then the source's. null: train one.
    tgt_model: InputPath | None = None
    # bpe: byte-pair encoding (Sennrich et al. 2016); unigram: unigram language model (Kudo 2018).
    kind: Literal["bpe", "unigram"] = "bpe"
    # Number of pieces, including the special ones and the 256 bytes. Fewer for small text: 8,000 for 30,000 pairs.
    vocab_size: VocabSize = 32_000
    # Number of pieces of the target's vocabulary if joint is false. null: vocab_size.
    tgt_vocab_size: VocabSize | None = None
    split_digits: Flag = True  # Make each digit a separate piece, instead of learning pieces of several digits.
    character_coverage: Coverage = 0.9999  # Fraction of characters that are pieces; the others are split into bytes.
    sample_lines: Positive = 10_000_000  # Lines for training the tokenizer, both languages together, drawn evenly.
    # Symbols in the text that are never split, such as <name>. The tags of corpora need not be listed.
    user_symbols: Entries[Symbol] = ()

    def __post_init__(self) -> None:
        if len(set(self.user_symbols)) < len(self.user_symbols):
            raise Contradiction("user_symbols", "lists a symbol twice", "remove one of the two")
        for name in ("tgt_model", "tgt_vocab_size"):
            if self.joint and getattr(self, name) is not None:
                problem = "is set, but both languages have the same vocabulary"
                raise Contradiction(name, problem, "set tokenizer.joint to false, or remove it")
        if not self.joint and (self.model is None) != (self.tgt_model is None):
            problem = "separate vocabularies need a model for each language, or none"
            raise Contradiction("tgt_model", problem, "give model and tgt_model, or neither")

    @property
    def kept(self) -> dict[str, object]:
        """The settings that a model keeps, by key; the others have no effect once a tokenizer exists."""
        names = ("joint", "kind", "vocab_size", "tgt_vocab_size", "split_digits", "character_coverage")
        return {f"tokenizer.{name}": getattr(self, name) for name in names}

    @property
    def vocab_sizes(self) -> VocabSizes:
        """The number of pieces of the vocabularies that these settings describe."""
        return self.vocab_size if self.joint else (self.vocab_size, self.tgt_vocab_size or self.vocab_size)


@section("model")
class ModelConfig:
    """The Transformer. The defaults are the base model of Vaswani et al. 2017, table 3."""

    d_model: Positive = 512  # Width of embeddings and layers: a multiple of 8 × n_heads.
    n_heads: Positive = 8  # Attention heads.
    d_ff: Positive = 2_048  # Width inside the feed-forward networks.
    n_encoder_layers: Positive = 6  # Number of encoder layers.
    n_decoder_layers: Positive = 6  # Number of decoder layers.
    # Dropout of embeddings and of the output of each sub-layer. 0.3 for fewer than 100,000 pairs.
    dropout: Probability = 0.1
    attention_dropout: Probability = 0.0  # Dropout of attention weights; above 0, flash attention cannot be used.
    # Probability that a layer is replaced by its input in a micro-batch (Fan et al. 2020); saves no time.
    layer_dropout: Probability = 0.0
    word_dropout: Probability = 0.0  # Probability that a token's embedding is set to zero (Sennrich et al. 2016, WMT).
    # Place of the norm. post: after the residual sum; pre: before the sub-layer (Xiong et al. 2020), more stable in
    # deep models; deepnorm: after a residual sum that scales its input (Wang et al. 2022).
    norm: Literal["post", "pre", "deepnorm"] = "post"
    # layer: layer norm (Ba et al. 2016); rms: RMS norm (Zhang and Sennrich 2019).
    norm_kind: Literal["layer", "rms"] = "layer"
    # Activation of the feed-forward networks. relu2: squared ReLU (So et al. 2021), which overflows in fp16; geglu and
    # swiglu are gated and have three matrices instead of two (Shazeer 2020).
    activation: Literal["relu", "gelu", "silu", "relu2", "geglu", "swiglu"] = "relu"
    bias: Flag = True  # Biases in projections and layer norms.
    # Positions of tokens. sinusoidal: added to embeddings (Vaswani et al. 2017); learned: added to embeddings, up to
    # n_positions (Gehring et al. 2017); rotary: rotates queries and keys (Su et al. 2021); relative (Raffel et al.
    # 2020) and alibi (Press et al. 2022): added to attention scores, without flash attention; none: no positions.
    positions: Literal["sinusoidal", "learned", "rotary", "relative", "alibi", "none"] = "sinusoidal"
    # Longest sentence in tokens with learned positions, end of sentence included; the other kinds have no limit.
    n_positions: Positive = 1_024
    # Heads of keys and values, a divisor of n_heads (Ainslie et al. 2023); fewer make translation faster. 1:
    # multi-query attention (Shazeer 2019); null: n_heads.
    n_kv_heads: Int | None = None
    qk_norm: Flag = False  # RMS norm of the queries and keys of each head (Henry et al. 2020).
    # Shared embedding matrices (Press and Wolf 2017). all: one for source, target and output; decoder: one for the
    # source, one for target and output; none: three. Separate vocabularies (tokenizer.joint: false) need decoder or
    # none.
    tied_embeddings: Literal["all", "decoder", "none"] = "all"
    # none: a feed-forward network in each layer; wide: one for all encoder layers and none in the decoder (Pires et al.
    # 2023), with a larger d_ff.
    ffn_sharing: Literal["none", "wide"] = "none"
    # Initial weights. xavier: uniform (Glorot and Bengio 2010); scaled: output projections of sub-layers are divided
    # by the root of the number of residual sums (Radford et al. 2019); depth_scaled: all matrices of a layer are
    # divided by the root of its depth (Zhang, Titov and Sennrich 2019).
    init: Literal["xavier", "scaled", "depth_scaled"] = "xavier"
    zero_init_out: Flag = False  # Output projections of sub-layers start at zero (Zhang, Dauphin and Ma 2019).

    @property
    def shape(self) -> dict[str, object]:
        """The settings that the weights depend on, by key; the others matter only in training."""
        of_training = ("dropout", "attention_dropout", "layer_dropout", "word_dropout", "init", "zero_init_out")
        values = vars(self) | {"n_kv_heads": self.n_kv_heads or self.n_heads}
        values["n_positions"] = self.n_positions if self.positions == "learned" else None
        return {f"model.{key}": value for key, value in values.items() if key not in of_training}

    def __post_init__(self) -> None:
        if self.d_model % self.n_heads or (self.d_model // self.n_heads) % 8:
            problem = f"expected a multiple of 8 × model.n_heads ({8 * self.n_heads}), got {self.d_model}"
            raise Contradiction("d_model", problem)
        if self.n_kv_heads is not None and (self.n_kv_heads < 1 or self.n_heads % self.n_kv_heads):
            problem = f"expected a divisor of model.n_heads ({self.n_heads}), got {self.n_kv_heads}"
            raise Contradiction("n_kv_heads", problem)


@section("train")
class TrainConfig:
    """The training procedure. The defaults are those of Vaswani et al. 2017, section 5."""

    # Target tokens of one update, over all micro-batches and GPUs, ends of sentence included.
    batch_tokens: Positive = 25_000
    # Target tokens of one forward and backward pass. auto: on a GPU, the largest size that fits; on a CPU, 4,096.
    micro_batch_tokens: Changeable[Positive | Literal["auto"]] = "auto"
    max_steps: Changeable[Positive] = 100_000  # Updates of the whole training.
    # Time for the whole training, such as 45m: training, validation and evaluation, without preparing the data. The
    # schedule is warmup_stable_decay, laid out over this time from measured speed. It replaces max_steps and
    # stop_after. null: none.
    budget: Duration | None = None
    # Training time such as 30m or 11h; then training saves, averages and evaluates as at max_steps. null: no limit.
    stop_after: Changeable[Duration | None] = None
    # Learning rate after the warm-up. inverse_sqrt: falls with the root of the step (Vaswani et al. 2017); cosine: half
    # a cosine until max_steps (Loshchilov and Hutter 2017); linear: falls linearly until max_steps;
    # warmup_stable_decay: constant, then falls linearly over the last decay_share of max_steps (Hu et al. 2024);
    # constant: no change.
    schedule: Literal["inverse_sqrt", "cosine", "linear", "warmup_stable_decay", "constant"] = "inverse_sqrt"
    # Highest learning rate, at the end of the warm-up. null: (d_model × warmup_steps)^-0.5, as in Vaswani et al. 2017.
    # Lower it for fine-tuning, and if updates are skipped.
    peak_lr: PositiveFloat | None = None
    # Updates of the warm-up, in which the learning rate rises linearly from zero to peak_lr.
    warmup_steps: Positive = 4_000
    # Last fraction of max_steps or of the budget, in which warmup_stable_decay lowers the learning rate.
    decay_share: Fraction = 0.2
    # Last learning rate of cosine, linear and warmup_stable_decay, as a fraction of peak_lr.
    final_lr_share: Fraction = 0.0
    # true: schedule, peak_lr, warmup_steps, decay_share and final_lr_share may change when a run continues. If one has
    # changed, the schedule starts again after the last checkpoint, with its warm-up, and ends at max_steps.
    restart_schedule: Changeable[Flag] = False
    # adam (Kingma and Ba 2015); adamw: Adam with weight_decay (Loshchilov and Hutter 2019); muon: Muon for the matrices
    # of layers and Adam for embeddings, norms and biases (Jordan et al. 2024), at the learning rates of Adam.
    optimizer: Literal["adam", "adamw", "muon"] = "adam"
    # Weight decay of adamw and muon, for the matrices of layers, not for embeddings, biases and norms.
    weight_decay: Probability = 0.0
    muon_momentum: Probability = 0.95  # Decay of Muon's average of gradients.
    adam_beta1: Probability = 0.9  # Decay of Adam's average of gradients.
    adam_beta2: Probability = 0.98  # Decay of Adam's average of squared gradients.
    adam_eps: PositiveFloat = 1e-9  # Number that Adam adds to the denominator.
    # Largest norm of all gradients together; larger ones are scaled down to it. 1.0 for more stability; null: no limit.
    clip_norm: PositiveFloat | None = None
    # Fraction of the target probability that is spread evenly over the vocabulary (Szegedy et al. 2016).
    label_smoothing: Probability = 0.1
    # First part of the training, as a fraction of max_steps or of the budget, in which half of the pairs, chosen
    # again for each epoch, are translated backwards (BiT, Ding et al. 2021). 0: no update.
    bidirectional_share: Probability = 0.0
    # Segment the training text differently in each epoch, by a random choice of pieces: for bpe the probability that a
    # merge is left out, such as 0.1 (BPE-dropout, Provilkov et al. 2020); for unigram the exponent of the
    # probabilities, such as 0.2 (Kudo 2018). null: always the same pieces.
    subword_sampling: Decay | None = None
    # Precision of matrix products; weights stay in fp32. auto: bf16 where the hardware supports it, else fp16 on a GPU
    # and fp32 on a CPU.
    precision: Changeable[Literal["auto", "bf16", "fp16", "fp32"]] = "auto"
    device: Changeable[Device] = "auto"  # Device to train on. auto: a GPU if one can be used, else the CPU.
    # Compilation by torch.compile. auto: on a GPU, where a C compiler is installed.
    compile: Changeable[Flag | Literal["auto"]] = "auto"
    cuda_graphs: Flag = True  # Run small updates as captured CUDA graphs, where the model is compiled.
    # Attention on a GPU. auto: our own kernel for short sentences, where it can run; flash: flash attention of torch,
    # for long sentences.
    attention: Literal["auto", "flash"] = "auto"
    tf32: Changeable[Flag] = False  # Compute fp32 matrix products on a GPU in TF32: faster, with 10 bits of mantissa.
    # Recompute activations in the backward pass instead of storing them: less memory, more time.
    activation_checkpointing: Changeable[Flag] = False
    # Parts in which a GPU computes the logits of a micro-batch, one after the other. 8 for little memory.
    loss_chunks: Changeable[Positive] = 1
    seed: Natural = 1  # Seed of initial weights, order of the data and dropout.
    # Fine-tuning: run folder or model folder whose weights and tokenizer training starts from. null: random weights.
    init_from: InputPath | None = None
    # Fine-tuning: largest number of pieces that each vocabulary of init_from grows by: tags and symbols that it lacks,
    # then characters and pieces that are learned from the new text. 0: it stays as it is.
    grow_vocab: Natural = 0
    # Fine-tuning: BLEU that the model may lose on the validation sets of the run that init_from comes from. Validations
    # then score these, too, and the final model is the best checkpoint within the limit. null: no limit.
    max_loss_on_old: NonNegative | None = None
    validate_every: Changeable[Positive] = 1_500  # Updates between validations.
    validation_beam_size: Changeable[BeamSize] = 1  # Beam size of translations in a validation; 1: greedy search.
    checkpoint_every: Changeable[Positive] = 1_500  # Updates between checkpoints.
    # Number of last checkpoints to keep, in addition to the best ones; at least average_last are kept.
    keep_last: Changeable[Positive] = 5
    keep_best: Changeable[Positive] = 1  # Number of checkpoints with the best validation scores to keep.
    # Checkpoints at multiples of this number of updates are kept for good: a multiple of checkpoint_every. null: none.
    keep_every: Changeable[Int | None] = None
    # Number of last checkpoints that are averaged into the final model, unless the best checkpoint has a better score
    # on the validation set. 0, or with max_loss_on_old: take the best checkpoint by best_by.
    average_last: Changeable[Natural] = 5
    # Decay of a moving average of the weights, such as 0.999; the average is then validated and saved. null: none.
    ema_decay: Decay | None = None
    # Validation score that chooses the best checkpoint and that patience watches. bleu: where two scores are equal, as
    # while BLEU is 0.00, chrF2 decides.
    best_by: Literal["bleu", "chrf", "loss"] = "bleu"
    # Validations in a row without a better score, after which training ends. Those during the warm-up are not counted,
    # and none is while BLEU or chrF2 is still 0.00. null: train until max_steps.
    patience: Changeable[Positive | None] = None
    # Updates in a row with NaN or infinite gradients, after which training rolls back to an earlier checkpoint.
    skips_before_rollback: Changeable[Positive] = 5
    log_every: Changeable[Positive] = 50  # Updates between lines of the log.

    @property
    def last_step(self) -> int:
        """The update after which training ends in any case: `max_steps`, or with a budget one that is never reached."""
        return self.max_steps if self.budget is None else _LARGEST

    @property
    def n_averaged(self) -> int:
        """The number of last checkpoints that are averaged into the final model; 0: it is the best checkpoint."""
        return self.average_last if self.max_loss_on_old is None else 0

    @property
    def schedule_settings(self) -> dict[str, Any]:
        """The settings of the learning rate, by name; the schedule also depends on max_steps."""
        return {name: getattr(self, name) for name in SCHEDULE}

    def __post_init__(self) -> None:
        if self.budget is not None:
            for name, allowed in BUDGET_REPLACES.items():
                if (value := getattr(self, name)) not in allowed:
                    problem = f"is {value}, but train.budget ({self.budget}) replaces it"
                    raise Contradiction(name, problem, "remove one of them", others=["train.budget"])
        if self.weight_decay and self.optimizer == "adam":
            problem = f"is {self.weight_decay}, but adam has no weight decay"
            raise Contradiction("weight_decay", problem, "set train.optimizer to adamw or muon")
        if self.grow_vocab and self.init_from is None:
            problem = f"is {self.grow_vocab}, but training does not start from a model whose vocabulary could grow"
            raise Contradiction("grow_vocab", problem, "set train.init_from, or remove it")
        if self.max_loss_on_old is not None and self.init_from is None:
            problem = f"is {self.max_loss_on_old}, but training does not start from a model"
            raise Contradiction("max_loss_on_old", problem, "set train.init_from, or remove it")
        if self.keep_every is not None and (self.keep_every < 1 or self.keep_every % self.checkpoint_every):
            problem = f"expected a multiple of train.checkpoint_every ({self.checkpoint_every}), got {self.keep_every}"
            raise Contradiction("keep_every", problem)


@section("decode")
class DecodeConfig:
    """Beam search and sampling."""

    beam_size: BeamSize = 4  # Hypotheses that beam search keeps for each sentence; 1: greedy search.
    # Exponent α of the length penalty: larger values prefer longer translations. 0: no length penalty.
    length_penalty: PenaltyExponent = 0.6
    # Divisor of a hypothesis' log-probability, with n tokens. wu: ((5 + n) / 6)^α (Wu et al. 2016); plain: n^α.
    length_penalty_form: Literal["wu", "plain"] = "wu"
    min_length: MinLength = 0  # Shortest translation in tokens, end of sentence not included.
    # Longest translation in tokens, end of sentence included. null: 50 more than the source.
    max_length: MaxLength | None = None
    # No sequence of this number of tokens occurs twice in a translation; 3 blocks loops. 0: no limit.
    no_repeat_ngram_size: Natural = 0
    # Draw translations from the model's distribution instead of searching; beam_size then has no effect.
    sample: Flag = False
    # Sampling: number that logits are divided by. Below 1: fewer surprises; above 1: more variety.
    temperature: Temperature = 1.0
    top_k: Positive | None = None  # Sampling: draw from the k most probable tokens (Fan et al. 2018). null: from all.
    # Sampling: draw from the fewest tokens that together have this probability (Holtzman et al. 2020). null: from all.
    top_p: TopP | None = None
    seed: Int = 1  # Sampling: seed. The same line gets the same translation, at any place in a file.
    # Source tokens that are translated together, padding included; fewer for beams wider than 4.
    batch_tokens: Positive = 4_096
    # Sentences that are translated together. null: limited only by batch_tokens.
    batch_sentences: Positive | None = None

    def __post_init__(self) -> None:
        if self.max_length is not None and self.min_length >= self.max_length:
            most = f"{self.max_length - 1} tokens and the end of sentence"
            problem = f"is {self.min_length}, but decode.max_length ({self.max_length}) allows only {most}"
            raise Contradiction("min_length", problem, others=["decode.max_length"])
        for name, default in (("temperature", 1.0), ("top_k", None), ("top_p", None)):
            value = getattr(self, name)
            if not self.sample and value != default:
                problem = f"is {value}, but only sampling uses it"
                raise Contradiction(name, problem, "set decode.sample", others=["decode.sample"])

    def changed(self, changes: Mapping[str, Any]) -> DecodeConfig:
        """Return a copy with some settings changed. A beam size switches sampling off.

        Raises:
            ConfigError: a setting is unknown, has a wrong value, or contradicts another one.
        """
        if self.sample and "beam_size" in changes:
            changes = {"sample": False, "temperature": 1.0, "top_k": None, "top_p": None, **changes}
        return replace(self, **changes)


class DecodeChanges(TypedDict, total=False):
    """Settings of DecodeConfig as keyword arguments, for type checkers."""

    beam_size: int
    length_penalty: float
    length_penalty_form: Literal["wu", "plain"]
    min_length: int
    max_length: int | None
    no_repeat_ngram_size: int
    sample: bool
    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int
    batch_tokens: int
    batch_sentences: int | None


@section("eval")
class EvalConfig:
    """Scoring."""

    # Tokenizer of BLEU. auto: zh for Chinese, ja-mecab and ko-mecab for Japanese and Korean (install
    # 'mt-train[ja]' or 'mt-train[ko]'; char without them), char for other languages written without spaces, 13a for all
    # others; the run then keeps what auto means at its first start. flores101 and flores200 download a SentencePiece
    # model when they are first used.
    bleu_tokenize: Literal["auto"] | BleuTokenizer = "auto"


@section()
class RunConfig:
    """All settings of one run."""

    name: Changeable[Name]  # Name of the run; its folder is runs/NAME.
    # Code of the source language, such as en. null: each corpus has its own.
    src_lang: Lang | None = None
    tgt_lang: Lang | None = None  # Code of the target language, such as de. null: each corpus has its own.
    data: Section[DataConfig]
    tokenizer: Section[TokenizerConfig] = TokenizerConfig()
    model: Section[ModelConfig] = ModelConfig()
    train: Section[TrainConfig] = TrainConfig()
    decode: Changeable[Section[DecodeConfig]] = DecodeConfig()
    eval: Section[EvalConfig] = EvalConfig()

    folder = ""  # that of the file which the config was read from; not a setting

    def __post_init__(self) -> None:
        if self.src_lang == self.tgt_lang is not None:
            raise Contradiction("tgt_lang", f"is the same as src_lang: {self.src_lang}")
        self._check_languages()
        # With init_from, the comparison with that model names all that contradicts it.
        if self.train.init_from is None and not self.tokenizer.joint and self.model.tied_embeddings == "all":
            problem = "is all, but the vocabularies are separate (tokenizer.joint is false): they cannot share a matrix"
            others = ["tokenizer.joint"]
            raise Contradiction("model.tied_embeddings", problem, "set it to decoder or none", others=others)
        if self.train.bidirectional_share:
            self._check_bidirectional()
        longest, n_positions = self.data.max_tokens, self.model.n_positions
        sizes = {
            "model.n_positions": (n_positions if self.model.positions == "learned" else "auto", "have no positions"),
            "train.batch_tokens": (self.train.batch_tokens, "not fit"),
            "train.micro_batch_tokens": (self.train.micro_batch_tokens, "not fit"),
        }
        for name, (size, trouble) in sizes.items():
            if isinstance(size, int) and size < longest:
                problem = f"is {size}, smaller than data.max_tokens ({longest}): the longest sentence would {trouble}"
                raise Contradiction(name, problem, f"raise {name} or lower data.max_tokens")

    def _check_bidirectional(self) -> None:
        obstacles = {
            "the vocabularies are separate (tokenizer.joint is false)": not self.tokenizer.joint,
            "there are several directions": len(self.directions) > 1,
            "source sentences begin with pieces of languages": bool(self.language_pieces),
            "source sentences begin with tags": bool(self.data.tags),
        }
        for obstacle in [reason for reason, is_true in obstacles.items() if is_true]:
            problem = f"is {self.train.bidirectional_share}, but {obstacle}"
            raise Contradiction("train.bidirectional_share", problem, "remove it")

    def _check_languages(self) -> None:
        corpora = {entry.place: entry.corpus for entry in self.entries.values()}
        for side in ("src_lang", "tgt_lang"):
            if getattr(self, side) is None:
                lacking = [key for key, corpus in corpora.items() if getattr(corpus, side) is None]
                if len(lacking) == len(corpora):
                    raise Contradiction(side, "is missing", "give it for the run, or for each corpus")
                if lacking:
                    problem = f"has no {side}, and neither has the run"
                    raise Contradiction(lacking[0], problem, f"add {side} to it, or {side} to the run as the default")
        trained = set(chain.from_iterable(one.pieces for one in self.directions))
        for corpus, direction, _, key in self.entries.values():
            if direction.src == direction.tgt:
                raise Contradiction(key, f"has the same source and target language: {direction.src}")
            # They are parts of pieces and of file names.
            if len(self.all_directions) > 1 and not re.fullmatch(r"[\w-]+-[\w-]+", str(direction)):
                problem = f"has languages that are not codes: {direction.src} and {direction.tgt}"
                raise Contradiction(key, problem, "write codes such as de, zh_Hans or pt-BR")
            for piece, lang, is_needed in zip(
                direction.pieces, reversed(direction), (True, self.data.source_language_piece), strict=True
            ):
                if is_needed and piece not in trained:
                    how = "into" if lang == direction.tgt else "from"
                    fix = "correct the language, remove this set, or add training text"
                    raise Contradiction(key, f"no corpus in data.train translates {how} {lang}", fix)
            if corpus.tag in self.language_pieces:
                problem = f"is {corpus.tag}, the piece of a language, which mt adds itself"
                raise Contradiction(f"{key}.tag", problem, "remove it")
        for symbol in self.tokenizer.user_symbols:
            if symbol in self.language_pieces:
                raise Contradiction("tokenizer.user_symbols", f"has {symbol}, the piece of a language", "remove it")
        if clashing := [name for name, one in self.tests.items() if one.is_reversed and name in self.data.test]:
            problem = "is the name of the other direction of another test set"
            raise Contradiction(f"data.test.{clashing[0]}", problem, "choose another name")

    # --- Corpora and their languages

    @property
    def entries(self) -> dict[str, Entry]:
        """Each corpus in each of its directions, by its key in the config; training corpora come first.

        The reverse of a corpus has the direction after its key, as has each of several validation sets.
        """
        found: dict[str, Entry] = {}
        for key, corpus in {f"data.train.{i}": corpus for i, corpus in enumerate(self.data.train)}.items():
            found |= self._directions_of(key, corpus)
        places = (
            [f"data.valid.{i}" for i in range(len(self.data.valid))]
            if isinstance(self.data.valid, tuple)
            else ["data.valid"]
        )
        corpora = zip(places, self.data.valid_corpora, strict=True)
        sets = [entry for place, one in corpora for entry in self._directions_of(place, one).values()]
        for entry in sets:
            key = base = "data.valid" if len(sets) == 1 else f"data.valid.{entry.direction}"
            for number in count(2):
                if key not in found:
                    break
                key = f"{base}.{number}"
            found[key] = entry
        for name, corpus in self.data.test.items():
            found |= self._directions_of(f"data.test.{name}", corpus)
        return found

    def _directions_of(self, key: str, corpus: Corpus) -> dict[str, Entry]:
        # An empty text stands for a missing language, which _check_languages refuses.
        direction = Direction(corpus.src_lang or self.src_lang or "", corpus.tgt_lang or self.tgt_lang or "")
        found = {key: Entry(corpus, direction, False, key)}
        if corpus.both_directions:
            found[f"{key}.{direction.reversed}"] = Entry(corpus, direction.reversed, True, key)
        return found

    def _entries_of(self, role: str, prefix: str) -> dict[str, Entry]:
        return {key.removeprefix(prefix): one for key, one in self.entries.items() if key.startswith(f"data.{role}")}

    @property
    def training(self) -> list[Entry]:
        """The training corpora, each in each of its directions."""
        return [*self._entries_of("train.", "").values()]

    @property
    def valid_sets(self) -> dict[str, Entry]:
        """The validation sets: `valid`, or names such as `valid.en-de`."""
        return self._entries_of("valid", "data.")

    @property
    def tests(self) -> dict[str, Entry]:
        """The test sets by name; the reverse of one has the direction after its name."""
        return self._entries_of("test.", "data.test.")

    @property
    def directions(self) -> tuple[Direction, ...]:
        """The directions of the training corpora, each once."""
        return tuple(dict.fromkeys(entry.direction for entry in self.training))

    @property
    def all_directions(self) -> tuple[Direction, ...]:
        """The directions of all corpora, those of training first, each once."""
        return tuple(dict.fromkeys(entry.direction for entry in self.entries.values()))

    @property
    def language_pieces(self) -> tuple[str, ...]:
        """All pieces of languages: those of target languages, then those of source languages, as far as wanted."""
        targets, sources = (dict.fromkeys(side) for side in zip(*(one.pieces for one in self.directions), strict=True))
        return (*(targets if self.has_target_pieces else ()), *(sources if self.data.source_language_piece else ()))

    @property
    def kept_pieces(self) -> dict[str, bool]:
        """The settings that say which pieces of languages a model reads, by name in `data`."""
        return {
            "target_language_piece": self.has_target_pieces,
            "source_language_piece": self.data.source_language_piece,
        }

    @property
    def has_target_pieces(self) -> bool:
        setting = self.data.target_language_piece
        return len({one.tgt for one in self.directions}) > 1 if setting == "auto" else setting

    def pieces_of(self, direction: Direction) -> tuple[str, ...]:
        """Return the pieces before each source sentence that is translated in this direction."""
        return tuple(piece for piece in direction.pieces if piece in self.language_pieces)

    def weights(self, sizes: Sequence[float]) -> list[float]:
        """Return the copies of each pair in an epoch, for each training corpus.

        Args:
            sizes: the number of pairs that are kept of each.
        """
        n_pairs = dict.fromkeys(self.directions, 0.0)
        for entry, size in zip(self.training, sizes, strict=True):
            n_pairs[entry.direction] += size
        # n^(1/T) of the n pairs. A direction may have lost all its pairs.
        copies = {one: max(n, 1.0) ** (1 / self.data.mix_temperature - 1) for one, n in n_pairs.items()}
        n_mixed = sum(n * copies[one] for one, n in n_pairs.items())
        scale = sum(n_pairs.values()) / n_mixed if n_mixed else 1.0
        return [entry.corpus.weight * scale * copies[entry.direction] for entry in self.training]

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbols that are one piece each and never split: tags of corpora and tokenizer.user_symbols."""
        return tuple(dict.fromkeys((*self.data.tags, *self.tokenizer.user_symbols)))
