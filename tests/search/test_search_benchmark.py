"""The benchmark of the rules: its simulated tasks are what they claim to be, and its command runs."""

import numpy as np
import pytest

from layersurgery.search import TableOracle
from tests.benchmarks import search
from tests.benchmarks._simulate import WORLDS, simulate
from tests.benchmarks._tables import KnownTask
from tests.benchmarks._trials import Summary, Trial, entries, trial


@pytest.mark.parametrize("world", WORLDS)
def test_margins_and_answers_agree_and_the_truth_is_that_of_the_kind(world):
    rng = np.random.default_rng(0)
    for kind, low, high in (("null", -1, 0.002), ("weak", 0.015, 0.075), ("strong", 0.03, 0.205)):
        task = simulate(WORLDS[world], kind, rng)
        assert (task.correct == (task.margin > 0)).all()
        assert task.truth == pytest.approx((task.correct[1:] - task.correct[0]).mean(axis=1))
        assert low < task.truth.max() < high
        flips = (task.correct[1:] != task.correct[0]).mean(axis=1)
        assert (flips >= np.abs(task.truth) - 1e-9).all()
        assert 0.01 < np.median(flips) < 0.5


def test_units_and_noise_in_common_are_as_the_world_says():
    rng = np.random.default_rng(0)
    spread = {name: [] for name in ("plain", "units")}
    shared = {name: [] for name in ("plain", "common")}
    for name in ("plain", "units", "common"):
        for _ in range(3):
            margins = simulate(WORLDS[name], "null", rng).margin
            if name in spread:
                spread[name].append(np.log(np.abs(margins[1:]).mean(axis=1)).std())
            if name in shared:
                change = margins[1:] / margins[1:].std(axis=1, keepdims=True) - margins[0] / margins[0].std()
                shared[name].append(np.corrcoef(change).mean())
    assert np.mean(spread["units"]) > 2 * np.mean(spread["plain"])
    assert np.mean(shared["common"]) > np.mean(shared["plain"]) + 0.1


def test_a_trial_measures_on_samples_that_were_not_read():
    rng = np.random.default_rng(0)
    margin = np.vstack([rng.normal(size=120), rng.normal(1, 1, size=120)])
    correct = (margin > 0).astype(float)
    task = KnownTask("", correct, margin, (correct[1:] - correct[0]).mean(axis=1), "strong")
    entry = entries([10])[1]
    found = trial(task, entry, [0], adjust=True)
    decision = entry.rule(TableOracle(correct, margin), np.random.default_rng([0]))
    unread = np.setdiff1d(np.arange(120), decision.columns)
    assert found.gain == pytest.approx((correct[1] - correct[0])[unread].mean())
    assert found.apparent == pytest.approx(decision.gains[0] - found.gain)
    assert found.corrected is not None
    assert (found.truth, found.best) == (task.truth[0], True)
    assert (found.labels, found.evaluations) == (len(decision.columns), 2 * len(decision.columns))


def test_where_the_papers_rule_lacks_samples_the_model_is_kept_and_that_is_told():
    correct = np.ones((2, 20))
    correct[:, 0] = 0
    task = KnownTask("", correct, 2 * correct - 1, np.array([0.0]), "null")
    paper, halving = entries([10])[:2]
    found = [trial(task, paper, [seed], adjust=False) for seed in range(20)]
    assert {each.lacking for each in found} == {True, False}
    assert all(each.gain == 0 for each in found)
    assert not trial(task, halving, [0], adjust=False).lacking


def test_a_summary_by_hand():
    null = KnownTask("", np.zeros((2, 2)), np.zeros((2, 2)), np.array([-0.1]), "null")
    strong = KnownTask("", np.zeros((2, 2)), np.zeros((2, 2)), np.array([0.2]), "strong")
    entry = entries([10])[0]
    ours = [Trial(null, -0.1, -0.1, True, 50, 10, fresh=True), Trial(strong, 0.2, 0.2, True, 70, 20, fresh=False)]
    paper = [Trial(null, 0, 0, False, 100, 10), Trial(strong, 0.1, 0.1, False, 140, 10)]
    summary = Summary(entry, ours, paper)
    assert (summary.gain, summary.more) == (pytest.approx(0.05), pytest.approx(0.0))
    assert (summary.harm, summary.null_gain, summary.best) == (1, -0.1, 1)
    assert (summary.evaluations, summary.cost, summary.labels) == (60, 0.5, 15)
    assert (summary.coverage("fresh", null=False), summary.coverage("fresh", null=True)) == (0.5, 1)
    assert np.isnan(summary.bias("corrected"))


def test_the_command_prints_every_rule_at_every_number_of_shots(capsys):
    assert search.main(["--tasks", "4", "--worlds", "few", "plain", "--shots", "5", "10"]) == 0
    printed = capsys.readouterr().out
    assert "8 tasks, 1 search each" in printed
    for entry in entries([5, 10]):
        assert f"{entry.name:24} {entry.shots:5d}" in printed
