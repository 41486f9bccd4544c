"""Compare the speed and BLEU of one model in `mt`, CTranslate2 and `transformers`.

    python scripts/bench_decode.py --model runs/multi30k --input test.en.gz --reference test.de.gz

All engines get the same weights, batches of sentences (sorted by length), beam, length penalty and number of threads.
`mt` uses one thread per batch. CTranslate2 is measured that way, and with all threads on one batch. Each engine runs in
its own process, and only one works at a time; rounds are interleaved because the speed of a machine drifts. Input and
output are ids: neither tokenisation nor loading is timed for any engine.
CTranslate2 and `transformers` are measured if they are installed: pip install 'mt-train[ctranslate2]' transformers
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from plumbing import CommandFailed, refuse, run_mt, say, table

ENGINES = (
    "mt bf16",
    "mt fp32",
    "ctranslate2 int8",  # all threads on one batch, as it does by default
    "ctranslate2 int8 side by side",  # one thread per batch, as mt does
    "ctranslate2 float32",
    "transformers bf16",
    "transformers fp32",
)
ENGINES_ON_CUDA = ("mt bf16", "ctranslate2 float16", "ctranslate2 int8", "transformers bf16")
YARDSTICK = "ctranslate2 int8"
EXACT = "mt fp32"  # the other engines' translations are compared with its own
LATENCY_WARM_UP = 3  # lines

Ids = list[int]
# A function of batches of source ids, each sentence with EOS, that returns target ids without BOS and EOS.
Translate = Callable[[list[list[Ids]]], list[list[Ids]]]


@dataclass(frozen=True)
class Setting:
    """Settings of all engines."""

    model: Path
    exports: Path  # folder with one export per quantisation
    beam_size: int
    length_penalty: float
    threads: int
    device: str


@dataclass
class Measured:
    """Times and translations of one engine."""

    seconds: list[float] = field(default_factory=list)  # of each round
    found: list[list[Ids]] = field(default_factory=list)  # translations of each batch
    latencies: list[float] = field(default_factory=list)  # seconds for single sentences


@dataclass(frozen=True)
class Row:
    """One engine in the table. Speeds are medians over the rounds."""

    engine: str
    tgt_tokens_per_second: float  # ends of sentences included
    slowest_and_fastest: tuple[float, float]
    sentences_per_second: float
    tokens_per_sentence: float
    bleu: float
    n_equal: int | None  # lines with the same translation as EXACT
    ratio: float | None  # sentences per second relative to YARDSTICK, median over rounds
    latency_p50: float | None  # seconds for one sentence alone
    latency_p95: float | None


# --- The engines, each in its own process -----------------------------------------------------------------------------


def load_mt(precision: str, setting: Setting) -> Translate:
    from mt.config.settings import DecodeConfig
    from mt.decode.search import SearchRequest
    from mt.decode.translator import Translator

    translator = Translator.load(setting.model, setting.device, precision, n_processes=setting.threads)
    banned = sorted(translator.tokenizers.tgt.line_breaking_ids)
    decode = DecodeConfig(
        beam_size=setting.beam_size, length_penalty=setting.length_penalty, length_penalty_form="plain"
    )

    def translate(batches: list[list[Ids]]) -> list[list[Ids]]:
        requests = [SearchRequest(batch, decode, banned_ids=banned) for batch in batches]
        found = translator.backend.search_batches(requests)
        return [[list(results[0].ids) for results in batch] for batch in found]

    return translate


def load_ctranslate2(quantization: str, setting: Setting) -> Translate:
    import ctranslate2

    from mt.decode.parallel import map_in_threads

    kind, _, index = setting.device.partition(":")
    quantization, _, manner = quantization.partition(" ")
    n_parallel = setting.threads if manner else 1
    translator = ctranslate2.Translator(
        str(setting.exports / quantization),
        device=kind,
        device_index=int(index or 0),
        inter_threads=n_parallel,
        intra_threads=setting.threads // n_parallel,
    )
    tokenizers = open_folder(setting.model).load_tokenizers()
    src_pieces, pieces = (tokenizer.pieces(range(tokenizer.vocab_size)) for tokenizer in tokenizers)
    ids = {piece: i for i, piece in enumerate(pieces)}

    def translate_batch(batch: list[Ids]) -> list[Ids]:
        found = translator.translate_batch(
            [[src_pieces[i] for i in sentence] for sentence in batch],
            beam_size=setting.beam_size,
            length_penalty=setting.length_penalty,
            max_decoding_length=longest(batch),
            max_input_length=0,
            suppress_sequences=[[pieces[i]] for i in never_produced(tokenizers.tgt)],
        )
        return [[ids[piece] for piece in result.hypotheses[0]] for result in found]

    return lambda batches: list(map_in_threads(translate_batch, batches, n_parallel))


def load_transformers(precision: str, setting: Setting) -> Translate:
    """Load MarianMT, which is the paper's model except for its table of positions, with our weights."""
    import torch

    from mt.text.tokenizer import EOS_ID, PAD_ID

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    folder = open_folder(setting.model)
    model = marian(folder).to(setting.device, dtype).eval()
    never = never_produced(folder.load_tokenizers().tgt)

    def translate_batch(batch: list[Ids]) -> list[Ids]:
        width = max(map(len, batch))
        padded = torch.tensor([[*ids, *[PAD_ID] * (width - len(ids))] for ids in batch], device=setting.device)
        with torch.inference_mode():
            found = model.generate(
                padded,
                attention_mask=(padded != PAD_ID).long(),
                num_beams=setting.beam_size,
                length_penalty=setting.length_penalty,
                do_sample=False,
                max_new_tokens=longest(batch),
                suppress_tokens=never,
            )
        return [ids[1 : ids.index(EOS_ID) if EOS_ID in ids else None] for ids in found.tolist()]

    return lambda batches: [translate_batch(batch) for batch in batches]


