"""Changes of what comes out of a module: forms, layers, positions and steps, beside hooks written by hand."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from torch import nn

import layersurgery as ls
from layersurgery import testing
from layersurgery.errors import InterventionError, SurgeryError
from layersurgery.surgery._outputs import main_tensor, with_tensor
from tests import models

CUT = ls.Zero(what="contribution")


def logits(model, ids=None, **more):
    ids = models.tokens() if ids is None else ids
    with torch.no_grad():
        return model(input_ids=ids, **more).logits


def adding_its_output(site):
    return replace(site, adds="output")


@pytest.fixture
def llama():
    return models.built("llama")


@pytest.fixture
def attention(llama):
    return [adding_its_output(site) for site in ls.select(llama)]


def test_both_forms_agree_bitwise_where_the_output_is_all(llama, attention):
    for site in attention:
        with ls.Surgery(at=site, do=ls.Zero())(llama):
            wanted = logits(llama)
        with testing.restored(llama), ls.Surgery(at=site, do=CUT)(llama):
            assert torch.equal(logits(llama), wanted)
            assert ls.status(llama)[0].do == CUT
    assert not ls.status(llama)


def test_skip_returns_the_layers_input_bit_for_bit(llama):
    site = ls.select(llama, "layer")[1]
    layer = llama.get_submodule(site.path)
    seen = {}
    taken = layer.register_forward_hook(lambda m, given, out: seen.update(given=given[0], out=out))
    try:
        before = logits(llama)
        assert not torch.equal(seen["given"], main_tensor(seen["out"]))
        with ls.Surgery(at=site, do=ls.Skip())(llama):
            assert not torch.equal(logits(llama), before)
            assert torch.equal(seen["given"], main_tensor(seen["out"]))
    finally:
        taken.remove()


def test_scaling_a_contribution(llama, attention):
    def run(factor):
        with testing.restored(llama), ls.Surgery(at=attention[0], do=ls.Scale(factor, what="contribution"))(llama):
            return logits(llama)

    assert torch.equal(run(1), logits(llama))
    with ls.Surgery(at=attention[0], do=CUT)(llama):
        assert torch.equal(run(0.3), logits(llama))  # nothing is left of what is zero already
        wanted = logits(llama)
    assert torch.equal(run(0), wanted)
    hook = llama.get_submodule(attention[0].path).register_forward_hook(lambda m, a, out: (out[0] * 0.5, *out[1:]))
    wanted = logits(llama)
    hook.remove()
    assert torch.equal(run(0.5), wanted)


class _Residual(nn.Module):
    """Adds its own residual, as bloom's attention does; gives a named tuple."""

    Out = namedtuple("Out", ("states", "weights"))

    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(4, 4)

    def forward(self, states, residual):
        return self.Out(self.dense(states) + residual, torch.ones(3))


def test_a_stream_inside_stays_bit_for_bit():
    model = nn.ModuleDict({"attn": _Residual()}).eval()
    states, residual = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    for adds in ("input:1", "input:residual"):
        cut = ls.Surgery(at=ls.Site("attn", role="attention", adds=adds), do=CUT)
        with cut(model):
            given = {"residual": residual} if adds.endswith("l") else {}
            out = model["attn"](states, *([] if given else [residual]), **given)
        assert torch.equal(out.states, residual)
        assert torch.equal(out.weights, torch.ones(3))
        assert type(out) is _Residual.Out


def test_a_norm_of_the_sum_stays():
    model = models.built("bert")
    site = replace(ls.select(model)[0], adds="module:output.dense")
    norm, dense = model.get_submodule(f"{site.path}.output.LayerNorm"), model.get_submodule(f"{site.path}.output.dense")
    seen = {}
    keep = dense.register_forward_hook(lambda m, given, out: seen.update(dense=out))
    read = norm.register_forward_hook(lambda m, given, out: seen.update(sum=given[0]))
    whole = model.get_submodule(site.path).register_forward_pre_hook(lambda m, given: seen.update(stream=given[0]))
    try:
        with testing.restored(model), ls.Surgery(at=site, do=CUT)(model):
            logits(model)
            assert not seen["dense"].any()
            assert torch.equal(seen["sum"], seen["stream"])
    finally:
        for handle in (keep, read, whole):
            handle.remove()


