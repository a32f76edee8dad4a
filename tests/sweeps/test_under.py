"""Rows of several interventions, and sweeps of a model that a surgery is in force on: what a plain loop gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import layersurgery as ls
from layersurgery import testing
from layersurgery.errors import ModelMismatchError, ScoringError, SurgeryError
from layersurgery.sweeps import ModelOracle, Store
from tests import models

SAMPLES = list(range(8))
SEVERAL = [ls.Zero(), ls.Uniform(), ls.Scale(0.5), ls.Noise(seed=3)]


def row(sample):
    return torch.randint(10, models.VOCABULARY, (1, 6), generator=torch.Generator().manual_seed(sample))


@torch.no_grad()
def score(model, samples):
    logits = model(torch.cat([row(sample) for sample in samples]), use_cache=False)
    return getattr(logits, "logits", logits)[:, -1, 10].tolist()


@torch.no_grad()
def write(model, samples):
    """The sum of the tokens that the model writes."""
    tokens = torch.cat([row(sample) for sample in samples])
    return model.generate(tokens, max_new_tokens=4, do_sample=False).sum(-1).tolist()


def by_hand(model, surgeries, scorer=score, batch=4):
    rows = []
    for surgery in surgeries:
        with surgery(model):
            rows.append([one for at in range(0, 8, batch) for one in scorer(model, SAMPLES[at : at + batch])])
    return np.array(rows, dtype=float)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_every_intervention_at_every_site(name, share):
    model = models.built(name)
    with testing.restored(model):
        table = ls.sweep(model, score, SAMPLES, do=SEVERAL, batch_size=4, share=share)
    surgeries = [ls.Surgery(site, do) for site in ls.select(model) for do in SEVERAL]
    assert list(table.surgeries) == surgeries
    assert list(table.sites) == [surgery.sites[0] for surgery in surgeries]
    assert np.array_equal(table.scores, by_hand(model, surgeries))
    assert "scale(factor=0.5)" in str(table)
    vectors = ls.InteractionVectors({"one": table})
    assert len(set(vectors.sites)) == len(surgeries)
    assert vectors.layers == tuple(range(len(surgeries)))


UNDER = {
    "zero": lambda sites: ls.Surgery(sites[1], ls.Zero()),
    "two": lambda sites: ls.Surgery([sites[2], sites[0]], ls.Uniform()),
    "mlp": lambda sites: ls.Surgery(ls.select(models.built("llama"), "mlp")[1], ls.Mean()),
    "output": lambda sites: ls.Surgery(sites[1], ls.Zero(what="contribution")),
}


@pytest.mark.parametrize("share", [True, False, "all"])
@pytest.mark.parametrize("kind", UNDER)
def test_each_site_on_top_of_a_surgery(kind, share):
    model = models.fresh("llama")
    sites = ls.select(model)
    under = UNDER[kind](sites)
    with testing.restored(model):
        table = ls.sweep(model, score, SAMPLES, do=[ls.Zero(), ls.Scale(0.5)], batch_size=4, share=share, under=under)
    steps = [ls.Surgery(site, do) for site in sites for do in (ls.Zero(), ls.Scale(0.5))]
    expected = by_hand(model, [under, *(under + step for step in steps)])
    assert table.under == under
    assert list(table.surgeries) == [under + step for step in steps]
    if share == "all":
        assert np.allclose(table.correct, expected, atol=1e-5)
    else:
        assert np.array_equal(table.correct, expected)
    assert f"under {under}" in str(table)


@pytest.mark.parametrize("kind", UNDER)
def test_texts_on_top_of_a_surgery(kind):
    model = models.fresh("llama")
    sites = ls.select(model)
    under = UNDER[kind](sites)
    with testing.restored(model):
        table = ls.sweep(model, write, SAMPLES, batch_size=4, under=under)
    expected = by_hand(model, [under, *(under + ls.Surgery(site, ls.Zero()) for site in sites)], write)
    assert np.array_equal(table.correct, expected)


def test_what_is_shared_on_top_of_a_surgery(monkeypatch):
    model, count = models.fresh("llama"), [0]
    sites = ls.select(model)
    kind = type(model.model.layers[0].mlp)
    forward = kind.forward

    def counted(self, *arguments):
        count[0] += 1
        return forward(self, *arguments)

    monkeypatch.setattr(kind, "forward", counted)
    under = ls.Surgery(sites[0], ls.Zero())
    ls.sweep(model, score, SAMPLES, at=sites[1:], batch_size=2, under=under)
    shared = count[0]
    ls.sweep(model, score, SAMPLES, at=sites[1:], batch_size=2, under=under, share=False)
    assert count[0] - shared == 4 * 3 * 3
    assert shared == 4 * (3 + 2 + 1) + 3  # base and two variants per micro-batch, and one check


def test_a_scorer_of_one_number_under_a_surgery():
    model = models.built("llama")
    sites = ls.select(model)
    under = ls.Surgery(sites[0], ls.Zero())
    table = ls.sweep(model, lambda m, s: sum(score(m, s)), SAMPLES, at=sites[1:], under=under)
    expected = by_hand(model, [under, *(under + ls.Surgery(site, ls.Zero()) for site in sites[1:])], batch=8)
    assert np.allclose(table.correct[:, 0], expected.sum(axis=1), atol=1e-5)
    assert table.under == under


def test_errors_lift_it_and_name_it():
    model = models.fresh("llama")
    sites = ls.select(model)
    under = ls.Surgery(sites[0], ls.Zero())

    def fails(model, samples):
        if ls.status(model):
            raise RuntimeError("on purpose")
        return score(model, samples)

    with testing.restored(model), pytest.raises(ScoringError, match=f"the model under {under}"):
        ls.sweep(model, fails, SAMPLES, at=sites[1:], under=under)
    assert not ls.status(model)
    other = ls.Surgery(ls.Site("no.such"), ls.Zero())
    with testing.restored(model), pytest.raises(ModelMismatchError, match=r"no\.such"):
        ls.sweep(model, score, SAMPLES, under=other)


@pytest.mark.parametrize(
    ("do", "message"), [([], "no intervention"), ([ls.Zero(), ls.Zero()], "twice"), ("zero", "'z'")]
)
def test_interventions_that_make_no_sense(do, message):
    with pytest.raises(SurgeryError, match=message):
        ls.sweep(models.built("llama"), score, SAMPLES, do=do)


def test_a_store_keeps_apart_what_was_done_under_what(tmp_path):
    model, store = models.built("llama"), tmp_path / "runs.db"
    sites = ls.select(model)
    first, second = (ls.Surgery(site, ls.Zero()) for site in sites[:2])

    def stored(**settings):
        oracle = ModelOracle(model, score, SAMPLES, store=store, **{"do": ls.Zero(), "at": sites, **settings})
        oracle.read(range(oracle.n_sites + 1), range(8))
        return oracle

    plain = stored()
    assert plain.recalled == 0
    on_top = stored(under=first)
    assert on_top.recalled == 8  # its base is the first variant of what was stored before
    assert stored(under=first).recalled == on_top.cells
    assert stored(under=second).recalled == 8
    assert stored(do=[ls.Zero(), ls.Uniform()]).recalled == plain.cells
    both = ls.sweep(model, score, SAMPLES, at=sites[:1], under=second)
    assert np.array_equal(stored(at=sites[:1], under=second).table().correct, both.correct)
    names = set(Store(store).to_pandas()["site"].dropna())
    assert f"{sites[0]} + {sites[1]}" in names
