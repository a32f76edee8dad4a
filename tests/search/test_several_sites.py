"""Sets of sites: a further one on top of what was found, or none; beams; several interventions in one search."""

from __future__ import annotations

import functools
import itertools
import json
from contextlib import nullcontext

import accelerate
import numpy as np
import pytest
import torch

import layersurgery as ls
from layersurgery.errors import SearchError
from layersurgery.search import HalvingRule, PaperRule, paired_interval
from layersurgery.sweeps._sets import SetOracle, extended
from layersurgery.tasks import Sample
from layersurgery.testing import restored
from tests import models
from tests.search.test_talo import Stack

SITES = 5


class Known:
    """Scores by which layers the model's forward shows to be changed, and to what; counts what it is asked."""

    def __init__(self, share, margin=False):
        self.share, self.margin, self.asked = share, margin, []

    def __call__(self, model, samples):
        values = model(torch.ones(1)).tolist()
        changed = {index: value for index, value in enumerate(values) if value != 1}
        self.asked += [(frozenset(changed.items()), int(sample.id)) for sample in samples]
        right = [answer(int(sample.id), self.share(changed)) for sample in samples]
        if not self.margin:
            return [float(one) for one in right]
        return ls.Scores(right, margin=[1.0 if one else -1.0 for one in right])


def answer(number, share):
    """Right on this share of the samples; a higher share only adds to them."""
    return (number * 61 % 100) / 100 < share


def run(share, *, n=100, do=None, margin=True, **settings):
    model, score = Stack(SITES).eval(), Known(share, margin)
    pool = [Sample(str(number), "?") for number in range(n)]
    with restored(model):
        found = ls.talo(model, score, pool, at=ls.select(model, pattern="layers.*"), do=do, **settings)
    return found, score


def two_help(changed):
    """Layers 1 and 3 help, together more."""
    return 0.4 + 0.25 * (1 in changed) + 0.2 * (3 in changed) - 0.1 * len(set(changed) - {1, 3})


def paths(surgery):
    return [site.path for site in surgery.sites]


RULES = [HalvingRule(), PaperRule(20)]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("beam", [1, 2])
def test_a_second_site_on_top_of_the_first(rule, beam):
    found, _ = run(two_help, rule=rule, max_sites=2, beam=beam)
    assert sorted(paths(found.surgery)) == ["layers.1", "layers.3"]
    assert sorted(found.sites.paths) == ["layers.1", "layers.3"]
    first, second = found.stages
    assert (first.under, second.under) == (None, first.surgery)
    assert second.surgery == found.surgery
    both = min(first.n_probe, second.n_probe)
    assert first.probe_ids[:both] == second.probe_ids[:both]  # no more labels than one search takes
    assert found.evaluations == sum(np.isfinite(stage.table.correct).sum() for stage in found.stages)
    assert found.gain == pytest.approx(first.corrected.gain + second.corrected.gain)
    assert found.interval.low == pytest.approx(first.corrected.interval.low + second.corrected.interval.low)
    assert "Knock out 2 sites" in str(found)
    assert "With a second site" in str(found)
    assert "summed over 2 sites" in str(found)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_none_found_on_top_of_the_first(rule):
    def one_helps(changed):
        return 0.4 + 0.4 * (1 in changed) - 0.2 * len(set(changed) - {1})

    found, _ = run(one_helps, rule=rule, max_sites=3)
    assert paths(found.surgery) == ["layers.1"]
    assert [stage.surgery is None for stage in found.stages] == [False, True]
    assert "No second site was found that helps on top of that" in str(found)
    assert found.gain == found.stages[0].corrected.gain
    json.dumps(found.to_dict())
    assert found.to_dict()["further"][0]["surgery"] is None


def test_a_prior_has_a_say_in_the_first_site_only():
    prior = ls.Prior(np.zeros(SITES), barred=[0])
    found, _ = run(two_help, rule=HalvingRule(prior=prior), max_sites=2)
    assert sorted(paths(found.surgery)) == ["layers.1", "layers.3"]
    assert len(found.stages[1].decision.ranking) == SITES - 1


def test_nothing_is_searched_on_top_of_a_model_that_is_kept():
    found, _ = run(lambda changed: 0.5 - 0.2 * len(changed), max_sites=3)
    assert found.verdict == "keep"
    assert len(found.stages) == 1
    assert found.sites.paths == ()


