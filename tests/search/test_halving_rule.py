"""`HalvingRule`: every branch on a table made by hand, and what must hold on any table."""

from itertools import chain, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layersurgery.errors import ScoringError, SearchError
from layersurgery.search import PaperRule, TableOracle, smooth
from layersurgery.search._gate import luck
from layersurgery.search._halving import HalvingRule
from layersurgery.search._seen import Comparison


class InOrder:
    """Draws samples from left to right."""

    def permutation(self, n):
        return np.arange(n)


class Strict(TableOracle):
    """Refuses to answer for a cell a second time, and keeps what was asked."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.asked = []

    def read(self, rows, columns):
        cells = {(row, column) for row in rows for column in columns}
        assert len(cells) == len(rows) * len(columns)
        assert not any(cells & earlier for earlier in self.asked)
        self.asked.append(cells)
        return super().read(rows, columns)


def task(rng, sites=16, samples=200, helps=5, by=0.8, spread=0.5):
    """Margins that follow the base's, of which one site's are shifted upwards."""
    base = rng.normal(size=samples)
    margins = np.vstack([base, base + spread * rng.normal(size=(sites, samples))])
    margins[helps + 1] += by
    return (margins > 0).astype(float), margins


def test_a_site_that_helps_is_found_and_one_that_does_not_is_left():
    found = [
        HalvingRule()(Strict(*task(np.random.default_rng(seed))), np.random.default_rng(seed)) for seed in range(9)
    ]
    assert sum(decision.site == 5 for decision in found) >= 8
    none = [
        HalvingRule()(Strict(*task(np.random.default_rng(seed), helps=5, by=-1)), np.random.default_rng(seed))
        for seed in range(9)
    ]
    assert all(decision.site != 5 for decision in none)
    assert any(decision.site is None for decision in none)


def test_each_round_reads_new_samples_on_the_better_half():
    correct, margins = task(np.random.default_rng(0), sites=8)
    oracle = Strict(correct, margins)
    decision = HalvingRule(labels=60, budget=200)(oracle, InOrder())
    sites = [sorted({row - 1 for row, _ in cells} - {-1}) for cells in oracle.asked]
    samples = [sorted({column for _, column in cells}) for cells in oracle.asked]
    assert [len(alive) for alive in sites] == [8, 4, 2]
    assert all(set(later) < set(earlier) for earlier, later in pairwise(sites))
    assert list(chain(*samples)) == list(range(len(decision.columns))) == list(decision.columns)
    assert decision.rounds == 3
    assert decision.candidates == tuple(sites[-1])
    assert oracle.cells <= 200


def test_a_site_of_which_little_is_known_gets_the_benefit_of_the_doubt():
    """On the first samples a site that flips many answers is just below quiet ones: it may be the best, they cannot."""
    correct = np.zeros((9, 100))
    correct[0, ::2] = 1
    correct[1:] = correct[0]
    correct[6, 4:] = 1  # right but for the first samples, of which it breaks one and repairs one
    correct[6, :4] = correct[0, :4]
    correct[6, [0, 1]] = 0, 1
    oracle = Strict(correct)
    decision = HalvingRule()(oracle, InOrder())
    assert decision.site == 5
    first, *later = [{row - 1 for row, _ in cells} - {-1} for cells in oracle.asked]
    assert first == set(range(8))
    assert all(5 in alive for alive in later)


def test_the_last_round_goes_by_the_mean_alone():
    correct = np.zeros((3, 40))
    correct[1, ::4] = 1  # repairs a quarter
    correct[2, ::2] = 1  # repairs half, and breaks a third
    correct[0, 1::3] = 1
    correct[1, 1::3] = 1
    gains = (correct[1:] - correct[0]).mean(axis=1)
    assert HalvingRule(labels=40, budget=120)(TableOracle(correct), InOrder()).ranking[0] == gains.argmax()


@pytest.mark.parametrize("sizes", [np.ones(7), np.array([1, 2, 3, 1, 1, 4, 2])])
def test_the_doubt_is_a_standard_error_and_a_half(sizes):
    changes = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], (5, 7))
    compared = Comparison(changes, sizes, smoothed=False)
    for site, row in enumerate(changes):
        mean = np.average(row, weights=sizes)
        variance = ((sizes * (row - mean) ** 2).sum() + 0.25) / 6
        assert compared.hopes[site] == pytest.approx(1.5 * np.sqrt(variance / sizes.sum()))
    assert Comparison(changes * 10, sizes, smoothed=False).hopes == pytest.approx(10 * compared.hopes)
    assert Comparison(changes[:, :1], sizes[:1], smoothed=False).hopes.tolist() == [0.0] * 5


def test_close_calls_are_looked_at_again_on_the_finalist_alone():
    """What comes after the rounds reads one site, as long as its gain is about what is asked for."""
    closer = passed = failed = 0
    for seed in range(60):
        correct, margins = task(np.random.default_rng(seed), sites=8, by=(0.1, 0.3, 0.8)[seed % 3])
        oracle = Strict(correct, margins)
        rule = HalvingRule(labels=150, budget=400)
        decision = rule(oracle, np.random.default_rng(seed))
        rounds = rule._rounds(8, 150)
        extra = oracle.asked[len(rounds) :]
        assert oracle.cells <= 400
        assert all({row for row, _ in cells} == {0, decision.candidates[0] + 1} for cells in extra)
        before = list(decision.columns[: sum(each.samples for each in rounds)])
        rows = [0, decision.ranking[0] + 1]
        asked = 1.5 * luck(8) * np.interp(len(before), [20, 60], [2 / 3, 1])
        found = standard_errors_of(smooth(margins[rows][:, before])) - asked
        answers = standard_errors_of(correct[rows][:, before]) - asked / 4
        close = abs(min(found, answers)) < luck(8)
        assert close == bool(extra)
        assert len(decision.candidates) == (1 if extra else 2)
        closer += close
        passed += not close and decision.site is not None
        failed += not close and decision.site is None
    assert closer > 5
    assert passed > 5
    assert failed


def standard_errors_of(scores):
    """Of two rows, by the formula of the docstring."""
    changes = scores[1] - scores[0]
    n = len(changes)
    return changes.mean() / np.sqrt((((changes - changes.mean()) ** 2).sum() + 0.25) / (n * (n - 1)))


def test_the_account_is_of_the_scores_themselves():
    correct, margins = task(np.random.default_rng(1), sites=8)
    decision = HalvingRule(labels=60)(TableOracle(correct, margins), np.random.default_rng(0))
    columns = list(decision.columns)
    gains = (correct[1:, columns] - correct[0, columns]).mean(axis=1)
    assert decision.base == pytest.approx(correct[0, columns].mean())
    known = np.isfinite(decision.gains)
    assert np.flatnonzero(known).tolist() == list(decision.candidates)
    assert decision.gains[known] == pytest.approx(gains[known])


def test_margins_decide_where_few_answers_flip_but_all_nearly_do():
    """Site 0 repairs two answers of 40 and raises all margins; site 1 repairs two and lowers the others."""
    base = np.tile([-1.0, 1.0], 20)
    higher, lower = base + 0.9, base - 0.9
    for row in (higher, lower):
        row[[0, 2]] = 0.5
    lower[1::2] = 0.1
    margins = np.vstack([base, higher, lower])
    decision = HalvingRule(labels=40, budget=120)(TableOracle(margins > 0, margins), np.random.default_rng(0))
    assert decision.site == 0
    assert "standard errors by margins" in decision.reason


def test_higher_margins_are_not_enough_without_answers_repaired():
    base = np.linspace(0.1, 2, 40)  # all right: nothing to repair
    margins = np.vstack([base, base + 3])
    decision = HalvingRule(z=3)(TableOracle(margins > 0, margins), np.random.default_rng(0))
    assert decision.site is None
    assert "+0.00 by answers (0.25 asked for)" in decision.reason
    assert decision.base == 1


def test_answers_must_follow_the_margins_by_a_quarter_of_the_standard_errors():
    """The wrong answers' margins rise by far, while two answers are repaired and one is broken, or none."""
    base = np.repeat([3.0, -3.0], 20)
    for broken, site in ((True, None), (False, 0)):
        variant = np.repeat([3.0, -0.3], 20)
        variant[20:22] = 1
        variant[0] = -1 if broken else 3
        margins = np.vstack([base, variant])
        rule = HalvingRule(labels=40, budget=100, z=6)
        decision = rule(TableOracle(margins > 0, margins), np.random.default_rng(0))
        assert decision.gains[0] == pytest.approx((1 if broken else 2) / 40)
        assert "(2.50 asked for) and" in decision.reason
        assert float(decision.reason.split("standard errors by margins")[0].split()[-1]) > 2.5
        assert decision.site == site


