"""Files are written completely or not at all."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest

from mt.system.files import WriteError, append_text, explained_writes, whole_file, write_json
from tests.toys import files_up_to


def test_a_file_appears_only_when_it_is_complete(tmp_path: Path):
    path = tmp_path / "out.de"
    with whole_file(path) as stream:
        stream.write(b"text\n")
        assert not path.exists()
    assert path.read_bytes() == b"text\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_does_not_change_the_old_file(tmp_path: Path):
    path = tmp_path / "out.de"
    path.write_bytes(b"old\n")
    with pytest.raises(TypeError), whole_file(path) as stream:
        print(b"half", file=stream)  # type: ignore[arg-type]
    assert path.read_bytes() == b"old\n"
    assert list(tmp_path.iterdir()) == [path]


def test_writing_to_a_symbolic_link_changes_its_target(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with whole_file(tmp_path / "link") as stream:
        stream.write(b"text\n")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"text\n"


def test_a_device_is_written_directly():
    with whole_file(Path(os.devnull)) as stream:
        stream.write(b"text\n")
    assert not Path(os.devnull).is_file()


def test_a_path_that_cannot_be_written_is_an_error(tmp_path: Path):
    path = tmp_path / "missing" / "out.de"
    with pytest.raises(WriteError) as caught, explained_writes(path), whole_file(path):
        pass
    assert str(caught.value) == f"{path} cannot be written: No such file or directory"


def test_a_failed_write_of_json_does_not_change_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"a": 1})
    with files_up_to(100), pytest.raises(WriteError) as caught:
        write_json(path, {"a": "long" * 100})
    assert str(caught.value) == (
        f"{path} cannot be written: File too large. Raise the limit on the size of files (ulimit -f), then run the "
        "same command again."
    )
    assert json.loads(path.read_text("utf-8")) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]
    append_text(path, "one\n")
    append_text(path, "two\n")
    assert path.read_text("utf-8").endswith("}\none\ntwo\n")
    with files_up_to(100), pytest.raises(WriteError, match=r"run\.json cannot be written: File too large. "):
        append_text(path, "long" * 100)


def test_a_write_error_keeps_its_text_when_pickled() -> None:
    error = WriteError(Path("a"), OSError(28, "No space left on device"))
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert (
        str(error) == "a cannot be written: No space left on device. Free some space, then run the same command again."
    )
