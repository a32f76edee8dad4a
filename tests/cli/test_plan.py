"""The dry run: its numbers hold what a search then really takes, and the model is not touched."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import layersurgery as ls
from layersurgery.cli._load import load_model
from layersurgery.cli._plan import Plan, plan
from layersurgery.embedded import make_samples
from layersurgery.errors import LayerSurgeryWarning, SampleError, ScoringError, SurgeryError
from layersurgery.sweeps._usage import Memory
from layersurgery.testing import restored
from tests.search.test_talo import Stack


@pytest.fixture(scope="module")
def planted():
    loaded = load_model("planted")
    # a first forward, at which transformers installs hooks of its own
    ls.ChoiceScorer(loaded.processor)(loaded.model, make_samples("digit_name", "probe", 1))
    return loaded


@pytest.mark.parametrize("confirm", [None, 40, "others"])
@pytest.mark.parametrize("task", ["digit_name", "digit_count"])
def test_a_search_takes_what_was_planned(planted, task, confirm):
    """One task in which a site is found, and one in which none is."""
    scorer, pool = ls.ChoiceScorer(planted.processor), make_samples(task, "probe", 100)
    held = make_samples(task, "test", 80) if confirm == "others" else confirm
    settings = {"rule": ls.PaperRule(15), "confirm": held}
    with restored(planted.model):
        planned = plan(planted.model, scorer, pool, **settings)
    found = ls.talo(planted.model, scorer, pool, **settings)
    low, high = planned.evaluations
    assert low <= found.evaluations - 15 * found.decision.redraws <= high
    # the later rounds are small batches, which a tiny model gains nothing by; and others may be at work meanwhile
    assert planned.seconds[0] / 4 < found.seconds < planned.seconds[1] * 10
    assert planned.sites == len(found.table.sites)
    assert planned.samples + planned.confirm == (100 if confirm != "others" else 180)
    assert planned.batch_size == 16
    run, in_full = planned.layers
    layers = planned.sites
    assert in_full == (low * layers, high * layers)
    assert run == (
        round(low * (layers + 3) / 2 * layers / (layers + 1)),
        round(high * (layers + 3) / 2 * layers / (layers + 1)),
    )


def test_a_search_for_several_sites_takes_no_more_than_was_planned(planted):
    scorer, pool = ls.ChoiceScorer(planted.processor), make_samples("digit_name", "probe", 80)
    settings = {"do": [ls.Zero(), ls.Uniform()], "confirm": 30, "max_sites": 3, "beam": 2}
    planned = plan(planted.model, scorer, pool, **settings)
    found = ls.talo(planted.model, scorer, pool, **settings)
    assert planned.sites == len(found.table.surgeries) == 18
    assert planned.evaluations[0] <= found.evaluations <= planned.evaluations[1]
    alone = plan(planted.model, scorer, pool, **{**settings, "max_sites": 1, "beam": 1})
    assert alone.evaluations[0] == planned.evaluations[0]
    assert alone.evaluations[1] < planned.evaluations[1]


def test_no_surgery_is_applied(planted):
    scorer, seen = ls.ChoiceScorer(planted.processor), []

    def watching(model, samples):
        seen.append((bool(ls.status(model)), len(samples)))
        return scorer(model, samples)

    planned = plan(planted.model, watching, make_samples("digit_name", "probe", 60), batch_size=8)
    assert seen == [(False, 8)] * 5  # to warm up, new, kept, recorded, shared
    assert planned.batch_size == 8


class Slow:
    """A scorer on a clock of its own: new samples take a second each, and every sample a tenth on top."""

    def __init__(self, whole=False, most=None):
        self.now, self.last, self.whole, self.most = 0.0, None, whole, most

    def clock(self):
        return self.now

    def __call__(self, model, samples):
        model(torch.ones(1))
        if self.most is not None and len(samples) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if samples != self.last:
            self.now += len(samples)
        self.last = samples
        self.now += 0.1 * len(samples)
        return 0.5 if self.whole else [0.5] * len(samples)


def planned_for(score, n=100, sites=9, **settings):
    model = Stack(sites).eval()
    with restored(model):
        return plan(
            model, score, list(range(n)), at=ls.select(model, pattern="layers.*"), clock=score.clock, **settings
        )


def test_only_the_unmodified_model_pays_for_new_samples():
    planned = planned_for(Slow(), rule=ls.PaperRule(10), confirm=20, batch_size=5)
    assert planned.evaluations == (10 * 10 + 2 * 20, 10 * 17 + 2 * 20)
    low = 17 * (1.1 + 9 * 0.1)  # nothing found: more evaluations than with a quick find, but fewer samples to prepare
    high = 17 * (1.1 + 9 * 0.1) + 20 * (1.1 + 0.1)
    assert planned.seconds == pytest.approx((low, high))
    assert planned.rate == pytest.approx(210 / high)


def test_a_large_check_may_cost_more_than_finding_nothing():
    planned = planned_for(Slow(), rule=ls.PaperRule(10), confirm=60, batch_size=5)
    assert planned.evaluations == (10 * 17, 10 * 17 + 2 * 60)


def test_a_scorer_of_one_number_scores_enlarged_sets_anew():
    score = Slow(whole=True)
    planned = planned_for(score, rule=ls.PaperRule(10), confirm=20)
    assert planned.evaluations == (10 * 10 + 2 * 20, 10 * (10 + 15 + 17) + 2 * 20)
    model = Stack(9).eval()
    found = ls.talo(
        model, score, range(100), at=ls.select(model, pattern="layers.*"), rule=ls.PaperRule(10), confirm=20
    )
    assert found.verdict == "keep"
    assert found.evaluations == 10 * (10 + 15 + 17)


def test_a_rule_that_says_nothing_of_its_cost():
    planned = planned_for(Slow(), rule=lambda oracle, rng: ls.Decision(None))
    assert planned.evaluations == (0, 10 * 100)
    assert planned.seconds[0] == 0
    assert planned.notes == ("the rule does not say how much it reads: anything from nothing to all that it may",)


def test_memory_that_runs_out_is_found_here_already():
    with pytest.warns(LayerSurgeryWarning, match="with 8 samples at once; going on with 4"):
        planned = planned_for(Slow(most=4), rule=ls.PaperRule(10), batch_size=8)
    assert planned.batch_size == 4
    with pytest.raises(ScoringError, match="a single sample"):
        planned_for(Slow(most=0), rule=ls.PaperRule(10), batch_size=8)


def test_what_a_search_would_refuse_is_refused():
    with pytest.raises(SampleError, match="may need 35 labelled samples"):
        planned_for(Slow(), n=20, rule=ls.PaperRule(20))
    with pytest.raises(SurgeryError, match="is no intervention"):
        planned_for(Slow(), do="zero")
    model, score = Stack(2).train(), Slow()
    with pytest.raises(ScoringError, match="training mode"):
        plan(model, score, range(50), at=ls.select(model, pattern="layers.*"))


def test_memory_of_the_model_and_its_work(planted):
    (part,) = plan(planted.model, ls.ChoiceScorer(planted.processor), make_samples("digit_name", "probe", 60)).memory
    assert part.device == str(planted.model.device)
    assert part.weights == planted.record.bytes
    assert part.work is None or part.work >= 0


def test_it_reads_well_and_is_json(planted):
    planned = Plan(
        samples=200,
        confirm=100,
        sites=32,
        evaluations=(495, 924),
        seconds=(183.3, 342.2),
        rate=2.7,
        batch_size=16,
        layers=((8415, 15708), (15840, 29568)),
        memory=(Memory("cuda:0", int(15.2 * 2**30), int(1.1 * 2**30), 60 * 2**30), Memory("meta", 2**30)),
        notes=("of something",),
    )
    assert str(planned).splitlines() == [
        "samples      200 to draw from, 100 held out for the check",
        "sites        32",
        "evaluations  495 to 924 (one sample on one variant each)",
        "layers       8415 to 15708 passes, of 15840 to 29568 if none were shared between variants",
        "time         about 3 to 6 min at 2.7 per second, 16 samples at once",
        "memory       15.2 GiB weights + 1.1 GiB at work, 60.0 GiB free (cuda:0)",
        "memory       1.0 GiB weights elsewhere, brought in for each call",
        "note         of something",
    ]
    record = json.loads(json.dumps(planned.to_dict(), allow_nan=False))
    assert record["evaluations"] == [495, 924]
    assert record["memory"][1] == {"device": "meta", "weights": 2**30, "work": None, "free": None}
    real = plan(planted.model, ls.ChoiceScorer(planted.processor), make_samples("digit_name", "probe", 60))
    json.dumps(real.to_dict(), allow_nan=False)
    assert "no check on held-out samples" in str(real)
    assert np.isfinite(real.rate)
