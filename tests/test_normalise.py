"""Normalisation changes text as the settings say, and a second normalisation changes nothing."""

from __future__ import annotations

import itertools
import pickle
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt.config.settings import CleanConfig, DataConfig, RunConfig, TextFiles
from mt.errors import ConfigError
from mt.text.languages import base_language
from mt.text.normalise import Change, Normaliser, Normalisers, normalise

CHANGES: tuple[Change, ...] = (
    "unicode_nfc",
    "control_characters",
    "presentation_forms",
    "html_entities",
    "punctuation",
    "white_space",
)
# All combinations of the settings, in English and in German, which have different rules for quotes.
NORMALISERS = [
    Normaliser(CleanConfig(**dict(zip(CHANGES, flags, strict=True))), lang)
    for flags in itertools.product([False, True], repeat=6)
    for lang in ("en", "de")
]
# Characters that the rules change are frequent.
TEXT = st.text(
    st.sampled_from(
        "\xad\u200c\u200d\ufe0fﬁ‑👩م"
        "a1 \t\n\x00\x07\x85\u00a0\u200b\u2581&#;lt<>amp\u037e\u0338\u0301u\"'`´,.:()%„“«»–—…\ud800"
    )
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  two   words \n", "two words"),
        ("no\u00a0break\u2028line\u2029paragraph\x85next\tTab", "no break line paragraph next Tab"),
        ("bell\x07 nul\x00 del\x7f c1\x9d.", "bell nul del c1 ."),
        ("\x84das\x93 \x96 \x8085", "„das“ – €85"),  # Windows-1252 taken for Latin-1
        ("\ufeffbyte order mark, zero\u200bwidth", "byte order mark, zero width"),
        ("\u2581\u2581piece", "piece"),
        ("u\u0308ber", "über"),
        ("m² ½ ￦ ™ １", "m² ½ ￦ ™ １"),  # NFKC would change these
        ("half \ud800 a pair", "half \ufffd a pair"),
        (" \x00\u2003\t", ""),
        ("", ""),
        ("R&amp;D &lt;b&gt; it&#39;s &#x20AC;5 &nbsp;", "R&D <b> it's €5"),
        ("&amp;amp;lt;", "<"),
        ("one&#10;line &#x2581; &#0; &#xD800;", "one line \ufffd \ufffd"),
        ("a=1&copy=2; R&D; &nosuch; &notit; AT&T", "a=1&copy=2; R&D; &nosuch; &notit; AT&T"),
        ("&#" + "9" * 5_000 + ";", "&#" + "9" * 5_000 + ";"),
        ("&amp\u037e", "&"),  # NFC turns the Greek question mark into a semicolon
        ("&lt;\u0338", "≮"),
    ],
)
def test_the_default_settings_normalise_these_texts(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(
    "character", "\xad\u061c\u180e\u200c\u200d\u200e\u202a\u2060\u2063\u2069\u206f\ufe0e\ufe0f\ufeff\U000e0041"
)
def test_an_invisible_character_is_removed_from_a_latin_word_and_joins_it(character: str) -> None:
    assert normalise(f"off{character}ice") == "office"
    assert normalise(f"bü{character * 3}ro {character} an{character}") == "büro an"
    assert Normaliser(CleanConfig(), "en").changes(f"Bü{character}ro") == ("Büro", ["control_characters"])


@pytest.mark.parametrize(
    "text",
    [
        "می\u200cخواهم",
        "مَ\u200cخ",  # after a vowel sign
        "PDF\u200cها ۵\u200cساله",
        "ه\u200d",
        "ന്\u200d അവ",
        "ක්\u200dරි র\u200d্য ক্\u200cক",
        "ᠠᠨ\u180eᠠ",
        "👩\u200d👩 🤷🏽\u200d♀\ufe0f 👁\ufe0f\u200d🗨\ufe0f ☎\ufe0e 1\ufe0f\u20e3 ©\ufe0f",
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "ភាសា\u200bខ្មែរ",
        "葛\U000e0100城 ≨\ufe00",
    ],
)
def test_an_invisible_character_that_belongs_to_the_spelling_is_kept(text: str) -> None:
    assert normalise(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("می\u200c\u200cخواهم", "می\u200cخواهم"),
        ("می\xad\u200fخواهم می\u200c خ", "میخواهم می خ"),
        ("PDF\u200cs \u200cها", "PDFs ها"),
        ("👩\u200d and \u200d👩 1\ufe0f", "👩 and 👩 1"),
        ("a\ufe0f\u200d👩", "a👩"),
        ("\U000e0067\U0001f3f4\U000e0067 ", "\U0001f3f4"),
        ("ភាសា\u200b\u200b ខ្មែរ", "ភាសា ខ្មែរ"),
    ],
)
def test_an_invisible_character_is_removed_where_no_script_is_spelled_with_it(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_private_characters_objects_and_code_points_that_are_not_characters_become_spaces() -> None:
    for code in (0xE000, 0xF0B7, 0xF0000, 0x10FFFF, 0xFDD0, 0xFFFE, 0xFFFF, 0x1FFFE, 0xEFFFF, 0xFFF9, 0xFFFC):
        assert normalise(f"{chr(code)} one{chr(code)}two") == "one two"
    assert normalise("\ufffd\ufffd ü") == "\ufffd\ufffd ü"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("oﬃce ﬁnds ﬂuﬀ", "office finds fluff"),
        ("non‑breaking, true‐hyphen, −1 – a", "non-breaking, true-hyphen, −1 – a"),
        ("ｶﾞｷﾞ､｢ﾃｽﾄ｣｡ ＡＢＣ１？", "ガギ、「テスト」。 ＡＢＣ１？"),
        ("ﻣﺮﺣﺒﺎ ﷺ \ufe70 مـرحبا", "مرحبا ﷺ \ufe70 مـرحبا"),
        ("𝐛𝐨𝐥𝐝 𝗪𝗼𝗿𝗱 𝑥", "bold Word x"),
    ],
)
def test_presentation_forms_become_the_usual_characters(text: str, expected: str) -> None:
    assert Normaliser(CleanConfig(), "en").changes(text)[0] == expected
    assert "presentation_forms" in Normaliser(CleanConfig(), "en").changes(text)[1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a" + "\u0301\u0323" * 4_000, unicodedata.normalize("NFC", "a" + "\u0301\u0323" * 15)),
        ("&" + "amp;" * 4_000 + " x", None),
        ("&sh" * 2_000 + "&shy;" + "y;" * 2_000, None),
        ("&#38" + "&#51;" * 3 + ";", None),
        ("&" + "amp\u037e" * 2_000, None),
        ('",' * 2_000, None),
        ('"' * 4_000 + ",", None),
        ("a\u200d" * 2_000 + "\ufe0f\u200d" * 2_000, "a" * 2_000),
    ],
)
def test_a_hostile_line_is_normalised_in_few_passes(
    text: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    normaliser = Normaliser(CleanConfig(punctuation=True), "en")
    n_steps = 0

    def counted(step: Callable[[str], str]) -> Callable[[str], str]:
        def run(text: str) -> str:
            nonlocal n_steps
            n_steps += 1
            return step(text)

        return run

    monkeypatch.setattr(normaliser, "_steps", [(change, counted(step)) for change, step in normaliser._steps])
    once = normaliser(text)
    assert n_steps <= 25 * len(normaliser._steps)
    assert expected is None or once == expected
    assert normaliser(once) == once


@pytest.mark.parametrize(
    ("text", "setting", "without"),
    [
        ("u\u0308", "unicode_nfc", "u\u0308"),
        ("a\x07b\u200bc\xad", "control_characters", "a\x07b\u200bc\xad"),
        ("ﬁ", "presentation_forms", "ﬁ"),
        ("a &amp; b", "html_entities", "a &amp; b"),
        (" a\t b\u00a0\r\n", "white_space", " a  b\u00a0  "),
    ],
)
def test_each_change_can_be_turned_off(text: str, setting: Change, without: str) -> None:
    normaliser = Normaliser(replace(CleanConfig(), **{setting: False}), "en")
    assert normaliser(text) == without != normalise(text)
    assert normaliser.changes(text)[1] == (["white_space"] if setting == "white_space" else [])
    assert setting in Normaliser(CleanConfig(), "en").changes(text)[1]


@settings(max_examples=200)
@given(TEXT | st.text())
def test_normalisation_is_idempotent_with_any_settings(text: str) -> None:
    for normaliser in NORMALISERS:
        once, changes = normaliser.changes(text)
        assert normaliser(text) == once
        assert (once != text) == bool(changes)
        assert normaliser.changes(once) == (once, [])
        assert not set(once) & set("\n\r\t\x00\u2581")
        once.encode()
        if normaliser.config.unicode_nfc:
            assert unicodedata.is_normalized("NFC", once)


def test_normalisation_is_idempotent_for_all_characters() -> None:
    every_character = "".join(map(chr, [*range(0x30000), *range(0xE0000, 0xE0200), 0xF0000, 0x10FFFF]))
    pieces = [every_character[i : i + 7] for i in range(0, len(every_character), 7)]
    with_marks = [f" {chr(code)}\u0301\u0323{chr(code)}\u200b" for code in range(0x3000)]
    for text in pieces + with_marks:
        once = normalise(text)
        assert normalise(once) == once
        assert unicodedata.is_normalized("NFC", once)
        assert not set(once) & set("\t\n\r\u2028")


@pytest.mark.parametrize(
    ("lang", "text", "expected"),
    [
        ("de", "„Gut“, sagte er … (so) – ja", '"Gut", sagte er ... (so) - ja'),
        ("en", "“Good”, he said ‘so’ — yes", "\"Good,\" he said 'so' - yes"),
        ("fr", "«\u00a0Oui\u00a0» : 5 %", '"Oui": 5%'),
        ("pt-BR", "« Sim »", '" Sim "'),
        ("en", 'a """, b', 'a ,""" b'),  # Moses moves the comma past one quote in each pass
        ("de", "1\u00a0000 Euro", "1 000 Euro"),  # Moses would write 1,000
    ],
)
def test_punctuation_follows_moses_and_is_idempotent(lang: str, text: str, expected: str) -> None:
    normaliser = Normaliser(CleanConfig(punctuation=True), lang)
    assert normaliser(text) == expected
    assert normaliser(expected) == expected
    assert "punctuation" in normaliser.changes(text)[1] or "Euro" in text


@pytest.mark.parametrize("text", [": foo", "; foo", ") foo", "« foo »", '" foo ,"'])
def test_a_tag_does_not_affect_the_text_after_it(text: str) -> None:
    normaliser = Normaliser(CleanConfig(punctuation=True), "en")
    assert normaliser(f"<bt> <x:y> {text}") == f"<bt> <x:y> {normaliser(text)}"


def test_changes_lists_only_rules_that_changed_the_text() -> None:
    normaliser = Normaliser(CleanConfig(punctuation=True), "en")
    assert normaliser.changes("as it was") == ("as it was", [])
    assert normaliser.changes("one space behind ") == ("one space behind", ["white_space"])
    assert normaliser.changes("&quot;u\u0308\x07a") == ('"ü a', ["html_entities", "control_characters", "unicode_nfc"])
    assert normaliser.changes("‘a’") == ("'a'", ["punctuation"])


def test_each_side_is_normalised_by_the_rules_of_its_language() -> None:
    source = TextFiles(src="a", tgt="b")
    data = DataConfig(train=(source,), valid=source, clean=CleanConfig(punctuation=True, white_space=False))
    sides = Normalisers.of_run(RunConfig(name="x", src_lang="de", tgt_lang="en", data=data), ("de", "en"))
    assert (sides.src('"a", b'), sides.tgt('"a", b')) == ('"a", b', '"a," b')
    copy = pickle.loads(pickle.dumps(sides))
    assert copy.tgt('„a“, "b",') == sides.tgt('„a“, "b",')


def test_without_sacremoses_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacremoses", None)
    with pytest.raises(ConfigError) as caught:
        Normaliser(CleanConfig(punctuation=True), "en")
    assert str(caught.value) == (
        "data.clean.punctuation: sacremoses is not installed. Run pip install 'mt-train[punctuation]'."
    )


def test_the_base_language_is_the_code_without_region_or_script() -> None:
    assert [base_language(code) for code in ("pt-BR", "zh_Hant", "DE")] == ["pt", "zh", "de"]
