"""The tokenizer of BLEU: by language, by name, equal to sacreBLEU's, and the same in a whole run."""

from __future__ import annotations

import io
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import sentencepiece
from sacrebleu.tokenizers import tokenizer_spm

import mt
from mt.config.loading import load_config
from mt.config.settings import RunConfig
from mt.errors import ConfigError
from mt.evaluation import tokenization
from mt.evaluation.scores import TranslatedSet, score_corpus
from mt.evaluation.significance import compare
from mt.evaluation.tokenization import chosen_tokenizer
from mt.pipeline import train_run
from mt.run_folder import RunFolder
from mt.training.progress import Progress
from tests.conftest import Run
from tests.toys import WORDS, messages, toy_config, write_lines

# Language → hypotheses and references without spaces (Korean has some).
TEXTS = {
    "zh": (
        ["朋友早上买信", "她每天忘记苹果", "他今天买了 3 个苹果。"],
        ["朋友早上买信。", "她每天忘记苹果。", "他今天买苹果。"],
    ),
    "ja": (
        ["猫が好きです。", "昨日は雨が降りました。", "駅まで歩いた"],
        ["猫がとても好きです。", "昨日、雨が降りました。", "駅まで歩きます。"],
    ),
    "ko": (
        ["나는 사과를 먹는다.", "어제 비가 왔습니다.", "역까지 걸었다"],
        ["나는 사과를 먹었다.", "어제는 비가 왔다.", "역까지 걸었다."],
    ),
    "th": (["ฉันชอบกินแอปเปิล", "วันนี้อากาศดีมาก", "เขาไปโรงเรียน"], ["ฉันชอบกินแอปเปิ้ล", "วันนี้อากาศดี", "เขาไปโรงเรียนแล้ว"]),
}
TOKENIZER = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab", "th": "char"}


@pytest.fixture
def no_mecab(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the packages of both MeCabs be missing."""
    for name in ("MeCab", "mecab_ko"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def spm_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder in which sacreBLEU looks for models; a download fails as without a network."""

    def fail(*_args: object, **_options: object) -> None:
        raise OSError("no network")

    for module in (tokenization, tokenizer_spm):
        monkeypatch.setattr(module, "SACREBLEU_DIR", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", fail)
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("langs", "tokenizer"),
    [
        ("zh zh-Hans zho_Hant zh_TW ZH cmn chi yue yue_Hant wuu lzh", "zh"),
        ("ja jpn_Jpan ja-JP jpn", "ja-mecab"),
        ("ko kor_Hang ko-KR", "ko-mecab"),
        ("th tha_Thai lo lao km khm_Khmr my mya bur bo bod_Tibt dz shn ii", "char"),
        ("en de deu_Latn vi ar hi mn xx zh-Latn tha_Latn", "13a"),
    ],
)
def test_the_tokenizer_follows_the_language(langs: str, tokenizer: str) -> None:
    for lang in langs.split():
        assert chosen_tokenizer("auto", lang) == tokenizer
        assert chosen_tokenizer("intl", lang) == "intl"
    assert chosen_tokenizer("auto", None) == "13a"


@pytest.mark.parametrize("lang", TEXTS)
def test_scores_equal_those_of_sacrebleu_with_the_same_tokenizer(lang: str) -> None:
    hypotheses, references = TEXTS[lang]
    one = TranslatedSet(None, hypotheses, [references], lang, tokenize=chosen_tokenizer("auto", lang))
    for key, lowercase in (("bleu", False), ("bleu-lc", True)):
        metric = sacrebleu.BLEU(tokenize=TOKENIZER[lang], lowercase=lowercase)
        theirs = metric.corpus_score(hypotheses, [references]).score
        (ours,) = score_corpus(one, [key]).scores
        assert (ours.score, ours.signature) == (theirs, str(metric.get_signature()))
        assert f"tok:{TOKENIZER[lang]}" in ours.signature
        assert ours.score > 20


def test_a_test_against_a_baseline_uses_the_tokenizer() -> None:
    hypotheses, references = TEXTS["zh"]
    one = TranslatedSet(None, references, [references], "zh", hypotheses, tokenize="zh")
    scores = compare(one, None, "randomisation", 100)
    assert [score.name for score in scores] == ["BLEU", "chrF2", "BLEU-lc"]
    assert "tok:zh" in scores[0].signature
    expected = sacrebleu.corpus_bleu(hypotheses, [references], tokenize="zh").score
    assert (scores[0].score, scores[0].baseline_score) == (pytest.approx(100), pytest.approx(expected))


@pytest.mark.usefixtures("no_mecab")
def test_without_mecab_characters_are_counted_and_the_extra_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert [chosen_tokenizer("auto", lang) for lang in ("jpn", "ko")] == ["char", "char"]
    assert caplog.messages == [
        "BLEU with tok:ja-mecab: MeCab is not installed. Run pip install 'mt-train[ja]'. "
        "Until then, BLEU of jpn counts characters (tok:char)",
        "BLEU with tok:ko-mecab: mecab_ko is not installed. Run pip install 'mt-train[ko]'. "
        "Until then, BLEU of ko counts characters (tok:char)",
    ]


@pytest.mark.usefixtures("no_mecab")
def test_a_tokenizer_that_is_asked_for_is_never_replaced() -> None:
    with pytest.raises(ConfigError) as caught:
        chosen_tokenizer("ja-mecab", "ja")
    assert str(caught.value) == "BLEU with tok:ja-mecab: MeCab is not installed. Run pip install 'mt-train[ja]'."


# --- flores200 --------------------------------------------------------------------------------------------------------


def sentencepiece_model() -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for pair in TEXTS.values() for side in pair for line in side),
        model_writer=model, vocab_size=130, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def test_flores200_uses_the_model_in_sacrebleus_cache(spm_cache: Path, tmp_path: Path, run: Run) -> None:
    (spm_cache / "flores200sacrebleuspm").write_bytes(sentencepiece_model())
    hyp, ref = (write_lines(tmp_path / name, lines) for name, lines in zip(("hyp", "ref"), TEXTS["th"], strict=True))
    status, out, _ = run("eval", "--hyp", hyp, "--ref", ref, "--tokenize", "flores200", "--metric", "bleu")
    expected = sacrebleu.corpus_bleu(TEXTS["th"][0], [TEXTS["th"][1]], tokenize="flores200").score
    assert (status, f"BLEU    {expected:.2f}" in out, "tok:flores200" in out) == (0, True, True)


