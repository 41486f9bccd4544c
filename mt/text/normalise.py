"""Normalisation of text, the first step of preparing, translating and scoring, and the same in all three."""

from __future__ import annotations

import html
import html.entities
import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal, NamedTuple
from unicodedata import is_normalized

import regex

from mt.config.settings import SYMBOL, CleanConfig, RunConfig
from mt.errors import optional_package
from mt.text.languages import base_language
from mt.text.reader import SentencePair

NORMALISER_VERSION = 2  # part of a corpus's fingerprint; to be raised when the same settings give different text

# The names and the order of the settings in CleanConfig.
Change = Literal[
    "unicode_nfc", "control_characters", "presentation_forms", "html_entities", "punctuation", "white_space"
]

# Become spaces: controls (tabs and line ends count as white space), U+2581, which SentencePiece decodes as a space,
# annotations, embedded objects, private use, and code points that are not characters.
_CONTROLS = re.compile(
    r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u2581\ufff9-\ufffc\ue000-\uf8ff\ufdd0-\ufdef\U000f0000-\U0010ffff"
    + "".join(f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0, 0xF0000, 0x10000))
    + "]"
)
# Removed: soft hyphens, joiners, directions, selectors of an emoji's form, and other characters without a width, most
# of which occur inside words. Those that _SPELLING calls kept stay, and U+200B becomes a space.
_INVISIBLE = re.compile(
    r"[\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe0e\ufe0f\ufeff\U000e0000-\U000e007f]"
)
# Their letters and marks may be followed by a joiner.
_JOINED_SCRIPTS = (
    "Arab Syrc Mand Nkoo Rohg Adlm Mong Deva Beng Guru Gujr Orya Taml Telu Knda Mlym Sinh Tibt Mymr Khmr Java Bali "
    "Sund Mtei Cakm Newa Tirh Gran"
)
_JOINED = r"[[\p{L}\p{M}]&&[" + re.sub(r"(\w+) ?", r"\\p{scx=\1}", _JOINED_SCRIPTS) + "]]"
_WORD = r"[\p{L}\p{M}\p{N}]"
_UNSPACED = r"[\p{scx=Thai}\p{scx=Laoo}\p{scx=Khmr}\p{scx=Mymr}]"
_PICTURE = r"\p{Extended_Pictographic}"
# Invisible characters that are part of the spelling, one of each run, and all others.
_SPELLING = regex.compile(
    rf"""(?V1x)
      (?<={_JOINED}) (?P<kept>\u200d)\u200d*                        # at the end of a word, too: old Malayalam
    | (?<={_JOINED}) (?P<kept>\u200c)\u200c* (?={_WORD})
    | (?<={_WORD}) (?P<kept>\u200c)\u200c* (?={_JOINED})            # PDF\u200cها
    | (?<=\p{{scx=Mong}}) (?P<kept>\u180e) (?=\p{{scx=Mong}})
    | (?<={_UNSPACED}) (?P<kept>\u200b)\u200b* (?={_UNSPACED})      # between words of scripts written without spaces
    | (?<=[{_PICTURE}\p{{Emoji_Modifier}}\ufe0f]) (?P<kept>\u200d) (?={_PICTURE})
    | (?<={_PICTURE}) (?P<kept>[\ufe0e\ufe0f])
    | (?<=[0-9#*]) (?P<kept>\ufe0f) (?=\u20e3)                      # keycaps
    | (?<=\U0001f3f4) (?P<kept>[\U000e0020-\U000e007e]+\U000e007f)  # flags of regions
    | {_INVISIBLE.pattern}"""
)
# Ligatures, and forms of letters that depend on their neighbours or their width → the letters. Not the full-width forms
# of ASCII, which are usual in Chinese and Japanese. Not signs that stand for a word, such as U+FDFA.
_FORM = re.compile(r"[\u2010\u2011\ufb00-\ufdc7\ufe80-\ufefc\uff61-\uff9f\U0001d400-\U0001d7ff]")
# Longer runs of marks are not text. Sorting a run takes time that grows with the square of its length. The number is
# that of the Stream-Safe Text Format of Unicode (UAX 15).
_TOO_MANY_MARKS = regex.compile(r"(\p{M}{30})\p{M}+")
# Bytes of Windows-1252 that were decoded as Latin-1, mostly quotes and dashes. 0x85 is also a line end in Unicode.
_MISREAD_WINDOWS_1252 = {
    chr(byte): character
    for byte in range(0x80, 0xA0)
    if byte != 0x85 and (character := bytes([byte]).decode("cp1252", "ignore"))
}
# Characters that a prepared corpus cannot hold, whatever the settings.
_IMPOSSIBLE = re.compile(r"[\x00\u2581]")
_LINE_ENDS_AND_TABS = re.compile(r"[\t\n\r]")
_SURROGATES = re.compile(r"[\ud800-\udfff]")
# Only with a semicolon: `a=1&copy=2` does not mean a copyright sign. Numbers with more digits are not characters.
_ENTITIES = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
# In text without any of these characters, the Moses rules change only spaces.
_PUNCTUATION = re.compile(r"[^\w ,.-]")
TAGS = re.compile(rf"(?:{SYMBOL.pattern} )*")
# A text that still changes after as many passes is not prose. Without these characters, it soon stops changing.
_MOST_PASSES, _ENDLESS = 20, str.maketrans('&"', "  ")


