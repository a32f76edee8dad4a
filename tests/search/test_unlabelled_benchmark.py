"""What is said of choosing without labels rests on criteria that rank as they claim to, and on the scorer's numbers."""

import numpy as np
import pytest
from scipy.special import log_softmax

import layersurgery as ls
from layersurgery.embedded import load, make_samples
from tests.benchmarks import unlabelled
from tests.benchmarks._simulate import KINDS
from tests.benchmarks.unlabelled import CRITERIA, Answers, Choice, Entry, Summary, Trial, best_threshold, margins


def _answers(probs, turned=None):
    probs = np.log(np.array(probs, dtype=float))
    return Answers(probs, probs if turned is None else np.log(np.array(turned, dtype=float)))


SURE = [[0.98, 0.02], [0.02, 0.98]]  # of two samples, one letter each
UNSURE = [[0.6, 0.4], [0.4, 0.6]]
ONE_LETTER = [[0.98, 0.02], [0.98, 0.02]]
OTHER = [[0.02, 0.98], [0.98, 0.02]]  # sure of the opposite


@pytest.mark.parametrize("name", ["confidence", "gap of the first two", "minus entropy"])
def test_how_sure_a_variant_is_whatever_it_says(name):
    unsure, sure, one, other = CRITERIA[name](_answers([UNSURE, SURE, ONE_LETTER, OTHER]))
    assert sure == pytest.approx(one) == pytest.approx(other)
    assert sure > unsure


def test_information_asks_for_several_letters_too():
    unsure, sure, one = CRITERIA["information"](_answers([UNSURE, SURE, ONE_LETTER]))
    assert sure > unsure > one
    assert one == pytest.approx(0)
    assert sure < np.log(2)


def test_numbers_by_hand():
    of = _answers([[[0.5, 0.25, 0.25], [0.7, 0.2, 0.1]]])
    assert CRITERIA["confidence"](of) == pytest.approx([0.6])
    assert CRITERIA["gap of the first two"](of) == pytest.approx([(np.log(2) + np.log(3.5)) / 2])
    assert CRITERIA["letters equally often"](of) == pytest.approx([-2 / 3])
    assert CRITERIA["letters equally often"](_answers([SURE, ONE_LETTER])) == pytest.approx([0, -0.5])


def test_a_probability_of_zero_has_no_entropy():
    certain = Answers(np.array([[[0.0, -np.inf]]]), np.zeros((1, 1, 2)))
    assert CRITERIA["minus entropy"](certain) == pytest.approx([0])


def test_agreement_with_the_unmodified_model_with_the_others_and_in_the_opposite_order():
    of = _answers([UNSURE, SURE, OTHER, OTHER, OTHER], [UNSURE, OTHER, OTHER, SURE, [UNSURE[0], OTHER[1]]])
    assert of.voted.tolist() == [1, 0]
    assert CRITERIA["agrees with unmodified"](of).tolist() == [1, 1, 0, 0, 0]
    assert CRITERIA["majority"](of).tolist() == [0, 0, 1, 1, 1]
    assert CRITERIA["mean of all variants"](of).tolist() == [0, 0, 1, 1, 1]
    assert CRITERIA["turned"](of).tolist() == [1, 0, 1, 0, 0.5]


def test_margins_of_any_label():
    log_probs = np.array([[[0.0, -1.0, -3.0], [0.0, -1.0, -3.0]]])
    assert margins(log_probs, np.array([0, 2])).tolist() == [[1, -3]]


def test_the_scorer_tells_what_the_librarys_scorer_judges_by():
    model, processor = load("natural")
    samples = make_samples("digit_name", "test", 6)
    sites = ls.select(model)
    log_probs = unlabelled.option_table(model, processor, samples)
    assert log_probs.shape == (len(sites) + 1, 6, 4)
    answer = np.array([sample.answer for sample in samples])
    kept = ls.sweep(model, ls.ChoiceScorer(processor), samples)
    assert margins(log_probs, answer) == pytest.approx(kept.margin, abs=1e-4)
    again = unlabelled.turn(samples[0])
    assert again.options == samples[0].options[::-1]
    assert again.options[again.answer] == samples[0].options[samples[0].answer]


def _task(helps, name="model task", samples=400, seed=0):
    """Four options, four sites; one of the sites repairs or breaks nearly everything, or none does anything."""
    rng = np.random.default_rng(seed)
    answer = rng.integers(0, 4, size=samples)
    values = np.repeat(rng.normal(size=(1, samples, 4)), 5, axis=0) + rng.normal(0, 0.1, size=(5, samples, 4))
    if helps:
        values[3, np.arange(samples), answer] += 3 * helps
    values = log_softmax(values, axis=-1)
    return unlabelled.option_task(name, values, values, answer)


