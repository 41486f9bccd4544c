"""Parallel text is read as it is, in order, and whatever is wrong with it is said in one line."""

import gzip
import json
import lzma
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from mt.config import SourceConfig
from mt.errors import DataError
from mt.text.sources import SentencePair, check_source, read_pairs, source_fingerprint

REAL_DATA = os.environ.get("MT_REAL_DATA")
needs_real_data = pytest.mark.skipif(not REAL_DATA, reason="MT_REAL_DATA does not name the folder with data/ and hub/")


def read(role: str = "train", /, **source: str) -> list[SentencePair]:
    return list(read_pairs(SourceConfig(**source), "en", "de", role))


def error_of(role: str = "train", /, **source: str) -> str:
    with pytest.raises(DataError) as caught:
        read(role, **source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / ".cache")


def write(name: str, content: str | bytes) -> str:
    data = content.encode() if isinstance(content, str) else content
    compress = {".gz": gzip.compress, ".xz": lzma.compress}.get(Path(name).suffix)
    Path(name).write_bytes(compress(data) if compress else data)
    return name


def write_parquet(path: str, columns: dict[str, Any]) -> None:
    import pyarrow
    import pyarrow.parquet

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


# ---- files


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_a_pair_of_files_gives_its_lines_with_their_numbers(suffix: str) -> None:
    src, tgt = write(f"a.en{suffix}", "one\ntwo\n"), write(f"a.de{suffix}", "eins\nzwei\n")
    assert read(src=src, tgt=tgt) == [SentencePair("one", "eins", 1), SentencePair("two", "zwei", 2)]


def test_a_zst_file_is_read_over_all_its_frames_and_a_truncated_one_is_an_error() -> None:
    zstandard = pytest.importorskip("zstandard")
    compress = zstandard.ZstdCompressor().compress
    lines = "".join(f"line {i}\n" for i in range(200_000)).encode()
    Path("a.en.zst").write_bytes(compress(lines[:600_000]) + compress(lines[600_000:]))
    write("a.de", lines)
    assert [pair.src for pair in read(src="a.en.zst", tgt="a.de")] == lines.decode().splitlines()
    Path("a.en.zst").write_bytes(compress(lines)[:-9])
    assert error_of(src="a.en.zst", tgt="a.de") == (
        "a.en.zst: ends too early, it was cut off: copy or download it again"
    )
    write("a.en.zst", "plain text")
    assert error_of(src="a.en.zst", tgt="a.de") == "a.en.zst: is no .zst file, or is damaged: fetch it again"


def test_without_zstandard_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    assert error_of(src=write("a.en.zst", b"x"), tgt=write("a.de", "x\n")) == (
        "a.en.zst: reading .zst needs one more package: pip install zstandard"
    )


def test_lines_end_at_line_feeds_alone() -> None:
    odd = "a\u2028b\x0bc\x85d\x0ce\x1cf\rg"
    write("a.en", f"{odd}\r\n\nlast")
    write("a.de", "1\n2\n3\n")
    assert [pair.src for pair in read(src="a.en", tgt="a.de")] == [odd, "", "last"]


def test_a_byte_order_mark_is_dropped_at_the_start_of_a_file_only() -> None:
    write("a.en", "\ufeffone\n\ufefftwo\n")
    write("a.de", "eins\nzwei\n")
    assert [pair.src for pair in read(src="a.en", tgt="a.de")] == ["one", "\ufefftwo"]


def test_empty_files_give_no_pairs_and_checking_them_says_so() -> None:
    source = SourceConfig(src=write("a.en", ""), tgt=write("a.de", ""))
    assert list(read_pairs(source, "en", "de", "train")) == []
    with pytest.raises(DataError) as caught:
        check_source(source, "en", "de", "train")
    assert str(caught.value) == "a.en + a.de: is empty, expected at least one pair of sentences"


