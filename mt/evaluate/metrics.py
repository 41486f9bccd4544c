"""The metrics that translations are scored by: sacreBLEU's, with its signatures, and the BLEU of the papers of 2017."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from sacrebleu.significance import _bootstrap_resample

from mt.errors import ConfigError, DataError

Rows: TypeAlias = "npt.NDArray[np.float64]"  # sacreBLEU's counts: [lines, counts of the metric]

METRICS = ("bleu", "chrf", "chrf++", "bleu-lc", "ter", "bleu-2017")  # as they are asked for, and in the order given
DEFAULT_METRICS = ("bleu", "chrf", "chrf++", "bleu-lc")
SEED = 12_345  # sacreBLEU's own default
FEWEST_SAMPLES = 100  # with fewer, an interval of 95% leaves out nothing
_LINES_AT_ONCE = 5_000  # whose n-grams are in memory together
_MOST_BYTES = 8 << 30  # that sacreBLEU's samples, which it draws all at once, may take

# What a metric is called in tables and reports; sacreBLEU calls three of them BLEU.
_NAMES = {
    "bleu": "BLEU",
    "chrf": "chrF2",
    "chrf++": "chrF2++",
    "bleu-lc": "BLEU-lc",
    "ter": "TER",
    "bleu-2017": "BLEU 2017 (tokenised, compounds split; not comparable with the others)",
}
_MAKERS: dict[str, Callable[..., Any]] = {
    # `force` keeps sacreBLEU from complaining on standard error; warnings.py does, and not of BLEU alone.
    "bleu": lambda **given: BLEU(force=True, **given),
    "chrf": lambda **given: CHRF(**given),
    "chrf++": lambda **given: CHRF(word_order=2, **given),
    "bleu-lc": lambda **given: BLEU(lowercase=True, force=True, **given),
    "ter": lambda **given: TER(**given),
    "bleu-2017": lambda **given: BLEU(tokenize="none", force=True, **given),
}
_COMPOUND = re.compile(r"(\S)-(\S)")


@dataclass(frozen=True)
class Confidence:
    """What bootstrap resampling says of a score: its mean, and an interval that holds 95% of the samples.

    sacreBLEU writes it as mean ± half width.
    """

    mean: float
    low: float
    high: float
    n_samples: int


@dataclass(frozen=True)
class Score:
    """One figure for a whole test set."""

    name: str  # sacreBLEU's where that tells metrics apart: BLEU, chrF2, chrF2++, BLEU-lc, TER, BLEU 2017 (…)
    score: float  # 0 to 100, unrounded; TER may be above 100
    signature: str  # sacreBLEU's: everything that the figure depends on, besides the text
    confidence: Confidence | None = None


class Metric:
    """A metric on one test set. What it needs of the references is counted once."""

    def __init__(self, key: str, references: Sequence[Sequence[str]], tgt_lang: str = "de") -> None:
        """
        Args:
            key: one of METRICS.
            references: a list for each set of them, all of one length.
            tgt_lang: whose rules bleu-2017 tokenises by; the others do without.
        Raises:
            ConfigError: bleu-2017 without sacremoses.
        """
        self.key = key
        self.name = _NAMES[key]
        self.more_is_better = key != "ter"
        self._signature_suffix = ""
        self._read: Callable[[str], str] | None = None
        if key == "bleu-2017":
            self._read, self._signature_suffix = _splitter_of_2017(tgt_lang)
        self.n_lines = len(references[0])
        self._references = references
        self._uncached = _MAKERS[key]()

    @functools.cached_property
    def sacrebleu(self) -> Any:
        """sacreBLEU's metric with all that it counts in the references: up to 50 KB a line."""
        return _MAKERS[self.key](references=[self.text(lines) for lines in self._references])

    def text(self, lines: Sequence[str]) -> Sequence[str]:
        """What sacreBLEU is given of hypotheses or references."""
        return lines if self._read is None else [self._read(line) for line in lines]

    def score(self, hypotheses: Sequence[str], n_samples: int = 0) -> Score:
        """The figure for the whole set, with a confidence interval from so many bootstrap samples, if any.

        Raises:
            ConfigError: samples that are too few, or too many for the memory.
        """
        if n_samples:
            check_samples(n_samples, self.n_lines, self.bytes_of_a_bootstrapped_line)
        rows = self.statistics(hypotheses)
        with sacrebleu_quiet(SEED):
            result = self._uncached._aggregate_and_compute(rows)
            if n_samples:
                self._uncached.n_bootstrap = n_samples
                self._uncached.seed, samples = _bootstrap_resample(rows, self._uncached, n_samples)
                result.estimate_ci(samples)
        confidence = None
        if n_samples:
            mean, half_width = float(result._mean), float(result._ci)
            confidence = Confidence(mean, mean - half_width, mean + half_width, n_samples)
        return Score(self.name, float(result.score), self.signature(self._uncached.get_signature()), confidence)

    def statistics(self, hypotheses: Sequence[str]) -> list[list[float]]:
        """sacreBLEU's counts of each line; a score is computed from their sums over some lines."""
        rows: list[list[float]] = []
        for start in range(0, self.n_lines, _LINES_AT_ONCE):
            part = slice(start, start + _LINES_AT_ONCE)
            references = [self.text(lines[part]) for lines in self._references]
            rows += self._uncached._extract_corpus_statistics(self.text(hypotheses[part]), references)
        return rows

    def rows(self, hypotheses: Sequence[str]) -> Rows:
        """The same as numbers that are quickly added, and exact up to 2^53."""
        return np.array(self.statistics(hypotheses), dtype=np.float64)

    def score_of(self, sums: Sequence[float]) -> float:
        """The figure that sums of statistics give."""
        return float(self._uncached._compute_score_from_stats(list(sums)).score)

    def signature(self, of_sacrebleu: Any) -> str:
        """sacreBLEU's signature, with what was done to the text before sacreBLEU got it."""
        return f"{of_sacrebleu}{self._signature_suffix}"

    @property
    def bytes_of_a_bootstrapped_line(self) -> int:
        """Memory for a line of a sample: a number of 8 bytes, and its statistics in float32."""
        n_statistics = {"bleu": 10, "chrf": 18, "chrf++": 24, "bleu-lc": 10, "ter": 2, "bleu-2017": 10}
        return 8 + 4 * n_statistics[self.key]


