"""Stage 2: projector and word embeddings meet, as in LLaVA's alignment step."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import LlavaForConditionalGeneration

from examples.train_tiny_vlm.model import LETTERS, VALUES, VOCABULARY, WORDS, patch_features, to_pixels
from examples.train_tiny_vlm.patches import patches, training_scenes
from examples.train_tiny_vlm.schedule import Stage

MIXTURE = {"pair": 0.3, "digits": 0.1, "shapes": 0.3, "map": 0.3}
IMAGE_NORM = 2.5  # of a projected cell: about twice a word's


def align(model: LlavaForConditionalGeneration, *, steps: int, seed: int, batch: int = 48) -> dict[str, Any]:
    """Teach the projector to say, for every cell, the words that describe it.

    Afterwards the token of an option line starts as the sum of its letter's and its word's embedding, and
    projected cells get the norm that the decoder expects.

    Args:
        model: projector and word embeddings are changed; the vision tower is not.
        steps: number of updates.
        seed: of the pictures.
        batch: pictures per update.
    """
    rng = Random(f"alignment/{seed}")
    projector, words = model.model.multi_modal_projector, model.lm_head.weight  # tied to the embeddings
    stage = Stage("alignment", [*projector.parameters(), *model.lm_head.parameters()], steps, 3e-3, warmup=30)
    features = torch.empty(0)
    for _ in range(steps):
        scenes = training_scenes(rng, MIXTURE, batch)
        cells = [cell for scene in scenes for cell in patches(scene.layout)]
        said = torch.zeros(len(cells), len(WORDS))
        for row, cell in enumerate(cells):
            said[row, [VOCABULARY[word] for word in cell.words]] = 1
        with torch.no_grad():
            features = patch_features(model, to_pixels([scene.image for scene in scenes]))
        logits = projector(features) @ words[: len(WORDS)].T * 3 - 3  # most words are absent from most cells
        stage.step(binary_cross_entropy_with_logits(logits, said) * 20)
    with torch.no_grad():
        for letter in LETTERS:
            for value in VALUES:
                option = words[VOCABULARY[value]] + words[VOCABULARY[letter]]
                words[VOCABULARY[f"{letter}. {value}"]] = option
        scale = IMAGE_NORM / projector(features).norm(dim=1).mean()
        projector.linear_2.weight.mul_(scale)
        projector.linear_2.bias.mul_(scale)
    return stage.record()
