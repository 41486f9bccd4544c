"""Scripts of languages and of letters, and language identification with py3langid."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np
import regex

from mt.config.settings import Direction, RunConfig
from mt.errors import ConfigError, optional_package

# ---------------------------------------------------------------------------------------------------- scripts

# Letters used in text of any script, although Unicode assigns them to one: ª, º, modifiers, signs such as K (Kelvin).
_ANY_SCRIPT = r"\p{Script=Common}ªº\u02b0-\u02ff\u2070-\u214f\ua700-\ua721"
# Above U+FFFF, `re` tests one range after the other, so ranges closer than this are merged.
_CLOSE_RANGES = 0x1000

# The scripts of a language today → ISO 639 codes of the languages.
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
    ("Han", "Bopomofo"): "gan hsn lzh wuu yue zh",
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
_ALL_SCRIPTS = ["Common", "Inherited", *_SCRIPTS]
_SCRIPT = regex.compile("|".join(rf"(\p{{Script={script}}})" for script in _ALL_SCRIPTS))
# Scripts written without spaces between words, and about how many of their characters make a word.
_UNSPACED_SCRIPTS = frozenset(
    ["Bopomofo", "Han", "Hiragana", "Katakana", "Khmer", "Lao", "Myanmar", "Thai", "Tibetan", "Yi"]
)
_HAN_AND_KANA = (
    r"\u3005-\u3007\u3021-\u3029\u3041-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua4cf"
    r"\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_THAI_LAO_KHMER_MYANMAR_TIBETAN = r"\u0e00-\u109f\u1780-\u17ff\ua9e0-\ua9ff\uaa60-\uaa7f"
_HAN = re.compile(f"[{_HAN_AND_KANA}]")
_THAI = re.compile(f"[{_THAI_LAO_KHMER_MYANMAR_TIBETAN}]")
UNSPACED = f"{_HAN_AND_KANA}{_THAI_LAO_KHMER_MYANMAR_TIBETAN}"  # in the syntax of `re`, for a set of characters
_UNSPACED = re.compile(f"[{UNSPACED}]+")
_UNITS = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")
_WORD = re.compile(r"\w+")
_HAN_CHARACTERS_PER_WORD = 2
_THAI_CHARACTERS_PER_WORD = 4

# Two-letter codes of languages → their codes of three letters (ISO 639-2 and 639-3), those of the members of their
# macrolanguages in FLORES-200, and names of the languages, in English and in themselves.
_SYNONYMS = """
    aa aar; ab abk; af afr afrikaans; ak aka; am amh; an arg; ar ara arb arabic العربية; as asm; av ava; ay aym ayr;
    az aze azj; ba bak; be bel belarusian беларуская; bg bul bulgarian български; bi bis; bm bam; bn ben bengali
    বাংলা; bo bod tib; br bre; bs bos; ca cat catalan català; ce che; ch cha; co cos; cr cre; cs ces cze czech
    čeština česky; cu chu; cv chv; cy cym wel welsh cymraeg; da dan danish dansk; de deu ger german deutsch; dv div;
    dz dzo; ee ewe; el ell gre greek ελληνικά; en eng english; eo epo; es spa spanish español castellano; et ekk est
    estonian eesti; eu baq eus basque euskara; fa fas per pes prs persian farsi فارسی; ff ful fuv; fi fin finnish
    suomi; fj fij; fo fao; fr fra fre french français; fy fry; ga gle irish gaeilge; gd gla; gl glg galician galego;
    gn grn gug; gu guj gujarati ગુજરાતી; gv glv; ha hau; he heb hebrew עברית; hi hin hindi हिन्दी; ho hmo; hr hrv
    croatian hrvatski; ht hat; hu hun hungarian magyar; hy arm hye armenian հայերեն; ia ina; id ind indonesian; ie
    ile; ig ibo; ii iii; ik ipk; io ido; is ice isl icelandic íslenska; it ita italian italiano; iu iku; ja jpn
    japanese 日本語; jv jav; ka geo kat georgian ქართული; kg kon; ki kik; kk kaz kazakh қазақша; kl kal; km khm khmer
    ខ្មែរ; kn kan kannada ಕನ್ನಡ; ko kor korean 한국어; kr kau knc; ks kas; ku kmr kur; kv kom; kw cor; ky kir; la lat;
    lb ltz; lg lug; li lim; ln lin; lo lao ລາວ; lt lit lithuanian lietuvių; lu lub; lv lav lvs latvian latviešu; mg
    mlg plt; mh mah; mi mao mri; mk mac mkd macedonian македонски; ml mal malayalam മലയാളം; mn khk mon mongolian
    монгол; mr mar marathi मराठी; ms may msa zsm malay melayu; mt mlt maltese malti; my bur mya burmese မြန်မာ; na
    nau; nb nob bokmål; nd nde; ne nep npi nepali नेपाली; nl dut nld dutch nederlands; nn nno nynorsk; no nor
    norwegian norsk; nr nbl; nv nav; ny nya; oc oci; oj oji; om gaz orm; or ori ory; os oss; pa pan punjabi ਪੰਜਾਬੀ;
    pl pol polish polski; ps pbt pus; pt por portuguese português; qu que quy; rm roh; rn run; ro ron rum romanian
    română; ru rus russian русский; rw kin; sa san; sc srd; sd snd; se sme; sg sag; sh hbs; si sin; sk slk slo
    slovak slovenčina; sl slv slovene slovenian slovenščina; sm smo; sn sna; so som; sq alb als sqi albanian shqip;
    sr srp serbian српски; ss ssw; st sot; su sun; sv swe swedish svenska; sw swa swh swahili kiswahili; ta tam
    tamil தமிழ்; te tel telugu తెలుగు; tg tgk; th tha thai ไทย; ti tir; tk tuk; tl tgl tagalog filipino; tn tsn; to
    ton; tr tur turkish türkçe; ts tso; tt tat; tw twi; ty tah; ug uig; uk ukr ukrainian українська; ur urd urdu
    اردو; uz uzb uzn uzbek; ve ven; vi vie vietnamese; vo vol; wa wln; wo wol; xh xho; yi ydd yid; yo yor; zh chi
    cmn zho chinese mandarin 中文 汉语 漢語; zu zul
