"""Hub data sets are read by split, config and columns. Errors about missing ones list those that exist."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mt.text.corpora import SentencePair
from tests.parallel_text import error_of, read, write, write_parquet

REAL_DATA = os.environ.get("MT_REAL_DATA")
needs_real_data = pytest.mark.skipif(not REAL_DATA, reason="MT_REAL_DATA does not name the folder with data/ and hub/")
NAME_THEM = "Set src_column and tgt_column to those of the text."


def raising(error: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / ".cache")


def test_a_folder_with_the_layout_of_the_hub_is_read_in_order() -> None:
    n = 25_000  # more than two batches
    translation = [{"de": f"Satz {i}", "en": f"sentence {i}"} for i in range(n)]
    write_parquet("set/train-00000-of-00001.parquet", {"translation": translation})
    pairs = read(dataset="set")
    assert pairs == [SentencePair(f"sentence {i}", f"Satz {i}", i + 1) for i in range(n)]


def test_one_column_per_language_is_read_and_null_is_empty_text() -> None:
    write_parquet("set/validation.parquet", {"en": ["one", None], "de": ["eins", "zwei"], "id": [1, 2]})
    expected = [("one", "eins", 1), ("", "zwei", 2)]
    assert read("validation", dataset="set") == expected
    assert read("train", dataset="set", split="validation") == expected


def test_the_error_for_a_missing_split_language_or_config_lists_the_existing_ones(tmp_path: Path) -> None:
    write_parquet("set/train.parquet", {"translation": [{"de": "eins", "fr": "un"}]})
    write_parquet("set/validation.parquet", {"translation": [{"de": "eins", "fr": "un"}]})
    assert error_of("test", dataset="set") == "data set set has no split test; choose from train, validation"
    assert (
        error_of(dataset="set") == f"data set set has no en; the keys of its column translation are de, fr. {NAME_THEM}"
    )
    assert error_of(dataset="set", config="de-en") == "data set set has no config de-en; choose from default"
    assert error_of(dataset="./nowhere") == f"./nowhere: no such folder (looked for in {tmp_path})"
    assert error_of(dataset=write("a.jsonl", "")) == (
        "a.jsonl is a file, expected a data set. If it is a .tsv, .jsonl or .parquet file, write {file: a.jsonl}."
    )
    write_parquet("columns/train.parquet", {"source": ["one"], "de": ["eins"]})
    assert error_of(dataset="columns") == f"data set columns has no en; its columns are source, de. {NAME_THEM}"
    write_parquet("numbers/train.parquet", {"en": [1], "de": ["eins"]})
    assert error_of(dataset="numbers") == "data set numbers: expected text in column en, found int64"


def test_a_config_must_be_chosen_if_there_are_several() -> None:
    for config in ("de-en", "fr-en"):
        write_parquet(f"set/{config}/train.parquet", {"en": ["one"], "de": ["eins"]})
    card = "---\nconfigs:\n" + "".join(
        f"- config_name: {config}\n  data_files: {config}/train.parquet\n" for config in ("de-en", "fr-en")
    )
    write("set/README.md", card + "---\n")
    assert error_of(dataset="set") == (
        "data set set has several configs, and the key config is missing; choose from de-en, fr-en"
    )
    assert read(dataset="set", config="de-en") == [("one", "eins", 1)]


def test_no_network_and_an_unknown_name_are_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", raising(ConnectionError("Couldn't reach\nthe Hub")))
    assert error_of(dataset="wmt/wmt14", config="de-en") == (
        "data set wmt/wmt14: the hub cannot be reached, and the local cache has no copy. "
        "Check the network, or give a local folder that holds the data set."
    )
    monkeypatch.setattr(datasets, "load_dataset", raising(datasets.exceptions.DatasetNotFoundError("no\nset")))
    assert error_of(dataset="no/set") == (
        "data set no/set was not found on the hub, or is private. Check the name at "
        "https://huggingface.co/datasets/no/set, and log in with `hf auth login` if it is private."
    )


def test_the_error_for_a_gated_data_set_says_how_to_get_access(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    error = datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' is a gated dataset on the Hub.\nVisit its page")
    monkeypatch.setattr(datasets, "load_dataset", raising(error))
    assert error_of(dataset="a/b") == (
        "data set a/b is gated. Request access at https://huggingface.co/datasets/a/b, and log in with `hf auth login`."
    )


def test_the_script_of_a_data_set_is_never_run(tmp_path: Path) -> None:
    write_parquet("set/data/train.parquet", {"en": ["one"], "de": ["eins"]})
    script = write("set/set.py", f"import pathlib\npathlib.Path({str(tmp_path / 'run')!r}).touch()\n")
    assert error_of(dataset=script) == (
        "set/set.py is a file, expected a data set. If it is a .tsv, .jsonl or .parquet file, write {file: set/set.py}."
    )
    assert error_of(dataset="set") == (
        "data set set is read by its own script, and mt runs no code of data sets. Give a version of it in "
        "Parquet, or its files as {file: …} or {src, tgt}."
    )
    assert not (tmp_path / "run").exists()


@pytest.fixture
def numbers() -> None:
    """Write a data set of ten training and two validation pairs."""
    for split, first, n in (("train", 0, 10), ("validation", 10, 2)):
        write_parquet(
            f"set/{split}.parquet",
            {"en": [f"e{i}" for i in range(first, first + n)], "de": [f"d{i}" for i in range(first, first + n)]},
        )


@pytest.mark.usefixtures("numbers")
@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train[:20%]", [0, 1]),
        ("train[-2:]", [8, 9]),
        ("validation+train[2:4]", [10, 11, 2, 3]),
    ],
)
def test_a_split_may_be_a_part_or_a_sum(split: str, expected: list[int]) -> None:
    assert read(dataset="set", split=split) == [(f"e{i}", f"d{i}", line) for line, i in enumerate(expected, start=1)]


@pytest.mark.usefixtures("numbers")
def test_invalid_splits_are_refused() -> None:
    assert error_of(dataset="set", split="train+dev[:3]") == (
        "data set set has no split dev[:3]; choose from train, validation"
    )
    assert error_of(dataset="set", split="train[") == (
        "data set set: the split train[ is not valid. Write a name, a part such as train[:10%], or several of these "
        "with + between them."
    )


@pytest.mark.usefixtures("numbers")
def test_streaming_gives_the_same_pairs() -> None:
    assert read(dataset="set", streaming=True) == read(dataset="set")
    assert error_of(dataset="set", streaming=True, split="dev") == (
        "data set set has no split dev; choose from train, validation"
    )


@pytest.mark.usefixtures("numbers")
def test_the_error_for_an_interrupted_stream_says_after_which_row(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    class Broken:
        features = datasets.Features({"en": datasets.Value("string"), "de": datasets.Value("string")})

        def with_format(self, _: str) -> "Broken":
            return self

        def iter(self, batch_size: int) -> Any:
            yield datasets.load_dataset("set", split="train").with_format("arrow")[:3]
            raise TimeoutError("no\nanswer")

    with monkeypatch.context() as patched:
        broken = Broken()
        original = datasets.load_dataset
        patched.setattr(
            datasets,
            "load_dataset",
            lambda *args, streaming=False, **kw: broken if streaming else original(*args, **kw),
        )
        assert error_of(dataset="set", streaming=True) == (
            "data set set: the hub stopped answering after row 3. Start again (without streaming, downloaded "
            "files are kept)."
        )


def test_columns_are_chosen_by_name_number_or_path() -> None:
    write_parquet("set/train.parquet", {"id": ["7"], "source": ["one"], "text": [{"hyp": "eins", "score": 1}]})
    assert read(dataset="set", src_column="source", tgt_column="text.hyp") == [("one", "eins", 1)]
    assert read(dataset="set", src_column=2, tgt_column="id") == [("one", "7", 1)]
    assert error_of(dataset="set", src_column="source", tgt_column="text.ref") == (
        "data set set has no column text.ref; its columns are id, source, text.hyp, text.score. Correct src_column "
        "and tgt_column."
    )
    assert error_of(dataset="set", src_column="source", tgt_column="text.score") == (
        "data set set: expected text in column text.score, found int64"
    )
    assert error_of(dataset="set", src_column=1, tgt_column=4) == (
        "data set set has no column 4; its columns are id, source, text. Correct src_column and tgt_column."
    )


def test_a_text_column_may_be_called_translation() -> None:
    write_parquet("set/train.parquet", {"source": ["one"], "translation": ["eins"]})
    assert error_of(dataset="set") == f"data set set has no de and en; its columns are source, translation. {NAME_THEM}"
    assert read(dataset="set", src_column="source", tgt_column="translation") == [("one", "eins", 1)]


@needs_real_data
def test_slicing_and_streaming_the_real_folder_give_the_same_pairs() -> None:
    folder = str(Path(REAL_DATA or "").resolve() / "hub/wmt14")
    whole = read("test", dataset=folder, config="de-en", streaming=True)
    assert len(whole) == 3_003
    assert read("test", dataset=folder, config="de-en", split="test[:10]") == whole[:10]
    assert whole[0] == SentencePair(whole[0].src, whole[0].tgt, 1)
