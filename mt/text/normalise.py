"""Normalisation of text, the first step of preparing, translating and scoring, and the same in all three."""

from __future__ import annotations

import html
import html.entities
import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal, NamedTuple

from mt.config.settings import SYMBOL, CleanConfig, RunConfig
from mt.errors import optional_package
from mt.text.corpora import SentencePair
from mt.text.languages import base_language

# The names and the order of the settings in CleanConfig.
Change = Literal["unicode_nfc", "control_characters", "html_entities", "punctuation", "white_space"]

# Control characters, and the invisible U+200B and U+FEFF, which SentencePiece's own NMT rules turn into spaces as well.
# Tabs and line ends count as white space. SentencePiece writes a space as U+2581, so decoding would turn U+2581 into a
# space. The joiners U+200C and U+200D stay: Persian, the Indic scripts and emoji are spelled with them.
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u200b\u2581\ufeff]")
# Bytes of Windows-1252 that were decoded as Latin-1, mostly quotes and dashes. 0x85 is also a line end in Unicode.
_MISREAD_WINDOWS_1252 = {
    byte: character
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
            ("unicode_nfc", config.unicode_nfc, partial(unicodedata.normalize, "NFC")),
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
        if not text.isascii() and ("\u2581" in text or not unicodedata.is_normalized("NFC", text)):
            return False
        return not self._moses_rules or _PUNCTUATION.search(text) is None

    def _changed(self, text: str) -> tuple[str, list[Change]]:
        found: dict[Change, None] = {}
        is_stable = False
        # A step may produce text that an earlier step changes: NFC turns `&amp\u037e` into an entity.
        while not is_stable:
            is_stable = True
            for change, step in self._steps:
                after = step(text)
                if after != text:
                    text, is_stable = after, False
                    found[change] = None
        return text, list(found)

    def _with_plain_punctuation(self, text: str) -> str:
        # Training text gets its tag after normalisation, but text to translate already has it. So tags are skipped:
        # the rules would remove the space between a tag and a colon.
        tags = TAGS.match(text)
        if tags is not None and tags.end():
            return tags[0] + self._with_plain_punctuation(text[tags.end() :])
        # One pass moves a quote past one other quote, so at most as many passes as characters are needed.
        for _ in range(len(text) + 1):
            if _PUNCTUATION.search(text) is None:
                break
            before = text
            for pattern, replacement in self._moses_rules:
                text = pattern.sub(replacement, text)
            text = re.sub(" +", " ", text).strip(" ")
            if text == before:
                break
        return text


class Normalisers(NamedTuple):
    """The normalisers of the source and the target side."""

    src: Normaliser
    tgt: Normaliser

    @classmethod
    def of_run(cls, config: RunConfig) -> Normalisers:
        """Return the normalisers for the settings of a run.

        Raises:
            ConfigError: the settings normalise punctuation, but sacremoses is not installed.
        """
        return cls(Normaliser(config.data.clean, config.src_lang), Normaliser(config.data.clean, config.tgt_lang))

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
    """Replace entities until none is left: `&amp;lt;` is `<` escaped twice."""
    while "&" in text and (after := _ENTITIES.sub(_character_of, text)) != text:
        text = after
    return text


def _character_of(entity: re.Match[str]) -> str:
    name = entity[0]
    # For names, `html.unescape` would also replace the beginning of a longer name: &notit; would become ¬it;
    return html.unescape(name) if name[1] == "#" else html.entities.html5.get(name[1:], name)


def _without_controls(text: str) -> str:
    return _SURROGATES.sub("\ufffd", _CONTROLS.sub(" ", text.translate(_MISREAD_WINDOWS_1252)))


def _without_impossible(text: str) -> str:
    return _SURROGATES.sub("\ufffd", _IMPOSSIBLE.sub(" ", text))


def _single_spaced(text: str) -> str:
    return " ".join(text.split())


_BY_DEFAULT = Normaliser(CleanConfig(), "")


def normalise(text: str) -> str:
    """Return the text normalised with the default settings."""
    return _BY_DEFAULT(text)