"""
_SHORT_CODES = {name: code for code, *names in map(str.split, _SYNONYMS.split(";")) for name in names}


def base_language(lang: str) -> str:
    """Return the shortest code of a language, without script and region: `pt` for `pt-BR`, `zh` for `zho_Hant`."""
    code = re.split("[-_]", lang, maxsplit=1)[0].lower()
    return _SHORT_CODES.get(code, code)


@lru_cache(maxsize=10_000)
def closeness(written: str, lang: str) -> int:
    """Return how well a code or a name of a language fits the code `lang`: 0 not at all, 3 exactly.

    It fits if the variant, such as a region or a script, is the same, or if only one of them has a variant: de-DE fits
    de (2), and pt-BR does not fit pt-PT.
    """
    parts, wanted = (re.split("[-_]", code.strip().casefold()) for code in (written, lang))
    if parts == wanted:
        return 3
    parts[0], wanted[0] = (_SHORT_CODES.get(part, part) for part in (parts[0], wanted[0]))
    n = min(len(parts), len(wanted))
    return (2 if parts != wanted else 3) if parts[:n] == wanted[:n] else 0


def chosen_direction(config: RunConfig, src_lang: str | None, tgt_lang: str | None) -> Direction:
    """Return the direction in which a model of this config translates; a language may be left out if it is clear.

    Args:
        src_lang, tgt_lang: codes or names, as for `closeness`.
    Raises:
        ConfigError: the model does not have a language, or a language is not clear.
    """
    known, found = config.directions, list[str | None]()
    for side, (option, wanted) in enumerate((("from", src_lang), ("to", tgt_lang))):
        langs = [] if wanted is None else sorted({one[side] for one in known})
        fits = {lang: closeness(str(wanted), lang) for lang in langs}
        best = [lang for lang, fit in fits.items() if fit and fit == max(fits.values())]
        way = "into" if side else "from"
        if langs and not best:
            raise ConfigError(option, f"the model does not translate {way} {wanted}", f"choose from {', '.join(langs)}")
        if len(best) > 1:
            raise ConfigError(option, f"the model translates {way} {', '.join(best)}", "choose one of them")
        found.append(best[0] if best else None)
    src, tgt = found
    if src is not None and tgt is not None:
        if src == tgt:
            raise ConfigError("to", f"is {tgt}, the language to translate from", "choose another one")
        return Direction(src, tgt)
    fitting = [one for one in known if src in (None, one.src) and tgt in (None, one.tgt)]
    for option, side, matters in (("to", 1, True), ("from", 0, config.data.source_language_piece)):
        langs = sorted({one[side] for one in fitting})
        if matters and len(langs) > 1:
            way = "into" if side else "from"
            raise ConfigError(option, f"the model translates {way} {', '.join(langs)}", "choose one of them")
    by_default = [one for one in fitting if one.src == config.src_lang]
    return (by_default or fitting)[0]


def is_language(written: str) -> bool:
    """Return whether a text is the code or the name of a language, such as de-DE or German."""
    base, *variants = re.split("[-_]", written.strip().casefold())
    return (base in _SHORT_CODES or base in EXPECTED) and all(2 <= len(part) <= 8 for part in variants)


def expected_scripts(lang: str) -> frozenset[str] | None:
    """Return the scripts that a language is written in, Latin too for a code such as `zh-Latn`; None if unknown."""
    scripts = EXPECTED.get(base_language(lang))
    return scripts if scripts is None or "latn" not in re.split("[-_]", lang.lower()) else scripts | {"Latin"}


def written_without_spaces(lang: str) -> bool:
    """Return whether a language has no spaces between words; false for a language that is not known."""
    scripts = expected_scripts(lang)
    return scripts is not None and scripts <= _UNSPACED_SCRIPTS


def characters_per_word(text: str) -> int:
    """Return 1 for text with spaces between most words; otherwise about how many characters make a word, 2 or 4."""
    n_han, n_thai = len(_HAN.findall(text)), len(_THAI.findall(text))
    n_unspaced = n_han / _HAN_CHARACTERS_PER_WORD + n_thai / _THAI_CHARACTERS_PER_WORD
    if n_unspaced <= len(_WORD.findall(_UNSPACED.sub(" ", text))):
        return 1
    return _HAN_CHARACTERS_PER_WORD if n_han >= n_thai else _THAI_CHARACTERS_PER_WORD


def n_words(text: str) -> int:
    """Count the words of a text, which are separated by spaces.

    In scripts without spaces, two characters (Chinese, Japanese) or four (Thai, Lao, Khmer, Burmese, Tibetan) count as
    a word.
    """
    if text.isascii():
        return len(text.split())
    n_quarters = 2 * len(_HAN.findall(text)) + len(_THAI.findall(text))
    return len(_UNSPACED.sub(" ", text).split()) + n_quarters // _THAI_CHARACTERS_PER_WORD


def units_of(text: str) -> list[str]:
    """Split a text at spaces; in scripts without spaces, each character is a separate unit."""
    return text.split() if text.isascii() else _UNITS.findall(text)


@cache
def script_of(character: str) -> str:
    """Return the Unicode script of a character, also `Common` or `Inherited`; `Other` if it is not listed here."""
    found = _SCRIPT.match(character)
    return _ALL_SCRIPTS[found.lastindex - 1] if found else "Other"


def main_script(text: str) -> str:
    """Return the script of most letters, `Other` for scripts that are not listed here.

    Letters of any script, such as º, are not counted.
    """
    counts = {script: _n_matched(_letters_in(script), text) for script in _SCRIPTS}
    counts["Other"] = _n_matched(_letters_outside(frozenset()), text) - sum(counts.values())
    return max(counts, key=counts.__getitem__)


def wrong_script_fraction(text: str, lang: str, min_letters: int = 1) -> float:
    """Return the fraction of letters that are in a wrong script for the language; 0 for an unknown language.

    Args:
        min_letters: text with fewer letters gives 0.
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
    """Count letters and combining marks; many scripts write vowels as marks."""
    return _n_matched(_runs_of(r"[\p{L}\p{M}]"), text)