def test_more_sites_must_gain_by_more():
    """The only site that differs needs as much as chance would give the best of so many."""
    asked = []
    for sites in (2, 8, 32, 64):
        margins = np.zeros((sites + 1, 90))
        decision = HalvingRule(budget=90 * (sites + 1))(TableOracle(margins, margins), np.random.default_rng(0))
        asked.append(float(decision.reason.split("margins (")[1].split()[0]))
    assert asked == [0.75, pytest.approx(1.07, abs=0.02), 1.5, pytest.approx(1.69, abs=0.02)]


@pytest.mark.parametrize(("samples", "asked"), [(10, 1.0), (20, 1.0), (40, 1.25), (60, 1.5), (90, 1.5)])
def test_few_samples_lower_the_gate_for_margins_only(samples, asked):
    margins = np.random.default_rng(0).normal(size=(33, samples))
    rule = HalvingRule(budget=samples * 33)
    by_margins = rule(TableOracle(margins > 0, margins), np.random.default_rng(0))
    by_answers = rule(TableOracle(margins > 0), np.random.default_rng(0))
    assert f"by margins ({asked:.2f} asked for)" in by_margins.reason
    assert f"by answers ({asked / 4:.2f} asked for)" in by_margins.reason
    assert "(1.50 asked for)" in by_answers.reason


