"""`Prior`: what other tasks' vectors tell, what it changes in a search, and what it must not change."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import layersurgery as ls
from layersurgery.errors import SearchError
from layersurgery.search import HalvingRule, Prior, TableOracle
from layersurgery.search._correct import correct_gain
from layersurgery.search._prior import drawn
from layersurgery.search._seen import Comparison
from layersurgery.vectors import InteractionVectors


def alike(rng, tasks, sites=32, common=0.04, own=0.02):
    """Vectors that are the same but for what is each task's own."""
    return rng.normal(0, common, sites) + rng.normal(0, own, (tasks, sites))


def task(rng, sites=16, samples=200, helps=5, by=0.8):
    base = rng.normal(size=samples)
    margins = np.vstack([base, base + 0.5 * rng.normal(size=(sites, samples))])
    margins[helps + 1] += by
    return (margins > 0).astype(float), margins


def named(table, **fields):
    return SimpleNamespace(n_sites=table.n_sites, n_samples=table.n_samples, read=table.read, **fields)


def test_tasks_that_predict_each_other_weigh_and_others_do_not():
    rng = np.random.default_rng(0)
    weights = {
        own: np.mean([Prior.of(alike(rng, 10, own=own)).samples for _ in range(40)]) for own in (0.01, 0.04, 0.16)
    }
    assert weights[0.01] > weights[0.04] > weights[0.16]
    unrelated = [Prior.of(rng.normal(0, 0.05, (tasks, 32))) for tasks in (2, 3, 10) for _ in range(40)]
    assert np.mean([prior.samples for prior in unrelated]) < 0.6
    opposite = rng.normal(0, 0.05, 32)
    assert Prior.of([opposite, -opposite]).samples == 0


def test_few_tasks_weigh_little_however_alike_they_are():
    same = np.random.default_rng(0).normal(0, 0.05, 32)
    worth = [Prior.of(np.tile(same, (tasks, 1)), samples=12).samples for tasks in (1, 2, 3, 5, 11)]
    assert worth == pytest.approx([0, 4, 6, 8, 10])


def test_a_vector_measured_on_few_samples_weighs_less():
    rng = np.random.default_rng(0)
    worth = [
        np.mean([Prior.of(alike(rng, 5) + rng.normal(0, error, (5, 32))).samples for _ in range(30)])
        for error in (0, 0.04, 0.12)
    ]
    assert worth[0] > worth[1] > worth[2]


def test_what_all_tasks_share_is_no_difference_between_sites():
    """A task that loses everywhere says nothing of which site is better."""
    rng = np.random.default_rng(0)
    vectors = alike(rng, 6)
    moved = vectors + rng.normal(0, 0.3, (6, 1))
    assert Prior.of(moved, bar=math.inf).samples == pytest.approx(Prior.of(vectors, bar=math.inf).samples)
    assert Prior.of(np.full((4, 9), 0.02)).samples == 0


def test_a_site_is_barred_where_two_thirds_lost_by_it_and_the_next_task_is_expected_to():
    rng = np.random.default_rng(0)
    vectors = rng.normal(0, 0.01, (6, 32))
    vectors[:, 3] = -0.4
    vectors[:4, 7] = -0.5  # four of six
    vectors[:3, 9] = -0.5  # three of six, although -0.25 on average
    vectors[:, 11] = -0.08  # not enough
    assert Prior.of(vectors).barred == (3, 7)
    assert Prior.of(vectors, bar=0.05).barred == (3, 7, 11)
    assert Prior.of(vectors, bar=math.inf).barred == ()
    assert Prior.of(vectors[:1]).barred == ()
    assert Prior.of(vectors[:2]).barred == (3, 7, 9)


def test_losses_that_chance_puts_on_the_same_site_bar_nothing():
    """Two of three tasks lost by site 0, but what a task loses by does not depend on the site otherwise."""
    rng = np.random.default_rng(1)
    vectors = np.where(rng.random((3, 32)) < 0.2, -0.3, 0.0)
    vectors[:, 0] = [-0.3, -0.3, 0]
    assert Prior.of(vectors).barred == ()


def test_not_all_sites_are_barred():
    losing = np.tile([-0.5, -0.2, -0.3, -0.4], (5, 1))
    assert Prior.of(losing).barred == ()
    assert Prior.of(np.c_[losing, np.zeros(5)]).barred == (0, 1, 2, 3)


