"""Exports to CTranslate2 give the same translations as mt, and models that cannot be exported are refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch.nn.functional import cross_entropy

from mt.checkpoint import save_model_folder
from mt.cli import app
from mt.config.settings import DecodeConfig, ModelConfig
from mt.decode.search import SearchRequest, SearchResult, search
from mt.decode.translator import Translator
from mt.dropout import seed_dropout
from mt.errors import CheckpointError, ConfigError, MTError
from mt.evaluation.scores import bleu_and_chrf
from mt.model import Transformer
from mt.system.files import file_checksum
from mt.text.sentences import UsualLines
from mt.text.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID, Tokenizer
from tests.conftest import Run
from tests.test_variants import ROWS, model_of
from tests.toys import V, files_up_to, random_pairs, tiles, toy_config, toy_text, write_lines

ctranslate2 = pytest.importorskip("ctranslate2")

from mt.export import ctranslate2 as exporter  # noqa: E402
from mt.export.ctranslate2 import CTranslate2Backend, export, load_translator  # noqa: E402

LINES = toy_text(40, 9)[0]
UNPENALISED = DecodeConfig(beam_size=4, length_penalty=0.0)


def capitalising_model(config: ModelConfig, tokenizer: Tokenizer) -> Transformer:
    """Train a model for two seconds to copy words in capitals and to end, which random weights hardly ever do.

    Tokens that we never produce get no probability. Otherwise CTranslate2 would distribute it over the other tokens.
    """
    torch.manual_seed(0)
    model = Transformer(config, vocab_size=tokenizer.vocab_size, pad_id=PAD_ID)
    last_norm = model.decoder_norm if config.norm == "pre" else model.decoder[-1].feed_forward_residual.norm
    with torch.no_grad():
        last_norm.weight[0], last_norm.bias[0] = 0, 10
        model.embedding.weight[:, 0] = 0
        model.embedding.weight[[PAD_ID, UNK_ID, BOS_ID, *tokenizer.line_breaking_ids], 0] = -4
    pairs = list(zip(*map(tokenizer.encode_batch, toy_text(600, 5)), strict=True))
    batches = [tiles(pairs[i : i + 40]) for i in range(0, len(pairs), 40)]
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.98))
    for step in range(300):
        batch = batches[step % len(batches)]
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min(1, (step + 1) / 40)
        optimizer.zero_grad()
        seed_dropout(torch.device("cpu"), 0, step, 0)  # otherwise the model depends on the tests before this one
        cross_entropy(model.logits(model.hidden(batch)), batch.tgt_outputs, ignore_index=PAD_ID).backward()
        optimizer.step()
    return model


@dataclass(frozen=True)
class Exported:
    folder: Path  # the model folder
    export: Path
    model: Transformer
    tokenizer: Tokenizer
    backend: CTranslate2Backend
    sources: list[list[int]]

    @property
    def banned(self) -> list[int]:
        return sorted(self.tokenizer.line_breaking_ids)

    def ours(self, decode: DecodeConfig, **options: object) -> list[list[SearchResult]]:
        return search(self.model, SearchRequest(self.sources, decode, banned_ids=self.banned, **options))

    def theirs(self, decode: DecodeConfig, **options: object) -> list[list[SearchResult]]:
        return self.backend.search(SearchRequest(self.sources, decode, banned_ids=self.banned, **options))

    def our_log_probs(self, translations: Sequence[SearchResult], sources: list[list[int]]) -> list[float]:
        """Return the log-probabilities of given translations by the model as in training, without a search."""
        log_probs = []
        for source, result in zip(sources, translations, strict=True):
            batch = tiles([(source[:-1], result.ids)])
            with torch.no_grad():
                of_all = self.model.logits(self.model.hidden(batch)).log_softmax(-1)
            of_tokens = of_all.gather(1, batch.tgt_outputs[:, None])[:, 0]
            log_probs.append(float((of_tokens * batch.tgt_weights).sum()))
        return log_probs


@pytest.fixture(scope="module", params=["post", "pre"])
def exported(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer_path: Path,
    tokenizer: Tokenizer,
) -> Exported:
    home = tmp_path_factory.mktemp(request.param)
    config = toy_config(home)
    shape = ModelConfig(d_model=32, n_heads=2, d_ff=48, n_encoder_layers=2, n_decoder_layers=2, norm=request.param)
    config = replace(config, model=shape)
    model = capitalising_model(shape, tokenizer)
    manifest = {"vocab_size": tokenizer.vocab_size, "usual_lines": {"sentences": 1, "src_tokens": 64}}
    save_model_folder(home / "model", model.state_dict(), config, [tokenizer_path], manifest)
    export(home / "model", home / "export")
    return Exported(
        folder=home / "model",
        export=home / "export",
        model=model.for_inference(torch.float32),
        tokenizer=tokenizer,
        backend=load_translator(home / "export").backend,
        sources=[[*ids, EOS_ID] for ids in tokenizer.encode_batch(LINES)],
    )


def assert_as_probable_as_claimed(
    exported: Exported, found: list[list[SearchResult]], alpha: float = 0.0, form: str = "plain"
) -> None:
    for k in range(max(map(len, found))):
        rows = [row for row in range(len(found)) if k < len(found[row])]
        results = [found[row][k] for row in rows]
        log_probs = exported.our_log_probs(results, [exported.sources[row] for row in rows])
        assert [result.log_prob for result in results] == pytest.approx(log_probs, abs=1e-4, rel=1e-6)
        penalties = [(r.n_tokens if form == "plain" else (5 + r.n_tokens) / 6) ** alpha for r in results]
        scores = [log_prob / penalty for log_prob, penalty in zip(log_probs, penalties, strict=True)]
        assert [result.score for result in results] == pytest.approx(scores, abs=1e-4, rel=1e-6)


# --- The search -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "form"), [(0.0, "wu"), (1.0, "plain"), (0.6, "wu"), (1.5, "wu")])
@pytest.mark.parametrize("beam_size", [1, 4])
def test_ctranslate2_finds_our_translations_or_less_probable_ones(
    exported: Exported, beam_size: int, alpha: float, form: Literal["wu", "plain"]
) -> None:
    decode = DecodeConfig(beam_size=beam_size, length_penalty=alpha, length_penalty_form=form)
    ours, theirs = exported.ours(decode), exported.theirs(decode)
    assert_as_probable_as_claimed(exported, theirs, alpha, form)
    n_equal = 0
    for (one,), (other,) in zip(ours, theirs, strict=True):
        n_equal += one.ids == other.ids
        assert one.ids == other.ids or other.score < one.score + 1e-4
    assert n_equal >= 0.8 * len(LINES)
    assert len({other.ids for (other,) in theirs}) == len(LINES)


def assert_as_good(one: Sequence[Sequence[SearchResult]], other: Sequence[Sequence[SearchResult]]) -> None:
    """Compare two searches up to the rounding of CTranslate2, which varies from run to run."""
    for found, expected in zip(one, other, strict=True):
        for result, wanted in zip(found, expected, strict=True):
            assert result.score == pytest.approx(wanted.score, abs=1e-4)
            assert result.ids == wanted.ids or result.score != wanted.score


def test_n_best_translations_differ_and_are_sorted_by_score(exported: Exported) -> None:
    theirs = exported.theirs(UNPENALISED, n_best=3)
    assert_as_probable_as_claimed(exported, theirs)
    for found in theirs:
        assert len({result.ids for result in found}) == 3
        assert [result.score for result in found] == sorted((result.score for result in found), reverse=True)
    assert_as_good([found[:1] for found in theirs], exported.theirs(UNPENALISED))


def test_translations_begin_with_their_prefix(exported: Exported) -> None:
    texts = ["BAR", "", "GON KUST DER", ""] * (len(LINES) // 4)
    prefixes = exported.tokenizer.encode_batch(texts)
    theirs = exported.theirs(UNPENALISED, prefixes=prefixes)
    assert_as_probable_as_claimed(exported, theirs)
    for prefix, (result,) in zip(prefixes, theirs, strict=True):
        assert list(result.ids[: len(prefix)]) == prefix
    assert_as_good(theirs[1::2], exported.theirs(UNPENALISED)[1::2])
    assert_as_good(exported.theirs(UNPENALISED, prefixes=[[] for _ in LINES]), exported.theirs(UNPENALISED))


def test_no_translation_is_longer_or_shorter_than_allowed(exported: Exported) -> None:
    short = exported.theirs(replace(UNPENALISED, max_length=5), n_best=2)
    assert max(result.n_tokens for found in short for result in found) == 5
    assert_as_probable_as_claimed(exported, short)
    long = exported.theirs(replace(UNPENALISED, min_length=9))
    assert min(result.n_tokens for (result,) in long) == 10


def test_by_default_each_sentence_has_its_own_length_limit(exported: Exported) -> None:
    greedy = replace(UNPENALISED, beam_size=1)
    never_ends = exported.backend.search(SearchRequest(exported.sources, greedy, banned_ids=[*exported.banned, EOS_ID]))
    assert [found[0].n_tokens for found in never_ends] == [len(source) + 50 for source in exported.sources]


def test_no_ngram_occurs_twice(exported: Exported) -> None:
    (result,) = exported.theirs(replace(UNPENALISED, min_length=30, no_repeat_ngram_size=2))[0]
    pairs = list(zip(result.ids, result.ids[1:], strict=False))
    assert len(pairs) == len(set(pairs)) >= 29
    (result,) = exported.theirs(replace(UNPENALISED, min_length=30))[0]
    pairs = list(zip(result.ids, result.ids[1:], strict=False))
    assert len(set(pairs)) < len(pairs)


def test_samples_differ_and_are_sorted_by_score(exported: Exported) -> None:
    theirs = exported.theirs(DecodeConfig(sample=True, temperature=3.0, length_penalty=0.0), n_best=5)
    assert_as_probable_as_claimed(exported, theirs)
    assert len({result.ids for found in theirs for result in found}) > 4 * len(LINES)
    for found in theirs:
        assert [result.score for result in found] == sorted((result.score for result in found), reverse=True)
    greedy = exported.theirs(replace(UNPENALISED, beam_size=1))
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}):
        drawn = exported.theirs(DecodeConfig(sample=True, length_penalty=0.0, **narrow))
        assert [result.ids for (result,) in drawn] == [result.ids for (result,) in greedy]


def test_lines_are_translated_as_with_our_search(exported: Exported) -> None:
    lines = [LINES[0], "", " ".join(LINES[:20]), "🙂 漢字", LINES[1]]
    ours, theirs = Translator.load(exported.folder, precision="fp32"), load_translator(exported.export)
    assert theirs.decode == ours.decode
    both = [[best for best, *_ in translator.translate_lines(lines, UNPENALISED)] for translator in (ours, theirs)]
    assert [both[1][i].text for i in (0, 1, 4)] == [both[0][i].text for i in (0, 1, 4)]
    for found in both:
        assert ["in_parts" in best.flags for best in found] == [False, False, True, False, False]


# --- Unsupported settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decode", "n_best", "message"),
    [
        (
            DecodeConfig(length_penalty=0.0, max_length=2_000),
            1,
            "decode.max_length is 2,000, but this export supports at most 1,024 tokens. Lower it, or set "
            "decode.max_length in the model's config and export it again.",
        ),
        (
            DecodeConfig(length_penalty=0.0, min_length=2_000),
            1,
            "decode.min_length is 2,000, but this export supports at most 1,024 tokens. Lower it, or set "
            "decode.max_length in the model's config and export it again.",
        ),
        (
            DecodeConfig(sample=True, seed=7),
            1,
            "decode.seed is 7, but CTranslate2 samples differently each time. Leave it out.",
        ),
        (
            DecodeConfig(sample=True, top_k=1),
            2,
            "decode.top_k is 1, so CTranslate2 can sample only one translation. Raise it, or ask for one.",
        ),
    ],
)
def test_unsupported_search_settings_are_refused(
    exported: Exported, decode: DecodeConfig, n_best: int, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        exported.theirs(decode, n_best=n_best)
    assert str(caught.value) == message


def test_all_unsupported_model_settings_are_refused_in_one_error() -> None:
    exporter.refuse_inexpressible(ModelConfig(dropout=0.3, norm="deepnorm", positions="rotary", zero_init_out=True))
    with pytest.raises(ConfigError) as caught:
        exporter.refuse_inexpressible(ModelConfig(positions="alibi", activation="relu2", qk_norm=True, dropout=0.3))
    assert str(caught.value) == (
        "CTranslate2 does not support model.activation: relu2 or model.positions: alibi or model.qk_norm: true. "
        "Translate with mt itself, or train with model.activation: relu, model.positions: sinusoidal, "
        "model.qk_norm: false."
    )


@pytest.mark.parametrize("row", range(len(ROWS)))
def test_every_variant_is_exported_exactly_or_refused(row: int, tmp_path: Path) -> None:
    """All weights are random, so that each of them matters."""
    others = {"activation": "gelu", "positions": "rotary", "qk_norm": False, "ffn_sharing": "none"}
    refused = {
        name: other
        for name, other in others.items()
        if ROWS[row][name] not in exporter.EXPRESSIBLE.get(name, (getattr(ModelConfig(), name),))
    }
    model = model_of(ROWS[row] | refused, torch.float32).float().eval()
    if refused:
        with pytest.raises(ConfigError):
            exporter.refuse_inexpressible(ModelConfig(**ROWS[row]))
    exporter.refuse_inexpressible(model.config)
    pieces = ["<pad>", "<unk>", "<s>", "</s>", *(f"p{i}" for i in range(4, V))]
    spec = exporter.transformer_spec(model, (pieces, pieces), 128)
    spec.validate()
    spec.optimize()
    spec.save(str(tmp_path))
    pairs = random_pairs(8, longest=30, seed=7)
    sources, targets = ([[pieces[i] for i in pair[side]] for pair in pairs] for side in (0, 1))
    scored = ctranslate2.Translator(str(tmp_path)).score_batch([[*src, "</s>"] for src in sources], targets)
    for (src, tgt), result in zip(pairs, scored, strict=True):
        with torch.no_grad():
            log_probs = model.logits(model.hidden(tiles([(src, tgt)]))[: len(tgt) + 1]).log_softmax(-1)
        wanted = log_probs.gather(1, torch.tensor([*tgt, EOS_ID])[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(result.log_probs), wanted, atol=2e-3, rtol=1e-3)


def test_an_unsupported_precision_or_device_is_refused(exported: Exported) -> None:
    with pytest.raises(ConfigError) as caught:
        load_translator(exported.export, precision="bf16")
    assert str(caught.value) == (
        "precision: CTranslate2 computes in the quantization of the export, here float32. Leave it at auto, "
        "or export the model again with another quantization."
    )
    with pytest.raises(ConfigError) as caught:
        load_translator(exported.export, device="gpu")
    assert str(caught.value) == "device: expected auto, cpu, cuda or cuda:N, got 'gpu'"


# --- The folder -------------------------------------------------------------------------------------------------------

FILES = [
    "README.md",
    "config.json",
    "config.yaml",
    "manifest.json",
    "model.bin",
    "shared_vocabulary.json",
    "tokenizer.model",
]


def test_the_folder_is_complete_and_its_manifest_describes_it(exported: Exported) -> None:
    assert sorted(path.name for path in exported.export.iterdir()) == FILES
    manifest = json.loads((exported.export / "manifest.json").read_text("utf-8"))
    assert (manifest["format"], manifest["quantization"], manifest["n_positions"]) == ("ctranslate2", "float32", 1_024)
    assert manifest["compared"].startswith("20 lines of held_out: ")
    (comparison,) = manifest["comparisons"]
    assert comparison["n_equal"] + comparison["n_tied"] + comparison["n_missed"] == comparison["n_lines"] == 20
    assert comparison["largest_gap"] < 1e-4
    assert (exported.export / "tokenizer.model").read_bytes() == (exported.folder / "tokenizer.model").read_bytes()


def test_the_first_command_on_an_export_works_with_the_default_settings(exported: Exported, run: Run) -> None:
    assert load_translator(exported.export).decode == DecodeConfig()
    assert load_translator(exported.export).usual_lines == UsualLines(1, 64)
    command = ("translate", "--backend", "ctranslate2", "--model", exported.export)
    status, output, _ = run(*command, stdin="\n".join(LINES).encode())
    assert status == 0
    ours = Translator.load(exported.folder, precision="fp32").translate(LINES)
    assert sum(one == other for one, other in zip(ours, output.splitlines(), strict=True)) >= 0.8 * len(LINES)


def test_the_code_in_the_readme_of_an_export_runs_without_mt_and_torch(exported: Exported) -> None:
    (code,) = re.findall("```python\n(.*?)```", (exported.export / "README.md").read_text("utf-8"), re.DOTALL)
    without = "import sys\nsys.modules |= dict.fromkeys(('mt', 'torch', 'transformers'))\n"
    script = f"{without}{code}print(*translate({LINES!r}), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", script], cwd=exported.export, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    translated = load_translator(exported.export, retries=False).translate(
        LINES, replace(DecodeConfig(), length_penalty_form="plain")
    )
    assert done.stdout.splitlines()[1:] == translated


@pytest.mark.parametrize(("quantization", "n_bytes"), [("int8", 1), ("float16", 2)])
def test_quantised_models_are_smaller_and_translate_almost_the_same(
    exported: Exported, tmp_path: Path, quantization: str, n_bytes: int
) -> None:
    result = export(exported.folder, tmp_path / "export", quantization)
    exact, rounded = result.comparisons
    assert (exact.quantization, rounded.quantization) == ("float32", quantization)
    assert exact.n_different == 0
    assert rounded.n_equal >= 10
    assert rounded.chrf > 70
    n_matrix_weights = sum(weight.numel() for weight in exported.model.parameters() if weight.dim() > 1)
    saved = (exported.export / "model.bin").stat().st_size - (tmp_path / "export" / "model.bin").stat().st_size
    assert saved > 0.9 * (4 - n_bytes) * n_matrix_weights
    translated = load_translator(tmp_path / "export").translate(LINES, UNPENALISED)
    ours = Translator.load(exported.folder, precision="fp32").translate(LINES, UNPENALISED)
    # Without VNNI, a processor rounds products of int8 more coarsely: how many lines are equal depends on it.
    assert bleu_and_chrf(translated, ours, "13a")[1] > 80


def test_a_model_without_its_text_is_compared_on_lines_that_ship_with_mt(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = exported.folder.parent / "test.en"
    text.rename(tmp_path / "test.en")
    try:
        result = export(exported.folder, tmp_path / "export")
    finally:
        (tmp_path / "test.en").rename(text)
    assert result.compared == "20 lines of English sentences that ship with mt"
    given = write_lines(tmp_path / "given.en", ["", *LINES[:3]])
    assert export(exported.folder, tmp_path / "export2", verify_with=given).compared == f"3 lines of {given}"


def test_an_export_that_translates_differently_is_not_written(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specification = exporter.transformer_spec

    def wrong_specification(*arguments: object) -> object:
        spec = specification(*arguments)
        spec.decoder.scale_embeddings = 1.0
        return spec

    monkeypatch.setattr(exporter, "transformer_spec", wrong_specification)
    with pytest.raises(MTError) as caught:
        export(exported.folder, tmp_path / "export", verify_with=write_lines(tmp_path / "lines", LINES))
    message = str(caught.value)
    gap = message.partition(" nats")[0].rpartition(" ")[2]
    n_different = message.partition(" of 40")[0].rpartition(" ")[2]
    assert float(gap) > 1
    assert message == (
        f"{exported.folder}: CTranslate2 translates {n_different} of 40 lines differently in float32, with "
        f"log-probabilities up to {gap} nats apart, so nothing was written. This is a bug in the export or in this "
        "version of CTranslate2. Report it, or try another version of CTranslate2."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["lines"]


def test_a_full_disk_leaves_no_files(exported: Exported, tmp_path: Path) -> None:
    with files_up_to(10_000), pytest.raises(MTError) as caught:
        export(exported.folder, tmp_path / "export", "int8")
    assert str(caught.value) == (
        f"{tmp_path / 'export'} cannot be written: File too large. Raise the limit on the size of files (ulimit -f), "
        "then run the same command again."
    )
    assert list(tmp_path.iterdir()) == []


def test_without_ctranslate2_the_error_says_how_to_install_it(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    for call in (lambda: export(exported.folder, tmp_path / "export"), lambda: load_translator(exported.export)):
        with pytest.raises(MTError) as caught:
            call()
        assert str(caught.value) == "ctranslate2 is not installed. Run pip install 'mt-train[ctranslate2]'."


def copied(folder: Path, to: Path) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def test_an_incomplete_or_damaged_export_is_refused(exported: Exported, tmp_path: Path) -> None:
    def problem(path: Path) -> str:
        with pytest.raises(CheckpointError) as caught:
            load_translator(path)
        return str(caught.value)

    how = "Create one with mt export --to ctranslate2."
    assert problem(tmp_path / "no") == f"{tmp_path / 'no'} does not exist. Give an export folder, or c{how[1:]}"
    assert (
        problem(exported.folder) == f"{exported.folder} is not an export for CTranslate2: model.bin is missing. {how}"
    )
    folder = copied(exported.export, tmp_path / "export")
    (folder / "config.json").unlink()
    assert problem(folder) == f"{folder} is not a complete export: config.json is missing. Export the model again."
    (folder / "config.json").write_text("{}")
    assert problem(folder) == (
        f"{folder / 'config.json'} is damaged (its checksum differs from the one in manifest.json). "
        "Export the model again."
    )
    shutil.rmtree(folder)
    copied(exported.export, tmp_path / "export")
    (folder / "shared_vocabulary.json").write_text("[]")
    manifest = json.loads((exported.export / "manifest.json").read_text("utf-8"))
    manifest["sha256"]["shared_vocabulary.json"] = file_checksum(folder / "shared_vocabulary.json")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(MTError) as caught:
        load_translator(folder)
    assert str(caught.value) == (
        f"{folder}: CTranslate2 cannot load it: shared_vocabulary.json has other pieces than tokenizer.model"
    )
    shutil.rmtree(folder)
    copied(exported.export, tmp_path / "export")
    manifest = json.loads((exported.export / "manifest.json").read_text("utf-8")) | {"n_positions": 5}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(MTError, match=r"cannot load it: its 5 positions are fewer than data\.max_tokens \(\d+\)$"):
        load_translator(folder)
    manifest = json.loads((exported.export / "manifest.json").read_text("utf-8")) | {"format_version": 9}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert problem(folder) == (
        f"{folder} was written in format ctranslate2 9, but this version of mt reads format ctranslate2 1. Export the "
        "model again."
    )


# --- The command ------------------------------------------------------------------------------------------------------


def test_the_command_exports_and_prints_the_comparison(
    exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            app(["export", "--to", "ctranslate2", *map(str, arguments)], prog_name="mt")
        return caught.value.code or 0, *capsys.readouterr()

    lines = write_lines(tmp_path / "lines.en", LINES)
    arguments = ("--model", exported.folder, "--output", tmp_path / "export", "--verify-with", lines)
    status, stdout, stderr = run(*arguments, "--quantization", "int8")
    assert (status, stderr) == (0, "")
    first, exact, rounded = stdout.splitlines()
    assert first == f"compared with mt's own translations of 40 lines of {lines}:"
    assert exact.startswith("  float32  ")
    assert " of 40 equal" in exact
    assert rounded.startswith("  int8     ")
    assert rounded.endswith(" against mt's own")
    assert sorted(path.name for path in (tmp_path / "export").iterdir()) == FILES
    assert run(*arguments) == (
        2,
        "",
        f"error: {tmp_path / 'export'} exists already. Delete it, or choose another output folder.\n",
    )
