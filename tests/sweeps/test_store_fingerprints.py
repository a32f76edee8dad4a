"""What a store tells things apart by: the same content gives the same fingerprint, any other content another."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import layersurgery as ls
from layersurgery.sweeps import _store_model
from layersurgery.sweeps._store_model import model_fingerprint, surgery_key
from layersurgery.sweeps._store_values import PIECE, tensor_digest
from tests import models
from tests.elsewhere import test_offloaded, test_quantized
from tests.elsewhere.tiny import llama, logits

# --- models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", models.ZOO)
def test_running_a_model_does_not_change_it(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.ZOO[name][0]().eval()  # one that never ran
    before = model_fingerprint(model)
    with torch.no_grad():
        models.run(model, name)
        if name in ("llama", "gpt2"):
            model.generate(models.tokens(), max_new_tokens=2)
    assert model_fingerprint(model) == before
    assert len(before) == 32


def test_every_parameter_and_buffer_counts():
    model = llama()
    seen = {model_fingerprint(model)}
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for tensor in tensors.values():
        bits = tensor.data.view(torch.int32).reshape(-1)
        bits[-1] ^= 1
        seen.add(model_fingerprint(model))
        bits[-1] ^= 1
    assert len(seen) == len(tensors) + 1
    assert model_fingerprint(model) in seen


def test_it_does_not_matter_where_a_model_is_from(tmp_path):
    model = llama()
    model.save_pretrained(tmp_path / "here")
    again = type(model).from_pretrained(tmp_path / "here").eval()
    assert model_fingerprint(again) == model_fingerprint(model)
    assert model_fingerprint(again.bfloat16()) != model_fingerprint(model)
    assert model_fingerprint(again.float()) != model_fingerprint(model)  # rounded on the way


def test_nnsight_models_are_the_models_inside():
    import nnsight

    model = llama()
    before = model_fingerprint(model)
    assert model_fingerprint(nnsight.NNsight(model)) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model.config, "rms_norm_eps", 0.5),
        lambda model: setattr(model.config, "_attn_implementation", "eager"),
        lambda model: setattr(model.generation_config, "suppress_tokens", [3]),
        lambda model: setattr(model.model.layers[1].input_layernorm, "variance_epsilon", 0.5),
        lambda model: setattr(model.model.layers[1].self_attn, "scaling", 2.0),
        lambda model: setattr(model.model.layers[1].mlp, "act_fn", nn.ReLU()),
        lambda model: model.model.layers[1].register_forward_pre_hook(lambda module, given: None),
        lambda model: model.model.layers.append(nn.Identity()),
        lambda model: setattr(model.model, "layers", model.model.layers[::-1]),
    ],
)
def test_what_is_no_weight_counts_too(change):
    model = llama()
    before = model_fingerprint(model)
    change(model)
    assert model_fingerprint(model) != before


def test_surgeries_in_force():
    model = llama()
    sites = ls.select(model)
    found = [model_fingerprint(model)]
    for cut in (
        ls.Surgery(sites[0], ls.Zero()),
        ls.Surgery(sites[1], ls.Zero()),
        ls.Surgery(sites[0], ls.Zero(what="contribution")),
        ls.Surgery(sites[0], ls.Scale(1.0, what="contribution")),
        ls.Surgery(sites[0], ls.Noise(seed=0)) + ls.Surgery(sites[1], ls.Zero()),
        ls.Surgery(sites[1], ls.Zero()) + ls.Surgery(sites[0], ls.Noise(seed=0)),
    ):
        with cut(model):
            found.append(model_fingerprint(model))
    assert len(set(found)) == len(found)
    assert model_fingerprint(model) == found[0]


@pytest.mark.parametrize("way", test_offloaded.WAYS)
def test_offloaded_weights_are_read_from_where_they_are(way, tmp_path):
    model = way(llama(), tmp_path)
    assert model_fingerprint(model) == model_fingerprint(llama())
    logits(model)
    assert model_fingerprint(model) == model_fingerprint(llama())
    (tmp_path / "other").mkdir()
    other = llama()
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    assert model_fingerprint(way(other, tmp_path / "other")) != model_fingerprint(llama())


@pytest.mark.parametrize("make", [*test_quantized.TENSORS, *test_quantized.PACKED])
def test_packed_weights_with_their_scales(make, tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    model = make(tmp_path)
    before = model_fingerprint(model)
    logits(model)
    assert model_fingerprint(model) == before

    def doubled(dtype=torch.float32):  # the packed numbers are the same, only their scales differ
        other = llama(dtype)
        with torch.no_grad():
            other.model.layers[1].mlp.up_proj.weight.mul_(2)
        return other

    monkeypatch.setattr(test_quantized, "llama", doubled)
    other = make(tmp_path / "other")
    assert model_fingerprint(other) != before
    logits(other)
    assert model_fingerprint(other) != before


def test_a_tensor_in_pieces(monkeypatch):
    values = torch.randn(64, 9)
    whole = tensor_digest(values)
    monkeypatch.setattr("layersurgery.sweeps._store_values.PIECE", 100)
    assert PIECE > 1 << 20
    assert tensor_digest(values) == whole
    assert tensor_digest(values.T.contiguous().T) == whole
    assert tensor_digest(values.reshape(9, 64)) != whole
    assert tensor_digest(values.half()) != whole
    assert tensor_digest(torch.ones(()).expand(300, 5)) == tensor_digest(torch.ones(300, 5))
    assert tensor_digest(torch.empty(0, 3)) != tensor_digest(torch.empty(3, 0))
    assert len({tensor_digest(torch.ones(2, dtype=kind)) for kind in (torch.bool, torch.uint8, torch.int8)}) == 3


# --- surgeries ---------------------------------------------------------------------------------------------------


def test_surgeries_are_told_apart_by_what_they_do():
    site = ls.Site("h.0.attn", role="attention", layer=0)
    key = surgery_key(ls.Surgery(site, ls.Zero()))
    told = dataclasses.replace(site, hazards=("tied",), parameters=9, kind="mamba", tower="language")
    assert surgery_key(ls.Surgery(told, ls.Zero())) == key
    others = [
        ls.Surgery(dataclasses.replace(site, path="h.1.attn"), ls.Zero()),
        ls.Surgery(dataclasses.replace(site, parts=("q",)), ls.Zero()),
        ls.Surgery(dataclasses.replace(site, slices=(ls.sites.Slice("q", 0, ((0, 4),)),)), ls.Zero()),
        ls.Surgery(site, ls.Zero(), tied="everywhere"),
        ls.Surgery(site, ls.Zero(what="contribution")),
        ls.Surgery(site, ls.Zero(what="contribution", positions=-1)),
        ls.Surgery(site, ls.Noise()),
        ls.Surgery(site, ls.Noise(seed=1)),
        ls.Surgery(site, ls.Scale(0.5)),
        ls.Surgery(site, ls.Scale(0.25)),
        ls.Surgery(site, ls.Zero()) + ls.Surgery(site, ls.Zero()),
    ]
    assert len({key, surgery_key(None), *map(surgery_key, others)}) == len(others) + 2


def test_threads_make_no_difference(monkeypatch):
    """Large models are read by several threads, small ones by none."""
    model = models.built("llama")
    alone = model_fingerprint(model)
    monkeypatch.setattr(_store_model, "_SMALL", 0)
    assert model_fingerprint(model) == alone
