"""Sweep, search and restoration on real processors' inputs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import layersurgery as ls
from layersurgery.testing import restored
from tests.with_torchvision.checkpoints import LAYERS
from tests.with_torchvision.questions import right_without, samples

PLANTED = 1


@pytest.fixture(scope="module")
def choices(vlm):
    return ls.ChoiceScorer(vlm[1], batch_size=8)


@pytest.fixture(scope="module")
def planted(vlm, choices):
    """Questions that the model gets right without its second attention."""
    model = vlm[0]
    return right_without(ls.select(model)[PLANTED], model, choices, samples(36))


def test_a_sweep_is_scoring_under_each_surgery(vlm, choices):
    model, questions = vlm[0], samples(9)
    choices(model, questions[:2])  # transformers sets things up at the first forward, of each tower
    with restored(model):
        table = ls.sweep(model, choices, questions)
    np.testing.assert_allclose(table.margin[0], choices(model, questions).margin, atol=2e-4)
    for row, site in enumerate(ls.select(model)):
        with ls.Surgery(at=site, do=ls.Zero())(model):
            expected = choices(model, questions).margin
        np.testing.assert_allclose(table.margin[row + 1], expected, atol=2e-4, err_msg=site.path)
    assert len(np.unique(table.margin.round(3))) > LAYERS


def test_talo_finds_the_layer_without_which_everything_is_right(vlm, choices, planted):
    model = vlm[0]
    with restored(model):
        found = ls.talo(model, choices, planted, rule=ls.PaperRule(8), confirm=16)
    assert found.site.path == f"model.language_model.layers.{PLANTED}.self_attn"
    assert found.confirm_score == 1
    assert found.confirm_base < 1


def test_talo_finds_it_in_generated_texts_too(vlm):
    model, processor = vlm
    score = ls.GenerationScorer(processor, batch_size=8, max_new_tokens=4)
    questions = [replace(sample, options=(), answer="?", kind="open") for sample in samples(24)]
    with ls.Surgery(at=ls.select(model)[PLANTED], do=ls.Zero())(model):
        texts = score(model, questions).text
    answered = [replace(sample, answer=text) for sample, text in zip(questions, texts, strict=True)]
    planted = [sample for sample, right in zip(answered, legible(texts), strict=True) if right]
    assert len(planted) >= 16, "the model writes next to nothing: nothing is tested"
    with restored(model):
        found = ls.talo(model, score, planted, rule=ls.PaperRule(5), confirm=6)
    assert found.site.path == f"model.language_model.layers.{PLANTED}.self_attn"
    assert found.confirm_score == 1


def legible(texts):
    return [any(character.isalnum() for character in text) for text in texts]
