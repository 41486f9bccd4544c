"""Export of models for CTranslate2, comparison with our own translations, and translation with exported models.

An export folder is self-contained: what CTranslate2 reads (`model.bin`, `config.json`, `shared_vocabulary.json`), our
`tokenizer.model`, `config.yaml` and `manifest.json` with a checksum of every file, and a `README.md` that shows how to
translate without mt. Separate vocabularies are in `source_vocabulary.json` and `target_vocabulary.json`, and their
tokenizers in two files as well.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from string import Template
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from mt.checkpoint import (
    CHECKSUMS,
    EXPORTED,
    MANIFEST,
    CheckedFolder,
    Count,
    ModelFolder,
    PieceCounts,
    check_file,
)
from mt.config.loading import CONFIG, as_yaml, dump_config
from mt.config.settings import DecodeConfig, Direction, ModelConfig, RunConfig
from mt.decode.lines import lines_of_text
from mt.decode.search import (
    LONGER_THAN_SOURCE,
    SearchRequest,
    SearchResult,
    length_penalty,
    length_sorted_batches,
    search,
)
from mt.decode.splitting import SplitSentences
from mt.decode.translator import Backend, Translator
from mt.errors import CheckpointError, ConfigError, MTError, optional_package
from mt.evaluation.scores import bleu_and_chrf
from mt.evaluation.tokenization import DEFAULT_TOKENIZER
from mt.model import Transformer
from mt.model.layers import EPSILON, DeepNorm, LayerNorm, Linear, PostNorm
from mt.model.positions import LONGEST_DISTANCE, Learned, Positions, Relative, Sinusoidal, sinusoidal_positions
from mt.run_folder import open_model
from mt.system.device import choose_device
from mt.system.files import checksums_of, read_json, whole_folder, write_json
from mt.system.provenance import versions
from mt.text.languages import written_without_spaces
from mt.text.normalise import Normalisers
from mt.text.prepare import first_test_pairs
from mt.text.sentences import UsualLines
from mt.text.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID, Tokenizers, tokenizer_paths

MODEL_CONFIG = "config.json"
SHARED_VOCABULARY = "shared_vocabulary.json"
QUANTIZATIONS = ("float32", "int8", "float16")
# CTranslate2 has a table of positions, which limits the length of sentences and translations. Settings can enlarge it.
FEWEST_POSITIONS = 1_024

EXPRESSIBLE_ACTIVATIONS = {  # ours → CTranslate2's name, and whether one half gates (multiplies) the other
    "relu": ("RELU", False),
    "gelu": ("GELU", False),
    "silu": ("SWISH", False),
    "geglu": ("GELU", True),
    "swiglu": ("SWISH", True),
}
# Values of settings that CTranslate2 supports; for settings that are not listed, only the default. It has no ALiBi in
# the encoder, and no query norm in cross-attention.
EXPRESSIBLE: dict[str, Iterable[Any]] = {
    "activation": EXPRESSIBLE_ACTIVATIONS,
    "norm": ("post", "pre", "deepnorm"),
    "norm_kind": ("layer", "rms"),
    "bias": (True, False),
    "positions": ("sinusoidal", "learned", "rotary", "relative", "none"),
    "tied_embeddings": ("all", "decoder", "none"),
}
SIZES = {"d_model", "n_heads", "n_kv_heads", "d_ff", "n_encoder_layers", "n_decoder_layers", "n_positions"}

LEAST_LOG_PROB = -1e9  # hypotheses below it are placeholders of CTranslate2, not translations
SCORED_TOGETHER = 32  # translations per batch, sorted by length

# The comparison at export.
COMPARED_LINES = 200
COMPARED_DECODE = DecodeConfig(beam_size=4, length_penalty=0.0)
TIE = 1e-3  # nats; translations closer than this may be exchanged by rounding
MOST_DIFFERENT_FRACTION = 0.01  # of the lines, in float32
FEWEST_EQUAL_FRACTION, LEAST_CHRF = 0.5, 70.0  # below both, quantisation damages the model too much
SENTENCES = Path(__file__).with_name("sentences.en")  # for a model whose text is not available
README, README_TEMPLATE = "README.md", Path(__file__).with_name("readme_template.md")


# --- Writing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """A comparison of an exported model's translations with our own in fp32; beam size 4, no length penalty."""

    quantization: str
    n_lines: int
    n_equal: int
    n_tied: int  # another translation with the same log-probability within TIE
    n_missed: int  # the models agree on our translation's log-probability, but its search found a less probable one
    n_different: int  # the others; with quantised weights, expected for all lines that are not equal
    largest_gap: float  # nats between the two models' log-probabilities of our translations, at most
    bleu: float  # of its translations against ours
    chrf: float