LOADERS = {"mt": load_mt, "ctranslate2": load_ctranslate2, "transformers": load_transformers}


def longest(batch: list[Ids]) -> int:
    """Return the maximum tokens of a translation. Two of the three engines support only one limit per batch."""
    return max(map(len, batch)) + 50


def never_produced(tokenizer: Any) -> Ids:
    from mt.text.tokenizer import BOS_ID, PAD_ID, UNK_ID

    return [PAD_ID, UNK_ID, BOS_ID, *sorted(tokenizer.line_breaking_ids)]


def open_folder(model: Path) -> Any:
    from mt.run_folder import open_model

    return open_model(model)


def marian(folder: Any) -> Any:
    """Return a `MarianMTModel` with the weights of one of our post-norm models."""
    import torch
    import transformers

    from mt.model.positions import sinusoidal_positions
    from mt.text.tokenizer import BOS_ID, EOS_ID, PAD_ID

    transformers.logging.set_verbosity_error()
    config, n_positions = folder.config.model, max(1_024, folder.config.data.max_tokens + 50)
    n_layers = {"encoder": config.n_encoder_layers, "decoder": config.n_decoder_layers}
    shape = {f"{side}_layers": n for side, n in n_layers.items()}
    shape |= {f"{side}_attention_heads": config.n_heads for side in n_layers}
    shape |= {f"{side}_ffn_dim": config.d_ff for side in n_layers}
    model = transformers.MarianMTModel(
        transformers.MarianConfig(
            **shape,
            vocab_size=folder.manifest["vocab_size"],
            d_model=config.d_model,
            activation_function="relu",
            scale_embedding=True,
            max_position_embeddings=n_positions,
            pad_token_id=PAD_ID,
            bos_token_id=BOS_ID,
            eos_token_id=EOS_ID,
            decoder_start_token_id=BOS_ID,
            forced_eos_token_id=None,
        )
    )
    ours = folder.load_weights()
    embedding = ours["embedding.weight"][: folder.manifest["vocab_size"]]
    theirs: dict[str, Any] = {"model.shared.weight": embedding}

    def put(name: str, *sources: str) -> None:
        """Copy the concatenated weights of our layers to their layers; a * in `name` means q, k and v."""
        tensors = {kind: [ours[f"{source}.{kind}"] for source in sources] for kind in ("weight", "bias")}
        for kind, parts in tensors.items():
            rows = torch.cat(parts).chunk(3) if "*" in name else parts
            for letter, tensor in zip("qkv", rows, strict=False):
                theirs[f"model.{name.replace('*', letter)}.{kind}"] = tensor

    for side, n in n_layers.items():
        theirs[f"model.{side}.embed_positions.weight"] = sinusoidal_positions(n_positions, config.d_model)
        for i in range(n):
            to, source = f"{side}.layers.{i}", f"{side}.{i}"
            put(f"{to}.self_attn.*_proj", f"{source}.self_attention.qkv")
            put(f"{to}.self_attn.out_proj", f"{source}.self_attention.out")
            put(f"{to}.self_attn_layer_norm", f"{source}.self_residual.norm")
            if side == "decoder":
                put(f"{to}.encoder_attn.*_proj", f"{source}.cross_attention.q", f"{source}.cross_attention.kv")
                put(f"{to}.encoder_attn.out_proj", f"{source}.cross_attention.out")
                put(f"{to}.encoder_attn_layer_norm", f"{source}.cross_residual.norm")
            put(f"{to}.fc1", f"{source}.feed_forward.inner")
            put(f"{to}.fc2", f"{source}.feed_forward.outer")
            put(f"{to}.final_layer_norm", f"{source}.feed_forward_residual.norm")
    missing, unexpected = model.load_state_dict(theirs, strict=False)
    tied = {"model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"}
    assert not unexpected, unexpected
    assert set(missing) <= {*tied, "final_logits_bias"}, missing
    assert torch.equal(model.lm_head.weight, embedding), "the output layer is not tied"
    return model


