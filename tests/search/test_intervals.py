"""`paired_interval`: values computed by hand, and coverage by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layersurgery.errors import SearchError
from layersurgery.search import paired_interval


def pairs(both, repaired, broken, neither):
    base = [1] * both + [0] * repaired + [1] * broken + [0] * neither
    variant = [1] * both + [1] * repaired + [0] * broken + [0] * neither
    return base, variant


def test_agresti_and_min_by_hand():
    # cells 5.5, 9.5, 3.5, 3.5 of 22: difference 6/22, variance (13 - 36/22) / 22^2
    found = paired_interval(*pairs(5, 9, 3, 3))
    error = math.sqrt(9.5 + 3.5 - 36 / 22) / 22
    assert found.method == "Agresti-Min"
    assert found.low == pytest.approx(6 / 22 - 1.959964 * error, abs=1e-6)
    assert found.high == pytest.approx(6 / 22 + 1.959964 * error, abs=1e-6)
    assert (round(found.low, 4), round(found.high, 4)) == (-0.0276, 0.573)


def test_no_changed_answer_still_leaves_doubt():
    found = paired_interval(*pairs(10, 0, 0, 10))
    assert found.low == pytest.approx(-1.959964 / 22, abs=1e-6)
    assert found.high == -found.low


def test_the_ends_stay_within_what_accuracy_can_change():
    found = paired_interval([0], [1])
    assert found.high == 1.0
    assert -1 <= found.low < found.high


def test_students_interval_by_hand():
    # differences 1, 2, 3, 6: mean 3, standard deviation sqrt(14/3), t(3, .975) = 3.182446
    found = paired_interval([0.0, 0.5, 1.0, 2.0], [1.0, 2.5, 4.0, 8.0])
    reach = 3.182446 * math.sqrt(14 / 3) / 2
    assert found.method == "paired t"
    assert (found.low, found.high) == pytest.approx((3 - reach, 3 + reach), abs=1e-5)


def test_one_pair_of_real_scores_has_no_bound():
    found = paired_interval([0.5], [0.7])
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert "no bound" in found.method


def test_equal_differences_shrink_to_a_point_and_say_so():
    found = paired_interval([0.1, 0.2, 0.3], [0.6, 0.7, 0.8])
    assert found.low == found.high == pytest.approx(0.5)
    assert "all differences equal" in found.method


def test_a_higher_level_is_wider():
    narrow, wide = (paired_interval(*pairs(5, 9, 3, 3), level=level) for level in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high
    assert 0.0 in wide
    assert narrow.level == 0.8


@given(*(st.integers(0, 30) for _ in range(4)))
def test_swapping_the_variants_mirrors_the_interval(both, repaired, broken, neither):
    if both + repaired + broken + neither == 0:
        return
    base, variant = pairs(both, repaired, broken, neither)
    one, other = paired_interval(base, variant), paired_interval(variant, base)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
    assert one.low <= (repaired - broken) / len(base) <= one.high


@pytest.mark.parametrize(("repair", "break_"), [(0.05, 0.05), (0.15, 0.05), (0.1, 0.02), (0.3, 0.2), (0.0, 0.12)])
def test_coverage_at_sixty_pairs(repair, break_):
    rng = np.random.default_rng(7)
    draws = rng.multinomial(60, [repair, break_, 1 - repair - break_], size=4000)
    inside = {}
    for repaired, broken in {(int(c), int(b)) for c, b, _ in draws}:
        inside[repaired, broken] = repair - break_ in paired_interval(
            *pairs(0, repaired, broken, 60 - repaired - broken)
        )
    coverage = np.mean([inside[int(c), int(b)] for c, b, _ in draws])
    assert 0.93 <= coverage <= 0.99


def test_coverage_of_students_interval():
    rng = np.random.default_rng(3)
    samples = rng.gamma(2.0, size=(2000, 60)) - 1.5
    coverage = np.mean([0.5 in paired_interval(np.zeros(60), differences) for differences in samples])
    assert 0.93 <= coverage <= 0.97


@pytest.mark.parametrize(
    ("base", "variant", "level", "message"),
    [
        ([], [], 0.95, "flat array"),
        ([[1]], [[1]], 0.95, "flat array"),
        ([1, 0], [1], 0.95, "2 scores of the base and 1 of the variant"),
        ([1, np.nan], [1, 0], 0.95, "base has a score that is not finite"),
        ([1, 0], [1, 0], 1.0, "between 0 and 1"),
        ([1, 0], [1, 0], 95, "between 0 and 1"),
    ],
)
def test_what_has_no_interval_is_refused(base, variant, level, message):
    with pytest.raises(SearchError, match=message):
        paired_interval(base, variant, level)