@dataclass(frozen=True)
class Export:
    """The result of the comparison at export."""

    compared: str  # a description of the lines that were translated
    comparisons: tuple[Comparison, ...]  # in float32, then quantised


def export(
    model_path: Path, output_dir: Path, quantization: str = "float32", verify_with: Path | None = None
) -> Export:
    """Write a model for CTranslate2, after checking that it translates as ours does.

    Args:
        model_path: a run folder, a checkpoint or a model folder.
        quantization: one of QUANTIZATIONS.
        verify_with: text to translate for the comparison; by default the model's own test set, if it is available.
    Raises:
        MTError: the model cannot be read, written or expressed, or the export translates differently. Nothing is left.
    """
    _package()
    if quantization not in QUANTIZATIONS:
        raise ConfigError("quantization", f"expected {', '.join(QUANTIZATIONS)}, got {quantization!r}")
    if output_dir.exists():
        raise ConfigError(output_dir, "exists already", "delete it, or choose another output folder")
    folder = open_model(model_path)
    refuse_inexpressible(folder.config.model)
    described, lines, direction = _lines_to_compare(folder, verify_with)
    with whole_folder(output_dir) as building:
        result = Export(described, _write_and_compare(folder, lines, direction, building, quantization))
        _write_manifest(folder, building, quantization, result)
    return result


def refuse_inexpressible(config: ModelConfig) -> None:
    """Raise a ConfigError about all settings whose values CTranslate2 does not support."""
    default = ModelConfig()
    names = [key.removeprefix("model.") for key in config.shape if key.removeprefix("model.") not in SIZES]
    refused = [name for name in names if getattr(config, name) not in EXPRESSIBLE.get(name, (getattr(default, name),))]
    if refused:
        found = " or ".join(f"model.{name}: {as_yaml(getattr(config, name))}" for name in refused)
        wanted = ", ".join(f"model.{name}: {as_yaml(getattr(default, name))}" for name in refused)
        raise ConfigError(
            "", f"CTranslate2 does not support {found}", f"translate with mt itself, or train with {wanted}"
        )


def transformer_spec(model: Transformer, pieces: Sequence[list[str]], n_positions: int) -> Any:
    """Return a `ctranslate2.specs.TransformerSpec` with a model's weights and vocabulary.

    Args:
        pieces: the vocabularies of source and target, by id.
        n_positions: length of the longest sentence or translation.
    """
    specs = _package().specs
    config = model.config
    activation, is_gated = EXPRESSIBLE_ACTIVATIONS[config.activation]
    options = {
        "pre_norm": config.norm == "pre",
        "activation": getattr(specs.Activation, activation),
        "ffn_glu": is_gated,
        "rms_norm": config.norm_kind == "rms",
        "relative_attention_bias": config.positions == "relative",
        "rotary_dim": config.d_model // config.n_heads if config.positions == "rotary" else None,
        "rotary_interleave": False,
        "num_heads_kv": config.n_kv_heads,
    }
    spec = specs.TransformerSpec(
        specs.TransformerEncoderSpec(config.n_encoder_layers, config.n_heads, **options),
        specs.TransformerDecoderSpec(
            config.n_decoder_layers, config.n_heads, external_pre_post_encoder_layers=False, **options
        ),
    )
    writer = _Writer(model.positions, n_positions)
    writer.side(spec.encoder, model.encoder, model.encoder_norm, is_decoder=False)
    writer.side(spec.decoder, model.decoder, model.decoder_norm, is_decoder=True)
    parts = spec.encoder.embeddings[0], spec.decoder.embeddings, spec.decoder.projection
    for part, table in zip(parts, model.embeddings, strict=True):
        part.weight = writer.value(table.weight)[: model.n_pieces[table]].contiguous()
    missing = [name for name, parameter in model.named_parameters() if id(parameter) not in writer.written]
    assert not missing, f"not exported: {', '.join(missing)}"
    src_pieces, tgt_pieces = pieces
    spec.register_source_vocabulary(src_pieces)
    spec.register_target_vocabulary(tgt_pieces)
    tokens = (tgt_pieces[i] for i in (UNK_ID, BOS_ID, EOS_ID))
    spec.config.unk_token, spec.config.bos_token, spec.config.eos_token = tokens
    spec.config.decoder_start_token = tgt_pieces[BOS_ID]
    spec.config.layer_norm_epsilon = EPSILON
    return spec


