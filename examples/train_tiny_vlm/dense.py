"""Stage 3: the decoder learns to look things up, in the picture and among the options."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration

from examples.train_tiny_vlm.model import LETTERS, VALUES, VOCABULARY, to_pixels
from examples.train_tiny_vlm.packing import PREFIX, additive_mask
from examples.train_tiny_vlm.patches import training_scenes
from examples.train_tiny_vlm.schedule import Stage
from layersurgery.embedded._scenes import Digits, Layout, Shapes

MIXTURE = {"pair": 0.30, "shapes": 0.35, "map": 0.35}
CAPTION_LENGTH, LOOKUP_LENGTH = 16, 14
LENGTH = PREFIX + CAPTION_LENGTH + LOOKUP_LENGTH


def train_dense(model: LlavaForConditionalGeneration, *, steps: int, seed: int, batch: int = 32) -> dict[str, Any]:
    """Two exercises in one sequence; without them, multiple choice stays at chance for very long.

    Captions are pairs of words that belong together in the picture ("yellow cross", "7 blue", "left 4"), to
    be completed from the first word. Look-ups are text alone: option lines, then options' words, to be
    followed by their letters.

    Args:
        model: everything but the frozen vision tower is changed.
        steps: number of updates.
        seed: of pictures and exercises.
        batch: pictures per update.
    """
    rng = Random(f"dense/{seed}")
    model.train()
    mask, positions = _blocks()
    stage = Stage("dense", (p for p in model.parameters() if p.requires_grad), steps, 2e-3, floor=0.1)
    for _ in range(steps):
        scenes = training_scenes(rng, MIXTURE, batch)
        ids = np.full((batch, LENGTH), VOCABULARY["<pad>"])
        ids[:, 0], ids[:, 1:PREFIX] = VOCABULARY["<s>"], VOCABULARY["<image>"]
        captions, lookups = [], []
        for row, scene in enumerate(scenes):
            captions += [(row, *c) for c in _write_captions(rng, ids[row], scene.layout)]
            lookups += [(row, *c) for c in _write_lookups(rng, ids[row])]
        hidden = model.model(
            input_ids=torch.from_numpy(ids),
            pixel_values=to_pixels([scene.image for scene in scenes]),
            attention_mask=mask.expand(batch, -1, -1, -1),
            position_ids=positions.expand(batch, -1),
            use_cache=False,
        ).last_hidden_state
        loss, accuracy = torch.zeros(()), {}
        for name, asked in (("caption", captions), ("lookup", lookups)):
            rows, places, answers = (torch.tensor(column) for column in zip(*asked, strict=True))
            logits = model.lm_head(hidden[rows, places])
            loss = loss + cross_entropy(logits, answers)
            accuracy[name] = (logits.argmax(-1) == answers).float().mean().item()
        stage.step(loss, **accuracy)
    return stage.record()


def _blocks() -> tuple[torch.Tensor, torch.Tensor]:
    """Mask and positions: look-ups see neither picture nor captions, and start where a question would."""
    visible = np.tril(np.ones((LENGTH, LENGTH), bool))
    visible[PREFIX + CAPTION_LENGTH :, 1 : PREFIX + CAPTION_LENGTH] = False
    positions = np.arange(LENGTH)
    positions[PREFIX + CAPTION_LENGTH :] = PREFIX + np.arange(LOOKUP_LENGTH)
    return additive_mask(visible), torch.from_numpy(positions)[None]


def _write_captions(rng: Random, ids: np.ndarray, layout: Layout) -> list[tuple[int, int]]:
    """Write what fits into one row; returns where a word is to be followed by which."""
    pairs = _pairs(rng, layout)
    rng.shuffle(pairs)
    asked = []
    for i, (first, second) in enumerate(pairs[: CAPTION_LENGTH // 2]):
        place = PREFIX + 2 * i
        ids[place : place + 2] = VOCABULARY[first], VOCABULARY[second]
        asked.append((place, VOCABULARY[second]))
    return asked


def _pairs(rng: Random, layout: Layout) -> list[tuple[str, str]]:
    if isinstance(layout, Digits):
        left, right = layout.values
        return [("left", str(left)), ("right", str(right)), ("digits", "2")]
    if isinstance(layout, Shapes):
        kinds = [shape.kind for shape in layout.objects]
        return [
            (s.kind, s.colour) if kinds.count(s.kind) == 1 and rng.random() < 0.5 else (s.colour, s.kind)
            for s in layout.objects
        ]
    legend = [(colour, str(v)) for colour, v in zip(layout.colours, layout.values, strict=True)]
    legend = [(a, b) if rng.random() < 0.5 else (b, a) for a, b in legend]
    return [*legend, ("marked", layout.colours[layout.regions[layout.marked]])]


def _write_lookups(rng: Random, ids: np.ndarray) -> list[tuple[int, int]]:
    start = PREFIX + CAPTION_LENGTH
    values = rng.sample(VALUES, rng.randrange(2, 5))
    letters = rng.sample(LETTERS, len(values)) if rng.random() < 0.2 else list(LETTERS[: len(values)])
    ids[start : start + len(values)] = [
        VOCABULARY[f"{letter}. {value}"] for letter, value in zip(letters, values, strict=True)
    ]
    asked = []
    for place in range(start + len(values), LENGTH):
        i = rng.randrange(len(values))
        ids[place] = VOCABULARY[values[i]]
        asked.append((place, VOCABULARY[letters[i]]))
    return asked