class Normaliser:
    """Normalisation of the text of one language according to the settings; it is idempotent.

    Whatever the settings, the result has no tab, line end, NUL or U+2581, and half a surrogate pair, which UTF-8 cannot
    encode, becomes U+FFFD: the format of a prepared corpus relies on this.

    Raises:
        ConfigError: the settings normalise punctuation, but sacremoses is not installed.
    """

    def __init__(self, config: CleanConfig, lang: str) -> None:
        self.config = config
        self.lang = lang
        self._moses_rules = _moses_rules(lang) if config.punctuation else []
        steps: list[tuple[Change, bool, Callable[[str], str]]] = [
            ("html_entities", config.html_entities, _without_entities),
            ("control_characters", True, _without_controls if config.control_characters else _without_impossible),
            ("presentation_forms", config.presentation_forms, _without_forms),
            ("unicode_nfc", config.unicode_nfc, _composed),
            ("punctuation", config.punctuation, self._with_plain_punctuation),
            ("white_space", True, _single_spaced if config.white_space else partial(_LINE_ENDS_AND_TABS.sub, " ")),
        ]
        self._steps = [(change, step) for change, is_on, step in steps if is_on]

    def __call__(self, text: str) -> str:
        return text if self._is_plain(text) else self._changed(text)[0]

    def changes(self, text: str) -> tuple[str, list[Change]]:
        """Return the normalised text and the kinds of changes that were made.

        Changes that are made whatever the settings count as white_space (tabs, line ends) or control_characters (rest).
        """
        return (text, []) if self._is_plain(text) else self._changed(text)

    def _is_plain(self, text: str) -> bool:
        """Return whether the text surely needs no change, whatever the settings; this holds for most text."""
        if not text:
            return True
        # White space other than a plain space, and invisible characters, are not printable.
        if not text.isprintable() or "  " in text or text[0] == " " or text[-1] == " " or "&" in text:
            return False
        if not text.isascii():
            # These are printable. Searching for them one by one is faster than a pattern.
            if "\u2581" in text or "\ufe0f" in text or "\ufe0e" in text or "\ufffc" in text or "\u2010" in text:
                return False
            # Text in NFKC is also in NFC, and has none of _FORMS.
            if not is_normalized("NFKC", text) and (not is_normalized("NFC", text) or _FORM.search(text) is not None):
                return False
        return not self._moses_rules or _PUNCTUATION.search(text) is None

    def _changed(self, text: str) -> tuple[str, list[Change]]:
        found: dict[Change, None] = {}
        # A step may produce text that an earlier step changes: NFC turns `&amp\u037e` into an entity. `&amp;lt;` is `<`
        # escaped twice, and one pass of the Moses rules moves a quote past one other quote.
        n_passes, before = 0, None
        while text != before:
            n_passes, before = n_passes + 1, text
            for change, step in self._steps:
                after = step(text)
                if after != text:
                    text = after
                    found[change] = None
            if n_passes % _MOST_PASSES == 0:
                text = text.translate(_ENDLESS)
        return text, list(found)

    def _with_plain_punctuation(self, text: str) -> str:
        # Training text gets its tag after normalisation, but text to translate already has it. So tags are skipped:
        # the rules would remove the space between a tag and a colon.
        tags = TAGS.match(text)
        if tags is not None and tags.end():
            return tags[0] + self._with_plain_punctuation(text[tags.end() :])
        if _PUNCTUATION.search(text) is None:
            return text
        for pattern, replacement in self._moses_rules:
            text = pattern.sub(replacement, text)
        return re.sub(" +", " ", text).strip(" ")