def test_a_failed_download_of_flores200_is_one_line(spm_cache: Path, tmp_path: Path, run: Run) -> None:
    hyp = write_lines(tmp_path / "hyp", TEXTS["th"][0])
    status, out, err = run("eval", "--hyp", hyp, "--ref", hyp, "--tokenize", "flores200")
    error = err.splitlines()[-1]
    assert (status, out, "Traceback" in err) == (2, "", False)
    assert error.startswith(
        "error: BLEU with tok:flores200: its SentencePiece model cannot be downloaded (no network). "
    )
    assert error.endswith(f" to {spm_cache / 'flores200sacrebleuspm'}.")


def test_a_download_of_flores200_that_is_cut_off_leaves_no_model(
    spm_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("urllib.request.urlopen", lambda _url: io.BytesIO(sentencepiece_model()[:500]))
    with pytest.raises(ConfigError, match="cannot be downloaded"):
        chosen_tokenizer("flores200", "th")
    assert not (spm_cache / "flores200sacrebleuspm").exists()


def test_a_damaged_model_of_flores200_is_named(spm_cache: Path) -> None:
    path = spm_cache / "flores200sacrebleuspm"
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match=f"{path} cannot be read .* Delete it, and it is downloaded again"):
        chosen_tokenizer("flores200", "th")
    assert path.exists()  # it may be the user's


def test_auto_never_downloads(spm_cache: Path) -> None:
    for lang in ("th", "lo", "km", "my"):
        assert chosen_tokenizer("auto", lang) == "char"


# --- mt eval and mt compare -------------------------------------------------------------------------------------------


@pytest.fixture
def chinese(tmp_path: Path) -> list[Any]:
    hyp, ref = (
        write_lines(tmp_path / f"{name}.zh", lines) for name, lines in zip(("hyp", "ref"), TEXTS["zh"], strict=True)
    )
    return ["--hyp", hyp, "--ref", ref]