_loaded: list[Translate] = []  # the one engine of this process


def load(engine: str, setting: Setting) -> None:
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # output of libraries must not look like a result
    import torch

    torch.set_num_threads(setting.threads)
    name, _, kind = engine.partition(" ")
    _loaded.append(LOADERS[name](kind, setting))


def translate_timed(batches: list[list[Ids]]) -> tuple[float, list[list[Ids]]]:
    started_at = time.perf_counter()
    found = _loaded[0](batches)
    return time.perf_counter() - started_at, found


def seconds_alone(sentences: list[Ids]) -> list[float]:
    """Return the seconds that each sentence takes by itself, after some sentences for warm-up."""
    warm_up = sentences[:LATENCY_WARM_UP]
    return [translate_timed([[sentence]])[0] for sentence in [*warm_up, *sentences]][len(warm_up) :]


# --- The measurement --------------------------------------------------------------------------------------------------


def why_not(engine: str, model: Path) -> str | None:
    """Return why an engine cannot take part, in one line."""
    name = engine.partition(" ")[0]
    remedy = {"ctranslate2": "'mt-train[ctranslate2]'", "transformers": "transformers"}.get(name)
    if remedy is not None and importlib.util.find_spec(name) is None:
        return f"{name} is not installed: pip install {remedy}"
    if name == "transformers":
        from mt.config.settings import ModelConfig

        ours, default = open_folder(model).config.model.shape, ModelConfig().shape
        sizes = {"d_model", "n_heads", "n_kv_heads", "d_ff", "n_encoder_layers", "n_decoder_layers"}
        keys = [key for key in ours if key.removeprefix("model.") not in sizes and ours[key] != default[key]]
        if differing := [f"{key}: {ours[key]}" for key in keys]:
            return f"its MarianMT does not have {', '.join(differing)}"
    return None


