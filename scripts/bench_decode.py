"""Speed of one model's translations by our own search, by CTranslate2 and by `transformers`, with the BLEU of each.

    python scripts/bench_decode.py --model runs/multi30k --input test.en.gz --reference test.de.gz

All engines get the same weights, the same batches of sentences (sorted by length), the same beam, the same length
penalty and the same number of threads: ours gives each batch one of them, CTranslate2 is measured that way and with all
of them on one batch. Each runs in a process of its own, and while one works the others wait; rounds are interleaved,
for machines drift. Ids go in and ids come out: neither tokenisation nor loading is timed, for anyone.
CTranslate2 and `transformers` take part where they are installed: pip install 'mt-train[ctranslate2]' transformers
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

ENGINES = (
    "mt bf16",
    "mt fp32",
    "ctranslate2 int8",  # all threads on one batch, as it does by default
    "ctranslate2 int8 side by side",  # a thread a batch, as we do
    "ctranslate2 float32",
    "transformers bf16",
    "transformers fp32",
)
ENGINES_ON_CUDA = ("mt bf16", "ctranslate2 float16", "ctranslate2 int8", "transformers bf16")
YARDSTICK = "ctranslate2 int8"
EXACT = "mt fp32"  # whose translations the others' are compared with
LATENCY_WARM_UP = 3  # lines

Ids = list[int]


@dataclass(frozen=True)
class Setting:
    """What all engines go by."""

    model: str
    exports: str  # folder of exports, one for each quantisation
    beam_size: int
    length_penalty: float
    threads: int
    device: str


@dataclass(frozen=True)
class Row:
    """One engine in the table. Speeds are medians over the rounds."""

    engine: str
    tgt_tokens_per_second: float  # ends of sentences included
    slowest_and_fastest: tuple[float, float]
    sentences_per_second: float
    tokens_per_sentence: float
    bleu: float
    n_equal: int | None  # lines translated as by EXACT
    ratio: float | None  # of sentences per second to YARDSTICK, median over rounds
    latency_p50: float | None  # seconds for one sentence alone
    latency_p95: float | None


# --- The engines, each in a process of its own ------------------------------------------------------------------------

# From batches of source ids, each sentence with its EOS, to target ids without BOS and EOS.
Translate = Callable[[list[list[Ids]]], list[list[Ids]]]


def load_mt(precision: str, setting: Setting) -> Translate:
    from mt.config import DecodeConfig
    from mt.decode.search import SearchRequest
    from mt.decode.translator import Translator

    translator = Translator.load(setting.model, setting.device, precision, n_processes=setting.threads)
    banned = sorted(translator.tokenizer.line_breaking_ids)
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

    from mt.decode.parallel import side_by_side
    from mt.text.tokenizer import BOS_ID, PAD_ID, UNK_ID

    kind, _, index = setting.device.partition(":")
    quantization, _, manner = quantization.partition(" ")
    n_parallel = setting.threads if manner else 1
    translator = ctranslate2.Translator(
        str(Path(setting.exports) / quantization),
        device=kind,
        device_index=int(index or 0),
        inter_threads=n_parallel,
        intra_threads=setting.threads // n_parallel,
    )
    tokenizer = tokenizer_of(setting.model)
    pieces = tokenizer.pieces(range(tokenizer.vocab_size))
    ids = {piece: i for i, piece in enumerate(pieces)}
    never = [[pieces[i]] for i in (PAD_ID, UNK_ID, BOS_ID, *sorted(tokenizer.line_breaking_ids))]

    def translate_batch(batch: list[Ids]) -> list[Ids]:
        found = translator.translate_batch(
            [[pieces[i] for i in sentence] for sentence in batch],
            beam_size=setting.beam_size,
            length_penalty=setting.length_penalty,
            max_decoding_length=longest(batch),
            max_input_length=0,
            suppress_sequences=never,
        )
        return [[ids[piece] for piece in result.hypotheses[0]] for result in found]

    return lambda batches: list(side_by_side(translate_batch, batches, n_parallel))


def load_transformers(precision: str, setting: Setting) -> Translate:
    """MarianMT, which is the paper's model but for its table of positions, with our weights."""
    import torch

    from mt.text.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    model = marian(Path(setting.model)).to(setting.device, dtype).eval()
    never = [PAD_ID, UNK_ID, BOS_ID, *sorted(tokenizer_of(setting.model).line_breaking_ids)]

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
    """Tokens of a translation at most: one limit for a batch, for two of the three know no other."""
    return max(map(len, batch)) + 50


