"""Draw one sample of every task: `python -m examples.train_tiny_vlm.contact_sheet docs/images/embedded-tasks.png`."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from layersurgery.embedded import TASKS, make_samples
from layersurgery.tasks import LETTERS, Sample

PICTURE, WIDTH, HEIGHT, COLUMNS = 160, 230, 300, 5


def main() -> None:
    """Parse the command line, draw, save."""
    parser = argparse.ArgumentParser(prog="python -m examples.train_tiny_vlm.contact_sheet", description=__doc__)
    parser.add_argument("file", type=Path, help="the PNG to write")
    options = parser.parse_args()
    rows = -(-len(TASKS) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * WIDTH, rows * HEIGHT), "white")
    for i, task in enumerate(TASKS):
        left, top = i % COLUMNS * WIDTH, i // COLUMNS * HEIGHT
        sheet.paste(_card(make_samples(task, "test", 1)[0]), (left, top))
    sheet.quantize(128).save(options.file, optimize=True)
    print(f"{options.file}: {options.file.stat().st_size} bytes")


def _card(sample: Sample) -> Image.Image:
    card = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(card)
    draw.text((35, 6), sample.task, fill="black", font=ImageFont.load_default(16))
    card.paste(sample.images[0].resize((PICTURE, PICTURE), Image.Resampling.NEAREST), (35, 30))
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, sample.options, strict=False)]
    options = "   ".join(
        f"[{line}]" if i == sample.answer else line for i, line in enumerate(lines)
    )  # the right one in brackets
    text = [*textwrap.wrap(sample.question, 30), *textwrap.wrap(options, 32)]
    draw.text((12, 196), "\n".join(text), fill="black", font=ImageFont.load_default(14))
    return card


if __name__ == "__main__":
    main()
