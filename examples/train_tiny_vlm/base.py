"""Stages 1 to 4 in a row: the base model, from nothing."""

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
ROUNDS = (
    ("instruct", WEIGHTS, 2000, 1.5e-3),
    ("instruct again", dict.fromkeys(TASKS, 1.0), 2500, 1.2e-3),  # the rare tasks need more than their share
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
    for name, weights, steps, rate in ROUNDS:
        stages.append(
            train_instruct(
                model,
                name=name,
                weights=weights,
                steps=steps,
                seed=SEED,
                rate=rate,
                batch=16,
                shorts=2,
                text_share=0.15 if weights is WEIGHTS else 0.05,
            )
        )
    return model, stages
