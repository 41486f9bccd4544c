from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import config_reference
import pytest

from mt.config.loading import load_config
from mt.config.reference import (
    ROOT,
    SCHEMA,
    Setting,
    comments_of,
    config_schema,
    explained,
    find_setting,
    groups,
    write_starter,
)
from mt.config.settings import DecodeConfig, RunConfig, TrainConfig
from mt.errors import ConfigError

OUTDATED = "is out of date: run python scripts/config_reference.py"
SETTINGS = [one for group in (ROOT, *groups()) for section in group.sections.values() for one in group.inside(section)]


@dataclasses.dataclass
class Example:
    """A section whose comments are read."""

    a: int = 1  # Behind.
    # Above,
    # in two lines.
    b: int = 2
    c: int = 3

    # About a group of settings, not about the next one.

    d: str = "x"  # One: two; three #4.

    def e(self) -> None:
        f: int = 5  # Inside a function.
        del f


def test_the_text_of_a_setting_is_the_comment_above_and_behind_it() -> None:
    expected = {"a": "Behind.", "b": "Above, in two lines.", "c": "", "d": "One: two; three #4."}
    assert comments_of(Example) == expected


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.key)
def test_each_setting_has_a_text_that_is_a_sentence(setting: Setting) -> None:
    assert re.fullmatch(r"\S.*\.", setting.meaning)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.key)
def test_the_text_of_a_setting_explains_null_where_null_is_allowed(setting: Setting) -> None:
    assert ("null" in setting.meaning) == ("null" in setting.values)


def test_the_page_of_settings_is_up_to_date() -> None:
    assert config_reference.PAGE.read_text(encoding="utf-8") == config_reference.page(), OUTDATED


def test_the_schema_in_the_package_is_up_to_date() -> None:
    """Texts and defaults are compared: pydantic's versions write the rest differently, and the page above has it."""
    in_package = json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert texts_and_defaults(in_package) == texts_and_defaults(config_schema()), OUTDATED


def texts_and_defaults(schema: dict[str, Any]) -> dict[tuple[str, str], tuple[str, Any]]:
    sections = {"": schema, **schema["$defs"]}
    settings = {(section, name): one for section in sections for name, one in sections[section]["properties"].items()}
    return {key: (setting["description"], setting.get("default")) for key, setting in settings.items()}


def test_the_schema_has_sections_limits_choices_defaults_texts_and_kinds_of_corpora() -> None:
    schema = config_schema()
    sections = {name: entry.get("$ref", "").rpartition("/")[2] for name, entry in schema["properties"].items()}
    assert sections["train"] == "TrainConfig"
    assert schema["$defs"]["TrainConfig"]["properties"]["max_steps"] == {
        "default": 100_000,
        "description": "Updates of the whole training.",
        "minimum": 1,
        "type": "integer",
    }
    assert schema["$defs"]["TrainConfig"]["properties"]["best_by"]["enum"] == ["bleu", "chrf", "loss"]
    assert "drawn again" in schema["$defs"]["TextFiles"]["properties"]["weight"]["description"]
    *kinds, several = schema["$defs"]["DataConfig"]["properties"]["valid"]["oneOf"]
    assert [kind["$ref"].rpartition("/")[2] for kind in kinds] == [
        "TextFiles",
        "Table",
        "HubDataset",
        "SacrebleuSet",
        "RunText",
    ]
    assert (several["type"], several["minItems"]) == ("array", 1)


# --- mt config explain ------------------------------------------------------------------------------------------------


def test_a_setting_is_explained_with_values_default_and_whether_a_run_may_change_it() -> None:
    assert explained("decode.max_length") == (
        "decode.max_length\n"
        "    Longest translation in tokens, end of sentence included. null: 50 more than the source.\n"
        "    Values: an integer from 1 to 10,000 or null. Default: null. A started run may change it."
    )
    assert explained("train.seed").endswith("Default: 1. A started run cannot change it.")
    assert "Values: auto, bf16, fp16 or fp32. Default: auto. A started run may change it." in explained(
        "train.precision"
    )


def test_a_section_is_explained_with_all_its_settings() -> None:
    keys = re.findall(r"^train\.(\w+)$", explained("train"), re.MULTILINE)
    assert keys == [field.name for field in dataclasses.fields(TrainConfig)]