def test_what_a_few_labels_find_is_measured_on_other_samples():
    (task,) = unlabelled.with_elsewhere([_task(helps=1)])
    assert task.known.kind == "strong"
    parts = unlabelled.split(task.count, 20, np.random.default_rng(0))
    assert len(np.unique(np.concatenate([parts.unlabelled, parts.pool, parts.rest]))) == task.count
    sure = {"the best site, if one gains", "HalvingRule(labels=100)", "smoothed margins", "best by information, gate"}
    for entry in unlabelled.entries([20], [20]):
        summary = Summary(entry)
        summary.add(task, parts, np.random.default_rng(0))
        change = (task.known.correct[3] - task.known.correct[0])[parts.rest].mean()
        if entry.name in sure:
            assert (summary.gain("strong"), summary.best) == (pytest.approx(change), 1)
            assert summary.gain("null", "strong") == summary.gain("strong")
    assert np.isnan(summary.gain("null"))


def test_the_other_tasks_of_a_model_say_what_is_best_elsewhere():
    tasks = [_task(helps=0, name="one a"), _task(helps=1, name="one b"), _task(helps=1, name="two c")]
    found = unlabelled.with_elsewhere(tasks)
    assert int(found[0].elsewhere.argmax()) == 2
    assert np.ptp(found[1].elsewhere) < 0.1 * np.ptp(found[0].elsewhere)
    assert np.ptp(found[2].elsewhere) > 0  # the only task of its model


def test_letters_may_be_seen_unequally_often():
    right = np.tile([0, 1, 2, 3], 60)
    seen = unlabelled.skew(np.arange(100, 220), right)
    assert np.bincount(right[seen]).tolist() == [30, 5, 5, 5]
    assert len(set(seen.tolist())) == 45
    assert seen.min() >= 100
    assert unlabelled.skew(np.array([1, 2]), right).tolist() == [1, 2]


def _trial(task, gain, change):
    return Trial(task.known, gain, False, False, 0.0, change)


def test_a_threshold_is_the_one_that_gains_most_and_loses_little():
    good, bad = _task(helps=1), _task(helps=0)
    assert bad.known.kind == "null"
    won = [_trial(good, 0.2, 3.0), _trial(good, 0.1, 1.0)]
    assert best_threshold([*won, _trial(bad, -0.1, 2.0)]) == 3
    assert best_threshold([*won, _trial(bad, -0.1, 0.5), _trial(bad, 0.0, 4.0)]) == 1
    assert best_threshold([*won, _trial(bad, -0.1, 5.0)]) == np.inf
    assert best_threshold([_trial(good, 0.0, np.nan)]) == np.inf


def test_each_task_is_judged_by_the_threshold_that_the_others_set():
    good, better, bad = (_task(helps, name=f"m {helps}") for helps in (1, 2, 0))
    entry = Entry("", 0, 0, lambda task, parts, rng: Choice(None), tuned=True)
    summary = Summary(entry, [_trial(good, 0.2, 3.0), _trial(better, 0.4, 1.0), _trial(bad, -0.1, 2.0)])
    # The others say: of `good` keep all (the loss comes before the gain), of `better` 3, of `bad` 1.
    assert summary.tuned(null=False) == 0
    assert summary.tuned(null=True) == pytest.approx(-0.1)
    keep = Summary(entry, [_trial(task, 0.0, np.nan) for task in (good, better, bad)])
    more, error = summary.more(keep)
    assert more == pytest.approx(0.5 / 3)
    assert error == pytest.approx(np.std([0.2, 0.4, -0.1]) / np.sqrt(3))


def test_the_command_prints_every_entry(monkeypatch, capsys):
    monkeypatch.setattr(unlabelled, "option_tasks", lambda: iter([_task(helps=1, name="model a"), _task(helps=0)]))
    assert unlabelled.main(["--draws", "2", "--unlabelled", "10", "20", "--labels", "2"]) == 0
    printed = capsys.readouterr().out
    assert "2 tasks (1 null, 0 weak, 1 strong), 2 searches each" in printed
    assert all(kind in printed for kind in KINDS)
    for entry in unlabelled.entries([10, 20], [2]):
        assert f"{entry.name:31} {entry.seen or '':>4} {entry.labels or '':>6}" in printed


def test_tables_are_made_once(monkeypatch, tmp_path):
    monkeypatch.setattr(unlabelled, "FOLDER", tmp_path)
    monkeypatch.setattr(unlabelled, "CHECKPOINTS", {"planted": None})
    monkeypatch.setattr(unlabelled, "TASKS", {"digit_larger": None})
    (made,) = unlabelled.option_tasks(8)
    monkeypatch.setattr(unlabelled, "load", None)
    (kept,) = unlabelled.option_tasks(8)
    assert [path.name for path in tmp_path.iterdir()] == ["planted-digit_larger-8-options.npz"]
    assert (made.known.margin == kept.known.margin).all()
    assert made.answers.turned.shape == made.answers.log_probs.shape
    assert np.exp(kept.answers.log_probs).sum(axis=-1) == pytest.approx(1)
