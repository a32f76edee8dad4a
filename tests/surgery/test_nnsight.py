"""Surgeries on nnsight models: in force inside and outside traces, and as edits that no weight takes part in."""

from __future__ import annotations

import warnings
from dataclasses import replace

import nnsight
import pytest
import torch
from torch import nn

import layersurgery as ls
from layersurgery import testing
from layersurgery.errors import SurgeryError
from layersurgery.sites import Slice
from tests import models
from tests.architectures import build
from tests.architectures.inputs import inputs
from tests.scoring import tiny

LAYERED = [name for name in models.ZOO if name not in ("plain_cnn", "plain_transformer")]
PROMPTS = ["What is the colour of the thing", "Answer: B"]
LONG = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def text():
    """A language model with a tokenizer, as nnsight wraps it: prompts go in as text."""
    tokenizer = tiny.tokenizer(padding_side="left")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.llama(vocab_size=len(tokenizer)).eval()
    return nnsight.TransformersModel(model, tokenizer=tokenizer)


def wrapped(model):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Module .* has a submodule named")  # BERT's `output`
        return nnsight.NNsight(model)


def traced(envoy, name):
    with envoy.trace(**models.inputs(name)):
        output = envoy.output.save()
    return output if isinstance(output, torch.Tensor) else output.logits


def adding(sites):
    """What these sites add leaves them as their output, where `select` was not told."""
    return [replace(site, adds=site.adds or "output") for site in sites]


def cut_of(model, do, role="attention"):
    sites = ls.select(model, "layer" if isinstance(do, ls.Skip) else role)
    return ls.Surgery(at=adding(sites[1:]), do=do)


DOS = [
    ls.Zero(),
    ls.Zero(what="contribution"),
    ls.Zero(what="contribution", positions=[0, -1]),
    ls.Scale(0.5),
    ls.Scale(0.5, what="contribution"),
    ls.Skip(),
]


@pytest.mark.parametrize("do", DOS, ids=repr)
@pytest.mark.parametrize("role", ["attention", "mlp"])
@pytest.mark.parametrize("name", LAYERED)
def test_an_edit_gives_what_the_block_gives(name, role, do):
    model = models.built(name)
    envoy = wrapped(model)
    cut = cut_of(model, do, role)
    before = models.run(model, name)
    with cut(model):
        expected = models.run(model, name)
    with testing.restored(model):
        edited = cut.edit(envoy)
        assert torch.equal(traced(edited, name), expected)
        assert not torch.equal(before, expected)
        assert torch.equal(traced(envoy, name), before)
        assert torch.equal(models.run(model, name), before)
        assert torch.equal(traced(edited, name), expected)
        edited.clear_edits()
        assert torch.equal(traced(edited, name), before)


@pytest.mark.parametrize("name", LAYERED)
@pytest.mark.parametrize("do", [ls.Uniform(), ls.Mean(), ls.Noise(std=0.1, seed=1), ls.Skip()], ids=repr)
def test_blocks_and_handles_hold_inside_traces(name, do):
    model = models.built(name)
    envoy = wrapped(model)
    cut = cut_of(envoy, do)
    with cut(model):
        expected = models.run(model, name)
    with testing.restored(model):
        with cut(envoy):
            assert torch.equal(traced(envoy, name), expected)
        handle = cut.attach(envoy)
        assert torch.equal(traced(envoy, name), expected)
        handle.remove()
        assert torch.equal(traced(envoy, name), models.run(model, name))


def generated(model, tokenizer, prompt):
    return model.generate(**tokenizer(prompt, return_tensors="pt"), **LONG)


@pytest.mark.parametrize(
    "do",
    [
        ls.Zero(),
        ls.Scale(-3.0),
        ls.Skip(),
        ls.Skip(steps=[2, 3]),
        ls.Zero(what="contribution", positions=[7, 9]),
        ls.Scale(-3.0, what="contribution", positions=[-1], steps=[1, 4]),
    ],
    ids=repr,
)
@pytest.mark.parametrize("way", ["edit", "with"])
def test_every_token_of_a_generation(text, do, way):
    model = text._module
    cut = cut_of(model, do)
    plain = generated(model, text.tokenizer, PROMPTS[0])
    with cut(model):
        expected = generated(model, text.tokenizer, PROMPTS[0])
    assert not torch.equal(plain, expected)
    if way == "edit":
        edited = cut.edit(text)
        for _ in range(2):  # what was counted in the first run does not count in the second
            with edited.generate(PROMPTS[0], **LONG) as tracer:
                result = tracer.result.save()
            assert torch.equal(result, expected)
    else:
        with cut(text), text.generate(PROMPTS[0], **LONG) as tracer:
            result = tracer.result.save()
        assert torch.equal(result, expected)
    with text.generate(PROMPTS[0], **LONG) as tracer:
        result = tracer.result.save()
    assert torch.equal(result, plain)


