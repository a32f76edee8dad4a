"""Compiled models: weights are inputs of the compiled code, and hooks that come later are not part of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import layersurgery as ls
from layersurgery import testing
from layersurgery.errors import SurgeryError
from tests.elsewhere.tiny import SILENCE, WEIGHT_FORMS, apply, llama, logits, zeroed

FORMS = [ls.Zero(), ls.Scale(0.5), *WEIGHT_FORMS]


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def by_wrapper(model, backend):
    return torch.compile(model, backend=backend)


def in_place(model, backend):
    model.compile(backend=backend)
    return model


def layer_by_layer(model, backend):
    for layer in model.model.layers:
        layer.compile(backend=backend)
    return model


def by_forward(model, backend):
    model.forward = torch.compile(model.forward, backend=backend)
    return model


WAYS = [by_wrapper, in_place, layer_by_layer, by_forward]


def compilations():
    return counters["stats"]["unique_graphs"], counters["frames"]["total"]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_weights_are_seen_and_nothing_is_compiled_again(way):
    model, plain = way(llama(), "eager"), llama()
    before, made = logits(model), compilations()
    site, same = ls.select(model)[1], ls.select(plain)[1]
    assert "compiled" in site.hazards
    for do in FORMS:
        with testing.restored(model):
            got = apply(model, same, do)  # the names of the model inside are passed on
        torch.testing.assert_close(got, apply(plain, same, do), atol=1e-6, rtol=1e-5)
        assert not torch.allclose(got, before, atol=1e-3)
        assert compilations() == made
    with testing.restored(model):
        assert torch.equal(apply(model, site, ls.Zero()), logits(zeroed(plain, same)))
    assert torch.equal(logits(model), before)
    assert compilations() == made


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return x + self.second(torch.tanh(self.first(x)))


def test_code_of_inductor():
    model, x = Small(), torch.randn(3, 8)
    wanted = x + model.second.bias.detach()
    compiled = torch.compile(model)
    compiled(x)
    made = compilations()
    for pattern, expected in (("*first", wanted), ("*second", x)):
        site = ls.select(compiled, pattern=pattern)[0]
        with testing.restored(compiled), torch.no_grad():
            compiled(x)
            with ls.Surgery(at=site, do=ls.Zero())(compiled):
                for _ in range(2):
                    torch.testing.assert_close(compiled(x), expected)
    compiled(x)
    made_with_and_without_gradients = compilations()
    for seed in range(3):
        with ls.Surgery(at=site, do=ls.Noise(seed=seed))(compiled):
            compiled(x)
            torch.testing.assert_close(compiled(x), model(x))
    assert compilations() == made_with_and_without_gradients
    assert made_with_and_without_gradients[0] <= made[0] + 1  # one more for torch.no_grad, none for a surgery


@pytest.mark.slow
def test_a_whole_language_model_of_inductor():
    model, plain = torch.compile(llama()), llama()
    before, made = logits(model), compilations()
    site = ls.select(plain)[1]
    for do in FORMS:
        with testing.restored(model):
            torch.testing.assert_close(apply(model, site, do), apply(plain, site, do), atol=1e-5, rtol=1e-4)
    assert compilations() == made
    assert torch.equal(logits(model), before)


def test_training_steps():
    model, plain = torch.compile(llama(), backend="aot_eager"), llama()
    site = ls.select(plain)[1]
    ids = torch.arange(10, 22).reshape(2, 6)
    model(input_ids=ids, labels=ids).loss.backward()
    made = compilations()
    model.zero_grad()
    by_hand = zeroed(plain, site)
    by_hand(input_ids=ids, labels=ids).loss.backward()
    with ls.Surgery(at=site, do=ls.Zero())(model):
        model(input_ids=ids, labels=ids).loss.backward()
        for (name, parameter), other in zip(plain.named_parameters(), by_hand.parameters(), strict=True):
            torch.testing.assert_close(model.get_parameter(name).grad, other.grad, msg=name)
            assert parameter.shape == other.shape
    assert compilations() == made


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_hooks_that_come_later_are_refused(way):
    model = way(llama(), "eager")
    before = logits(model)
    site = ls.select(llama())[1]
    with (
        testing.restored(model),
        pytest.raises(SurgeryError, match=r"takes no notice of hooks.*before torch\.compile.*'par"),
    ):
        ls.Surgery(at=site, do=SILENCE).attach(model)
    # what is refused is real: torch does not see such a hook
    handle = model.get_submodule(site.path).register_forward_hook(lambda *_: pytest.fail("seen"))
    assert torch.equal(logits(model), before)
    handle.remove()


def test_the_model_inside_of_a_compiled_one():
    """It knows nothing of the object that torch.compile gave for it."""
    model = llama()
    site = ls.select(model)[1]
    compiled = torch.compile(model, backend="eager")
    before = logits(compiled)
    with ls.Surgery(at=site, do=ls.Zero())(model):
        wanted = logits(model)
        assert torch.equal(logits(compiled), wanted)
    with (
        testing.restored(model),
        pytest.raises(SurgeryError, match=r"drop what torch\.compile gave and call torch\._dyn"),
    ):
        ls.Surgery(at=site, do=SILENCE).attach(model)
    torch._dynamo.reset()  # the way out: there is no code yet when the hook comes
    with testing.restored(model), ls.Surgery(at=site, do=SILENCE)(model):
        assert torch.equal(logits(compiled), wanted)
        assert torch.equal(logits(model), wanted)
    assert torch.equal(logits(compiled), before)


def test_a_contribution_changed_before_the_model_is_compiled():
    model = llama()
    site = ls.select(model)[1]
    before, wanted = logits(model), logits(zeroed(model, site))
    handle = ls.Surgery(at=site, do=SILENCE).attach(model)
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(logits(compiled), wanted)
    handle.remove()
    assert torch.equal(logits(compiled), before)


def test_packed_weights_in_compiled_code():
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = llama()
    quantize_(model.model, Int8WeightOnlyConfig())
    site = ls.select(model)[1]
    wanted = apply(model, site, ls.Zero())
    compiled = torch.compile(model, backend="eager")
    before = logits(compiled)
    with testing.restored(compiled):
        assert torch.equal(apply(compiled, site, ls.Zero()), wanted)  # compiled anew: a plain tensor is another kind
    assert torch.equal(logits(compiled), before)


def test_copies_of_the_weights_in_the_code_are_refused():
    import torch._inductor.config as inductor

    model = torch.compile(Small(), backend="eager")
    site = ls.select(model, pattern="*first")[0]
    with inductor.patch(freezing=True), testing.restored(model), pytest.raises(SurgeryError, match="Switch it off"):
        ls.Surgery(at=site, do=ls.Zero()).attach(model)