def _pieces(tokenizers: Tokenizers) -> tuple[list[str], list[str]]:
    """Return the vocabularies of source and target, by id."""
    src, tgt = (tokenizer.pieces(range(tokenizer.vocab_size)) for tokenizer in tokenizers)
    return src, tgt


class _Writer:
    """Copies the weights of modules into specs, and records which ones."""

    def __init__(self, positions: Positions, n_positions: int) -> None:
        self.scheme, self.n_positions = positions, n_positions
        self.written: set[int] = set()

    def value(self, parameter: Tensor) -> Tensor:
        self.written.add(id(parameter))
        return parameter.detach().clone()

    def side(self, spec: Any, layers: Iterable[Any], norm: nn.Module, *, is_decoder: bool) -> None:
        """Copy the encoder or the decoder; their layers contain rotary and relative positions."""
        scheme = self.scheme
        spec.scale_embeddings = scheme.scale
        if hasattr(spec, "position_encodings"):
            table = torch.zeros(self.n_positions, scheme.d_model)
            if isinstance(scheme, Learned):
                table = self.value(scheme.embedding.weight) * spec.scale_embeddings
            elif isinstance(scheme, Sinusoidal):
                table = sinusoidal_positions(self.n_positions, scheme.d_model)
            spec.position_encodings.encodings = table
        for to, layer in zip(spec.layer, layers, strict=True):
            own, network = layer.self_attention, layer.feed_forward
            self.sublayer(to.self_attention, to.self_attention.linear, (own.qkv, own.out), layer.self_residual)
            if isinstance(scheme, Relative):
                buckets = scheme.decoder if is_decoder else scheme.encoder
                to.self_attention.relative_attention_bias = self.value(buckets.weight)
                to.self_attention.relative_attention_max_distance = np.int32(LONGEST_DISTANCE)
            if is_decoder:
                cross = layer.cross_attention
                self.sublayer(to.attention, to.attention.linear, (cross.q, cross.kv, cross.out), layer.cross_residual)
            # In a gated network, the activated half is the first.
            inner = [to.ffn.linear_0, to.ffn.linear_0_noact] if hasattr(to.ffn, "linear_0_noact") else to.ffn.linear_0
            self.sublayer(to.ffn, [inner, to.ffn.linear_1], (network.inner, network.outer), layer.feed_forward_residual)
        if hasattr(spec, "layer_norm"):
            self.norm(spec.layer_norm, norm)

    def sublayer(self, spec: Any, targets: Sequence[Any], products: Sequence[Linear], residual: PostNorm) -> None:
        """Copy the matrices of a sublayer and its norm; one of our matrices may be several of CTranslate2's.

        The last one is the output. DeepNorm's factor is folded into it, because the norm removes the scale of a sum.
        """
        for to, product in zip(targets, products, strict=True):
            parts = to if isinstance(to, list) else [to]
            factor = residual.alpha if isinstance(residual, DeepNorm) and product is products[-1] else 1.0
            for name, parameter in product.named_parameters():
                for part, value in zip(parts, self.value(parameter).chunk(len(parts)), strict=True):
                    setattr(part, name, value.contiguous() / factor)
        self.norm(spec.layer_norm, residual.norm)

    def norm(self, spec: Any, norm: Any) -> None:
        """Copy a norm; CTranslate2 has no layer norm without bias."""
        spec.gamma = self.value(norm.weight)
        if isinstance(norm, LayerNorm):
            spec.beta = torch.zeros_like(spec.gamma) if norm.bias is None else self.value(norm.bias)


def n_positions(config: RunConfig) -> int:
    """Return the number of positions of an export, enough for every source and its translation."""
    if config.model.positions == "learned":
        return config.model.n_positions
    return max(FEWEST_POSITIONS, config.data.max_tokens + LONGER_THAN_SOURCE, config.decode.max_length or 0)


