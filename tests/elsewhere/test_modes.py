"""Ways of running a model: checkpointed training, inference mode, autocast, copies, ties, no weights at all."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import layersurgery as ls
from layersurgery import testing
from layersurgery.errors import SurgeryError
from tests import models
from tests.elsewhere.tiny import SILENCE, WEIGHT_FORMS, apply, assert_same, llama, logits, replaced, zeroed


def gradients(model):
    model.zero_grad()
    model.train()
    ids = models.tokens()
    model(input_ids=ids, labels=ids).loss.backward()
    model.eval()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True], ids=["saved", "reentrant"])
def test_gradient_checkpointing(reentrant):
    model = llama()
    site = ls.select(model)[1]
    wanted = gradients(zeroed(model, site))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    before = testing.Snapshot.of(model)
    for do in (ls.Zero(), SILENCE):
        with ls.Surgery(at=site, do=do)(model):
            found = gradients(model)
        for name, gradient in wanted.items():
            inside = name.startswith(site.path) or name == "model.layers.1.input_layernorm.weight"
            if do == SILENCE and inside:
                assert found[name] is None  # nothing of it reaches the output
            else:
                assert torch.equal(found[name], gradient), name
        model.zero_grad()
        testing.assert_restored(model, before)


def test_inference_mode():
    model = llama()
    site = ls.select(model)[1]
    before, wanted = logits(model), logits(zeroed(model, site))
    with testing.restored(model):
        with torch.inference_mode():
            assert torch.equal(apply(model, site, ls.Zero()), wanted)
            handle = ls.Surgery(at=site, do=ls.Zero()).attach(model)
        assert torch.equal(logits(model), wanted)  # outside it again
        model(input_ids=models.tokens()).logits.sum().backward()
        handle.remove()
        model.zero_grad()
    assert torch.equal(logits(model), before)
    with torch.inference_mode():
        born_inside = llama()
        with testing.restored(born_inside):
            assert torch.equal(apply(born_inside, site, ls.Zero()), wanted)


@pytest.mark.parametrize("do", [ls.Zero(), ls.Scale(0.5), *WEIGHT_FORMS], ids=str)
def test_one_region_of_autocast_around_it_all(do):
    """Autocast keeps the weights that it has cast until its region ends; those of a surgery are others."""
    model = llama()
    site = ls.select(model)[1]
    by_hand = replaced(model, site, do)

    def run(model):  # with gradients: only then are weights kept
        return model(input_ids=models.tokens()).logits.detach()

    with torch.autocast("cpu", torch.bfloat16):
        wanted = run(by_hand)
    with testing.restored(model), torch.autocast("cpu", torch.bfloat16):
        before = run(model)
        for _ in range(2):
            assert torch.equal(apply(model, site, do, run), wanted)
            assert torch.equal(run(model), before)
    assert not torch.equal(before, wanted)
    assert before.dtype == torch.bfloat16


def test_data_parallel():
    model = llama()
    wrapped = nn.DataParallel(model)  # one device: no copies are made
    site, inside = ls.select(wrapped)[1], ls.select(model)[1]
    wanted = logits(zeroed(model, inside))
    with testing.restored(wrapped):
        assert torch.equal(apply(wrapped, site, ls.Zero()), wanted)
        assert torch.equal(apply(wrapped, site, SILENCE), wanted)
    wrapped.device_ids = [0, 1]  # as with two devices
    for do in (ls.Zero(), SILENCE):
        with testing.restored(wrapped), pytest.raises(SurgeryError, match=r"to other devices.*`model\.module`"):
            ls.Surgery(at=site, do=do).attach(wrapped)


@pytest.mark.parametrize("do", [ls.Zero(), SILENCE, ls.Scale(0.5), *WEIGHT_FORMS], ids=str)
def test_a_model_without_weights_is_refused(do):
    with torch.device("meta"):
        empty = models.llama()
    site = ls.select(empty)[1]
    assert "meta" in site.hazards
    with testing.restored(empty), pytest.raises(SurgeryError, match=r"on the meta device.*Load the model"):
        ls.Surgery(at=site, do=do).attach(empty)


@pytest.mark.parametrize("do", [ls.Zero(), ls.Scale(0.5), *WEIGHT_FORMS], ids=str)
def test_tied_weights(do):
    """The head keeps its weights when the embedding's are changed, unless asked otherwise."""
    model = llama(tie_word_embeddings=True)
    site = ls.select(model, pattern="model.embed_tokens")[0]
    assert "tied" in site.hazards
    both = replaced(model, site, do)  # a copy is tied, too: changing one in place changes the other
    assert both.lm_head.weight is both.model.embed_tokens.weight
    one = replaced(model, site, do)
    one.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    with testing.restored(model):
        assert_same(apply(model, site, do), logits(one), do)
        with ls.Surgery(at=site, do=do, tied="everywhere")(model):
            assert_same(logits(model), logits(both), do)
    assert model.lm_head.weight is model.model.embed_tokens.weight
