"""The tokenizer: deterministic, lossless on normalised text, with clear errors for sizes that do not fit."""

import gzip
import io
import itertools
import os
import pickle
import random
import re
import string
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from mt.config.settings import TokenizerConfig
from mt.errors import CheckpointError, ConfigError, DataError
from mt.text.normalise import normalise
from mt.text.tokenizer import (
    BOS_ID,
    EOS_ID,
    PAD_ID,
    UNK_ID,
    Tokenizer,
    adopt_model,
    count_words,
    n_skipped_words,
    train_tokenizer,
)

NASTY = [
    "",
    "a",
    "Zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich.",
    "m² ﬁ ½",
    "日本語 اردو עברית ไทย 한국어",
    "👩‍👩‍👧‍👦 🇩🇪 😀",
    "<s> </s> <unk> <pad> <0x0A> ⁇",
    "\u0301 starts with an accent",
    "\ufffd ▅ \u200d",
    "x" * 100_000,
]


def sentences(n: int) -> list[str]:
    draw = random.Random(3)
    words = ["".join(draw.choices(string.ascii_lowercase + "äöüß", k=draw.randint(1, 8))) for _ in range(300)]
    return [" ".join(draw.choices(words, k=draw.randint(2, 12))) + "." for _ in range(n)]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp(request.param) / "tokenizer.model"
    train_tokenizer(count_words(sentences(400)), TokenizerConfig(kind=request.param, vocab_size=500), path)
    return Tokenizer.load(path)


def test_the_special_ids_are_fixed(tokenizer: Tokenizer) -> None:
    assert (PAD_ID, UNK_ID, BOS_ID, EOS_ID) == (0, 1, 2, 3)
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 2, 3)
    assert tokenizer.pieces([0, 1, 2, 3]) == ["<pad>", "<unk>", "<s>", "</s>"]
    assert tokenizer.vocab_size == 500


