"""Models and oracles: copies changed by hand, with no code of the library."""

from __future__ import annotations

import copy

import torch
from torch import nn

import layersurgery as ls
from tests import models

WEIGHT_FORMS = [ls.Uniform(), ls.Mean(), ls.Noise(), ls.LowRank(0.5)]  # those that need the values of the weights
SILENCE = ls.Zero(what="contribution")


def llama(dtype=torch.float32, **changes):
    """The same weights each time."""
    return _made(models.llama, dtype, **{"hidden_size": 64, "intermediate_size": 128, **changes})


def opt():
    from transformers import OPTConfig, OPTForCausalLM

    sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_attention_heads": 4}
    return _made(lambda: OPTForCausalLM(OPTConfig(vocab_size=64, num_hidden_layers=3, **sizes)))


def _made(build, dtype=torch.float32, **changes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(**changes).eval().to(dtype)
        for parameter in model.parameters():
            if not parameter.any():  # biases that start at zero would hide a mistake
                nn.init.normal_(parameter, std=0.1)
    return model


@torch.no_grad()
def logits(model):
    return model(input_ids=models.tokens()).logits


def zeroed(model, site):
    """A copy in which all parameters of the site are zero."""
    return changed(model, site, lambda name, tensor: torch.zeros_like(tensor))


def changed(model, site, new):
    """A copy in which each parameter of the site is `new(name relative to the site, tensor)`."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for path in site.modules:
            for name, parameter in model.get_submodule(path).named_parameters():
                parameter.copy_(new(f"{path}.{name}"[len(site.path) + 1 :], parameter.detach().clone()))
    return model


def apply(model, site, do, run=logits):
    """What the model gives under a surgery."""
    with ls.Surgery(at=site, do=do)(model):
        assert ls.status(model)
        return run(model)


def assert_same(got, wanted, do):
    """Bit for bit for zeros; within rounding for others, whose tensors may lie otherwise in memory."""
    tolerance = 0 if isinstance(do, ls.Zero) else 1e-5
    torch.testing.assert_close(got, wanted, atol=tolerance, rtol=tolerance)


def replaced(model, site, do):
    """A copy in which each plain parameter of the site is what the intervention gives for it."""
    return changed(model, site, lambda name, tensor: do.replace(tensor, ls.interventions.Place(site.path, name)))
