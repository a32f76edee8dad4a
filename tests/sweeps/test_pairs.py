"""Every two sites together: what a plain loop gives, on the scale of single sites."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import layersurgery as ls
from layersurgery.errors import SelectionError
from layersurgery.sweeps import _store_model
from layersurgery.testing import restored
from tests import models

SAMPLES = list(range(6))


@torch.no_grad()
def score(model, samples):
    rows = [
        torch.randint(10, models.VOCABULARY, (1, 6), generator=torch.Generator().manual_seed(one)) for one in samples
    ]
    return model(torch.cat(rows), use_cache=False).logits[:, -1, 10].tolist()


@pytest.mark.parametrize("share", [True, False])
def test_the_matrix_is_what_a_plain_loop_gives(share):
    model = models.fresh("llama")
    sites = ls.select(model)
    with restored(model):
        pairs = ls.sweep_pairs(model, score, SAMPLES, do=ls.Uniform(), share=share)
    base = np.array(score(model, SAMPLES))
    expected = np.empty((3, 3))
    for one, other in itertools.combinations_with_replacement(range(3), 2):
        with ls.Surgery([sites[number] for number in {one, other}], ls.Uniform())(model):
            expected[one, other] = expected[other, one] = np.mean(np.array(score(model, SAMPLES)) - base)
    assert np.array_equal(pairs.matrix, expected)
    alone = np.diag(expected)
    assert np.allclose(pairs.interaction[0, 1], expected[0, 1] - alone[0] - alone[1])
    assert np.isnan(np.diag(pairs.interaction)).all()
    assert len(pairs.table.surgeries) == 3 + 3
    assert pairs.to_pandas().loc[sites.paths[0], sites.paths[2]] == expected[0, 2]


def test_a_pair_is_best_only_if_it_beats_every_site():
    model = torch.nn.Sequential(*(torch.nn.Linear(1, 1, bias=False) for _ in range(3))).eval()
    sites = ls.select(model, pattern="*")

    def by(value):
        def score(model, samples):
            model(torch.ones(1))
            gone = frozenset(number for number, layer in enumerate(model) if layer.weight.item() == 0)
            return [value(gone)] * len(samples)

        return ls.sweep_pairs(model, score, SAMPLES, at=sites)

    single = by(lambda gone: float(1 in gone))
    assert str(single.best) == "zero 1"
    assert "no pair scores higher than the best site" in str(single)
    assert "best site  +1.000  1" in str(single)
    pair = by(lambda gone: 0.5 * (1 in gone) + 0.25 * (2 in gone))
    assert str(pair.best) == "zero 1 + zero 2"
    assert "best pair  +0.750  zero 1 + zero 2" in str(pair)
    assert by(lambda gone: -float(len(gone))).best is None
    assert pair.plot().axes


def test_pairs_are_kept_and_one_site_is_refused(tmp_path, monkeypatch):
    model, store = models.built("llama"), tmp_path / "runs.db"
    calls = []

    def counted(model, samples):
        calls.append(len(samples))
        return score(model, samples)

    counted.fingerprint = "counted"
    read = []
    monkeypatch.setattr(
        _store_model, "_digests", lambda *given, of=_store_model._digests: (read.append(1), of(*given))[1]
    )
    first = ls.sweep_pairs(model, counted, SAMPLES, store=store)
    done = len(calls)
    assert len(read) == 1  # the weights, once for all groups of pairs
    again = ls.sweep_pairs(model, counted, SAMPLES, store=store)
    assert len(calls) == done
    assert np.array_equal(first.table.correct, again.table.correct)
    with pytest.raises(SelectionError, match="two or more"):
        ls.sweep_pairs(model, score, SAMPLES, at=ls.select(model)[:1])
