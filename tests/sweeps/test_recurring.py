"""Surgeries that are put in force again and again, on a model that stays the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import layersurgery as ls
from layersurgery import testing
from layersurgery.sweeps._prefix import SharedPrefix, _modules
from layersurgery.sweeps._recurring import Recurring
from tests import models

DONE = [ls.Zero(), ls.Uniform(), ls.Mean(), ls.Scale(0.5), ls.Noise(seed=3), ls.Zero(what="contribution"), ls.Skip()]


@pytest.mark.parametrize("do", DONE, ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
@torch.no_grad()
def test_the_same_as_the_surgery_itself(name, do):
    model = models.fresh(name)
    recurring = Recurring(model)
    role = do.roles[0] if do.roles else "attention"
    cuts = [ls.Surgery(at=site, do=do) for site in ls.select(model, role)]
    for cut in cuts:
        with cut(model):
            expected = models.run(model, name)
        for _ in range(2):
            modules = [part for site in cut.sites for part in _modules(model, site)]
            with testing.restored(model), recurring.in_force(cut, modules) as applied:
                assert torch.equal(models.run(model, name), expected)
                assert ls.status(model) == cut.steps
            assert applied.modules >= set(modules)


def test_what_others_write_into_zeros_is_not_there_the_next_time():
    """A bias of one number can be written into."""
    model = nn.Sequential(nn.Linear(1, 1)).eval()
    cut, recurring = ls.Surgery(at=ls.select(model, pattern="0"), do=ls.Zero()), Recurring(model)
    for _ in range(3):
        with testing.restored(model), torch.no_grad(), recurring.in_force(cut, [model[0]]) as applied:
            assert not model[0].bias.any()
            assert applied.silent.linear == {model[0]}
            model[0].bias.add_(1)


def test_each_time_the_parameters_are_new_ones():
    """What somebody has noted on one, such as a gradient, is not seen the next time."""
    model = nn.Sequential(nn.Linear(3, 2))
    cut, recurring = ls.Surgery(at=ls.select(model, pattern="0"), do=ls.Zero()), Recurring(model)
    seen = []
    for _ in range(2):
        with recurring.in_force(cut, [model[0]]):
            assert model[0].weight.grad is None
            model(torch.ones(1, 3)).sum().backward()
            assert model[0].weight.grad is not None
            seen.append(model[0].weight)
    assert seen[0] is not seen[1]
    assert model[0].weight.grad is None


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_errors_leave_nothing_behind(error):
    model = models.fresh("llama")
    cut, recurring = ls.Surgery(at=ls.select(model)[0], do=ls.Zero()), Recurring(model)
    for _ in range(2):
        with testing.restored(model), pytest.raises(error), recurring.in_force(cut, []):
            raise error


@pytest.mark.parametrize("do", [ls.Zero(), ls.Mean(), ls.Skip(), ls.Noise(seed=3)], ids=str)
@torch.no_grad()
def test_what_will_happen_is_found_when_the_base_was_recorded(do):
    """Of what was in force before, where its values take no memory."""
    model = models.fresh("llama")
    role = do.roles[0] if do.roles else "attention"
    sites = ls.select(model, role)
    cuts = [ls.Surgery(at=site, do=do) for site in sites]
    prefix = SharedPrefix(model, sites)
    for batch in range(3):
        with prefix.recording():
            models.run(model, "llama")
        prefix.prepare(cuts)
        assert len(prefix._courses) == (len(cuts) if batch and not isinstance(do, ls.Noise) else 0)
        for cut in cuts:
            with cut(model):
                expected = models.run(model, "llama")
            with prefix.in_force(cut) as applied, prefix.replaying(cut.sites[0], applied=applied):
                assert torch.equal(models.run(model, "llama"), expected)
            assert prefix.has_answered
