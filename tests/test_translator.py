from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

import mt.decode.translator
import mt.system.console
from mt.config.settings import DecodeConfig
from mt.decode.alignment import Pairs
from mt.decode.files import option_of
from mt.decode.parallel import ForkPool, map_in_threads
from mt.decode.search import SearchRequest, SearchResult
from mt.decode.splitting import SplitSentences
from mt.decode.translator import Backend, Hypothesis, OwnBackend, PrefixError, Translator
from mt.errors import CheckpointError, ConfigError, DataError, MTError
from mt.model import Transformer
from mt.system.device import choose_dtype
from mt.text.sentences import UsualLines
from mt.text.tokenizer import EOS_ID, Tokenizer, Tokenizers
from tests.toys import WORDS, sharp_model, toy_text

MAX_SOURCE_TOKENS = 24


@pytest.fixture
def translator(tokenizer: Tokenizer) -> Translator:
    model = sharp_model(n_encoder_layers=1, vocab_size=tokenizer.vocab_size)
    decode = DecodeConfig(beam_size=2, max_length=10)
    return Translator(
        OwnBackend(model.for_inference(torch.float32)), Tokenizers.of([tokenizer]), decode, MAX_SOURCE_TOKENS
    )


LINES = toy_text(40, 9)[0]


def test_order_is_kept_and_blank_lines_stay_blank(translator: Translator) -> None:
    alone = [translator.translate([line])[0] for line in LINES[:5]]
    assert len(set(alone)) > 3
    mixed = [LINES[0], "", LINES[1], "  \t ", LINES[2], LINES[3], "\u2028", LINES[4]]
    expected = [alone[0], "", alone[1], "", alone[2], alone[3], "", alone[4]]
    assert translator.translate(mixed) == expected
    assert next(iter(translator.translate_lines([""]))) == [Hypothesis("", 0.0, 0.0, 0)]


def test_the_batch_size_does_not_change_translations(translator: Translator) -> None:
    together = translator.translate(LINES)
    assert translator.translate(LINES, replace(translator.decode, batch_tokens=1)) == together
    assert translator.translate(LINES, replace(translator.decode, batch_tokens=40)) == together
    assert translator.translate(LINES, replace(translator.decode, batch_sentences=7)) == together


@pytest.mark.parametrize("n_parallel", [1, 2, 5])
def test_parallel_batches_do_not_change_translations(translator: Translator, n_parallel: int) -> None:
    expected, n_threads = translator.translate(LINES), torch.get_num_threads()
    translator.backend.n_parallel = n_parallel
    assert translator.translate(LINES, replace(translator.decode, batch_sentences=3)) == expected
    assert torch.get_num_threads() == n_threads


def test_several_processes_give_the_same_translations(translator: Translator) -> None:
    decode = replace(translator.decode, batch_sentences=3)
    expected = list(translator.translate_lines(LINES, decode, n_best=2))
    translator.backend = OwnBackend(translator.model, n_processes=3)
    for _ in range(2):  # the second time reuses the processes
        assert list(translator.translate_lines(LINES, decode, n_best=2)) == expected


def _fate(what: str) -> str:
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "wrong":
        raise DataError("what is wrong")
    return what