@pytest.mark.parametrize("name", LAYERED)
def test_zeros_without_knowing_how_the_site_adds(name):
    model = models.built(name)
    cut = ls.Surgery(at=[replace(site, adds="") for site in ls.select(model)], do=ls.Zero())
    with cut(model):
        expected = models.run(model, name)
    assert torch.equal(traced(cut.edit(wrapped(model)), name), expected)


def test_a_generation_without_nnsight_does_not_see_an_edit(text):
    before = generated(text._module, text.tokenizer, PROMPTS[0])
    cut_of(text, ls.Skip()).edit(text)
    assert torch.equal(generated(text._module, text.tokenizer, PROMPTS[0]), before)


@pytest.mark.parametrize("do", [ls.Zero(), ls.Skip(), ls.Skip(positions=[-1])], ids=repr)
def test_several_prompts_in_one_trace(text, do):
    cut = cut_of(text, do)
    edited = cut.edit(text)
    batch = text.tokenizer(PROMPTS, padding=True, return_tensors="pt")
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with cut(text._module):
        expected = text._module(**batch, position_ids=positions).logits
    with edited.trace() as tracer:
        with tracer.invoke(PROMPTS[0]):
            first = edited.output.logits.save()
        with tracer.invoke(PROMPTS[1]):
            second = edited.output.logits.save()
    real = batch["attention_mask"].bool()
    assert torch.equal(first[0], expected[0])
    assert torch.equal(second[0][real[1]], expected[1][real[1]])
    with cut(text), text.trace() as tracer:
        with tracer.invoke(PROMPTS[0]):
            inside = text.output.logits.save()
        with tracer.invoke(PROMPTS[1]):
            other = text.output.logits.save()
    assert torch.equal(inside, first)
    assert torch.equal(other, second)


def test_edits_add_up_in_order():
    model = models.built("gpt2")
    sites = ls.select(model, "layer")
    halved, skipped = ls.Surgery(sites[1], ls.Scale(0.5, what="contribution")), ls.Surgery(sites[:2], ls.Skip())
    with halved(model), skipped(model):
        expected = models.run(model, "gpt2")
    envoy = wrapped(model)
    assert torch.equal(traced(skipped.edit(halved.edit(envoy)), "gpt2"), expected)
    assert torch.equal(traced((halved + skipped).edit(envoy), "gpt2"), expected)
    with skipped(model):
        assert torch.equal(traced(halved.edit(envoy), "gpt2"), expected)


def test_a_users_own_edit_is_kept():
    model = models.built("gpt2")
    envoy = wrapped(model)
    with envoy.edit() as (_, mine):
        mine.transformer.wte.output = mine.transformer.wte.output * 0
    with testing.restored(model):
        edited = cut_of(model, ls.Skip()).edit(mine)
        logits = traced(edited, "gpt2")
    other = traced(mine, "gpt2")
    assert not torch.equal(logits, other)
    assert torch.equal(logits[0], logits[1])  # all tokens look alike without their embeddings


def test_what_a_trace_reads_at_the_site(text):
    layer = ls.select(text, "layer")[1]
    cut = ls.Surgery(at=layer, do=ls.Skip())
    edited = cut.edit(text)
    with edited.trace(PROMPTS[0]):
        came = edited.model.layers[1].input.save()
        went = edited.model.layers[1].output.save()
    assert torch.equal(came, went)
    with cut(text), text.trace(PROMPTS[0]):
        came = text.model.layers[1].input.save()
        computed = text.model.layers[1].output.save()
        went = text.model.layers[2].input.save()
    assert torch.equal(came, went)
    assert not torch.equal(came, computed)  # nnsight reads before any hook of torch


def test_modules_called_output_are_reached():
    model = models.built("bert")
    site = ls.select(model, pattern="bert.encoder.layer.1.output")[0]
    cut = ls.Surgery(at=site, do=ls.Zero())
    with cut(model):
        expected = models.run(model, "bert")
    assert torch.equal(traced(cut.edit(wrapped(model)), "bert"), expected)


def test_tied_everywhere():
    model = models.built("llava")
    site = ls.select(model, pattern="lm_head")[0]
    here, everywhere = ls.Surgery(site, ls.Zero()), ls.Surgery(site, ls.Zero(), tied="everywhere")
    envoy = wrapped(model)
    for cut in (here, everywhere):
        with cut(model):
            expected = models.run(model, "llava")
        assert torch.equal(traced(cut.edit(envoy), "llava"), expected)


def test_a_tower_that_the_input_does_not_reach():
    model = models.built("llava")
    cut = ls.Surgery(at=ls.select(model, tower="vision"), do=ls.Zero())
    edited = cut.edit(wrapped(model))
    with edited.trace(input_ids=models.tokens()):
        logits = edited.output.logits.save()
    assert torch.equal(logits, model(input_ids=models.tokens()).logits)
    with cut(model):
        expected = models.run(model, "llava")
    assert torch.equal(traced(edited, "llava"), expected)