def test_sites_are_those_of_the_vectors_where_they_have_names():
    matrix = np.zeros((2, 3))
    vectors = SimpleNamespace(matrix=matrix, sites=("a.0", "a.1", "a.2"))
    assert Prior.of(vectors).sites == ("a.0", "a.1", "a.2")
    assert Prior.of(InteractionVectors({"one": [0.1, 0, 0], "two": [0, 0.1, 0]})).sites == ()
    assert Prior.of(matrix).sites == ()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Prior([]), "one finite number per site; got"),
        (lambda: Prior([[0.1]]), "one finite number per site"),
        (lambda: Prior([0.1, np.nan]), "one finite number per site"),
        (lambda: Prior([0.1], samples=-1), r"Prior\(samples=-1\): samples must be a number, 0 or above"),
        (lambda: Prior([0.1], samples=math.inf), "samples must be"),
        (lambda: Prior([0.1], samples="5"), "samples must be"),
        (lambda: Prior([0.1], error=-0.1), r"Prior\(error=-0.1\): error must be"),
        (lambda: Prior([0.1, 0], barred=[2]), "barred names site 2; give indices of sites, 0 to 1"),
        (lambda: Prior([0.1, 0], barred=[True]), "barred names site True"),
        (lambda: Prior([0.1, 0], barred=["a"]), "barred names site 'a'"),
        (lambda: Prior([0.1, 0], barred=[0, 1]), "all 2 sites are barred"),
        (lambda: Prior([0.1, 0], sites=["a"]), "1 labels of sites for 2 changes"),
        (lambda: Prior.of([0.1, 0.2]), r"needs finite changes \[tasks, sites\] .* got shape \(2,\)"),
        (lambda: Prior.of(np.zeros((0, 4))), "of one task or more"),
        (lambda: Prior.of([[0.1, np.nan]]), "with numbers that are not finite"),
        (lambda: Prior.of([[0.1]], samples=-2), r"Prior.of\(samples=-2\): samples must be"),
        (lambda: Prior.of([[0.1]], bar=0), r"Prior.of\(bar=0\): bar must be a number, above 0"),
        (lambda: Prior.of([[0.1]], bar=math.nan), "bar must be"),
        (lambda: Prior.of([[0.1]], bar=True), "bar must be"),
    ],
)
def test_what_makes_no_sense_is_refused(make, said):
    with pytest.raises(SearchError, match=said):
        make()


def test_means_are_drawn_by_as_much_as_the_samples_say():
    compared = Comparison(np.array([[0.0, 1, 0, 1], [1.0, 1, 0, 0]]), np.ones(4), smoothed=False)
    assert drawn(None, compared, [2, 0]).tolist() == [0.5, 0.5]
    prior = Prior([0.1, 9, -0.3], samples=4)
    assert drawn(prior, compared, [2, 0]) == pytest.approx([(4 * 0.5 - 4 * 0.3) / 8, (4 * 0.5 + 4 * 0.1) / 8])


def test_a_prior_that_is_less_exact_than_the_samples_counts_as_fewer():
    """Its error is ten times that of one sample, so that it is worth a hundredth of one."""
    rng = np.random.default_rng(0)
    exact = Comparison(0.01 * rng.normal(size=(2, 400)), np.ones(400), smoothed=False)
    told = np.var(exact.differences, axis=1, ddof=1).mean()
    prior = Prior([1.0, -1.0], samples=10, error=10 * math.sqrt(told))
    pulled = drawn(prior, exact, [0, 1]) - exact.means
    assert np.abs(pulled) == pytest.approx(0.01 / 400, rel=0.1)
    assert drawn(Prior([1.0, -1.0], samples=10, error=1e-200), exact, [0, 1])[0] == pytest.approx(10 / 410, abs=0.01)


def test_one_number_for_a_set_of_samples_tells_as_much_as_its_samples():
    rng = np.random.default_rng(0)
    single = rng.normal(size=(3, 4000))
    sets = Comparison(single.reshape(3, 400, 10).mean(axis=2), np.full(400, 10.0), smoothed=False)
    prior = Prior([5.0, 0, 0], samples=1e6, error=0.1)  # worth a hundred samples
    pulled = drawn(prior, sets, [0, 1, 2]) - sets.means
    assert pulled[0] == pytest.approx(5 * 100 / 4100, rel=0.1)


def test_real_scores_in_a_large_unit_are_not_outweighed():
    """Sites differ by far more than samples do: the others' tasks cannot turn the order of what is plainly seen."""
    rng = np.random.default_rng(0)
    common = rng.normal(0, 5, 16)
    others = common + rng.normal(0, 3, (10, 16))
    changes = common + rng.normal(0, 3, 16)
    base = rng.normal(size=60)
    scores = np.vstack([base, base + changes[:, None] + 0.01 * rng.normal(size=(16, 60))])
    prior = Prior.of(others, bar=math.inf)
    assert prior.samples > 3
    assert prior.error > 1
    decision = HalvingRule(prior=prior)(TableOracle(scores), rng)
    assert decision.ranking[:2] == tuple(np.argsort(-changes)[:2])


