"""Preparation warns of bad text, and refuses to remove most of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from mt.config.settings import CleanConfig, DataConfig, RunConfig, TextFiles, TokenizerConfig
from mt.errors import DataError
from mt.text import shards
from mt.text.corpus import PreparedCorpus
from mt.text.prepare import corpus_fingerprint, prepare_corpus
from mt.tools.doctor import examine
from tests.toys import messages

DEMO = Path(__file__).resolve().parent.parent / "data" / "demo"
N_TRAIN, N_HELD_OUT = 400, 120
ADVICE = "Look at these lines; if they are good, change data.clean.max_wrong_script"


def demo_lines(name: str, n: int) -> list[str]:
    with (DEMO / name).open(encoding="utf-8") as lines:
        return [line.removesuffix("\n") for line in islice(lines, n)]


def write_pair(name: str, src: Sequence[str], tgt: Sequence[str]) -> TextFiles:
    for side, lines in (("en", src), ("de", tgt)):
        Path(f"{name}.{side}").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return TextFiles(src=f"{name}.en", tgt=f"{name}.de")


def russian(n: int) -> list[str]:
    return [f"Это предложение написано по-русски, номер {i} из многих." for i in range(n)]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """Return the config of a small part of the demo corpus."""
    monkeypatch.chdir(tmp_path)
    sizes = {"train": N_TRAIN, "valid": N_HELD_OUT}
    train, valid = (
        write_pair(name, *(demo_lines(f"{name}.{lang}", n) for lang in ("en", "de"))) for name, n in sizes.items()
    )
    data = DataConfig(train=(train,), valid=valid, prepared_dir="prepared")
    return RunConfig(name="x", src_lang="en", tgt_lang="de", data=data, tokenizer=TokenizerConfig(vocab_size=350))


def with_train(config: RunConfig, *train: TextFiles, **clean: object) -> RunConfig:
    return replace(config, data=replace(config.data, train=train, clean=CleanConfig(**clean)))


def prepared(config: RunConfig) -> tuple[PreparedCorpus, list[str]]:
    with messages() as said:
        return prepare_corpus(config), said


def refused(config: RunConfig) -> str:
    with pytest.raises(DataError) as caught:
        prepare_corpus(config)
    return str(caught.value)


def building(config: RunConfig) -> Path:
    return Path("prepared", f".building-{corpus_fingerprint(config)}")


def test_good_text_has_no_warning(config: RunConfig) -> None:
    assert prepared(config)[0].manifest["findings"] == []


def test_swapped_sides_are_reported_each_time_that_the_corpus_is_prepared_or_opened(config: RunConfig) -> None:
    swapped = replace(config, src_lang="de", tgt_lang="en")
    (corpus, said), warning = (
        prepared(swapped),
        (
            "train.en + train.de: the sides are swapped: src is in en and tgt is in de. "
            "Swap src and tgt, or swap src_lang and tgt_lang."
        ),
    )
    assert warning in said
    assert said.index(warning) < next(i for i, text in enumerate(said) if "tokenizer" in text)
    assert warning in prepared(swapped)[1]
    findings = corpus.manifest["findings"]
    assert [finding["key"] for finding in findings if finding["check"] == "swapped"] == ["data.train.0", "data.valid"]
    assert json.loads((corpus.folder / "report.json").read_text("utf-8"))["findings"] == findings
    assert warning in (corpus.folder / "report.html").read_text("utf-8")


def test_preparation_finds_in_the_text_what_doctor_finds(config: RunConfig, tmp_path: Path) -> None:
    english, german = demo_lines("train.en", N_TRAIN), demo_lines("train.de", N_TRAIN)
    broken = [*english[:200], *(f"<s> {text} </s>" for text in english[200:])]
    bad = with_train(config, write_pair("bad", broken, german[:1] + german[:-1]), contamination=False)
    found = [finding for finding in examine(bad, tmp_path / "run").findings if finding.key.startswith("data.")]
    assert {"shifted", "special_tokens"} <= {finding.check for finding in found}
    assert {str(finding) for finding in found} <= set(prepared(bad)[1])


def test_a_given_tokenizer_that_spells_the_text_in_bytes_is_reported(config: RunConfig) -> None:
    tokenizer = prepared(config)[0].tokenizer_paths[0]
    other = replace(with_train(config, write_pair("ru", demo_lines("train.en", 100), russian(100))), tgt_lang="ru")
    given = replace(other, tokenizer=TokenizerConfig(model=str(tokenizer)))
    assert any(
        text.startswith("ru.de: ") and "of its tokens are single bytes: their characters are not in the" in text
        for text in prepared(given)[1]
    )


def test_files_that_are_not_text_are_refused_although_they_are_parallel(config: RunConfig) -> None:
    pointer = ["version https://git-lfs.github.com/spec/v1", "oid sha256:0a", "size 12345"]
    assert refused(with_train(config, write_pair("pointer", pointer, pointer))) == (
        "pointer.en is a Git LFS pointer, not the text itself. Fetch the text with git lfs pull."
    )


def test_removing_more_than_half_of_a_corpus_is_an_error_that_keeps_the_finished_parts(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    english, german = demo_lines("train.en", N_TRAIN), demo_lines("train.de", N_TRAIN)
    mixed = write_pair("mixed", english, [*russian(300), *german[300:]])
    bad = with_train(config, config.data.train[0], mixed, write_pair("ru", [*english[:98], "", ""], russian(100)))
    folder = building(bad)
    assert refused(bad) == (
        "mixed.en + mixed.de: cleaning removes 75% of the pairs (300 wrong_script, of 400), for example by "
        f"wrong_script line 1: “{english[0]}” and “{russian(1)[0]}”; "
        "ru.en + ru.de: cleaning removes 100% of the pairs (2 empty, 98 wrong_script, of 100), for example by "
        f"wrong_script line 1: “{english[0]}” and “{russian(1)[0]}”; all of them: {folder}/removed.tsv. "
        f"{ADVICE}; to train without them, raise data.clean.max_removed (now 0.5)."
    )
    removed = (folder / "removed.tsv").read_text("utf-8").splitlines()
    assert len(removed) == 1 + 300 + 100
    assert removed[1] == f"mixed.en + mixed.de\t1\twrong_script\t{english[0]}\t{russian(1)[0]}"
    # With a higher limit, the pairs are not cleaned again.
    allowed = with_train(config, *bad.data.train, max_removed=None)
    with monkeypatch.context() as patch:
        patch.setattr(shards.Cleaning, "__call__", lambda *_: pytest.fail("cleaned again"))
        corpus, said = prepared(allowed)
    assert corpus.corpus_sizes == (400, 0, 0)  # the pairs of `mixed` that are good are those of the first corpus
    assert not folder.exists()
    assert (corpus.folder / "removed.tsv").exists()
    assert sum("cleaning removes" in text for text in said) == 2
    # The limit also holds for a corpus that was prepared with a higher one.
    assert refused(bad).startswith("mixed.en + mixed.de: cleaning removes 75% of the pairs (300 wrong_script, of 400)")
    assert f"all of them: {corpus.folder}/removed.tsv. " in refused(bad)


def test_the_limit_is_a_fraction_that_may_be_reached(config: RunConfig) -> None:
    english, german = demo_lines("train.en", 100), demo_lines("train.de", 100)
    half = with_train(config, write_pair("half", english, [*russian(50), *german[50:]]), max_removed=0.5)
    assert prepared(half)[0].corpus_sizes == (50,)
    assert "now 0.49" in refused(with_train(config, *half.data.train, max_removed=0.49))


def test_long_pairs_count_as_removed(config: RunConfig) -> None:
    short = replace(config, data=replace(config.data, max_tokens=8))
    message = refused(short)
    assert " too_many_tokens, of 400), for example by too_many_tokens line 1: " in message
    assert "if they are good, change data.max_tokens; to train without them, raise data.clean.max_removed" in message


def test_duplicates_and_small_corpora_do_not_count_as_removed(config: RunConfig) -> None:
    english, german = demo_lines("train.en", 60), demo_lines("train.de", 60)
    repeated, small = write_pair("repeated", 5 * english, 5 * german), write_pair("small", english[:49], russian(49))
    assert prepared(with_train(config, repeated, small))[0].corpus_sizes == (60, 0)


def test_doctor_says_that_preparation_would_refuse(config: RunConfig, tmp_path: Path) -> None:
    english, german = demo_lines("train.en", N_TRAIN), demo_lines("train.de", N_TRAIN)
    bad = with_train(config, write_pair("mixed", english, [*russian(300), *german[300:]]))
    found = {finding.check: finding for finding in examine(bad, tmp_path / "run").findings}
    assert found["cleaning"].level == "error"
    assert refused(bad).startswith(found["cleaning"].problem)
    long = {
        one.check: one for one in examine(replace(config, data=replace(config.data, max_tokens=8)), tmp_path).findings
    }
    assert (long["max_tokens"].level, found["language"].level) == ("error", "warning")
