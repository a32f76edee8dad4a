"""From the second recording on, modules whose calls tell nothing are left alone, and all is as if they were not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import layersurgery as ls
from layersurgery.sweeps._prefix import SharedPrefix
from layersurgery.sweeps._prefix_record import NEVER
from tests import models
from tests.sweeps.test_prefix_guards import INPUTS, SHARED, WIDTH, Layer, Tower, compared, mixers, run

NAMES = ["llama", "gpt2", "bert", "vit", "t5", "llava", "qwen2_vl", "plain_transformer"]


def passes_of(prefix, score):
    with torch.no_grad(), prefix.recording():
        score()
    return prefix.passes


def compare(complete, later):
    """What was followed began when it did, and what was not, at no later time."""
    assert len(complete) == len(later) > 0
    for one, other in zip(complete, later, strict=True):
        assert one.first.keys() == other.first.keys()
        followed = set(other.events)
        assert [module for module in one.events if module in followed] == other.events
        for module, begin in other.first.items():
            before = sum(part in followed for part in one.events[: one.first[module]])
            assert begin == before if module in followed else begin < before


@torch.no_grad()
def compare_scores(shared, full, batches):
    """Whether base and variants give the same as those of a like model that runs in full."""
    sites = mixers(shared)
    prefix = SharedPrefix(shared, sites)
    for inputs in batches:
        with prefix.recording():
            base = shared(inputs)
        assert torch.equal(base, full(inputs))
        for site in sites:
            cut = ls.Surgery(at=site, do=ls.Zero())
            with cut(shared), prefix.replaying(site):
                variant = shared(inputs)
            with cut(full):
                assert torch.equal(variant, full(inputs))


@pytest.mark.parametrize("role", ["attention", "mlp", "layer"])
@pytest.mark.parametrize("name", NAMES)
def test_real_models(name, role):
    model = models.fresh(name)
    sites = ls.select(model, role)
    prefix = SharedPrefix(model, sites)
    complete = passes_of(prefix, lambda: models.run(model, name))
    later = passes_of(prefix, lambda: models.run(model, name))
    assert sum(len(one.events) for one in later) < sum(len(one.events) for one in complete)
    compare(complete, later)
    for site in sites:
        modules = prefix._sites[site]
        for one, other in zip(complete, later, strict=True):
            begun, cut = one.cut(modules, prefix._parts), other.cut(modules, prefix._parts)
            assert cut == (sum(part in other.events for part in one.events[: int(begun)]) if begun < NEVER else NEVER)


def test_a_small_model_is_answered_for_as_before():
    prefix, ran = compared(Tower(), batches=3)
    assert ran[-4:] == SHARED
    assert prefix.notes == []


class Borrows(Layer):
    def forward(self, states):
        return super().forward(self.borrowed(states))


class Lent(Tower):
    """Its layers use a module that none of them holds, and that nothing shows them to hold."""

    def __init__(self, lent):
        super().__init__(Borrows)
        self.lent = lent
        for layer in self.layers:
            layer.borrowed = lambda states, lent=lent: lent(states)


class CountsLater(nn.Module):
    """Its state changes in each call, once `is_late` says so."""

    def __init__(self, is_late):
        super().__init__()
        self.calls, self.is_late = 0, is_late

    def forward(self, states):
        if self.is_late():
            self.calls += 1
        return states * (1 + 0.1 * self.calls)


def test_what_is_lent_is_followed():
    begun = []
    full, shared = (Lent(CountsLater(lambda: len(begun) > 2)).eval() for _ in range(2))

    def batches():
        for number in range(4):
            begun.append(number)
            yield INPUTS

    compare_scores(shared, full, batches())


class UsesAPartFirst(Layer):
    """Uses a part of another part before that runs."""

    def __init__(self):
        super().__init__()
        self.mixer = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
        self.between = nn.Linear(WIDTH, WIDTH)

    def forward(self, states):
        states = self.between(self.mixer[0](states))
        return super().forward(states)


def test_a_part_that_runs_before_what_holds_it():
    model = Tower(UsesAPartFirst).eval()
    prefix = SharedPrefix(model, mixers(model))
    complete, later = (passes_of(prefix, lambda: run(model)) for _ in range(2))
    compare(complete, later)
    for layer in model.layers:
        assert later[0].first[layer.mixer[0]] < later[0].first[layer.mixer]
    compared(Tower(UsesAPartFirst), batches=3)


def test_what_did_not_run_at_first_is_followed():
    class Chooses(Tower):
        def __init__(self):
            super().__init__()
            self.others = nn.ModuleList(Layer() for _ in range(2))

        def forward(self, states):
            states = self.others[int(states.sum() > 0)](self.embed(states))
            for layer in self.layers:
                states = layer(states)
            return self.head(states)

    model = Chooses().eval()
    prefix = SharedPrefix(model, mixers(model))
    inputs = torch.ones(2, 3, WIDTH)
    passes_of(prefix, lambda: model(-inputs))
    later = passes_of(prefix, lambda: model(inputs))
    assert model.others[1].mlp in later[0].events
    again = passes_of(prefix, lambda: model(-inputs))
    assert model.others[0].mlp not in again[0].events
    assert model.others[0] in again[0].first


def test_routes_that_change_from_batch_to_batch():
    class Routes(Layer):
        """Which of its parts runs depends on the numbers."""

        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

        def forward(self, states):
            chosen = int(states.abs().sum() * 1e3) % 3
            return self.experts[chosen](super().forward(states))

    shared = Tower(Routes).eval()
    batches = [torch.linspace(-1, 1 + number, INPUTS.numel()).reshape(INPUTS.shape) for number in range(6)]
    compare_scores(shared, copy.deepcopy(shared), batches)
