"""Unicode scripts: those that languages are written in, and those that text stands in."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

# Code points of the main scripts, first and last, by blocks; what in them is no letter does not matter.
_RANGES: dict[str, tuple[tuple[int, int], ...]] = {
    "Latin": (
        (0x41, 0x24F),
        (0x250, 0x2AF),
        (0x1D00, 0x1D7F),
        (0x1E00, 0x1EFF),
        (0x2C60, 0x2C7F),
        (0xA722, 0xA7FF),
        (0xAB30, 0xAB64),
        (0xFB00, 0xFB06),
        (0xFF21, 0xFF5A),
    ),
    "Greek": ((0x370, 0x3FF), (0x1F00, 0x1FFF)),
    "Cyrillic": ((0x400, 0x52F), (0x1C80, 0x1C8F), (0x2DE0, 0x2DFF), (0xA640, 0xA69F)),
    "Armenian": ((0x530, 0x58F), (0xFB13, 0xFB17)),
    "Hebrew": ((0x590, 0x5FF), (0xFB1D, 0xFB4F)),
    "Arabic": (
        (0x600, 0x6FF),
        (0x750, 0x77F),
        (0x870, 0x8FF),
        (0xFB50, 0xFDFF),
        (0xFE70, 0xFEFE),
    ),
    "Syriac": ((0x700, 0x74F), (0x860, 0x86F)),
    "Thaana": ((0x780, 0x7BF),),
    "NKo": ((0x7C0, 0x7FF),),
    "Devanagari": ((0x900, 0x97F), (0xA8E0, 0xA8FF)),
    "Bengali": ((0x980, 0x9FF),),
    "Gurmukhi": ((0xA00, 0xA7F),),
    "Gujarati": ((0xA80, 0xAFF),),
    "Oriya": ((0xB00, 0xB7F),),
    "Tamil": ((0xB80, 0xBFF),),
    "Telugu": ((0xC00, 0xC7F),),
    "Kannada": ((0xC80, 0xCFF),),
    "Malayalam": ((0xD00, 0xD7F),),
    "Sinhala": ((0xD80, 0xDFF),),
    "Thai": ((0xE00, 0xE7F),),
    "Lao": ((0xE80, 0xEFF),),
    "Tibetan": ((0xF00, 0xFFF),),
    "Myanmar": ((0x1000, 0x109F), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F)),
    "Georgian": ((0x10A0, 0x10FF), (0x1C90, 0x1CBF), (0x2D00, 0x2D2F)),
    "Hangul": ((0x1100, 0x11FF), (0x3130, 0x318F), (0xA960, 0xA97F), (0xAC00, 0xD7FF), (0xFFA0, 0xFFDC)),
    "Ethiopic": ((0x1200, 0x139F), (0x2D80, 0x2DDF), (0xAB01, 0xAB2F), (0x1E7E0, 0x1E7FF)),
    "Cherokee": ((0x13A0, 0x13FF), (0xAB70, 0xABBF)),
    "Canadian Aboriginal": ((0x1400, 0x167F), (0x18B0, 0x18FF)),
    "Khmer": ((0x1780, 0x17FF),),
    "Mongolian": ((0x1800, 0x18AF),),
    "Ol Chiki": ((0x1C50, 0x1C7F),),
    "Tifinagh": ((0x2D30, 0x2D7F),),
    "Hiragana": ((0x3041, 0x309F), (0x1B000, 0x1B16F)),
    "Katakana": ((0x30A0, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9D)),
    "Bopomofo": ((0x3105, 0x312F), (0x31A0, 0x31BF)),
    "Han": ((0x3005, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF)),
    "Yi": ((0xA000, 0xA4CF),),
    "Meetei Mayek": ((0xABC0, 0xABFF), (0xAAE0, 0xAAFF)),
}
# Letters that stand in text of any script: ª, µ, º; modifiers; the long vowel of both kana; signs such as № and ℓ.
_COMMON = (
    (0xAA, 0xAA),
    (0xB5, 0xB5),
    (0xBA, 0xBA),
    (0x2B0, 0x2FF),
    (0x3006, 0x3006),
    (0x303C, 0x303C),
    (0x30FC, 0x30FC),
    (0xFF70, 0xFF70),
    (0xA700, 0xA721),
    (0x2070, 0x214F),
)
# Letters above U+FFFF, roughly: regular expressions look there range by range, and exact ones are many.
_LETTERS_ABOVE = ((0x10000, 0x1CFFF), (0x1DF00, 0x1EEFF), (0x20000, 0x3FFFF))

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


def base_language(lang: str) -> str:
    """A language code without its variant: `pt` of `pt-BR`, `zh` of `zh_Hant`."""
    return re.split("[-_]", lang, maxsplit=1)[0].lower()


def expected_scripts(lang: str) -> frozenset[str] | None:
    """The scripts that a language is written in; None where it is not known."""
    return EXPECTED.get(base_language(lang))


def script_shares(text: str) -> dict[str, float]:
    """Share of the letters by script, the largest first; `Other` for scripts that are not known here.

    Letters that belong to every script, such as º, are left out.
    """
    counts = {script: _n_matched(_letters_in(frozenset({script})), text) for script in _RANGES}
    n_letters = _n_letters(text)
    counts["Other"] = n_letters - sum(counts.values())
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return {script: count / n_letters for script, count in ordered if count}


def wrong_script_share(text: str, lang: str, min_letters: int = 1) -> float:
    """Share of the letters that stand in a script that the language is not written in; 0 for an unknown language.

    Args:
        min_letters: text with fewer letters is not judged and gives 0.
    """
    scripts = EXPECTED.get(lang) or expected_scripts(lang)
    if scripts is None or ("Latin" in scripts and text.isascii()):
        return 0.0
    wrong = _letters_outside(scripts)
    if wrong.search(text) is None:
        return 0.0
    n_letters = _n_letters(text)
    return _n_matched(wrong, text) / n_letters if n_letters >= min_letters else 0.0


def n_letters_and_marks(text: str) -> int:
    """How many letters there are, and marks, which spell the vowels of many scripts."""
    return _n_matched(_letters_and_marks(), text)


def _n_matched(runs: re.Pattern[str], text: str) -> int:
    return sum(map(len, runs.findall(text)))


def _n_letters(text: str) -> int:
    return _n_matched(_letters_outside(frozenset()), text)


@cache
def _code_points(categories: str) -> frozenset[int]:
    """Of all characters whose category begins with one of the letters given."""
    category = unicodedata.category
    exact = frozenset(code for code in range(0x10000) if category(chr(code))[0] in categories)
    return exact.union(*(range(first, last + 1) for first, last in _LETTERS_ABOVE))


@cache
def _letters() -> frozenset[int]:
    return _code_points("L").difference(*(range(first, last + 1) for first, last in _COMMON))


def _of_scripts(scripts: frozenset[str]) -> set[int]:
    return {code for script in scripts for first, last in _RANGES[script] for code in range(first, last + 1)}


@cache
def _letters_in(scripts: frozenset[str]) -> re.Pattern[str]:
    return _runs_of(_letters() & _of_scripts(scripts))


@cache
def _letters_outside(scripts: frozenset[str]) -> re.Pattern[str]:
    return _runs_of(_letters() - _of_scripts(scripts))


@cache
def _letters_and_marks() -> re.Pattern[str]:
    return _runs_of(_code_points("LM"))


def _runs_of(code_points: frozenset[int] | set[int]) -> re.Pattern[str]:
    """What finds runs of these characters."""
    ranges: list[list[int]] = []
    for code in sorted(code_points):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return re.compile("[" + "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ranges) + "]+")
