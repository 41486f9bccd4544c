"""The metrics that translations are scored by: sacreBLEU's, with its signatures, and the BLEU of the papers of 2017.

This is the only module that calls private functions of sacreBLEU: they compute scores and tests from counts of lines.
"""

from __future__ import annotations

import difflib
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
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from sacrebleu.significance import PairedTest, _bootstrap_resample

from mt.errors import ConfigError
from mt.report.facts import Interval, MetricScore

Stats: TypeAlias = "npt.NDArray[np.float64]"  # sacreBLEU's counts, exact up to 2^53: [lines, counts of the metric]


# Each with its name in tables and reports, since sacreBLEU calls three of them BLEU. `force` keeps sacreBLEU from
# complaining on standard error; warnings.py does, and not of BLEU alone.
_KINDS: dict[str, tuple[str, Callable[[], Any]]] = {
    "bleu": ("BLEU", partial(BLEU, force=True)),
    "chrf": ("chrF2", CHRF),
    "chrf++": ("chrF2++", partial(CHRF, word_order=2)),
    "bleu-lc": ("BLEU-lc", partial(BLEU, lowercase=True, force=True)),
    "ter": ("TER", TER),
    "bleu-2017": (
        "BLEU 2017 (tokenised, compounds split; not comparable with the others)",
        partial(BLEU, tokenize="none", force=True),
    ),
}
METRICS = tuple(_KINDS)  # as they are asked for, and in the order given
DEFAULT_METRICS = ("bleu", "chrf", "chrf++", "bleu-lc")
TESTS = {"randomisation": "ar", "bootstrap": "bs"}  # as they are asked for, and as sacreBLEU has them
_SEED = "12345"  # sacreBLEU's default; it reads it from the environment
_FEWEST_SAMPLES = 100  # with fewer, an interval of 95% leaves out nothing
_LINES_AT_ONCE = 5_000  # whose n-grams are in memory together
_MOST_BYTES = 8 << 30  # that sacreBLEU's samples, which it draws all at once, may take
_BYTES_OF_A_SHUFFLED_LINE = 10  # two choices, and one of them as a number of 8 bytes
_COMPOUND = re.compile(r"(\S)-(\S)")
_SENTENCE_BLEU = BLEU(effective_order=True, force=True)


class Metric:
    """A metric on one test set."""

    def __init__(self, key: str, references: Sequence[Sequence[str]], tgt_lang: str = "de") -> None:
        """
        Args:
            key: one of METRICS.
            references: a list for each set of them, all of one length.
            tgt_lang: whose rules bleu-2017 tokenises by; the others do without.
        """
        self.name, make = _KINDS[key]
        self.more_is_better = key != "ter"
        self._read: Callable[[str], str] | None = None
        self._signature_suffix = ""
        if key == "bleu-2017":
            self._read, self._signature_suffix = _reading_of_2017(tgt_lang)
        self._references = references
        self._sacrebleu = make()

    def rows(self, hypotheses: Sequence[str]) -> Stats:
        """Count each line; a score is computed from the sums over some lines."""
        rows: list[list[float]] = []
        for start in range(0, len(hypotheses), _LINES_AT_ONCE):
            sides = [lines[start : start + _LINES_AT_ONCE] for lines in (hypotheses, *self._references)]
            ours, *theirs = sides if self._read is None else [list(map(self._read, lines)) for lines in sides]
            rows += self._sacrebleu._extract_corpus_statistics(ours, theirs)
        return np.array(rows, dtype=np.float64)

    def score(self, rows: Stats, n_samples: int = 0) -> MetricScore:
        """Score the whole set, with a confidence interval from bootstrap samples if there are to be some.

        Raises:
            ConfigError: samples that are too few, or too many for the memory.
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
        """Score sums of counts."""
        return float(self._sacrebleu._compute_score_from_stats(sums.tolist()).score)

    def paired_test(self, base: Stats, others: Sequence[Stats], test: str, n_samples: int) -> tuple[str, list[Any]]:
        """Test systems against a baseline; return sacreBLEU's signature, and its result for each, the baseline first.

        Raises:
            ConfigError: samples that are too few, or too many for the memory.
        """
        is_bootstrap = test == "bootstrap"
        line_bytes = _bytes_of_a_bootstrapped_line(base) if is_bootstrap else _BYTES_OF_A_SHUFFLED_LINE
        check_samples(n_samples, len(base), line_bytes)
        named: Any = [(str(number), rows) for number, rows in enumerate((base, *others))]  # typed for lines of text
        counted = copy(self._sacrebleu)  # its hypotheses are counted: each system once, although it is compared often
        counted._extract_corpus_statistics = lambda rows, _references: rows
        with _seeded():
            signatures, results = PairedTest(named, {"": counted}, None, TESTS[test], n_samples)()
        ((their_name, signature),) = signatures.items()
        return f"{signature}{self._signature_suffix}", results[their_name]


def _bytes_of_a_bootstrapped_line(rows: Stats) -> int:
    n_counts: int = rows.shape[1]
    return 8 + 4 * n_counts  # a number of 8 bytes, and the counts in float32


def sentence_bleu(rows: Stats) -> list[float]:
    """Score each line by the orders of n-grams that it has.

    Args:
        rows: counts of the metric `bleu`.
    """
    return [float(_SENTENCE_BLEU._compute_score_from_stats(row).score) for row in rows.tolist()]


def metric_keys(names: Sequence[str] | None) -> list[str]:
    """Return the metrics asked for, each once, in the order of METRICS; the default ones for None.

    `all` means every metric that can be computed here.

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
            raise ConfigError("metric", f"unknown metric {name}, {hint}")
    if "bleu-2017" in names and not _has_sacremoses():
        raise ConfigError("metric", "bleu-2017 needs one more package", "pip install sacremoses")
    return [key for key in METRICS if key in names or ("all" in names and (key != "bleu-2017" or _has_sacremoses()))]


def check_samples(n_samples: int, n_lines: int = 1, bytes_of_a_line: int = 1) -> None:
    """
    Raises:
        ConfigError: samples that are too few, or too many for the memory.
    """
    if n_samples < _FEWEST_SAMPLES:
        raise ConfigError("samples", f"expected at least {_FEWEST_SAMPLES}, got {n_samples}")
    bytes_of_a_sample = n_lines * bytes_of_a_line
    if n_samples * bytes_of_a_sample > _MOST_BYTES:
        problem = f"{n_samples:,} of {n_lines:,} lines need {n_samples * bytes_of_a_sample / 1e9:.0f} GB of memory"
        raise ConfigError("samples", problem, f"give {_MOST_BYTES // bytes_of_a_sample:,} or fewer")


@contextmanager
def _seeded() -> Iterator[None]:
    """Run sacreBLEU without its log, and with its default seed, whatever the environment has for one."""
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


def _reading_of_2017(tgt_lang: str) -> tuple[Callable[[str], str], str]:
    """Return what the papers of 2017 did to text before they counted, and its part of the signature.

    Source: get_ende_bleu.sh of tensor2tensor.
    """
    import sacremoses

    # For languages that it does not know, Moses takes the English rules; the signature shall say so.
    if tgt_lang not in sacremoses.corpus.NonbreakingPrefixes().available_langs.values():
        tgt_lang = "en"
    tokenizer = sacremoses.MosesTokenizer(lang=tgt_lang)

    def read(line: str) -> str:
        return _COMPOUND.sub(r"\1 ##AT##-##AT## \2", tokenizer.tokenize(line, return_str=True))

    return read, f"|before:moses-{tgt_lang},##AT##|sacremoses:{sacremoses.__version__}"
