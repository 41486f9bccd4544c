"""The scripts that languages are written in and that letters belong to; the language of text as py3langid sees it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
import regex

from mt.errors import ConfigError, optional_package

# ---------------------------------------------------------------------------------------------------- scripts

# Letters in text of any script, though Unicode assigns them to one: ª, º, modifiers, signs such as K (Kelvin).
_ANY_SCRIPT = r"\p{Script=Common}ªº\u02b0-\u02ff\u2070-\u214f\ua700-\ua721"
# Above U+FFFF, `re` tries range by range: those that are closer than this become one.
_CLOSE_RANGES = 0x1000

# ISO 639 codes by the scripts that the language is written in today.
_LANGUAGES_OF: dict[tuple[str, ...], str] = {
    ("Latin",): (
        "aa af ak an ast ay bi bm br ca ceb ch co cs cy da de ee en eo es et eu ff fi fil fj fo fr fy ga gd gl gn gv "
        "haw hmn ho hr ht hu ia id ie ig ik io is it jv kg ki kl kr kw la lb lg li ln lt lu lv mg mh mi mt na nb nd nl "
        "nn no nr nso nv ny oc om pap pl pt qu rm rn ro rw sc se sg sk sl sm sn so sq ss st su sv sw tl tn to tpi tr "
        "ts tum tw ty ve vi vo wa war wo xh yo zu"
    ),
    ("Cyrillic",): "ab av ba be bg ce cv cu kk kv ky mk os ru sah tg tt uk",
    ("Greek",): "el grc",
    ("Armenian",): "hy",
    ("Hebrew",): "he iw yi",
    ("Arabic",): "ar arz ary ckb fa ps sd ug ur",
    ("Devanagari",): "bho gom hi mai mr ne new sa",
    ("Bengali",): "as bn",
    ("Gujarati",): "gu",
    ("Oriya",): "or",
    ("Tamil",): "ta",
    ("Telugu",): "te",
    ("Kannada",): "kn",
    ("Malayalam",): "ml",
    ("Sinhala",): "si",
    ("Thai",): "th",
    ("Lao",): "lo",
    ("Tibetan",): "bo dz",
    ("Myanmar",): "my shn",
    ("Georgian",): "ka",
    ("Hangul", "Han"): "ko",
    ("Ethiopic",): "am ti",
    ("Khmer",): "km",
    ("Thaana",): "dv",
    ("Yi",): "ii",
    ("Syriac",): "syr",
    ("Han", "Bopomofo"): "zh yue wuu cmn",
    ("Han", "Hiragana", "Katakana"): "ja",
    ("Cyrillic", "Latin"): "bs sr sh uz az tk ro mo crh",
    ("Cyrillic", "Mongolian"): "mn",
    ("Gurmukhi", "Arabic"): "pa",
    ("Devanagari", "Arabic"): "ks",
    ("Latin", "Arabic"): "ha ku ms",
    ("Latin", "Canadian Aboriginal"): "cr iu oj",
    ("Latin", "Tifinagh"): "ber kab zgh",
    ("Latin", "Cherokee"): "chr",
    ("Bengali", "Meetei Mayek"): "mni",
    ("Ol Chiki", "Devanagari", "Bengali"): "sat",
}
EXPECTED: dict[str, frozenset[str]] = {
    lang: frozenset(scripts) for scripts, langs in _LANGUAGES_OF.items() for lang in langs.split()
}


_SCRIPTS = sorted(frozenset().union(*EXPECTED.values()))


def base_language(lang: str) -> str:
    """Return a language code without its variant: `pt` of `pt-BR`, `zh` of `zh_Hant`."""
    return re.split("[-_]", lang, maxsplit=1)[0].lower()


def expected_scripts(lang: str) -> frozenset[str] | None:
    """Return the scripts that a language is written in; None where they are not known."""
    return EXPECTED.get(base_language(lang))


def main_script(text: str) -> str:
    """Return the script of most letters; `Other` for those of no language here. º and others count for no script."""
    counts = {script: _n_matched(_letters_in(script), text) for script in _SCRIPTS}
    counts["Other"] = _n_matched(_letters_outside(frozenset()), text) - sum(counts.values())
    return max(counts, key=counts.__getitem__)


def wrong_script_fraction(text: str, lang: str, min_letters: int = 1) -> float:
    """Return the fraction of letters in a script that the language is not written in; 0 for an unknown language.

    Args:
        min_letters: text with fewer letters is not judged and gives 0.
    """
    scripts = EXPECTED.get(lang) or expected_scripts(lang)
    if scripts is None or ("Latin" in scripts and text.isascii()):
        return 0.0
    wrong = _letters_outside(scripts)
    if wrong.search(text) is None:
        return 0.0
    n_letters = _n_matched(_letters_outside(frozenset()), text)
    return _n_matched(wrong, text) / n_letters if n_letters >= min_letters else 0.0


def n_letters_and_marks(text: str) -> int:
    """Count the letters, and the marks, which spell the vowels of many scripts."""
    return _n_matched(_runs_of(r"[\p{L}\p{M}]"), text)


def _n_matched(runs: re.Pattern[str], text: str) -> int:
    return sum(map(len, runs.findall(text)))


@cache
def _letters_in(script: str) -> re.Pattern[str]:
    return _runs_of(rf"[[\p{{L}}&&\p{{Script={script}}}]--[{_ANY_SCRIPT}]]")


@cache
def _letters_outside(scripts: frozenset[str]) -> re.Pattern[str]:
    others = "".join(rf"\p{{Script={script}}}" for script in scripts)
    return _runs_of(rf"[\p{{L}}--[{others}{_ANY_SCRIPT}]]")


@cache
def _every_character() -> str:
    return "".join(map(chr, range(0x110000)))


@cache
def _runs_of(characters: str) -> re.Pattern[str]:
    """Compile a set in the syntax of `regex`, which knows scripts, for `re`, which is twice as fast at searching."""
    ranges: list[tuple[str, str]] = []
    for run in regex.finditer(f"{characters}+", _every_character(), regex.VERSION1):
        first, last = run[0][0], run[0][-1]
        if ranges and ranges[-1][1] > "\uffff" and ord(first) - ord(ranges[-1][1]) < _CLOSE_RANGES:
            first = ranges.pop()[0]
        ranges.append((first, last))
    return re.compile("[" + "".join(f"{first}-{last}" for first, last in ranges) + "]+")


# ---------------------------------------------------------------------------------------------------- languages

# Text is told apart from these, besides the two languages of a run: what is found on web pages by mistake is mostly one
# of them, and each further candidate is a chance to be wrong.
_BIG_LANGUAGES = frozenset(
    [
        "ar", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fr", "he", "hi", "hr", "hu", "id", "it", "ja", "ko",
        "nl", "pl", "pt", "ro", "ru", "sv", "th", "tr", "uk", "vi", "zh",
    ]
)  # fmt: skip
# Languages that are too near to a big one to be told apart from it in a sentence.
_NEAR = {
    "af": "nl", "an": "es", "ary": "ar", "arz": "ar", "ast": "es", "bs": "hr", "ext": "es", "fo": "da", "fy": "nl",
    "gl": "pt es", "jv": "id", "lb": "de", "lij": "it", "mr": "hi", "ms": "id", "ne": "hi", "nn": "da sv",
    "no": "da sv", "oc": "fr es", "pcm": "en", "sa": "hi", "sdh": "fa", "sk": "cs", "sr": "hr", "vec": "it",
    "wa": "fr", "wuu": "zh", "yue": "zh",
}  # fmt: skip
# Other codes for languages that py3langid knows.
_ALIASES = {"cmn": "zh", "fil": "tl", "gn": "gug", "in": "id", "iw": "he", "ji": "yi", "ki": "kik", "mo": "ro",
            "nb": "no", "sh": "sr", "ff": "fuv"}  # fmt: skip

_MIN_BYTES = 30  # shorter text is mostly names
_MAX_CHARS = 120  # of a text that are looked at: enough to tell, and the cost grows with them
_GLANCE_CHARS = 60  # that are looked at first; right text shows here already
_GLANCE_PROBABILITY = 0.5
_MIN_MARGIN = 0.6  # between the probabilities of another language and of the expected one


class LanguageIdentifier:
    """Tells whether text is in the language that it should be in.

    Args:
        langs: codes, variants such as `pt-BR` among them.
    Raises:
        NotInstalledError: py3langid is missing.
        ConfigError: it does not know a language.
    """

    def __init__(self, langs: Iterable[str]) -> None:
        self.langs = tuple(langs)
        self._identifier = _load()
        known = set(self._identifier.labels)
        codes = {lang: _code(lang) for lang in self.langs}
        for lang, code in codes.items():
            if code not in known:
                raise ConfigError(
                    "data.clean.language",
                    f"py3langid does not know the language {lang!r}",
                    "correct the code, or set data.clean.language=false",
                )
        self._accepted = {lang: _accepted(code) for lang, code in codes.items()}
        self._identifier.set_languages((_BIG_LANGUAGES | set(codes.values())) & known)
        # Rows of the table are picked for each text: half the time when they lie together.
        self._identifier.nb_ptc = np.ascontiguousarray(self._identifier.nb_ptc, dtype=np.float32)

    def __reduce__(self) -> tuple[Any, ...]:
        return LanguageIdentifier, (self.langs,)

    def other_language(self, text: str, lang: str) -> str | None:
        """Return the language of a text that is surely not in `lang`; None otherwise, and for text too short to tell.

        Args:
            lang: one of those given; languages that are hardly told apart from it count as it.
        """
        if len(text) < _MIN_BYTES and len(text.encode()) < _MIN_BYTES:
            return None
        accepted = self._accepted[lang]
        found, probability = self._identifier.classify(text[:_GLANCE_CHARS])
        if found in accepted and probability > _GLANCE_PROBABILITY:
            return None
        found, probability = self._identifier.classify(text[:_MAX_CHARS])
        if found in accepted or probability < _MIN_MARGIN:
            return None
        of_lang = sum(share for code, share in self._identifier.rank(text[:_MAX_CHARS]) if code in accepted)
        return str(found) if probability - of_lang > _MIN_MARGIN else None

    def is_in(self, found: str | None, lang: str) -> bool:
        """Return whether a code that `other_language` gave is that of `lang`."""
        return found in self._accepted[lang]


def _code(lang: str) -> str:
    code = base_language(lang)
    return _ALIASES.get(code, code)


def _accepted(code: str) -> frozenset[str]:
    near = {big for other, bigs in _NEAR.items() for big in bigs.split() if other == code}
    nearer = {other for other, bigs in _NEAR.items() if code in bigs.split()}
    return frozenset({code, *near, *nearer})


def _load() -> Any:
    module = optional_package("py3langid.langid", "language", "data.clean.language")
    return module.LanguageIdentifier.from_model_file(module.MODEL_FILE, norm_probs=True)
