"""Weight-only quantised models of six makes, on the CPU."""

from __future__ import annotations

import copy
import logging
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import layersurgery as ls
from layersurgery import testing
from layersurgery.errors import SurgeryError
from tests.elsewhere.tiny import SILENCE, WEIGHT_FORMS, apply, assert_same, llama, logits


def _torchao(config):
    from torchao.quantization import quantize_

    model = llama()
    quantize_(model.model, config)
    return model


def torchao_int8(folder):
    from torchao.quantization import Int8WeightOnlyConfig

    return _torchao(Int8WeightOnlyConfig())


def torchao_int4(folder):
    return _torchao(_int4())


def torchao_float8(folder):
    from torchao.quantization import Float8WeightOnlyConfig

    return _torchao(Float8WeightOnlyConfig())


def torchao_by_transformers(folder):
    from transformers import TorchAoConfig

    return _loaded(folder, TorchAoConfig(_int4()))


def quanto_int8(folder):
    return _quanto("qint8")


def quanto_int4(folder):
    return _quanto("qint4")


def quanto_by_transformers(folder):
    from transformers import QuantoConfig

    return _loaded(folder, QuantoConfig(weights="int8"))


def bitsandbytes_int8(folder):
    from transformers import BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    return _loaded(folder, BitsAndBytesConfig(load_in_8bit=True), torch.bfloat16)


def bitsandbytes_nf4(folder):
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    return _loaded(folder, config, torch.bfloat16)


def hqq(folder):
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    model = llama()
    for layer in model.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    config = BaseQuantizeConfig(nbits=4, group_size=32)
                    packed = HQQLinear(child, config, compute_dtype=torch.float32, device="cpu")
                    setattr(parent, name, packed)
    return model


def _int4():
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup

    return IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))


def _quanto(kind):
    from optimum import quanto

    model = llama()
    quanto.quantize(model, weights=getattr(quanto, kind))
    quanto.freeze(model)
    return model


def _loaded(folder, config, dtype=torch.float32):
    model = llama(dtype)
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder, quantization_config=config, device_map="cpu", dtype=dtype).eval()


# in the parameter table, as tensors of a class of their own; or packed by the module's own code
TENSORS = [
    torchao_int8,
    torchao_int4,
    torchao_float8,
    torchao_by_transformers,
    quanto_int8,
    quanto_int4,
    quanto_by_transformers,
]
PACKED = [bitsandbytes_int8, bitsandbytes_nf4, hqq]
MADE = {}


@pytest.fixture
def model(request, tmp_path):
    make = request.param
    if make not in MADE:
        MADE[make] = make(tmp_path)
        logits(MADE[make])
    return MADE[make]


def made(*makes):
    # quanto compiles an extension for its four-bit weights, which takes over a minute
    marks = {quanto_int4: pytest.mark.slow}
    each = [pytest.param(make, marks=marks.get(make, ()), id=make.__name__) for make in makes]
    return pytest.mark.parametrize("model", each, indirect=True)


def linears(module):
    """Name and module of each linear layer inside."""
    return [(name, one) for name, one in module.named_children() if hasattr(one, "in_features")]


@contextmanager
def plain_instead(model, site, new):
    """In the block, each linear layer of the site has plain weights, `new(name, values)`.

    In a plain module, but for quanto, whose modules pack plain weights anew in each pass.
    """
    parent = model.get_submodule(site.path)
    packed = linears(parent)
    for name, one in packed:
        with torch.no_grad():
            values = one(torch.eye(one.in_features, dtype=model.dtype)).T.contiguous()  # no bias in these models
        plain = copy.copy(one) if packs_anew(one) else nn.Linear(one.in_features, one.out_features, bias=False)
        plain._parameters = {"weight": nn.Parameter(new(f"{name}.weight", values).contiguous()), "bias": None}
        setattr(parent, name, plain)
    yield
    for name, one in packed:
        setattr(parent, name, one)


def packs_anew(module):
    return type(module).__module__.startswith("optimum.quanto")


@contextmanager
def halved(model, site):
    handles = [
        one.register_forward_hook(lambda module, given, out: out * 0.5)
        for _, one in linears(model.get_submodule(site.path))
    ]
    yield
    for handle in handles:
        handle.remove()


@made(*TENSORS, *PACKED)
@pytest.mark.parametrize("role", ["attention", "mlp"])
def test_zero_scale_and_what_it_adds(model, role):
    site = ls.select(model, role)[1]
    assert "quantized" in site.hazards
    before = logits(model)
    with plain_instead(model, site, lambda name, values: torch.zeros_like(values)):
        silent = logits(model)
    with halved(model, site):
        half = logits(model)
    with testing.restored(model):
        assert torch.equal(apply(model, site, ls.Zero()), silent)
        assert not torch.allclose(silent, before, atol=1e-3)
        assert not torch.allclose(half, before, atol=1e-3)
        assert torch.equal(apply(model, site, SILENCE), silent)
        torch.testing.assert_close(apply(model, site, ls.Scale(0.5)), half, atol=1e-2, rtol=1e-2)
    assert torch.equal(logits(model), before)