def test_mt_eval_takes_the_tokenizer_of_the_target_language(chinese: list[Any], run: Run) -> None:
    expected = sacrebleu.corpus_bleu(*TEXTS["zh"][:1], [TEXTS["zh"][1]], tokenize="zh").score
    for options in (["--tgt-lang", "zh-Hans"], ["--tokenize", "zh"], ["--tgt-lang", "en", "--tokenize", "zh"]):
        status, out, err = run("eval", *chinese, *options)
        assert (status, f"BLEU {expected:.2f} " in " ".join(out.split()), out.count("tok:zh"), err) == (0, True, 2, "")
        assert "chrF2++" not in out  # it counts words


@pytest.mark.parametrize(("lang", "tokenize"), [("zh", "zh"), ("ja", "ja-mecab"), ("th", "char"), ("ko", "13a")])
def test_without_a_language_the_script_of_the_references_decides(
    tmp_path: Path, run: Run, lang: str, tokenize: str
) -> None:
    ref = write_lines(tmp_path / "ref", TEXTS[lang][1])
    said = f"the references are written without spaces: BLEU has tok:{tokenize}; --tgt-lang or --tokenize changes it"
    for command in (("eval", "--hyp", ref), ("compare", ref, ref, "--samples", 100, "--json")):
        status, out, err = run(*command, "--ref", ref, "--metric", "bleu")
        assert (status, f"tok:{tokenize}" in out) == (0, True)
        assert err.count(said) == (tokenize != "13a")


def test_a_tokenizer_for_words_gives_a_warning_for_text_without_spaces(chinese: list[Any], run: Run) -> None:
    problem = "BLEU is far too low, because its tokenizer (tok:13a) separates words at spaces only"
    fix = "choose another one with --tokenize, or in a config with eval.bleu_tokenize"
    warning = f"warning: the references are written without spaces: {problem}; {fix}\n"
    assert run("eval", *chinese, "--tokenize", "13a")[2] == warning
    err = run("eval", *chinese, "--tgt-lang", "zh", "--metric", "ter")[2]
    assert err == "warning: the references are written without spaces: TER says little, because it counts words\n"


def test_an_unknown_tokenizer_is_refused_with_a_suggestion(chinese: list[Any], run: Run) -> None:
    status, _, err = run("eval", *chinese, "--tokenize", "ja_mecab")
    assert (status, err) == (2, "error: --tokenize: unknown tokenizer ja_mecab. Did you mean ja-mecab?\n")


def test_bleu_2017_needs_a_language(chinese: list[Any], run: Run) -> None:
    status, _, err = run("eval", *chinese, "--metric", "bleu-2017")
    *_, error = err.splitlines()
    assert (status, error) == (2, "error: --tgt-lang is needed by bleu-2017. Give the language, such as de.")


def test_files_are_compared_with_the_tokenizer_of_their_language(chinese: list[Any], run: Run) -> None:
    _, hyp, _, ref = chinese
    status, out, _ = run("compare", hyp, ref, "--ref", ref, "--tgt-lang", "zh", "--samples", 100, "--json")
    assert (status, out.count("tok:zh")) == (0, 2)
    _, _, err = run("compare", hyp, ref, "--ref", ref, "--samples", 100, "--tokenize", "13a")
    assert err.startswith("warning: input: the references are written without spaces: BLEU is far too low")


def test_python_takes_the_same_arguments() -> None:
    hypotheses, references = TEXTS["ja"]
    for options in ({"tgt_lang": "jpn_Jpan"}, {"tokenize": "ja-mecab"}):
        found = mt.evaluate(hypotheses=hypotheses, references=references, **options)
        assert "tok:ja-mecab" in found.test_sets["input"].scores[0].signature


# --- Low scores -------------------------------------------------------------------------------------------------------


def test_a_bleu_of_zero_together_with_a_high_chrf_is_said_aloud() -> None:
    words = ["Hund", "Katze", "Maus", "Pferd"]
    found = mt.evaluate(hypotheses=[f"{word}s" for word in words], references=words)
    assert found.warnings["input"] == [
        "BLEU is 0.00 although chrF2 is 91.47: either most lines have fewer than 4 words, or the tokenizer (tok:13a) "
        "does not suit the language"
    ]
    assert mt.evaluate(hypotheses=["x y"], references=["ein ganz anderer Satz"]).warnings == {}


# --- Runs -------------------------------------------------------------------------------------------------------------


