"""`stability`: a share of the resamples says something only beside the share that chance gives."""

from dataclasses import replace

import numpy as np
import pytest

from layersurgery.errors import SearchError
from layersurgery.interventions import Uniform, Zero
from layersurgery.search import Decision, HalvingRule, PaperRule, TableOracle, smooth, stability
from layersurgery.sites import Site, Sites
from layersurgery.surgery import Surgery
from layersurgery.sweeps import ScoreTable


def tasks(rng, sites=16, samples=20, gain=0.0):
    base = rng.normal(size=samples)
    margins = np.vstack([base, 0.9 * base + 0.45 * rng.normal(size=(sites, samples))])
    margins[3] += gain
    return (margins > 0).astype(float), margins


def score_table(correct, margin=None, sites=None, **fields):
    """Of layers 4, 5, ... unless other sites are given."""
    layers = range(4, 3 + len(correct))
    places = Sites(sites or [Site(f"h.{layer}.attn", layer=layer) for layer in layers])
    surgeries = tuple(Surgery(at=site, do=Zero()) for site in places)
    names = tuple(map(str, range(correct.shape[1])))
    return ScoreTable(places, surgeries, names, correct, margin, **fields)


def test_a_site_that_helps_stands_out_from_the_reference():
    correct, margins = tasks(np.random.default_rng(0), samples=40, gain=2)
    for found in (
        stability(correct, PaperRule(20), references=10),
        stability(correct, HalvingRule(), margins, references=10),
    ):
        assert found.site == 2
        assert found.share > found.reference_shares.max()
        assert found.p == 1 / 11
        assert found.name == "site 2"
        assert str(found).startswith("Of the sites, site 2 is chosen most often, in ")
        assert str(found).endswith(
            "has p = 0.091. That the site stands out is not shown."
        )  # by ten tables, it cannot be


def test_where_no_site_matters_the_share_is_as_large_by_chance():
    found = [
        stability(tasks(np.random.default_rng(seed))[0], PaperRule(10), resamples=30, references=9) for seed in range(8)
    ]
    assert np.mean([each.share for each in found]) > 0.25  # it looks stable
    assert np.mean([each.p for each in found]) > 0.25  # and is what chance gives


def test_in_the_reference_no_site_gains_and_all_else_is_as_it_was():
    """A site that repairs everything is as often a loss as a gain there."""
    correct = np.vstack([np.zeros(30), np.ones(30)])
    gains = []

    def rule(oracle, rng):
        scores = oracle.read([0, 1], range(30)).correct
        gains.append(scores[1] - scores[0])
        return Decision(0 if gains[-1].sum() > 0 else None)

    found = stability(correct, rule, references=20, resamples=20)
    assert found.share == 1
    changes = np.concatenate(gains[20:])
    assert set(np.abs(changes)) == {1.0}
    assert abs(changes.mean()) < 0.2
    assert 0.2 < found.reference[0] / 20 < 0.8


@pytest.mark.parametrize("with_margins", [False, True])
def test_what_is_turned_round_is_a_sample_s_difference_in_all_rows_alike(with_margins):
    correct, margins = tasks(np.random.default_rng(0), sites=5)
    seen = []

    def rule(oracle, rng):
        seen.append(oracle.read(range(6), range(20)))
        return Decision(None)

    stability(correct, rule, margins if with_margins else None, resamples=1, references=30)
    real = {column.tobytes(): column for column in (correct[1:] - correct[0]).T}
    turned = 0
    for table in seen[1:]:
        for column in (table.correct[1:] - table.correct[0]).T:
            assert column.tobytes() in real or (0.0 - column).tobytes() in real
            turned += column.tobytes() not in real
        assert (table.margin is not None) == with_margins
    assert turned > 50


def test_with_margins_the_rule_sees_answers_and_margins_that_agree():
    """So that it decides as in a search, and its gate is the same; and no margin changes its size."""
    correct, margins = tasks(np.random.default_rng(0), sites=5)
    seen = []

    def rule(oracle, rng):
        seen.append(oracle.read(range(6), range(20)))
        return Decision(None)

    stability(correct, rule, margins, resamples=3, references=5)
    assert len(seen) == 3 * 6
    for table in seen:
        assert ((table.margin > 0) == (table.correct == 1)).all()
        assert set(np.abs(table.margin[1])) <= set(np.abs(margins[1]))
    flipped = np.where(np.arange(20) % 2, margins, -margins)
    change, before = smooth(flipped)[1] - smooth(flipped)[0], smooth(margins)[1] - smooth(margins)[0]
    assert np.allclose(np.abs(change), np.abs(before))


def test_pruning_changes_nothing():
    """Scores of traded places leave the bounds that pruning rests on."""
    correct, _ = tasks(np.random.default_rng(5))
    full, pruned = (stability(correct, PaperRule(10, prune=prune), references=5) for prune in (False, True))
    assert (full.chosen == pruned.chosen).all()
    assert (full.references == pruned.references).all()


def test_the_histogram_counts_every_resample():
    correct, _ = tasks(np.random.default_rng(0))
    found = stability(correct, PaperRule(10), resamples=25, references=2)
    assert found.chosen.sum() <= 25
    assert found.share == found.chosen.max() / 25
    again = stability(correct, PaperRule(10), resamples=25, references=2)
    assert (found.chosen == again.chosen).all()
    assert (found.references == again.references).all()
    assert found.kept == 25 - found.chosen.sum()
    assert found.references.shape == (2, 16)
    assert (found.reference == found.references.mean(axis=0)).all()
    assert (found.reference_shares == found.references.max(axis=1) / 25).all()


