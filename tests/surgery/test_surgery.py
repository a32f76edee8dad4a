"""What a surgery does to a model while it is in force, and what it refuses."""

from __future__ import annotations

import copy
import subprocess
import sys

import nnsight
import pytest
import torch
from torch import nn

import layersurgery as ls
from layersurgery import testing
from layersurgery.errors import LayerSurgeryWarning, ModelMismatchError, SelectionError, SurgeryError
from tests import models

DOS = [ls.Zero(), ls.Uniform(), ls.Mean(), ls.Noise(std=0.1, seed=1)]


def by_hand(model, site, do):
    """A copy of the model with the weights overwritten in place: the plain way that surgery must agree with."""
    other = copy.deepcopy(model)
    for path in site.modules:
        for name, parameter in other.get_submodule(path).named_parameters():
            inner = f"{path}.{name}"[len(site.path) + 1 :]
            parameter.data = do.replace(parameter.data, ls.interventions.Place(site.path, inner)).clone()
    return other


@pytest.mark.parametrize("do", DOS, ids=lambda do: do.name)
@pytest.mark.parametrize("role", ["attention", "mlp"])
@pytest.mark.parametrize("name", [name for name in models.ZOO if name != "plain_cnn"])
def test_agrees_with_overwriting_the_weights(name, role, do):
    """Bit for bit; a constant matrix has no strides, and kernels may sum in another order for it: then to rounding."""
    model = models.built(name)
    tolerance = 1e-6 if isinstance(do, ls.Uniform | ls.Mean) else 0
    base = models.run(model, name)
    for site in ls.select(model, role):
        with ls.Surgery(at=site, do=do)(model) as same:
            assert same is model
            inside = models.run(model, name)
        expected = models.run(by_hand(model, site, do), name)
        assert torch.allclose(inside, expected, rtol=tolerance, atol=tolerance), site
        assert not torch.equal(inside, base), site
    assert torch.equal(models.run(model, name), base)


def test_zeroed_attention_adds_nothing():
    model = models.built("llama")
    attention = model.model.layers[1].self_attn
    seen = []
    handle = attention.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    try:
        with ls.Surgery(at=ls.select(model)[1], do=ls.Zero())(model):
            models.run(model, "llama")
    finally:
        handle.remove()
    assert not seen[0].any()


def test_generation_sees_it():
    model = models.built("llama")
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    before = model.generate(models.tokens(), **settings)
    with ls.Surgery(at=ls.select(model), do=ls.Zero())(model):
        inside = model.generate(models.tokens(), **settings)
    expected = copy.deepcopy(model)
    for layer in expected.model.layers:
        for parameter in layer.self_attn.parameters():
            parameter.data.zero_()
    assert torch.equal(inside, expected.generate(models.tokens(), **settings))
    assert not torch.equal(inside, before)
    assert torch.equal(model.generate(models.tokens(), **settings), before)


def test_nnsight_models_inside_and_outside_traces():
    model = models.built("gpt2")
    wrapped = nnsight.NNsight(model)
    cut = ls.Surgery(at=ls.select(wrapped)[0], do=ls.Zero())
    with cut(model):
        expected = models.run(model, "gpt2")
    with cut(wrapped) as same:
        assert same is wrapped
        assert torch.equal(models.run(model, "gpt2"), expected)
        with torch.no_grad(), wrapped.trace(**models.inputs("gpt2")):
            logits = wrapped.output.logits.save()
        assert torch.equal(logits, expected)
        assert len(ls.status(wrapped)) == 1
    assert not ls.status(wrapped)


def test_tied_parameters_change_at_the_site_only():
    model = models.built("llava")
    embedding = model.model.language_model.embed_tokens
    assert model.lm_head.weight is embedding.weight
    head = ls.select(model, pattern="lm_head")[0]
    with testing.restored(model), ls.Surgery(at=head, do=ls.Zero())(model):
        assert not model.lm_head.weight.any()
        assert embedding.weight.any()
    with testing.restored(model), ls.Surgery(at=head, do=ls.Zero(), tied="everywhere")(model):
        assert not embedding.weight.any()
        assert model.lm_head.weight is embedding.weight