def metric_keys(names: Sequence[str] | None) -> list[str]:
    """The metrics asked for, each once, in the order of METRICS; the default ones for None.

    `all` stands for every metric that can be computed here.

    Raises:
        ConfigError: a name is not known, or names a metric that needs a package which is not installed.
    """
    if not names:
        return list(DEFAULT_METRICS)
    for name in names:
        if name not in (*METRICS, "all"):
            if "," in name:
                each = " ".join(f"--metric {part.strip()}" for part in name.split(",") if part.strip())
                raise ConfigError("metric", f"expected one name, got {name}", f"give {each}")
            close = difflib.get_close_matches(name.lower(), (*METRICS, "all"), n=1)
            hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(METRICS)}, all"
            raise ConfigError("metric", f"no metric is called {name}, {hint}")
    if "bleu-2017" in names:
        _require_sacremoses()
    every = [key for key in METRICS if key != "bleu-2017" or _has_sacremoses()]
    return [key for key in METRICS if key in names or ("all" in names and key in every)]


def reference_sets(references: Sequence[str] | Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """References as a list of sets, of which each has a line for each line: one set may be given as it is."""
    if not references or isinstance(references[0], str):
        return [cast("Sequence[str]", references)]
    return list(references)


def check_parallel(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """
    Raises:
        DataError: different numbers of lines, or none at all.
    """
    for number, lines in enumerate(references, start=1):
        if len(hypotheses) != len(lines):
            which = f" in set {number}" if len(references) > 1 else ""
            raise DataError(
                f"{len(hypotheses):,} hypotheses and {len(lines):,} references{which}: scoring needs one line for each "
                "line"
            )
    if not hypotheses:
        raise DataError("nothing to score: there are no lines")


def check_samples(n_samples: int, n_lines: int, bytes_of_a_line: int) -> None:
    """
    Raises:
        ConfigError: samples that are too few, or too many for the memory.
    """
    if n_samples < FEWEST_SAMPLES:
        raise ConfigError("samples", f"expected at least {FEWEST_SAMPLES}, got {n_samples}")
    n_bytes = n_samples * n_lines * bytes_of_a_line
    if n_bytes > _MOST_BYTES:
        most = _MOST_BYTES // (n_lines * bytes_of_a_line)
        raise ConfigError(
            "samples",
            f"{n_samples:,} of {n_lines:,} lines take {n_bytes / 1e9:.0f} GB of memory",
            f"give {most:,} or fewer",
        )


@contextmanager
def sacrebleu_quiet(seed: int) -> Iterator[None]:
    """sacreBLEU without its log, and with this seed, which it takes from the environment."""
    logger = logging.getLogger("sacrebleu")
    level, before = logger.level, os.environ.get("SACREBLEU_SEED")
    logger.setLevel(logging.CRITICAL)
    os.environ["SACREBLEU_SEED"] = str(seed)
    try:
        yield
    finally:
        logger.setLevel(level)
        if before is None:
            del os.environ["SACREBLEU_SEED"]
        else:
            os.environ["SACREBLEU_SEED"] = before


# --------------------------------------------------------------------------------------------- the BLEU of 2017


def _has_sacremoses() -> bool:
    return importlib.util.find_spec("sacremoses") is not None


def _require_sacremoses() -> None:
    if not _has_sacremoses():
        raise ConfigError("metric", "bleu-2017 needs one more package", "pip install sacremoses")


def _splitter_of_2017(tgt_lang: str) -> tuple[Callable[[str], str], str]:
    """What the papers of 2017 did to text before they counted, and its part of the signature.

    Source: get_ende_bleu.sh of tensor2tensor.
    """
    _require_sacremoses()
    import sacremoses

    # For languages that it does not know, Moses takes the English rules; the signature shall say so.
    if tgt_lang not in sacremoses.corpus.NonbreakingPrefixes().available_langs.values():
        tgt_lang = "en"
    tokenizer = sacremoses.MosesTokenizer(lang=tgt_lang)

    def read(line: str) -> str:
        return _COMPOUND.sub(r"\1 ##AT##-##AT## \2", tokenizer.tokenize(line, return_str=True))

    return read, f"|before:moses-{tgt_lang},##AT##|sacremoses:{sacremoses.__version__}"