class _TwoOutputs(nn.Module):
    """Attention that hands out its bias besides, as GPT-NeoX Japanese's last layer has it."""

    def __init__(self, width):
        super().__init__()
        self.mixing = nn.MultiheadAttention(width, 2, bias=False, batch_first=True)
        self.shift = nn.Parameter(torch.randn(width))

    def forward(self, states):
        return self.mixing(states, states, states)[0], self.shift


class _AddsBoth(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attention = _TwoOutputs(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, states):
        mixed, shift = self.attention(states)
        states = states + (mixed + shift)
        return states + self.mlp(states)


def test_a_second_output_that_is_added_as_well():
    torch.manual_seed(0)
    model = nn.Sequential(*(_AddsBoth(8) for _ in range(3))).eval()
    site = ls.select(model)[1]
    assert (site.adds, site.hazards) == ("output:1", ())
    x = torch.randn(2, 5, 8)
    first = model[0](x)
    silent = model[2](first + model[1].mlp(first))
    mixed, shift = model[1].attention(first)
    for what in ("parameters", "contribution"):
        with testing.restored(model), ls.Surgery(at=site, do=ls.Zero(what=what))(model):
            assert torch.equal(model(x), silent)
    at_one = first + torch.where(torch.arange(5)[:, None] == 3, 0.5, 1.0) * (mixed + shift)
    with testing.restored(model), ls.Surgery(at=site, do=ls.Scale(0.5, what="contribution", positions=3))(model):
        torch.testing.assert_close(model(x), model[2](at_one + model[1].mlp(at_one)))


def test_what_is_not_known_is_refused(llama, attention):
    unknown = replace(attention[0], adds="")
    with testing.restored(llama), pytest.raises(SurgeryError, match=r"without seeing it run.*example="):
        ls.Surgery(at=unknown, do=CUT).attach(llama)
    with (
        testing.restored(llama),
        pytest.raises(SurgeryError, match=r"role 'layer' or 'module'.*is of role 'attention'"),
    ):
        ls.Surgery(at=attention[0], do=ls.Skip()).attach(llama)
    with pytest.raises(SurgeryError, match="no change of weights says the same"):
        ls.Surgery(at=attention[0], do=CUT).merge_(llama)


def test_a_layer_of_another_shape_is_an_error_and_the_model_is_restored():
    model = nn.Sequential(nn.Linear(4, 3)).eval()
    cut = ls.Surgery(at=ls.select(model, pattern="0"), do=ls.Skip())
    message = r"gives \(2, 3\) and was called with \[\(2, 4\)\]"
    with testing.restored(model), pytest.raises(SurgeryError, match=message), cut(model):
        model(torch.ones(2, 4))


def test_blocks_cross_and_interleave(llama, attention):
    with ls.Surgery(at=attention[0], do=CUT)(llama):
        alone = logits(llama)
    with testing.restored(llama):
        half = ls.Surgery(at=attention[0], do=ls.Scale(0.5, what="contribution")).attach(llama)
        cut = ls.Surgery(at=[attention[0], attention[1]], do=CUT).attach(llama)
        weights = ls.Surgery(at=attention[1], do=ls.Mean()).attach(llama)
        assert [step.do for step in ls.status(llama)] == [half_of(0.5), CUT, CUT, ls.Mean()]
        half.remove()
        half.remove()
        weights.remove()
        cut.remove()
        last = ls.Surgery(at=attention[0], do=CUT).attach(llama)
        assert torch.equal(logits(llama), alone)
        last.remove()


def half_of(factor):
    return ls.Scale(factor, what="contribution")


def test_others_hooks_see_what_comes_out_and_stay(llama, attention):
    module = llama.get_submodule(attention[0].path)
    seen = []
    handle = module.register_forward_hook(lambda m, a, out: seen.append(out[0].abs().max().item()))
    try:
        with testing.restored(llama), ls.Surgery(at=attention[0], do=CUT)(llama):
            logits(llama)
        assert seen == [0.0]
    finally:
        handle.remove()


@pytest.mark.parametrize("positions", [[0], [-1], [1, 3], range(2)], ids=str)
def test_positions_are_those_of_the_sequence_with_and_without_a_cache(llama, attention, positions):
    ids = models.tokens()
    length = ids.shape[1]
    chosen = [p % length if p >= 0 else length + p for p in positions]

    def hook(module, given, output):
        states = output[0].clone()
        states[:, chosen] = 0
        return (states, *output[1:])

    by_hand = llama.get_submodule(attention[1].path).register_forward_hook(hook)
    wanted = logits(llama, ids)
    by_hand.remove()
    cut = ls.Surgery(at=attention[1], do=ls.Zero(what="contribution", positions=positions))
    with testing.restored(llama), cut(llama), torch.no_grad():
        assert torch.equal(logits(llama, ids), wanted)
        if min(positions) < 0:
            return
        out = llama(input_ids=ids[:, :2], use_cache=True)
        parts = [out.logits]
        for at in range(2, length):
            out = llama(input_ids=ids[:, at : at + 1], past_key_values=out.past_key_values, use_cache=True)
            parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), wanted, atol=1e-5, rtol=1e-5)