def _write_manifest(folder: ModelFolder, building: Path, quantization: str, result: Export) -> None:
    """Write our own files: the tokenizers, the config and the manifest."""
    (building / CONFIG).write_text(dump_config(folder.config), encoding="utf-8")
    for path in folder.tokenizer_paths:
        shutil.copyfile(path, building / path.name)
    manifest = {
        **ExportFolder.FORMAT,
        "quantization": quantization,
        "vocab_size": folder.vocab_size,
        "n_positions": n_positions(folder.config),
        "versions": {**versions(), "ctranslate2": _package().__version__},
        "compared": result.compared,
        "comparisons": [vars(comparison) for comparison in result.comparisons],
        "model": {key: value for key, value in folder.manifest.items() if key not in (CHECKSUMS, "format_version")},
        CHECKSUMS: checksums_of(sorted(building.iterdir())),
    }
    write_json(building / MANIFEST, manifest)
    (building / README).write_text(_readme(folder), encoding="utf-8")


def _readme(folder: ModelFolder) -> str:
    """Return the README of an export, whose code runs without mt."""
    decode, tokenizer = folder.config.decode, folder.load_tokenizers().tgt
    never_produced = tokenizer.pieces(sorted((tokenizer.special_ids | tokenizer.line_breaking_ids) - {EOS_ID}))
    direction = folder.config.directions[0]
    first_pieces = folder.config.pieces_of(direction)
    of_languages = f"begin with the pieces of its languages, here {' '.join(first_pieces)} for {direction}, and "
    files = [path.name for path in folder.tokenizer_paths]
    names = ["tokenizer"] if len(files) == 1 else ["src_tokenizer", "tgt_tokenizer"]
    loading = '{} = sentencepiece.SentencePieceProcessor(model_file="{}")'
    return Template(README_TEMPLATE.read_text(encoding="utf-8")).substitute(
        languages=", ".join(f"{src} to {tgt}" for src, tgt in folder.config.directions),
        options=f" --from {direction.src} --to {direction.tgt}" if len(folder.config.directions) > 1 else "",
        first_pieces="".join(f"{json.dumps(piece)}, " for piece in first_pieces),
        of_languages=of_languages if first_pieces else "",
        loading="\n".join(map(loading.format, names, files)),
        src_tokenizer=names[0],
        tgt_tokenizer=names[-1],
        beam_size=decode.beam_size,
        length_penalty=decode.length_penalty,
        never_produced=json.dumps([[piece] for piece in never_produced], ensure_ascii=False),
    )


def _package() -> Any:
    return optional_package("ctranslate2", "ctranslate2")


# --- Comparing --------------------------------------------------------------------------------------------------------


def _lines_to_compare(folder: ModelFolder, verify_with: Path | None) -> tuple[str, list[str], Direction]:
    """Return a description of the lines, the lines, and the direction to translate them in."""
    direction = folder.config.directions[0]
    if verify_with is not None:
        description, lines = str(verify_with), lines_of_text(verify_with)
    else:
        fingerprint = folder.manifest.get("corpus_fingerprint")
        try:
            description, pairs, direction = first_test_pairs(folder.config, fingerprint, may_fetch=False)
            lines = [pair.src for pair in pairs]
        except MTError:  # the model was copied to this machine without its text
            description, lines = "English sentences that ship with mt", lines_of_text(SENTENCES)
    normalise = Normalisers.of_run(folder.config, direction).src
    lines = [line for line in map(normalise, lines) if line][:COMPARED_LINES]
    return f"{len(lines):,} lines of {description}", lines, direction


