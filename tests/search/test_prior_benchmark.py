"""The benchmark of the prior: its families are as alike as they say, and its command runs."""

from itertools import combinations

import numpy as np
import pytest

from layersurgery.search import Prior
from tests.benchmarks import _prior, search
from tests.benchmarks._simulate import WORLDS
from tests.benchmarks._tables import KnownTask
from tests.benchmarks._trials import Entry, Summary, Trial


def correlation(tasks, chosen=lambda truth: np.ones(len(truth), dtype=bool)):
    """Mean rank correlation of the tasks' gains, over pairs, on the sites that both tasks have chosen."""
    found = []
    for one, other in combinations([task.truth for task in tasks], 2):
        both = chosen(one) & chosen(other)
        ranks = [np.argsort(np.argsort(truth[both])) for truth in (one, other)]
        found.append(np.corrcoef(*ranks)[0, 1])
    return np.mean(found)


def test_families_are_as_alike_as_they_say():
    found = {name: list(_prior.families(name, 33, ["spread"], 0)) for name in ("unrelated", "alike 0.3", "alike 0.7")}
    means = [np.mean([correlation(family) for family in families]) for families in found.values()]
    assert means == pytest.approx([0, 0.3, 0.7], abs=0.12)


def test_where_losses_are_alike_gains_are_not():
    (family,) = _prior.families("losses alike", 11, ["plain"], 0)
    assert correlation(family) > 0.2
    assert abs(correlation(family, lambda truth: truth > -0.01)) < 0.15


def test_a_task_of_a_family_is_a_simulated_one_with_its_sites_moved():
    for task in _prior.family(WORLDS["few"], 0.5, np.random.default_rng(0)):
        assert (task.correct == (task.margin > 0)).all()
        assert task.truth == pytest.approx((task.correct[1:] - task.correct[0]).mean(axis=1))
        assert task.truth.max() < 0.21


def test_a_line_by_hand():
    null = KnownTask("", np.zeros((2, 2)), np.zeros((2, 2)), np.array([-0.1]), "null")
    strong = KnownTask("", np.zeros((3, 2)), np.zeros((3, 2)), np.array([0.2, 0]), "strong")
    without = [Trial(null, -0.1, -0.1, False, 100, 10), Trial(strong, 0.2, 0.2, True, 100, 10)]
    given = [Trial(null, 0.0, 0.0, False, 50, 10), Trial(strong, 0.0, 0.0, False, 60, 10)]
    entry = Entry("with", None, 10)
    compared = _prior.Compared(Summary(entry, given, without), [Prior([0.0], samples=4), Prior([0, 0], 2, [0])])
    assert compared.best_barred == 1
    line = compared.line("tasks", 3, "weight and bar")
    assert " ".join(line.split()[5:]) == "+0.00 -5.00 10.61 0.00 1.00 +0.00 -10.00 0.55 3.0 0.25 1.00"
    assert len(line) == len(_prior.HEADER)


def test_the_command_prints_every_kind_of_prior(capsys, monkeypatch):
    made = _prior.family(WORLDS["few"], 0.7, np.random.default_rng(0))[:5]
    tables = [KnownTask("tiny task", task.correct, task.margin, task.truth, task.kind) for task in made]
    monkeypatch.setattr(search, "embedded_tasks", lambda: iter(tables))
    assert search.main(["prior", "--tasks", "11", "--worlds", "few", "--draws", "1"]) == 0
    printed = capsys.readouterr().out
    for setting in _prior.SETTINGS:
        for others in _prior.OTHERS:
            assert all(f"{name:14} {others:6d} {setting}" in printed for name in _prior.FAMILIES)
        assert f"{'tiny':14} {4:6d} {setting}" in printed
    without = [line for line in printed.splitlines() if line.startswith("unrelated") and " 1 weight" in line]
    assert all(" +0.00  0.00 " in line for line in without)
