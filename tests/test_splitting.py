from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from mt.decode.splitting import Part, gap_after, grouped, join_parts, split_sentences, split_text
from mt.text.normalise import normalise
from mt.text.tokenizer import Tokenizer


def split(text: str, room: int) -> list[str]:
    """Split text in which each character is a piece."""
    return [part.text for part in split_text(text, range(1, len(text) + 1), room)]


def test_a_line_that_fits_is_one_part():
    assert split_text("Ein Hund.", range(1, 10), 9) == [Part("Ein Hund.", 0)]


@pytest.mark.parametrize(
    ("text", "room", "parts"),
    [
        # As many sentences as fit.
        ("Er kam. Er sah. Er siegte.", 16, ["Er kam. Er sah.", "Er siegte."]),
        ('"Er kam." Er sah und siegte.', 20, ['"Er kam."', "Er sah und siegte."]),
        ("Er kam (gestern!). Sie kam auch.", 22, ["Er kam (gestern!).", "Sie kam auch."]),
        ("Kam er?! Sah er? Ja, sah er.", 18, ["Kam er?! Sah er?", "Ja, sah er."]),
        # Not after an abbreviation.
        ("Das gilt z. B. nur heute.", 18, ["Das gilt z. B. nur", "heute."]),
        ("Er kam heute. Wir sahen usw. und so weiter.", 35, ["Er kam heute.", "Wir sahen usw. und so weiter."]),
        ("er kam heute. er sah und siegte.", 20, ["er kam heute.", "er sah und siegte."]),
        ("Hier ist J. Smith zu Haus.", 18, ["Hier ist J. Smith", "zu Haus."]),
        # Between clauses, or else words, or else anywhere.
        ("Sie kam an, er sah und siegte", 20, ["Sie kam an,", "er sah und siegte"]),
        ("Sie kam an – er sah und siegte", 20, ["Sie kam an", "– er sah und siegte"]),
        ("Die Frau (mit Hut) sah den Mann", 22, ["Die Frau (mit Hut)", "sah den Mann"]),
        ("eins zwei drei vier", 10, ["eins zwei", "drei vier"]),
        ("a" * 25, 10, ["a" * 10, "a" * 10, "a" * 5]),
        # Not after a sentence that ends too early.
        ("Ja. Eins zwei drei vier fünf", 20, ["Ja. Eins zwei drei", "vier fünf"]),
        # Scripts without spaces.
        ("他来了。他看见了！「他赢了。」他走了。", 9, ["他来了。他看见了！", "「他赢了。」他走了。"[:6], "他走了。"]),
        ("他来了，他看见了他赢了", 7, ["他来了，", "他看见了他赢了"]),
    ],
)
def test_lines_are_cut_where_a_reader_would_pause(text: str, room: int, parts: list[str]):
    assert split(text, room) == parts


def test_parts_have_the_number_of_words_before_them():
    parts = split_text("eins zwei abcdefghijklmn vier", range(1, 30), 10)
    assert parts == [Part("eins zwei", 0), Part("abcdefghij", 2), Part("klmn vier", 2, continues_word=True)]


def test_pieces_that_share_a_character_stay_together():
    # Three characters of four bytes each, after the space that begins a word.
    assert [part.text for part in split_text("🙂🙃🙂", [0, *[1] * 4, *[2] * 4, *[3] * 4], 6)] == ["🙂", "🙃", "🙂"]
    # The parts are too long, but nothing is lost.
    assert [part.text for part in split_text("🙂🙃", [1] * 4 + [2] * 4, 2)] == ["🙂", "🙃"]


def test_piece_ends_are_positions_in_characters(tokenizer: Tokenizer):
    for text in ("bar dest", "ä🙂 bar漢 <0x41>", "🙂", "x"):
        ids = tokenizer.encode(text)
        ends = tokenizer.piece_ends(text)
        assert len(ends) == len(ids)
        assert ends[-1] == len(text)
        for place, end in enumerate(ends[:-1]):
            if end != ends[place + 1]:
                assert tokenizer.decode(ids[: place + 1]) == text[:end]


def test_splitting_drops_only_spaces_at_the_cuts(tokenizer: Tokenizer):
    rng = random.Random(1)
    alphabet = "ab.,!? 。，「」()–漢🙂é "
    for _ in range(200):
        text = normalise("".join(rng.choices(alphabet, k=rng.randrange(1, 120))))
        room = rng.randrange(3, 20)
        parts = split_text(text, tokenizer.piece_ends(text), room)
        assert "".join(part.text for part in parts).replace(" ", "") == text.replace(" ", "")
        assert all(part.text == part.text.strip() and part.text for part in parts) or text == ""
        words = text.split(" ")
        for part in parts:
            first = part.text.split(" ")[0]
            assert first in words[part.n_words_before] if part.text else True


def test_translated_parts_are_joined_with_a_space_if_their_script_uses_spaces():
    assert join_parts("Er kam.", "Er sah.", False) == "Er kam. Er sah."
    assert join_parts("Donau", "dampf", True) == "Donaudampf"
    assert join_parts("他来了。", "他看见了。", False) == "他来了。他看见了。"
    assert join_parts("他来了。", "OK.", False) == "他来了。 OK."
    assert join_parts("", "Er sah.", False) == "Er sah."
    assert join_parts("Er kam.", "", False) == "Er kam."
    assert join_parts("他来了。", "他看见了。", False, " ") == "他来了。他看见了。"
    assert join_parts("Er kam.", "Er sah.", False, "") == "Er kam. Er sah."


@pytest.mark.parametrize("gap", ["\n\n", "\n", "  ", "\t"])
def test_other_white_space_between_sentences_is_kept(gap: str):
    assert join_parts("Er kam.", "Er sah.", False, gap) == f"Er kam.{gap}Er sah."
    assert join_parts("他来了。", "他看见了。", False, gap) == f"他来了。{gap}他看见了。"


@pytest.mark.parametrize(
    ("line", "sentences", "gaps"),
    [
        ("", [], []),
        (" Ein Hund. ", ["Ein Hund."], [""]),
        ("Ein Hund.  Eine Katze.\tEnde.", ["Ein Hund.  ", "Eine Katze.\t", "Ende."], ["  ", "\t", ""]),
        ("Titel\n\nEin Hund.\r\n Ende.\n", ["Titel\n\n", "Ein Hund.\r\n ", "Ende."], ["\n\n", "\n ", ""]),
        ("Er kam.\u00a0Er sah.\u2028Er ging.", ["Er kam.\u00a0", "Er sah.\u2028", "Er ging."], [" ", " ", ""]),
    ],
)
def test_a_line_has_sentences_and_the_white_space_after_each(line: str, sentences: list[str], gaps: list[str]):
    assert split_sentences(line, "de") == sentences
    assert list(map(gap_after, sentences)) == gaps


def test_sentences_are_grouped_up_to_the_limits():
    def groups(lengths: list[int], *limits: int, sentences: Sequence[str] = "abcde") -> list[str]:
        return grouped(sentences[: len(lengths)], lengths, *limits)

    assert groups([3, 4, 5], 1, 100) == ["a", "b", "c"]
    assert groups([3, 4, 5], 2, 100) == ["ab", "c"]
    assert groups([3, 4, 5], 9, 9) == ["ab", "c"]
    assert groups([30, 4, 5, 20, 1], 9, 9) == ["a", "bc", "d", "e"]
    assert groups([3, 4, 5], 9, 100, sentences=["A. ", "B.\n", "C."]) == ["A. B.\n", "C."]