def test_each_key_of_the_kinds_of_corpora_is_explained_once() -> None:
    keys = re.findall(r"^data\.train\.0\.(\w+)$", explained("data.train"), re.MULTILINE)
    own = [
        "src",
        "tgt",
        "src_lang",
        "tgt_lang",
        "both_directions",
        "weight",
        "tag",
        "file",
        "quoting",
        "src_column",
        "tgt_column",
        "dataset",
        "config",
        "split",
        "streaming",
    ]
    assert keys == [*own, "sacrebleu", "run"]
    assert explained("data.train.2.weight").startswith(
        "data.train.2.weight\n    Copies of each training pair in an epoch."
    )
    assert explained("data.test.newstest.file").startswith("data.test.newstest.file\n    Path of")


def test_without_a_key_the_sections_are_listed() -> None:
    keys = re.findall(r"^  ([\w.]+)  ", explained(), re.MULTILINE)
    sections = ["data", "data.train", "data.valid", "data.test", "data.clean"]
    sections += ["tokenizer", "model", "train", "decode", "eval"]
    assert keys == sections


def test_with_a_config_its_values_are_shown() -> None:
    config = load_config("demo")
    assert "In this config: 0.003." in explained("train.peak_lr", config)
    assert "In this config: data/demo/valid.en." in explained("data.valid", config)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("train.warmup_step", "train.warmup_step: unknown key, did you mean warmup_steps?"),
        ("beam_size", "beam_size: unknown key, did you mean decode.beam_size?"),
        ("sacrebleu", "sacrebleu: unknown key, did you mean data.valid.sacrebleu?"),
        ("lr", "lr: unknown key, did you mean train.peak_lr?"),
        ("trian", "trian: unknown key, did you mean train?"),
        ("train.seed.x", "train.seed.x: unknown key: train.seed is a single value"),
        ("data.train.fiel", "data.train.fiel: unknown key, did you mean file?"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(key: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_setting(key)
    assert str(caught.value) == message


# --- mt config init ---------------------------------------------------------------------------------------------------


@pytest.fixture
def starter(tmp_path: Path) -> Path:
    write_starter(tmp_path / "captions.yaml")
    return tmp_path / "captions.yaml"


def test_the_starter_is_a_config_named_like_its_file(starter: Path) -> None:
    config = load_config(str(starter))
    assert (config.name, config.model.d_model) == ("captions", 256)
    assert f"mt doctor --config {starter}" in starter.read_text(encoding="utf-8")


@pytest.mark.parametrize(("file", "name"), [("no.yaml", "no"), ("2026.yaml", "2026"), ("my model!.yaml", "my-model-")])
def test_any_name_of_a_file_gives_a_valid_name_of_a_run(file: str, name: str, tmp_path: Path) -> None:
    write_starter(tmp_path / file)
    assert load_config(str(tmp_path / file)).name == name


def test_the_starter_repeats_no_default(starter: Path) -> None:
    config = load_config(str(starter))
    given = re.findall(r"^  (\w+): ", starter.read_text(encoding="utf-8").partition("\ntrain:")[2], re.MULTILINE)
    assert len(given) > 5
    assert [name for name in given if getattr(config.train, name) == getattr(TrainConfig(), name)] == []


def test_the_first_line_of_the_starter_names_the_schema(starter: Path) -> None:
    first = starter.read_text(encoding="utf-8").splitlines()[0]
    assert first == f"# yaml-language-server: $schema={SCHEMA.as_uri()}"


def test_each_setting_in_a_comment_of_the_starter_can_be_used(starter: Path) -> None:
    lines = starter.read_text(encoding="utf-8").splitlines()
    settings = [i for i, line in enumerate(lines) if re.match(r" *# (- \{|[a-z_0-9]+: )", line)]
    default, loaded = load_config(str(starter)), list[RunConfig]()
    for i in settings:
        text = "\n".join([*lines[:i], lines[i].replace("# ", "", 1), *lines[i + 1 :]])
        starter.write_text(text, encoding="utf-8")
        loaded.append(load_config(str(starter)))
    assert len(settings) == 9
    assert default not in loaded
    tags = {corpus.tag for config in loaded for corpus in config.data.train}
    kinds = {type(corpus).__name__ for config in loaded for corpus, *_ in config.entries.values()}
    assert (tags, kinds) == ({None, "<bt>"}, {"TextFiles", "Table", "HubDataset", "SacrebleuSet"})
    assert any(config.train.init_from for config in loaded)
    assert any(config.decode != DecodeConfig() for config in loaded)


def test_a_file_that_exists_is_not_overwritten(starter: Path) -> None:
    starter.write_text("mine\n")
    with pytest.raises(ConfigError) as caught:
        write_starter(starter)
    assert str(caught.value) == f"{starter} exists already. Give the name of a new file."
    assert starter.read_text() == "mine\n"
