"""Which language text is in, as py3langid sees it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from mt.errors import ConfigError
from mt.text.scripts import base_language

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


class NotInstalledError(ConfigError):
    """A setting needs a package that is not installed."""


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
        """The language that a text is in where it is surely not in `lang`; None for text too short to tell.

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
        """Whether a code that `other_language` gave is that of `lang`."""
        return found in self._accepted[lang]


def _code(lang: str) -> str:
    code = base_language(lang)
    return _ALIASES.get(code, code)


def _accepted(code: str) -> frozenset[str]:
    near = {big for other, bigs in _NEAR.items() for big in bigs.split() if other == code}
    nearer = {other for other, bigs in _NEAR.items() if code in bigs.split()}
    return frozenset({code, *near, *nearer})


def _load() -> Any:
    try:
        from py3langid.langid import MODEL_FILE
        from py3langid.langid import LanguageIdentifier as Identifier
    except ModuleNotFoundError:
        raise NotInstalledError(
            "data.clean.language", "needs py3langid, which is not installed", "pip install 'mt-train[language]'"
        ) from None
    return Identifier.from_model_file(MODEL_FILE, norm_probs=True)
