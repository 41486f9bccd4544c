from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from mt.config.loading import dump_config, load_config, shipped_configs
from mt.config.settings import DecodeConfig, HubDataset, ModelConfig, RunConfig, TrainConfig

NAMES = ["base", "big", "demo", "multi30k", "multilingual"]
WMT14 = HubDataset(dataset="wmt/wmt14", config="de-en")


def test_the_names_of_the_shipped_configs():
    assert [path.stem for path in shipped_configs()] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_config_loads_and_has_the_name_of_its_file(name: str):
    config = load_config(name)
    assert config.name == name
    assert RunConfig(**yaml.safe_load(dump_config(config))) == config


@pytest.mark.parametrize("path", shipped_configs(), ids=NAMES)
def test_a_shipped_config_begins_with_a_comment(path: Path):
    assert path.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("path", shipped_configs(), ids=NAMES)
def test_a_shipped_config_repeats_no_default(path: Path):
    text = path.read_text(encoding="utf-8")
    given = yaml.safe_load(text)
    config = load_config(str(path))
    for section in ("tokenizer", "model", "train", "decode"):
        defaults = _defaults(section)
        repeated = [key for key in given.get(section, {}) if getattr(getattr(config, section), key) == defaults[key]]
        assert repeated == [], f"{section} of {path.name}"


def _defaults(section: str) -> dict[str, Any]:
    field = next(field for field in dataclasses.fields(RunConfig) if field.name == section)
    return dataclasses.asdict(field.default)  # type: ignore[call-overload]


@pytest.mark.parametrize("name", ["base", "big"])
def test_base_and_big_are_trained_on_wmt14_as_in_the_paper(name: str):
    config = load_config(name)
    assert (config.src_lang, config.tgt_lang) == ("en", "de")
    assert config.data.train == (dataclasses.replace(WMT14, split="train"),)
    assert config.data.valid == dataclasses.replace(WMT14, split="validation")
    assert config.data.test == {"newstest2014": dataclasses.replace(WMT14, split="test")}
    assert (config.tokenizer.kind, config.tokenizer.vocab_size) == ("bpe", 37_000)
    assert config.decode == DecodeConfig(beam_size=4, length_penalty=0.6)


def test_base_is_the_base_model_of_the_paper():
    config = load_config("base")
    assert config.model == ModelConfig(d_model=512, n_heads=8, d_ff=2_048, dropout=0.1)
    expected = {"batch_tokens": 25_000, "max_steps": 100_000, "warmup_steps": 4_000, "peak_lr": None, "clip_norm": None}
    expected |= {"adam_beta1": 0.9, "adam_beta2": 0.98, "adam_eps": 1e-9, "label_smoothing": 0.1}
    expected |= {"checkpoint_every": 1_500, "average_last": 5}
    assert config.train == TrainConfig(**expected)


def test_big_is_the_big_model_of_the_paper():
    config = load_config("big")
    assert config.model == ModelConfig(d_model=1_024, n_heads=16, d_ff=4_096, dropout=0.3)
    assert config.train == dataclasses.replace(load_config("base").train, max_steps=300_000, average_last=20)
