"""Knocked-out modules are not run where zeros are known to come out of them; where they are not, they are."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import layersurgery as ls
from layersurgery.sweeps._prefix import SharedPrefix
from tests import models
from tests.sweeps.test_prefix import same
from tests.sweeps.test_prefix_guards import WIDTH, Tower, mixers, run


class Mixer(nn.Module):
    """Like an attention: it gives what its last matrix gives, and no weights."""

    normed = False

    def __init__(self):
        super().__init__()
        self.into = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        if self.normed:
            self.norm = Norm()

    def forward(self, states, cache=None):
        inner = self.into(states).tanh()
        return self.ended(self.out(self.norm(inner) if self.normed else inner), states, cache)

    def ended(self, output, states, cache):
        return output, None


class Norm(nn.Module):
    """Not a number comes out of zeros: there is nothing that keeps it from dividing by zero."""

    def forward(self, states):
        return states / states.norm(dim=-1, keepdim=True)


class Overflows(Mixer):
    """In the last layer only: it is made of the same as the others."""

    made = 0

    def __init__(self):
        super().__init__()
        type(self).made += 1
        self.norm = Times(torch.inf if type(self).made % 4 == 0 else 1.0)

    normed = True


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, states):
        return states * self.factor


class Alone(Mixer):
    def ended(self, output, states, cache):
        return output


class WithWeights(Mixer):
    def ended(self, output, states, cache):
        return output, states.sum()


class AddsWhatItIsGiven(Mixer):
    def ended(self, output, states, cache):
        return output + states, None


class AddsInPlace(Mixer):
    """What it gives is what the matrix gave, and is not any more what that was. The first has nothing to add."""

    def __init__(self):
        super().__init__()
        self.adds = AddsInPlace.made > 0
        AddsInPlace.made += 1

    made = 0

    def ended(self, output, states, cache):
        return output.add_(states if self.adds else 0), None


class WritesIntoWhatItIsGiven(Mixer):
    def ended(self, output, states, cache):
        states.mul_(2)
        return output, None


class FillsACache(Mixer):
    def ended(self, output, states, cache):
        cache.append(states)
        return output, None


class Draws(Mixer):
    def ended(self, output, states, cache):
        states.add_(torch.rand(()))
        return output, None


class Counts(Mixer):
    def ended(self, output, states, cache):
        self.calls = getattr(self, "calls", 0) + 1
        return output, None


class Normed(Mixer):
    normed = True


class NormedInTheEnd(Mixer):
    """The first of the kind is not like the last, though its code is."""

    made = 0

    def __init__(self):
        type(self).made += 1
        self.normed = type(self).made % 4 == 0
        super().__init__()


def tower(kind):
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixer = kind()
            self.mlp = nn.Linear(WIDTH, WIDTH)

        def forward(self, states):
            cache = [] if kind is FillsACache else None
            output = self.mixer(states.clone(), cache)
            first, *others = output if isinstance(output, tuple) else (output,)
            states = states + first + sum(one for one in (*others, *(cache or ())) if one is not None)
            return states + self.mlp(states).tanh()

    return Tower(Layer).eval()


def runs(model, do=None, score=run, batches=2, prepare=lambda module: None):
    """How often the site's mixer runs in each variant's call; what the call gives is what a copy gives."""
    other = copy.deepcopy(model)
    prepare(model), prepare(other)
    sites = mixers(model)
    prefix = SharedPrefix(model, sites)
    found = []
    for _ in range(batches):
        torch.manual_seed(0)
        with prefix.recording():
            score(model)
        for site in sites:
            mixer = model.get_submodule(site.path)
            cut = ls.Surgery(at=site, do=do or ls.Zero())
            ran = []
            with cut(other):
                torch.manual_seed(0)
                full = score(other)
            with pytest.MonkeyPatch.context() as patch, cut(model), prefix.replaying(site):
                patch.setattr(type(mixer), "ended", counted(type(mixer).ended, ran))
                torch.manual_seed(0)
                shared = score(model)
            assert same(shared, full), site
            found.append(ran.count(mixer))
    return found


def counted(method, ran):
    def run(self, *given):
        ran.append(self)
        return method(self, *given)

    return run


@pytest.mark.parametrize("kind", [Mixer, Alone])
def test_a_knocked_out_mixer_is_not_run(kind):
    assert runs(tower(kind)) == [1, 0, 0, 0, 0, 0, 0, 0]  # the first shows that nothing else comes out of it


@pytest.mark.parametrize(
    "kind", [WithWeights, AddsWhatItIsGiven, WritesIntoWhatItIsGiven, FillsACache, Draws, Counts, Normed]
)
def test_others_are(kind):
    assert runs(tower(kind)) == [1] * 8


def test_what_is_added_in_place_is_seen_in_each():
    AddsInPlace.made = 0
    assert runs(tower(AddsInPlace)) == [1] * 8


def test_one_that_is_made_in_another_way_is_tried_first():
    NormedInTheEnd.made = 0
    assert runs(tower(NormedInTheEnd)) == [1, 0, 0, 1, 0, 0, 0, 1]


@pytest.mark.parametrize("do", [ls.Uniform(), ls.Mean(), ls.Scale(0.5)])
def test_other_interventions(do):
    assert runs(tower(Mixer), do) == [1] * 8


def test_what_is_not_finite_is_multiplied_with_zeros():
    def score(model):
        states = torch.ones(1, 2, WIDTH)
        states[0, 0, 0] = torch.inf
        with torch.no_grad():
            return model(states)

    assert runs(tower(Mixer), score=score) == [1] * 8


def test_what_becomes_infinite_inside_is_multiplied_with_zeros():
    Overflows.made = 0
    assert runs(tower(Overflows)) == [1, 0, 0, 1, 0, 0, 0, 1]


def test_somebody_who_looks_inside_sees_it_run():
    def look(model):
        model.layers[2].mixer.out.register_forward_hook(lambda *_: None)

    assert runs(tower(Mixer), prepare=look) == [1, 0, 1, 0, 0, 0, 1, 0]


@pytest.mark.parametrize(("settings", "expected"), [({}, 1), ({"use_cache": True}, 6), ({"eager": True}, 6)])
def test_attention_of_a_real_model(settings, expected, monkeypatch):
    """With a KV cache it must run, to leave its keys and values there; and to give weights, if it gives any."""
    model = models.fresh("llama")
    if settings.get("eager"):
        model.set_attn_implementation("eager")
    sites = ls.select(model)
    tokens, prefix, ran = torch.arange(12).reshape(1, 12), SharedPrefix(model, sites), []
    given = {"use_cache": settings.get("use_cache", False)}
    kind = type(model.get_submodule(sites[0].path))
    forward = kind.forward

    def counting(self, *arguments, **keywords):
        ran.append(self)
        return forward(self, *arguments, **keywords)

    monkeypatch.setattr(kind, "forward", counting)
    count = 0
    with torch.no_grad():
        for _ in range(2):
            with prefix.recording():
                model(tokens, **given)
            for site in sites:
                with ls.Surgery(at=site, do=ls.Zero())(model):
                    full = model(tokens, **given)
                    ran.clear()
                    with prefix.replaying(site):
                        assert same(model(tokens, **given), full)
                    count += ran.count(model.get_submodule(site.path))
    assert count == expected