def japanese_config(folder: Path) -> RunConfig:
    """Return the config of 2 updates; the target has a character for each word."""
    config = toy_config(folder, max_steps=2, validate_every=2, checkpoint_every=2, average_last=1)
    for name in ("train", "valid", "test"):
        lines = (folder / f"{name}.en").read_text("utf-8").splitlines()
        write_lines(
            folder / f"{name}.de", ["".join(chr(0x5B00 + WORDS.index(w)) for w in line.split()) for line in lines]
        )
    return replace(config, tgt_lang="ja")


Runs = dict[str, tuple[RunConfig, Path]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Return two runs of 2 updates into Japanese: one with MeCab, and one that began when it was not installed."""
    folder = tmp_path_factory.mktemp("runs")
    config = japanese_config(folder)
    with pytest.MonkeyPatch.context() as patch:
        train_run(config, folder / "mecab")
        patch.setitem(sys.modules, "MeCab", None)
        train_run(config, folder / "char")
    return {name: (config, folder / name) for name in ("mecab", "char")}


def signatures(path: Path, **options: Any) -> str:
    return mt.evaluate(path, metrics=["bleu"], device="cpu", **options).test_sets["held_out"].scores[0].signature


def test_a_run_keeps_the_tokenizer_of_its_first_start(runs: Runs, run: Run) -> None:
    config, path = runs["char"]
    for written in (RunFolder(path).config, RunFolder(path).model / "config.yaml"):
        assert load_config(str(written)).eval.bleu_tokenize == "char"
    longer = load_config(config, {"train.max_steps": 4})
    train_run(longer, path)  # MeCab is installed now
    report = mt.api.TrainedRun(path).report
    assert report.valid is not None
    assert [one.name for one in report.valid.scores] == ["BLEU", "chrF2", "BLEU-lc"]
    assert "tok:char" in report.valid.scores[0].signature
    assert "tok:char" in report.test_sets["held_out"].scores[0].signature
    assert "tok:char" in signatures(path)
    assert "tok:ja-mecab" in signatures(path, tokenize="ja-mecab")
    with pytest.raises(ConfigError) as caught:
        train_run(load_config(longer, {"eval.bleu_tokenize": "ja-mecab"}), path)
    assert "(eval.bleu_tokenize was char and is now ja-mecab)" in str(caught.value)


def test_a_run_whose_tokenizer_is_missing_here_says_how_to_get_it(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    config, path = runs["mecab"]
    assert "tok:ja-mecab" in signatures(path)
    monkeypatch.setitem(sys.modules, "MeCab", None)
    for use in (lambda: signatures(path), lambda: train_run(load_config(config, {"train.max_steps": 4}), path)):
        with pytest.raises(ConfigError, match=r"MeCab is not installed\. Run pip install 'mt-train\[ja\]'"):
            use()
    assert "tok:char" in signatures(path, tokenize="char")


def test_runs_with_different_tokenizers_are_not_compared(runs: Runs) -> None:
    mecab, char = (path for _, path in runs.values())
    problem = (
        f"the BLEU of these models is computed with different tokenizers ({mecab} with ja-mecab, {char} with char)"
    )
    fix = "Give --tokenize to score all of them with the same one."
    for use in (
        lambda **options: mt.compare([mecab, char], n_samples=100, **options),
        lambda **options: mt.evaluate(mecab, baseline=char, n_samples=100, device="cpu", **options),
    ):
        with pytest.raises(ConfigError) as caught:
            use()
        assert str(caught.value) == f"{problem}. {fix}"
        assert "tok:zh" in use(tokenize="zh").model_dump_json()


def test_a_run_of_an_earlier_version_gets_a_tokenizer_and_a_new_ranking(runs: Runs, tmp_path: Path) -> None:
    config, run = runs["mecab"][0], RunFolder(tmp_path / "run")
    train_run(load_config(config, {"eval.bleu_tokenize": "13a"}), run.path)
    assert Progress().bleu_tokenizer == "13a"  # also that of a checkpoint that does not say it
    text = run.config.read_text("utf-8")
    run.config.write_text(text[: text.index("eval:")], "utf-8")
    with messages() as said:
        train_run(load_config(config, {"train.max_steps": 4}), run.path)
    change = "BLEU is now computed with tok:ja-mecab, and was computed with tok:13a"
    assert f"{change}. Only validations from now on choose the best checkpoint" in said
    assert load_config(str(run.config)).eval.bleu_tokenize == "ja-mecab"
    assert run.best_checkpoint() == run.checkpoint(4)