def test_keys_and_values_that_another_tower_reads():
    name = "vlm/pi0"  # its action expert attends to what the language tower's attention made of the prompt
    model = build.build(name)
    cut = ls.Surgery(at=ls.select(model), do=ls.Zero())
    given = inputs(name)
    with torch.random.fork_rng(), cut(model):
        torch.manual_seed(0)
        expected = model(**given)[0]
    edited = cut.edit(wrapped(model))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with edited.trace(**given):
            output = edited.output.save()
    assert torch.equal(output[0], expected)


def test_attention_to_an_encoder_that_is_not_there():
    model = build.build("causal/mbart")
    cut = ls.Surgery(at=adding(ls.select(model)), do=ls.Zero())
    assert "cross_attention" in {site.kind for site in cut.sites}
    tokens = models.tokens() + 64
    with cut(model):
        expected = model(input_ids=tokens).logits
    edited = cut.edit(wrapped(model))
    with edited.trace(input_ids=tokens):
        logits = edited.output.logits.save()
    assert torch.equal(logits, expected)


def test_parameters_that_no_module_multiplies_by():
    model = build.build("causal/qwen3_next")  # decays and a convolution's weights among its mixers' parameters
    cut = ls.Surgery(at=adding(ls.select(model)), do=ls.Zero())
    tokens = models.tokens() + 64
    with cut(model):
        expected = model(input_ids=tokens).logits
    edited = cut.edit(wrapped(model))
    with edited.trace(input_ids=tokens):
        logits = edited.output.logits.save()
    assert torch.equal(logits, expected)


def test_a_stopped_trace_is_no_error():
    model = models.built("gpt2")
    edited = cut_of(model, ls.Zero()).edit(wrapped(model))
    with edited.trace(**models.inputs("gpt2")) as tracer:
        states = edited.transformer.h[0].output.save()
        tracer.stop()
    assert isinstance(states, torch.Tensor)


def test_nothing_is_said_where_all_is_well(text):
    edited = cut_of(text, ls.Zero()).edit(text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with edited.generate(PROMPTS[0], **LONG) as tracer:
            tracer.result.save()


@pytest.mark.parametrize("do", [ls.Uniform(), ls.Mean(), ls.Noise(), ls.LowRank(0.5)], ids=repr)
def test_what_needs_the_weights_is_refused(do):
    envoy = wrapped(models.built("gpt2"))
    with pytest.raises(SurgeryError, match="needs the values of the weights"):
        cut_of(envoy, do, "mlp").edit(envoy)
    assert not envoy._edits


def test_what_is_not_proportional_to_its_weights_is_refused():
    envoy = wrapped(models.built("plain_transformer"))
    with pytest.raises(SurgeryError, match=r"MultiheadAttention\) gives is not simply proportional.*contribution"):
        cut_of(envoy, ls.Scale(0.5)).edit(envoy)


def test_slices_are_refused():
    envoy = wrapped(models.built("gpt2"))
    piece = Slice("c_proj.weight", 0, ((0, 8),))
    site = replace(ls.select(envoy)[0], adds="output", slices=(piece,), label="head 0")
    with pytest.raises(SurgeryError, match="slice of parameters"):
        ls.Surgery(site, ls.Zero()).edit(envoy)


@pytest.mark.parametrize(
    ("role", "do", "passed_by"),
    [("mlp", ls.Scale(0.5), "linear1"), ("attention", ls.Zero(what="contribution"), "self_attn")],
)
def test_a_fast_path_that_passes_a_module_by_is_noticed(role, do, passed_by):
    model = models.built("plain_transformer")
    edited = cut_of(model, do, role).edit(wrapped(model))
    with pytest.raises(SurgeryError, match=rf"{passed_by} was never called.*`with surgery\(model\):`"):
        traced(edited, "plain_transformer")


def test_a_layer_is_skipped_on_the_fast_path_too():
    model = models.built("plain_transformer")
    cut = cut_of(model, ls.Skip())
    with cut(model):
        expected = models.run(model, "plain_transformer")
    assert torch.equal(traced(cut.edit(wrapped(model)), "plain_transformer"), expected)


@pytest.mark.parametrize("what", [nn.Linear(1, 1), "gpt2", None], ids=repr)
def test_what_is_no_nnsight_model(what):
    cut = ls.Surgery(at=ls.Site("h.0"), do=ls.Zero())
    with pytest.raises(SurgeryError, match="an edit is for nnsight models"):
        cut.edit(what)


def test_modules_that_run_several_times_a_pass():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, states):
            return states + self.inner(states + self.inner(states))

    torch.manual_seed(0)
    model = Twice()
    cut = ls.Surgery(at=ls.select(model, pattern="inner"), do=ls.Scale(0.5))
    states = torch.randn(2, 4)
    with cut(model):
        expected = model(states)
    edited = cut.edit(wrapped(model))
    with edited.trace(states):
        result = edited.output.save()
    assert torch.equal(result, expected)
