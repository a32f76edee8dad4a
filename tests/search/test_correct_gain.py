"""`correct_gain`: the gain without the luck of the choice, and an interval that holds for any choice."""

import numpy as np
import pytest

from layersurgery.errors import SearchError
from layersurgery.search import PaperRule, TableOracle, paired_interval
from layersurgery.search._correct import correct_gain
from layersurgery.search._halving import HalvingRule


def null_task(rng, sites=32, samples=20, flips=0.15):
    """No site gains or loses: as many answers are repaired as broken."""
    base = rng.random(samples) < 0.5
    return np.vstack([base, base ^ (rng.random((sites, samples)) < flips)]).astype(float)


class Record(TableOracle):
    def __init__(self, *args):
        super().__init__(*args)
        self.there = None

    def read(self, rows, columns):
        if self.there is None:
            self.there = np.zeros((self.n_sites + 1, self.n_samples), dtype=bool)
        self.there[np.ix_(rows, columns)] = True
        return super().read(rows, columns)


def test_where_no_site_matters_the_gain_is_corrected_to_about_nothing():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(40):
        table = null_task(rng)
        best = int((table[1:] - table[0]).mean(axis=1).argmax())
        found.append(correct_gain(table, best, resamples=100))
    assert np.mean([each.apparent for each in found]) > 0.15
    assert abs(np.mean([each.gain for each in found])) < 0.04
    assert np.mean([0 in each.interval for each in found]) >= 0.95
    assert all(each.gain == pytest.approx(each.apparent - each.bias) for each in found)


def test_a_gain_that_is_plain_stays():
    rng = np.random.default_rng(0)
    table = null_task(rng, samples=60)
    table[4] = 1
    found = correct_gain(table, 3)
    assert found.gain == pytest.approx(found.apparent, abs=0.02)
    assert found.interval.low > 0


def test_a_site_named_beforehand_is_not_corrected_much():
    table = null_task(np.random.default_rng(0), sites=1, samples=40)
    assert abs(correct_gain(table, 0).bias) < 0.02


def test_a_halving_is_played_again_with_its_gaps():
    rng = np.random.default_rng(1)
    corrected, apparent = [], []
    for _ in range(60):
        base = rng.normal(size=60)
        margins = np.vstack([base, 0.9 * base + 0.45 * rng.normal(size=(32, 60))])
        oracle = Record((margins > 0).astype(float), margins)
        decision = HalvingRule(labels=17, z=0)(oracle, rng)
        columns = list(decision.columns)
        site = decision.candidates[int(np.nanargmax(decision.gains[list(decision.candidates)]))]
        table = np.where(oracle.there, margins > 0, np.nan)[:, columns]
        assert np.isnan(table).any()
        found = correct_gain(table, site, margins[:, columns], resamples=100)
        corrected.append(found.gain)
        apparent.append(found.apparent)
    assert np.mean(apparent) > 0.06
    assert abs(np.mean(corrected)) < 0.5 * np.mean(apparent)


def test_the_interval_is_wide_enough_for_every_site_and_says_so():
    table = null_task(np.random.default_rng(0))
    found = correct_gain(table, 3, level=0.9)
    alone = paired_interval(table[0], table[4], 1 - 0.1 / 32)
    assert (found.interval.low, found.interval.high, found.interval.level) == (alone.low, alone.high, 0.9)
    assert found.interval.method == "Agresti-Min, selection-adjusted: Bonferroni over 32 sites"


def test_real_scores_and_their_unit():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(9, 30))
    plain, other = correct_gain(table, 2), correct_gain(1000 * table, 2)
    assert other.gain == pytest.approx(1000 * plain.gain)
    assert "paired t, selection-adjusted" in plain.interval.method


def test_the_same_seed_gives_the_same_number_whatever_is_held_at_a_time(monkeypatch):
    table = null_task(np.random.default_rng(0))
    assert correct_gain(table, 3) == correct_gain(table, 3)
    monkeypatch.setattr("layersurgery.search._correct._AT_ONCE", 5000)
    assert correct_gain(table, 3).bias == pytest.approx(correct_gain(table, 3, seed=1).bias, abs=0.02)


def test_one_sample_says_nothing_of_the_bias():
    found = correct_gain([[0], [1]], 0)
    assert found.apparent == 1
    assert np.isnan(found.gain)
    assert found.interval.low < 0


def test_the_papers_rule_is_corrected_too():
    rng = np.random.default_rng(0)
    table = null_task(rng, samples=40)
    decision = PaperRule(20)(TableOracle(table), rng)
    found = correct_gain(table[:, list(decision.columns)], decision.site)
    assert found.apparent == pytest.approx(decision.gains[decision.site])
    assert found.gain < found.apparent


@pytest.mark.parametrize(
    ("table", "site", "said"),
    [
        ([0, 1], 0, "needs correct"),
        ([[0, 1]], 0, "needs correct"),
        ([[0, 1], [1, 1]], 1, "give its index, 0 to 0"),
        ([[0, 1], [1, 1]], True, "give its index"),
        ([[0, np.nan], [1, 1]], 0, "must have a score on every sample"),
        ([[0, 1], [np.nan, 1], [1, 1]], 1, "site 0 must be evaluated on the first samples without a gap"),
        ([[0, 1], [np.nan, np.nan], [np.nan, 1], [1, 1]], 2, "site 1 must be evaluated"),
        ([[0, 1], [np.nan, np.nan], [1, 1]], 0, "must have a score on every sample"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(table, site, said):
    with pytest.raises(SearchError, match=said):
        correct_gain(table, site)


@pytest.mark.parametrize("margins", [False, True])
def test_a_site_that_was_never_evaluated_was_not_compared(margins):
    """The same as of a table without it, whichever rows it stands between."""
    rng = np.random.default_rng(0)
    margin = rng.normal(size=(9, 30))
    table = (margin > 0).astype(float)
    wide = np.full((12, 30), np.nan)
    wide[[0, 2, 3, 4, 6, 7, 8, 9, 10]] = table
    spread = np.full((12, 30), np.nan)
    spread[[0, 2, 3, 4, 6, 7, 8, 9, 10]] = margin
    plain = correct_gain(table, 4, margin if margins else None)
    assert correct_gain(wide, 6, spread if margins else None) == plain
    assert "Bonferroni over 8 sites" in plain.interval.method


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(SearchError, match="margin has shape"):
        correct_gain([[0, 1], [1, 1]], 0, [[0, 1]])
    with pytest.raises(SearchError, match="level is 95"):
        correct_gain([[0, 1], [1, 1]], 0, level=95)
