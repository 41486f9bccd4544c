"""Corpora in several directions: languages of entries, their pieces, mixing, validation, translation, reports."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mt import Translator
from mt.config.loading import dump_config, load_config
from mt.config.settings import Direction, RunConfig, TokenizerConfig
from mt.decode.scorer import Scorer
from mt.errors import CheckpointError, ConfigError, DataError
from mt.evaluation.report_files import read_evaluation
from mt.pipeline import prepare, train_run
from mt.report.facts import direction_rows
from mt.text.checks import check_codes, check_habits
from mt.text.corpora import readers_of
from mt.text.corpus import PreparedCorpus
from mt.text.languages import chosen_direction
from mt.text.overlap import HeldOut
from mt.text.sample import draw_sample
from mt.text.tokenizer import EOS_ID, Tokenizer, Tokenizers, adopt_model, count_words, train_tokenizer
from tests.toys import toy_config, toy_text, write_lines

Run = Callable[..., tuple[int, str, str]]
EN_DE, DE_EN, EN_FR, FR_EN = Direction("en", "de"), Direction("de", "en"), Direction("en", "fr"), Direction("fr", "en")


def several(folder: Path, *, data: dict[str, Any] | None = None, **train: Any) -> RunConfig:
    """Return the config of a toy run between en and de and from en into fr, which is de in the reverse order."""
    config = toy_config(folder, n_train=300, **train)
    for name, n, seed in (("train", 150, 4), ("valid", 10, 5), ("test", 10, 6)):
        src, tgt = toy_text(n, seed, reverse=True)
        write_lines(folder / f"{name}.fr.en", src)
        write_lines(folder / f"{name}.fr", tgt)

    def entries(name: str) -> list[dict[str, Any]]:
        of_de = {"src": str(folder / f"{name}.en"), "tgt": str(folder / f"{name}.de"), "both_directions": True}
        of_fr = {"src": str(folder / f"{name}.fr.en"), "tgt": str(folder / f"{name}.fr"), "tgt_lang": "fr"}
        return [of_de, of_fr]

    zero_shot = {"src": str(folder / "test.de"), "tgt": str(folder / "test.en"), "src_lang": "de", "tgt_lang": "fr"}
    texts = {"train": entries("train"), "valid": entries("valid")}
    texts |= {"test": dict(zip(("flat", "turned"), entries("test"), strict=True)) | {"zero": zero_shot}}
    settings = {"prepared_dir": config.data.prepared_dir, "max_tokens": 64, **texts, **(data or {})}
    return load_config({**_plain(config), "data": settings, "tokenizer": {"vocab_size": 400}})


def _plain(config: RunConfig) -> dict[str, Any]:
    import yaml

    plain: dict[str, Any] = yaml.safe_load(dump_config(config))
    return plain


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Path]:
    """A finished run in three directions."""
    folder = tmp_path_factory.mktemp("several")
    config = several(folder / "text", max_steps=4, validate_every=2)
    train_run(config, folder / "run")
    return config, folder / "run"


# --- Configs


def test_a_corpus_has_the_languages_of_the_run_or_its_own_and_may_be_used_in_both_directions(tmp_path: Path):
    config = several(tmp_path)
    assert {key: (str(one.direction), one.is_reversed) for key, one in config.entries.items()} == {
        "data.train.0": ("en-de", False),
        "data.train.0.de-en": ("de-en", True),
        "data.train.1": ("en-fr", False),
        "data.valid.en-de": ("en-de", False),
        "data.valid.de-en": ("de-en", True),
        "data.valid.en-fr": ("en-fr", False),
        "data.test.flat": ("en-de", False),
        "data.test.flat.de-en": ("de-en", True),
        "data.test.turned": ("en-fr", False),
        "data.test.zero": ("de-fr", False),
    }
    assert [*config.tests] == ["flat", "flat.de-en", "turned", "zero"]
    assert [*config.valid_sets] == ["valid.en-de", "valid.de-en", "valid.en-fr"]
    assert config.directions == (EN_DE, DE_EN, EN_FR)
    assert load_config(_plain(config)) == config


def test_two_validation_sets_in_one_direction_have_two_names(tmp_path: Path):
    config = toy_config(tmp_path)
    twice = load_config(
        _plain(config) | {"data": _plain(config)["data"] | {"valid": [_plain(config)["data"]["valid"]] * 2}}
    )
    assert [*twice.valid_sets] == ["valid.en-de", "valid.en-de.2"]
    assert [*toy_config(tmp_path).valid_sets] == ["valid"]


def test_sources_begin_with_pieces_only_if_there_are_several_target_languages_or_the_config_says_so(tmp_path: Path):
    config = several(tmp_path)
    assert config.language_pieces == ("<2de>", "<2en>", "<2fr>")
    assert [config.pieces_of(one) for one in (EN_DE, EN_FR)] == [("<2de>",), ("<2fr>",)]
    with_sources = replace(config, data=replace(config.data, source_language_piece=True, test={}))
    assert with_sources.language_pieces == ("<2de>", "<2en>", "<2fr>", "<en>", "<de>")
    assert with_sources.pieces_of(EN_FR) == ("<2fr>", "<en>")
    one = toy_config(tmp_path)
    assert one.language_pieces == one.pieces_of(EN_DE) == ()
    assert replace(one, data=replace(one.data, source_language_piece=True)).pieces_of(EN_DE) == ("<en>",)


WRONG: list[tuple[dict[str, Any], str]] = [
    (
        {"src_lang": None},
        "data.train.0 has no src_lang, and neither has the run. Add src_lang to it, or src_lang to the run as the "
        "default.",
    ),
    ({"data.train.1.tgt_lang": "en"}, "data.train.1 has the same source and target language: en"),
    (
        {"data.test.turned.tgt_lang": "cs"},
        "data.test.turned: no corpus in data.train translates into cs. Correct the language, remove this set, or add "
        "training text.",
    ),
    (
        {"data.source_language_piece": True, "data.test.turned.src_lang": "cs"},
        "data.test.turned: no corpus in data.train translates from cs. Correct the language, remove this set, or add "
        "training text.",
    ),
    (
        {"data.train.0.tag": "<2fr>"},
        "data.train.0.tag is <2fr>, the piece of a language, which mt adds itself. Remove it.",
    ),
    ({"tokenizer.user_symbols": ["<2de>"]}, "tokenizer.user_symbols has <2de>, the piece of a language. Remove it."),
    (
        {
            "data.test": {
                "flat.de-en": {"src": "a", "tgt": "b"},
                "flat": {"src": "a", "tgt": "b", "both_directions": True},
            }
        },
        "data.test.flat.de-en is the name of the other direction of another test set. Choose another name.",
    ),
    (
        {"data.test": {"valid.x": {"src": "a", "tgt": "b"}}},
        "data.test.valid.x is the name of a validation set. Choose another name.",
    ),
    ({"data.mix_temperature": 0.5}, "data.mix_temperature: expected a number from 1 to 1000, got 0.5"),
    ({"data.valid": []}, "data.valid: expected a list of at least one corpus, got an empty list"),
    ({"data.valid": None}, "data.valid: expected a corpus such as {src: FILE, tgt: FILE} or a list, got null"),
    ({"data.valid.0.sr": "x"}, "data.valid.0.sr: unknown key, did you mean src?"),
    (
        {"data.valid.1.tag": "<2fr>"},
        "data.valid.1.tag is <2fr>, the piece of a language, which mt adds itself. Remove it.",
    ),
    (
        {"data.train.1.tgt_lang": "../fr"},
        "data.train.1 has languages that are not codes: en and ../fr. Write codes such as de, zh_Hans or pt-BR.",
    ),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[next(iter(changes)) for changes, _ in WRONG])
def test_contradictory_languages_are_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as caught:
        load_config(_plain(several(tmp_path)), changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_without_any_language_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"src_lang is missing. Give it for the run, or for each corpus"):
        load_config(_plain(toy_config(tmp_path)), {"src_lang": None})


def test_an_entry_of_the_validation_sets_can_be_set_by_its_number(tmp_path: Path):
    config = load_config(_plain(several(tmp_path)), ["data.valid.1.tag=<x>"])
    assert [one.tag for one in config.data.valid_corpora] == [None, "<x>"]


def test_the_temperature_makes_small_directions_more_frequent_and_keeps_the_size_of_an_epoch(tmp_path: Path):
    config, sizes = several(tmp_path), (90_000, 90_000, 10_000)
    assert config.weights(sizes) == [1.0, 1.0, 1.0]
    mixed = replace(config, data=replace(config.data, mix_temperature=2.0))
    weights = mixed.weights(sizes)
    drawn = np.multiply(weights, sizes)
    assert drawn.sum() == pytest.approx(sum(sizes))
    assert drawn / drawn.sum() == pytest.approx(np.sqrt(sizes) / np.sqrt(sizes).sum())
    small = replace(mixed.data.train[1], weight=3.0)
    weighted = replace(mixed, data=replace(mixed.data, train=(mixed.data.train[0], small)))
    assert weighted.weights(sizes) == pytest.approx([weights[0], weights[1], 3 * weights[2]])


def test_a_direction_without_pairs_has_a_weight_and_changes_no_other(tmp_path: Path):
    config = several(tmp_path, data={"mix_temperature": 2.0})
    weights = config.weights([400, 100, 0])
    assert np.multiply(weights, [400, 100, 0]) == pytest.approx([1000 / 3, 500 / 3, 0])
    assert config.weights([0, 0, 0]) == [1.0, 1.0, 1.0]


def test_corpora_of_one_direction_share_its_probability(tmp_path: Path):
    config = several(tmp_path, data={"mix_temperature": 3.0})
    twice = replace(config, data=replace(config.data, train=(*config.data.train, config.data.train[1])))
    weights = twice.weights([500, 500, 100, 200])
    assert weights[2] == pytest.approx(weights[3])
    drawn = np.multiply(weights, [500, 500, 100, 200])
    assert (drawn[2] + drawn[3]) / drawn[0] == pytest.approx((300 / 500) ** (1 / 3))


# --- Text and pieces


def test_a_reversed_corpus_has_its_sides_exchanged(tmp_path: Path):
    config = several(tmp_path)
    readers = readers_of(config)
    forward, back = readers["data.train.0"], readers["data.train.0.de-en"]
    assert [(pair.tgt, pair.src, pair.line) for pair in forward.pairs()] == [tuple(pair) for pair in back.pairs()]
    assert (forward.langs, back.langs) == (EN_DE, DE_EN)
    assert back.count() == forward.count() == 300
    assert back.fingerprint() != forward.fingerprint()
    assert (back.side(0), back.side(1)) == (forward.side(1), forward.side(0))


def test_columns_named_after_the_languages_are_found_in_both_directions(tmp_path: Path):
    table = write_lines(tmp_path / "x.tsv", ["de\ten", "ein Hund\ta dog", "eine Katze\ta cat"])
    data = {"train": [{"file": str(table), "both_directions": True}], "valid": {"file": str(table)}}
    config = RunConfig(name="x", src_lang="en", tgt_lang="de", data=data)
    texts = {
        str(Direction(*reader.langs)): [pair[:2] for pair in reader.pairs()] for reader in readers_of(config).values()
    }
    assert texts["en-de"] == [("a dog", "ein Hund"), ("a cat", "eine Katze")]
    assert texts["de-en"] == [("ein Hund", "a dog"), ("eine Katze", "a cat")]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_the_piece_of_a_language_is_one_id_that_no_text_has(tmp_path: Path, kind: Any):
    lines = [*toy_text(300, 1)[0], *toy_text(300, 1)[1], *["<2fr> bar <2fr>"] * 50]
    path = tmp_path / "model"
    train_tokenizer(count_words(lines), TokenizerConfig(kind=kind, vocab_size=310), path, controls=["<2fr>", "<en>"])
    tokenizer = Tokenizer.load(path)
    assert tokenizer.vocab_size == 310
    first = tokenizer.ids_of(["<2fr>", "<en>"])
    assert first == [EOS_ID + 1, EOS_ID + 2]
    ids = tokenizer.encode("bar <2fr> dest")
    assert not set(ids) & set(first)
    assert tokenizer.decode([*first, *ids]) == "bar <2fr> dest"
    with pytest.raises(CheckpointError, match=r"does not have the piece <2de> of a language"):
        tokenizer.ids_of(["<2de>"])
    with pytest.raises(CheckpointError):
        tokenizer.ids_of(["bar"])


def test_an_adopted_model_gets_the_pieces_of_languages(tmp_path: Path):
    path = tmp_path / "model"
    train_tokenizer(count_words(toy_text(300, 1)[0]), TokenizerConfig(vocab_size=340), path, ["<bt>"])
    before, after = Tokenizer.load(path), Tokenizer(adopt_model(path, ["<bt>"], ["<2fr>"]))
    assert after.vocab_size == before.vocab_size + 1
    assert after.ids_of(["<2fr>"]) == [before.vocab_size]
    text = toy_text(1, 7)[0][0]
    assert after.encode(f"<bt> {text} <2fr>") == before.encode(f"<bt> {text} <2fr>")
    with pytest.raises(ConfigError, match=r"<bt> is a piece of this model, and mt needs it for a language"):
        adopt_model(path, [], ["<bt>"])


def test_the_prepared_corpus_begins_each_source_with_its_target_language(tmp_path: Path):
    config = several(tmp_path, data={"source_language_piece": True, "test": {}})
    corpus = prepare(config)
    tokenizers = Tokenizers.load(corpus.tokenizer_paths)
    n_of_each = np.cumsum([0, *corpus.corpus_sizes])
    for number, entry in enumerate(config.training):
        first = tokenizers.src.ids_of(config.pieces_of(entry.direction))
        pairs = list(readers_of(config)[[*config.entries][number]].pairs())
        for i in range(n_of_each[number], n_of_each[number + 1]):
            src, tgt = corpus.train.src[i].tolist(), corpus.train.tgt[i].tolist()
            assert src[:2] == first
            pair = pairs[corpus.train_lines[i] - 1]
            assert (tokenizers.src.decode(src[2:-1]), tokenizers.tgt.decode(tgt[:-1])) == (pair.src, pair.tgt)
    assert {name: len(ids) for name, ids in corpus.valid_ids()} == {
        "valid.en-de": 20,
        "valid.de-en": 20,
        "valid.en-fr": 10,
    }
    for name, ids in corpus.valid_ids():
        first = tokenizers.src.ids_of(config.pieces_of(config.valid_sets[name].direction))
        assert [ids.src[i].tolist()[:2] for i in range(len(ids))] == [first] * len(ids)
        assert [tokenizers.tgt.decode(ids.tgt[i].tolist()[:-1]) for i in range(len(ids))] == [
            pair.tgt for pair in corpus.valid_sets[name]
        ]
    assert PreparedCorpus.open(corpus.folder, is_verified=True).valid_sets == corpus.valid_sets
    report = json.loads((corpus.folder / "report.json").read_text("utf-8"))
    assert [(one["src_lang"], one["tgt_lang"]) for one in report["train"]["sources"]] == [EN_DE, DE_EN, EN_FR]


def test_the_languages_are_part_of_the_identity_of_a_corpus_and_the_temperature_is_not(tmp_path: Path):
    config = several(tmp_path)
    folder = prepare(config).folder
    hot = replace(config, data=replace(config.data, mix_temperature=5.0))
    assert prepare(hot).folder == folder
    marked = replace(config, data=replace(config.data, source_language_piece=True, test={}))
    assert prepare(marked).folder != prepare(replace(config, data=replace(config.data, test={}))).folder
    one = toy_config(tmp_path)
    assert prepare(replace(one, data=replace(one.data, source_language_piece=True))).folder != prepare(one).folder


def test_equal_pairs_of_two_directions_are_not_duplicates(tmp_path: Path):
    config = several(tmp_path)
    assert prepare(config).corpus_sizes == (300, 300, 149)  # folded, the toy languages en and de are the same text
    into_cs = replace(config.data.train[0], tgt_lang="cs", both_directions=False)
    again = replace(config, data=replace(config.data, train=(*config.data.train, into_cs, into_cs)))
    assert prepare(again).corpus_sizes == (300, 300, 149, 300, 0)


RUSSIAN = ["Собака бежит по зелёной траве в парке", "Двое мужчин сидят на скамейке у реки"]


def test_each_corpus_is_cleaned_by_the_rules_of_its_languages(tmp_path: Path):
    config = several(tmp_path)
    src, _ = toy_text(60, 8)
    russian = [f"{RUSSIAN[i % 2]} {i}" for i in range(60)]
    entry = {"src": str(write_lines(tmp_path / "ru.en", src)), "tgt": str(write_lines(tmp_path / "ru.ru", russian))}
    plain = _plain(config)
    plain["data"]["train"].append(entry | {"tgt_lang": "ru", "both_directions": True})
    corpus = prepare(load_config(plain))
    assert corpus.corpus_sizes[-2:] == (60, 60)
    plain["data"]["train"][-1] = entry  # as if it were German
    with pytest.raises(DataError, match="wrong_script"):
        prepare(load_config(plain))


def test_text_of_a_test_set_is_removed_from_training_whatever_side_it_is_on():
    from mt.text.corpora import SentencePair

    sets = {"test": [SentencePair("one two three four five six", "eins zwei drei vier fünf sechs", 1)]}
    on_their_side, on_any = HeldOut(sets, 6), HeldOut(sets, 6, on_any_side=True)
    for found, expected in ((on_their_side, None), (on_any, "test")):
        assert found.find("eins zwei drei vier fünf sechs", "un deux") == expected
        assert found.find("x", "one two three four five six") == expected
        assert found.find("one two three four five six", "y") == "test"


def test_doctor_names_two_codes_of_one_language_and_compares_only_text_of_one_language(tmp_path: Path):
    (finding,) = check_codes(["en", "de", "fr", "deu", "pt-BR", "pt-PT"])
    assert (finding.level, "de and deu" in finding.problem) == ("error", True)
    config = several(tmp_path)
    samples = {
        key: draw_sample(key, reader, max_pairs=500, max_seconds=60) for key, reader in readers_of(config).items()
    }
    train = [one for key, one in samples.items() if key.startswith("data.train")]
    # en is written in small letters, and de in capitals.
    assert not [*check_habits(train, [one for key, one in samples.items() if key.startswith("data.valid")])]


# --- A model


def test_a_run_validates_and_reports_each_direction(finished: tuple[RunConfig, Path]):
    _, path = finished
    metrics = [json.loads(line) for line in (path / "metrics.jsonl").read_text("utf-8").splitlines()]
    validations = [one for one in metrics if "valid_bleu" in one]
    assert [one["step"] for one in validations] == [2, 4]
    for one in validations:
        for key in ("loss", "bleu", "chrf"):
            each = [scores[key] for scores in one["valid_sets"].values()]
            assert len(each) == 3
            assert one[f"valid_{key}"] == pytest.approx(np.mean(each))
    report = read_evaluation(path)
    assert report is not None
    assert [*report.validated] == ["valid.en-de", "valid.de-en", "valid.en-fr"]
    assert "validation set en-de" in report.scored_sets
    assert [*report.test_sets] == ["flat", "flat.de-en", "turned", "zero"]
    assert [one.is_zero_shot for one in report.test_sets.values()] == [False, False, False, True]
    assert [one.direction for one in report.test_sets.values()] == ["en-de", "de-en", "en-fr", "de-fr"]
    assert {"zero-shot", "de-fr"} < {*report.by_direction[-2]}
    assert report.by_direction[-1][0] == "mean"
    assert {one.name for one in (path / "translations").glob("*")} == {
        f"{name}.txt" for name in (*report.validated, *report.test_sets)
    }
    assert "de-fr" in (path / "report.html").read_text("utf-8")


def test_means_leave_out_zero_shot_sets():
    from mt.report.facts import MetricScore, ScoredSet

    def scored(bleu: float, **facts: Any) -> ScoredSet:
        scores = [MetricScore(name="BLEU", score=bleu), MetricScore(name="chrF2", score=50.0)]
        return ScoredSet(n_lines=1, n_references=1, scores=scores, **facts)

    tests = {
        "a": scored(10.0, src_lang="en", tgt_lang="de", in_language=0.5),
        "b": scored(20.0, src_lang="de", tgt_lang="en"),
        "c": scored(0.0, src_lang="de", tgt_lang="fr", is_zero_shot=True),
    }
    assert direction_rows({}, tests)[1:] == [
        ["a", "en-de", "10.00", "50.00", "50.0%", ""],
        ["b", "de-en", "20.00", "50.00", "–", ""],
        ["c", "de-fr", "0.00", "50.00", "–", "zero-shot"],
        ["mean", "", "15.00", "50.00", "", ""],
    ]
    assert direction_rows({"valid": scored(1.0)}, {"a": scored(1.0)}) == []


def test_a_translator_reads_the_piece_of_its_target_language(finished: tuple[RunConfig, Path]):
    config, path = finished
    loaded = Translator.load(path, "cpu", "fp32")
    assert repr(loaded).startswith("<Translator several languages")
    with pytest.raises(ConfigError, match=r"the model translates into de, en, fr"):
        loaded.translate(["bar dest"])
    german, french = loaded.between("en", "de"), loaded.between(tgt_lang="French")
    assert german.first_ids == tuple(german.tokenizers.src.ids_of(["<2de>"]))
    assert french.first_ids == tuple(french.tokenizers.src.ids_of(["<2fr>"]))
    assert repr(french).startswith("<Translator en to fr")
    seen = []
    search = german.backend.search

    def spied(request: Any) -> Any:
        seen.extend(request.sentences)
        return search(request)

    lines = ["bar dest. Dest ku. " * 40, "bar"]
    german.backend.search = spied  # type: ignore[method-assign]
    try:
        german.translate(lines)
    finally:
        del german.backend.search
    assert len(seen) > 2
    assert all(tuple(ids[:1]) == german.first_ids and len(ids) <= config.data.max_tokens for ids in seen)
    scores = [next(Scorer(one).score([("bar dest", "BAR DEST")])).log_prob for one in (german, french)]
    assert scores[0] != scores[1]
    blank, missing = Scorer(german).score([("", ""), ("", german.tokenizers.tgt.pieces([300])[0])])
    assert (blank.log_prob, blank.n_tokens) == (0.0, 0)
    assert missing.log_prob < 0
    assert missing.n_tokens == 2


def test_alignments_leave_out_the_pieces_of_languages(finished: tuple[RunConfig, Path]):
    translator = Translator.load(finished[1], "cpu", "fp32", tgt_lang="de")
    lines = ["bar dest ku mon", "golt"]
    for line, (best, *_) in zip(lines, translator.translate_lines(lines, is_aligned=True), strict=True):
        assert best.alignment is not None
        assert {i for i, _ in best.alignment} <= set(range(len(line.split())))


CHOSEN = [
    ((None, "de"), EN_DE),
    (("en", "fr"), EN_FR),
    (("de", None), DE_EN),
    ((None, "eng"), DE_EN),
    (("de", "fr"), Direction("de", "fr")),
]


@pytest.mark.parametrize(("langs", "direction"), CHOSEN)
def test_a_language_may_be_left_out_if_it_is_clear(tmp_path: Path, langs: tuple[str, str], direction: Direction):
    assert chosen_direction(several(tmp_path), *langs) == direction


def test_a_language_that_fits_two_variants_is_not_clear(tmp_path: Path):
    plain = _plain(several(tmp_path))
    for lang in ("pt-BR", "pt-PT"):
        plain["data"]["train"].append({**plain["data"]["train"][1], "tgt_lang": lang})
    config = load_config(plain)
    assert chosen_direction(config, None, "pt-PT") == Direction("en", "pt-PT")
    with pytest.raises(ConfigError, match=r"^to: the model translates into pt-BR, pt-PT. Choose one of them.$"):
        chosen_direction(config, None, "pt")


@pytest.mark.parametrize(
    ("langs", "message"),
    [
        (("en", None), "to: the model translates into de, fr. Choose one of them."),
        ((None, None), "to: the model translates into de, en, fr. Choose one of them."),
        ((None, "ja"), "to: the model does not translate into ja. Choose from de, en, fr."),
        (("en", "English"), "to is en, the language to translate from. Choose another one."),
        (("fr", "de"), "from: the model does not translate from fr. Choose from de, en."),
    ],
)
def test_an_unknown_language_is_refused_with_the_list(tmp_path: Path, langs: tuple[str, str], message: str):
    with pytest.raises(ConfigError) as caught:
        chosen_direction(several(tmp_path), *langs)
    assert str(caught.value) == message


def test_commands_take_the_languages_as_options(finished: tuple[RunConfig, Path], run: Run, tmp_path: Path):
    _, path = finished
    status, out, err = run("translate", "--model", path, "--to", "fr", "--no-progress", stdin=b"bar dest\n")
    assert (status, out.count("\n")) == (0, 1)
    translated = run("translate", "--model", path, "--from", "de", "--to", "fr", stdin=b"BAR\n")
    assert "the model was not trained to translate de-fr" in translated[2]
    assert run("translate", "--model", path, stdin=b"bar\n")[0] == 2
    src, tgt = write_lines(tmp_path / "a", ["bar"]), write_lines(tmp_path / "b", ["BAR"])
    scores = [run("score", "--model", path, "--src", src, "--tgt", tgt, "--to", to)[1] for to in ("de", "fr")]
    assert scores[0] != scores[1]
    page = tmp_path / "page.html"
    assert run("explain", "--model", path, "--src", "bar", "--to", "fr", "--output", page)[0] == 0
    assert "&lt;2fr&gt;" in page.read_text("utf-8")
    status, out, _ = run("eval", "--model", path, "--to", "fr", "--metric", "bleu", "--json")
    assert [*json.loads(out)["test_sets"]] == ["turned", "zero"]
    status, out, _ = run("eval", "--model", path, "--from", "de", "--to", "en", "--src", src, "--ref", tgt, "--json")
    assert json.loads(out)["test_sets"]["a"]["tgt_lang"] == "en"
    assert run("eval", "--model", path, "--src", src, "--ref", tgt)[2].startswith("error: --to: the model translates")
    status, _, err = run("eval", "--model", path, "--to", "cs")
    assert (status, err.startswith("error: --to: ")) == (2, True)


def test_a_model_of_one_direction_refuses_other_languages(toy_model: Path, run: Run):
    status, _, err = run("translate", "--model", toy_model, "--to", "fr", stdin=b"bar\n")
    assert (status, err) == (2, "error: --to: the model does not translate into fr. Choose from de.\n")
    assert run("translate", "--model", toy_model, "--to", "German", stdin=b"bar\n")[0] == 0


def test_a_stopped_run_in_several_directions_continues(tmp_path: Path):
    config = several(tmp_path / "text", max_steps=2, validate_every=2)
    train_run(config, tmp_path / "run")
    train_run(replace(config, train=replace(config.train, max_steps=4)), tmp_path / "run")
    report = read_evaluation(tmp_path / "run")
    assert report is not None
    assert report.steps == 4


def test_a_model_of_several_languages_is_fine_tuned_in_one_direction_with_its_pieces(
    finished: tuple[RunConfig, Path], tmp_path: Path
):
    _, path = finished
    plain = _plain(toy_config(tmp_path / "text", max_steps=2, validate_every=2))
    plain = {key: plain[key] for key in ("name", "src_lang", "tgt_lang", "data", "train")}
    del plain["data"]["target_language_piece"], plain["data"]["source_language_piece"]
    plain["train"]["init_from"] = str(path)
    config = load_config(plain)
    assert (config.language_pieces, config.tokenizer.vocab_size) == (("<2de>",), 400)
    train_run(config, tmp_path / "run")
    tuned = Translator.load(tmp_path / "run", "cpu", "fp32")
    assert tuned.between().first_ids == tuple(tuned.tokenizers.src.ids_of(["<2de>"]))
    with pytest.raises(ConfigError, match=r"needs data\.target_language_piece: true \(here false\)\. Remove it"):
        prepare(load_config(plain, {"data.target_language_piece": False}))


def test_a_model_without_the_piece_of_a_language_cannot_be_trained_for_it(
    finished: tuple[RunConfig, Path], tmp_path: Path
):
    config, path = finished
    plain = _plain(config)
    plain["train"]["init_from"] = str(path)
    plain["data"]["train"][1]["tgt_lang"] = plain["data"]["valid"][1]["tgt_lang"] = "cs"
    plain["data"]["test"] = {}
    with pytest.raises(ConfigError, match=r"does not have <2cs>\. Set train.grow_vocab to add them"):
        prepare(load_config(plain))


@pytest.mark.parametrize("n_pieces", [0, 20])
def test_another_code_of_a_language_that_the_model_has_is_refused(
    finished: tuple[RunConfig, Path], tmp_path: Path, n_pieces: int
):
    _, path = finished
    plain = _plain(toy_config(tmp_path / "text", max_steps=2, validate_every=2))
    plain = {key: plain[key] for key in ("name", "src_lang", "data", "train")} | {"tgt_lang": "deu"}
    del plain["data"]["target_language_piece"], plain["data"]["source_language_piece"]
    plain["train"] |= {"init_from": str(path), "grow_vocab": n_pieces}
    with pytest.raises(ConfigError) as refused:
        prepare(load_config(plain))
    assert str(refused.value) == (
        f"train.init_from: the model in {path / 'model'} has the language deu under the code de. "
        "Write de in place of deu."
    )


def test_a_finding_about_both_directions_of_a_corpus_is_told_once(finished: tuple[RunConfig, Path], tmp_path: Path):
    config, path = finished
    plain = _plain(config)
    plain["train"]["init_from"] = str(path)
    src, tgt = toy_text(100, 11)
    lines = write_lines(tmp_path / "new.en", src), write_lines(tmp_path / "new.de", [f"č{line} ř" for line in tgt])
    plain["data"]["train"].append({"src": str(lines[0]), "tgt": str(lines[1]), "both_directions": True})
    told = [finding["problem"] for finding in prepare(load_config(plain)).manifest["findings"]]
    assert sum("single bytes" in problem for problem in told) == 1


def test_a_model_grows_for_a_new_language(
    finished: tuple[RunConfig, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    config, path = finished
    plain = _plain(config)
    plain["train"] |= {"init_from": str(path), "grow_vocab": 20}
    src, tgt = toy_text(100, 11)
    lines = write_lines(tmp_path / "cs.en", src), write_lines(tmp_path / "cs.cs", [f"č{line} ř" for line in tgt])
    plain["data"]["train"].append({"src": str(lines[0]), "tgt": str(lines[1]), "tgt_lang": "cs"})
    plain["data"]["train"].append({"run": str(path), "src_lang": "en", "tgt_lang": "de"})
    with caplog.at_level("INFO", logger="mt"):
        train_run(load_config(plain), tmp_path / "run")
    assert "vocabulary: 1 language piece, " in caplog.text
    grown = Translator.load(tmp_path / "run", "cpu", "fp32", tgt_lang="cs")
    assert grown.tokenizers.vocab_size == 420
    assert grown.first_ids == (400,)
    assert {"č", "ř"} <= {piece.strip("▁") for piece in grown.tokenizers.src.pieces(range(400, 420))}
    report = read_evaluation(tmp_path / "run")
    assert report is not None
    assert report.manifest is not None
    facts = PreparedCorpus.open(Path(config.data.prepared_dir, report.manifest.corpus["fingerprint"])).manifest
    assert facts["tokenizer"]["kind"] == "grown"
    assert facts["tokenizer"]["added_controls"] == 1
    assert facts["tokenizer"]["old_lines_cut_differently"] == 0


def test_an_added_test_set_is_translated_again_if_its_language_is_corrected(tmp_path: Path):
    config = several(tmp_path / "text", max_steps=2, validate_every=2)
    train_run(config, tmp_path / "run")

    def reported(lang: str) -> tuple[str, str]:
        new = replace(config.data.test["flat"], tgt_lang=lang, both_directions=False)
        changed = replace(config, data=replace(config.data, test={**config.data.test, "new": new}))
        train_run(changed, tmp_path / "run")
        report = read_evaluation(tmp_path / "run")
        assert report is not None
        assert report.texts is not None
        return report.test_sets["new"].direction, report.texts["new"]

    (direction, checksum), (corrected, other) = reported("fr"), reported("de")
    assert (direction, corrected) == ("en-fr", "en-de")
    assert checksum != other


def test_the_readme_of_an_export_begins_sources_with_the_pieces(finished: tuple[RunConfig, Path], toy_model: Path):
    pytest.importorskip("ctranslate2")
    from mt.export.ctranslate2 import _readme
    from mt.run_folder import open_model

    several_languages, one = (_readme(open_model(path)) for path in (finished[1], toy_model))
    assert "Each source must begin with the pieces of its languages, here <2de> for en-de, and end with `</s>`" in (
        several_languages
    )
    assert '[["<2de>", *pieces, "</s>"]' in several_languages
    assert "--model . --from en --to de --input" in several_languages
    assert "Each source must end with `</s>`" in one
    assert "--model . --input" in one
