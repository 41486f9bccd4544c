"""A vocabulary that grows: old ids stay, each new piece is used, and the new text takes fewer tokens."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections import Counter
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from mt.checkpoint import ModelFolder
from mt.config.loading import load_config
from mt.config.settings import RunConfig, TokenizerConfig
from mt.errors import ConfigError
from mt.model.transformer import Transformer, grown_weights
from mt.pipeline import prepare, train_run
from mt.text.growth import Growth, fraction_cut_differently, grow_model, spellings
from mt.text.normalise import normalise
from mt.text.rehearsal import rehearse
from mt.text.tokenizer import PAD_ID, UNK_ID, Piece, Tokenizer, adopt_model, count_words, train_tokenizer
from tests.test_tokenizer import FOREIGN, foreign_model, sentences
from tests.toys import messages, small_model, toy_config

REAL = os.environ.get("MT_REAL_DATA")
needs_real_text = pytest.mark.skipif(REAL is None, reason="MT_REAL_DATA does not name a folder of real text")
KINDS = pytest.mark.parametrize("kind", ["bpe", "unigram"])
STRANGER = "\ue000"  # a character that no model has as a piece


def trained(folder: Path, lines: list[str], symbols: tuple[str, ...] = (), **settings: object) -> bytes:
    config = TokenizerConfig(**{"vocab_size": 500, **settings})  # type: ignore[arg-type]
    train_tokenizer(count_words(lines), config, folder / "old.model", symbols)
    return (folder / "old.model").read_bytes()


def real_lines(name: str, n: int) -> list[str]:
    with gzip.open(Path(str(REAL)) / "data" / name, "rt", encoding="utf-8") as file:
        return [normalise(line.rstrip("\n")) for line in islice(file, n)]


def new_sentences() -> list[str]:
    """Return sentences of words that the toy text does not have, some with digits, capitals and Cyrillic letters."""
    draw = random.Random(7)
    words = ["".join(draw.choices("abcdeABC", k=draw.randint(2, 9))) for _ in range(200)]
    words += ["".join(draw.choices("бвгде", k=draw.randint(2, 6))) for _ in range(60)]
    words += ["12x34", "2026", "(abba)", "baba,caba"]
    return [" ".join(draw.choices(words, k=8)) for _ in range(400)]


def pieces_of(model: bytes) -> list[Piece]:
    return list(ModelProto.FromString(model).pieces)


def learned(old: bytes, grown: Growth) -> list[str]:
    """Return the new pieces that are neither controls, symbols nor characters."""
    return [piece.piece for piece in pieces_of(grown.model)[-grown.n_pieces :]] if grown.n_pieces else []


def assert_grown(old: bytes, grown: Growth) -> None:
    """Assert that the old pieces are unchanged, that the model counts its pieces, and that each new one is reached."""
    before, after = pieces_of(old), pieces_of(grown.model)
    assert after[: len(before)] == before
    assert len(after) == len(before) + sum(grown[1:5]) == ModelProto.FromString(grown.model).trainer_spec.vocab_size
    tokenizer = Tokenizer(grown.model)
    for id_, piece in enumerate(after[len(before) :], start=len(before)):
        if piece.type == Piece.CONTROL:
            assert id_ not in tokenizer.encode(piece.piece)
        elif piece.piece.startswith("▁"):
            assert tokenizer.encode(piece.piece[1:]) == [id_]
        else:
            assert tokenizer.encode(STRANGER + piece.piece)[-1] == id_


@KINDS
def test_old_ids_stay_and_each_new_piece_is_reached(tmp_path: Path, kind: str) -> None:
    old = trained(tmp_path, sentences(400), kind=kind)
    grown = grow_model(old, count_words(new_sentences()), 150, controls=["<2fr>", "<2de>"], symbols=["<bt>"])
    assert_grown(old, grown)
    # ABC, five Cyrillic letters, 0 1 2 3 4 6, two brackets and a comma are characters
    assert grown[1:] == (2, 2, 17, 129, 0)
    new = pieces_of(grown.model)[500:]
    assert [piece.piece for piece in new[:4]] == ["<2fr>", "<2de>", "▁<bt>", "<bt>"]
    assert [piece.type for piece in new[:4]] == [Piece.CONTROL] * 2 + [Piece.USER_DEFINED] * 2
    uses = Counter("".join(new_sentences()))
    characters = sorted("ABCбвгде012346(),", key=lambda character: (-uses[character], character))
    assert [piece.piece for piece in new[4:21]] == characters
    spec = ModelProto.FromString(grown.model).trainer_spec
    assert list(spec.user_defined_symbols) == ["▁<bt>", "<bt>"]
    assert list(spec.control_symbols) == ["<2fr>", "<2de>"]
    tokenizer = Tokenizer(grown.model)
    assert tokenizer.pieces(tokenizer.encode("<bt>")) == ["▁<bt>"]
    assert tokenizer.pieces(tokenizer.encode("a<bt>"))[-1] == "<bt>"
    before, after = (
        sum(map(len, tokenizer.encode_batch(new_sentences()))) for tokenizer in (Tokenizer(old), Tokenizer(grown.model))
    )
    assert after < 0.5 * before


def one_at_a_time(model: bytes, words: Counter[str], n: int) -> list[str]:
    """Return the next n merges of lower-case words, from pair counts in what SentencePiece itself produces."""
    proto, merges = ModelProto.FromString(model), []
    for _ in range(n):
        tokenizer, pairs = Tokenizer(proto.SerializeToString()), Counter[str]()
        for word, count in words.items():
            for left, right in pairwise(tokenizer.pieces(tokenizer.encode(word))):
                pairs[left + right] += count
        joined = min(pairs, key=lambda pair: (-pairs[pair], len(pair), pair))
        merges.append(joined)
        score = min(piece.score for piece in proto.pieces) - 1
        proto.pieces.append(Piece(piece=joined, score=score))
        proto.trainer_spec.vocab_size += 1
    return merges


def test_merges_are_the_most_frequent_pairs_of_what_the_model_produces(tmp_path: Path) -> None:
    draw = random.Random(9)
    old = trained(tmp_path, sentences(100), vocab_size=330)
    words = Counter({"".join(draw.choices("abn", k=draw.randint(3, 12))): draw.randint(2, 30) for _ in range(150)})
    grown = grow_model(old, words, 80)
    assert learned(old, grown) == one_at_a_time(old, words, 80)
    assert_grown(old, grown)


@KINDS
def test_the_same_counts_in_any_order_give_the_same_bytes(tmp_path: Path, kind: str) -> None:
    old, counts = trained(tmp_path, sentences(300), kind=kind), count_words(new_sentences())
    shuffled = list(counts.items())
    random.Random(1).shuffle(shuffled)
    assert grow_model(old, counts, 100) == grow_model(old, dict(shuffled), 100)


@KINDS
@pytest.mark.parametrize("split_digits", [True, False])
def test_pieces_follow_the_rules_of_the_old_model(tmp_path: Path, kind: str, split_digits: bool) -> None:
    old = trained(tmp_path, sentences(300), kind=kind, split_digits=split_digits)
    counts = count_words(["r2026 x2026 ab,cd ab,ef абв ab١٢ x<pad>y z<bt>z " + "lang" * 10] * 20)
    grown = grow_model(old, counts, 200, symbols=["<bt>"])
    assert_grown(old, grown)
    new = [piece.piece for piece in pieces_of(grown.model)[500:] if piece.type == Piece.NORMAL]
    with_digits = [piece for piece in new if len(piece) > 1 and any(map(str.isdecimal, piece))]
    assert (not with_digits) == split_digits
    assert not [piece for piece in new if "," in piece and any(map(str.isalpha, piece))]  # two scripts
    assert not [piece for piece in new if "<bt>" in piece or "<pad>" in piece or "▁" in piece[1:]]
    assert max(map(len, new)) == 16


def test_a_model_that_joins_scripts_and_digits_learns_pieces_of_both(tmp_path: Path) -> None:
    path = foreign_model(
        tmp_path / "foreign.model", model_type="bpe", split_by_unicode_script=False, max_sentencepiece_length=4
    )
    grown = grow_model(adopt_model(path, []), count_words(["b,7 qzqxqzqx"] * 9), 40)
    new = learned(path.read_bytes(), grown)
    assert {",7", "▁b,7"} < set(new)
    assert max(map(len, new)) == 4


@KINDS
def test_words_seen_once_and_too_long_words_give_no_pieces(tmp_path: Path, kind: str) -> None:
    old = trained(tmp_path, sentences(300), kind=kind)
    assert learned(old, grow_model(old, {"qxjwqv": 1, "qx" * 3_000: 50, "": 5}, 50)) == []
    assert grow_model(old, {}, 50, controls=["<2fr>"])[1:] == (1, 0, 0, 0, 0)


def test_characters_are_added_until_the_coverage_of_the_model_is_reached(tmp_path: Path) -> None:
    old = trained(tmp_path, sentences(300), character_coverage=0.99)
    counts = {"жж": 500, "ш": 7, "щ": 4, "ъ": 3}

    def new(n: int) -> list[str]:
        return [piece.piece for piece in pieces_of(grow_model(old, counts, n).model)[500:]]

    # 99% of 1,528 characters, 514 of them spaces, are 1,512.7. Without the others, ж and the spaces are 1,514.
    assert new(100) == ["ж", "жж", "▁жж"]
    counts["щ"] = 20
    # 99% of 1,560 are 1,544.4. ж and the spaces are 1,530, and with щ they are 1,550.
    assert new(100) == ["ж", "щ", "жж", "▁жж", "▁щ"]
    assert new(3) == ["ж", "щ", "жж"]
    assert new(1) == ["ж"]


@pytest.mark.parametrize("settings", FOREIGN.values(), ids=FOREIGN)
def test_a_model_of_another_program_grows_too(tmp_path: Path, settings: dict[str, object]) -> None:
    old = adopt_model(foreign_model(tmp_path / "foreign.model", **settings), [])
    grown = grow_model(old, count_words([*new_sentences(), *["ＦＦ ½ﬁ"] * 50]), 120, symbols=["<new>"])
    assert_grown(old, grown)
    assert "F" in [piece.piece for piece in pieces_of(grown.model)]  # normalised by the model's own rule
    assert UNK_ID not in Tokenizer(grown.model).encode("бвгде ABC")


@KINDS
def test_a_model_with_spaces_at_the_ends_of_pieces_grows(tmp_path: Path, kind: str) -> None:
    path = foreign_model(tmp_path / "foreign.model", model_type=kind, treat_whitespace_as_suffix=True, vocab_size=200)
    old = adopt_model(path, [])
    grown = grow_model(old, count_words(new_sentences()), 100)
    assert grown.n_pieces > 50
    tokenizer, n_old = Tokenizer(grown.model), len(pieces_of(old))
    for id_, piece in enumerate(pieces_of(grown.model)[n_old:], start=n_old):
        text = piece.piece.removesuffix("▁")
        assert "▁" not in text
        assert tokenizer.encode(text if piece.piece.endswith("▁") else text + STRANGER)[0] == id_


def test_pieces_whose_text_is_read_as_other_text_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "rules.tsv").write_text("71\t6A 6A\n6A 6A\t6B\n", "ascii")  # q becomes jj, and jj becomes k
    path = foreign_model(
        tmp_path / "foreign.model", model_type="bpe", normalization_rule_tsv=str(tmp_path / "rules.tsv")
    )
    old, counts = adopt_model(path, []), {"qqx": 9, "abab": 9}
    grown = grow_model(old, counts, 30)
    assert grown.n_unreachable > 0
    assert grown.n_pieces > 0
    tokenizer, n_old = Tokenizer(grown.model), len(pieces_of(old))
    new = pieces_of(grown.model)[n_old:]
    texts = [piece.piece.removeprefix("▁") for piece in new]
    ids = {id_ for text in [*texts, *(STRANGER + text for text in texts), *counts] for id_ in tokenizer.encode(text)}
    assert set(range(n_old, n_old + len(new))) <= ids


def test_a_model_that_cannot_grow_is_refused_in_one_line(tmp_path: Path) -> None:
    def refusal(model: bytes, n: int = 10, **names: list[str]) -> str:
        with pytest.raises(ConfigError) as caught:
            grow_model(model, {"abc": 9}, n, **names)
        return str(caught.value)

    fix = "Remove train.grow_vocab, or train from scratch with a new tokenizer."
    for kind in ("word", "char"):
        path = foreign_model(tmp_path / "foreign.model", model_type=kind, hard_vocab_limit=False)
        assert refusal(adopt_model(path, [])) == (
            f"train.grow_vocab: this tokenizer cannot grow: it is a {kind} model, neither bpe nor unigram. {fix}"
        )
    path = foreign_model(tmp_path / "foreign.model", add_dummy_prefix=False, vocab_size=200)
    assert refusal(path.read_bytes()) == (
        "train.grow_vocab: this tokenizer cannot grow: it cuts the first word of a line in another way than the "
        f"others. {fix}"
    )
    old = trained(tmp_path, sentences(300), ("<bt>",))
    assert refusal(old, 4, controls=["<2fr>"], symbols=["<a>", "<b>", "<bt>"]) == (
        "train.grow_vocab: 4 is too small: languages, tags and symbols already need 5 new pieces. Set it to 5 or more."
    )
    assert refusal(old, controls=["<bt>"]) == "<bt> is another kind of piece in the old tokenizer. Choose another name."
    assert refusal(old, symbols=["</s>"]) == "</s> is another kind of piece in the old tokenizer. Choose another name."
    assert grow_model(old, {}, 0, symbols=["<bt>"])[1:] == (0, 0, 0, 0, 0)


# ---------------------------------------------------------------------------------------------------- embeddings


@KINDS
def test_a_new_piece_is_spelled_by_old_pieces(tmp_path: Path, kind: str) -> None:
    old = trained(tmp_path, sentences(300), kind=kind)
    grown = grow_model(old, count_words(new_sentences()), 100, controls=["<2fr>", "<2de>"], symbols=["<bt>"])
    tokenizer, new = Tokenizer(old), pieces_of(grown.model)[500:]
    spelled = spellings(old, grown.model, {"<2de>": "<s>"})
    assert len(spelled) == 100
    assert spelled[:4] == [[], [2], [], []]
    for piece, ids in zip(new[4:], spelled[4:], strict=True):
        assert tokenizer.decode(ids) == piece.piece.removeprefix("▁")
        if piece.piece.startswith("▁"):
            assert ids == tokenizer.encode(piece.piece[1:])
        else:
            assert not tokenizer.pieces(ids)[0].startswith("▁")


@pytest.mark.parametrize("tied", ["all", "decoder", "none"])
def test_a_new_row_is_the_mean_of_the_rows_that_spell_the_piece(tied: str) -> None:
    sizes = 130 if tied == "all" else (130, 100)
    model = small_model(vocab_size=sizes, tied_embeddings=tied)
    spelled = [[[5, 5, 8], []], [[5, 5, 8], []] if tied == "all" else [[99]]]
    weights = grown_weights(model.state_dict(), sizes, spelled)
    new_sizes = 132 if tied == "all" else (132, 101)
    bigger = Transformer(model.config, vocab_size=new_sizes, pad_id=PAD_ID)
    bigger.load_state_dict(weights)
    for side, n_old in enumerate((130, 130) if tied == "all" else (130, 100)):
        old, new = model.embeddings[side].weight, bigger.embeddings[side].weight
        assert torch.equal(new[:n_old], old[:n_old])
        if n_old == 130:
            torch.testing.assert_close(new[130], (2 * old[5] + old[8]) / 3)
            torch.testing.assert_close(new[131], old[:130].mean(0))
    if tied != "all":
        assert torch.equal(bigger.embeddings[1].weight[100], model.embeddings[1].weight[99])
        assert torch.equal(bigger.output_weight[:100], model.output_weight)
        assert torch.equal(bigger.output_weight[100], model.output_weight[99])
    others = [name for name in weights if not name.endswith("embedding.weight")]
    assert all(
        weights[name] is model.state_dict()[name] or torch.equal(weights[name], model.state_dict()[name])
        for name in others
    )


# ---------------------------------------------------------------------------------------------------- real text


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def of_captions(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    lines = [*real_lines("multi30k/train.en.gz", 5_000), *real_lines("multi30k/train.de.gz", 5_000)]
    return trained(tmp_path_factory.mktemp("old"), lines, kind=request.param, vocab_size=2_000)


@needs_real_text
def test_documentation_takes_fewer_tokens_and_captions_are_cut_almost_as_before(of_captions: bytes) -> None:
    lines = [*real_lines("parallel/msdocs.en.gz", 3_000), *real_lines("parallel/msdocs.de.gz", 3_000)]
    grown = grow_model(of_captions, count_words(lines), 1_000, symbols=["<bt>"])
    assert_grown(of_captions, grown)
    assert grown.n_symbols + grown.n_characters + grown.n_pieces == 1_000
    before, after = Tokenizer(of_captions), Tokenizer(grown.model)
    n_before, n_after = (sum(map(len, tokenizer.encode_batch(lines))) for tokenizer in (before, after))
    assert n_after < 0.7 * n_before
    assert after.decode_batch(after.encode_batch(lines)) == lines
    captions = real_lines("multi30k/train.de.gz", 5_000)
    assert fraction_cut_differently(before, before, captions) == 0
    n_differing = sum(before.encode(line) != after.encode(line) for line in captions)
    assert fraction_cut_differently(before, after, captions) == n_differing / 5_000 < 0.5
    n_old, n_new = (sum(map(len, tokenizer.encode_batch(captions))) for tokenizer in (before, after))
    assert n_new <= n_old


@needs_real_text
def test_japanese_characters_come_before_japanese_pieces(of_captions: bytes) -> None:
    lines = real_lines("enja/train.ja.gz", 2_000)
    grown = grow_model(of_captions, count_words(lines), 1_500)
    assert_grown(of_captions, grown)
    texts = [piece.piece for piece in pieces_of(grown.model)[2_000:]]
    assert grown.n_characters > 500
    assert {len(text) for text in texts[: grown.n_characters]} == {1}
    assert min(len(text) for text in texts[grown.n_characters :]) == 2
    tokenizer = Tokenizer(grown.model)
    ids = tokenizer.encode_batch(lines)
    n_bytes = sum(id_ in tokenizer.byte_ids for line in ids for id_ in line)
    assert 0 < n_bytes < 0.001 * sum(map(len, ids))
    assert tokenizer.encode("A man is sleeping.") == Tokenizer(of_captions).encode("A man is sleeping.")


# ---------------------------------------------------------------------------------------------------- fine-tuning


def fine_tuning(first: RunConfig, folder: Path, start: Path, n: int, **tokenizer: object) -> RunConfig:
    """Return a config for text with new letters and a tag; at its learning rate no weight changes."""
    config = toy_config(folder, n_train=300, max_steps=1, peak_lr=1e-30, average_last=1, init_from=str(start))
    for side in ("en", "de"):
        path = folder / f"train.{side}"
        text = path.read_text("utf-8")
        for old, new in (("ba", "šžč"), ("st", "xyz")):
            text = text.replace(old, new).replace(old.upper(), new.upper())
        path.write_text(text, "utf-8")
    tagged = tuple(replace(corpus, tag="<new>") for corpus in config.data.train)
    return replace(
        config,
        data=replace(config.data, train=tagged),
        model=first.model,
        tokenizer=replace(first.tokenizer, **tokenizer),  # type: ignore[arg-type]
        train=replace(config.train, grow_vocab=n),
    )


def assert_rows_are_means(start: Path, tuned: Path) -> None:
    """Assert that old rows are unchanged, and that a new row is the mean of the rows of its old pieces."""
    before, after = ModelFolder.open(start), ModelFolder.open(tuned)
    old_weights, weights = before.load_weights(), after.load_weights()
    tables = {"src_embedding.weight": 0, "embedding.weight": 1, "output_embedding.weight": 1}
    for name in weights.keys() - tables.keys():
        torch.testing.assert_close(weights[name], old_weights[name], msg=name)
    for name in weights.keys() & tables.keys():
        old_model, new_model = (folder.tokenizer_paths for folder in (before, after))
        old = Tokenizer.load(old_model[0 if len(old_model) == 1 else tables[name]])
        new = Tokenizer.load(new_model[0 if len(new_model) == 1 else tables[name]])
        n_old = old.vocab_size
        assert new.pieces(range(n_old)) == old.pieces(range(n_old))
        torch.testing.assert_close(weights[name][:n_old], old_weights[name][:n_old])
        word = next(
            piece for piece in new.pieces(range(n_old, new.vocab_size)) if piece.startswith("▁") and "<" not in piece
        )
        spelled = old.encode(word[1:])
        (id_,) = new.encode(word[1:])
        torch.testing.assert_close(weights[name][id_], old_weights[name][spelled].mean(0))


def test_fine_tuning_grows_the_vocabulary_of_the_first_model(tmp_path: Path) -> None:
    first = toy_config(tmp_path / "general", max_steps=2)
    train_run(first, tmp_path / "first")
    start = tmp_path / "first" / "model"
    config = fine_tuning(first, tmp_path / "special", start, 40)
    with messages() as told:
        train_run(config, tmp_path / "second")
    old_size = ModelFolder.open(start).vocab_size
    tuned = ModelFolder.open(tmp_path / "second" / "model")
    assert tuned.vocab_size == old_size + 40
    assert_rows_are_means(start, tuned.path)
    corpus = prepare(config)
    facts = json.loads((corpus.folder / "report.json").read_text("utf-8"))["tokenizer"]
    counted = {key: facts[f"added_{key}"] for key in ("controls", "symbols", "characters", "pieces")}
    assert facts["kind"] == "grown"
    assert counted == {"controls": 0, "symbols": 2, "characters": counted["characters"], "pieces": counted["pieces"]}
    assert counted["characters"] + counted["pieces"] == 38
    assert {*"šžčŠŽČ"} <= set(tuned.load_tokenizers().src.pieces(range(old_size, old_size + 40)))
    assert facts["fertility_before"] > facts["src"]["fertility"]
    assert "fertility before" in (corpus.folder / "report.html").read_text("utf-8")
    line = f"{counted['characters']} characters and {counted['pieces']} pieces added; its text takes "
    assert any(f"vocabulary: 2 symbols, {line}" in text for text in told)
    # Only mt doctor, which does not have the grown tokenizer, grows that of the first model.
    assert rehearse(config, [], tuned.load_tokenizers()).vocab_size == old_size + 40
    assert rehearse(config, [], ModelFolder.open(start).load_tokenizers(), 40).vocab_size == old_size + 2  # the tag
    # The number of pieces and the tokenizer that grows decide about the prepared corpus.
    other = replace(config, train=replace(config.train, grow_vocab=41))
    assert prepare(other).fingerprint != corpus.fingerprint
    # Without growth, the tag is refused.
    with pytest.raises(ConfigError) as caught:
        prepare(replace(config, train=replace(config.train, grow_vocab=0)))
    assert str(caught.value).endswith(
        "needs data.train.0.tag: null (here <new>); its tokenizer does not have <new>. Remove it from the config: what "
        "it lacks is taken from that model, or set train.grow_vocab to add what its tokenizer lacks."
    )


def test_separate_vocabularies_grow_by_the_same_number(tmp_path: Path) -> None:
    first = toy_config(tmp_path / "general", max_steps=2)
    separate = replace(first.tokenizer, joint=False, vocab_size=345, tgt_vocab_size=330)
    first = replace(first, tokenizer=separate, model=replace(first.model, tied_embeddings="none"))
    train_run(first, tmp_path / "first")
    start = tmp_path / "first" / "model"
    config = fine_tuning(first, tmp_path / "special", start, 20)
    train_run(config, tmp_path / "second")
    tuned = ModelFolder.open(tmp_path / "second" / "model")
    assert tuned.vocab_size == (365, 350)
    assert_rows_are_means(start, tuned.path)
    facts = json.loads((prepare(config).folder / "report.json").read_text("utf-8"))["tokenizer"]
    assert facts["added_symbols"] == [2, 0]  # tags are in front of source segments only


def test_growing_needs_a_model_to_start_from() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("demo", ["train.grow_vocab=100"])
    assert str(caught.value) == (
        "--set train.grow_vocab=100: train.grow_vocab is 100, but training does not start from a model "
        "whose vocabulary could grow. Set train.init_from, or remove it."
    )
