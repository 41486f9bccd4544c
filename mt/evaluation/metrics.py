"""The metrics: those of sacreBLEU, with its signatures, and the BLEU of the papers of 2017.

Only this module calls private functions of sacreBLEU. They compute scores and tests from the statistics of lines.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from functools import partial
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from sacrebleu.significance import PairedTest, _bootstrap_resample

from mt.errors import ConfigError, suggestion
from mt.evaluation.tokenization import DEFAULT_TOKENIZER, bleu
from mt.report.facts import Interval, MetricScore
from mt.text.languages import base_language

Stats: TypeAlias = "npt.NDArray[np.float64]"  # sacreBLEU's statistics, exact up to 2^53: [lines, counts of the metric]


# Each metric with its name in tables and reports, because sacreBLEU calls three of them BLEU, and how it is made with a
# tokenizer of BLEU. `force` stops sacreBLEU's warnings on standard error; warnings.py has its own, for all metrics.
_KINDS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "bleu": ("BLEU", bleu),
    "chrf": ("chrF2", lambda _tokenize: CHRF()),
    "chrf++": ("chrF2++", lambda _tokenize: CHRF(word_order=2)),
    "bleu-lc": ("BLEU-lc", partial(bleu, lowercase=True)),
    "ter": ("TER", lambda _tokenize: TER()),
    "bleu-2017": (
        "BLEU 2017 (tokenised, compounds split; not comparable with the others)",
        lambda _tokenize: bleu("none"),
    ),
}
METRICS = tuple(_KINDS)  # names of the option --metric, in the order of output
DEFAULT_METRICS = ("bleu", "chrf", "chrf++", "bleu-lc")
TESTS = {"randomisation": "ar", "bootstrap": "bs"}  # our names → sacreBLEU's
_SEED = "12345"  # sacreBLEU's default; sacreBLEU reads it from the environment
_FEWEST_SAMPLES = 100  # with fewer, a 95% interval excludes no samples
_LINES_AT_ONCE = 5_000  # n-grams of this number of lines are in memory together
_MOST_BYTES = 8 << 30  # limit for sacreBLEU's samples, which are all in memory together
_BYTES_OF_A_SHUFFLED_LINE = 10  # two choices of 1 byte, and one of them again as a number of 8 bytes
_COMPOUND = re.compile(r"(\S)-(\S)")
_SENTENCE_BLEU = bleu(DEFAULT_TOKENIZER, effective_order=True)


class Metric:
    """A metric on one test set."""

    def __init__(
        self,
        key: str,
        references: Sequence[Sequence[str]],
        tgt_lang: str | None = None,
        tokenize: str = DEFAULT_TOKENIZER,
    ) -> None:
        """
        Args:
            key: one of METRICS.
            references: sets of references, all with the same number of lines.
            tgt_lang: bleu-2017 tokenises by the rules of this language; other metrics do not use it.
            tokenize: the tokenizer of bleu and bleu-lc, by sacreBLEU's name.
        Raises:
            ConfigError: the tokenizer cannot be used, or bleu-2017 is given no language.
        """
        self.name, make = _KINDS[key]
        self.more_is_better = key != "ter"
        self._preprocess: Callable[[str], str] | None = None
        self._signature_suffix = ""
        if key == "bleu-2017":
            if tgt_lang is None:
                raise ConfigError("tgt_lang", "is needed by bleu-2017", "give the language, such as de")
            self._preprocess, self._signature_suffix = _preprocessing_of_2017(tgt_lang)
        self._references = references
        self._sacrebleu = make(tokenize)

    def rows(self, hypotheses: Sequence[str]) -> Stats:
        """Return the statistics of each line; the score of some lines is computed from their sum."""
        rows: list[list[float]] = []
        for start in range(0, len(hypotheses), _LINES_AT_ONCE):
            sides = [lines[start : start + _LINES_AT_ONCE] for lines in (hypotheses, *self._references)]
            ours, *theirs = (
                sides if self._preprocess is None else [list(map(self._preprocess, lines)) for lines in sides]
            )
            rows += self._sacrebleu._extract_corpus_statistics(ours, theirs)
        return np.array(rows, dtype=np.float64)

    def score(self, rows: Stats, n_samples: int = 0) -> MetricScore:
        """Score the whole set, with a confidence interval from bootstrap samples if `n_samples` is not 0.

        Raises:
            ConfigError: too few samples, or too many for the memory.
        """
        confidence, signature = None, self._sacrebleu.get_signature()
        if n_samples:
            check_samples(n_samples, len(rows), _bytes_of_a_bootstrapped_line(rows))
            with _seeded():
                seed, samples = _bootstrap_resample(cast("Any", rows), self._sacrebleu, n_samples)
            result = samples[0]
            result.estimate_ci(samples)
            mean, half_width = float(result._mean), float(result._ci)
            confidence = Interval(mean=mean, low=mean - half_width, high=mean + half_width, n_samples=n_samples)
            signature.update("bs", n_samples)
            signature.update("seed", seed)
        return MetricScore(
            name=self.name,
            score=self.score_of(rows.sum(axis=0)),
            signature=f"{signature}{self._signature_suffix}",
            confidence=confidence,
        )

    def score_of(self, sums: npt.NDArray[Any]) -> float:
        """Return the score of summed statistics."""
        return float(self._sacrebleu._compute_score_from_stats(sums.tolist()).score)

    def paired_test(self, base: Stats, others: Sequence[Stats], test: str, n_samples: int) -> tuple[str, list[Any]]:
        """Test systems against a baseline; return sacreBLEU's signature, and a result for each, the baseline first.

        Raises:
            ConfigError: too few samples, or too many for the memory.
        """
        is_bootstrap = test == "bootstrap"
        line_bytes = _bytes_of_a_bootstrapped_line(base) if is_bootstrap else _BYTES_OF_A_SHUFFLED_LINE
        check_samples(n_samples, len(base), line_bytes)
        named: Any = [
            (str(number), rows) for number, rows in enumerate((base, *others))
        ]  # sacreBLEU's types expect lines
        counted = copy(self._sacrebleu)  # takes statistics for lines, so that each system is counted only once
        counted._extract_corpus_statistics = lambda rows, _references: rows
        with _seeded():
            signatures, results = PairedTest(named, {"": counted}, None, TESTS[test], n_samples)()
        ((their_name, signature),) = signatures.items()
        return f"{signature}{self._signature_suffix}", results[their_name]


def _bytes_of_a_bootstrapped_line(rows: Stats) -> int:
    n_counts: int = rows.shape[1]
    return 8 + 4 * n_counts  # a number of 8 bytes, and the counts in float32


def sentence_bleu(rows: Stats) -> list[float]:
    """Return the BLEU of each line, computed from the orders of n-grams that the line has.

    Args:
        rows: statistics of the metric `bleu`.
    """
    return [float(_SENTENCE_BLEU._compute_score_from_stats(row).score) for row in rows.tolist()]


def metric_keys(names: Sequence[str] | None) -> list[str]:
    """Return the given metrics, each once, in the order of METRICS; None gives the default ones.

    `all` means every metric whose package is installed.

    Raises:
        ConfigError: a name is unknown, or its metric needs a package that is not installed.
    """
    if not names:
        return list(DEFAULT_METRICS)
    for name in names:
        if name not in (*METRICS, "all"):
            if "," in name:
                each = " ".join(f"--metric {part.strip()}" for part in name.split(",") if part.strip())
                raise ConfigError("metric", f"expected one name, got {name}", f"give {each}")
            raise ConfigError("metric", f"unknown metric {name}", suggestion(name.lower(), (*METRICS, "all")))
    if "bleu-2017" in names and not _has_sacremoses():
        problem = "bleu-2017 needs the package sacremoses, which is not installed"
        raise ConfigError("metric", problem, "run pip install sacremoses")
    return [key for key in METRICS if key in names or ("all" in names and (key != "bleu-2017" or _has_sacremoses()))]


def check_samples(n_samples: int, n_lines: int = 1, bytes_of_a_line: int = 1) -> None:
    """Check the number of samples of a bootstrap or a randomisation test.

    Raises:
        ConfigError: too few samples, or too many for the memory.
    """
    if n_samples < _FEWEST_SAMPLES:
        raise ConfigError("samples", f"expected at least {_FEWEST_SAMPLES}, got {n_samples}")
    bytes_of_a_sample = n_lines * bytes_of_a_line
    if n_samples * bytes_of_a_sample > _MOST_BYTES:
        problem = (
            f"{n_samples:,} samples of {n_lines:,} lines need {n_samples * bytes_of_a_sample / 1e9:.0f} GB of memory"
        )
        most = _MOST_BYTES // bytes_of_a_sample
        fix = f"give {most} or fewer" if most >= _FEWEST_SAMPLES else "score fewer lines at once"
        raise ConfigError("samples", problem, fix)


@contextmanager
def _seeded() -> Iterator[None]:
    """Run sacreBLEU without its log and with its default seed, whatever seed the environment sets."""
    logger = logging.getLogger("sacrebleu")
    level, before = logger.level, os.environ.get("SACREBLEU_SEED")
    logger.setLevel(logging.CRITICAL)
    os.environ["SACREBLEU_SEED"] = _SEED
    try:
        yield
    finally:
        logger.setLevel(level)
        if before is None:
            del os.environ["SACREBLEU_SEED"]
        else:
            os.environ["SACREBLEU_SEED"] = before


# --- The BLEU of 2017 -------------------------------------------------------------------------------------------------


def _has_sacremoses() -> bool:
    return importlib.util.find_spec("sacremoses") is not None


def _preprocessing_of_2017(tgt_lang: str) -> tuple[Callable[[str], str], str]:
    """Return the preprocessing of text in the papers of 2017, and its part of the signature.

    Source: get_ende_bleu.sh of tensor2tensor.
    """
    import sacremoses

    tgt_lang = base_language(tgt_lang)
    # For unknown languages, Moses uses the English rules; the signature says so.
    if tgt_lang not in sacremoses.corpus.NonbreakingPrefixes().available_langs.values():
        tgt_lang = "en"
    tokenizer = sacremoses.MosesTokenizer(lang=tgt_lang)

    def preprocess(line: str) -> str:
        return _COMPOUND.sub(r"\1 ##AT##-##AT## \2", tokenizer.tokenize(line, return_str=True))

    return preprocess, f"|before:moses-{tgt_lang},##AT##|sacremoses:{sacremoses.__version__}"
