"""The typed content of report.json. Scores, fractions and times are unrounded.

Fields have the names of the keys in report.json. A field with its default value is not written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from statistics import fmean
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, SkipValidation

from mt.units import finite, format_duration, listed

LARGEST_P = 0.05  # below it, a difference is called significant
BETTER, WORSE, NO_DIFFERENCE = "better", "worse", f"no difference at p < {LARGEST_P}"
TEST_NAMES = {"randomisation": "paired approximate randomisation", "bootstrap": "paired bootstrap resampling"}
SAMPLE_NAMES = {"randomisation": "shuffles", "bootstrap": "bootstrap samples"}
# Figures of compared systems: key → its name.
FIGURES = {
    "steps": "updates",
    "n_tgt_tokens": "target tokens",
    "train_seconds": "training time",
    "n_parameters": "parameters",
}

# Text from data and file names may contain half a surrogate pair, which pydantic's validation of strings rejects.
Line: TypeAlias = Annotated[str, SkipValidation]
Values: TypeAlias = dict[Line, Any]  # settings, versions and other values that a page lists unchanged

_HALF_PAIRS = re.compile("[\ud800-\udfff]")


class Facts(BaseModel):
    """Values of report.json; `model_validate` reads them from nested dicts and lists, and ignores unknown keys."""

    model_config = ConfigDict(frozen=True)

    def written(self, **options: Any) -> dict[str, Any]:
        """Return the values as report.json has them.

        Args:
            options: arguments of `model_dump`, such as `include`.
        """
        return self.model_dump(exclude_defaults=True, **options)


class Languages(Facts):
    src_lang: Line | None = None
    tgt_lang: Line | None = None


def facts_json(facts: Mapping[str, Any]) -> str:
    """Return facts as JSON: NaN and infinity become null, half a surrogate pair becomes an escape."""
    text = json.dumps(finite(facts), indent=1, ensure_ascii=False, allow_nan=False)
    return _HALF_PAIRS.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n"


def valid_title(name: str) -> str:
    """Return the name of a validation set in reports: validation set en-de, for valid.en-de."""
    return "validation set" + name.removeprefix("valid").replace(".", " ", 1)


def short_name(metric: str) -> str:
    """Return the metric's name without the part in brackets."""
    return metric.partition(" (")[0]


# --------------------------------------------------------------------------------------------------- a prepared corpus


class Pair(Facts):
    src: Line
    tgt: Line
    line: int
    source: int = 0  # index among the sources
    note: Line | None = None


class ChangeExample(Facts):
    side: str  # src or tgt
    line: int
    before: Line
    after: Line


class Counted(Facts):
    count: int
    examples: list[Pair | ChangeExample]


class TrainingText(Languages):
    source: Line  # its description
    files: list[Line] = []  # if there are several on a side
    skipped: dict[Line, int] = {}  # lines and units without a pair, by kind
    tag: Line | None = None
    weight: float = 1.0
    pairs_read: int
    pairs_kept: int
    removed: dict[Line, Counted]  # by rule
    changed: dict[Line, Counted]  # by kind of change


class TrainingCounts(Facts):
    pairs_read: int
    pairs_kept: int
    src_tokens: int
    tgt_tokens: int
    src_tokens_per_tgt_token: float | None
    longest_src: int  # tokens
    longest_tgt: int
    sources: list[TrainingText]


class HeldOutSet(Languages):
    """A validation or test set."""

    source: Line
    pairs: int
    empty: int | None = None  # pairs with an empty side
    skipped: dict[Line, int] = {}  # lines and units without a pair, by kind
    src_tokens: int | None = None
    tgt_tokens: int | None = None


class Histogram(Facts):
    edges: list[float | None]  # one more than counts; null as the last one: no limit
    counts: list[int]


class LengthCounts(Facts):
    tokens: dict[str, list[int]]  # src, tgt: pairs with 1, 2, 3, … tokens
    ratio: Histogram  # source tokens for each target token


