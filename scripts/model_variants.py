"""Train each variant of the model for some updates, and print a table: parameters, validation loss, BLEU, speed.

    scripts/model_variants.py --steps 300 CONFIG [--set KEY=VALUE]…

Speed is measured by `mt bench`, as a ratio to the default model measured right before or after, since machines drift:
the median of three pairs. A run that exists in --runs is not trained again, so an interrupted table can be continued.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

VARIANTS = [
    "",
    "norm=pre",
    "norm=deepnorm",
    "norm_kind=rms",
    "activation=gelu",
    "activation=silu",
    "activation=relu2",
    "activation=geglu",
    "activation=swiglu",
    "bias=false",
    "positions=learned",
    "positions=rotary",
    "positions=relative",
    "positions=alibi",
    "positions=none",
    "n_kv_heads=2",
    "n_kv_heads=1",
    "qk_norm=true",
    "tied_embeddings=decoder",
    "tied_embeddings=none",
    "ffn_sharing=wide d_ff=4096",
    "layer_dropout=0.1",
    "word_dropout=0.1",
    "init=scaled",
    "init=depth_scaled",
    "zero_init_out=true",
    "norm=pre norm_kind=rms activation=relu2 bias=false positions=rotary qk_norm=true zero_init_out=true",
]


def mt(*arguments: str) -> str:
    """Run a command of mt; what it prints."""
    done = subprocess.run([sys.executable, "-m", "mt", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"mt {' '.join(arguments)}: {done.stderr.splitlines()[-1]}")
    return done.stdout


def sets(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def trained(variant: str, options: argparse.Namespace) -> dict[str, Any]:
    """The last line of a run's metrics that has a validation."""
    run = options.runs / (variant.replace(" ", "-").replace("=", "_") or "default")
    model = [f"model.{setting}" for setting in variant.split()]
    if not (run / "report.json").exists():
        ends = [f"train.{name}={options.steps}" for name in ("max_steps", "validate_every", "checkpoint_every")]
        own = sets(*options.set, *ends, *model)
        mt("train", "--config", options.config, *own, "--run-dir", str(run))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (test_set,) = json.loads((run / "report.json").read_text())["test_sets"].values()
    bleu = next(score["score"] for score in test_set["scores"] if score["name"] == "BLEU")
    return {**next(line for line in reversed(lines) if "valid_loss" in line), "test_bleu": bleu}


def bench(variant: str, options: argparse.Namespace) -> dict[str, Any]:
    model = [f"model.{setting}" for setting in variant.split()]
    found: dict[str, Any] = json.loads(
        mt("bench", "--config", options.config, "--steps", "15", "--json", *sets(*options.set, *model))
    )
    return found


def speed(variant: str, options: argparse.Namespace) -> tuple[float, int]:
    """Target tokens a second, as a share of those of the default model, and the number of parameters."""
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
    parser.add_argument("--variants", nargs="*", default=VARIANTS, help="settings of model:, several in one argument")
    parser.add_argument("--speed", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    print(
        "| model | parameters | validation loss | BLEU | tok/s, of the default's |\n|---|---|---|---|---|", flush=True
    )
    for variant in options.variants:
        figures = trained(variant, options)
        ratio, parameters = "", ""
        if options.speed:
            share, n_parameters = speed(variant, options)
            ratio, parameters = f"{share:.2f}", f"{n_parameters / 1e6:.2f} M"
        name = f"`{variant}`" if variant else "default"
        row = (name, parameters, f"{figures['valid_loss']:.3f}", f"{figures['test_bleu']:.1f}", ratio)
        print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main()
