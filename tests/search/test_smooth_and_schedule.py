"""The parts of `HalvingRule` by themselves: smoothed margins, the schedule of rounds, the standard error."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from layersurgery.errors import SearchError
from layersurgery.search._gate import luck, standard_errors
from layersurgery.search._schedule import Round, schedule
from layersurgery.search._smooth import smooth


def test_the_formula():
    margins = np.random.default_rng(0).normal(size=(3, 50)) * [[1], [10], [0.1]]
    width = 1.5 * 50 ** (-1 / 3)
    rms = np.sqrt((margins**2).mean(axis=1, keepdims=True))
    assert smooth(margins) == pytest.approx(norm.cdf(margins / (width * rms)))
    assert smooth(margins[:, :2]) == pytest.approx(
        norm.cdf(margins[:, :2] / np.sqrt((margins[:, :2] ** 2).mean(axis=1, keepdims=True)))
    )


def test_with_many_samples_the_mean_tends_to_the_accuracy():
    margins = np.random.default_rng(0).normal(0.5, 1, size=(1, 200_000))
    assert smooth(margins).mean() == pytest.approx((margins > 0).mean(), abs=0.002)
    assert abs(smooth(margins[:, :8]).mean() - (margins[:, :8] > 0).mean()) > 0.01


def test_a_row_of_zeros_is_one_half_and_huge_margins_are_fine():
    assert smooth([[0, 0, 0], [1e300, -1e300, 1e300]])[0].tolist() == [0.5, 0.5, 0.5]
    assert np.isfinite(smooth([[1e308, -1e308, 5e-324]])).all()


@pytest.mark.parametrize("bad", [[1.0, 2.0], [[]], [[np.inf, 1]], [[np.nan]]])
def test_what_cannot_be_smoothed_is_refused(bad):
    with pytest.raises(SearchError, match="smooth"):
        smooth(bad)


def test_later_rounds_read_more_samples_and_fewer_cells():
    rounds = schedule(32, 1000, 3300, 2)
    assert [each.sites for each in rounds] == [32, 16, 8, 4, 2]
    assert all(later.samples > earlier.samples for earlier, later in pairwise(rounds))
    assert all(later.cells < earlier.cells for earlier, later in pairwise(rounds))
    assert rounds[2].samples == pytest.approx(rounds[0].samples * (33 / 9) ** 0.5, abs=1)
    assert sum(each.cells for each in rounds) == pytest.approx(3300, abs=35)


def test_where_labels_are_short_the_first_rounds_get_more():
    rounds = schedule(32, 17, 280, 2)
    assert sum(each.samples for each in rounds) == 17
    assert rounds[0].samples > rounds[-1].samples
    assert schedule(32, 17, 33 * 17, 2) == [Round(32, 17)]


def test_each_round_keeps_one_in_eta():
    assert [each.sites for each in schedule(64, 500, 5000, 4)] == [64, 16, 4]
    assert [each.sites for each in schedule(7, 500, 1000, 3)] == [7, 3]
    assert [each.sites for each in schedule(1, 500, 50, 2)] == [1]


@given(st.integers(1, 80), st.integers(1, 300), st.integers(2, 9000), st.integers(2, 5))
def test_neither_labels_nor_cells_run_out(sites, labels, budget, eta):
    if budget < sites + 1:
        with pytest.raises(SearchError, match="give at least 1 sample"):
            schedule(sites, labels, budget, eta)
        return
    rounds = schedule(sites, labels, budget, eta)
    assert rounds[0].sites == sites
    assert all(each.samples >= 1 for each in rounds)
    assert sum(each.samples for each in rounds) <= labels
    assert sum(each.cells for each in rounds) <= budget
    spent, read = sum(each.cells for each in rounds), sum(each.samples for each in rounds)
    assert read == labels or spent > budget / 2 - sites  # one of them is used up, or nearly


def test_the_standard_error_by_hand():
    differences = np.array([1.0, 0.0, 0.0, 1.0, -1.0])
    error = math.sqrt((np.sum((differences - 0.2) ** 2) + 0.25) / (5 * 4))
    assert standard_errors(differences) == pytest.approx(0.2 / error)
    assert standard_errors(7 * differences, unit=7) == pytest.approx(0.2 / error)


def test_copies_in_groups_are_worth_one_sample_each():
    differences = np.array([1.0, 0.0, 0.5, -0.2])
    copies = np.repeat(differences, 6)
    assert standard_errors(copies, np.repeat(list("abcd"), 6).tolist()) == pytest.approx(standard_errors(differences))
    assert standard_errors(differences, list("abcd")) == pytest.approx(standard_errors(differences))
    assert standard_errors(copies) > 2 * standard_errors(differences)


def test_chance_lifts_the_best_of_more_sites_further():
    drawn = np.random.default_rng(0).normal(size=(40_000, 65))
    for sites in (4, 8, 32, 64):
        lifted = drawn[:, : sites + 1].max(axis=1).mean() / drawn[:, :33].max(axis=1).mean()
        assert luck(sites) == pytest.approx(lifted, abs=0.03)
    assert luck(32) == 1
    assert luck(1) == luck(2) == 0.5
