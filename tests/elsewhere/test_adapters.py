"""Models wrapped by PEFT: adapters beside the weights, merged into them, dividing by them, and over packed ones."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import nn

import layersurgery as ls
from layersurgery import testing
from tests.elsewhere.tiny import SILENCE, apply, assert_same, llama, logits, opt, replaced, zeroed

TARGETS = {"llama": ["q_proj", "v_proj", "gate_proj", "down_proj"], "opt": ["q_proj", "v_proj", "fc1", "fc2"]}
FORMS = [ls.Zero(), ls.Uniform(), ls.Mean(), ls.Noise(), ls.Scale(0.5), ls.LowRank(0.5)]


def adapted(model, name="llama", **settings):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = peft.LoraConfig(r=4, target_modules=TARGETS[name], task_type="CAUSAL_LM", **settings)
        wrapped = peft.get_peft_model(model, config).eval()
        for path, parameter in wrapped.named_parameters():
            if "lora_B" in path:  # as after training
                nn.init.normal_(parameter, std=0.2)
    return wrapped


@pytest.mark.parametrize("merged", [False, True], ids=["beside", "merged"])
@pytest.mark.parametrize("role", ["attention", "mlp", "layer"])
def test_the_adapters_weights_are_part_of_the_site(role, merged):
    model = adapted(llama())
    if merged:
        model.merge_adapter()
    site = ls.select(model, role)[1]
    assert site.path.startswith("base_model.model.model.layers.1")
    inside = [name for name, _ in model.get_submodule(site.path).named_parameters()]
    assert any("lora_A" in name for name in inside)
    assert any("base_layer" in name for name in inside)
    before = logits(model)
    with testing.restored(model):
        for do in FORMS:
            wanted = logits(replaced(model, site, do))
            assert_same(apply(model, site, do), wanted, do)
            assert not torch.allclose(wanted, before, atol=1e-3)
        if role == "attention":
            assert torch.equal(apply(model, site, SILENCE), logits(zeroed(model, site)))


def test_merged_for_good_is_the_plain_model_again():
    model = adapted(llama()).merge_and_unload()
    site = ls.select(model)[1]
    assert site == ls.select(llama())[1]
    with testing.restored(model):
        assert torch.equal(apply(model, site, ls.Zero()), logits(zeroed(model, site)))


def test_an_adapter_that_divides_by_the_norm_falls_silent():
    """DoRA's weights are divided by their norm: zeros in all of them would give NaN."""
    model = adapted(llama(), use_dora=True)
    for role in ("attention", "mlp"):
        site = ls.select(model, role)[1]
        assert logits(zeroed(model, site)).isnan().any()
        with testing.restored(model):
            assert torch.equal(apply(model, site, ls.Zero()), silenced(model, site))
            half = ls.Scale(0.5)
            assert_same(apply(model, site, half), logits(replaced(model, site, half)), half)


def silenced(model, site):
    """What the model gives when nothing comes out of a module."""
    handle = model.get_submodule(site.path).register_forward_hook(_silent)
    try:
        return logits(model)
    finally:
        handle.remove()


def _silent(module, arguments, output):
    return torch.zeros_like(output) if torch.is_tensor(output) else (torch.zeros_like(output[0]), *output[1:])


def test_two_adapters_and_none():
    model = adapted(llama())
    model.add_adapter("second", model.peft_config["default"])
    model.base_model.set_adapter(["default", "second"])
    site = ls.select(model)[1]
    with testing.restored(model):
        assert torch.equal(apply(model, site, ls.Zero()), logits(zeroed(model, site)))
        with model.disable_adapter():
            wanted = logits(zeroed(model.get_base_model(), ls.select(model.get_base_model())[1]))
            assert torch.equal(apply(model, site, ls.Zero()), wanted)


def test_adapters_over_packed_weights():
    """As in QLoRA: the packed half through its output, the adapter's half through its weights."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    base = llama()
    quantize_(base.model, Int8WeightOnlyConfig())
    model = adapted(base)
    site = ls.select(model)[1]
    with testing.restored(model):
        assert torch.equal(apply(model, site, ls.Zero()), silenced(model, site))


def test_experts_whose_adapter_is_put_in_place_for_each_pass():
    """PEFT's `target_parameters` parametrises the experts' tensors inside each call."""
    from transformers import MixtralConfig, MixtralForCausalLM

    from tests.models import TEXT

    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = MixtralForCausalLM(MixtralConfig(**TEXT, num_local_experts=4)).eval()
    config = peft.LoraConfig(r=2, target_modules=[], target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    model = peft.get_peft_model(base, config).eval()
    for path, parameter in model.named_parameters():
        if "lora_B" in path:
            nn.init.normal_(parameter, std=0.2)
    site = ls.select(model, "mlp")[1]
    before, weights = logits(model), {name: (id(p), p.clone()) for name, p in model.named_parameters()}
    with testing.restored(model):
        ls.Surgery(at=site, do=ls.Zero()).attach(model).remove()
    assert torch.equal(apply(model, site, ls.Zero()), logits(zeroed(model, site)))
    assert not torch.equal(apply(model, site, ls.Zero()), before)
    for name, parameter in model.named_parameters():  # PEFT counts up the version of each in every pass
        assert id(parameter) == weights[name][0]
        assert torch.equal(parameter, weights[name][1])
    assert torch.equal(logits(model), before)


def test_a_feed_forward_without_a_module_of_its_own():
    model = adapted(opt(), "opt")
    sites = ls.select(model, "mlp")
    assert [site.parts for site in sites] == [("fc1", "fc2")] * 3
    held = [name for site in sites for path in site.modules for name, _ in model.get_submodule(path).named_parameters()]
    assert sum("lora_A" in name for name in held) == 6  # fc1 and fc2 of three layers
    with testing.restored(model):
        for site in sites:
            assert torch.equal(apply(model, site, ls.Zero()), logits(zeroed(model, site)))