def test_one_unit_of_margins_is_as_good_as_another():
    correct, margins = task(np.random.default_rng(2))
    units = np.random.default_rng(3).lognormal(0, 2, (len(margins), 1))
    plain = HalvingRule()(TableOracle(correct, margins), np.random.default_rng(0))
    other = HalvingRule()(TableOracle(correct, margins * units), np.random.default_rng(0))
    assert (plain, plain.candidates) == (other, other.candidates)


@pytest.mark.parametrize(
    ("margins", "said"),
    [
        (lambda margins: None, "since the scorer gives no margins"),
        (lambda margins: -margins, "since the scorer's margins often contradict them"),
    ],
)
def test_without_usable_margins_the_answers_are_compared_and_the_reason_says_so(margins, said):
    correct, known = task(np.random.default_rng(0), by=3)
    decision = HalvingRule()(TableOracle(correct, margins(known)), np.random.default_rng(0))
    assert decision.site == 5
    assert said in decision.reason
    assert "standard errors" in decision.reason
    assert "since" not in HalvingRule()(TableOracle(correct, known), np.random.default_rng(0)).reason


def test_margins_that_come_for_some_readings_only_are_not_used():
    correct, known = task(np.random.default_rng(0), by=3)
    table = TableOracle(correct, known)

    def read(rows, columns):
        answer = table.read(rows, columns)
        return answer if len(rows) > 10 else SimpleNamespace(correct=answer.correct, margin=None)

    decision = HalvingRule()(SimpleNamespace(n_sites=16, n_samples=200, read=read), np.random.default_rng(0))
    assert "no margins" in decision.reason


def test_real_scores_are_compared_as_they_are():
    rng = np.random.default_rng(0)
    base = rng.normal(size=60)
    scores = np.vstack([base, base + 0.3 + 0.1 * rng.normal(size=60), base - 0.3])
    decision = HalvingRule()(TableOracle(scores, scores), np.random.default_rng(0))
    assert decision.site == 0
    assert "not all 0 or 1" in decision.reason
    for factor in (1e-6, 1e6):
        assert HalvingRule()(TableOracle(scores * factor), np.random.default_rng(0)).site == 0