class _Exporter:
    """A model to export, with our own translations of some sentences."""

    def __init__(self, folder: ModelFolder, lines: Sequence[str], direction: Direction) -> None:
        self.model, self.tokenizers = folder.load_model(torch.float32, torch.device("cpu")), folder.load_tokenizers()
        self.n_positions = n_positions(folder.config)
        self.bleu_tokenizer = "char" if written_without_spaces(direction.tgt) else DEFAULT_TOKENIZER
        first = self.tokenizers.src.ids_of(folder.config.pieces_of(direction))
        longest = max(folder.config.data.max_tokens - 1 - len(first), 1)
        self.sources = [[*first, *ids[:longest], EOS_ID] for ids in self.tokenizers.src.encode_batch(lines)]
        self.ours = self._best_of_each(partial(search, self.model))
        if any(result.score == -math.inf for result in self.ours):
            raise CheckpointError("the model returns NaN for some lines: its weights are damaged")

    def write(self, folder: Path, quantization: str) -> Comparison:
        """Write the files that CTranslate2 reads, and compare its translations with our own."""
        spec = transformer_spec(self.model, _pieces(self.tokenizers), self.n_positions)
        spec.validate()
        spec.optimize(quantization=quantization)
        spec.save(str(folder))
        longest = min(max(map(len, self.sources)) + LONGER_THAN_SOURCE, self.n_positions)
        backend = CTranslate2Backend(folder, self.tokenizers, n_positions=longest, quantization=quantization)
        theirs = self._best_of_each(backend.search)
        # Both are scored by CTranslate2's scorer, because its search redistributes the probability of tokens that are
        # never produced.
        of_theirs, of_ours = (
            [sum(log_probs) for log_probs in backend.log_probs(self.sources, [result.ids for result in results])]
            for results in (theirs, self.ours)
        )
        counts = Counter(map(_verdict, self.ours, theirs, of_ours, of_theirs))
        texts = [[self.tokenizers.tgt.decode(result.ids) for result in results] for results in (theirs, self.ours)]
        bleu, chrf = bleu_and_chrf(texts[0], texts[1], self.bleu_tokenizer)
        return Comparison(
            quantization=quantization,
            n_lines=len(self.sources),
            **{name: counts[name] for name in ("n_equal", "n_tied", "n_missed", "n_different")},
            largest_gap=max(abs(our.log_prob - log_prob) for our, log_prob in zip(self.ours, of_ours, strict=True)),
            bleu=bleu,
            chrf=chrf,
        )

    def _best_of_each(self, search: Callable[[SearchRequest], list[list[SearchResult]]]) -> list[SearchResult]:
        """Return the best translation of each sentence; an empty one with probability 0 if there is none."""
        banned = sorted(self.tokenizers.tgt.line_breaking_ids)
        best = [SearchResult((), -math.inf, -math.inf)] * len(self.sources)
        for batch in length_sorted_batches([len(ids) for ids in self.sources], 1_024, COMPARED_DECODE.beam_size):
            request = SearchRequest([self.sources[i] for i in batch], COMPARED_DECODE, banned_ids=banned)
            for i, results in zip(batch, search(request), strict=True):
                best[i] = results[0] if results else best[i]
        return best


def _verdict(ours: SearchResult, theirs: SearchResult, of_ours: float, of_theirs: float) -> str:
    """Return the count of a Comparison that a line belongs to.

    Args:
        of_ours, of_theirs: log-probabilities of the two translations by CTranslate2.
    """
    if ours.ids == theirs.ids:
        return "n_equal"
    if abs(ours.log_prob - of_theirs) <= TIE:
        return "n_tied"
    if abs(ours.log_prob - of_ours) <= TIE and of_theirs < ours.log_prob:
        return "n_missed"
    return "n_different"


def _write_and_compare(
    folder: ModelFolder, lines: list[str], direction: Direction, building: Path, quantization: str
) -> tuple[Comparison, ...]:
    """Write CTranslate2's files, and compare: first in float32, where only rounding may make a difference."""
    exporter = _Exporter(folder, lines, direction)
    exact = exporter.write(building, "float32")
    if exact.n_different > MOST_DIFFERENT_FRACTION * exact.n_lines:
        problem = (
            f"CTranslate2 translates {exact.n_different:,} of {exact.n_lines:,} lines differently in float32, with "
            f"log-probabilities up to {exact.largest_gap:.2g} nats apart, so nothing was written. This is a bug in the "
            "export or in this version of CTranslate2"
        )
        raise MTError(folder.path, problem, "report it, or try another version of CTranslate2")
    if quantization == "float32":
        return (exact,)
    rounded = exporter.write(building, quantization)
    if rounded.n_equal < FEWEST_EQUAL_FRACTION * rounded.n_lines and rounded.chrf < LEAST_CHRF:
        problem = (
            f"in {quantization} only {rounded.n_equal:,} of {rounded.n_lines:,} lines are translated as in float32 "
            f"(chrF2 {rounded.chrf:.1f} between the two), so nothing was written"
        )
        raise MTError(folder.path, problem, "export it in float32")
    return exact, rounded


