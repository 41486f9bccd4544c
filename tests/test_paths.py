"""Text is found by patterns, ~, environment variables, lists, and next to the config file."""

import os
from pathlib import Path

import pytest

from mt.config.loading import dump_config, load_config
from mt.config.settings import RunConfig
from mt.errors import ConfigError, DataError
from mt.text.corpora import readers_of
from tests.parallel_text import error_of, read, reader, write


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def shards(*numbers: int, src: str = "shard-{}.en", tgt: str = "shard-{}.de") -> None:
    for i in numbers:
        write(src.format(i), f"one {i}\n")
        write(tgt.format(i), f"eins {i}\n")


def config(corpus: str, folder: str = ".", **others: str) -> RunConfig:
    Path(folder).mkdir(exist_ok=True)
    more = "".join(f"{key}: {value}\n" for key, value in others.items())
    data = f"{{train: [{corpus}], valid: {{src: valid.en, tgt: valid.de}}}}"
    path = write(f"{folder}/c.yaml", f"name: a\nsrc_lang: en\ntgt_lang: de\ndata: {data}\n{more}")
    return load_config(path)


# ---- patterns


def test_a_pattern_reads_all_files_that_match_in_natural_order() -> None:
    for i in (10, 2, 1):
        write(f"shard-{i}.tsv", f"one {i}\teins {i}\ntwo\tzwei\n")
    Path("shard-3.tsv").mkdir()
    found = read(file="shard-*.tsv")
    assert [pair.src for pair in found] == ["one 1", "two", "one 2", "two", "one 10", "two"]
    assert [pair.line for pair in found] == [1, 2, 3, 4, 5, 6]
    assert reader(file="shard-*.tsv").description == "shard-*.tsv (3 files)"
    assert reader(file="shard-*.tsv").count() == 6
    assert read(file=["shard-10.tsv", "shard-[12].tsv"]) == [
        (pair.src, pair.tgt, line) for line, pair in enumerate([*found[4:], *found[:4]], start=1)
    ]


def test_patterns_of_both_sides_are_read_pair_by_pair() -> None:
    shards(1, 2, 10)
    pairs = [("one 1", "eins 1", 1), ("one 2", "eins 2", 2), ("one 10", "eins 10", 3)]
    corpus = reader(src="shard-*.en", tgt="shard-*.de")
    assert list(corpus.pairs()) == pairs
    assert corpus.description == "shard-*.en + shard-*.de (3 pairs of files)"
    assert corpus.count() == 3
    assert read(src=["shard-1.en", "shard-2.en"], tgt=["shard-1.de", "shard-2.de"]) == pairs[:2]
    assert (
        corpus.fingerprint()
        == reader(src=["shard-?.en", "shard-10.en"], tgt=["shard-?.de", "shard-10.de"]).fingerprint()
    )


def test_files_without_text_in_common_are_paired_by_their_order() -> None:
    for folder in ("en", "de"):
        Path(folder).mkdir()
    shards(1, 2, src="en/{}.en", tgt="de/{}.de")
    assert [tuple(pair)[:2] for pair in read(src="en/*", tgt="de/*")] == [("one 1", "eins 1"), ("one 2", "eins 2")]
    write("de/3.de", "drei\n")
    assert error_of(src="en/*", tgt="de/*") == (
        "en/* + de/*: 2 files match on the source side and 3 on the target side: en/1.en, en/2.en; de/1.de, de/2.de, "
        "de/3.de. Add what is missing, or list the files in src and in tgt."
    )


def test_folders_at_any_depth_are_paired_by_their_names() -> None:
    for folder in ("a", "b", "b/c"):
        Path(folder).mkdir()
        shards(1, src=f"{folder}/{{}}.en", tgt=f"{folder}/{{}}.de")
    Path("b/1.en").write_text("here\n")
    found = read(src="**/*.en", tgt="**/*.de")
    assert [pair.src for pair in found] == ["one 1", "here", "one 1"]
    assert [pair.line for pair in found] == [1, 2, 3]


def test_lines_are_counted_through_all_files_also_those_without_a_pair() -> None:
    write("1.csv", "en,de\none,eins\n\n\n")
    write("2.csv", 'two,zwei\n"three\nthree",drei\n\n')
    write("3.csv", "")
    write("4.csv", "four,vier\n")
    numbers = {pair.src: pair.line for pair in read(file="[1-4].csv")}
    assert numbers == {"one": 2, "two": 5, "three three": 6, "four": 9}
    write("1.jsonl", '{"en": "one", "de": "eins"}\n\n \n')
    write("2.jsonl", '{"en": "two", "de": "zwei"}\n')
    assert [pair.line for pair in read(file="?.jsonl")] == [1, 4]
    variants = "".join(f"<tuv xml:lang='{lang}'><seg>{lang}</seg></tuv>" for lang in ("en", "de"))
    write("1.tmx", f"<tmx><body><tu>{variants}</tu><tu/><tu/></body></tmx>")
    write("2.tmx", f"<tmx><body><tu/><tu>{variants}</tu></body></tmx>")
    assert [pair.line for pair in read(file="?.tmx")] == [1, 5]


