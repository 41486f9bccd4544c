"""Runs with separate vocabularies of source and target (`tokenizer.joint: false`), from the text to an export."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mt.checkpoint import ModelFolder, save_model_folder
from mt.config.settings import RunConfig, TokenizerConfig
from mt.decode.scorer import Scorer
from mt.decode.translator import Translator
from mt.errors import CheckpointError, ConfigError, DataError
from mt.explain.attention import explained_page
from mt.model import Transformer
from mt.pipeline import average_run, prepare
from mt.run_folder import RunFolder
from mt.text.corpora import readers_of
from mt.text.corpus import PreparedCorpus
from mt.text.rehearsal import clean_sample, rehearse
from mt.text.sample import draw_sample
from mt.text.tokenizer import BOS_ID, EOS_ID, PAD_ID, Tokenizer, Tokenizers
from mt.tools.dry_run import parameters_by_part
from mt.training.loop import train
from tests.toys import messages, tiles, toy_config, weights_of

FILES = ["tokenizer.src.model", "tokenizer.tgt.model"]


def separate(config: RunConfig, tied: str = "decoder", **changes: Any) -> RunConfig:
    """Return the config with 345 source and 330 target pieces."""
    sizes = {"joint": False, "vocab_size": 345, "tgt_vocab_size": 330}
    tokenizer = replace(config.tokenizer, **sizes | changes)
    return replace(config, tokenizer=tokenizer, model=replace(config.model, tied_embeddings=tied))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return separate(toy_config(tmp_path_factory.mktemp("text")), user_symbols=("<name>",))


@pytest.fixture(scope="module")
def corpus(config: RunConfig) -> PreparedCorpus:
    return prepare(config)


@pytest.fixture(scope="module")
def run(config: RunConfig, corpus: PreparedCorpus, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("run")
    train(config, corpus, folder)
    return RunFolder(folder)


def pieces_of(tokenizer: Tokenizer) -> str:
    return "".join(tokenizer.pieces(sorted({*range(4, tokenizer.vocab_size)} - tokenizer.byte_ids)))


def test_each_side_has_a_vocabulary_of_its_text(config: RunConfig, corpus: PreparedCorpus) -> None:
    assert [path.name for path in corpus.tokenizer_paths] == FILES
    assert not (corpus.folder / "tokenizer.model").exists()
    src, tgt = Tokenizers.load(corpus.tokenizer_paths)
    assert (src.vocab_size, tgt.vocab_size) == (345, 330)
    # The source is in lower case, and the target in upper case.
    assert pieces_of(src).islower()
    assert pieces_of(tgt).replace("<name>", "").isupper()
    for tokenizer, ids, pairs in ((src, corpus.valid.src, 0), (tgt, corpus.valid.tgt, 1)):
        texts = [pair[pairs] for pair in corpus.valid_sets["valid"]]
        assert [ids[i].tolist() for i in range(len(ids))] == [[*one, EOS_ID] for one in tokenizer.encode_batch(texts)]
    for side in (corpus.train.src, corpus.train.tgt):
        assert (side.ids[side.offsets[1:] - 1] == EOS_ID).all()


def test_the_report_has_the_vocabulary_of_each_side(corpus: PreparedCorpus) -> None:
    facts = json.loads((corpus.folder / "report.json").read_text("utf-8"))["tokenizer"]
    assert facts["vocab_size"] == [345, 330]
    assert "pieces" not in facts
    tokenizers = Tokenizers.load(corpus.tokenizer_paths)
    for name, side, tokenizer in zip(("src", "tgt"), (corpus.train.src, corpus.train.tgt), tokenizers, strict=True):
        unused = set(range(345)) - set(side.ids.tolist()) - set(range(4)) - tokenizer.byte_ids
        n_unused = len([id_ for id_ in unused if id_ < tokenizer.vocab_size])
        assert (facts[name]["vocab_size"], facts[name]["unused_pieces"]) == (tokenizer.vocab_size, n_unused)
    page = (corpus.folder / "report.html").read_text("utf-8")
    assert "345 + 330" in page
    assert "Unused pieces" in page
    assert "345 source and 330 target pieces" in str(corpus)


def test_tags_are_only_in_the_vocabulary_of_the_source(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    corpora = [{"src": one.src, "tgt": one.tgt, "tag": "<bt>"} for one in config.data.train]
    config = separate(replace(config, data=replace(config.data, train=corpora)), user_symbols=("<name>",))
    src, tgt = Tokenizers.load(prepare(config).tokenizer_paths)
    assert "<bt>" in pieces_of(src)
    assert "<name>" in pieces_of(src)
    assert "<bt>" not in pieces_of(tgt)
    assert "<name>" in pieces_of(tgt)


def test_the_model_folder_has_both_tokenizers_and_sizes(run: RunFolder, corpus: PreparedCorpus) -> None:
    folder = ModelFolder.open(run.checkpoint(12))
    assert folder.manifest["vocab_size"] == [345, 330]
    assert folder.vocab_size == (345, 330)
    assert set(FILES) < folder.manifest["sha256"].keys()
    assert folder.load_tokenizers().vocab_size == (345, 330)
    model = folder.load_model(torch.float32, torch.device("cpu"))
    assert [len(table.weight) for table in model.embeddings] == [384, 384, 384]
    assert (model.embeddings[1] is model.embeddings[2], model.embeddings[0] is model.embeddings[1]) == (True, False)
    assert model.n_parameters == folder.n_parameters


def greedy(model: Transformer, source: Sequence[int], longest: int) -> list[int]:
    """Return the translation by the most probable token each, computed from the whole sentence for each token."""
    target: list[int] = []
    never = [PAD_ID, 1, BOS_ID]
    while len(target) < longest:
        with torch.no_grad():
            logits = model.logits(model.hidden(tiles([(source[:-1], target)])))[len(target)]
        logits[never] = -math.inf
        if (best := int(logits.argmax())) == EOS_ID:
            break
        target.append(best)
    return target


def test_translations_and_scores_equal_a_computation_from_whole_sentences(run: RunFolder) -> None:
    translator = Translator.load(run.checkpoint(12), "cpu", "fp32", retries=False)
    src, tgt = translator.tokenizers
    lines = ["bar dest fil", "kun", "gor gost mon nel bar"]
    found = list(translator.translate_lines(lines, beam_size=1, max_length=8))
    for line, (hypothesis,) in zip(lines, found, strict=True):
        ids = [
            id_ for id_ in greedy(translator.model, [*src.encode(line), EOS_ID], 8) if id_ not in tgt.line_breaking_ids
        ]
        assert list(hypothesis.tokens) == tgt.pieces(ids)
        assert hypothesis.text == tgt.decode(ids)
    (score,) = Scorer(translator).score([("bar dest", "BAR DEST")])
    target = tgt.encode("BAR DEST")
    with torch.no_grad():
        rows = translator.model.logits(translator.model.hidden(tiles([(src.encode("bar dest"), target)])))
    log_probs = rows.log_softmax(-1)
    expected = [float(log_probs[i, id_]) for i, id_ in enumerate([*target, EOS_ID])]
    assert score.log_prob == pytest.approx(sum(expected), abs=1e-4)
    assert score.pieces == (*tgt.pieces(target), "</s>")


def test_alignments_and_the_attention_page_use_both_vocabularies(run: RunFolder) -> None:
    translator = Translator.load(run.checkpoint(12), "cpu", "fp32")
    ((hypothesis,),) = translator.translate_lines(["bar dest"], is_aligned=True, max_length=8)
    assert all(i < 2 for i, _ in hypothesis.alignment or ())
    page = explained_page(run.checkpoint(12), "bar", "BAR", "cpu", "fp32")
    for text, tokenizer in (("bar", translator.tokenizers.src), ("BAR", translator.tokenizers.tgt)):
        assert all(f">{piece}</th>" in page for piece in tokenizer.pieces(tokenizer.encode(text)))


def test_a_resumed_run_equals_an_uninterrupted_one(
    config: RunConfig, corpus: PreparedCorpus, run: RunFolder, tmp_path: Path
) -> None:
    train(replace(config, train=replace(config.train, max_steps=4)), corpus, tmp_path)
    train(config, corpus, tmp_path)
    whole, parts = weights_of(run.path, 12), weights_of(tmp_path, 12)
    assert all(torch.equal(whole[name], parts[name]) for name in whole | parts)


def test_an_average_has_both_tokenizers(run: RunFolder) -> None:
    folder = ModelFolder.open(average_run(run.path, 2))
    assert [path.name for path in folder.tokenizer_paths] == FILES
    assert folder.load_tokenizers().vocab_size == (345, 330)


def test_given_models_serve_one_language_each(config: RunConfig, corpus: PreparedCorpus) -> None:
    src, tgt = map(str, corpus.tokenizer_paths)
    given = replace(config, tokenizer=replace(config.tokenizer, model=src, tgt_model=tgt, tgt_vocab_size=None))
    prepared = prepare(given)
    assert prepared.fingerprint != corpus.fingerprint
    assert [path.read_bytes() for path in prepared.tokenizer_paths] == [
        path.read_bytes() for path in corpus.tokenizer_paths
    ]
    swapped = replace(given, tokenizer=replace(given.tokenizer, model=tgt, tgt_model=src))
    assert prepare(swapped).fingerprint not in (prepared.fingerprint, corpus.fingerprint)


def test_a_damaged_model_of_the_target_is_not_taken_for_that_of_the_source(
    config: RunConfig, corpus: PreparedCorpus, tmp_path: Path
) -> None:
    (tmp_path / "tgt.model").write_text("damaged")
    models = {"model": str(corpus.tokenizer_paths[0]), "tgt_model": str(tmp_path / "tgt.model")}
    with pytest.raises(DataError) as caught:
        prepare(replace(config, tokenizer=replace(config.tokenizer, **models, tgt_vocab_size=None)))
    problem = "is damaged, or is not a SentencePiece model. Give a .model file written by SentencePiece."
    assert str(caught.value) == f"{tmp_path}/tgt.model {problem}"


def test_fine_tuning_starts_from_both_vocabularies(config: RunConfig, run: RunFolder, tmp_path: Path) -> None:
    first = str(run.checkpoint(12))
    tuned = replace(config, train=replace(config.train, init_from=first, max_steps=4))
    train(tuned, prepare(tuned), tmp_path)
    model = ModelFolder.open(RunFolder(tmp_path).checkpoint(4))
    assert model.vocab_size == (345, 330)
    for path, original in zip(model.tokenizer_paths, ModelFolder.open(Path(first)).tokenizer_paths, strict=True):
        assert path.read_bytes() == original.read_bytes()


def test_fine_tuning_with_the_other_kind_of_vocabulary_is_refused(config: RunConfig, run: RunFolder) -> None:
    joint = {"joint": True, "tgt_vocab_size": None}
    tuned = replace(config, train=replace(config.train, init_from=str(run.checkpoint(12))))
    with pytest.raises(ConfigError) as caught:
        prepare(replace(tuned, tokenizer=replace(tuned.tokenizer, **joint)))
    assert str(caught.value) == (
        f"train.init_from: the model in {run.checkpoint(12)} needs tokenizer.joint: false (here true). "
        "Remove it from the config: what it lacks is taken from that model."
    )


def test_a_model_folder_without_one_of_its_tokenizers_is_refused(run: RunFolder, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(run.checkpoint(12), folder)
    (folder / "tokenizer.tgt.model").unlink()
    with pytest.raises(CheckpointError, match=r"is not a complete model folder: tokenizer\.tgt\.model is missing"):
        ModelFolder.open(folder)


@pytest.mark.parametrize("size", [345, [345], [345, "330"], [345, 330, 1], None])
def test_a_manifest_with_other_sizes_is_refused(run: RunFolder, tmp_path: Path, size: Any) -> None:
    folder = tmp_path / "model"
    shutil.copytree(run.checkpoint(12), folder)
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    (folder / "manifest.json").write_text(json.dumps(manifest | {"vocab_size": size}), "utf-8")
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged: .*vocab_size is"):
        ModelFolder.open(folder)


def test_tokenizers_of_other_sizes_are_refused(run: RunFolder, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(run.checkpoint(12), folder)
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    (folder / "manifest.json").write_text(json.dumps(manifest | {"vocab_size": [330, 345]}), "utf-8")
    with pytest.raises(CheckpointError) as caught:
        ModelFolder.open(folder).load_tokenizers()
    assert str(caught.value) == (
        f"{folder} has 345 source and 330 target pieces, but the model was trained with 330 source and 345 target. "
        "Restore the original file."
    )


def test_an_export_translates_as_the_model_does(run: RunFolder, tmp_path: Path) -> None:
    exporter = pytest.importorskip("mt.export.ctranslate2")
    pytest.importorskip("ctranslate2")
    result = exporter.export(run.checkpoint(12), tmp_path / "export")
    (comparison,) = result.comparisons
    assert comparison.n_different == 0
    names = {path.name for path in (tmp_path / "export").iterdir()}
    assert {*FILES, "source_vocabulary.json", "target_vocabulary.json"} < names
    assert not names & {"tokenizer.model", "shared_vocabulary.json"}
    theirs = exporter.load_translator(tmp_path / "export", "cpu", retries=False)
    ours = Translator.load(run.checkpoint(12), "cpu", "fp32", retries=False)
    lines = ["bar dest fil", "kun"]
    settings = {"beam_size": 2, "max_length": 8, "length_penalty": 0.0}
    assert theirs.translate(lines, **settings) == ours.translate(lines, **settings)
    readme = (tmp_path / "export/README.md").read_text("utf-8")
    assert 'src_tokenizer = sentencepiece.SentencePieceProcessor(model_file="tokenizer.src.model")' in readme
    assert "return [tgt_tokenizer.decode(" in readme


def test_equal_vocabularies_are_exported_in_a_single_file(run: RunFolder, tmp_path: Path) -> None:
    exporter = pytest.importorskip("mt.export.ctranslate2")
    pytest.importorskip("ctranslate2")
    trained = ModelFolder.open(run.checkpoint(12))
    config = replace(trained.config, tokenizer=replace(trained.config.tokenizer, tgt_vocab_size=345))
    model = Transformer(config.model, vocab_size=(345, 345), pad_id=PAD_ID)
    for name in FILES:
        shutil.copyfile(trained.tokenizer_paths[0], tmp_path / name)
    files = [tmp_path / name for name in FILES]
    save_model_folder(tmp_path / "model", model.state_dict(), config, files, {"vocab_size": (345, 345)})
    exporter.export(tmp_path / "model", tmp_path / "export")
    assert (tmp_path / "export/shared_vocabulary.json").is_file()
    theirs = exporter.load_translator(tmp_path / "export", "cpu", retries=False)
    ours = Translator.load(tmp_path / "model", "cpu", "fp32", retries=False)
    settings = {"beam_size": 2, "max_length": 8, "length_penalty": 0.0}
    assert theirs.translate(["bar dest fil"], **settings) == ours.translate(["bar dest fil"], **settings)


def test_parameters_are_counted_for_each_vocabulary(tmp_path: Path) -> None:
    shape = replace(toy_config(tmp_path).model, tied_embeddings="none")
    model = Transformer(shape, vocab_size=(1_000, 300), pad_id=PAD_ID)
    assert [len(table.weight) for table in model.embeddings] == [1_024, 384, 384]
    sizes = [n for part, n in parameters_by_part(model).items() if part.startswith("embedding")]
    assert sizes == [1_000 * 32, 300 * 32, 300 * 32]
    assert sum(parameters_by_part(model).values()) == model.n_parameters
    joint = Transformer(shape, vocab_size=300, pad_id=PAD_ID)
    assert model.n_parameters - joint.n_parameters == 700 * 32
    # Only the output layer multiplies with its vocabulary.
    assert model.training_flops(5, 7) == joint.training_flops(5, 7)


def test_a_vocabulary_that_is_too_large_is_named(tmp_path: Path) -> None:
    config = separate(toy_config(tmp_path), tgt_vocab_size=9_000)
    with pytest.raises(ConfigError, match=r"^tokenizer\.tgt_vocab_size: 9,000 is too large for this corpus"):
        prepare(config)
    config = separate(toy_config(tmp_path), vocab_size=9_000)
    with pytest.raises(ConfigError, match=r"^tokenizer\.vocab_size: 9,000 is too large for this corpus"):
        prepare(config)


def test_training_of_both_tokenizers_is_reported(tmp_path: Path) -> None:
    with messages() as said:
        prepare(separate(toy_config(tmp_path)))
    trained = [line for line in said if line.startswith("training a")]
    assert [line.partition(" on ")[0] for line in trained] == [
        "training a source bpe tokenizer of 345 pieces",
        "training a target bpe tokenizer of 330 pieces",
    ]


def test_the_rehearsal_of_doctor_trains_both(config: RunConfig) -> None:
    reader = readers_of(config)["data.train.0"]
    cleaned = clean_sample(draw_sample("data.train.0", reader, max_pairs=1_000, max_seconds=60), config)
    rehearsal = rehearse(config, [cleaned], None)
    assert rehearsal.vocab_size == rehearsal.tokenizers.vocab_size == (345, 330)
    assert [len(counts) for counts in rehearsal.sources[0].piece_counts] == [345, 330]


def test_tied_embeddings_of_separate_vocabularies_are_refused_with_the_fix(config: RunConfig) -> None:
    with pytest.raises(ConfigError) as caught:
        separate(config, tied="all")
    assert str(caught.value) == (
        "model.tied_embeddings is all, but the vocabularies are separate (tokenizer.joint is false): they cannot "
        "share a matrix. Set it to decoder or none."
    )


@pytest.mark.parametrize("setting", [{"tgt_vocab_size": 400}, {"tgt_model": "x.model"}])
def test_settings_of_the_target_need_separate_vocabularies(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        TokenizerConfig(**setting)
    assert str(caught.value) == (
        f"tokenizer.{next(iter(setting))} is set, but both languages have the same vocabulary. "
        "Set tokenizer.joint to false, or remove it."
    )


@pytest.mark.parametrize("name", ["model", "tgt_model"])
def test_a_model_for_only_one_language_is_refused(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TokenizerConfig(joint=False, **{name: "x.model"})
    assert str(caught.value) == (
        "tokenizer.tgt_model: separate vocabularies need a model for each language, or none. "
        "Give model and tgt_model, or neither."
    )