def test_margins_of_zero_say_nothing_and_break_nothing():
    correct = np.zeros((5, 40))
    decision = HalvingRule()(TableOracle(correct, correct), np.random.default_rng(0))
    assert decision.site is None
    assert decision.gains[list(decision.candidates)].tolist() == [0, 0]


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_margin_that_is_not_finite_is_an_error(bad):
    correct, margins = task(np.random.default_rng(0), sites=2, samples=20, helps=0)
    margins[1] = bad
    with pytest.raises(ScoringError, match=r"Reading\.margin is"):
        HalvingRule()(TableOracle(correct, margins), np.random.default_rng(0))


def test_huge_margins_do_not_overflow():
    correct, margins = task(np.random.default_rng(0), by=3)
    assert HalvingRule()(TableOracle(correct, margins * 1e200), np.random.default_rng(0)).site == 5


@pytest.mark.parametrize("sites", [1, 2, 3])
def test_few_sites_take_one_or_two_rounds(sites):
    correct, margins = task(np.random.default_rng(0), sites=sites, helps=0, by=2)
    decision = HalvingRule()(Strict(correct, margins), np.random.default_rng(0))
    assert decision.site == 0
    assert decision.rounds == (1 if sites < 3 else 2)
    assert ("the only candidate" in decision.reason) == (sites == 1)


def test_fewer_samples_than_rounds_end_the_search_early():
    correct, margins = task(np.random.default_rng(0), sites=32, samples=3, by=9)
    decision = HalvingRule()(Strict(correct, margins), np.random.default_rng(0))
    assert decision.rounds <= 3
    assert len(decision.columns) <= 3


def test_one_sample_never_suffices():
    decision = HalvingRule()(TableOracle([[0], [1]], [[-1], [1]]), np.random.default_rng(0))
    assert decision.site is None
    assert "one sample shows nothing" in decision.reason


def test_ties_are_drawn_and_prefer_no_site():
    scores = np.zeros((5, 40))
    scores[1:, :20] = 1  # all four sites are alike
    chosen = {HalvingRule()(TableOracle(scores), np.random.default_rng(seed)).site for seed in range(40)}
    assert chosen == {0, 1, 2, 3}


def test_fewer_labels_than_asked_for_are_what_there_is():
    correct, margins = task(np.random.default_rng(0), samples=20)
    rule, smaller = HalvingRule(labels=100, budget=200), HalvingRule(labels=20, budget=200)
    one, other = (rule(TableOracle(correct, margins), np.random.default_rng(0)) for rule in (rule, smaller))
    assert one == other


def test_no_more_labels_are_read_than_asked_for():
    correct, margins = task(np.random.default_rng(0))
    oracle = Strict(correct, margins)
    HalvingRule(labels=15, budget=10_000)(oracle, np.random.default_rng(0))
    assert oracle.cells == 15 * 17


class Totals:
    """One number for every set of samples, as some scorers give; `kind` is what is known before the first reading."""

    def __init__(self, scores, kind=None):
        self.scores, self.per_sample, self.cells, self.sets = np.asarray(scores), kind, 0, []
        self.n_sites, self.n_samples = len(self.scores) - 1, self.scores.shape[1]

    def read(self, rows, columns):
        self.per_sample = False
        self.sets.append(list(columns))
        means = self.scores[np.ix_(rows, columns)].mean(axis=1, keepdims=True)
        return SimpleNamespace(correct=np.repeat(means, len(columns), axis=1))


@pytest.mark.parametrize("kind", [None, False])
@pytest.mark.parametrize("sites", [1, 2, 8])
def test_one_number_in_all_is_judged_over_several_sets(kind, sites):
    rng = np.random.default_rng(0)
    scores = 7 + rng.normal(0, 0.1, (sites + 1, 80))
    scores[1] += 0.5
    oracle = Totals(scores, kind)
    decision = HalvingRule()(oracle, np.random.default_rng(0))
    assert decision.site == 0
    assert "one number for each set" in decision.reason
    read = list(chain(*oracle.sets))
    assert len(read) == len(set(read)) == len(decision.columns)
    mean = scores[:, read].mean(axis=1)
    assert decision.gains[0] == pytest.approx(mean[1] - mean[0])
    oracle.scores[1:] = oracle.scores[0] - 0.5
    assert HalvingRule()(oracle, np.random.default_rng(0)).site is None


