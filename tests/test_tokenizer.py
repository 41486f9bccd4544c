"""The tokenizer: deterministic, lossless on normalised text, clear about what does not fit."""

import random
import string
from pathlib import Path

import pytest

from mt.config import TokenizerConfig
from mt.errors import CheckpointError, ConfigError, DataError
from mt.text.normalise import normalise
from mt.text.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID, Tokenizer, train_tokenizer

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
    train_tokenizer(sentences(400), TokenizerConfig(kind=request.param, vocab_size=500), path)
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


def test_bytes_that_are_no_utf8_become_replacement_characters(tokenizer: Tokenizer) -> None:
    byte_ids = {piece: id_ for id_, piece in enumerate(tokenizer.pieces(range(4, 260)), start=4)}
    assert len(byte_ids) == 256
    assert tokenizer.decode([byte_ids["<0xE4>"]]) == "\ufffd"
    assert tokenizer.decode([byte_ids[f"<0x{byte:02X}>"] for byte in "ä€".encode()]) == "ä€"


def test_the_pieces_that_break_a_line_are_known(tokenizer: Tokenizer) -> None:
    assert sorted(tokenizer.pieces(tokenizer.line_breaking_ids)) == ["<0x00>", "<0x0A>", "<0x0D>"]
    assert tokenizer.line_breaking_ids <= set(tokenizer.encode("a\nb\rc\x00d"))


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_the_same_lines_give_the_same_bytes(tmp_path: Path, kind: str) -> None:
    for name in ("first", "second"):
        train_tokenizer(iter(sentences(300)), TokenizerConfig(kind=kind, vocab_size=400), tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]


def test_training_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train_tokenizer(sentences(300), TokenizerConfig(vocab_size=400), tmp_path / "model")
    assert capfd.readouterr() == ("", "")


def test_lines_that_the_trainer_skips_are_counted(tmp_path: Path) -> None:
    # Letters of the skipped lines get no piece: that shows that they were skipped.
    longest, too_long = "x" * 4_192, "é" * 2_097
    lines = [*sentences(300), longest, too_long, "block ▅ Q"]
    stats = train_tokenizer(lines, TokenizerConfig(vocab_size=400, character_coverage=1.0), tmp_path / "model")
    assert (stats.n_lines, stats.n_skipped_lines) == (303, 2)
    vocabulary = "".join(Tokenizer.load(tmp_path / "model").pieces(range(260, 400)))
    assert "x" in vocabulary
    assert not set("éQ") & set(vocabulary)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_vocabulary_too_large_for_the_corpus_names_the_largest(tmp_path: Path, kind: str) -> None:
    lines = sentences(60)
    with pytest.raises(ConfigError) as caught:
        train_tokenizer(lines, TokenizerConfig(kind=kind, vocab_size=8_000), tmp_path / "model")
    found = str(caught.value).rsplit("set it to ", 1)[1].split()[0]
    assert str(caught.value) == (
        f"tokenizer.vocab_size: 8,000 is too large for this corpus, which yields at most {int(found):,} pieces: "
        f"set it to {found} or less, or give more text"
    )
    assert list(tmp_path.iterdir()) == []
    train_tokenizer(lines, TokenizerConfig(kind=kind, vocab_size=int(found)), tmp_path / "model")
    assert Tokenizer.load(tmp_path / "model").vocab_size == int(found)


def test_a_vocabulary_too_small_for_the_characters_names_what_they_take(tmp_path: Path) -> None:
    lines = ["".join(chr(0x4E00 + 10 * i + j) for j in range(10)) for i in range(30)]
    config = TokenizerConfig(vocab_size=400, character_coverage=1.0)
    with pytest.raises(ConfigError) as caught:
        train_tokenizer(lines, config, tmp_path / "model")
    # 300 characters, the space sign, 256 bytes, 4 special pieces
    assert str(caught.value) == (
        "tokenizer.vocab_size: 400 is too small for this corpus, whose characters take 561 pieces with the 256 bytes "
        "and the 4 special ones: set it above 561, or lower tokenizer.character_coverage"
    )


def test_no_text_to_train_on_is_an_error_of_the_data(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        train_tokenizer(["y" * 5_000], TokenizerConfig(), tmp_path / "model")
    assert str(caught.value) == (
        "no text to train the tokenizer on: 1 lines were given, of which SentencePiece skips 1 as too long "
        "(over 4,192 bytes)"
    )


def test_an_error_in_the_lines_reaches_the_caller(tmp_path: Path) -> None:
    def broken():
        yield "a line"
        raise DataError("the disk is gone")

    with pytest.raises(DataError, match=r"^the disk is gone$"):
        train_tokenizer(broken(), TokenizerConfig(), tmp_path / "model")


def test_a_missing_or_damaged_model_is_a_checkpoint_error(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.load(path)
    assert str(caught.value) == f"{path}: no such file, the tokenizer is missing"
    train_tokenizer(sentences(300), TokenizerConfig(vocab_size=400), path)
    whole = path.read_bytes()
    for damaged in (b"", b"garbage", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError) as caught:
            Tokenizer.load(path)
        assert str(caught.value) == f"{path}: is no SentencePiece model, or is damaged: put the original file back"


def test_a_model_of_another_program_is_refused(tmp_path: Path) -> None:
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences(300)), model_prefix=str(tmp_path / "other"), vocab_size=200, minloglevel=2
    )
    path = tmp_path / "other.model"
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.load(path)
    assert str(caught.value) == (
        f"{path}: was not made by mt: it needs pad, unk, bos and eos as pieces 0 to 3 and byte fallback"
    )