def test_errors_and_kills_of_processes_are_reported() -> None:
    processes = ForkPool(2)
    assert list(processes.map(_fate, ["a", "b", "c"])) == ["a", "b", "c"]
    with pytest.raises(DataError, match=r"^what is wrong"):
        list(processes.map(_fate, ["a", "wrong"]))
    with pytest.raises(MTError) as caught:
        list(processes.map(_fate, ["a", "killed", "b"]))
    assert str(caught.value) == (
        "one of 2 translation processes was killed, perhaps because memory ran out. Set OMP_NUM_THREADS to "
        "fewer threads, or lower --batch-tokens of mt translate."
    )


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Send Ctrl-C after some seconds, if the block still runs."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def test_an_interrupt_ends_working_processes() -> None:
    processes = ForkPool(2)
    with pytest.raises(KeyboardInterrupt), interrupted_after(0.3):
        list(processes.map(time.sleep, [100, 100, 100]))
    assert not multiprocessing.active_children()
    assert list(processes.map(_fate, ["a", "b", "c"])) == ["a", "b", "c"]  # in new processes


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files in /proc")
def test_an_abandoned_translation_leaves_no_processes_or_open_files() -> None:
    processes, n_open = ForkPool(2), []
    for _ in range(3):
        results = processes.map(time.sleep, [0, 100, 100])
        assert next(results) is None
        assert len(multiprocessing.active_children()) == 2
        results.close()
        assert not multiprocessing.active_children()
        n_open.append(len(os.listdir("/proc/self/fd")))
    for _ in range(200):  # threads that wait for the last processes end slightly later
        gc.collect()
        if (n_left := len(os.listdir("/proc/self/fd"))) <= n_open[0]:
            break
        time.sleep(0.05)
    assert n_left <= n_open[0]


def test_processes_end_when_their_pool_is_deleted() -> None:
    processes = ForkPool(2)
    assert list(processes.map(abs, [-1, -2, -3])) == [1, 2, 3]
    assert len(multiprocessing.active_children()) == 2
    del processes
    assert not multiprocessing.active_children()


def test_threads_are_kept_so_that_none_ends_during_a_fork() -> None:
    both = threading.Barrier(2)

    def work(_: int) -> int:
        both.wait(60)
        return threading.get_ident()

    threads = set(map_in_threads(work, range(2), 2))
    assert len(threads) == 2
    assert set(map_in_threads(work, range(6), 2)) == threads


def test_an_interrupt_does_not_wait_for_threads() -> None:
    may_end = threading.Event()
    ended: list[float] = []

    def work(seconds: float) -> None:
        may_end.wait(seconds)
        ended.append(seconds)

    with pytest.raises(KeyboardInterrupt), interrupted_after(0.1):
        list(map_in_threads(work, [100, 100], 2))
    assert ended == []
    may_end.set()


def test_a_failing_batch_stops_the_parallel_batches() -> None:
    started: list[int] = []
    is_told = threading.Event()

    def work(item: int) -> int:
        started.append(item)
        if item == 3:
            raise ValueError(item)
        if item > 3:
            is_told.wait(60)
        return item

    n_threads = torch.get_num_threads()
    results = map_in_threads(work, range(50), 2)
    assert [next(results), next(results), next(results)] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"^3$"):
        next(results)
    is_told.set()
    assert list(map_in_threads(abs, [-1, -2], 2)) == [1, 2]  # in the same threads, after their previous work
    assert set(started) <= {0, 1, 2, 3, 4, 5}  # two at a time, and none after those that had started by then
    assert torch.get_num_threads() == n_threads


def test_unusual_lines_are_translated_and_do_not_affect_others(translator: Translator) -> None:
    odd = ["ba " * 33_000, "", "🙂🙂🙂", "Привет, мир", "漢字" * 50, "\x00\x0b\x85 \u2028", "a" * 3_000, "\ufffd"]
    mixed = [line for pair in zip(LINES, odd, strict=False) for line in pair]
    translations = translator.translate(mixed)
    assert len(translations) == len(mixed)
    assert translations[::2] == translator.translate(LINES[: len(odd)])
    for text in translations:
        assert not {"\n", "\r", "\x00"} & set(text)


def flags_of(translator: Translator, line: str, **changes: Any) -> tuple[str, ...]:
    return next(translator.translate_lines([line], replace(translator.decode, **changes)))[0].flags


