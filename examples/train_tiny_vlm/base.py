"""Stages 1 to 6 in a row: the base model, from nothing."""

from __future__ import annotations

from random import Random
from typing import Any

from transformers import LlavaForConditionalGeneration

from examples.train_tiny_vlm.alignment import MIXTURE, align
from examples.train_tiny_vlm.dense import train_dense
from examples.train_tiny_vlm.instruct import WEIGHTS, train_instruct
from examples.train_tiny_vlm.model import build_model, start_decoder, to_pixels
from examples.train_tiny_vlm.patches import training_scenes
from examples.train_tiny_vlm.vision import train_vision
from layersurgery.embedded import TASKS

SEED = 0
EQUAL = dict.fromkeys(TASKS, 1.0)
ROUNDS: tuple[dict[str, Any], ...] = (
    {"name": "instruct", "weights": WEIGHTS, "steps": 2000, "rate": 1.5e-3, "text_share": 0.15},
    # the rare tasks need more than their share
    {"name": "instruct again", "weights": EQUAL, "steps": 2500, "rate": 1.2e-3, "text_share": 0.05},
    # no layer's attention may be the only way to an answer
    {
        "name": "drop",
        "weights": EQUAL,
        "steps": 300,
        "rate": 8e-4,
        "text_share": 0.05,
        "warmup": 30,
        "drop": 0.25,
    },
)


def train_base() -> tuple[LlavaForConditionalGeneration, list[dict[str, Any]]]:
    """Train the base model.

    Returns:
        the model, and the records of its stages.
    """
    model = build_model(SEED)
    stages = [train_vision(model, steps=2000, seed=SEED)]
    scenes = training_scenes(Random(f"start/{SEED}"), MIXTURE, 256)
    start_decoder(model, to_pixels([scene.image for scene in scenes]), SEED)
    stages.append(align(model, steps=300, seed=SEED))
    stages.append(train_dense(model, steps=450, seed=SEED))
    stages.extend(train_instruct(model, seed=SEED, batch=16, shorts=2, **settings) for settings in ROUNDS)
    return model, stages