@pytest.mark.parametrize("swapped", [False, True])
def test_different_line_counts_are_counted_exactly(swapped: bool) -> None:
    long, short = write("long.txt.gz", "x\n" * 4_509), write("short.txt", "x\n" * 1_508)
    src, tgt = (short, long) if swapped else (long, short)
    assert error_of(src=src, tgt=tgt) == (
        "long.txt.gz has 4,509 lines and short.txt has 1,508: parallel files need one line for each line"
    )


def test_invalid_utf8_is_located_by_file_line_and_byte() -> None:
    src = write("a.en", b"\xef\xbb\xbfone\ntw\xe4\n")  # 3 + 4 + 2 bytes come before
    assert error_of(src=src, tgt=write("a.de", "1\n2\n")) == (
        "a.en, line 2: byte 0xe4 at offset 9 is not UTF-8: "
        "mend the line, or convert the file (iconv -f LATIN1 -t UTF-8, if that is what it is)"
    )


def test_utf16_is_recognised() -> None:
    assert error_of(src=write("a.en", "one\n".encode("utf-16")), tgt=write("a.de", "1\n")) == (
        "a.en: is UTF-16, expected UTF-8: convert it with iconv -f UTF-16 -t UTF-8"
    )


def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tgt = write("a.de", "eins\n")
    assert error_of(src="a.en", tgt=tgt) == f"a.en: no such file (looked for in {tmp_path})"
    assert error_of(src=str(tmp_path / "a.en"), tgt=tgt) == f"{tmp_path}/a.en: no such file"
    Path("folder.gz").mkdir()
    assert error_of(src="folder.gz", tgt=tgt) == "folder.gz: is a folder, expected a text file"
    Path("no.en.gz").write_bytes(b"plain text")
    assert error_of(src="no.en.gz", tgt=tgt) == (
        "no.en.gz: is no .gz file, or is damaged (Not a gzipped file (b'pl')): fetch it again"
    )
    write("a.en", "one\n")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert error_of(src="a.en", tgt=tgt) == "a.en: cannot be read: Permission denied"


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_a_truncated_archive_is_an_error_and_not_a_short_corpus(suffix: str) -> None:
    name = write(f"a.en{suffix}", os.urandom(5_000).hex() + "\n")
    Path(name).write_bytes(Path(name).read_bytes()[:-20])
    assert error_of(src=name, tgt=write("a.de", "1\n")) == (
        f"{name}: ends too early, it was cut off: copy or download it again"
    )


def test_a_tsv_file_holds_source_tab_target() -> None:
    assert read(file=write("a.tsv.gz", "one\teins\ntwo\tzwei\n")) == [("one", "eins", 1), ("two", "zwei", 2)]
    assert error_of(file=write("b.tsv", "one\teins\ntwo\tzwei\tCC BY\n")) == (
        "b.tsv, line 2: expected source, tab, target, found 3 column(s)"
    )


def test_a_jsonl_file_holds_objects_with_the_languages_as_keys() -> None:
    rows = [{"de": "eins", "en": "one"}, {"translation": {"en": "two\n", "de": "zwei"}, "id": 5}]
    write("a.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")
    assert read(file="a.jsonl") == [("one", "eins", 1), ("two\n", "zwei", 2)]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"en": "one", "fr": "un"}', "has no key de, its keys are en, fr"),
        ('{"en": "one", "de": 1}', "expected text at the key de, found 1"),
        ('["one", "eins"]', 'expected an object with the keys en and de, found ["one", "eins"]'),
        ('{"en": one}', "is no JSON: Expecting value: line 1 column 8 (char 7)"),
    ],
)
def test_a_wrong_jsonl_line_is_located(line: str, problem: str) -> None:
    assert error_of(file=write("a.jsonl", f'{{"en": "a", "de": "b"}}\n{line}\n')) == f"a.jsonl, line 2: {problem}"


def test_another_format_of_file_is_refused() -> None:
    assert error_of(file="a.csv.gz") == (
        "a.csv.gz: expected a name that ends in .tsv or .jsonl, then perhaps in .gz, .xz or .zst"
    )


