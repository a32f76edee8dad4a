"""`stability`: a share of the resamples says something only beside the share that chance gives."""

import numpy as np
import pytest

from layersurgery.errors import SearchError
from layersurgery.search import Decision, PaperRule
from layersurgery.search._halving import HalvingRule
from layersurgery.search._stability import stability


def tasks(rng, sites=16, samples=20, gain=0.0):
    base = rng.normal(size=samples)
    margins = np.vstack([base, 0.9 * base + 0.45 * rng.normal(size=(sites, samples))])
    margins[3] += gain
    return (margins > 0).astype(float), margins


def test_a_site_that_helps_stands_out_from_the_reference():
    correct, margins = tasks(np.random.default_rng(0), samples=40, gain=2)
    for found in (
        stability(correct, PaperRule(20), references=10),
        stability(correct, HalvingRule(), margins, references=10),
    ):
        assert found.site == 2
        assert found.share > found.reference_shares.max()
        assert found.p == 1 / 11
        assert "Site 2 is chosen in" in str(found)


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


def test_the_histogram_counts_every_resample():
    correct, _ = tasks(np.random.default_rng(0))
    found = stability(correct, PaperRule(10), resamples=25, references=2)
    assert found.chosen.sum() <= 25
    assert found.share == found.chosen.max() / 25
    again = stability(correct, PaperRule(10), resamples=25, references=2)
    assert (found.chosen == again.chosen).all()
    assert (found.reference_shares == again.reference_shares).all()


def test_a_model_that_is_always_kept_is_told():
    found = stability(np.zeros((3, 10)), lambda oracle, rng: Decision(None), references=2)
    assert found.site is None
    assert "the model is kept" in str(found)


def test_resamples_that_are_too_small_to_decide_are_counted():
    correct = np.ones((3, 14))
    correct[0, :2] = 0
    found = stability(correct, PaperRule(2), references=1, resamples=60)
    assert 0 <= found.undecided < 60
    with pytest.raises(SearchError, match="cannot decide on any of 3 resamples"):
        stability(correct, _never, references=1, resamples=3)


def _never(oracle, rng):
    raise SearchError("too few")


def test_what_does_not_fit_is_refused():
    correct, margins = tasks(np.random.default_rng(0))
    gap = correct.copy()
    gap[2, 3] = np.nan
    with pytest.raises(SearchError, match="row 2, column 3 is missing"):
        stability(gap, PaperRule(10))
    with pytest.raises(SearchError, match="may need 35 samples, and there are 20"):
        stability(correct, PaperRule(20))
    with pytest.raises(SearchError, match="margin has shape"):
        stability(correct, PaperRule(10), margins[:3])
    with pytest.raises(SearchError, match="needs correct"):
        stability(correct[0], PaperRule(10))
    with pytest.raises(SearchError, match="resamples=0"):
        stability(correct, PaperRule(10), resamples=0)
