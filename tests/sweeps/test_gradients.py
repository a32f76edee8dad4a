"""The gradients that `tests.benchmarks.screening` reports on are right, so that what it says of them is, too."""

from __future__ import annotations

import numpy as np
import pytest

import layersurgery as ls
from layersurgery import testing
from layersurgery.embedded import load, make_samples
from tests.benchmarks import screening

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def embedded():
    return load("natural")


@pytest.fixture(scope="module")
def samples():
    return [*make_samples("digit_even", "probe", 3), *make_samples("map_legend", "probe", 3)]


@pytest.mark.parametrize("role", ["attention", "mlp", "layer"])
def test_an_estimate_is_the_slope_that_scaling_a_site_shows(embedded, samples, role):
    model, processor = embedded
    sites = ls.select(model, role)
    found = screening.gradients(model, ls.ChoiceScorer(processor, batch_size=4), samples, sites)
    assert found.shape == (len(sites), len(samples))

    def margins(site, factor):
        with ls.Surgery(at=site, do=ls.Scale(factor, what="contribution"))(model):
            return ls.ChoiceScorer(processor)(model, samples).margin

    for index in (0, len(sites) - 1):
        slope = (margins(sites[index], 0.995) - margins(sites[index], 1.005)) / 0.01
        assert np.abs(slope).max() > 0.1  # so that what follows can fail
        assert np.allclose(found[index], slope, atol=0.01, rtol=0.01)


def test_samples_keep_their_order_whatever_the_batch(embedded, samples):
    model, processor = embedded
    sites = ls.select(model)[:2]
    turned = samples[::-1]
    one = screening.gradients(model, ls.ChoiceScorer(processor, batch_size=1), turned, sites)
    many = screening.gradients(model, ls.ChoiceScorer(processor, batch_size=16), samples, sites)
    assert np.allclose(one[:, ::-1], many, atol=1e-4)
    assert not np.allclose(one, many, atol=1e-2)


def test_half_closed_gates_are_all_half_closed(embedded, samples):
    model, processor = embedded
    sites = ls.select(model)
    found = screening.gradients(model, ls.ChoiceScorer(processor), samples, sites, gate=0.5)

    def margins(factor):
        others = ls.Surgery(at=sites[:-1], do=ls.Scale(0.5, what="contribution"))
        with (others + ls.Surgery(at=sites[-1], do=ls.Scale(factor, what="contribution")))(model):
            return ls.ChoiceScorer(processor)(model, samples).margin

    assert np.allclose(found[-1], (margins(0.495) - margins(0.505)) / 0.01, atol=0.01, rtol=0.01)


def test_nothing_is_left_behind(embedded, samples):
    model, processor = embedded
    ls.ChoiceScorer(processor)(model, samples)  # transformers adds hooks of its own at a first pass
    with testing.restored(model):
        screening.gradients(model, ls.ChoiceScorer(processor), samples, ls.select(model))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_planted_site_is_found_and_a_search_for_it_costs_what_it_reads():
    measured = screening.measure(40, 30, ["digit_name"])
    (table,) = [one for one in screening._tables(measured, ("attention",)) if one.model == "planted"]
    assert table.kind == "planted"
    assert table.estimates["gates at 1"].mean(axis=1).argmax() == table.gains.argmax() == 4
    gain, forwards, shared = screening._search(table, 10, np.random.default_rng(0), 0.5, "gates at 1", False)
    assert gain > 0.5
    assert forwards == 10 * (1 + 4) + 10  # the model and half of the sites on every shot, and a backward pass for each
    assert shared == 10 * (1 + 4 / 2) + 10