def test_a_line_that_is_too_long_is_translated_in_parts_and_flagged(translator: Translator) -> None:
    first, second = "Bar bast ban. " * 3, "Der dest den. " * 4
    (whole,) = translator.translate([first + second])
    assert "in_parts" in flags_of(translator, first + second)
    assert "in_parts" not in flags_of(translator, first)
    parts = parts_of(translator, first + second)
    assert len(parts) > 1
    assert " ".join(parts) == (first + second).strip()
    assert all(part.endswith(".") for part in parts)
    assert whole == " ".join(translator.translate(parts))


def parts_of(translator: Translator, line: str) -> list[str]:
    (sentences,) = translator._sentences([line], [""], 0, translator.decode)
    for sentence in sentences:
        assert len(sentence.ids) <= MAX_SOURCE_TOKENS
        assert sentence.ids == [*translator.tokenizers.src.encode(sentence.part.text), EOS_ID]
    return [sentence.part.text for sentence in sentences]


def test_a_word_that_is_too_long_is_split_anywhere_and_joined_again(translator: Translator) -> None:
    parts = parts_of(translator, "x" * 100)
    assert "".join(parts) == "x" * 100
    assert len(parts) < 8
    assert translator.translate(["x" * 100]) == ["".join(translator.translate(parts))]


def test_splitting_keeps_characters_whole(translator: Translator) -> None:
    text = "漢🙂é字" * 20
    assert "".join(parts_of(translator, text)) == text


def test_the_error_for_a_model_that_returns_nan_says_what_to_try(translator: Translator) -> None:
    with torch.no_grad():
        translator.model.embedding.weight[9] = float("nan")
    with pytest.raises(CheckpointError) as caught:
        translator.translate(["bar dest"])
    assert str(caught.value) == (
        "the model returns NaN for 'bar dest'. Try --precision fp32; if that does not help, its weights are damaged."
    )


def test_limits_that_cannot_be_met_have_their_own_error(translator: Translator) -> None:
    with pytest.raises(ConfigError) as caught:
        translator.translate(["bar dest"], DecodeConfig(no_repeat_ngram_size=1, min_length=500))
    assert str(caught.value) == (
        "decode.min_length: no translation has 500 tokens without repeating a 1-gram. Lower decode.min_length or "
        "raise decode.no_repeat_ngram_size."
    )