def test_the_error_for_a_file_without_counterpart_names_it() -> None:
    shards(0, 1, 2)
    Path("shard-1.de").unlink()
    fix = "Add what is missing, or list the files in src and in tgt."
    place = "shard-*.en + shard-*.de"
    assert error_of(src="shard-*.en", tgt="shard-*.de") == (
        f"{place}: 3 files match on the source side and 2 on the target side; there is no counterpart of shard-1.en. "
        + fix
    )
    write("shard-5.de", "fünf\n")
    assert error_of(src="shard-*.en", tgt="shard-*.de") == (
        f"{place}: 3 files match on the source side and 3 on the target side; there is no counterpart of shard-1.en, "
        f"shard-5.de. {fix}"
    )


def test_a_file_with_exactly_this_name_is_not_a_pattern() -> None:
    write("a[1].tsv", "one\teins\n")
    write("a1.tsv", "two\tzwei\n")
    write("my file.tsv", "three\tdrei\n")
    write("$x.tsv", "four\tvier\n")
    assert [pair.src for name in ("a[1].tsv", "my file.tsv", "$x.tsv") for pair in read(file=name)] == [
        "one", "three", "four",
    ]  # fmt: skip


def test_the_error_for_a_pattern_without_files_says_where_they_were_looked_for() -> None:
    assert error_of(file="shard-*.tsv") == (
        f"shard-*.tsv: no file has such a name (looked for in {Path.cwd()}). Correct the pattern."
    )


# ---- ~ and environment variables


def test_home_and_environment_variables_are_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "da[t]a").mkdir()
    write("da[t]a/x-1.tsv", "one\teins\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TEXT", "da[t]a")
    for name in ("~/da[t]a/x-1.tsv", "$TEXT/x-1.tsv", "${TEXT}/x-1.tsv", "${TEXT}/x-*.tsv", "$HOME/$TEXT/x-?.tsv"):
        assert read(file=name) == [("one", "eins", 1)]


def test_an_environment_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEXT", raising=False)
    assert error_of(file="$TEXT/x.tsv") == (
        "$TEXT/x.tsv: the environment variable TEXT is not set. Set it, or write out the path."
    )
    with pytest.raises(ConfigError) as caught:
        config("{file: a.tsv}", train="{init_from: $TEXT/model}")
    assert str(caught.value) == "./c.yaml: train.init_from: the environment variable TEXT is not set"


def test_folders_may_be_in_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/a")
    found = config("{file: a.tsv}", tokenizer="{model: ~/t.model}")
    assert found.tokenizer.model == "/home/a/t.model"


# ---- next to the config


def test_text_that_is_not_in_the_current_folder_is_read_from_that_of_the_config() -> None:
    found = config("{file: shard-*.tsv}", "in[1]", tokenizer="{model: t.model}")
    write("in[1]/shard-1.tsv", "one\teins\n")
    write("in[1]/t.model", "")
    write("valid.en", "here\n")
    write("in[1]/valid.en", "there\n")
    write("in[1]/valid.de", "dort\n")
    found = load_config("in[1]/c.yaml")
    assert found.tokenizer.model == "in[1]/t.model"
    readers = readers_of(found)
    assert list(readers["data.train.0"].pairs()) == [("one", "eins", 1)]
    assert list(readers["data.valid"].pairs()) == [("here", "dort", 1)]


def test_the_error_names_both_folders() -> None:
    found = config("{file: a.tsv}", "conf")
    with pytest.raises(DataError) as caught:
        readers_of(found)["data.train.0"].check()
    assert str(caught.value) == f"a.tsv: no such file (looked for in {Path.cwd()} and {Path.cwd() / 'conf'})"


def test_the_text_of_a_started_run_keeps_its_folder_when_it_is_gone() -> None:
    config("{file: a.tsv}", "conf")
    write("conf/a.tsv", "one\teins\n")
    started = load_config("conf/c.yaml")
    Path("runs/a").mkdir(parents=True)
    write("runs/a/config.yaml", dump_config(started))
    Path("conf/a.tsv").unlink()
    found = load_config("conf/c.yaml", ["data.valid.src=new.en"])
    assert found.data.train == started.data.train
    assert found.data.valid.files == ("new.en", "valid.de")
    assert found.folder == "conf"
    assert load_config("conf/c.yaml", run_dir=Path("runs/b")).data.train[0].files == ("a.tsv",)


def test_the_folder_of_a_stored_config_is_not_searched() -> None:
    config("{file: a.tsv}", "run")
    write("run/a.tsv", "one\teins\n")
    assert load_config("run/c.yaml", is_stored=True).data.train[0].files == ("a.tsv",)
    assert load_config("run/c.yaml").data.train[0].files == (os.path.join("run", "a.tsv"),)


# ---- config


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ("{file: []}", "data.train.0.file: expected a path or a list of paths, got an empty list"),
        ("{file: null, src: {}, tgt: a}", "data.train.0.src: expected a path or a list of paths, got a mapping"),
        ("{src: [a, b], tgt: c}", "data.train.0: src and tgt need the same number of files, got 2 and 1"),
        ("{src: [a, b], tgt: [c, b]}", "data.train.0: src and tgt are the same file, b"),
    ],
)  # fmt: skip
def test_the_error_for_wrong_paths_names_the_setting(corpus: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(corpus)
    assert str(caught.value) == f"./c.yaml: {message}"