@pytest.mark.parametrize("first", ["*.embed_tokens", "lm_head"])
def test_tied_is_what_the_model_ties_not_what_is_in_force(first):
    """A surgery at one end unties the two for its time; one that acts everywhere still reaches both ends."""
    model = models.built("llava")
    embedding = ls.select(model, pattern="*.embed_tokens")[0]
    with testing.restored(model), ls.Surgery(at=ls.select(model, pattern=first)[0], do=ls.Mean())(model):
        assert model.lm_head.weight is not model.model.language_model.embed_tokens.weight
        with ls.Surgery(at=embedding, do=ls.Zero(), tied="everywhere")(model):
            assert not model.lm_head.weight.any()
            assert not model.model.language_model.embed_tokens.weight.any()
        assert model.lm_head.weight.any()


def test_nesting_acts_on_what_is_there():
    model = models.built("llama")
    weight = model.model.layers[0].self_attn.q_proj.weight
    site = ls.select(model)[0]
    zero, mean = ls.Surgery(at=site, do=ls.Zero()), ls.Surgery(at=site, do=ls.Mean())

    def now():
        return model.model.layers[0].self_attn.q_proj.weight

    with zero(model):
        with mean(model):
            assert not now().any()
        assert not now().any()
    with mean(model):
        with zero(model):
            assert not now().any()
        assert torch.equal(now(), weight.double().mean().float().expand_as(weight))
    with (mean + zero)(model):
        assert not now().any()
    assert now() is weight


def test_surgeries_are_data():
    sites = ls.select(models.built("llama"))
    cut = ls.Surgery(at=sites[1], do=ls.Zero())
    assert cut == ls.Surgery(at=[sites[1]], do=ls.Zero()) == ls.Surgery(at=sites[1:2], do=ls.Zero())
    assert cut != ls.Surgery(at=sites[1], do=ls.Mean())
    assert cut != ls.Surgery(at=sites[1], do=ls.Zero(), tied="everywhere")
    both = cut + ls.Surgery(at=sites[2], do=ls.Uniform())
    assert len({cut, both, ls.Surgery(at=sites[1], do=ls.Zero())}) == 2
    assert both.sites == (sites[1], sites[2])
    assert [step.do for step in both] == [ls.Zero(), ls.Uniform()]
    assert str(both) == "zero model.layers.1.self_attn + uniform model.layers.2.self_attn"
    with pytest.raises(AttributeError):
        cut.steps = ()
    with pytest.raises(TypeError):
        cut + 1


def test_moving_the_model_inside_a_block_is_warned_about():
    with torch.random.fork_rng():
        model = models.llama().eval()
    weight = model.model.layers[0].self_attn.q_proj.weight
    before = weight.detach().clone()
    message = r"moved or cast \(torch\.float32 on cpu to torch\.float64 on cpu\)"
    with pytest.warns(LayerSurgeryWarning, match=message), ls.Surgery(at=ls.select(model)[0], do=ls.Zero())(model):
        model.double()
    assert model.model.layers[0].self_attn.q_proj.weight is weight
    assert torch.equal(weight, before)


def test_status():
    model = models.built("llama")
    sites = ls.select(model)
    assert not ls.status(model)
    assert str(ls.status(model)) == "nothing in force"
    first = ls.Surgery(at=sites[1], do=ls.Zero()).attach(model)
    second = (ls.Surgery(at=sites[2], do=ls.Mean()) + ls.Surgery(at=sites[0], do=ls.Noise())).attach(model)
    assert [(step.site, step.do) for step in ls.status(model)] == [
        (sites[1], ls.Zero()),
        (sites[2], ls.Mean()),
        (sites[0], ls.Noise()),
    ]
    assert str(ls.status(model)).splitlines()[0] == "model.layers.1.self_attn: Zero()"
    first.remove()
    assert len(ls.status(model)) == 2
    second.remove()
    assert not ls.status(model)


def test_a_block_is_entered_once_and_a_surgery_as_often_as_one_likes():
    model = models.built("llama")
    cut = ls.Surgery(at=ls.select(model)[0], do=ls.Zero())
    block = cut(model)
    with testing.restored(model):
        with block, cut(model), cut(model):
            assert len(ls.status(model)) == 3
        with pytest.raises(SurgeryError, match="entered before"), block:
            pass


class Bad(ls.Intervention):
    name = "bad"

    def __init__(self, give):
        self.give = give

    def replace(self, tensor, place):
        return self.give(tensor)


@pytest.mark.parametrize(
    "give",
    [lambda t: t[:1], lambda t: t.double(), lambda t: None, lambda t: t.to("meta")],
    ids=["shape", "dtype", "none", "device"],
)
def test_an_intervention_that_gives_something_else_is_refused(give):
    model = models.built("llama")
    with testing.restored(model), pytest.raises(SurgeryError, match="must keep shape, dtype and device"):
        ls.Surgery(at=ls.select(model)[0], do=Bad(give)).attach(model)


