"""Scripts and languages: text in the wrong one is recognised, and text with foreign names is not confused with it."""

from __future__ import annotations

import gzip
import os
import pickle
import sys
from pathlib import Path

import pytest

from mt.errors import ConfigError
from mt.text.languages import (
    EXPECTED,
    LanguageIdentifier,
    base_language,
    characters_per_word,
    expected_scripts,
    main_script,
    units_of,
    words_of,
    written_without_spaces,
    wrong_script_fraction,
)

ENGLISH = "The committee will discuss the proposal next month."
GERMAN = "Der Ausschuss wird den Vorschlag im nächsten Monat erörtern."
FRENCH = "La commission examinera la proposition le mois prochain."


@pytest.fixture(scope="module")
def english_german() -> LanguageIdentifier:
    return LanguageIdentifier(("en", "de"))


@pytest.mark.parametrize(
    ("text", "lang", "share"),
    [
        ("Größe: 5 m² – „ß“, ½ º", "de", 0.0),
        ("Größe", "ru", 1.0),
        ("да da", "ru", 0.5),
        ("да da", "sr", 0.0),
        ("東京タワーへ", "ja", 0.0),
        ("東京タワーへ", "zh_Hant", 0.6),  # ー belongs to no script
        ("हिन्दी", "hi", 0.0),
        ("한국어 漢字", "ko-KR", 0.0),
        ("ქართული", "hy", 1.0),
        ("𐌰𐌱", "en", 1.0),
        ("12 + 3", "ru", 0.0),
        ("", "ru", 0.0),
        ("anything идёт", "xx", 0.0),
    ],
)
def test_the_fraction_of_letters_in_a_script_not_used_by_the_language(text: str, lang: str, share: float) -> None:
    assert wrong_script_fraction(text, lang) == share


def test_text_with_few_letters_is_not_judged() -> None:
    assert wrong_script_fraction("Windows", "ru", min_letters=8) == 0.0
    assert wrong_script_fraction("Windows!", "ru", min_letters=7) == 1.0


def test_each_language_has_its_scripts() -> None:
    assert len(EXPECTED) > 180
    assert expected_scripts("pt-BR") == {"Latin"}
    assert expected_scripts("sr_Latn") == {"Cyrillic", "Latin"}
    assert expected_scripts("ja") == {"Han", "Hiragana", "Katakana"}
    assert expected_scripts("am") == {"Ethiopic"}
    assert expected_scripts("xx") is None
    assert expected_scripts("zh_Latn") == {"Han", "Bopomofo", "Latin"}


def test_the_usual_codes_of_a_language_mean_the_same() -> None:
    groups = ["zh zh-Hans zho_Hant cmn chi ZH_tw", "ja jpn_Jpan", "ko kor_Hang", "th tha_Thai", "de deu_Latn ger de-AT"]
    groups += ["fa pes_Arab prs per", "ar arb_Arab", "sw swh_Latn", "no nor", "ast ast_Latn", "xx xx-YY"]
    for group in groups:
        short, *codes = group.split()
        assert {base_language(code) for code in codes} == {short}


def test_in_scripts_without_spaces_each_character_is_a_unit_and_a_word() -> None:
    line = "在 Azure 中创建 3 个用户。"
    assert units_of(line) == ["在", "Azure", "中", "创", "建", "3", "个", "用", "户", "。"]
    assert words_of(line) == ["在", "Azure", "中", "创", "建", "个", "用", "户"]
    assert units_of("Ein Hund, größer.") == ["Ein", "Hund,", "größer."]
    assert words_of("हिन्दी में 12") == ["हिन्दी", "में"]  # vowel signs belong to the word
    assert [characters_per_word(text) for text in (line, "ขอบคุณมาก", "Das 日本 ist ein Land", "")] == [2, 4, 1, 1]


@pytest.mark.parametrize(("lang", "expected"), [("jpn", True), ("tha_Thai", True), ("ko", False), ("zh-Latn", False)])
def test_languages_without_spaces_are_known(lang: str, expected: bool) -> None:
    assert written_without_spaces(lang) == expected


def test_an_identifier_understands_long_codes() -> None:
    identifier = LanguageIdentifier(("eng_Latn", "deu_Latn"))
    assert (identifier.other_language(GERMAN, "eng_Latn"), identifier.other_language(GERMAN, "deu_Latn")) == (
        "de",
        None,
    )


@pytest.mark.parametrize(
    ("text", "script"), [("abc дe 漢 1!", "Latin"), ("abc девять", "Cyrillic"), ("ᚠ a ᚠ", "Other")]
)
def test_the_main_script_is_that_of_most_letters(text: str, script: str) -> None:
    assert main_script(text) == script


def test_the_language_of_a_sentence_is_found(english_german: LanguageIdentifier) -> None:
    assert english_german.other_language(GERMAN, "en") == "de"
    assert english_german.other_language(FRENCH, "de") == "fr"
    assert english_german.other_language(ENGLISH, "en") is None


def test_names_and_short_texts_are_accepted(english_german: LanguageIdentifier) -> None:
    for text in (
        "Was ist das?",
        "GetThreadOwningMonitorLock-Methode",
        "Microsoft Azure Active Directory",
        "",
        "1234" * 20,
    ):
        assert english_german.other_language(text, "en") is None
        assert english_german.other_language(text, "de") is None


def test_closely_related_languages_are_accepted() -> None:
    identifier = LanguageIdentifier(("nb", "sr-Latn"))
    danish = "Udvalget vil drøfte forslaget i næste måned, sagde formanden."
    croatian = "Odbor će raspravljati o prijedlogu sljedeći mjesec, rekao je predsjednik."
    assert identifier.other_language(danish, "nb") is None
    assert identifier.other_language(croatian, "sr-Latn") is None
    assert identifier.other_language(GERMAN, "nb") == "de"


def test_an_identifier_can_be_sent_to_other_processes(english_german: LanguageIdentifier) -> None:
    packed = pickle.dumps(english_german)
    assert len(packed) < 1_000
    assert pickle.loads(packed).other_language(GERMAN, "en") == "de"


def test_the_error_for_an_unknown_language_names_it() -> None:
    with pytest.raises(ConfigError) as caught:
        LanguageIdentifier(("en", "tlh"))
    assert str(caught.value) == (
        "data.clean.language: py3langid does not know the language 'tlh'. Correct the code, or set "
        "data.clean.language=false."
    )


def test_without_py3langid_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(ConfigError) as caught:
        LanguageIdentifier(("en", "de"))
    assert str(caught.value) == (
        "data.clean.language: py3langid is not installed. Run pip install 'mt-train[language]'."
    )


@pytest.mark.skipif("MT_REAL_DATA" not in os.environ, reason="MT_REAL_DATA names no folder with real text")
def test_real_text_is_accepted_but_not_as_the_other_language(english_german: LanguageIdentifier) -> None:
    folder = Path(os.environ["MT_REAL_DATA"]) / "data" / "newstest"
    english, german = (
        gzip.decompress((folder / f"newstest2014.{lang}.gz").read_bytes()).decode().splitlines()[:500]
        for lang in ("en", "de")
    )
    assert sum(english_german.other_language(text, "en") is not None for text in english) <= 2
    assert sum(english_german.other_language(text, "de") is not None for text in german) <= 2
    assert sum(english_german.other_language(text, "en") == "de" for text in german) >= 470