def test_no_further_site_is_no_error_where_the_first_solves_everything():
    """The paper's rule discards a probe that is solved; of a second stage that is the end, not a failure."""
    found, _ = run(lambda changed: 1.0 if 1 in changed else 0.5, rule=PaperRule(20), n=40, max_sites=2)
    assert paths(found.surgery) == ["layers.1"]
    assert found.stages[1].surgery is None
    assert "solves every probe set" in str(found)


def test_as_many_sites_as_help_and_no_more_than_there_are():
    found, _ = run(lambda changed: 0.2 + 0.15 * len(changed), max_sites=9)
    assert sorted(found.sites.paths) == [f"layers.{number}" for number in range(SITES)]
    assert len(found.stages) == SITES
    assert "Knock out 5 sites" in str(found)
    assert found.to_dict()["further"][-1]["confirm"] is None


def test_a_beam_finds_a_pair_that_no_greedy_search_does():
    """Layer 1 is best alone, but only 0 and 2 help together."""

    def share(changed):
        both = {0, 2} <= set(changed)
        alone = {1: 0.7, 0: 0.65, 2: 0.6}
        return 0.98 if both else max((alone.get(one, 0.3) for one in changed), default=0.4)

    greedy, _ = run(share, max_sites=2)
    assert paths(greedy.surgery) == ["layers.1"]
    wide, _ = run(share, max_sites=2, beam=3)
    assert sorted(paths(wide.surgery)) == ["layers.0", "layers.2"]
    assert wide.stages[1].under == wide.stages[0].surgery
    assert wide.stages[1].probe_gain > 0.1
    assert len(wide.stages[1].table.surgeries) == len({frozenset(one.steps) for one in wide.stages[1].table.surgeries})


def test_the_check_measures_each_set_against_the_smaller_one():
    found, score = run(two_help, n=200, max_sites=2, confirm=80)
    alone = {int(found.stages[0].site.path.split(".")[1])}
    held = [int(name) for name in found.confirm_ids]
    assert len(held) == 80
    shares = [two_help(changed) for changed in (set(), alone, {1, 3})]
    rows = [np.array([answer(number, share) for number in held], dtype=float) for share in shares]
    first, second = found.stages
    assert (found.confirm_base, found.confirm_score) == (rows[0].mean(), rows[2].mean())
    assert first.held_out_gain == pytest.approx((rows[1] - rows[0]).mean())
    assert second.held_out_gain == pytest.approx((rows[2] - rows[1]).mean())
    assert second.held_out_interval == paired_interval(rows[1], rows[2])
    wide = paired_interval(rows[0], rows[2], 0.975)
    assert (found.interval.low, found.interval.high) == (wide.low, wide.high)
    assert found.interval.level == 0.95
    assert "Bonferroni over 2 sets" in str(found)
    assert "Of that, the second site adds" in str(found)
    on_held = [changed for changed, number in score.asked if number in held]
    assert len(on_held) == 3 * 80
    assert found.labels == 80 + max(stage.n_probe for stage in found.stages)


def test_a_set_that_does_not_gain_on_other_samples_is_left_out():
    """On the first samples a second site helps, on the others it does not."""
    model, score = Stack(SITES).eval(), Known(None, margin=True)
    score.share = lambda changed: 0.4 + 0.4 * (1 in changed) + 0.15 * (len(changed) == 2 and score.early)
    ask = score.__call__

    def by_half(model, samples):
        score.early = int(samples[0].id) < 100
        return ask(model, samples)

    pool, held = ([Sample(str(number), "?") for number in part] for part in (range(100), range(100, 200)))
    sites = ls.select(model, pattern="layers.*")
    with restored(model):
        found = ls.talo(model, by_half, pool, at=sites, max_sites=2, confirm=held)
    assert found.stages[1].surgery is not None
    assert found.stages[1].held_out_gain == 0
    assert paths(found.surgery) == ["layers.1"]
    assert found.gain == pytest.approx(0.4)
    assert "The second site is left out, since with it the score changes by +0.0 points" in str(found)
    assert found.to_dict()["surgery"] == str(found.stages[0].surgery)


def test_interventions_compete_at_every_site():
    def share(changed):
        return 0.4 + 0.4 * (changed.get(2) == 0.5) + 0.1 * (changed.get(2) == 0)

    found, _ = run(share, do=[ls.Zero(), ls.Scale(0.5), ls.Uniform(), ls.Scale(2.0)], max_sites=2)
    assert str(found.surgery) == "scale(factor=0.5) layers.2"
    assert len(found.table.surgeries) == 4 * SITES
    assert "Bonferroni over 19 sites" in found.interval.method or "Bonferroni over 20 sites" in found.interval.method
    assert "20 variants" in str(found)
    assert all(one.sites[0] != one.sites[1] for one in found.stages[1].table.surgeries)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_sites": 0}, "max_sites=0"),
        ({"max_sites": 1.5}, "max_sites=1.5"),
        ({"max_sites": 2, "beam": 0}, "beam=0"),
        ({"beam": 2}, "give max_sites=2 or more"),
    ],
)
def test_numbers_that_make_no_sense(settings, message):
    with pytest.raises(SearchError, match=message):
        run(two_help, **settings)