class Parrot(Backend):
    """A fake backend. Its translations, with and without blocked repetition, are set in `said`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.said: dict[tuple[str, bool], str] = {}
        self.calls: list[tuple[list[str], DecodeConfig]] = []

    def search(self, request: SearchRequest) -> list[list[SearchResult]]:
        texts = [self.tokenizer.decode(ids) for ids in request.sentences]
        self.calls.append((texts, request.decode))
        said = [self.said.get((text, request.decode.no_repeat_ngram_size > 0), text.upper()) for text in texts]
        return [[SearchResult(tuple(self.tokenizer.encode(text)), -2.0, -1.0)] * request.n_best for text in said]

    def align(
        self, sources: list[list[int]], targets: list[tuple[int, ...]], batch_tokens: int, n_first: int
    ) -> list[Pairs]:
        assert all(source[-1] == EOS_ID for source in sources)
        assert not any(EOS_ID in target for target in targets)
        self.aligned_together = batch_tokens
        return [[(i, i) for i in range(len(source))] for source in sources]


@pytest.fixture
def parrot(tokenizer: Tokenizer) -> Parrot:
    return Parrot(tokenizer)


def taught(parrot: Parrot, **options: Any) -> Translator:
    options = {"max_source_tokens": 64, **options}
    return Translator(parrot, Tokenizers.of([parrot.tokenizer]), DecodeConfig(), **options)


LINE, LOOP = "bar dest fin gol", "BAR DEST" + " FIN" * 9


@pytest.mark.parametrize(
    ("again", "text", "flags"),
    [
        ("BAR DEST FIN GOL", "BAR DEST FIN GOL", ("retried",)),
        ("BAR DEST" + " FIN" * 7, "BAR DEST" + " FIN" * 7, ("repetition", "retried")),  # a shorter loop
        ("BAR DEST" + " FIN" * 12, LOOP, ("repetition", "retried")),  # not better
    ],
)
def test_a_looping_translation_is_searched_again_and_the_better_one_is_used(
    parrot: Parrot, again: str, text: str, flags: tuple[str, ...]
) -> None:
    parrot.said = {(LINE, False): LOOP, (LINE, True): again}
    lines = ["mon nel", LINE, "kur"]
    first, second, third = taught(parrot).translate_lines(lines)
    assert (second[0].text, second[0].flags) == (text, flags)
    assert (first[0].text, first[0].flags, third[0].flags) == ("MON NEL", (), ())
    assert [(sorted(texts), decode.no_repeat_ngram_size) for texts, decode in parrot.calls] == [
        (sorted(lines), 0),
        ([LINE], 3),
    ]


def test_a_translation_that_is_far_too_short_is_searched_again_with_a_minimum_length(parrot: Parrot) -> None:
    line = " ".join(["bar dest fin gol"] * 5)
    n_tokens = len(parrot.tokenizer.encode(line))
    parrot.said = {(line, False): "BAR"}
    (hypotheses,) = taught(parrot).translate_lines([line])
    assert hypotheses[0].flags == ("retried",)
    assert parrot.calls[-1][1].min_length == -(-n_tokens // 3) - 3


def test_a_translation_that_is_far_too_long_is_flagged(parrot: Parrot) -> None:
    parrot.said = {("bar", no_repeat): " ".join(WORDS).upper() for no_repeat in (False, True)}
    (hypotheses,) = taught(parrot).translate_lines(["bar"])
    assert hypotheses[0].flags == ("too_long", "retried")


def test_nothing_is_searched_again_if_retries_are_off_or_impossible(parrot: Parrot) -> None:
    parrot.said = {(LINE, False): LOOP, (LINE, True): LOOP}
    for translator, decode in (
        (taught(parrot, retries=False), DecodeConfig()),
        (taught(parrot), DecodeConfig(sample=True)),
        (taught(parrot), DecodeConfig(no_repeat_ngram_size=4)),
    ):
        (hypotheses,) = translator.translate_lines([LINE], decode)
        assert hypotheses[0].flags == ("repetition",)
    assert len(parrot.calls) == 3


def test_a_translation_cut_off_by_max_length_is_flagged_but_not_searched_again(parrot: Parrot) -> None:
    line = " ".join(["bar dest fin gol"] * 5)
    n_tokens = len(parrot.tokenizer.encode("BAR"))
    parrot.said = {(line, False): "BAR"}
    (hypotheses,) = taught(parrot).translate_lines([line], DecodeConfig(max_length=n_tokens + 1))
    assert hypotheses[0].flags == ("max_length",)
    assert len(parrot.calls) == 1


def test_hypotheses_have_tokens_and_a_log_prob_per_token(parrot: Parrot) -> None:
    (hypotheses,) = taught(parrot).translate_lines([LINE])
    best = hypotheses[0]
    assert "".join(best.tokens) == "▁BAR▁DEST▁FIN▁GOL"
    assert best.n_tokens == len(best.tokens) + 1
    assert best.log_prob_per_token == -2.0 / best.n_tokens
    assert best.alignment is None


def test_word_alignments_count_through_the_parts_of_a_line(parrot: Parrot) -> None:
    """Each target token is aligned to the source token at the same position. Here source and target are equal."""

    translator = taught(parrot, max_source_tokens=MAX_SOURCE_TOKENS)
    long = " ".join(WORDS[:20])
    lines = ["bar dest", "", long, "x" * 60 + " bar"]
    parrot.said = {
        (text, False): text for text in [*lines, *(part for line in lines for part in parts_of(translator, line))]
    }
    decode = replace(translator.decode, batch_tokens=77)
    aligned = [best[0].alignment for best in translator.translate_lines(lines, decode, is_aligned=True)]
    assert parrot.aligned_together == 77
    assert "in_parts" in flags_of(translator, long)
    assert aligned == [
        ((0, 0), (1, 1)),
        (),
        tuple((i, i) for i in range(20)),
        ((0, 0), (1, 1)),
    ]


def test_a_translation_starts_with_the_prefix_of_its_line(translator: Translator) -> None:
    prefixes = ["BAR DEST", "", "KUR"]
    texts = translator.translate(LINES[:3], prefixes=prefixes)
    assert texts[0].startswith("BAR DEST")
    assert texts[1] == translator.translate([LINES[1]])[0]
    assert texts[2] == translator.translate([LINES[2]], prefixes=["KUR"])[0]
    assert translator.translate([" "], prefixes=["BAR"]) == [""]


def test_the_error_for_a_prefix_that_is_too_long_has_its_line_number(translator: Translator) -> None:
    with pytest.raises(PrefixError) as caught:
        translator.translate(LINES[:3], prefixes=["", "", "BAR " * 20])
    assert caught.value.line == 2
    n_tokens = len(translator.tokenizers.src.encode(("BAR " * 20).strip()))
    assert str(caught.value) == (
        f"the prefix {('BAR ' * 20).strip()!r} has {n_tokens} tokens, but a translation can "
        "have at most 10 with its end of sentence: shorten the prefix"
    )


def test_progress_is_reported_as_a_fraction_of_the_lines(translator: Translator) -> None:
    shares: list[float] = []
    list(translator.translate_lines(LINES, replace(translator.decode, batch_sentences=10), on_progress=shares.append))
    assert len(shares) == 4
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_n_best_translations_differ_and_are_sorted_by_score(translator: Translator) -> None:
    for hypotheses in translator.translate_lines(LINES[:5], replace(translator.decode, beam_size=4), n_best=3):
        assert len({hypothesis.text for hypothesis in hypotheses}) == 3
        scores = [hypothesis.score for hypothesis in hypotheses]
        assert scores == sorted(scores, reverse=True)


def test_more_hypotheses_than_beams_are_refused(translator: Translator) -> None:
    with pytest.raises(ConfigError) as caught:
        translator.translate_lines(LINES, n_best=3)
    assert str(caught.value) == "n_best is 3, more than beam_size (2). Raise beam_size or lower n_best."
    # The message of the command line for two options that contradict each other.
    named = "--n-best is 3, more than --beam-size (2). Raise --beam-size or lower --n-best."
    assert str(caught.value.renamed(option_of)) == named


def test_a_bare_string_is_refused(translator: Translator) -> None:
    with pytest.raises(TypeError, match=r"^lines: expected a list of str, got a str: write \[text\]$"):
        translator.translate("bar dest")


def test_translations_are_yielded_before_the_input_ends(
    translator: Translator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mt.decode.translator, "LINES_AT_A_TIME", 4)
    read = []

    def lines() -> Iterator[str]:
        for line in LINES:
            read.append(line)
            yield line

    translated = translator.translate_lines(lines())
    next(translated)
    assert len(read) == 4
    assert len(list(translated)) == len(LINES) - 1


def test_unsupported_precisions_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        choose_dtype("fp16", torch.device("cpu"))
    assert str(caught.value) == "precision: fp16 needs a GPU. On a CPU use bf16, fp32 or auto."
    with pytest.raises(ConfigError) as caught:
        choose_dtype("int8", torch.device("cpu"))
    assert str(caught.value) == "precision: expected auto, bf16, fp16 or fp32, got 'int8'"


def test_a_batch_that_runs_out_of_memory_is_searched_in_halves(
    translator: Translator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = translator.translate(LINES)
    whole, n_fitting = mt.decode.translator.search, 2

    def search(model: Transformer, request: SearchRequest) -> list[list[SearchResult]]:
        if len(request.sentences) > n_fitting:
            raise torch.OutOfMemoryError("no memory")
        return whole(model, request)

    monkeypatch.setattr(mt.decode.translator, "search", search)
    mt.system.console.note.cache_clear()
    assert translator.translate(LINES) == expected
    told = "out of memory on cpu: batches are searched in two halves; lower decode.batch_tokens to avoid that"
    assert capsys.readouterr().err == f"note: {told}\n"
    n_fitting = 0
    with pytest.raises(
        MTError, match=r"^out of memory on cpu with one sentence of \d+ tokens\. Lower the beam size, or"
    ):
        translator.translate(LINES)


def test_the_translator_can_be_imported_from_mt(tmp_path: Path) -> None:
    import mt

    assert mt.Translator is Translator


# --- Several sentences in a line --------------------------------------------------------------------------------------

TWO = "Bar dest. Fin gol."


def best_of(translator: Translator, line: str, **options: Any) -> Hypothesis:
    return next(translator.translate_lines([line], **options))[0]


def test_a_model_of_single_sentences_translates_sentences_one_by_one(parrot: Parrot) -> None:
    translator = taught(parrot, usual_lines=UsualLines(1, 40))
    best = best_of(translator, TWO)
    assert (best.text, best.flags) == ("BAR DEST. FIN GOL.", ("split",))
    assert parrot.calls[0][0] == ["Bar dest.", "Fin gol."]
    assert best.score == -2.0  # the sum of both
    assert best_of(translator, "Bar dest fin gol.").flags == ()


@pytest.mark.parametrize(
    ("usual", "mode", "searched"),
    [
        (UsualLines(2, 64), "auto", [TWO]),
        (UsualLines(2, 64), "always", ["Bar dest.", "Fin gol."]),
        (UsualLines(1, 64), "never", [TWO]),
        (UsualLines(9, 9), "auto", ["Bar dest.", "Fin gol."]),  # together they have more tokens than usual
        (None, "auto", [TWO]),  # a model of an earlier version
        (None, "always", ["Bar dest.", "Fin gol."]),
    ],
)
def test_lines_are_split_by_what_the_model_has_seen_or_as_asked(
    parrot: Parrot, usual: UsualLines | None, mode: SplitSentences, searched: list[str]
) -> None:
    best_of(taught(parrot, usual_lines=usual, split_sentences=mode), TWO)
    assert parrot.calls[0][0] == searched


def test_a_long_text_is_split_into_as_many_sentences_as_the_model_knows(parrot: Parrot) -> None:
    best_of(taught(parrot, usual_lines=UsualLines(2, 64)), f"{TWO} {TWO} Den.")
    assert sorted(chain.from_iterable(texts for texts, _ in parrot.calls)) == [TWO, TWO, "Den."]


@pytest.mark.parametrize("gap", [" ", "  ", "\t", "\n", "\n\n"])
def test_translated_sentences_are_joined_as_they_were(parrot: Parrot, gap: str) -> None:
    best = best_of(taught(parrot, usual_lines=UsualLines(1, 64)), f" Bar dest.{gap}Fin gol.\n")
    assert best.text == f"BAR DEST.{gap}FIN GOL."


def test_paragraphs_are_kept_even_if_the_model_has_seen_several_sentences(parrot: Parrot) -> None:
    text = f"Bar\n\n{TWO}\nDen."
    for usual in (UsualLines(9, 64), None):
        assert best_of(taught(parrot, usual_lines=usual), text).text == text.upper()
    never = taught(parrot, usual_lines=None, split_sentences="never")
    assert best_of(never, text).text == text.upper().replace("\n\n", " ").replace("\n", " ")


def test_a_translation_with_half_of_the_sentences_is_flagged(parrot: Parrot) -> None:
    translator = taught(parrot, usual_lines=UsualLines(2, 64))
    parrot.said = {(TWO, False): "BAR DEST.", ("Bar. Dest. Fin.", False): "BAR. DEST, FIN."}
    assert best_of(translator, TWO).flags == ("sentences_missing",)
    assert best_of(replace(translator, usual_lines=UsualLines(3, 64)), "Bar. Dest. Fin.").flags == ()
    assert best_of(translator, "Bar dest.").flags == ()


def test_alignments_count_words_through_the_sentences_of_a_line(parrot: Parrot) -> None:
    translator = taught(parrot, usual_lines=UsualLines(1, 64))
    lines = ["Bar dest.  Fin gol. Den.", "漢。漢漢。 bar"]
    parrot.said = {(text, False): text for text in ("Bar dest.", "Fin gol.", "Den.", "漢。", "漢漢。", "bar")}
    found = [best[0] for best in translator.translate_lines(lines, is_aligned=True)]
    assert [best.text for best in found] == lines
    assert [best.alignment for best in found] == [tuple((i, i) for i in range(n)) for n in (5, 2)]


def test_the_prefix_is_that_of_the_first_sentence(parrot: Parrot) -> None:
    translator = taught(parrot, usual_lines=UsualLines(1, 64))
    (of_line,) = translator._sentences([TWO], ["BAR"], 0, translator.decode)
    assert [bool(sentence.prefix) for sentence in of_line] == [True, False]


def test_n_best_translations_of_a_split_line_are_whole(parrot: Parrot) -> None:
    translator = taught(parrot, usual_lines=UsualLines(1, 64))
    ((first, second),) = translator.translate_lines([TWO], n_best=2)
    assert first.text == second.text == TWO.upper()


def test_a_tag_holds_for_all_sentences_of_a_line(parrot: Parrot, monkeypatch: pytest.MonkeyPatch) -> None:
    translator = taught(parrot, usual_lines=UsualLines(1, 64))
    encode = translator.tokenizers.src.encode
    monkeypatch.setattr(translator.tokenizers.src, "encode", lambda text: [7] if text == "<2de>" else encode(text))
    (of_line,) = translator._sentences([f"<2de> <b> {TWO}"], [""], 0, translator.decode)
    assert [sentence.part.text for sentence in of_line] == ["<2de> <b> Bar dest.", "<2de> Fin gol."]
    assert [(sentence.part.n_words_before, sentence.part.n_tags) for sentence in of_line] == [(0, 0), (4, 1)]


def test_a_tag_holds_for_all_parts_of_a_long_sentence(parrot: Parrot, monkeypatch: pytest.MonkeyPatch) -> None:
    translator = taught(parrot, usual_lines=UsualLines(1, 64), max_source_tokens=MAX_SOURCE_TOKENS)
    encode = translator.tokenizers.src.encode
    monkeypatch.setattr(translator.tokenizers.src, "encode", lambda text: [7] if text == "<b>" else encode(text))
    words = WORDS[:20] * 3
    (of_line,) = translator._sentences([f"<b> {' '.join(words)}"], [""], 0, translator.decode)
    parts = [sentence.part for sentence in of_line]
    assert len(parts) > 1
    assert all(part.text.startswith("<b> ") for part in parts)
    assert " ".join(part.text.removeprefix("<b> ") for part in parts) == " ".join(words)
    for part in parts:
        place = part.n_words_before - part.n_tags + 1  # of the word after the tag
        assert ["<b>", *words][place] == part.text.split()[1]


def test_a_sentence_that_is_too_long_is_cut_further(parrot: Parrot) -> None:
    long = " ".join(WORDS[:20])
    translator = taught(parrot, usual_lines=UsualLines(1, 64), max_source_tokens=MAX_SOURCE_TOKENS)
    best = best_of(translator, f"{long}. Bar dest.")
    assert best.text == f"{long}. Bar dest.".upper()
    assert best.flags == ("in_parts", "split")