# ---- hub data sets


def test_a_folder_in_the_hubs_layout_is_read_in_order() -> None:
    n = 25_000  # more than two batches
    translation = [{"de": f"Satz {i}", "en": f"sentence {i}"} for i in range(n)]
    write_parquet("set/train-00000-of-00001.parquet", {"translation": translation})
    pairs = read(dataset="set")
    assert pairs == [SentencePair(f"sentence {i}", f"Satz {i}", i + 1) for i in range(n)]


def test_one_column_for_each_language_is_read_too_and_a_missing_text_is_empty() -> None:
    write_parquet("set/validation.parquet", {"en": ["one", None], "de": ["eins", "zwei"], "id": [1, 2]})
    expected = [("one", "eins", 1), ("", "zwei", 2)]
    assert read("validation", dataset="set") == expected
    assert read("train", dataset="set", split="validation") == expected


def test_a_missing_split_language_config_or_folder_names_what_there_is(tmp_path: Path) -> None:
    write_parquet("set/train.parquet", {"translation": [{"de": "eins", "fr": "un"}]})
    write_parquet("set/validation.parquet", {"translation": [{"de": "eins", "fr": "un"}]})
    assert error_of("test", dataset="set") == "data set set: has no split test; choose from train, validation"
    assert error_of(dataset="set") == "data set set: has no en: the keys of its column translation are de, fr"
    assert error_of(dataset="set", config="de-en") == "data set set: has no config de-en; choose from default"
    assert error_of(dataset="./nowhere") == f"./nowhere: no such folder (looked for in {tmp_path})"
    assert error_of(dataset=write("a.jsonl", "")) == (
        "a.jsonl: is a file, expected a data set: give {file: a.jsonl} for a .tsv or .jsonl file"
    )
    write_parquet("columns/train.parquet", {"source": ["one"], "de": ["eins"]})
    assert error_of(dataset="columns") == "data set columns: has no en: its columns are source, de"
    write_parquet("numbers/train.parquet", {"en": [1], "de": ["eins"]})
    assert error_of(dataset="numbers") == "data set numbers: expected text in en, found int64"


def test_several_configs_ask_for_one() -> None:
    for config in ("de-en", "fr-en"):
        write_parquet(f"set/{config}/train.parquet", {"en": ["one"], "de": ["eins"]})
    card = "---\nconfigs:\n" + "".join(
        f"- config_name: {config}\n  data_files: {config}/train.parquet\n" for config in ("de-en", "fr-en")
    )
    write("set/README.md", card + "---\n")
    assert error_of(dataset="set") == ("data set set: has several configs, and none is given; choose from de-en, fr-en")
    assert read(dataset="set", config="de-en") == [("one", "eins", 1)]


def test_no_network_and_an_unknown_name_are_one_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def raise_(error: Exception) -> Any:
        def load(*_: object, **__: object) -> None:
            raise error

        return load

    monkeypatch.setattr(datasets, "load_dataset", raise_(ConnectionError("Couldn't reach\nthe Hub")))
    assert error_of(dataset="wmt/wmt14", config="de-en") == (
        "data set wmt/wmt14: the hub cannot be reached, and there is no copy in the cache: "
        "check the network, or give a local folder that holds the data set"
    )
    monkeypatch.setattr(datasets, "load_dataset", raise_(datasets.exceptions.DatasetNotFoundError("no\nsuch")))
    assert error_of(dataset="no/such") == (
        "data set no/such: not found on the hub, or private: check the name at "
        "https://huggingface.co/datasets/no/such, and log in with `hf auth login` if it is private"
    )


# ---- sacreBLEU


def test_a_sacrebleu_test_set_is_read_from_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    import sacrebleu.utils

    src, ref, other = write("s", "one\n"), write("r1", "eins\n"), write("r2", "einer\n")
    monkeypatch.setattr(sacrebleu.utils, "get_source_file", lambda name, langpair: src)
    monkeypatch.setattr(sacrebleu.utils, "get_reference_files", lambda name, langpair: [ref, other])
    assert read(sacrebleu="wmt14/full") == [("one", "eins", 1)]