@pytest.mark.parametrize(
    ("name", "where"), [("llama", "memory"), ("llama", "cpu"), ("llama", "disk"), ("t5", "memory"), ("llava", "memory")]
)
def test_sets_are_what_a_plain_loop_gives(name, where, tmp_path):
    """Every set of up to two sites on a real model, with what they share; weights may be kept elsewhere."""
    model, given, samples = models.fresh(name), models.inputs(name), list(range(6))
    if where != "memory":
        offloaded = (
            accelerate.cpu_offload
            if where == "cpu"
            else functools.partial(accelerate.disk_offload, offload_dir=tmp_path)
        )
        model = offloaded(model, execution_device=torch.device("cpu"))

    @torch.no_grad()
    def score(model, samples):
        """Of one sample each, which is the inputs with another last token."""
        logits = [model(**_ending(given, 20 + one), use_cache=False).logits[0, -1, 10] for one in samples]
        return torch.stack(logits).tolist()

    singles = [ls.Surgery(site, do) for site in ls.select(model)[:3] for do in (ls.Zero(), ls.Scale(0.5))]
    sets = [*singles, *extended(singles, singles)]
    expected = [score(model, samples)]
    for one in sets:
        with one(model):
            expected.append(score(model, samples))
    assert len(np.unique(expected)) > len(sets)
    # accelerate itself puts other parameters in place with each call
    with restored(model) if where == "memory" else nullcontext():
        oracle = SetOracle(model, score, samples, sets=sets, batch_size=6)
        rows = [len(sets), 0, 3, 7]
        assert np.array_equal(oracle.read(rows, samples).correct, np.array(expected)[rows])
        oracle.read(range(len(sets) + 1), samples)
    assert np.array_equal(oracle.table().correct, np.array(expected))
    assert list(oracle.table().surgeries) == sets
    assert oracle.cells == len(expected) * 6
    assert score(model, samples) == expected[0]


def _ending(given, token):
    tokens = given["input_ids"].clone()
    tokens[:, -1] = token
    return {**given, "input_ids": tokens}


def test_heads_and_feed_forwards_are_sites_like_others():
    """Which of them gains is computed by hand, set by set, on a model that nothing was planted in."""
    model = models.fresh("llama")
    attention = ls.select(model)
    sites = attention[:1].heads(0) + attention[:1].heads(1) + ls.select(model, "mlp")[1:]
    samples = list(range(40))
    inputs = torch.randint(10, models.VOCABULARY, (40, 6), generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def score(model, samples):
        return model(inputs[list(samples)], use_cache=False).logits[:, -1, 11].tolist()

    def by_hand(*steps):
        with ls.Surgery.of([step for one in steps for step in one.steps])(model):
            return np.mean(score(model, samples))

    def rule(oracle, rng):
        means = oracle.read(range(oracle.n_sites + 1), range(oracle.n_samples)).correct.mean(axis=1)
        best = int(means[1:].argmax())
        return ls.Decision(best if means[best + 1] > means[0] else None)

    singles = [ls.Surgery(site, do) for site in sites for do in (ls.Zero(), ls.Scale(0.5))]
    with restored(model):
        found = ls.talo(model, score, samples, at=sites, do=[ls.Zero(), ls.Scale(0.5)], rule=rule, max_sites=2)
    best = max(singles, key=by_hand)
    assert found.stages[0].surgery == best
    other = max((one for one in singles if one.sites != best.sites), key=lambda one: by_hand(best, one))
    assert found.surgery == (best + other if by_hand(best, other) > by_hand(best) else best)


def test_every_set_once():
    sites = [ls.Surgery(ls.Site(f"h.{number}"), ls.Zero()) for number in range(4)]
    pairs = extended(sites, sites)
    assert {frozenset(one.steps) for one in pairs} == {
        frozenset(a.steps + b.steps) for a, b in itertools.combinations(sites, 2)
    }
    assert len(pairs) == 6
    assert len(extended(pairs, sites)) == 4
    assert extended(extended(extended(sites, sites), sites), sites) != []
    assert extended([sum(sites[1:], sites[0])], sites) == []