class Normalisers(NamedTuple):
    """The normalisers of the source and the target side."""

    src: Normaliser
    tgt: Normaliser

    @classmethod
    def of_run(cls, config: RunConfig, langs: tuple[str, str]) -> Normalisers:
        """Return the normalisers of two languages for the settings of a run.

        Raises:
            ConfigError: the settings normalise punctuation, but sacremoses is not installed.
        """
        return cls(*(Normaliser(config.data.clean, lang) for lang in langs))

    def pairs(self, pairs: Iterable[SentencePair]) -> list[SentencePair]:
        return [SentencePair(self.src(src), self.tgt(tgt), line) for src, tgt, line in pairs]

    @classmethod
    def by_default(cls) -> Normalisers:
        """Return the normalisers of the default settings, which do not depend on the language."""
        return cls(_BY_DEFAULT, _BY_DEFAULT)


def _moses_rules(lang: str) -> list[tuple[re.Pattern[str], str]]:
    sacremoses = optional_package("sacremoses", "punctuation", "data.clean.punctuation")
    # Its rule for numbers turns 1 000 with a no-break space into 1,000, which means one in German.
    moses = sacremoses.MosesPunctNormalizer(base_language(lang), norm_numbers=False)
    return [(re.compile(pattern), replacement) for pattern, replacement in moses.substitutions]


def _without_entities(text: str) -> str:
    return _ENTITIES.sub(_character_of, text) if "&" in text else text


def _character_of(entity: re.Match[str]) -> str:
    name = entity[0]
    # For names, `html.unescape` would also replace the beginning of a longer name: &notit; would become ¬it;
    return html.unescape(name) if name[1] == "#" else html.entities.html5.get(name[1:], name)


def _without_controls(text: str) -> str:
    if _INVISIBLE.search(text) is not None:
        text = _SPELLING.sub(lambda match: match["kept"] or (" " if match[0] == "\u200b" else ""), text)
    return _SURROGATES.sub("\ufffd", _CONTROLS.sub(_misread, text))


def _misread(control: re.Match[str]) -> str:
    return _MISREAD_WINDOWS_1252.get(control[0], " ")


def _without_impossible(text: str) -> str:
    return _SURROGATES.sub("\ufffd", _IMPOSSIBLE.sub(" ", text))


def _without_forms(text: str) -> str:
    return text if text.isascii() else _FORM.sub(_usual_letters, text)


def _usual_letters(form: re.Match[str]) -> str:
    letters = unicodedata.normalize("NFKC", form[0]).replace("\u2010", "-")
    return form[0] if " " in letters else letters  # accents without a letter


def _composed(text: str) -> str:
    if is_normalized("NFC", text):
        return text
    return unicodedata.normalize("NFC", _TOO_MANY_MARKS.sub(r"\1", text))


def _single_spaced(text: str) -> str:
    return " ".join(text.split())


_BY_DEFAULT = Normaliser(CleanConfig(), "")


def normalise(text: str) -> str:
    """Return the text normalised with the default settings."""
    return _BY_DEFAULT(text)
