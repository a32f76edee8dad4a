"""The natural checkpoint: short fine-tuning on a few weak tasks, and nothing else.

Which of the decoder's layers come to interfere with other tasks is then an accident of training; nothing tells
the model to make one. Several variants are trained, and one is kept by a rule, on samples of the probe split.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from transformers import LlavaForConditionalGeneration

from examples.measure_tiny_vlm import ALPHA, Row, answers, summarise
from examples.train_tiny_vlm.export import round_weights
from examples.train_tiny_vlm.instruct import train_instruct
from layersurgery.embedded import TASKS, make_samples

CHOICE_SAMPLES = 300
CHOICE_SEED = 1000


@dataclass(frozen=True)
class Variant:
    """One narrow fine-tuning: the tasks it trains, for how long, and with which data."""

    tasks: tuple[str, ...]
    steps: int
    seed: int


VARIANTS = tuple(
    Variant(tasks, 136, seed)
    for tasks in (
        ("digit_even", "map_value", "shape_where"),
        ("digit_even", "map_count", "shape_where"),
        ("digit_sum", "map_count", "map_value"),
        ("digit_larger", "digit_even", "shape_size"),
    )
    for seed in (0, 1, 2)
)


def train_natural(base: LlavaForConditionalGeneration, processor: Any) -> tuple[Any, dict[str, Any]]:
    """Train all variants and keep the clearest.

    Args:
        base: the base model; not changed.
        processor: its processor.

    Returns:
        the chosen model, and the record: its training, and what every variant gave on the probe samples.
    """
    samples = {task: make_samples(task, "probe", CHOICE_SAMPLES, CHOICE_SEED) for task in TASKS}
    best: tuple[tuple[float, float], Any, dict[str, Any]] | None = None
    tried = []
    for variant in VARIANTS:
        model = copy.deepcopy(base)
        stage = train_variant(model, variant)
        round_weights(model)
        rows = summarise(samples, {task: answers(model, processor, some) for task, some in samples.items()})
        clarity = _clarity(rows)
        tried.append({**asdict(variant), "gains": clarity[0], "points": clarity[1], "rows": _brief(rows)})
        print(tried[-1], flush=True)
        if best is None or clarity > best[0]:
            best = (clarity, model, {"variant": asdict(variant), **stage})
    assert best is not None
    return best[1], {"narrow": best[2], "variants_tried": tried}


def train_variant(model: LlavaForConditionalGeneration, variant: Variant) -> dict[str, Any]:
    """One narrow fine-tuning, in place; the vision tower stays frozen."""
    model.model.vision_tower.requires_grad_(False)
    return train_instruct(
        model,
        name="narrow",
        weights=dict.fromkeys(variant.tasks, 1.0),
        steps=variant.steps,
        seed=variant.seed,
        rate=1e-3,
        batch=24,
        warmup=30,
    )


def _clarity(rows: list[Row]) -> tuple[float, float]:
    """How many tasks have a significant gain, and the largest of those gains in points."""
    gains = [float(row.change[row.p < ALPHA].max(initial=0.0)) for row in rows if row.base > row.chance]
    return sum(gain > 0 for gain in gains), max(gains)


def _brief(rows: list[Row]) -> dict[str, dict[str, float]]:
    return {
        row.task: {
            "base": round(row.base, 1),
            "layer": int(np.argmax(row.change)),
            "change": round(float(row.change.max()), 1),
            "p": float(f"{row.p[np.argmax(row.change)]:.2g}"),
        }
        for row in rows
    }
