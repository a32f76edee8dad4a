"""Stage 1: the vision tower learns to see, by naming what is in every cell."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration

from examples.train_tiny_vlm.model import patch_features, to_pixels
from examples.train_tiny_vlm.patches import Patch, patches, training_scenes
from examples.train_tiny_vlm.schedule import Stage
from layersurgery.embedded._scenes import COLOURS, SHAPES

MIXTURE = {"pair": 0.40, "digits": 0.10, "shapes": 0.25, "map": 0.25}
ANSWERS: dict[str, list[Any]] = {
    "content": ["empty", "digit", "shape", "region", "legend"],
    "colour": list(COLOURS),
    "shape": list(SHAPES),
    "digit": list(range(10)),
    "flag": [False, True],
}
NOTHING = -100  # cross_entropy passes over it


def train_vision(model: LlavaForConditionalGeneration, *, steps: int, seed: int, batch: int = 64) -> dict[str, Any]:
    """Train the vision tower under five small heads that are then thrown away.

    Args:
        model: its vision tower is changed.
        steps: number of updates.
        seed: of heads and pictures.
        batch: pictures per update.

    Returns:
        the stage's record, with the last accuracies of the five heads.
    """
    rng = Random(f"vision/{seed}")
    torch.manual_seed(seed)
    tower = model.model.vision_tower
    width = tower.config.hidden_size
    heads = torch.nn.ModuleDict({name: torch.nn.Linear(width, len(a)) for name, a in ANSWERS.items()})
    parameters = [*tower.parameters(), *heads.parameters()]
    stage = Stage("vision", parameters, steps, 2e-3, floor=0.03, decay=0.01, betas=(0.9, 0.999))
    for _ in range(steps):
        scenes = training_scenes(rng, MIXTURE, batch)
        cells = [cell for scene in scenes for cell in patches(scene.layout)]
        features = patch_features(model, to_pixels([scene.image for scene in scenes]))
        loss, accuracy = torch.zeros(()), {}
        for name, head in heads.items():
            right = torch.tensor([_label(cell, name) for cell in cells])
            guess = head(features)
            loss = loss + cross_entropy(guess, right, ignore_index=NOTHING)
            asked = right != NOTHING
            accuracy[name] = (guess.argmax(-1) == right)[asked].float().mean().item()
        stage.step(loss, **accuracy)
    return stage.record()


def _label(cell: Patch, name: str) -> int:
    value = getattr(cell, name)
    return NOTHING if value is None else ANSWERS[name].index(value)