def words_of(text: str) -> list[str]:
    """Return the runs of letters of a text; in scripts without spaces, each character is a word."""
    return _words().findall(text)


@cache
def _words() -> re.Pattern[str]:
    spaced = _runs_of(rf"[[\p{{L}}\p{{M}}]--[{UNSPACED}]]")
    return re.compile(f"[{UNSPACED}]|{spaced.pattern}")


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
    """Compile a character set in the syntax of `regex`, which knows scripts, for `re`, which searches twice as fast."""
    ranges: list[tuple[str, str]] = []
    for run in regex.finditer(f"{characters}+", _every_character(), regex.VERSION1):
        first, last = run[0][0], run[0][-1]
        if ranges and ranges[-1][1] > "\uffff" and ord(first) - ord(ranges[-1][1]) < _CLOSE_RANGES:
            first = ranges.pop()[0]
        ranges.append((first, last))
    return re.compile("[" + "".join(f"{first}-{last}" for first, last in ranges) + "]+")


# ---------------------------------------------------------------------------------------------------- languages

# The candidates of identification, besides the two languages of a run. Wrong text from web pages is mostly in one of
# these, and each further candidate is another chance of an error.
_BIG_LANGUAGES = frozenset(
    [
        "ar", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fr", "he", "hi", "hr", "hu", "id", "it", "ja", "ko",
        "nl", "pl", "pt", "ro", "ru", "sv", "th", "tr", "uk", "vi", "zh",
    ]
)  # fmt: skip
# Languages that are too similar to a big one to be distinguished from it in one sentence.
_NEAR = {
    "af": "nl", "an": "es", "ary": "ar", "arz": "ar", "ast": "es", "bs": "hr", "ext": "es", "fo": "da", "fy": "nl",
    "gl": "pt es", "jv": "id", "lb": "de", "lij": "it", "mr": "hi", "ms": "id", "ne": "hi", "nn": "da sv",
    "no": "da sv", "oc": "fr es", "pcm": "en", "sa": "hi", "sdh": "fa", "sk": "cs", "sr": "hr", "vec": "it",
    "wa": "fr", "wuu": "zh", "yue": "zh",
}  # fmt: skip
# Other codes of languages → the codes that py3langid uses.
_ALIASES = {"fil": "tl", "gn": "gug", "in": "id", "iw": "he", "ji": "yi", "ki": "kik", "mo": "ro",
            "nb": "no", "sh": "sr", "ff": "fuv"}  # fmt: skip