def tokenizer_of(model: str) -> Any:
    return open_folder(Path(model)).load_tokenizer()


def open_folder(model: Path) -> Any:
    from mt.run_folder import open_model

    return open_model(model)


def marian(model_path: Path) -> Any:
    """A `MarianMTModel` with the weights of a post-norm model of ours."""
    import torch
    import transformers

    from mt.model.positions import sinusoidal_positions
    from mt.text.tokenizer import BOS_ID, EOS_ID, PAD_ID

    transformers.logging.set_verbosity_error()
    folder = open_folder(model_path)
    config, n_positions = folder.config.model, max(1_024, folder.config.data.max_tokens + 50)
    sides = {
        "encoder": (config.n_encoder_layers, {"self_attn": "self_attention"}),
        "decoder": (config.n_decoder_layers, {"self_attn": "self_attention", "encoder_attn": "cross_attention"}),
    }
    model = transformers.MarianMTModel(
        transformers.MarianConfig(
            vocab_size=folder.manifest["vocab_size"],
            d_model=config.d_model,
            encoder_layers=config.n_encoder_layers,
            decoder_layers=config.n_decoder_layers,
            encoder_attention_heads=config.n_heads,
            decoder_attention_heads=config.n_heads,
            encoder_ffn_dim=config.d_ff,
            decoder_ffn_dim=config.d_ff,
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
    theirs: dict[str, Any] = {}

    def put(name: str, tensors: dict[str, Any]) -> None:
        theirs.update({f"model.{name}.{kind}": tensor for kind, tensor in tensors.items()})

    def part(name: str, rows: slice = slice(None)) -> dict[str, Any]:
        return {kind: ours[f"{name}.{kind}"][rows] for kind in ("weight", "bias")}

    def thirds(name: str, which: Sequence[int]) -> list[dict[str, Any]]:
        return [part(name, slice(i * config.d_model, (i + 1) * config.d_model)) for i in which]

    norms = {"self_attn": "self_residual", "encoder_attn": "cross_residual"}
    for side, (n_layers, attentions) in sides.items():
        put(f"{side}.embed_positions", {"weight": sinusoidal_positions(n_positions, config.d_model)})
        for i in range(n_layers):
            to, source = f"{side}.layers.{i}", f"{side}.{i}"
            for theirs_name, our_name in attentions.items():
                attention = f"{source}.{our_name}"
                if our_name == "self_attention":
                    projections = thirds(f"{attention}.qkv", (0, 1, 2))
                else:
                    projections = [part(f"{attention}.q"), *thirds(f"{attention}.kv", (0, 1))]
                for projection, tensors in zip("qkv", projections, strict=True):
                    put(f"{to}.{theirs_name}.{projection}_proj", tensors)
                put(f"{to}.{theirs_name}.out_proj", part(f"{attention}.out"))
                put(f"{to}.{theirs_name}_layer_norm", part(f"{source}.{norms[theirs_name]}.norm"))
            put(f"{to}.fc1", part(f"{source}.feed_forward.inner"))
            put(f"{to}.fc2", part(f"{source}.feed_forward.outer"))
            put(f"{to}.final_layer_norm", part(f"{source}.feed_forward_residual.norm"))
    embedding = ours["embedding.weight"][: folder.manifest["vocab_size"]]
    put("shared", {"weight": embedding})
    missing, unexpected = model.load_state_dict(theirs, strict=False)
    tied = {"model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"}
    assert not unexpected, unexpected
    assert set(missing) <= {*tied, "final_logits_bias"}, missing
    assert torch.equal(model.lm_head.weight, embedding), "the output layer is not tied"
    return model


def serve(engine: str, setting: Setting) -> None:
    """Load an engine, then answer each line of standard input, a request, with a line of standard output."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not look like an answer
    name, _, kind = engine.partition(" ")
    import torch

    torch.set_num_threads(setting.threads)
    translate = LOADERS[name](kind, setting)
    for line in sys.stdin:
        request = json.loads(line)
        started_at = time.perf_counter()
        if request["what"] == "text":
            found = translate(request["batches"])
            answer = {"seconds": time.perf_counter() - started_at, "found": found}
        else:
            answer = {"seconds": [seconds_for(translate, sentence) for sentence in request["sentences"]]}
        print(json.dumps(answer), file=answers, flush=True)


def seconds_for(translate: Translate, sentence: Ids) -> float:
    started_at = time.perf_counter()
    translate([[sentence]])
    return time.perf_counter() - started_at


class Engine:
    """The other end of `serve`."""

    def __init__(self, name: str, setting: Setting) -> None:
        self.name = name
        command = [sys.executable, str(Path(__file__).resolve()), "--serve", name, json.dumps(asdict(setting))]
        threads = {"OMP_NUM_THREADS": str(setting.threads)}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | threads
        )

    def ask(self, what: str, **content: Any) -> dict[str, Any]:
        """Send a request, wait for its answer."""
        requests, answers = self._pipes
        try:
            print(json.dumps({"what": what, **content}), file=requests, flush=True)
            line = answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise SystemExit(f"error: {self.name}: ended with status {self._process.wait()}, see above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    @property
    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    def end(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        self._process.wait()


# --- The measurement --------------------------------------------------------------------------------------------------


def why_not(engine: str, model: Path) -> str | None:
    """Why an engine cannot take part, in one line."""
    name = engine.partition(" ")[0]
    remedy = {"ctranslate2": "'mt-train[ctranslate2]'", "transformers": "transformers"}.get(name)
    if remedy is not None and importlib.util.find_spec(name) is None:
        return f"{name} is not installed: pip install {remedy}"
    if name == "transformers":
        from mt.config import ModelConfig

        ours, default = open_folder(model).config.model.shape, ModelConfig().shape
        sizes = {"d_model", "n_heads", "n_kv_heads", "d_ff", "n_encoder_layers", "n_decoder_layers"}
        keys = [key for key in ours if key.removeprefix("model.") not in sizes and ours[key] != default[key]]
        if differing := [f"{key}: {ours[key]}" for key in keys]:
            return f"its MarianMT does not have {', '.join(differing)}"
    return None


def export(model: Path, quantization: str, folder: Path) -> None:
    """In a process of its own, so that no threads of torch stay behind in this one."""
    command = [sys.executable, "-m", "mt", "export", "--to", "ctranslate2", "--quantization", quantization]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [*command, "--model", str(model), "--output", str(folder / quantization)],
        stdout=sys.stderr,
        env=environment,
    )
    if done.returncode:
        raise SystemExit(done.returncode)


def measure(
    engines: Sequence[Engine], batches: list[list[Ids]], alone: list[Ids], n_rounds: int
) -> dict[str, dict[str, Any]]:
    """Seconds of each engine in each round, its translations, and seconds for single sentences."""
    measured: dict[str, dict[str, Any]] = {engine.name: {"seconds": []} for engine in engines}
    for engine in engines:
        engine.ask("text", batches=batches[:: max(1, len(batches) // 4)])  # warm-up, with long and short ones
    for number in range(1, n_rounds + 1):
        for engine in engines:
            answer = engine.ask("text", batches=batches)
            measured[engine.name]["seconds"].append(answer["seconds"])
            measured[engine.name]["found"] = answer["found"]
            say(f"round {number}: {engine.name}: {answer['seconds']:.2f} s")
    for engine in engines if alone else ():
        answer = engine.ask("alone", sentences=[*alone[:LATENCY_WARM_UP], *alone])
        measured[engine.name]["latencies"] = answer["seconds"][LATENCY_WARM_UP:]
    return measured


def rows_of(measured: dict[str, dict[str, Any]], order: list[int], tokenizer: Any, references: list[str]) -> list[Row]:
    """The table. Batches are lists of the lines in `order`."""
    from mt.evaluate.scores import corpus_bleu

    translations = {}
    for name, one in measured.items():
        found = [ids for batch in one["found"] for ids in batch]
        translations[name] = [ids for _, ids in sorted(zip(order, found, strict=True))]
    rows = []
    for name, one in measured.items():
        n_tokens = sum(len(ids) + 1 for ids in translations[name])
        speeds = [n_tokens / seconds for seconds in one["seconds"]]
        latencies = sorted(one.get("latencies", []))
        exact, yardstick = translations.get(EXACT), measured.get(YARDSTICK)
        rows.append(
            Row(
                engine=name,
                tgt_tokens_per_second=statistics.median(speeds),
                slowest_and_fastest=(min(speeds), max(speeds)),
                sentences_per_second=len(order) / statistics.median(one["seconds"]),
                tokens_per_sentence=n_tokens / len(order),
                bleu=corpus_bleu(tokenizer.decode_batch(translations[name]), references),
                n_equal=exact and sum(map(list.__eq__, translations[name], exact)),
                ratio=yardstick
                and statistics.median(
                    theirs / seconds for theirs, seconds in zip(yardstick["seconds"], one["seconds"], strict=True)
                ),
                latency_p50=latencies[len(latencies) // 2] if latencies else None,
                latency_p95=latencies[int(0.95 * len(latencies))] if latencies else None,
            )
        )
    return rows


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = [
        f"| engine | tok/s (slowest to fastest round) | sentences/s | × {YARDSTICK} | tokens a sentence | BLEU | "
        f"lines as {EXACT} | one sentence alone, p50 / p95 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row.slowest_and_fastest
        cells = [
            row.engine,
            f"{row.tgt_tokens_per_second:,.0f} ({low:,.0f} to {high:,.0f})",
            f"{row.sentences_per_second:,.1f}",
            "" if row.ratio is None else f"{row.ratio:.2f}",
            f"{row.tokens_per_sentence:.1f}",
            f"{row.bleu:.2f}",
            "" if row.n_equal is None else f"{row.n_equal:,}",
            "" if row.latency_p50 is None else f"{1000 * row.latency_p50:.0f} / {1000 * (row.latency_p95 or 0):.0f} ms",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# --- The command ------------------------------------------------------------------------------------------------------


def arguments_of(command: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--model", type=Path, required=True, metavar="DIR", help="a run, a checkpoint or a model folder"
    )
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help="text, one segment a line")
    parser.add_argument("--reference", type=Path, required=True, metavar="FILE", help="its translation, for BLEU")
    parser.add_argument("--batch-sentences", type=int, default=32, metavar="N", help="sentences in a batch")
    parser.add_argument("--beam-size", type=int, default=4, metavar="N")
    parser.add_argument("--length-penalty", type=float, default=0.0, metavar="A", help="log-probability over n^A")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="of each engine")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="through the whole text")
    parser.add_argument("--latency-lines", type=int, default=100, metavar="N", help="translated one by one; 0: none")
    parser.add_argument("--engine", action="append", metavar="E", help=f"repeatable; by default {', '.join(ENGINES)}")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    arguments = parser.parse_args(command)
    known = {*ENGINES, *ENGINES_ON_CUDA}
    arguments.engine = arguments.engine or list(ENGINES if arguments.device == "cpu" else ENGINES_ON_CUDA)
    if unknown := [name for name in arguments.engine if name not in known]:
        parser.error(f"--engine {unknown[0]!r}: there are {', '.join(sorted(known))}")
    for name in ("batch_sentences", "beam_size", "threads", "rounds"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(arguments, name)}")
    return arguments


def main(command: Sequence[str] | None = None) -> None:
    arguments = arguments_of(command)
    from mt.config import SourceConfig
    from mt.decode.search import length_sorted_batches
    from mt.system.device import hardware
    from mt.system.provenance import source_commit, versions
    from mt.text.normalise import normalise
    from mt.text.sources import read_pairs
    from mt.text.tokenizer import EOS_ID

    source = SourceConfig(src=str(arguments.input), tgt=str(arguments.reference))
    pairs = [pair for pair in read_pairs(source, "", "", "") if normalise(pair.src)]
    folder = open_folder(arguments.model)
    tokenizer, room = folder.load_tokenizer(), folder.config.data.max_tokens - 1
    sentences = [[*ids[:room], EOS_ID] for ids in tokenizer.encode_batch([normalise(pair.src) for pair in pairs])]
    lengths = [len(ids) for ids in sentences]
    groups = length_sorted_batches(lengths, sys.maxsize, 1, arguments.batch_sentences)
    absent = {name: reason for name in arguments.engine if (reason := why_not(name, arguments.model))}
    names = [name for name in arguments.engine if name not in absent]
    with tempfile.TemporaryDirectory() as exports:
        for name in names:
            if name.startswith("ctranslate2 ") and not (Path(exports) / name.split()[1]).exists():
                export(arguments.model, name.split()[1], Path(exports))
        search = (arguments.beam_size, arguments.length_penalty)
        setting = Setting(str(arguments.model), exports, *search, arguments.threads, arguments.device)
        engines = [Engine(name, setting) for name in names]
        try:
            batches = [[sentences[i] for i in group] for group in groups]
            measured = measure(engines, batches, sentences[: arguments.latency_lines], arguments.rounds)
        finally:
            for engine in engines:
                engine.end()
    rows = rows_of(measured, [i for group in groups for i in group], tokenizer, [pair.tgt for pair in pairs])
    import torch

    basis = {
        "model": str(arguments.model),
        "text": source.description,
        "n_lines": len(pairs),
        **{name: getattr(arguments, name) for name in ("batch_sentences", "beam_size", "length_penalty", "threads")},
        "rounds": arguments.rounds,
        "absent": absent,
        "hardware": hardware(torch.device(arguments.device)),
        "versions": versions() | installed_versions("ctranslate2", "transformers"),
        "commit": source_commit(),
    }
    if arguments.json:
        seconds = {name: one["seconds"] for name, one in measured.items()}
        print(json.dumps({**basis, "engines": [asdict(row) for row in rows], "seconds": seconds}))
        return
    print(table(rows))
    print(
        f"\n{len(pairs):,} lines of {source.description}; batches of {arguments.batch_sentences}, beam "
        f"{arguments.beam_size}, length penalty {arguments.length_penalty:g}, {arguments.threads} threads, "
        f"{arguments.rounds} rounds; {basis['hardware']['cpu']}; "
        + ", ".join(f"{name} {version}" for name, version in basis["versions"].items())
    )
    for name, reason in absent.items():
        print(f"\nWithout {name}: {reason}.")


def refuse(problem: str) -> int:
    print(f"error: {problem}", file=sys.stderr)
    return 2


def installed_versions(*names: str) -> dict[str, str]:
    from importlib import metadata

    return {name: metadata.version(name) for name in names if importlib.util.find_spec(name) is not None}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], Setting(**json.loads(sys.argv[3])))
    else:
        from mt.errors import MTError

        try:
            main()
        except MTError as error:
            sys.exit(refuse(str(error)))
