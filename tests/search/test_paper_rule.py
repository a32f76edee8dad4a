"""`PaperRule`: every branch on a table made by hand, and what must hold on any table."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layersurgery.errors import ScoringError, SearchError
from layersurgery.search import PaperRule, TableOracle


class InOrder:
    """Draws samples from left to right, so that a table shows which round sees which column."""

    def permutation(self, n):
        return np.arange(n)


def decide(table, shots, **kwargs):
    oracle = TableOracle(rows(*table), **kwargs)
    return PaperRule(shots)(oracle, InOrder()), oracle


def rows(*texts):
    """Score rows written as digits; spaces part the rounds."""
    return [[int(digit) for digit in text.replace(" ", "")] for text in texts]


def test_a_unique_positive_maximum_is_chosen_in_the_first_round():
    decision, oracle = decide(["0011 0000", "0111 1111", "1111 0000", "0000 1111"], shots=4)
    assert decision.site == 1
    assert decision.gains.tolist() == [0.25, 0.5, -0.5]
    assert decision.columns == (0, 1, 2, 3)
    assert (decision.base, decision.rounds, decision.redraws, decision.candidates) == (0.5, 1, 0, (1,))
    assert "the only one" in decision.reason
    assert oracle.cells == 4 * 4


def test_a_solved_probe_set_is_discarded_at_the_cost_of_the_base_alone():
    decision, oracle = decide(["1111 0011 00", "0000 1011 00", "0000 1111 00"], shots=4)
    assert decision.site == 1
    assert (decision.redraws, decision.columns) == (1, (4, 5, 6, 7))
    assert oracle.cells == 4 + 3 * 4


def test_the_model_is_kept_when_the_base_solves_every_probe_set():
    decision, oracle = decide(["1111 1111 00", "1111 1111 11"], shots=4)
    assert decision.site is None
    assert decision.reason == (
        "the unmodified model solves every probe set: 2 sets of 4 samples were drawn and discarded, and the "
        "2 unused ones are not enough for another"
    )
    assert (decision.redraws, decision.rounds, decision.gains, decision.base) == (2, 0, None, None)
    assert decision.columns == ()
    assert oracle.cells == 8


def test_a_tie_is_settled_by_the_first_addition_of_half_the_shots():
    decision, oracle = decide(["0000 00 0", "1000 10 0", "0100 11 0", "0000 00 0"], shots=4)
    assert decision.site == 1
    assert (decision.rounds, decision.columns, decision.candidates) == (2, tuple(range(6)), (1,))
    assert decision.gains.tolist() == [2 / 6, 3 / 6, 0]
    assert oracle.cells == 4 * 6


def test_all_sites_are_evaluated_again_and_one_that_did_not_tie_may_win():
    decision, _ = decide(["0000 00 0", "1000 00 0", "0100 00 0", "0000 11 0"], shots=4)
    assert decision.site == 2


def test_no_gain_is_settled_by_the_first_addition():
    decision, _ = decide(["0011 00 0", "0001 00 0", "0011 01 0"], shots=4)
    assert (decision.site, decision.rounds) == (1, 2)


def test_a_tie_is_settled_by_the_second_addition_of_a_quarter():
    decision, _ = decide(["0000 00 0 0", "1000 10 1 0", "0100 01 0 0"], shots=4)
    assert (decision.site, decision.rounds, decision.columns) == (0, 3, tuple(range(7)))


def test_no_gain_is_settled_by_the_second_addition():
    decision, _ = decide(["0000 11 0", "0000 11 1", "0000 10 1"], shots=4)
    assert (decision.site, decision.rounds) == (0, 3)


def test_the_last_of_the_tied_sites_is_chosen_after_both_additions():
    decision, oracle = decide(["0000 00 0", "1000 00 0", "0010 00 0", "0001 00 0", "0000 00 0"], shots=4)
    assert (decision.site, decision.rounds, decision.candidates) == (2, 3, (0, 1, 2))
    assert "the last of 3 sites that still tie" in decision.reason
    assert oracle.cells == 5 * 7


def test_a_tie_may_become_no_gain_and_then_the_model_is_kept():
    decision, _ = decide(["0001 11 1", "1001 01 1", "0101 01 1"], shots=4)
    assert (decision.site, decision.rounds, decision.candidates) == (None, 3, ())


def test_the_model_is_kept_when_nothing_gains_after_both_additions():
    decision, oracle = decide(["0101 01 1", "0101 01 1", "0001 01 1"], shots=4)
    assert decision.site is None
    assert (decision.rounds, decision.candidates, decision.base) == (3, (), 4 / 7)
    assert "no site gains on 7 probe samples" in decision.reason
    assert oracle.cells == 3 * 7


def test_additions_come_after_the_discarded_sets():
    decision, _ = decide(["1111 0000 00 0", "1111 1000 01 0", "1111 0100 00 0"], shots=4)
    assert (decision.site, decision.columns) == (0, tuple(range(4, 10)))


@pytest.mark.parametrize(("shots", "needed", "rounds"), [(1, 1, 1), (2, 3, 2), (3, 4, 2), (5, 8, 3), (15, 25, 3)])
def test_halves_are_rounded_down_and_empty_additions_left_out(shots, needed, rounds):
    rule = PaperRule(shots)
    assert rule.labels_needed == needed
    decision = rule(TableOracle(np.zeros((3, needed))), np.random.default_rng(0))
    assert (decision.site, decision.rounds, len(decision.columns)) == (None, rounds, needed)


def test_a_declared_best_score_makes_a_probe_set_uninformative():
    table = ["5555 1111", "5555 2111"]
    assert decide(table, shots=4, best=5)[0].redraws == 1
    undeclared, _ = decide(["5555 11 1", "5555 21 1"], shots=4)
    assert (undeclared.redraws, undeclared.site) == (0, 0)


def test_a_score_of_one_is_not_the_best_where_another_is_declared():
    decision, _ = decide(["1111 0000", "2111 0000"], shots=4, best=2)
    assert (decision.redraws, decision.site) == (0, 0)


def test_equal_gains_that_rounding_parts_are_a_tie():
    base = [0.0, 0.0, 0.0, 0.0]
    table = [base, [0.1, 0.2, 0.0, 0.0], [0.3, 0.0, 0.0, 0.0]]
    assert 0.1 + 0.2 != 0.3
    decision = PaperRule(2)(TableOracle(table), InOrder())
    assert (decision.site, decision.rounds, decision.candidates) == (1, 2, (0, 1))


def test_a_gain_that_is_only_rounding_is_none():
    table = [[0.3, 0.0, 0.0], [0.1 + 0.2, 0.0, 0.0]]
    assert PaperRule(2)(TableOracle(table), InOrder()).site is None


def test_margins_and_counts_are_not_needed_of_an_oracle():
    table = np.array(rows("0011 00", "1111 00"))
    oracle = SimpleNamespace(
        n_sites=1,
        n_samples=6,
        read=lambda rows, columns: SimpleNamespace(correct=table[np.ix_(rows, columns)], margin=None),
    )
    assert PaperRule(4)(oracle, InOrder()).site == 0


def test_each_reading_asks_for_the_whole_probe_set():
    """A scorer that gives one number for a set of samples must be asked anew for the enlarged set."""
    asked = []
    table = TableOracle(np.zeros((3, 7)))

    def read(wanted, columns):
        asked.append((list(wanted), list(columns)))
        return table.read(wanted, columns)

    PaperRule(4)(SimpleNamespace(n_sites=2, n_samples=7, read=read), InOrder())
    first, second, third = list(range(4)), list(range(6)), list(range(7))
    assert asked == [
        ([0], first),
        ([1, 2], first),
        ([0], second),
        ([1, 2], second),
        ([0], third),
        ([1, 2], third),
    ]


@pytest.mark.parametrize("shots", [0, -1, 2.5, "20", True, None])
def test_shots_must_be_a_whole_number_above_zero(shots):
    with pytest.raises(SearchError, match="shots must be a whole number"):
        PaperRule(shots)


def test_more_shots_than_samples_are_refused_before_anything_is_read():
    oracle = TableOracle(np.zeros((2, 5)))
    with pytest.raises(SearchError, match="draws 6 probe samples, but there are 5"):
        PaperRule(6)(oracle, np.random.default_rng(0))
    assert oracle.cells == 0


def test_no_site_to_search_is_refused():
    with pytest.raises(SearchError, match="no site to search"):
        PaperRule(2)(TableOracle(np.zeros((1, 5))), np.random.default_rng(0))


def test_too_few_samples_for_an_addition_are_named():
    with pytest.raises(SearchError, match="adds 2 samples, but of 5 samples 4 are used and 1 are left"):
        decide(["00000", "00000"], shots=4)
    assert decide(["00000", "10000"], shots=4)[0].site == 0


def test_a_score_that_is_not_finite_is_an_error():
    table = np.zeros((3, 7))
    table[2, 1] = np.nan
    with pytest.raises(ScoringError, match="is nan at row 1, column 1"):
        PaperRule(4)(TableOracle(table), InOrder())


@st.composite
def searches(draw):
    """A rule, a table that is large enough for it, and a seed."""
    shots = draw(st.integers(1, 8))
    rule = PaperRule(shots)
    sites = draw(st.integers(1, 5))
    samples = rule.labels_needed + draw(st.integers(0, 4))
    values = draw(st.sampled_from([(0, 1), (0, 0.1, 0.2, 0.3), (-1, 0, 3)]))
    cells = draw(st.lists(st.sampled_from(values), min_size=(sites + 1) * samples, max_size=(sites + 1) * samples))
    return rule, np.array(cells, dtype=float).reshape(sites + 1, samples), draw(st.integers(0, 2**32))


def run(rule, table, seed):
    try:
        return rule(TableOracle(table), np.random.default_rng(seed))
    except SearchError:  # a discarded probe set left too few samples for an addition
        return None


@settings(max_examples=150, deadline=None)
@given(searches())
def test_a_decision_is_the_last_best_site_and_gains(search):
    rule, table, seed = search
    decision = run(rule, table, seed)
    if decision is None or not decision.columns:
        return
    columns = list(decision.columns)
    assert len(set(columns)) == len(columns)
    gains = (table[1:, columns] - table[0, columns]).mean(axis=1)
    assert np.allclose(decision.gains, gains)
    assert np.isclose(decision.base, table[0, columns].mean())
    if decision.site is None:
        assert gains.max() <= 1e-9
        return
    assert gains[decision.site] > 0
    assert gains[decision.site] >= gains.max() - 1e-9
    assert decision.site == decision.candidates[-1] == max(decision.candidates)
    assert len(decision.candidates) == 1 or len(columns) == rule.labels_needed


@settings(max_examples=50, deadline=None)
@given(searches())
def test_the_same_seed_gives_the_same_decision(search):
    assert run(*search) == run(*search)


@settings(max_examples=100, deadline=None)
@given(searches(), st.randoms(use_true_random=False))
def test_the_order_of_the_sites_matters_only_in_a_tie(search, random):
    rule, table, seed = search
    order = list(range(len(table) - 1))
    random.shuffle(order)
    straight = run(rule, table, seed)
    shuffled = run(rule, table[[0] + [site + 1 for site in order]], seed)
    assert (straight is None) == (shuffled is None)
    if straight is None:
        return
    assert straight.columns == shuffled.columns
    assert {order[site] for site in shuffled.candidates} == set(straight.candidates)
    if len(straight.candidates) == 1:
        assert order[shuffled.site] == straight.site


@settings(max_examples=100, deadline=None)
@given(searches(), st.sampled_from([0.5, 2.0, 8.0]), st.sampled_from([-0.5, 3.0]))
def test_the_unit_of_the_scores_does_not_matter(search, factor, shift):
    rule, table, seed = search
    if set(np.unique(table)) <= {0.0, 1.0}:
        return  # a solved probe set is told by the scores being 1
    plain, other = run(rule, table, seed), run(rule, table * factor + shift, seed)
    if plain is not None and other is not None and plain.redraws == other.redraws:
        assert plain.site == other.site


# Pruning


def account(decision):
    return decision.site, decision.candidates, decision.columns, decision.base, decision.rounds, decision.redraws


@settings(max_examples=300)
@given(
    st.integers(1, 12).flatmap(
        lambda sites: st.integers(14, 30).flatmap(
            lambda samples: st.lists(
                st.lists(st.integers(0, 1), min_size=samples, max_size=samples), min_size=sites + 1, max_size=sites + 1
            )
        )
    ),
    st.integers(1, 8),
    st.integers(0, 5),
)
def test_pruning_never_changes_the_decision(scores, shots, seed):
    whole, pruned = TableOracle(scores), TableOracle(scores)
    try:
        expected = PaperRule(shots)(whole, np.random.default_rng(seed))
    except SearchError:  # probe sets that are solved were discarded, and too few samples are left
        with pytest.raises(SearchError, match="samples"):
            PaperRule(shots, prune=True)(pruned, np.random.default_rng(seed))
        return
    found = PaperRule(shots, prune=True)(pruned, np.random.default_rng(seed))
    assert account(found) == account(expected)
    assert found.reason == expected.reason
    assert pruned.cells <= whole.cells
    if found.gains is not None:
        known = np.isfinite(found.gains)
        assert found.gains[known].tolist() == expected.gains[known].tolist()
        assert all(known[site] for site in found.candidates)
        best = expected.gains[~known].max(initial=-1)
        assert best < (expected.gains[found.site] if found.site is not None else 1e-9)


@settings(max_examples=100)
@given(st.integers(0, 10_000), st.sampled_from([None, 2.0, 5.0]))
def test_pruning_of_other_scores_never_changes_the_decision_either(seed, best):
    """Real-valued scores: with a best value some can be ruled out, without one none."""
    rng = np.random.default_rng(seed)
    scores = np.minimum(rng.integers(0, 5, (6, 20)) / 2, 2.0)
    whole, pruned = TableOracle(scores, best=best), TableOracle(scores, best=best)
    expected = PaperRule(6)(whole, np.random.default_rng(seed))
    found = PaperRule(6, prune=True)(pruned, np.random.default_rng(seed))
    assert account(found)[:2] == account(expected)[:2]
    assert best is not None or pruned.cells == whole.cells


def test_a_variant_above_the_best_score_ends_the_pruning():
    scores = [[0, 1, 1, 0, 0, 0, 0], [1, 1, 3, 0, 0, 0, 0], [3, 1, 1, 0, 0, 0, 0]]
    whole, pruned = TableOracle(scores), TableOracle(scores)
    expected = PaperRule(4)(whole, InOrder())
    assert expected.candidates == (0, 1)
    assert account(PaperRule(4, prune=True)(pruned, InOrder())) == account(expected)


def test_what_pruning_saves():
    """On tables with effects of the paper's size: 32 sites, of which a few repair and all break some answers."""
    rng = np.random.default_rng(0)
    spent = np.zeros(2)
    for _ in range(40):
        base = rng.random(60) < 0.5
        flips = rng.random((32, 60)) < rng.uniform(0.03, 0.15, (32, 1))
        scores = np.vstack([base, base ^ flips]).astype(float)
        for position, prune in enumerate((False, True)):
            oracle = TableOracle(scores)
            PaperRule(15, prune=prune)(oracle, np.random.default_rng(1))
            spent[position] += oracle.cells
    assert spent[1] / spent[0] < 0.7


def test_a_scorer_of_one_number_in_all_is_not_pruned():
    class Totals(TableOracle):
        per_sample = False

    scores = [[0.0] * 8, [1.0] * 8, [0.0] * 8]
    oracle = Totals(scores)
    assert PaperRule(4, prune=True)(oracle, InOrder()).gains.tolist() == [1.0, 0.0]


def test_the_repr_says_that_it_prunes():
    assert repr(PaperRule(15)) == "PaperRule(shots=15)"
    assert repr(PaperRule(15, prune=True)) == "PaperRule(shots=15, prune=True)"