@pytest.mark.parametrize("text", NASTY, ids=lambda text: ascii(text[:20]))
def test_decoding_gives_back_normalised_text(tokenizer: Tokenizer, text: str) -> None:
    text = normalise(text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {PAD_ID, UNK_ID, BOS_ID, EOS_ID} & set(ids)


def test_encoding_together_equals_encoding_alone(tokenizer: Tokenizer) -> None:
    texts = [*sentences(50), *NASTY]
    alone = [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch(texts) == alone
    assert tokenizer.encode_batch(texts, n_threads=1) == alone
    assert tokenizer.encode_batch([]) == []
    assert tokenizer.decode_batch(alone) == texts


def test_special_ids_are_skipped_when_decoding(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("über den deich")
    assert tokenizer.decode([BOS_ID, *ids, UNK_ID, EOS_ID, PAD_ID, PAD_ID]) == "über den deich"


def test_bytes_that_are_not_utf8_become_replacement_characters(tokenizer: Tokenizer) -> None:
    byte_ids = {piece: id_ for id_, piece in enumerate(tokenizer.pieces(range(4, 260)), start=4)}
    assert len(byte_ids) == 256
    assert tokenizer.decode([byte_ids["<0xE4>"]]) == "\ufffd"
    assert tokenizer.decode([byte_ids[f"<0x{byte:02X}>"] for byte in "ä€".encode()]) == "ä€"


def test_the_pieces_that_break_lines_are_found(tokenizer: Tokenizer) -> None:
    assert sorted(tokenizer.pieces(tokenizer.line_breaking_ids)) == ["<0x00>", "<0x0A>", "<0x0D>"]
    assert tokenizer.line_breaking_ids <= set(tokenizer.encode("a\nb\rc\x00d"))


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_the_same_counts_in_any_order_give_the_same_bytes(tmp_path: Path, kind: str) -> None:
    counts = count_words(sentences(300))
    config = TokenizerConfig(kind=kind, vocab_size=400)
    shuffled = list(counts.items())
    random.Random(1).shuffle(shuffled)
    (tmp_path / "elsewhere").mkdir()
    paths = [tmp_path / "first", tmp_path / "elsewhere" / "second"]
    for path, given in zip(paths, (counts, dict(shuffled)), strict=True):
        train_tokenizer(given, config, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["elsewhere", "first", "second"]


def trained_on_lines(lines: Iterable[str], **settings: Any) -> bytes:
    """Train a model with our settings by SentencePiece itself, from lines."""
    model = io.BytesIO()
    ours = {"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3, "byte_fallback": True, "num_threads": 16}
    unchanged = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, minloglevel=2, **{**ours, **unchanged, **settings}
    )
    return model.getvalue()


def scored_pieces(model: bytes) -> list[tuple[str, float]]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [(processor.id_to_piece(i), processor.get_score(i)) for i in range(processor.get_piece_size())]


def text_with_rare_characters() -> list[str]:
    draw = random.Random(5)
    letters = [*string.ascii_lowercase * 30, *"äöüß€" * 5, *map(chr, range(0x4E00, 0x4E40)), "▁"]
    words = ["".join(draw.choices(letters, k=draw.randint(1, 8))) for _ in range(400)]
    words += ["<pad>x", "a<bt>b", "</s>"]
    return [" ".join(draw.choices(words, k=draw.randint(1, 12))) for _ in range(1_000)]


@pytest.mark.parametrize("coverage", [0.98, 0.99, 0.9999, 1.0])
def test_training_on_counts_gives_the_same_bpe_model_as_on_lines(tmp_path: Path, coverage: float) -> None:
    lines = text_with_rare_characters()
    config = TokenizerConfig(vocab_size=700, character_coverage=coverage)
    train_tokenizer(count_words(lines), config, tmp_path / "model", ["<bt>"])
    expected = trained_on_lines(
        lines,
        model_type="bpe",
        vocab_size=700,
        character_coverage=coverage,
        user_defined_symbols=["▁<bt>", "<bt>"],
    )
    assert scored_pieces((tmp_path / "model").read_bytes()) == scored_pieces(expected)


@pytest.mark.parametrize("coverage", [0.98, 0.985, 0.99])
def test_our_coverage_for_values_that_the_trainer_refuses_equals_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, coverage: float
) -> None:
    counts = count_words(text_with_rare_characters())
    config = TokenizerConfig(vocab_size=700, character_coverage=coverage)
    models = []
    for ours_begins_below in (0.98, 1.0):
        monkeypatch.setattr("mt.text.tokenizer._LEAST_COVERAGE", ours_begins_below)
        train_tokenizer(counts, config, tmp_path / "model", ["<bt>"])
        models.append(scored_pieces((tmp_path / "model").read_bytes()))
    assert models[0] == models[1]


def test_with_a_coverage_of_90_percent_the_rarest_characters_become_bytes(tmp_path: Path) -> None:
    lines = sentences(400)
    uses = Counter("".join("▁" + line.replace(" ", "▁") for line in lines))
    covered = list(itertools.accumulate(count for _, count in uses.most_common()))
    n_kept = next(n for n, count in enumerate(covered, start=1) if count >= 0.9 * covered[-1])
    train_tokenizer(count_words(lines), TokenizerConfig(vocab_size=400, character_coverage=0.9), tmp_path / "model")
    tokenizer = Tokenizer.load(tmp_path / "model")
    letters = {piece for piece in tokenizer.pieces(range(260, 400)) if len(piece) == 1}
    assert letters == {character for character, _ in uses.most_common(n_kept)}
    rarest = uses.most_common()[-1][0]
    assert tokenizer.decode(tokenizer.encode(rarest)) == rarest


@pytest.mark.skipif("MT_REAL_DATA" not in os.environ, reason="needs real text")
def test_training_on_counts_of_real_text_gives_the_same_bpe_model_as_on_lines(tmp_path: Path) -> None:
    with gzip.open(Path(os.environ["MT_REAL_DATA"]) / "data/newstest/newstest2013.de.gz", "rt", "utf-8") as file:
        lines = [normalise(line) for line in file]
    train_tokenizer(count_words(lines), TokenizerConfig(vocab_size=4_000), tmp_path / "model")
    settings = {"model_type": "bpe", "vocab_size": 4_000, "character_coverage": 0.9999, "split_digits": True}
    expected = trained_on_lines(lines, **settings)
    assert scored_pieces((tmp_path / "model").read_bytes()) == scored_pieces(expected)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_user_symbols_are_one_piece_including_their_space(tmp_path: Path, kind: str) -> None:
    counts = count_words([*sentences(300), "<bt> bt <br>"])
    train_tokenizer(counts, TokenizerConfig(kind=kind, vocab_size=400), tmp_path / "model", ["<bt>", "<name>"])
    tokenizer = Tokenizer.load(tmp_path / "model")
    text = "<bt> der <name>, x<name>y <bt><bt> <BT>"
    pieces = tokenizer.pieces(tokenizer.encode(text))
    assert [piece for piece in pieces if "bt" in piece or "name" in piece] == [
        *["▁<bt>", "▁<name>", "<name>"],
        *["▁<bt>", "<bt>"],
    ]
    assert tokenizer.pieces(tokenizer.encode("<bt> der"))[1:] == tokenizer.pieces(tokenizer.encode("der"))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocab_size == 400


NUMBERS = [f"{price} {year} x{price}y m²" for price in range(90, 200, 7) for year in (1999, 2023)]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize(
    "zero", ["0", "\u0660", "\u0966", "\uff10"], ids=["ASCII", "Arabic", "Devanagari", "full width"]
)
def test_each_digit_is_a_piece_in_any_script(tmp_path: Path, kind: str, zero: str) -> None:
    to_script = str.maketrans({str(digit): chr(ord(zero) + digit) for digit in range(10)})
    counts = count_words([*sentences(300), *(line.translate(to_script) for line in NUMBERS * 20)])
    train_tokenizer(counts, TokenizerConfig(kind=kind, vocab_size=400), tmp_path / "model")
    tokenizer = Tokenizer.load(tmp_path / "model")
    assert [piece for piece in tokenizer.pieces(range(260, 400)) if re.search(r"\d.|.\d", piece)] == []
    number = "2023".translate(to_script)
    assert tokenizer.pieces(tokenizer.encode(number)) == ["▁", *number]
    assert tokenizer.decode(tokenizer.encode(f"x{number}y {number}.")) == f"x{number}y {number}."


def test_without_split_digits_frequent_numbers_are_pieces(tmp_path: Path) -> None:
    counts = count_words([*sentences(300), *NUMBERS * 20])
    train_tokenizer(counts, TokenizerConfig(vocab_size=400, split_digits=False), tmp_path / "model")
    tokenizer = Tokenizer.load(tmp_path / "model")
    assert tokenizer.pieces(tokenizer.encode("2023")) == ["▁2023"]


def test_digits_inside_a_symbol_stay_together(tmp_path: Path) -> None:
    counts = count_words([*sentences(300), *["<num12> 12"] * 50])
    train_tokenizer(counts, TokenizerConfig(vocab_size=400), tmp_path / "model", ["<num12>"])
    tokenizer = Tokenizer.load(tmp_path / "model")
    assert tokenizer.pieces(tokenizer.encode("<num12> 12")) == ["▁<num12>", "▁", "1", "2"]


def test_training_a_tokenizer_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train_tokenizer(count_words(sentences(300)), TokenizerConfig(vocab_size=400), tmp_path / "model")
    assert capfd.readouterr() == ("", "")


def test_words_that_are_too_long_are_left_out_and_counted(tmp_path: Path) -> None:
    # The letters of skipped words get no piece, which shows that they were skipped.
    longest, too_long = "Y" * 4_192, "É" * 2_097
    counts = count_words([*sentences(300), longest, f"{too_long} {too_long}", "block ▅Q \x00R\t"])
    assert n_skipped_words(counts) == 2
    train_tokenizer(counts, TokenizerConfig(vocab_size=400, character_coverage=1.0), tmp_path / "model")
    vocabulary = "".join(Tokenizer.load(tmp_path / "model").pieces(range(260, 400)))
    assert {"Y", "Q", "R"} <= set(vocabulary)
    assert not {"É", "▅", "\x00", "\t"} & set(vocabulary)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_the_error_for_too_large_a_vocabulary_gives_the_maximum(tmp_path: Path, kind: str) -> None:
    counts = count_words(sentences(60))
    with pytest.raises(ConfigError) as caught:
        train_tokenizer(counts, TokenizerConfig(kind=kind, vocab_size=8_000), tmp_path / "model")
    found = str(caught.value).rsplit("Set it to ", 1)[1].split()[0]
    assert str(caught.value) == (
        f"tokenizer.vocab_size: 8,000 is too large for this corpus, which gives at most {int(found):,} pieces. "
        f"Set it to {found} or less, or give more text."
    )
    assert list(tmp_path.iterdir()) == []
    train_tokenizer(counts, TokenizerConfig(kind=kind, vocab_size=int(found)), tmp_path / "model")
    assert Tokenizer.load(tmp_path / "model").vocab_size == int(found)


def test_the_error_for_too_small_a_vocabulary_gives_the_minimum(tmp_path: Path) -> None:
    words = ["".join(chr(0x4E00 + 10 * i + j) for j in range(10)) for i in range(30)]
    config = TokenizerConfig(vocab_size=400, character_coverage=1.0)
    with pytest.raises(ConfigError) as caught:
        train_tokenizer(count_words(words), config, tmp_path / "model")
    # 300 characters, the space sign, 256 bytes, 4 special pieces
    assert str(caught.value) == (
        "tokenizer.vocab_size: 400 is too small: the characters, 256 bytes and special pieces already take 561. "
        "Set it to 561 or more, or lower tokenizer.character_coverage."
    )
    train_tokenizer(count_words(words), replace(config, vocab_size=561), tmp_path / "model")
    # A config does not allow a lower coverage.
    with pytest.raises(ConfigError, match=r"Set it to \d+ or more\.$"):
        train_tokenizer(count_words(words), replace(config, character_coverage=0.9), tmp_path / "model")


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_size_that_no_config_may_have_is_not_advised(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ConfigError, match=r"which gives at most 26\d pieces\. Give more text\.$"):
        train_tokenizer({"ab": 20}, TokenizerConfig(kind=kind, vocab_size=300), tmp_path / "model")


@pytest.mark.parametrize(
    ("counts", "found"),
    [({"y" * 5_000: 2}, "of 2 words, 2 are"), ({"": 3}, "of 0 words, 0 are")],
)
def test_training_on_no_text_is_a_data_error(tmp_path: Path, counts: dict[str, int], found: str) -> None:
    with pytest.raises(DataError) as caught:
        train_tokenizer(counts, TokenizerConfig(), tmp_path / "model")
    assert str(caught.value) == f"there is no text to train the tokenizer on: {found} too long (over 4,192 bytes)"


def test_counted_words_are_separated_by_spaces() -> None:
    assert count_words(["a b a", "", "b,  a"]) == {"a": 3, "b": 1, "b,": 1}


def test_a_tokenizer_can_be_sent_to_other_processes(tokenizer: Tokenizer) -> None:
    there = pickle.loads(pickle.dumps(tokenizer))
    assert there.encode("über den deich") == tokenizer.encode("über den deich")


def test_a_missing_or_damaged_model_is_a_checkpoint_error(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.load(path)
    assert str(caught.value) == f"{path}: no such tokenizer file"
    train_tokenizer(count_words(sentences(300)), TokenizerConfig(vocab_size=400), path)
    whole = path.read_bytes()
    for damaged in (b"", b"garbage", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError) as caught:
            Tokenizer.load(path)
        assert str(caught.value) == f"{path} is damaged, or is not a SentencePiece model. Restore the original file."


def foreign_model(path: Path, **settings: Any) -> Path:
    """Train a model as other programs do: unk 0, bos 1, eos 2, no pad, no bytes, with normalisation."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences(300)), model_writer=model, minloglevel=2, **{"vocab_size": 350, **settings}
    )
    path.write_bytes(model.getvalue())
    return path


FOREIGN: dict[str, dict[str, Any]] = {
    "bpe": {"model_type": "bpe"},
    "unigram": {"model_type": "unigram", "vocab_size": 200},
    "bpe with bytes": {"model_type": "bpe", "byte_fallback": True, "vocab_size": 450},
    "unigram with bytes": {"model_type": "unigram", "byte_fallback": True, "vocab_size": 450},
    "like T5": {"model_type": "unigram", "vocab_size": 200, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    "other names": {"pad_id": 3, "pad_piece": "[PAD]", "bos_piece": "[BOS]", "vocab_size": 200},
    "its own symbol": {"user_defined_symbols": "<name>", "self_test_sample_size": 5, "vocab_size": 200},
}


@pytest.mark.parametrize("settings", FOREIGN.values(), ids=FOREIGN)
def test_an_adopted_model_gives_the_same_pieces_as_before(tmp_path: Path, settings: dict[str, Any]) -> None:
    path = foreign_model(tmp_path / "foreign.model", **settings)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    (tmp_path / "adopted.model").write_bytes(adopt_model(path, ["<bt>", "<name>"]))
    ours = Tokenizer.load(tmp_path / "adopted.model")
    texts = [*sentences(100), *NASTY[:-1], "Ｆｕｌｌ width  and spaces", "[BOS] [PAD] <pad>"]
    for text in texts:
        ids = ours.encode(text)
        assert ours.pieces(ids) == [theirs.id_to_piece(i) for i in theirs.encode(text)]
        if UNK_ID not in ids:
            assert ours.decode(ids) == theirs.decode(theirs.encode(text))
    assert ours.encode_batch(["漢"]) == [ours.encode("漢")]
    assert (UNK_ID in ours.encode("漢")) == ("byte_fallback" not in settings)
    assert len(ours.byte_ids) == (256 if "byte_fallback" in settings else 0)
    assert len(ours.line_breaking_ids) == (3 if "byte_fallback" in settings else 0)
    assert ours.pieces(ours.encode("<bt> x<name>y")).count("▁<bt>") == 1
    assert "<name>" in ours.pieces(ours.encode("<bt> x<name>y"))


def test_an_adopted_model_keeps_its_pieces_and_gets_missing_special_pieces(tmp_path: Path) -> None:
    path = foreign_model(tmp_path / "foreign.model", vocab_size=200)
    before = [piece for piece, _ in scored_pieces(path.read_bytes())]
    assert before[:3] == ["<unk>", "<s>", "</s>"]
    adopted = adopt_model(path, ["<bt>"])
    assert [piece for piece, _ in scored_pieces(adopted)] == [
        *["<pad>", "<unk>", "<s>", "</s>"],
        *before[3:],
        *["▁<bt>", "<bt>"],
    ]
    assert dict(scored_pieces(adopted)).items() >= dict(scored_pieces(path.read_bytes())).items()
    (tmp_path / "again.model").write_bytes(adopted)
    assert adopt_model(tmp_path / "again.model", ["<bt>"]) == adopted


def test_a_symbol_that_is_a_piece_of_the_model_is_never_split(tmp_path: Path) -> None:
    path = foreign_model(tmp_path / "foreign.model", vocab_size=200, control_symbols="<de>")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert "<de>" not in theirs.encode("<de> x", out_type=str)
    (tmp_path / "adopted.model").write_bytes(adopt_model(path, ["<de>"]))
    ours = Tokenizer.load(tmp_path / "adopted.model")
    assert ours.pieces(ours.encode("<de> x"))[:2] == ["▁", "<de>"]
    assert ours.vocab_size == 201  # with pad


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_one_of_our_models_is_adopted_unchanged(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model"
    train_tokenizer(count_words(sentences(300)), TokenizerConfig(kind=kind, vocab_size=400), path, ["<bt>"])
    assert adopt_model(path, []) == path.read_bytes()
    assert adopt_model(path, ["<bt>"]) == path.read_bytes()
    assert Tokenizer(adopt_model(path, ["<bt>", "<name>"])).vocab_size == 402


def test_a_model_that_cannot_be_adopted_is_refused_in_one_line(tmp_path: Path) -> None:
    def refusal(path: Path, symbols: list[str]) -> str:
        with pytest.raises((ConfigError, DataError)) as caught:
            adopt_model(path, symbols)
        return str(caught.value)

    missing, damaged = tmp_path / "missing.model", tmp_path / "damaged.model"
    assert refusal(missing, []) == f"{missing}: no such tokenizer file"
    assert refusal(tmp_path, []) == f"{tmp_path}: the tokenizer cannot be read (Is a directory)"
    damaged.write_text('{"model": {}}')
    assert refusal(damaged, []) == (
        f"{damaged} is damaged, or is not a SentencePiece model. Give a .model file written by SentencePiece."
    )
    path = foreign_model(tmp_path / "foreign.model", vocab_size=200, bos_piece="<begin>")
    assert (
        refusal(path, ["<begin>"]) == f"{path}: <begin> is a special piece of this model. Choose another symbol or tag."
    )
    both = foreign_model(tmp_path / "both.model", vocab_size=200, bos_id=-1, bos_piece="</s>")
    assert refusal(both, []) == (
        f"{both} uses one piece for two purposes (pad <pad>, unk <unk>, bos </s>, eos </s>). "
        "Give a model with a separate piece for each."
    )


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_piece_ends_are_correct_for_an_adopted_model(tmp_path: Path, kind: str) -> None:
    path = foreign_model(tmp_path / "foreign.model", model_type=kind, vocab_size=200)
    tokenizer = Tokenizer(adopt_model(path, []))
    text = "xx漢字 ½漢🙂"
    pieces, ends = tokenizer.pieces(tokenizer.encode(text)), tokenizer.piece_ends(text)
    assert len(ends) == len(pieces)
    assert ends == sorted(ends)
    assert ends[-1] == len(text)
    assert ends[pieces.index("<unk>")] == 4  # one piece for both characters


def test_a_model_of_another_program_cannot_be_loaded_directly(tmp_path: Path) -> None:
    path = foreign_model(tmp_path / "other.model", vocab_size=200)
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.load(path)
    assert str(caught.value) == (
        f"{path} was not made by mt, which needs pad, unk, bos and eos as pieces 0 to 3. To use this model, set "
        "tokenizer.model to it and prepare the corpus."
    )
