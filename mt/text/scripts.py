"""Unicode scripts: those that languages are written in, and those of the letters of a text."""

from __future__ import annotations

import re
from functools import cache

import regex

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


def script_fractions(text: str) -> dict[str, float]:
    """Return the fraction of the letters in each script, the largest first; `Other` for those of no language here.

    Letters that belong to every script, such as º, are left out.
    """
    counts = {script: _n_matched(_letters_in(script), text) for script in _SCRIPTS}
    n_letters = _n_matched(_letters_outside(frozenset()), text)
    counts["Other"] = n_letters - sum(counts.values())
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return {script: count / n_letters for script, count in ordered if count}


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