def test_the_prior_decides_between_sites_that_the_samples_do_not_tell_apart():
    scores = np.zeros((9, 60))
    scores[[3, 6], ::2] = 1  # sites 2 and 5 are alike
    for favoured in (2, 5):
        expected = np.zeros(8)
        expected[favoured] = 0.05
        rule = HalvingRule(prior=Prior(expected, samples=5))
        assert {rule(TableOracle(scores), np.random.default_rng(seed)).site for seed in range(10)} == {favoured}


def test_the_gate_does_not_know_the_prior():
    """However much is expected of a site, what is asked of it and what it is found to gain stay the same."""
    correct, margins = task(np.random.default_rng(0), by=0)
    said = set()
    for expected in (0, 0.2, 0.9):
        changes = np.full(16, -0.9)
        changes[5] = expected
        rule = HalvingRule(z=3, prior=Prior(changes, samples=1e6))
        decision = rule(TableOracle(correct, margins), np.random.default_rng(0))
        assert decision.site is None
        assert decision.ranking[0] == 5
        said.add(decision.reason)
    assert len(said) == 1


def test_barred_sites_are_not_read_and_the_gate_is_that_of_the_others():
    correct, margins = task(np.random.default_rng(0), sites=16, helps=5)
    barred = [0, 3, 4, 9, 10, 11, 12, 13]
    correct[np.array(barred) + 1] = np.nan  # reading them is an error
    left = [site for site in range(16) if site not in barred]
    oracle = TableOracle(correct, margins)
    decision = HalvingRule(prior=Prior(np.zeros(16), barred=barred))(oracle, np.random.default_rng(0))
    assert decision.site == 5
    assert sorted(decision.ranking) == left
    assert set(decision.candidates) <= set(left)
    assert np.isnan(decision.gains[barred]).all()
    assert "the best of 8 candidates by halving (8 more barred by the prior), on" in decision.reason
    rows = [0, *(site + 1 for site in left)]
    alone = TableOracle(correct[rows], margins[rows])
    fewer = HalvingRule()(alone, np.random.default_rng(0))
    assert oracle.cells == alone.cells
    assert len(fewer.columns) == len(decision.columns)
    asked = [each.reason.split("margins (")[1].split()[0] for each in (fewer, decision)]
    assert asked[0] == asked[1]


def test_the_only_site_left_is_judged_alone():
    correct, margins = task(np.random.default_rng(0), sites=3, helps=1, by=2)
    rule = HalvingRule(prior=Prior(np.zeros(3), barred=[0, 2]))
    decision = rule(TableOracle(correct, margins), np.random.default_rng(0))
    assert (decision.site, decision.ranking, decision.rounds) == (1, (1,), 1)
    assert "the only candidate (2 more barred by the prior)" in decision.reason


def test_what_is_asked_for_is_told_beforehand():
    rule = HalvingRule(labels=100, prior=Prior(np.zeros(32), barred=range(8)))
    oracle = TableOracle(np.zeros((33, 300)))
    rule(oracle, np.random.default_rng(0))
    fewest, most = rule.evaluations(32)
    assert fewest <= oracle.cells <= most
    assert (fewest, most) == HalvingRule(labels=100).evaluations(24)
    with pytest.raises(SearchError, match="the prior is of 32 sites, but 31 are searched"):
        rule.evaluations(31)


def test_a_gain_is_corrected_for_the_sites_that_were_compared():
    correct, margins = task(np.random.default_rng(0))
    rule = HalvingRule(prior=Prior(np.zeros(16), barred=range(5)))
    seen = np.full(correct.shape, np.nan)

    def read(rows, columns):
        seen[np.ix_(rows, columns)] = correct[np.ix_(rows, columns)]
        return table.read(rows, columns)

    table = TableOracle(correct, margins)
    decision = rule(SimpleNamespace(n_sites=16, n_samples=200, read=read), np.random.default_rng(0))
    columns = list(decision.columns)
    found = correct_gain(seen[:, columns], decision.site, margins[:, columns], resamples=50)
    assert found.apparent == pytest.approx(decision.gains[5])
    assert "Bonferroni over 11 sites" in found.interval.method


def test_a_prior_of_other_sites_is_refused_before_anything_is_read():
    table = TableOracle(np.zeros((4, 20)))
    with pytest.raises(SearchError, match="the prior is of 2 sites, but 3 are searched"):
        HalvingRule(prior=Prior([0, 0]))(table, np.random.default_rng(0))
    prior = Prior([0.0, 0, 0], sites=["a", "b", "c"])
    with pytest.raises(SearchError, match="the prior's site 1 is b and the search's is c"):
        HalvingRule(prior=prior)(named(table, sites=["a", "c", "b"]), np.random.default_rng(0))
    assert table.cells == 0
    HalvingRule(prior=prior)(named(table, sites=["a", "b", "c"]), np.random.default_rng(0))
    HalvingRule(prior=prior)(table, np.random.default_rng(0))  # an oracle without names is taken at its word


