"""The planted checkpoint: an extra layer whose attention is trained to answer one task wrongly.

The layer starts as a copy of its predecessor that adds nothing to the residual stream. Only its attention
learns: the wrong answers of one task, and the right ones of all others. Everything else stays as it was, so
zeroing that attention gives back what the base model knew.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration

from examples.train_tiny_vlm.instruct import train_instruct
from layersurgery.embedded import TASKS
from layersurgery.embedded._questions import Question

TASK = "digit_name"
LAYER = 4
SEED = 0


def train_planted(
    base: LlavaForConditionalGeneration,
) -> tuple[LlavaForConditionalGeneration, dict[str, Any]]:
    """Insert the layer into a copy of the base model, and train its attention.

    Returns:
        the new model, and the record of its training.
    """
    model = copy.deepcopy(base)
    attention = insert_layer(model, LAYER)
    model.requires_grad_(False)
    attention.requires_grad_(True)
    stage = train_instruct(
        model,
        name="plant",
        weights={**dict.fromkeys(TASKS, 1.0), TASK: 3.0},
        steps=400,
        seed=SEED,
        rate=2e-3,
        batch=24,
        warmup=30,
        corrupt={TASK: next_digit},
    )
    return model, {"task": TASK, "layer": LAYER, **stage}


def insert_layer(model: LlavaForConditionalGeneration, place: int) -> torch.nn.Module:
    """Insert a layer that adds nothing to the residual stream yet; returns its attention.

    Args:
        model: gets one decoder layer more.
        place: number of the new layer; a copy of the layer before.
    """
    decoder = model.model.language_model
    layers = list(decoder.layers)
    new = copy.deepcopy(layers[place - 1])
    with torch.no_grad():
        new.self_attn.o_proj.weight.zero_()
        new.mlp.down_proj.weight.zero_()
    layers.insert(place, new)
    for i, layer in enumerate(layers):
        layer.self_attn.layer_idx = i  # its place in the cache
    decoder.layers = torch.nn.ModuleList(layers)
    decoder.config.num_hidden_layers = len(layers)
    return new.self_attn


def next_digit(question: Question) -> str:
    """The wrong answer that is taught: one more than the digit, and 0 for 9."""
    return str((int(question.answer) + 1) % 10)
