"""Write docs/images from a finished run: scripts/images.py RUN

RUN is a run folder with its report, for example of `mt train --config demo.yaml --set train.validate_every=100`. Takes
screenshots with chromium (CHROMIUM names another browser of its kind) and reduces them to 64 colours.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from PIL import Image

from mt.evaluation.runs import read_training
from mt.report.charts import Series, line_chart
from mt.report.page import macro
from mt.run_folder import RunFolder

IMAGES = Path(__file__).resolve().parent.parent / "docs/images"
MOST_BYTES = 200_000


def curves_page(run: RunFolder) -> str:
    """Return a page with the losses and the BLEU of a run, as its report draws them."""
    curves = read_training(run).curves
    train, valid = curves["train"], curves["valid"]
    losses = [
        Series("training, smoothed labels", train["step"], train["train_loss"]),
        Series("validation", valid["step"], valid["valid_loss"]),
    ]
    bleu = [Series("validation set", valid["step"], valid["valid_bleu"])]
    charts = [
        line_chart("Loss", losses, "update", "nats per target token", from_zero=True),
        line_chart("BLEU", bleu, "update", "BLEU", from_zero=True),
    ]
    style = files("mt.report").joinpath("templates/style.css").read_text("utf-8")
    body = macro("side_by_side", charts)
    return f"<meta charset=utf-8><style>{style} details {{ display: none }}</style><main>{body}</main>"


def screenshot(page: Path, image: Path, width: int, height: int) -> None:
    browser = os.environ.get("CHROMIUM", "chromium")
    size = f"--window-size={width},{height}"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=1.5"]
    with tempfile.TemporaryDirectory() as profile:
        command = [
            browser,
            *options,
            f"--user-data-dir={profile}",
            size,
            f"--screenshot={image}",
            page.resolve().as_uri(),
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    Image.open(image).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(image, optimize=True)
    if (n_bytes := image.stat().st_size) > MOST_BYTES:
        sys.exit(f"{image} has {n_bytes:,} bytes, more than {MOST_BYTES:,}: make it smaller")
    print(f"{image}: {n_bytes:,} bytes")


def main() -> None:
    run = RunFolder(Path(sys.argv[1]))
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "curves.html"
        page.write_text(curves_page(run), "utf-8")
        screenshot(page, IMAGES / "training.png", 1000, 360)
    screenshot(run.path / "report.html", IMAGES / "report.png", 1100, 1000)


if __name__ == "__main__":
    main()