@made(torchao_int8, torchao_int4, torchao_float8, quanto_int8, quanto_int4)
@pytest.mark.parametrize("do", WEIGHT_FORMS, ids=str)
def test_what_needs_the_values_sees_them_unpacked(model, do):
    site = ls.select(model)[1]
    before = logits(model)
    with plain_instead(model, site, lambda name, values: do.replace(values, ls.interventions.Place(site.path, name))):
        wanted = logits(model)
    with testing.restored(model):
        got = apply(model, site, do)
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(wanted, before, atol=1e-3)
    assert torch.equal(logits(model), before)


@made(*PACKED)
@pytest.mark.parametrize("do", WEIGHT_FORMS, ids=str)
def test_what_needs_the_values_of_packed_ones_is_refused(model, do):
    site = ls.select(model)[1]
    with (
        testing.restored(model),
        pytest.raises(SurgeryError, match=r"q_proj are packed .*\(quantised\).*needs their values"),
    ):
        ls.Surgery(at=site, do=do).attach(model)


@made(torchao_int8, torchao_int4, quanto_int8)
def test_slices_of_packed_tensors(model):
    """Rows of a matrix, as heads are: the others keep their packed values."""
    site = ls.select(model)[1]
    rows = ls.Site(site.path, role="attention", slices=(ls.sites.Slice("v_proj.weight", 0, ((0, 16),)),))

    def new(name, values):
        if name == "v_proj.weight":
            values[:16] = 0
        return values

    with plain_instead(model, site, new):
        wanted = logits(model)
    with testing.restored(model):
        got = apply(model, rows, ls.Zero())
    torch.testing.assert_close(got, wanted, atol=2e-3, rtol=2e-3)
    assert not torch.allclose(wanted, logits(model), atol=2e-2)


@made(bitsandbytes_nf4, torchao_int8, hqq)
def test_a_surgery_found_on_the_plain_model_fits_the_packed_one(model):
    on_plain, on_packed = ls.select(llama())[1], ls.select(model)[1]
    assert torch.equal(apply(model, on_plain, ls.Zero()), apply(model, on_packed, ls.Zero()))
    assert_same(apply(llama(), on_packed, ls.Zero()), apply(llama(), on_plain, ls.Zero()), ls.Zero())


def test_eight_bit_floats_beside_their_scales_are_packed():
    """As transformers' FP8Linear keeps them: numbers that mean nothing without their scales."""
    from transformers.integrations.finegrained_fp8 import FP8Linear

    model = nn.ModuleDict({"mlp": nn.ModuleDict({"up": FP8Linear(16, 32, block_size=(16, 16))})})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.ones(parameter.shape))
    site = ls.select(model, pattern="mlp.up")[0]
    assert site.hazards == ("quantized",)
    with testing.restored(model), pytest.raises(SurgeryError, match="8-bit floats with scales of their own"):
        ls.Surgery(at=site, do=ls.Mean()).attach(model)


@made(torchao_int8, hqq)
def test_merging(model):
    model, before = copy.deepcopy(model), logits(model)
    site = ls.select(model)[1]
    cut = ls.Surgery(at=site, do=ls.Zero())
    wanted = apply(model, site, ls.Zero())
    if isinstance(model.get_submodule(site.path).q_proj, nn.Linear):
        assert torch.equal(logits(cut.merge_(model)), wanted)
        return
    with pytest.raises(SurgeryError, match="no change of weights says the same"):
        cut.merge_(model)
    assert torch.equal(logits(model), before)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_modules_that_hold_no_parameters_at_all():
    """Torch's own dynamic quantisation packs into objects: such modules are found by name."""
    model = torch.ao.quantization.quantize_dynamic(llama(), {nn.Linear})
    site = ls.select(model, pattern="*.layers.1.self_attn")[0]
    assert not [*model.get_submodule(site.path).parameters()]
    before = logits(model)
    with plain_instead(model, site, lambda name, values: torch.zeros_like(values)):
        silent = logits(model)
    with testing.restored(model):
        assert torch.equal(apply(model, site, ls.Zero()), silent)
        assert not torch.allclose(silent, before, atol=1e-3)
        with pytest.raises(SurgeryError, match="packed by its own code"):
            ls.Surgery(at=site, do=ls.Mean()).attach(model)
    assert torch.equal(logits(model), before)
