"""Normalisation changes text as the settings say, and a second normalisation changes nothing."""

from __future__ import annotations

import itertools
import pickle
import sys
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt.config.settings import CleanConfig, DataConfig, RunConfig, TextFiles
from mt.errors import ConfigError
from mt.text.languages import base_language
from mt.text.normalise import Change, Normaliser, Normalisers, normalise

CHANGES: tuple[Change, ...] = ("unicode_nfc", "control_characters", "html_entities", "punctuation", "white_space")
# All combinations of the settings, in English and in German, which have different rules for quotes.
NORMALISERS = [
    Normaliser(CleanConfig(**dict(zip(CHANGES, flags, strict=True))), lang)
    for flags in itertools.product([False, True], repeat=5)
    for lang in ("en", "de")
]
# Characters that the rules change are frequent.
TEXT = st.text(
    st.sampled_from("a1 \t\n\x00\x07\x85\u00a0\u200b\u2581&#;lt<>amp\u037e\u0338\u0301u\"'`´,.:()%„“«»–—…\ud800")
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
        ("m² ﬁ ½ ￦", "m² ﬁ ½ ￦"),  # NFKC would change these
        ("می\u200cخواهم 👩\u200d👩", "می\u200cخواهم 👩\u200d👩"),
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
    ("text", "setting", "without"),
    [
        ("u\u0308", "unicode_nfc", "u\u0308"),
        ("a\x07b\u200bc", "control_characters", "a\x07b\u200bc"),
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
    every_character = "".join(map(chr, range(0x30000)))
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
    sides = Normalisers.of_run(RunConfig(name="x", src_lang="de", tgt_lang="en", data=data))
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