def test_an_intervention_that_gives_the_parameter_itself_cannot_expose_it():
    model = models.built("llama")
    with testing.restored(model), ls.Surgery(at=ls.select(model)[0], do=Bad(lambda t: t))(model), torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.fill_(7)  # a user's own write inside the block


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"at": [], "do": ls.Zero()}, SurgeryError, "holds no site"),
        ({"at": "model.layers.0", "do": ls.Zero()}, SurgeryError, r"use layersurgery\.select\(model, pattern='model"),
        ({"at": 3, "do": ls.Zero()}, SurgeryError, "is no site"),
        ({"at": ["a"], "do": ls.Zero()}, SelectionError, "expected a Site, got 'a'"),
        ({"at": ls.Site("a"), "do": ls.Zero}, SurgeryError, r"is no intervention; give an instance"),
        ({"at": ls.Site("a"), "do": "zero"}, SurgeryError, r"'zero' is no intervention"),
        ({"at": ls.Site("a"), "do": ls.Zero(), "tied": "yes"}, SurgeryError, "'site' or 'everywhere'"),
        ({"at": [ls.Site("a"), ls.Site("a")], "do": ls.Zero()}, SelectionError, "'a' is given twice"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        ls.Surgery(**arguments)


def _refused(model, site, message, error=SurgeryError, do=None):
    with testing.restored(model), pytest.raises(error, match=message), ls.Surgery(at=site, do=do or ls.Zero())(model):
        pytest.fail("the block must not be entered")


def test_a_site_of_another_model():
    small, llava = models.built("llama"), models.built("llava")
    _refused(
        small,
        ls.select(llava)[0],
        r"no module 'model\.language_model.*near misses: .*Make the surgery",
        ModelMismatchError,
    )
    with torch.random.fork_rng():
        large = models.llama(hidden_size=64).eval()
    _refused(
        large,
        ls.select(small)[0],
        r"parameters in this LlamaForCausalLM; the surgery was made for 3,072",
        ModelMismatchError,
    )
    other = ls.Site("model.layers.0.self_attn", module="GPT2Attention")
    _refused(small, other, r"is a LlamaAttention .* made for a GPT2Attention", ModelMismatchError)


def test_what_cannot_be_done_is_refused_before_anything_is_touched():
    model = models.built("llama")
    _refused(model, ls.select(model, pattern="*.act_fn")[0], "no parameters to replace")
    with torch.device("meta"):
        empty = models.llama()
    _refused(empty, ls.select(empty)[0], r"on the meta device.*Load the model")

    quantised = nn.ModuleDict({"linear": nn.Linear(2, 2)}).eval()
    quantised["linear"].weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    site = ls.select(quantised, pattern="linear")[0]
    assert site.hazards == ("quantized",)
    _refused(quantised, site, r"packed integers \(quantised\), and Mean\(\) needs their values.*Zero", do=ls.Mean())

    normed = nn.ModuleDict({"linear": nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))}).eval()
    _refused(normed, ls.select(normed, pattern="linear")[0], r"parametrised weight.*remove_parametrizations")
    inside = ls.select(normed, pattern="linear.parametrizations.weight")[0]
    _refused(normed, inside, r"parametrised weight.*remove_parametrizations")

    compiled = torch.compile(nn.Sequential(nn.Linear(2, 2)))
    by_hook = ls.Zero(what="contribution")
    _refused(compiled, ls.select(compiled, pattern="*.0")[0], r"compiled.*before torch\.compile", do=by_hook)

    lazy = nn.ModuleDict({"linear": nn.LazyLinear(3)})
    site = ls.select(lazy, pattern="linear")[0]
    with pytest.raises(SurgeryError, match="run the model once first"):
        ls.Surgery(at=site, do=ls.Zero()).attach(lazy)
    assert not ls.status(lazy)


def test_import_is_light():
    """`import layersurgery` alone loads none of the heavy packages."""
    code = "import sys, layersurgery; print({'torch', 'transformers', 'nnsight', 'numpy', 'scipy'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_names_are_reached_from_the_top():
    for name in ls.__all__:
        assert getattr(ls, name) is not None
    assert set(ls.__all__) <= set(dir(ls))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ls.nothing