def test_steps_are_counted_in_each_generation_anew(llama, attention):
    ids = models.tokens()

    def run(**more):
        return llama.generate(
            ids, max_new_tokens=4, min_new_tokens=4, do_sample=False, output_scores=True, return_dict_in_generate=True
        ).scores

    plain = run()
    for step in (0, 2):
        cut = ls.Surgery(at=attention[0], do=ls.Zero(what="contribution", steps=step))
        with testing.restored(llama), cut(llama):
            first, second = run(), run()
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert [torch.equal(a, b) for a, b in zip(plain, first, strict=True)][: step + 1] == [True] * step + [False]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ls.Zero(what="output"), "'parameters' or 'contribution'"),
        (lambda: ls.Zero(positions=[0]), r"positions=\[0\] with what='parameters'"),
        (lambda: ls.Zero(what="contribution", positions=[]), "at least one"),
        (lambda: ls.Zero(what="contribution", steps=[1.5]), "whole numbers"),
        (lambda: ls.Zero(what="contribution", steps=-1), "counted from 0"),
        (lambda: ls.Zero(what="contribution", positions="all"), "whole numbers"),
        (lambda: ls.Scale(float("nan")), "finite number"),
        (lambda: ls.Scale("2"), "finite number"),
        (lambda: ls.Skip(what="parameters"), "leave `what` out"),
        (lambda: ls.LowRank(0), "above 0 and at most 1"),
        (lambda: ls.LowRank(True), "above 0 and at most 1"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(InterventionError, match=message):
        make()


def test_outputs_of_every_kind_keep_their_type():
    from transformers.modeling_outputs import BaseModelOutput

    new = torch.ones(2)
    for output in (torch.zeros(2), [torch.zeros(2), 1], {"a": 1, "b": torch.zeros(2)}, BaseModelOutput(torch.zeros(2))):
        changed = with_tensor(output, main_tensor(output), new)
        assert type(changed) is type(output)
        assert main_tensor(changed) is new
        assert not main_tensor(output).any()


def test_files_keep_every_setting(tmp_path, attention):
    do = ls.Zero(what="contribution", positions=[0, -1], steps=range(2))
    cut = ls.Surgery(at=attention[0], do=do) + ls.Surgery(at=attention[1], do=ls.LowRank(0.25))
    cut.save_pretrained(tmp_path)
    assert ls.Surgery.from_pretrained(tmp_path) == cut


@pytest.mark.parametrize("name", ["causal/llama4_text", "vlm/llama4"])
def test_positions_where_the_samples_are_one_long_row_of_tokens(name):
    from tests.architectures.build import build
    from tests.architectures.inputs import inputs

    model, given = build(name), inputs(name)
    site = ls.select(model, "mlp")[-1]
    seen = []
    module = model.get_submodule(site.path)
    hook = module.register_forward_hook(lambda m, a, out: seen.append(main_tensor(out).clone()))
    try:
        with torch.no_grad():
            model(**given)
            with testing.restored(model), ls.Surgery(at=site, do=ls.Zero(what="contribution", positions=[1]))(model):
                model(**given)
    finally:
        hook.remove()
    samples, length = given["input_ids"].shape
    before, after = (states.reshape(samples, length, -1) for states in seen)
    assert not after[:, 1].any()
    assert before[:, 1].any()
    kept = [0, *range(2, length)]
    assert torch.equal(before[:, kept], after[:, kept])


def test_positions_are_refused_where_they_come_first():
    from tests.architectures.build import build

    model = build("causal/xlnet")
    layers = ls.select(model, "layer")
    assert layers[0].hazards == ("positions_first",)
    with testing.restored(model), pytest.raises(SurgeryError, match=r"\[position, sample, width\]"):
        ls.Surgery(at=layers, do=ls.Skip(positions=0)).attach(model)
