from __future__ import annotations

import pickle
from pathlib import Path

from mt.decode.files import option_of
from mt.errors import ConfigError, DataError


def test_an_error_prints_place_problem_and_fix_in_one_line():
    error = DataError(Path("a.en"), "is a zip archive: 2 files", "unpack it")
    assert str(error) == "a.en is a zip archive: 2 files. Unpack it."
    assert (error.place, error.problem, error.fix) == ("a.en", "is a zip archive: 2 files", "unpack it")
    assert (DataError("no text: none").place, DataError("no text: none").problem) == ("", "no text: none")


def test_an_error_from_another_process_keeps_its_parts():
    error = ConfigError("train.seed", "is 3", "take 4")
    arrived = pickle.loads(pickle.dumps(error))
    assert (arrived.place, arrived.problem, arrived.fix, str(arrived)) == ("train.seed", "is 3", "take 4", str(error))


def test_an_error_about_settings_can_name_the_options_instead():
    error = ConfigError("decode.top_k", "is 1", "raise decode.top_k or train.seed", others=("decode.top_k",))
    assert str(error.renamed(option_of)) == "--top-k is 1. Raise --top-k or train.seed."
    assert str(ConfigError("n_best", "is 0").renamed(option_of)) == "--n-best is 0"
    assert str(ConfigError(Path("n_best"), "exists already").renamed(option_of)) == "n_best exists already"


def test_an_error_can_be_located_in_a_setting_and_a_file():
    error = ConfigError("weight", "is 0").under("data.train.0").within("x.yaml")
    assert (type(error), str(error)) == (ConfigError, "x.yaml: data.train.0.weight is 0")
    assert str(ConfigError("", "is empty").under("data.train.0")) == "data.train.0 is empty"