def format_export(result: Export) -> str:
    """Format the result of an export for a terminal."""
    rows = [f"compared with mt's own translations of {result.compared}:"]
    for c in result.comparisons:
        others = ((c.n_tied, "tied"), (c.n_missed, "less probable"), (c.n_different, "different"))
        more = "".join(f", {n:,} {what}" for n, what in others if n)
        more += f"; log-probabilities within {c.largest_gap:.1g}"
        if c.quantization != "float32":
            more = f"; BLEU {c.bleu:.1f}, chrF2 {c.chrf:.1f} against mt's own"
        rows.append(f"  {c.quantization:<8} {c.n_equal:,} of {c.n_lines:,} equal{more}")
    return "\n".join(rows)


# --- Running ----------------------------------------------------------------------------------------------------------


_HOW_TO_EXPORT = "create one with mt export --to ctranslate2"


def vocabulary_names(folder: Path) -> tuple[str, ...]:
    """Return the names of CTranslate2's vocabularies. It writes a single file for two tokenizers with equal pieces."""
    if len(tokenizer_paths(folder)) == 1 or (folder / SHARED_VOCABULARY).is_file():
        return (SHARED_VOCABULARY,)
    return "source_vocabulary.json", "target_vocabulary.json"


class ExportFolder(CheckedFolder):
    """An export folder with all its files, undamaged."""

    KIND = "export"
    FILES = (EXPORTED, MODEL_CONFIG, CONFIG)
    FORMAT: ClassVar = {"format": "ctranslate2", "format_version": 1}
    KEYS: ClassVar = {"quantization": str, "vocab_size": PieceCounts, "n_positions": Count, CHECKSUMS: dict[str, str]}
    HOW_TO_REPAIR = HOW_TO_READ = "export the model again"

    @classmethod
    def names(cls, path: Path) -> tuple[str, ...]:
        return (*super().names(path), *vocabulary_names(path))

    @classmethod
    def open(cls, path: Path) -> ExportFolder:
        """Read the small files and check all files; see `CheckedFolder.open`."""
        if not path.is_dir():
            raise CheckpointError(path, "does not exist", f"give an export folder, or {_HOW_TO_EXPORT}")
        if not (path / EXPORTED).is_file():
            raise CheckpointError(path, f"is not an export for CTranslate2: {EXPORTED} is missing", _HOW_TO_EXPORT)
        folder = super().open(path)
        for name in cls.names(path):
            if name != MANIFEST:
                check_file(path / name, folder.manifest, cls.HOW_TO_REPAIR)
        return folder