class PreparedData(Facts):
    fingerprint: Line
    made_at: str  # ISO 8601
    src_lang: Line
    tgt_lang: Line
    command: Line | None = None
    train: TrainingCounts
    valid: HeldOutSet | None = None  # all validation sets together
    valid_sets: dict[Line, HeldOutSet] = {}  # each of several
    test: dict[Line, HeldOutSet] = {}
    lengths: LengthCounts | None = None
    overlap: dict[Line, dict[str, dict[str, int]]] = {}  # set → side → {ngrams, found}
    # kind, vocab_size (of separate vocabularies: [source, target]) and other settings; pieces: {src, tgt, both,
    # neither}, of a joint vocabulary; src, tgt: figures and longest_pieces
    tokenizer: Values = {}
    findings: list[Values] = []  # level, check, key, problem and fix of each
    samples: list[Pair] = []  # of the kept pairs
    seconds: dict[Line, float] = {}  # by stage
    peak_memory_bytes: int | None = None
    settings: Values = {}
    versions: Values = {}
    hardware: Values = {}

    @property
    def held_out(self) -> dict[str, HeldOutSet]:
        sets = self.valid_sets or ({} if self.valid is None else {"valid": self.valid})
        valid = {valid_title(name): one for name, one in sets.items()}
        return valid | {f"test set {name}": one for name, one in self.test.items()}

    @property
    def tokenizer_values(self) -> Values:
        """The settings of the tokenizer, without the figures of its text."""
        values = self.tokenizer.items()
        return {key.replace("_", " "): value for key, value in values if not isinstance(value, dict)}

    @property
    def vocab_sizes(self) -> list[int]:
        """The size of the joint vocabulary, or of source's and target's."""
        size = self.tokenizer["vocab_size"]
        return [size] if isinstance(size, int) else size

    @property
    def sides(self) -> dict[str, Values]:
        """Side → figures of its text in tokens."""
        return {side: self.tokenizer[side] for side in ("src", "tgt") if side in self.tokenizer}

    @property
    def directions(self) -> list[tuple[str, str]]:
        """The languages of the training text, each pair of them once."""
        found = [(one.src_lang or self.src_lang, one.tgt_lang or self.tgt_lang) for one in self.train.sources]
        return list(dict.fromkeys(found))

    def lang(self, side: str, corpus: Languages | None = None) -> str:
        """Return the language of a side of a corpus; of all text together if there is one, else the side's name."""
        if corpus is not None and corpus.src_lang and corpus.tgt_lang:
            return {"src": corpus.src_lang, "tgt": corpus.tgt_lang}[side]
        names = {"src": (self.src_lang, "source"), "tgt": (self.tgt_lang, "target")}
        return names[side][corpus is None and len(self.directions) > 1]


# --------------------------------------------------------------------------------------------------- an evaluation


class Origin(Facts):
    """The provenance of a report; added when it is written."""

    kind: str = ""
    format_version: int = 0
    made_at: str = ""  # ISO 8601
    command: Line = ""
    commit: Line | None = ""  # of mt
    versions: Values = {}


class Interval(Facts):
    """The mean of a score over bootstrap samples, and an interval that contains 95% of them."""

    mean: float
    low: float
    high: float
    n_samples: int


class MetricScore(Facts):
    """A score. In a list of systems, name and signature are given once for the list."""

    name: Line = ""  # BLEU, chrF2, chrF2++, BLEU-lc, TER, BLEU 2017 (…): sacreBLEU's name if it is unique
    score: float  # 0 to 100; TER may be above 100
    confidence: Interval | None = None
    signature: Line = ""  # sacreBLEU's: everything but the text that the score depends on

    def __str__(self) -> str:
        """Return the rounded score, with ± half the width of its interval."""
        interval = f" ± {(self.confidence.high - self.confidence.low) / 2:.2f}" if self.confidence else ""
        return f"{self.score:.2f}{interval}"


class ScoredSet(Languages):
    """The scores of a set. Its languages are given if the model has several directions."""

    n_lines: int
    n_references: int
    scores: list[MetricScore]
    in_language: float | None = None  # fraction of the lines, as far as they are long enough, in the target language
    is_zero_shot: bool = False  # the model was not trained in this direction

    @property
    def direction(self) -> str:
        return f"{self.src_lang}-{self.tgt_lang}" if self.src_lang else ""

    def score_of(self, metric: str) -> float | None:
        return next((one.score for one in self.scores if one.name == metric), None)

    def __str__(self) -> str:
        return f"{', '.join(f'{short_name(one.name)} {one}' for one in self.scores)} ({self.n_lines:,} lines)"


class PairedScore(Facts):
    """One metric of a system, compared with that of a baseline."""

    name: Line
    score: float
    baseline_score: float
    difference: float
    p: float  # an estimate of how often chance alone makes a larger difference
    verdict: str  # on the system: BETTER, WORSE or NO_DIFFERENCE
    signature: Line  # sacreBLEU's, including the test, its samples and the seed
    mean: float | None = None  # of the system's score over bootstrap samples; low and high contain 95% of them
    low: float | None = None
    high: float | None = None


class PairedSet(Facts):
    scores: list[PairedScore]
    verdict: Line