def test_an_unknown_sacrebleu_set_or_direction_is_explained() -> None:
    assert error_of(sacrebleu="wmt14/ful") == "sacreBLEU test set wmt14/ful: is not known, did you mean wmt14/full?"
    assert error_of(sacrebleu="?") == "sacreBLEU test set ?: is not known, `sacrebleu --list` shows those there are"
    with pytest.raises(DataError) as caught:
        list(read_pairs(SourceConfig(sacrebleu="wmt22"), "en", "xx", "test"))
    assert str(caught.value).startswith("sacreBLEU test set wmt22: has no en-xx; choose from cs-en, cs-uk, ")
    with pytest.raises(DataError) as caught:
        list(read_pairs(SourceConfig(sacrebleu="wmt22"), "fr", "xx", "test"))
    assert "has no fr-xx" in str(caught.value)


def test_a_sacrebleu_set_of_the_other_direction_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    import sacrebleu.dataset

    monkeypatch.delitem(sacrebleu.dataset.DATASETS["wmt14/full"].langpairs, "en-de")
    assert error_of(sacrebleu="wmt14/full") == (
        "sacreBLEU test set wmt14/full: exists for de-en only, not for en-de: "
        "choose another one, or give its files as {src, tgt} if the other direction is what you want"
    )


def test_a_sacrebleu_set_that_cannot_be_downloaded_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib.error

    import sacrebleu.utils

    def fail(*_: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(sacrebleu.utils, "get_source_file", fail)
    monkeypatch.setattr(sacrebleu.utils, "SACREBLEU_DIR", "/cache")
    assert error_of(sacrebleu="wmt14/full") == (
        "sacreBLEU test set wmt14/full: cannot be downloaded (Name or service not known): check the network, "
        "delete /cache/wmt14/full if it holds half a download, or give its files as {src, tgt}"
    )


# ---- fingerprints


def test_fingerprints_follow_the_content_and_not_the_path() -> None:
    def of(**source: str) -> str:
        return source_fingerprint(SourceConfig(**source))

    for name in ("a.en", "elsewhere.txt"):
        write(name, "one\n")
    write("a.de", "eins\n")
    before = of(src="a.en", tgt="a.de")
    assert of(src="elsewhere.txt", tgt="a.de") == before
    assert of(src="a.de", tgt="a.en") != before
    write("a.de", "zwei\n")
    assert of(src="a.en", tgt="a.de") != before

    write_parquet("set/train.parquet", {"en": ["one"], "de": ["eins"]})
    folder = of(dataset="set")
    Path("set").rename("moved")
    write("moved/.DS_Store", "")
    assert of(dataset="moved") == folder
    assert of(dataset="moved", config="default") != folder
    write("moved/README.md", "new")
    assert of(dataset="moved") != folder

    assert of(dataset="wmt/wmt14", config="de-en") == 'dataset:wmt/wmt14:["de-en", null]'
    assert of(sacrebleu="wmt14/full") == "sacrebleu:wmt14/full"
    with pytest.raises(DataError) as caught:
        of(src="nowhere.en", tgt="a.de")
    assert str(caught.value) == f"nowhere.en: no such file (looked for in {Path.cwd()})"


# ---- real text


@needs_real_data
def test_the_hub_folder_and_the_files_hold_the_same_newstest2014() -> None:
    folder = Path(REAL_DATA or "").resolve()
    newstest = folder / "data/newstest"
    from_files = read(src=str(newstest / "newstest2014.en.gz"), tgt=str(newstest / "newstest2014.de.gz"))
    from_hub = read("test", dataset=str(folder / "hub/wmt14"), config="de-en")
    assert len(from_files) == 3_003
    assert from_hub == from_files