def test_two_numbers_do_not_show_their_spread():
    decision = HalvingRule()(Totals([[0.0, 0, 0, 0], [1, 1, 1, 1]]), np.random.default_rng(0))
    assert decision.site is None
    assert "do not show how far they scatter" in decision.reason


def grouped(table, groups):
    return SimpleNamespace(n_sites=table.n_sites, n_samples=table.n_samples, read=table.read, groups=groups)


def test_other_groups_are_drawn_first():
    correct, margins = task(np.random.default_rng(0), sites=2, samples=40, helps=0)
    groups = [index // 4 for index in range(40)]
    oracle = grouped(TableOracle(correct, margins), groups)
    decision = HalvingRule(labels=10)(oracle, np.random.default_rng(0))
    assert len({groups[column] for column in decision.columns}) == len(decision.columns)
    decision = HalvingRule(labels=15, budget=45)(oracle, np.random.default_rng(0))
    assert sorted({groups[column] for column in decision.columns[:10]}) == list(range(10))


def test_copies_of_a_sample_count_once():
    """Ten pictures, of which each is asked about ten times in the same way, are ten samples and not a hundred."""
    base = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1.0])
    variant = np.array([1, 1, 1, 0, 0, 0, 1, 1, 1, 1.0])
    scores = np.repeat(np.vstack([base, variant]), 10, axis=1)
    rule = HalvingRule(budget=250, z=4)
    assert rule(TableOracle(scores), np.random.default_rng(0)).site == 0
    groups = np.repeat(np.arange(10), 10)
    decision = rule(grouped(TableOracle(scores), groups), np.random.default_rng(0))
    assert decision.site is None
    once = HalvingRule(budget=25, z=4)(TableOracle(scores[:, ::10]), np.random.default_rng(0))
    assert once.reason.split("gain is ")[1][:5] == decision.reason.split("gain is ")[1][:5]