def test_a_table_names_its_layers_and_brings_its_margins_if_the_rule_compares_by_them():
    correct, margins = tasks(np.random.default_rng(0), samples=40, gain=2)
    table = score_table(correct, margins)
    few = {"resamples": 10, "references": 3}
    for rule, margin in ((HalvingRule(), margins), (PaperRule(20), None)):
        found, same = stability(table, rule, **few), stability(correct, rule, margin, **few)
        assert (found.chosen == same.chosen).all()
        assert (found.references == same.references).all()
        assert found.name == "layer 6"
        assert "layer 6 is chosen most often" in str(found)
        assert found.labels == tuple(range(4, 20))
    named = stability(table, PaperRule(20), labels=[f"head {site}" for site in range(16)], **few)
    assert named.name == "head 2"
    assert stability(correct, PaperRule(20), labels=np.arange(16), **few).name == "layer 2"


def test_margins_that_contradict_the_answers_are_not_used():
    correct, margins = tasks(np.random.default_rng(0))
    found = stability(score_table(correct, -margins), HalvingRule(), resamples=5, references=2)
    assert (found.chosen == stability(correct, HalvingRule(), resamples=5, references=2).chosen).all()


def test_a_rule_that_cannot_decide_on_all_samples_may_on_resamples():
    correct, margins = tasks(np.random.default_rng(0))

    def rule(oracle, rng):
        if (oracle.read([0], range(20)).correct == correct[0]).all():
            raise SearchError("not on these")
        return Decision(1)

    assert stability(score_table(correct, margins), rule, resamples=3, references=2).share == 1


def test_the_best_score_of_a_table_tells_what_is_solved():
    correct = np.full((3, 30), 5.0)
    found = stability(score_table(correct, best=5.0), PaperRule(4), resamples=2, references=1)
    assert found.site is None  # every probe set is solved; nothing is asked of the sites


def test_sites_that_share_a_layer_are_told_by_their_names_or_by_what_is_done():
    correct = tasks(np.random.default_rng(0))[0][:3]
    heads = [Site("h.4.attn", layer=4, label=f"head {number}") for number in range(2)]
    no_layer = [Site("a", layer=1), Site("b")]
    twice = tuple(Surgery(at=heads[0], do=do) for do in (Zero(), Uniform()))
    few = {"resamples": 2, "references": 1}
    assert stability(score_table(correct, sites=heads), PaperRule(8), **few).labels == tuple(map(str, heads))
    assert stability(score_table(correct, sites=no_layer), PaperRule(8), **few).labels == ("a", "b")
    table = replace(score_table(correct), sites=(heads[0], heads[0]), surgeries=twice)
    assert stability(table, PaperRule(8), **few).labels == tuple(map(str, twice))


def test_a_model_that_is_always_kept_is_told():
    found = stability(np.zeros((3, 10)), lambda oracle, rng: Decision(None), references=2)
    assert found.site is None
    assert found.name is None
    assert found.p == 1
    assert str(found) == "The model is kept in all 50 resamples. Where no site matters, it is kept in 100 % on average."


def test_resamples_that_are_too_small_to_decide_are_counted():
    correct = np.ones((3, 14))
    correct[0, :2] = 0
    found = stability(correct, PaperRule(2), references=1, resamples=60)
    assert 0 < found.undecided < 60
    assert found.kept >= found.undecided
    assert f"({found.undecided} times for lack of samples to decide). Where" in str(found)
    with pytest.raises(SearchError, match="cannot decide on any of 3 resamples"):
        stability(correct, _never, references=1, resamples=3)


def _never(oracle, rng):
    raise SearchError("too few")


def test_what_does_not_fit_is_refused():
    correct, margins = tasks(np.random.default_rng(0))
    gap = correct.copy()
    gap[2, 3] = np.nan
    for table in (gap, score_table(gap), score_table(gap, margins)):
        with pytest.raises(SearchError, match=r"row 2, column 3 is missing.*table = layersurgery.sweep\(model, score"):
            stability(table, PaperRule(10))
    with pytest.raises(SearchError, match="row 2, column 3 is missing"):
        stability(correct, HalvingRule(), np.where(np.isnan(gap), np.nan, margins))
    with pytest.raises(SearchError, match="a score table has its own"):
        stability(score_table(correct), PaperRule(10), margins)
    with pytest.raises(SearchError, match="one number for all of them"):
        stability(score_table(correct[:, :1], per_sample=False), PaperRule(1))
    with pytest.raises(SearchError, match=r"or an array of numbers .* got TableOracle"):
        stability(TableOracle(correct), PaperRule(10))
    for labels in ([4, 5], "sixteen letters."):
        with pytest.raises(SearchError, match="for 16 sites; give a list of 16"):
            stability(correct, PaperRule(10), labels=labels)
    with pytest.raises(SearchError, match="may need 35 samples, and there are 20"):
        stability(correct, PaperRule(20))
    with pytest.raises(SearchError, match="margin has shape"):
        stability(correct, PaperRule(10), margins[:3])
    with pytest.raises(SearchError, match=r"or correct .sites . 1, n. of one sample or more"):
        stability(correct[0], PaperRule(10))
    with pytest.raises(SearchError, match="resamples=0"):
        stability(correct, PaperRule(10), resamples=0)