class CTranslate2Backend(Backend):
    """The search of CTranslate2 over an exported model: ids in, ids out, as with our own search.

    CTranslate2 divides by n^α once, when it ranks the hypotheses that have ended. For the form `wu` it therefore
    returns all of them, and they are ranked here.

    It differs from our search in two ways. With a length penalty, it stops once K hypotheses have ended, although a
    better one may follow, which our search finds. And it redistributes the probability of tokens that are never
    produced, so log-probabilities are a little higher, by what label smoothing gave to these tokens. Translations that
    reach their length limit are cut, and then ended.

    Args:
        folder: the files that CTranslate2 reads.
        n_positions: length of the longest sentence or translation.
        device: cpu, cuda or cuda:N.
    """

    def __init__(
        self, folder: Path, tokenizers: Tokenizers, *, n_positions: int, quantization: str, device: str = "cpu"
    ) -> None:
        kind, _, index = device.partition(":")
        self.n_parallel = torch.get_num_threads() if kind == "cpu" else 1
        self._translator = _package().Translator(
            str(folder),
            device=kind,
            device_index=int(index or 0),
            # On a CPU, half-precision weights become float32 in any case; this avoids a warning.
            compute_type="float32" if quantization == "float16" and kind == "cpu" else "default",
            # One core per batch is faster than many cores on one batch.
            inter_threads=self.n_parallel,
            intra_threads=1,
        )
        self.n_positions: int = n_positions
        self._src_pieces, self._pieces = _pieces(tokenizers)
        self._ids = {piece: i for i, piece in enumerate(self._pieces)}

    def search(self, request: SearchRequest) -> list[list[SearchResult]]:
        """Return the n_best translations of each sentence, best first; see `mt.decode.search.search`.

        Raises:
            ConfigError: CTranslate2 cannot express a setting.
        """
        sentences, decode, prefixes = request.sentences, request.decode, request.prefixes
        prefixes = prefixes if any(prefixes or ()) else None
        self.refuse_inexpressible(decode, request.n_best)
        assert all(len(sentence) <= self.n_positions for sentence in sentences)
        limits, options = request.limits(self.n_positions), self._options(request)
        results: list[list[SearchResult]] = [[] for _ in sentences]

        def translate(rows: Sequence[int], limit: int) -> None:
            found = self._translator.translate_batch(
                [self._to_src_pieces(sentences[row]) for row in rows],
                target_prefix=[self._to_pieces(prefixes[row]) for row in rows] if prefixes else None,
                max_decoding_length=limit,
                **options,
            )
            for row, result in zip(rows, found, strict=True):
                results[row] = self._results(sentences[row], result, limit, decode)

        # CTranslate2 has one limit per batch. The few translations that exceed their own limit are repeated.
        translate(range(len(sentences)), max(limits))
        again = defaultdict(list)
        for row, limit in enumerate(limits):
            if any(result.n_tokens > limit for result in results[row]):
                again[limit].append(row)
        for limit, rows in again.items():
            translate(rows, limit)
        if prefixes:  # CTranslate2's scores leave out the probability of the prefix
            rows = [row for row, prefix in enumerate(prefixes) if prefix]
            scored = self.log_probs([sentences[row] for row in rows], [prefixes[row] for row in rows])
            for row, log_probs in zip(rows, scored, strict=True):
                of_prefix = sum(log_probs[: len(prefixes[row])])
                counted = [_result(result.ids, result.log_prob + of_prefix, decode) for result in results[row]]
                results[row] = sorted(counted, key=attrgetter("score"), reverse=True)
        return [found[: request.n_best] for found in results]

    def refuse_inexpressible(self, decode: DecodeConfig, n_best: int = 1) -> None:
        """Raise a ConfigError about the first setting that CTranslate2 does not have."""
        longest = max(decode.max_length or 0, decode.min_length + 1)
        if longest > self.n_positions:
            key, value = ("max_length", decode.max_length) if decode.max_length else ("min_length", decode.min_length)
            raise ConfigError(
                f"decode.{key}",
                f"is {value:,}, but this export supports at most {self.n_positions:,} tokens",
                "lower it, or set decode.max_length in the model's config and export it again",
            )
        if decode.sample and decode.seed != DecodeConfig().seed:
            raise ConfigError(
                "decode.seed", f"is {decode.seed}, but CTranslate2 samples differently each time", "leave it out"
            )
        if decode.sample and decode.top_k == 1 and n_best > 1:
            raise ConfigError(
                "decode.top_k", "is 1, so CTranslate2 can sample only one translation", "raise it, or ask for one"
            )

    def log_probs(self, sentences: Sequence[Sequence[int]], translations: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return the log-probabilities of the tokens of given translations, including EOS; ids as in `search`."""
        scored = self._translator.score_batch(
            [self._to_src_pieces(sentence) for sentence in sentences],
            [self._to_pieces(translation) for translation in translations],
            max_batch_size=SCORED_TOGETHER,
            max_input_length=0,
        )
        return [list(result.log_probs) for result in scored]

    def _options(self, request: SearchRequest) -> dict[str, Any]:
        """Return the arguments of `translate_batch` except text and length limit."""
        decode = request.decode
        is_ranked_here = decode.length_penalty > 0 and decode.length_penalty_form != "plain" and not decode.sample
        drawing = {
            "beam_size": 1,
            "sampling_topk": decode.top_k or 0,
            "sampling_topp": decode.top_p or 1.0,
            "sampling_temperature": decode.temperature,
        }
        return {
            **(drawing if decode.sample else {"beam_size": decode.beam_size}),
            "num_hypotheses": decode.beam_size if is_ranked_here else request.n_best,
            "length_penalty": decode.length_penalty,
            "min_decoding_length": decode.min_length,
            "no_repeat_ngram_size": decode.no_repeat_ngram_size,
            "max_input_length": 0,
            "return_scores": True,
            "return_end_token": True,  # so that the length penalty counts it, as ours does
            "suppress_sequences": [[self._pieces[i]] for i in sorted({PAD_ID, UNK_ID, BOS_ID, *request.banned_ids})],
        }

    def _results(self, sentence: Sequence[int], found: Any, limit: int, decode: DecodeConfig) -> list[SearchResult]:
        results = []
        for pieces, score in zip(found.hypotheses, found.scores, strict=True):
            ids = tuple(self._ids[piece] for piece in pieces)
            log_prob = score * len(ids) ** decode.length_penalty
            if not LEAST_LOG_PROB < log_prob < math.inf:
                continue
            if ids[-1] == EOS_ID:
                results.append(_result(ids[:-1], log_prob, decode))
            else:  # cut at the limit: end it there, as our search does
                ended = ids[: limit - 1]
                results.append(_result(ended, sum(self.log_probs([sentence], [ended])[0]), decode))
        return sorted(results, key=attrgetter("score"), reverse=True)

    def _to_src_pieces(self, ids: Sequence[int]) -> list[str]:
        return [self._src_pieces[i] for i in ids]

    def _to_pieces(self, ids: Sequence[int]) -> list[str]:
        return [self._pieces[i] for i in ids]


def _result(ids: tuple[int, ...], log_prob: float, decode: DecodeConfig) -> SearchResult:
    n_tokens = torch.tensor(len(ids) + 1)
    penalty = length_penalty(n_tokens, decode.length_penalty, decode.length_penalty_form)
    return SearchResult(ids, log_prob, log_prob / penalty.item())


def load_translator(
    path: str | Path,
    device: str = "auto",
    precision: str = "auto",
    *,
    retries: bool = True,
    split_sentences: SplitSentences = "auto",
    src_lang: str | None = None,
    tgt_lang: str | None = None,
) -> Translator:
    """Return a translator over an export folder; the counterpart of `Translator.load`.

    Raises:
        CheckpointError: the export is missing, incomplete or of another version.
        ConfigError: the device is not available, or a precision is given.
        MTError: CTranslate2 is not installed, or cannot read the export.
    """
    folder = ExportFolder.open(Path(path))
    quantization, longest, checksums = (folder.manifest[key] for key in ("quantization", "n_positions", CHECKSUMS))
    if precision != "auto":
        problem = f"CTranslate2 computes in the quantization of the export, here {quantization}"
        raise ConfigError("precision", problem, "leave it at auto, or export the model again with another quantization")
    tokenizers, config, device = folder.load_tokenizers(), folder.config, _device(device)
    files, names = folder.tokenizer_paths, vocabulary_names(folder.path)
    try:
        for name, file, pieces in zip((names[0], names[-1]), (files[0], files[-1]), _pieces(tokenizers), strict=True):
            if read_json(folder.path / name) != pieces:
                raise ValueError(f"{name} has other pieces than {file.name}")
        if longest < config.data.max_tokens:
            raise ValueError(f"its {longest:,} positions are fewer than data.max_tokens ({config.data.max_tokens:,})")
        backend = CTranslate2Backend(
            folder.path, tokenizers, n_positions=longest, quantization=quantization, device=device
        )
    except (RuntimeError, ValueError) as error:
        raise MTError(folder.path, f"CTranslate2 cannot load it: {error}") from error
    identity = {
        "backend": "ctranslate2",
        "model": " ".join(str(checksums.get(name)) for name in (EXPORTED, *(file.name for file in files))),
        "device": device.partition(":")[0],
    }
    translator = Translator(
        backend,
        tokenizers,
        config.decode,
        config.data.max_tokens,
        Normalisers.of_run(config, config.directions[0]),
        retries,
        split_sentences,
        UsualLines.of_manifest(folder.manifest.get("model", {})),
        identity,
        config=config,
    )
    return translator.between(src_lang, tgt_lang)


def _device(name: str) -> str:
    """Return a device that CTranslate2 can use.

    Args:
        name: `auto`, `cpu`, `cuda` or `cuda:N`.
    """
    device = choose_device(name)
    if device.type == "cuda" and _package().get_cuda_device_count() == 0:
        if name == "auto":
            return "cpu"
        raise ConfigError("device", f"{name} was requested, but CTranslate2 finds no CUDA device", "use cpu")
    return str(device)