class BaselineTest(Facts):
    system: Line
    baseline: Line
    test: str  # a key of TEST_NAMES
    n_samples: int
    test_sets: dict[Line, PairedSet]


class Bucket(Facts):
    """Lines of similar length, or with similarly rare words."""

    bucket: str
    begin: int
    n_lines: int
    bleu: float
    chrf: float
    baseline_bleu: float | None = None
    baseline_chrf: float | None = None


class FlaggedLines(Facts):
    n_lines: int
    lines: list[int]  # the first ones
    baseline_n_lines: int | None = None


class Sentence(Facts):
    line: int
    source: Line | None = None
    reference: Line
    hypothesis: Line
    chrf: float
    bleu: float
    baseline: Line | None = None
    baseline_chrf: float | None = None
    baseline_bleu: float | None = None
    chrf_difference: float | None = None
    oddities: list[str]  # quality flags


class NumbersKept(Facts):
    n: int
    n_kept: int
    kept_share: float | None
    baseline_n_kept: int | None = None
    baseline_kept_share: float | None = None
    n_lines: int  # lines with a missing number
    lines: list[int]  # the first ones
    n_added: int = 0  # numbers of the translations that neither source nor reference has
    baseline_n_added: int | None = None
    n_added_lines: int = 0  # lines with such a number
    added_lines: list[int] = []  # the first ones
    examples: list[Sentence] = []  # the first sentences with a missing or an added number


class Analysis(Facts):
    beside: str  # source or reference: the text that lengths are compared with
    unit: str = "words"  # of that text: words, or characters if it has no spaces between words
    tgt_unit: str = "words"  # the same for the references
    by_length: list[Bucket]
    by_rarest_word: list[Bucket] | None = None
    oddities: dict[str, FlaggedLines]  # quality flag → lines
    numbers: NumbersKept
    length_ratio: float
    baseline_length_ratio: float | None = None
    worst: list[Sentence]
    best: list[Sentence]
    gained: list[Sentence] | None = None  # better than the baseline
    lost: list[Sentence] | None = None  # worse than the baseline

    @property
    def has_baseline(self) -> bool:
        return self.baseline_length_ratio is not None


Curve: TypeAlias = dict[str, list[int | float | None]]  # column → its values, one per step


class TrainingCurves(Facts):
    curves: dict[str, Curve]  # train, valid
    samples: list[Values]  # source, reference, translations: [{step, translation}]


class ModelManifest(Facts):
    description: Line | None = None
    settings: Values
    changed: list[Line]  # settings that differ from the defaults
    model: Values
    starts: list[Values]  # started_at, command, commit, versions, hardware, as far as known
    corpus: Values  # fingerprint; if the corpus still exists, train: {sources}, valid and test as in PreparedData
    translation: Values = {}

    @property
    def chosen_settings(self) -> Values:
        """The settings that differ from the defaults, and the languages, in the order of `settings`."""
        chosen = {*self.changed, "src_lang", "tgt_lang"}
        return {key: value for key, value in self.settings.items() if key in chosen}


class TrainingFigures(Facts):
    """The known figures of training."""

    steps: int | None = None
    n_tgt_tokens: int | None = None
    train_seconds: float | None = None
    n_parameters: int | None = None


class Evaluation(TrainingFigures, Origin):
    system: Line
    name: Line | None = None  # of the run
    src_lang: Line | None = None
    tgt_lang: Line | None = None
    n_src_tokens: int | None = None  # of training
    src_fill: float | None = None  # packing efficiency: fraction of positions that held a token
    tgt_fill: float | None = None
    basis: Values | None = None  # everything but the text that translations depend on: averaged_steps, decode
    bleu_tokenizer: str = "13a"
    best: Values | None = None  # step of the best checkpoint, and its score: bleu, chrf or loss
    translations: dict[Line, str] | None = None  # set → checksum of its file in the run folder
    texts: dict[Line, str] | None = None  # set → checksum of its source text and references
    test_sets: dict[Line, ScoredSet]
    valid: ScoredSet | None = None
    valid_sets: dict[Line, ScoredSet] = {}  # if there are several
    comparison: BaselineTest | None = None
    warnings: dict[Line, list[Line]] = {}
    notes: list[Line] = []
    analysis: dict[Line, Analysis] = {}
    sentences: dict[Line, list[Sentence]] = {}
    training: TrainingCurves | None = None
    manifest: ModelManifest | None = None

    def __str__(self) -> str:
        compared = self.comparison.test_sets if self.comparison else {}
        lines = [f"{name}: {one}" for name, one in self.scored_sets.items()]
        return "\n".join([*lines, *(f"{name}: {one.verdict}" for name, one in compared.items())])

    def __repr__(self) -> str:
        return f"<Evaluation of {self.system}: {'; '.join(str(self).splitlines())}>"

    @property
    def scored_sets(self) -> dict[str, ScoredSet]:
        valid = {valid_title(name): one for name, one in self.validated.items()}
        return self.test_sets | valid

    @property
    def validated(self) -> dict[str, ScoredSet]:
        """The validation sets by name."""
        return self.valid_sets or ({"valid": self.valid} if self.valid else {})

    @property
    def by_direction(self) -> list[list[str]]:
        """A table of the scores in each direction, if there are several, with its header and the means."""
        return direction_rows(self.validated, self.test_sets)

    @property
    def warning_lines(self) -> list[str]:
        """The warnings, each with the name of its test set if there are several."""
        prefixes = {name: f"{name}: " if len(self.test_sets) > 1 else "" for name in self.warnings}
        return [f"{prefixes[name]}{line}" for name, lines in self.warnings.items() for line in lines]