def test_a_site_changed_in_several_ways_goes_by_what_was_done_there():
    """As in `InteractionVectors`, whose labels are the surgeries then."""
    table = TableOracle(np.zeros((3, 20)))
    oracle = named(table, sites=["a", "a"], surgeries=["zero a", "mean a"])
    HalvingRule(prior=Prior([0, 0], sites=["zero a", "mean a"]))(oracle, np.random.default_rng(0))
    with pytest.raises(SearchError, match="site 0 is mean a and the search's is zero a"):
        HalvingRule(prior=Prior([0, 0], sites=["mean a", "zero a"]))(oracle, np.random.default_rng(0))


def test_a_real_search_leaves_barred_sites_alone_and_corrects_for_the_others():
    model = torch.nn.ModuleDict({f"layer{i}": torch.nn.Linear(1, 1, bias=False) for i in range(6)}).eval()

    def score(model, samples):
        model["layer0"](torch.ones(1))
        known = [model[f"layer{i}"].weight.item() == 0 for i in range(6)]
        return [0.0 if known[1] else 1.0 if known[4] and sample % 3 else float(sample % 2) for sample in samples]

    sites = ls.select(model, pattern="layer*")
    tables = {name: ls.sweep(model, score, range(start, start + 30), at=sites) for name, start in (("a", 0), ("b", 30))}
    prior = Prior.of(InteractionVectors(tables))
    assert prior.barred == (1,)
    found = ls.talo(model, score, range(100, 160), at=sites, rule=HalvingRule(prior=prior))
    assert (found.decision.site, found.site.path) == (4, "layer4")
    assert "the best of 5 candidates by halving (1 more barred by the prior)" in found.decision.reason
    assert "Bonferroni over 5 sites" in found.interval.method
    assert "prior=Prior(6 sites, 1 barred" in found.to_dict()["rule"]
    with pytest.raises(SearchError, match="the prior's site 0 is layer0 and the search's is layer5"):
        ls.talo(model, score, range(60), at=list(sites)[::-1], rule=HalvingRule(prior=prior))


def test_what_is_no_prior_is_refused():
    with pytest.raises(SearchError, match=r"give a Prior, such as Prior.of\(vectors\), or None"):
        HalvingRule(prior=np.zeros((2, 3)))


def test_priors_compare_by_what_they_say():
    one, other = (Prior(np.array([0.1, 0]), samples=2, barred=(site,), sites="ab") for site in (0, 0))
    assert one == other
    assert hash(HalvingRule(prior=one)) == hash(HalvingRule(prior=other))
    assert one != Prior([0.1, 0], samples=3, barred=[0], sites="ab")
    assert repr(one) == "Prior(2 sites, 1 barred, worth 2 samples)"


@st.composite
def matrices(draw):
    tasks, sites = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    unit = draw(st.sampled_from([0.0, 0.05, 0.5, 100]))
    return unit * (rng.normal(size=sites) - draw(st.integers(0, 2)) + rng.normal(size=(tasks, sites)))


@settings(max_examples=200, deadline=None)
@given(matrices(), st.floats(0, 50), st.sampled_from([0.01, 0.09, math.inf]), st.randoms(use_true_random=False))
def test_what_always_holds_of_a_prior(matrix, samples, bar, random):
    prior = Prior.of(matrix, samples=samples, bar=bar)
    tasks, sites = matrix.shape
    assert 0 <= prior.samples <= samples * (tasks - 1) / (tasks + 1) * (1 + 1e-12)
    assert len(prior.barred) < sites
    assert all((matrix[:, site] <= -bar).mean() >= 2 / 3 for site in prior.barred)
    assert prior.changes == pytest.approx(matrix.mean(axis=0))
    order = random.sample(range(tasks), tasks)
    again = Prior.of(matrix[order], samples=samples, bar=bar)
    assert again.barred == prior.barred
    assert again.samples == pytest.approx(prior.samples, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 40), st.sampled_from(["margins", "answers", "real"]))
def test_a_prior_that_weighs_and_bars_nothing_changes_nothing(seed, sites, samples, kind):
    rng = np.random.default_rng(seed)
    margins = rng.normal(size=(sites + 1, samples)).round(1)
    table = (margins, None) if kind == "real" else ((margins > 0).astype(float), margins if kind == "margins" else None)
    without = HalvingRule()(TableOracle(*table), np.random.default_rng(seed))
    prior = Prior(rng.normal(size=sites), error=rng.choice([0.0, 1.0]))
    decision = HalvingRule(prior=prior)(TableOracle(*table), np.random.default_rng(seed))
    assert decision == without
    assert decision.gains == pytest.approx(without.gains, nan_ok=True)