_MIN_BYTES = 30  # shorter text is mostly names
_MAX_CHARS = 120  # examined characters of a text: enough to decide, and the cost grows with their number
_FIRST_CHARS = 60  # examined first; for most text in the right language they are enough
_FIRST_PROBABILITY = 0.5
_MIN_MARGIN = 0.6  # between the probabilities of the other language and of the expected one


class LanguageIdentifier:
    """A check of whether text is in the expected language.

    Args:
        langs: language codes, possibly with variants, such as `pt-BR`.
    Raises:
        NotInstalledError: py3langid is not installed.
        ConfigError: py3langid does not know a language.
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
        # Rows of this table are picked for each text; contiguous rows take half the time.
        self._identifier.nb_ptc = np.ascontiguousarray(self._identifier.nb_ptc, dtype=np.float32)

    def __reduce__(self) -> tuple[Any, ...]:
        return LanguageIdentifier, (self.langs,)

    def other_language(self, text: str, lang: str) -> str | None:
        """Return the language of a text that is clearly not in `lang`; None otherwise and for text too short to decide.

        Args:
            lang: one of `langs`; languages that are too similar to it count as it.
        """
        if len(text) < _MIN_BYTES and len(text.encode()) < _MIN_BYTES:
            return None
        accepted = self._accepted[lang]
        found, probability = self._identifier.classify(text[:_FIRST_CHARS])
        if found in accepted and probability > _FIRST_PROBABILITY:
            return None
        found, probability = self._identifier.classify(text[:_MAX_CHARS])
        if found in accepted or probability < _MIN_MARGIN:
            return None
        of_lang = sum(share for code, share in self._identifier.rank(text[:_MAX_CHARS]) if code in accepted)
        return str(found) if probability - of_lang > _MIN_MARGIN else None

    def is_in(self, found: str | None, lang: str) -> bool:
        """Return whether a code from `other_language` means `lang`."""
        return found in self._accepted[lang]


def fraction_in_language(texts: Sequence[str], lang: str, other: str) -> float | None:
    """Return the fraction of texts, of those long enough to tell, that are not clearly in another language.

    Args:
        other: a language that the texts may wrongly be in, besides the big ones.
    Returns:
        None if py3langid is not installed or does not know the language, or if no text is long enough.
    """
    try:
        identifier = _identifier(lang, other)
    except ConfigError:
        return None
    others = [identifier.other_language(text, lang) for text in texts if len(text.encode()) >= _MIN_BYTES]
    return sum(found is None for found in others) / len(others) if others else None


@cache
def _identifier(*langs: str) -> LanguageIdentifier:
    return LanguageIdentifier(langs)


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