def measure(
    names: Sequence[str], setting: Setting, batches: list[list[Ids]], alone: list[Ids], n_rounds: int
) -> dict[str, Measured]:
    measured = {name: Measured() for name in names}
    os.environ["OMP_NUM_THREADS"] = str(setting.threads)  # inherited by the processes
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(ProcessPoolExecutor(1, context, load, (name, setting))).submit for name in names
        }
        for number in range(n_rounds + 1):
            for name, submit in engines.items():
                if number == 0:  # warm-up, with long and short sentences
                    submit(translate_timed, batches[:: max(1, len(batches) // 4)]).result()
                    continue
                seconds, measured[name].found = submit(translate_timed, batches).result()
                measured[name].seconds.append(seconds)
                say(f"round {number}: {name}: {seconds:.2f} s")
        for name, submit in engines.items():
            measured[name].latencies = submit(seconds_alone, alone).result()
    return measured


def rows_of(measured: dict[str, Measured], order: list[int], tokenizer: Any, references: list[str]) -> list[Row]:
    """Return the rows of the table. `order` has the line numbers of all sentences of the batches, in order."""
    from mt.evaluation.scores import bleu_and_chrf

    translations = {}
    for name, one in measured.items():
        found = [ids for batch in one.found for ids in batch]
        translations[name] = [ids for _, ids in sorted(zip(order, found, strict=True))]
    exact, yardstick = translations.get(EXACT), measured.get(YARDSTICK)
    rows = []
    for name, one in measured.items():
        n_tokens = sum(len(ids) + 1 for ids in translations[name])
        speeds = [n_tokens / seconds for seconds in one.seconds]
        ratios = [theirs / own for theirs, own in zip(yardstick.seconds, one.seconds, strict=True)] if yardstick else []
        latencies = sorted(one.latencies)
        rows.append(
            Row(
                engine=name,
                tgt_tokens_per_second=statistics.median(speeds),
                slowest_and_fastest=(min(speeds), max(speeds)),
                sentences_per_second=len(order) / statistics.median(one.seconds),
                tokens_per_sentence=n_tokens / len(order),
                bleu=bleu_and_chrf(tokenizer.decode_batch(translations[name]), references)[0],
                n_equal=exact and sum(map(list.__eq__, translations[name], exact)),
                ratio=statistics.median(ratios) if ratios else None,
                latency_p50=latencies[len(latencies) // 2] if latencies else None,
                latency_p95=latencies[int(0.95 * len(latencies))] if latencies else None,
            )
        )
    return rows


def markdown(rows: Sequence[Row]) -> str:
    measures = ["tok/s (slowest to fastest round)", "sentences/s", f"× {YARDSTICK}", "tokens per sentence", "BLEU"]
    head = ["engine", *measures, f"lines equal to {EXACT}", "one sentence at a time, p50 / p95"]
    cells = [
        (
            row.engine,
            "{:,.0f} ({:,.0f} to {:,.0f})".format(row.tgt_tokens_per_second, *row.slowest_and_fastest),
            f"{row.sentences_per_second:,.1f}",
            "" if row.ratio is None else f"{row.ratio:.2f}",
            f"{row.tokens_per_sentence:.1f}",
            f"{row.bleu:.2f}",
            "" if row.n_equal is None else f"{row.n_equal:,}",
            "" if row.latency_p50 is None else f"{1000 * row.latency_p50:.0f} / {1000 * (row.latency_p95 or 0):.0f} ms",
        )
        for row in rows
    ]
    return "\n".join(table(head, cells))


# --- The command ------------------------------------------------------------------------------------------------------


def arguments_of(command: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="run, checkpoint or model folder")
    add("--input", type=Path, required=True, metavar="FILE", help="text, one segment per line")
    add("--reference", type=Path, required=True, metavar="FILE", help="its translation, for BLEU")
    add("--batch-sentences", type=int, default=32, metavar="N", help="sentences per batch")
    add("--beam-size", type=int, default=4, metavar="N")
    add("--length-penalty", type=float, default=0.0, metavar="A", help="log-probability divided by n^A")
    add("--threads", type=int, default=2, metavar="N", help="threads of each engine")
    add("--rounds", type=int, default=3, metavar="N", help="passes through the whole text")
    add("--latency-lines", type=int, default=100, metavar="N", help="lines translated one by one; 0: none")
    engines = sorted({*ENGINES, *ENGINES_ON_CUDA})
    add("--engine", action="append", choices=engines, metavar="E", help=f"repeatable; one of {', '.join(engines)}")
    add("--device", default="cpu", help="cpu, cuda or cuda:N")
    add("--json", action="store_true", help="print one JSON object instead of the table")
    arguments = parser.parse_args(command)
    arguments.engine = arguments.engine or list(ENGINES if arguments.device == "cpu" else ENGINES_ON_CUDA)
    for name in ("batch_sentences", "beam_size", "threads", "rounds"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(arguments, name)}")
    return arguments


def main(command: Sequence[str] | None = None) -> None:
    arguments = arguments_of(command)
    import torch

    from mt.config.settings import TextFiles
    from mt.decode.search import length_sorted_batches
    from mt.text.corpora import reader_of
    from mt.text.normalise import normalise
    from mt.text.tokenizer import EOS_ID
    from mt.tools.bench import provenance

    reader = reader_of(TextFiles(src=str(arguments.input), tgt=str(arguments.reference)), ("", ""), "")
    pairs = [pair for pair in reader.pairs() if normalise(pair.src)]
    folder = open_folder(arguments.model)
    tokenizers, capacity = folder.load_tokenizers(), folder.config.data.max_tokens - 1
    sentences = [
        [*ids[:capacity], EOS_ID] for ids in tokenizers.src.encode_batch([normalise(pair.src) for pair in pairs])
    ]
    groups = length_sorted_batches([len(ids) for ids in sentences], sys.maxsize, 1, arguments.batch_sentences)
    absent = {name: reason for name in arguments.engine if (reason := why_not(name, arguments.model))}
    names = [name for name in arguments.engine if name not in absent]
    with tempfile.TemporaryDirectory() as exports:
        for quantization in {name.split()[1] for name in names if name.startswith("ctranslate2 ")}:
            options = ["--to", "ctranslate2", "--quantization", quantization, "--model", str(arguments.model)]
            run_mt("export", *options, "--output", str(Path(exports) / quantization))
        search = arguments.beam_size, arguments.length_penalty
        setting = Setting(arguments.model, Path(exports), *search, arguments.threads, arguments.device)
        batches = [[sentences[i] for i in group] for group in groups]
        measured = measure(names, setting, batches, sentences[: arguments.latency_lines], arguments.rounds)
    rows = rows_of(measured, [i for group in groups for i in group], tokenizers.tgt, [pair.tgt for pair in pairs])
    facts = {
        "model": str(arguments.model),
        "text": reader.corpus.description,
        "n_lines": len(pairs),
        **{name: getattr(arguments, name) for name in ("batch_sentences", "beam_size", "length_penalty", "threads")},
        "rounds": arguments.rounds,
        "absent": absent,
        **provenance(torch.device(arguments.device)),
    }
    others = [name for name in ("ctranslate2", "transformers") if importlib.util.find_spec(name) is not None]
    facts["versions"] |= {name: metadata.version(name) for name in others}
    if arguments.json:
        seconds = {name: one.seconds for name, one in measured.items()}
        print(json.dumps({**facts, "engines": [asdict(row) for row in rows], "seconds": seconds}))
        return
    print(markdown(rows))
    print(
        f"\n{len(pairs):,} lines of {reader.corpus.description}; batches of {arguments.batch_sentences}, beam "
        f"{arguments.beam_size}, length penalty {arguments.length_penalty:g}, {arguments.threads} threads, "
        f"{arguments.rounds} rounds; {facts['hardware']['cpu']}; "
        + ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    )
    for name, reason in absent.items():
        print(f"\nWithout {name}: {reason}.")


if __name__ == "__main__":
    from mt.errors import MTError

    try:
        main()
    except (MTError, CommandFailed) as error:
        sys.exit(refuse(str(error)))
    except BrokenProcessPool:
        sys.exit("error: the process of an engine ended. See above.")
