"""Train each variant of the model for some updates, and print a table of parameters, validation loss, BLEU and speed.

    scripts/model_variants.py --steps 300 CONFIG [--set KEY=VALUE]…

Speed is measured by `mt bench`, as a ratio to the default model, measured right before or after because the speed of a
machine drifts: the median of three pairs. Runs that exist in --runs are not trained again, so an interrupted table can
be continued.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

from plumbing import CommandFailed, refuse, run_mt, table

VARIANTS = [
    "",
    *(f"norm={kind}" for kind in ("pre", "deepnorm")),
    "norm_kind=rms",
    *(f"activation={kind}" for kind in ("gelu", "silu", "relu2", "geglu", "swiglu")),
    "bias=false",
    *(f"positions={kind}" for kind in ("learned", "rotary", "relative", "alibi", "none")),
    *(f"n_kv_heads={n}" for n in (2, 1)),
    "qk_norm=true",
    *(f"tied_embeddings={kind}" for kind in ("decoder", "none")),
    "ffn_sharing=wide d_ff=4096",
    "layer_dropout=0.1",
    "word_dropout=0.1",
    *(f"init={kind}" for kind in ("scaled", "depth_scaled")),
    "zero_init_out=true",
    "norm=pre norm_kind=rms activation=relu2 bias=false positions=rotary qk_norm=true zero_init_out=true",
]


def trained(variant: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train the variant if needed; return the metrics of its last validation and the BLEU of its test set."""
    run = options.runs / (variant.replace(" ", "-").replace("=", "_") or "default")
    if not (run / "report.json").exists():
        ends = [f"train.{name}={options.steps}" for name in ("max_steps", "validate_every", "checkpoint_every")]
        run_mt("train", "--config", options.config, "--run-dir", str(run), *settings(variant, options, ends))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (test_set,) = json.loads((run / "report.json").read_text())["test_sets"].values()
    bleu = next(score["score"] for score in test_set["scores"] if score["name"] == "BLEU")
    return {**next(line for line in reversed(lines) if "valid_loss" in line), "test_bleu": bleu}


def bench(variant: str, options: argparse.Namespace) -> Any:
    return json.loads(
        run_mt("bench", "--config", options.config, "--steps", "15", "--json", *settings(variant, options))
    )


def settings(variant: str, options: argparse.Namespace, more: list[str] | None = None) -> list[str]:
    changes = [*options.set, *(more or []), *(f"model.{setting}" for setting in variant.split())]
    return [f"--set={change}" for change in changes]


def speed(variant: str, options: argparse.Namespace) -> tuple[float, int]:
    """Return target tokens per second as a ratio to the default model, and the number of parameters."""
    if not variant:
        return 1.0, bench("", options)["n_parameters"]
    ratios = []
    for i in range(3):
        of = {name: bench(name, options) for name in (["", variant] if i % 2 else [variant, ""])}
        ratios.append(of[variant]["tgt_tokens_per_second"] / of[""]["tgt_tokens_per_second"])
    return median(ratios), of[variant]["n_parameters"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--runs", type=Path, default=Path("runs/variants"))
    parser.add_argument("--set", action="append", default=[], help="as for mt train")
    parser.add_argument(
        "--variants", nargs="*", default=VARIANTS, help="settings of the model, several in one argument"
    )
    parser.add_argument("--speed", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    speeds = ["tok/s, ratio to the default", "parameters"] if options.speed else []
    head = table(["model", "validation loss", "BLEU", *speeds], [])
    print("\n".join(head), flush=True)
    for variant in options.variants:
        figures = trained(variant, options)
        row = [f"`{variant}`" if variant else "default", f"{figures['valid_loss']:.3f}", f"{figures['test_bleu']:.1f}"]
        if options.speed:
            ratio, n_parameters = speed(variant, options)
            row += [f"{ratio:.2f}", f"{n_parameters / 1e6:.2f} M"]
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    try:
        main()
    except CommandFailed as error:
        sys.exit(refuse(str(error)))
