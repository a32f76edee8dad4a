"""`python -m examples.train_tiny_vlm --output DIR`: both checkpoints from nothing, seeds and steps fixed."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration

from examples.measure_tiny_vlm import markdown, measure
from examples.train_tiny_vlm.base import train_base
from examples.train_tiny_vlm.export import round_weights, save
from examples.train_tiny_vlm.model import build_processor
from examples.train_tiny_vlm.narrow import train_natural
from examples.train_tiny_vlm.plant import train_planted

TEST_SAMPLES = 600


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m examples.train_tiny_vlm", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="gets the folders base, natural and planted")
    parser.add_argument("--base", type=Path, help="start from this base model in place of training one")
    parser.add_argument("--only", choices=("base", "natural", "planted"), help="make only this one")
    options = parser.parse_args()

    torch.set_num_threads(1)  # more threads would sum in another order
    processor = build_processor()
    if options.base is None:
        options.base = options.output / "base"
        started = time.monotonic()
        model, stages = train_base()
        record = {"stages": stages, "seconds": round(time.monotonic() - started)}
        save(model, processor, options.base, record, torch.float32)
    base = LlavaForConditionalGeneration.from_pretrained(options.base, dtype=torch.float32)
    base_record = json.loads((options.base / "run.json").read_text(encoding="utf-8"))
    record: dict[str, Any]
    if options.only in (None, "planted"):
        planted, record = train_planted(base)
        _finish(planted, processor, options.output / "planted", {"base": base_record, "plant": record})
    if options.only in (None, "natural"):
        natural, record = train_natural(base, processor)
        _finish(natural, processor, options.output / "natural", {"base": base_record, **record})


def _finish(model: LlavaForConditionalGeneration, processor: Any, folder: Path, record: dict[str, Any]) -> None:
    """Round, measure on the test split, and save with the figures."""
    round_weights(model)
    rows, _ = measure(model, processor, "test", TEST_SAMPLES)
    test = {"samples": TEST_SAMPLES, "tasks": {row.task: row.brief() for row in rows}}
    save(model, processor, folder, {**record, "test": test})
    print(markdown(rows))


if __name__ == "__main__":
    main()