def test_groups_must_be_one_name_per_sample():
    oracle = grouped(TableOracle(np.zeros((2, 5))), ["a", "b"])
    with pytest.raises(SearchError, match="names the groups of 2 samples, but there are 5"):
        HalvingRule()(oracle, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"labels": 0}, "labels must be a whole number, 1 or above, or None"),
        ({"labels": 2.5}, "labels must be"),
        ({"labels": True}, "labels must be"),
        ({"budget": 1}, "budget must be a whole number, 2 or above, or None"),
        ({"eta": 1}, "eta must be a whole number, 2 or above$"),
        ({"eta": None}, "eta must be"),
        ({"z": -1}, "z must be a number of standard errors, 0 or above"),
        ({"z": float("nan")}, "z must be"),
        ({"z": "1"}, "z must be"),
        ({"prior": [0.1, 0.2]}, "give a Prior"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(SearchError, match=said):
        HalvingRule(**settings)


def test_a_budget_below_one_sample_on_every_site_is_refused_before_anything_is_read():
    oracle = TableOracle(np.zeros((9, 20)))
    with pytest.raises(SearchError, match=r"budget=8 cells .* takes 9 cells"):
        HalvingRule(budget=8)(oracle, np.random.default_rng(0))
    assert oracle.cells == 0


def test_no_site_to_search_is_refused():
    with pytest.raises(SearchError, match="no site to search"):
        HalvingRule()(TableOracle(np.zeros((1, 5))), np.random.default_rng(0))


def test_what_is_asked_for_is_told_beforehand():
    assert HalvingRule(labels=35).labels_needed == 35
    assert HalvingRule().labels_needed == 1
    for labels, sites in ((10, 8), (100, 32), (200, 32), (17, 5), (35, 1)):
        oracle = TableOracle(np.zeros((sites + 1, 300)))
        rule = HalvingRule(labels=labels)
        rule(oracle, np.random.default_rng(0))
        fewest, most = rule.evaluations(sites)
        assert fewest == sum(each.cells for each in rule._rounds(sites, labels)) <= oracle.cells <= most
    fewest, most = HalvingRule().evaluations(8)
    for samples in (1, 7, 60, 1000):
        oracle = TableOracle(np.zeros((9, samples)))
        HalvingRule()(oracle, np.random.default_rng(0))
        assert fewest <= oracle.cells <= most


@pytest.mark.parametrize("shots", [10, 15, 20])
def test_by_default_it_costs_less_than_the_papers_rule(shots):
    """With ten labels a shot it reads fewer cells than that rule on average, and with its labels two thirds at most."""
    rng = np.random.default_rng(0)
    paper = PaperRule(shots)
    rules = [paper, HalvingRule(labels=10 * shots), HalvingRule(labels=paper.labels_needed)]
    spent = np.zeros((30, 3))
    for row in spent:
        tables = task(rng, sites=32, by=0.3)
        for column, rule in enumerate(rules):
            oracle = TableOracle(*tables)
            rule(oracle, rng)
            row[column] = oracle.cells
    theirs, many, same = spent.mean(axis=0)
    assert many <= theirs
    assert same <= 0.67 * theirs


@st.composite
def searches(draw):
    """A rule, a table with or without margins, and a seed."""
    sites, samples = draw(st.integers(1, 9)), draw(st.integers(1, 30))
    rule = HalvingRule(
        labels=draw(st.none() | st.integers(1, 40)),
        budget=draw(st.none() | st.integers(sites + 1, 400)),
        z=draw(st.sampled_from([0, 1.5, 3])),
        eta=draw(st.integers(2, 4)),
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    margins = rng.normal(size=(sites + 1, samples)).round(draw(st.integers(0, 3)))
    correct = (margins > 0).astype(float)
    kind = draw(st.sampled_from(["margins", "answers", "real"]))
    table = (margins, None) if kind == "real" else (correct, margins if kind == "margins" else None)
    return rule, table, draw(st.integers(0, 2**32))


@settings(max_examples=200, deadline=None)
@given(searches())
def test_what_always_holds(search):
    rule, (correct, margins), seed = search
    oracle = Strict(correct, margins)
    decision = rule(oracle, np.random.default_rng(seed))
    columns = list(decision.columns)
    assert len(columns) == len(set(columns)) <= (rule.labels or 30)
    assert rule.budget is None or oracle.cells <= rule.budget
    assert decision.candidates
    if decision.site is not None:
        assert decision.site in decision.candidates
        assert decision.gains[decision.site] > 0
        assert len(columns) > 1
    assert decision == rule(TableOracle(correct, margins), np.random.default_rng(seed))


@settings(max_examples=60, deadline=None)
@given(searches())
def test_a_higher_gate_never_lets_more_through(search):
    rule, (correct, margins), seed = search
    decisions = [
        HalvingRule(rule.labels, rule.budget, z, rule.eta)(TableOracle(correct, margins), np.random.default_rng(seed))
        for z in (0, 1, 2, 4)
    ]
    kept = [decision.site is None for decision in decisions]
    assert kept == sorted(kept)


@settings(max_examples=60, deadline=None)
@given(searches(), st.sampled_from([1e-3, 0.5, 1e3]))
def test_the_unit_of_real_scores_does_not_matter(search, factor):
    rule, (correct, margins), seed = search
    if margins is not None or np.isin(correct, (0, 1)).all() or np.isin(correct * factor, (0, 1)).all():
        return
    plain = rule(TableOracle(correct), np.random.default_rng(seed))
    other = rule(TableOracle(correct * factor), np.random.default_rng(seed))
    assert plain.columns == other.columns
    if plain.candidates == other.candidates:  # rounding may part a tie otherwise
        assert (plain.site is None) == (other.site is None) or abs(np.nanmax(plain.gains)) < 1e-9
