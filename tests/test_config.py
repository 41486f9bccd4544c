from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from mt.config.loading import (
    config_differences,
    dump_config,
    find_config,
    load_config,
    settings_of,
    shipped_configs,
)
from mt.config.settings import HubDataset, ModelConfig, RunConfig, Table, TextFiles
from mt.errors import ConfigError, statement

MINIMAL = """\
name: captions
src_lang: en
tgt_lang: de
data:
  train:
    - {src: train.en, tgt: train.de}
  valid: {src: valid.en, tgt: valid.de}
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(text: str | bytes, *overrides: str) -> RunConfig:
    Path("x.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config("x.yaml", overrides)


def message_of(text: str | bytes, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    return str(caught.value)


# --- Valid configs ----------------------------------------------------------------------------------------------------


def test_settings_that_a_file_leaves_out_have_their_defaults():
    config = load(MINIMAL + "model: {d_model: 256, n_heads: 4}\n")
    assert config.model == ModelConfig(d_model=256, n_heads=4)
    assert config.data.train == (TextFiles(src="train.en", tgt="train.de"),)
    assert config.train.max_steps == 100_000


NUMBERS: list[tuple[str, list[str], float | str]] = [
    ("train.peak_lr", ["3e-4", "3E-4", "3.0e-4", "0.3e-3", "'3e-4'"], 3e-4),  # YAML reads most of these as text
    ("train.peak_lr", ["1"], 1.0),
    ("train.max_steps", ["1e6", "1000000", "1_000_000", "1.0e+6", "1000000.0"], 1_000_000),
    ("train.micro_batch_tokens", ["4e3"], 4_000),
    ("train.micro_batch_tokens", ["auto"], "auto"),
    ("name", ["1e6"], "1e6"),
    ("name", ["2026-11-22"], "2026-11-22"),
]


@pytest.mark.parametrize(("key", "text", "value"), [(key, text, value) for key, ts, value in NUMBERS for text in ts])
def test_numbers_are_read_in_any_notation_and_names_stay_text(key: str, text: str, value: float | str):
    section, _, name = key.rpartition(".")
    written = f"{MINIMAL}{section}: {{{name}: {text}}}\n" if section else MINIMAL.replace("captions", text)
    found = settings_of(load(written))[key]
    assert (found, type(found)) == (value, type(value))


def test_an_empty_section_has_its_defaults():
    assert load(MINIMAL + "model:\ntokenizer:\n") == load(MINIMAL)


def test_a_byte_order_mark_is_not_part_of_the_first_key():
    assert load(b"\xef\xbb\xbf" + MINIMAL.encode()) == load(MINIMAL)


# --- Invalid configs --------------------------------------------------------------------------------------------------

REFUSED = {
    "train: {warmup_step: 3}": "x.yaml: train.warmup_step: unknown key, did you mean warmup_steps?",
    "batch_tokens: 3": "x.yaml: batch_tokens: unknown key, did you mean train.batch_tokens?",
    "tokenizer: {merges: 3}": "x.yaml: tokenizer.merges: unknown key, the keys of tokenizer are joint, model, "
    "tgt_model, kind, vocab_size, tgt_vocab_size, split_digits, character_coverage, sample_lines, user_symbols",
    "train: {lr: 3}": "x.yaml: train.lr: unknown key, did you mean train.peak_lr?",
    "train: {colour: 3}": "x.yaml: train.colour: unknown key; mt config explain train lists the keys",
    "colour: 3": "x.yaml: colour: unknown key, the keys at the top are name, src_lang, tgt_lang, data, tokenizer, "
    "model, train, decode, eval",
    "train: {max_steps: yes}": "x.yaml: train.max_steps: expected an integer of at least 1, got true",
    "train: {max_steps: 2.5}": "x.yaml: train.max_steps: expected an integer of at least 1, got 2.5",
    "train: {max_steps: 1e-3}": "x.yaml: train.max_steps: expected an integer of at least 1, got '1e-3'",
    "train: {max_steps: '100'}": "x.yaml: train.max_steps: expected an integer of at least 1, got '100'",
    "train: {max_steps: null}": "x.yaml: train.max_steps: expected an integer of at least 1, got null",
    "train: {max_steps: [1]}": "x.yaml: train.max_steps: expected an integer of at least 1, got a list",
    "train: {max_steps: {a: 1}}": "x.yaml: train.max_steps: expected an integer of at least 1, got a mapping",
    "train: {peak_lr: fast}": "x.yaml: train.peak_lr: expected a number above 0 or null, got 'fast'",
    "train: {peak_lr: 1e999}": "x.yaml: train.peak_lr: expected a number above 0 or null, got inf",
    f"train: {{peak_lr: 1{400 * '0'}}}": f"x.yaml: train.peak_lr: expected a number above 0 or null, got 1{76 * '0'}…",
    "train: {micro_batch_tokens: all}": "x.yaml: train.micro_batch_tokens: expected an integer of at least 1 or auto, "
    "got 'all'",
    "train: {compile: maybe}": "x.yaml: train.compile: expected true, false or auto, got 'maybe'",
    "train: {precision: bf8}": "x.yaml: train.precision: expected auto, bf16, fp16 or fp32, got 'bf8'",
    "train: {stop_after: 1:30}": "x.yaml: train.stop_after: expected a duration such as 1h30m or null, got 90",
    "train: {stop_after: soon}": "x.yaml: train.stop_after: expected a duration such as 90s, 30m or 1h30m, got 'soon'",
    "model: 512": "x.yaml: model: expected a mapping (key: value), got 512",
    "model: [512]": "x.yaml: model: expected a mapping (key: value), got a list",
    "model: {d_model: 100}": "x.yaml: model.d_model: expected a multiple of 8 × model.n_heads (64), got 100",
    "model: {n_kv_heads: 3}": "x.yaml: model.n_kv_heads: expected a divisor of model.n_heads (8), got 3",
    "model: {n_kv_heads: 0}": "x.yaml: model.n_kv_heads: expected a divisor of model.n_heads (8), got 0",
    "model: {d_model: 72, n_heads: 8, positions: rotary}": "x.yaml: model.d_model: expected a multiple of 8 × "
    "model.n_heads (64), got 72",
    "model: {positions: learned, n_positions: 200}": "x.yaml: model.n_positions is 200, smaller than data.max_tokens "
    "(256): the longest sentence would have no positions. Raise model.n_positions or lower data.max_tokens.",
    "model: {positions: rope}": "x.yaml: model.positions: expected sinusoidal, learned, rotary, relative, alibi or "
    "none, got 'rope'",
    "model: {layer_dropout: 1.0}": "x.yaml: model.layer_dropout: expected a number of at least 0 and below 1, got 1.0",
    "model: {3: 4}": "x.yaml: model.3: expected text as a key, got 3 (YAML reads it as a number: write it in quotes)",
    "no: 4": "x.yaml: false: expected text as a key, got false "
    "(YAML reads a bare yes/no/on/off as true/false: write it in quotes)",
}


@pytest.mark.parametrize(("line", "message"), REFUSED.items())
def test_the_error_for_an_invalid_setting_names_its_key(line: str, message: str):
    assert message_of(f"{MINIMAL}{line}\n") == message


REPLACED = {
    ("tgt_lang: de", "tgt_lang: no"): "x.yaml: tgt_lang: expected a language code such as en or null, got false "
    "(YAML reads a bare yes/no/on/off as true/false: write it in quotes)",
    ("tgt_lang: de", "tgt_lang: en"): "x.yaml: tgt_lang is the same as src_lang: en",
    ("name: captions\n", ""): "x.yaml: name is missing",
    ("  valid: {src: valid.en, tgt: valid.de}\n", ""): "x.yaml: data.valid is missing",
    (
        "{src: train.en, tgt: train.de}",
        "{src: train.en}",
    ): "x.yaml: data.train.0: expected one kind of corpus, with the keys {src, tgt}, {file}, {dataset}, {sacrebleu} "
    "or {run}",
    ("{src: valid.en, tgt: valid.de}", "{dataset: x, split: 'a[:9%]', streaming: true}"): "x.yaml: data.valid.split: "
    "a[:9%] is a part of a split, and streaming reads only whole splits. Give a whole split, or remove streaming.",
    ("tgt: train.de}", "tgt: train.de, weight: 0}"): "x.yaml: data.train.0.weight: expected a number above 0 "
    "and up to 1000, got 0",
    ("tgt: train.de}", "tgt: train.de, split: test}"): "x.yaml: data.train.0.split: only a corpus with dataset has "
    "this key",
    ("tgt: train.de}", "tgt: train.de, wieght: 2}"): "x.yaml: data.train.0.wieght: unknown key, did you mean weight?",
    ("{src: valid.en, tgt: valid.de}", "valid.en"): "x.yaml: data.valid: expected a corpus such as "
    "{src: FILE, tgt: FILE} or a list, got 'valid.en'",
    (
        "    - {src: train.en, tgt: train.de}",
        "    src: train.en",
    ): "x.yaml: data.train: expected a list of at least one corpus, got a mapping",
    ("    - {src: train.en, tgt: train.de}", "    []"): "x.yaml: data.train: expected a list of at least one corpus, "
    "got an empty list",
    ("  valid:", "  test: {2016: {file: a.tsv}}\n  valid:"): "x.yaml: data.test.2016: expected text as a key, got 2016 "
    "(YAML reads it as a number: write it in quotes)",
}


@pytest.mark.parametrize(("change", "message"), REPLACED.items())
def test_the_error_for_invalid_data_settings_names_their_key(change: tuple[str, str], message: str):
    assert change[0] in MINIMAL
    assert message_of(MINIMAL.replace(*change)) == message


def test_a_key_given_twice_is_refused_with_both_lines():
    text = MINIMAL + "train:\n  seed: 1\n  max_steps: 5\n  seed: 2\n"
    assert message_of(text) == "x.yaml:11:3 is not valid YAML: seed is already set on line 9"


EMPTY = "A config needs at least name, src_lang, tgt_lang and data; mt config init writes one to start from."
UNREADABLE = {
    b"name: a\ndata: {train: [\n": "x.yaml:3:1 is not valid YAML: expected the node content, but found '<stream end>' "
    "(while parsing a flow node)",
    b"name: a\n\tdata: 3\n": "x.yaml:2:1 is not valid YAML: found character '\\t' that cannot start any token "
    "(while scanning for the next token)",
    b"name: a: b\n": "x.yaml:1:8 is not valid YAML: mapping values are not allowed here",
    b"name: a\n---\nname: b\n": "x.yaml:2:1 is not valid YAML: but found another document "
    "(expected a single document in the stream)",
    b"name: !!python/object:os.system a\n": "x.yaml:1:7 is not valid YAML: could not determine a constructor for the "
    "tag 'tag:yaml.org,2002:python/object:os.system'",
    b"name: a\nseed: \x00\n": "x.yaml:2 is not valid YAML: the character '\\x00' is not allowed",
    b"name: a\nsrc_lang: \xff\n": "x.yaml:2 is not UTF-8 text. Save the file as UTF-8.",
    b"[" * 100_000: "x.yaml is not valid YAML: nested too deeply",
    b"": f"x.yaml is empty. {EMPTY}",
    b"# nothing\n": f"x.yaml is empty. {EMPTY}",
    b"- a\n- b\n": "x.yaml: expected a mapping (key: value), got a list",
    b"name\n": "x.yaml: expected a mapping (key: value), got 'name'",
}


@pytest.mark.parametrize(("content", "message"), UNREADABLE.items(), ids=range(len(UNREADABLE)))
def test_a_file_that_is_not_a_config_is_refused_in_one_line(content: bytes, message: str):
    assert message_of(content) == message


# --- --set ------------------------------------------------------------------------------------------------------------


def test_overrides_are_applied_in_order():
    assert load(MINIMAL, "train.max_steps=5", "train.max_steps=1e2", "train.peak_lr=3e-4").train.max_steps == 100


def test_an_override_of_a_list_entry_replaces_one_key():
    text = MINIMAL.replace("{src: train.en, tgt: train.de}", "{dataset: wmt/wmt14, config: de-en}")
    config = load(text, "data.train.0.dataset=../hub/wmt14")
    assert config.data.train == (HubDataset(dataset="../hub/wmt14", config="de-en"),)


def test_an_override_with_the_next_index_appends():
    config = load(MINIMAL, "data.train.1.dataset=a/b", "data.train.1.weight=0.5", "data.train.2={file: c.tsv}")
    assert config.data.train[1:] == (HubDataset(dataset="a/b", weight=0.5), Table(file="c.tsv"))


def test_an_override_of_a_whole_value_replaces_it_without_merging():
    config = load(MINIMAL, "data.valid={file: valid.tsv}", "data.train=[{file: train.tsv}]")
    assert config.data.valid == Table(file="valid.tsv")
    assert config.data.train == (Table(file="train.tsv"),)


def test_an_override_creates_missing_sections():
    config = load(MINIMAL, "data.test.flickr2016.src=a.en", "data.test.flickr2016.tgt=a.de", "model.d_ff=64")
    assert config.data.test == {"flickr2016": TextFiles(src="a.en", tgt="a.de")}
    assert config.model.d_ff == 64


def test_an_override_with_null_removes_a_value():
    text = MINIMAL + "train: {clip_norm: 1.0}\n"
    assert load(text, "train.clip_norm=null").train.clip_norm is None
    assert load(MINIMAL + "decode: {max_length: 9}\n", "decode=null").decode.max_length is None


def test_an_override_may_set_a_key_that_the_file_lacks():
    assert load(MINIMAL.replace("name: captions\n", ""), "name=given").name == "given"


def test_an_override_changes_one_of_two_keys_that_share_a_yaml_alias():
    text = MINIMAL.replace("valid: {", "test: {a: &a {file: a.tsv}}\n  valid: *a\nmodel: {").partition("model")[0]
    config = load(text, "data.valid.file=b.tsv")
    assert (config.data.valid.file, config.data.test["a"].file) == ("b.tsv", "a.tsv")


BAD_OVERRIDES = {
    "train.warmup_step=3": "--set train.warmup_step=3: train.warmup_step: unknown key, did you mean warmup_steps?",
    "train.seed=one": "--set train.seed=one: train.seed: expected an integer of at least 0, got 'one'",
    "train.max_steps": "--set train.max_steps: expected KEY=VALUE, such as train.max_steps=100",
    "=3": "--set =3: expected KEY=VALUE, such as train.max_steps=100",
    "train.max_steps=": "--set train.max_steps=: train.max_steps: expected an integer of at least 1, got null",
    "train.max_steps.x=3": "--set train.max_steps.x=3: train.max_steps.x: unknown key: train.max_steps is a single "
    "value",
    "train.max_steps=0": "--set train.max_steps=0: train.max_steps: expected an integer of at least 1, got 0",
    "train=3": "--set train=3: train: expected a mapping (key: value), got 3",
    "train={max_step: 3}": "--set train={max_step: 3}: train.max_step: unknown key, did you mean max_steps?",
    "tgt_lang=no": "--set tgt_lang=no: tgt_lang: expected a language code such as en or null, got false "
    "(YAML reads a bare yes/no/on/off as true/false: write it in quotes)",
    "data.train.2.file=a.tsv": "--set data.train.2.file=a.tsv: data.train.2: expected the index of an entry, 0 to 1 "
    "(1 appends)",
    "data.train.first.file=a.tsv": "--set data.train.first.file=a.tsv: data.train.first: expected the index of an "
    "entry, 0 to 1 (1 appends)",
    "data.train.0.file=a.tsv": "--set data.train.0.file=a.tsv: data.train.0: expected one kind of corpus, with the "
    "keys {src, tgt}, {file}, {dataset}, {sacrebleu} or {run}; to replace the whole value, use --set "
    "'data.train.0={…}'",
    "data.valid={src: a": "--set data.valid={src: a is not valid YAML: expected ',' or '}', but got '<stream end>' "
    "(while parsing a flow mapping)",
    "data.test.a b={sacrebleu: wmt14}": "--set data.test.a b={sacrebleu: wmt14}: data.test.a b: expected a name of "
    "letters, digits and . _ + -, got 'a b'",
    "data.valid={src: a, src: b}": "--set data.valid={src: a, src: b} is not valid YAML: src is already set on line 1",
}


@pytest.mark.parametrize(("override", "message"), BAD_OVERRIDES.items())
def test_the_error_for_an_invalid_override_quotes_it(override: str, message: str):
    assert message_of(MINIMAL, "model.d_ff=64", override) == message


def test_the_error_for_an_override_inside_a_single_value_shows_that_value():
    message = "--set tokenizer.kind=unigram: tokenizer: expected a mapping (key: value), got 'bpe'"
    assert message_of(MINIMAL + "tokenizer: bpe\n", "tokenizer.kind=unigram") == message


def test_an_error_of_the_file_is_not_blamed_on_an_override():
    assert (
        message_of(MINIMAL + "train: {seed: x}\n", "train.max_steps=3")
        == "x.yaml: train.seed: expected an integer of at least 0, got 'x'"
    )


# --- Where configs are ------------------------------------------------------------------------------------------------


def test_a_file_in_the_current_folder_takes_precedence_over_a_shipped_config():
    Path("base.yaml").write_text(MINIMAL)
    assert find_config("base.yaml") == Path("base.yaml")
    assert load_config("base.yaml").name == "captions"


@pytest.mark.parametrize("name", ["base", "base.yaml"])
def test_a_shipped_config_is_found_by_name_from_any_folder(name: str):
    Path("base").mkdir()
    assert find_config(name) in shipped_configs()
    assert load_config(name).name == "base"


def test_errors_in_a_shipped_config_give_only_its_file_name():
    with pytest.raises(ConfigError) as caught:
        load_config("base", ["data.max_tokens=100000"])
    assert str(caught.value) == (
        "base.yaml: train.batch_tokens is 25000, smaller than data.max_tokens (100000): "
        "the longest sentence would not fit. Raise train.batch_tokens or lower data.max_tokens."
    )


NOWHERE = "does not exist, and no config of this name ships with mt"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("configs/multi31k.yaml", f"{NOWHERE}. Did you mean multi30k.yaml?"),
        ("zzz", f"{NOWHERE}. The configs that ship with mt are {', '.join(path.stem for path in shipped_configs())}."),
        ("runs", "is a folder. Give a config file."),
    ],
)
def test_a_missing_config_file_is_refused_with_a_suggestion(name: str, problem: str):
    Path("runs").mkdir()
    with pytest.raises(ConfigError) as caught:
        load_config(name)
    assert str(caught.value) == statement(name, problem)


# --- Back to YAML, and differences ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["name=1e6", "src_lang='no'", "train.peak_lr=1e-9", "train.micro_batch_tokens=4096", "train.compile=false"],
        [
            "data.test={'2016': {file: 'häß 1.tsv'}, a.b: {dataset: x, split: 'null'}}",
            "data.train.1={sacrebleu: wmt14}",
        ],
        ["train.stop_after='1:30'", "train.stop_after=1h30m", "data.prepared_dir='a: #b'", "train.adam_eps=1e-300"],
    ],
)
def test_a_dumped_config_loads_as_the_same_config(overrides: list[str]):
    config = load(MINIMAL, *overrides)
    assert load(dump_config(config)) == config


def test_the_dump_has_every_setting():
    text = dump_config(load(MINIMAL))
    for section in dataclasses.fields(RunConfig):
        assert f"{section.name}:" in text
    assert "  warmup_steps: 4000\n" in text
    assert "  - src: train.en\n    tgt: train.de\n    weight: 1.0\n" in text


def test_equal_configs_do_not_differ():
    assert config_differences(load(MINIMAL), load(MINIMAL)) == {}


@pytest.mark.parametrize(
    ("override", "differences"),
    [
        ("train.max_steps=5", {"train.max_steps": (100_000, 5)}),
        ("train.clip_norm=1", {"train.clip_norm": (None, 1.0)}),
        ("data.train.0.weight=2", {"data.train.0.weight": (1.0, 2.0)}),
        ("data.train.1.file=a.tsv", {"data.train.1.file": (None, "a.tsv"), "data.train.1.weight": (None, 1.0)}),
        ("data.test.a.file=a.tsv", {"data.test.a.file": (None, "a.tsv"), "data.test.a.weight": (None, 1.0)}),
    ],
)
def test_config_differences_map_dotted_keys_to_both_values(override: str, differences: dict[str, tuple[Any, Any]]):
    assert config_differences(load(MINIMAL), load(MINIMAL, override)) == differences


def test_the_same_file_on_both_sides_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("demo.yaml", ["data.valid={src: a.txt, tgt: a.txt}"])
    assert str(caught.value) == (
        "--set data.valid={src: a.txt, tgt: a.txt}: data.valid: src and tgt are the same file, a.txt"
    )


def test_the_error_for_an_invalid_setting_in_python_names_its_key() -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig(d_model=0)
    assert str(caught.value) == "model.d_model: expected an integer of at least 1, got 0"
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(ModelConfig(), n_kv_heads=3)
    assert str(caught.value) == "model.n_kv_heads: expected a divisor of model.n_heads (8), got 3"


def test_keys_of_other_kinds_of_corpora_may_be_null() -> None:
    config = load(MINIMAL, "data.valid.file=null", "data.valid.streaming=false", "data.valid.config=null")
    assert config.data.valid == TextFiles(src="valid.en", tgt="valid.de")


def test_with_init_from_the_shape_that_is_not_given_is_that_of_the_model() -> None:
    general = load(MINIMAL, "model.d_model=64", "model.n_heads=2", "model.dropout=0.3", "model.norm=pre")
    Path("general").mkdir()
    Path("general/config.yaml").write_text(dump_config(general), "utf-8")
    start = "train.init_from=general"
    assert load(MINIMAL, start).model == dataclasses.replace(general.model, dropout=ModelConfig().dropout)
    given = load(MINIMAL, start, "model.norm=post", "model.dropout=0.2").model
    assert given == dataclasses.replace(general.model, norm="post", dropout=0.2)
    # An unreadable config is an error later, which names the model.
    Path("general/config.yaml").write_text("name: 7", "utf-8")
    assert load(MINIMAL, start).model == load(MINIMAL, "train.init_from=nowhere").model == ModelConfig()
    # A run that has started keeps the shape when the model is gone.
    for run_dir in (None, Path("elsewhere")):
        started = run_dir or Path("runs", general.name)
        started.mkdir(parents=True)
        (started / "config.yaml").write_text(dump_config(general), "utf-8")
        path = Path("x.yaml")
        path.write_text(MINIMAL, "utf-8")
        found = load_config(path, [start, "model.dropout=0.2"], run_dir)
        assert found.model == dataclasses.replace(general.model, dropout=0.2)
        shutil.rmtree(started)