def direction_rows(validated: Mapping[str, ScoredSet], tests: Mapping[str, ScoredSet]) -> list[list[str]]:
    """Return a table of validation and test sets with their directions: scores, means, lines in the target language.

    It is empty if there is one direction. Zero-shot sets do not count for the means.
    """
    rows = [["set", "direction", "BLEU", "chrF2", "in the language", ""]]
    for sets in (validated, tests):
        scored = {name: one for name, one in sets.items() if one.direction}
        scores = {name: [one.score_of(metric) for metric in ("BLEU", "chrF2")] for name, one in scored.items()}
        for name, one in scored.items():
            share = "–" if one.in_language is None else f"{one.in_language:.1%}"
            note = "zero-shot" if one.is_zero_shot else ""
            rows.append([name, one.direction, *map(_rounded, scores[name]), share, note])
        trained = [scores[name] for name, one in scored.items() if not one.is_zero_shot]
        if len(trained) > 1:
            means = (None if None in column else fmean(column) for column in zip(*trained, strict=True))
            rows.append(["mean", "", *map(_rounded, means), "", ""])
    return rows if len(rows) > 1 else []


def _rounded(score: float | None) -> str:
    return "–" if score is None else f"{score:.2f}"


# --------------------------------------------------------------------------------------------------- a comparison


class SystemFigures(TrainingFigures):
    name: Line

    def figure(self, key: str) -> str:
        """Return the value of a key of FIGURES, rounded, as text."""
        value = getattr(self, key)
        if value is None:
            return "–"
        return format_duration(value) if key == "train_seconds" else f"{value:,}"


class PairedSystems(Facts):
    first: int
    second: int
    p: float
    verdict: str  # on the first


class ComparedMetric(Facts):
    """One metric of all systems. Lists are in the order of the systems; ranking and pairs contain their indices."""

    name: Line
    signature: Line
    test_signature: Line
    scores: list[MetricScore]
    groups: list[list[str]]  # letters; two systems share one if they do not differ significantly
    ranking: list[int]  # best first
    pairs: list[PairedSystems]
    verdict: Line


class ComparedSet(Facts):
    n_lines: int
    metrics: list[ComparedMetric]

    @property
    def ranking(self) -> list[int]:
        """The systems by the first metric, best first."""
        return self.metrics[0].ranking

    @property
    def verdicts(self) -> list[str]:
        """The verdicts, each with the metrics that agree on it."""
        found: dict[str, list[str]] = {}
        for metric in self.metrics:
            found.setdefault(metric.verdict, []).append(short_name(metric.name))
        return [f"{verdict}, by {listed(names)}." for verdict, names in found.items()]


class SystemComparison(Origin):
    systems: list[SystemFigures]
    test: str  # a key of TEST_NAMES
    n_samples: int
    test_sets: dict[Line, ComparedSet]
    differences: dict[Line, list[Any]] | None = None  # setting → its value in each system
    training: list[TrainingCurves | None]

    def __str__(self) -> str:
        return "\n".join(f"{name}: {' '.join(one.verdicts)}" for name, one in self.test_sets.items())

    def __repr__(self) -> str:
        return f"<{self.title}: {'; '.join(str(self).splitlines())}>"

    @property
    def figures(self) -> dict[str, str]:
        """The entries of FIGURES that at least one system has."""
        return {
            key: name for key, name in FIGURES.items() if any(getattr(one, key) is not None for one in self.systems)
        }

    @property
    def title(self) -> str:
        names = [system.name for system in self.systems]
        return f"Comparison of {listed(names) if len(names) <= 3 else f'{len(names)} systems'}"
