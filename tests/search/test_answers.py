"""What a finding says beside its accuracies, which samples it rests on, and what it does where memory runs out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import layersurgery as ls
from layersurgery.errors import LayerSurgeryWarning, SearchError
from layersurgery.search import Decision, PaperRule
from layersurgery.sweeps import Answers
from layersurgery.tasks import Sample
from layersurgery.testing import restored
from tests.search.test_talo import Stack

LETTERS = "ABCD"


class Letters:
    """Answers a letter, or None, by what the model's forward shows to be knocked out: `says(row, sample)`."""

    def __init__(self, says, most=None, margin=False):
        self.says, self.most = says, most
        self.asked = []

    def __call__(self, model, samples):
        lit = model(torch.ones(1)).tolist()
        row = lit.index(0) + 1 if 0 in lit else 0
        self.asked.append((row, len(samples)))
        if self.most is not None and len(samples) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        said = [self.says(row, sample) for sample in samples]
        correct = [letter == sample.letter for letter, sample in zip(said, samples, strict=True)]
        return ls.Scores(correct, answered=[letter is not None for letter in said])


def questions(n, right=lambda number: (0, 1, 1, 2, 3)[number % 5]):
    return [Sample(f"q{number}", "?", tuple("wxyz"), right(number)) for number in range(n)]


def run(says, pool=None, confirm=20, rule=None, **settings):
    model, score = Stack(3).eval(), Letters(says, settings.pop("most", None))
    with restored(model):
        found = ls.talo(
            model,
            score,
            questions(60) if pool is None else pool,
            at=ls.select(model, pattern="layers.*"),
            rule=rule or PaperRule(10),
            confirm=confirm,
            **settings,
        )
    return found, score


def wrong(sample):
    return LETTERS[(sample.answer + 1) % 4]


def better(row, sample):
    """Site 1 makes it answer right, all others wrong."""
    return sample.letter if row == 2 else wrong(sample)


def collapsed(row, sample):
    """Without site 1 it answers B to everything; the model as it is answers wrong."""
    return "B" if row == 2 else wrong(sample)


def half_right(row, sample):
    """It knows two in five, and without site 1 all; guessing would give a quarter, and B two in five."""
    return sample.letter if row == 2 or sample.letter in "AD" else wrong(sample)


def test_a_base_that_guessing_beats_is_called_out():
    below, _ = run(better)
    assert below.confirm_answers.chance == 0.25
    assert below.to_dict()["confirm"]["chance"] == 0.25
    floor = max(0.25, below.confirm_answers.constant)
    assert f"is below that of always answering B, {100 * floor:.1f} %: many disturbances are gains" in str(below)
    level, _ = run(half_right, questions(60, lambda number: number % 4))
    assert "many disturbances" not in str(level)


def silent(row, sample):
    """Without site 1 it is right or says nothing; the model as it is answers wrong."""
    return (sample.letter if sample.answer else None) if row == 2 else wrong(sample)


def share(found, ids, letter):
    pool = {sample.id: sample for sample in questions(60)}
    return np.mean([pool[name].letter == letter for name in ids])


def test_a_real_gain_stands_beside_the_baseline_without_a_warning():
    found, _ = run(better)
    assert found.site.path == "layers.1"
    assert found.confirm_answers.unanswered == found.probe_answers.unanswered == (0, 0)
    assert found.confirm_answers.letter == "B"
    assert found.confirm_answers.constant == share(found, found.confirm_ids, "B")
    probe, check = found.probe_answers, found.confirm_answers
    assert f"points ({probe})." in str(found)
    assert f"100.0 % ({check}): a held-out gain" in str(found)
    baseline = f"{100 * check.constant:.1f} %"
    assert str(check) == f"no answer could be read in 0.0 % before and after; always answering B would score {baseline}"
    assert "more often than without" not in str(found)
    assert "shows no skill" not in str(found)


def test_a_collapse_to_one_letter_is_called_by_its_name():
    found, _ = run(collapsed)
    assert found.gain == found.confirm_score == found.confirm_answers.constant > 0
    assert (
        f"the score of {100 * found.confirm_score:.1f} % is no higher than that of always answering B, "
        f"{100 * found.confirm_answers.constant:.1f} %"
    ) in str(found)
    assert "shows no skill" in str(found)


def test_answers_that_get_lost_are_told_of():
    found, _ = run(silent)
    before, after = found.confirm_answers.unanswered
    assert before == 0
    assert after == share(found, found.confirm_ids, "A") > 0
    assert f"more often than without, in {100 * after:.1f} % against 0.0 %" in str(found)


def test_without_a_check_the_probe_is_what_counts():
    assert "shows no skill" in str(run(collapsed, confirm=None)[0])
    assert "more often than without" in str(run(silent, confirm=None)[0])


def test_a_model_that_is_kept_has_a_base_only():
    found, _ = run(lambda row, sample: "B" if sample.id in ("q0", "q1") else None)
    assert found.verdict == "keep"
    assert len(found.probe_answers.unanswered) == 1
    assert found.confirm_answers is None
    assert f"it scores {100 * found.probe_base:.1f} % ({found.probe_answers})." in str(found)
    assert "shows no skill" not in str(found)
    assert "more often than without" not in str(found)


def test_questions_asked_in_turn_have_no_constant_baseline():
    pool = [
        Sample(f"q{i}", "?", tuple("wxyz"), i % 4, variants=(Sample(f"q{i}t", "?", tuple("wxyz"), (i + 1) % 4),))
        for i in range(60)
    ]
    found, _ = run(better, pool)
    assert found.confirm_answers.constant == 0
    assert "always answering A would score 0.0 %" in str(found)


def test_samples_that_are_not_questions_leave_the_text_as_it_was():
    model = Stack(2).eval()

    def score(model, samples):
        return [float(0 in model(torch.ones(1)).tolist())] * len(samples)

    found = ls.talo(model, score, range(40), at=ls.select(model, pattern="layers.0"), rule=PaperRule(10), confirm=10)
    assert found.probe_answers == found.confirm_answers == Answers()
    assert "always answering" not in str(found)
    assert "could be read" not in str(found)


def test_which_samples_a_finding_rests_on():
    found, _ = run(better, seed=3)
    again, _ = run(better, seed=3)
    other, _ = run(better, seed=4)
    assert (found.probe_ids, found.confirm_ids) == (again.probe_ids, again.confirm_ids)
    assert found.probe_ids != other.probe_ids
    assert len(found.probe_ids) == found.n_probe == 10
    assert len(found.confirm_ids) == found.n_confirm == 20
    names = [sample.id for sample in questions(60)]
    assert set(found.probe_ids) | set(found.confirm_ids) <= set(names)
    assert not set(found.probe_ids) & set(found.confirm_ids)
    pool = [name for name in names if name not in found.confirm_ids]
    assert found.probe_ids == tuple(pool[column] for column in found.decision.columns)  # in the order of the draw


def test_a_finding_can_be_run_again_from_its_names():
    found, _ = run(better, seed=3)
    by_name = {sample.id: sample for sample in questions(60)}

    def all_of_it(oracle, rng):
        gains = oracle.read(range(oracle.n_sites + 1), range(oracle.n_samples)).correct.mean(axis=1)
        return Decision(int((gains[1:] - gains[0]).argmax()), columns=range(oracle.n_samples))

    again, _ = run(
        better,
        [by_name[name] for name in found.probe_ids],
        [by_name[name] for name in found.confirm_ids],
        rule=all_of_it,
    )
    assert (again.probe_gain, again.gain, again.interval) == (found.probe_gain, found.gain, found.interval)
    assert (again.probe_ids, again.confirm_ids) == (found.probe_ids, found.confirm_ids)


@pytest.mark.parametrize("says", [better, collapsed, silent, lambda row, sample: "A"])
def test_the_record_says_all_of_it(says):
    found, _ = run(says)
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    for part, ids, answers in [
        (record["probe"], found.probe_ids, found.probe_answers),
        (record["confirm"], found.confirm_ids, found.confirm_answers),
    ]:
        if answers is None:
            assert part is None
            continue
        assert part["ids"] == list(ids)
        assert {name: part[name] for name in answers.to_dict()} == answers.to_dict()


def test_a_scorer_of_one_number_names_its_samples_too():
    model = Stack(2).eval()

    def score(model, samples):
        return float(model(torch.ones(1))[0] == 0)

    found = ls.talo(
        model, score, questions(40), at=ls.select(model, pattern="layers.*"), rule=PaperRule(10), confirm=10
    )
    assert len(found.probe_ids) == 10
    assert len(found.confirm_ids) == 10
    assert found.confirm_answers == Answers()


@pytest.mark.parametrize("columns", [(999,), (-1,)])
def test_a_rule_that_names_samples_that_are_not_there_is_refused(columns):
    def rule(oracle, rng):
        oracle.read([0, 1], [0])
        return Decision(0, columns=columns)

    with pytest.raises(SearchError, match=f"names column {columns[0]} as one that it rests on, but there are 40"):
        run(better, rule=rule)


def test_the_check_starts_with_the_batch_that_the_search_was_left_with():
    with pytest.warns(LayerSurgeryWarning) as caught:
        found, score = run(better, most=4, batch_size=16)
    assert [str(entry.message).split(". ")[0] for entry in caught] == [
        "out of memory with 10 samples at once; going on with 5",
        "out of memory with 5 samples at once; going on with 2",
    ]
    assert max(count for _, count in score.asked[3:]) == 2
    plain, _ = run(better, batch_size=16)
    assert (found.gain, found.interval, found.decision, found.probe_ids) == (
        plain.gain,
        plain.interval,
        plain.decision,
        plain.probe_ids,
    )


@pytest.mark.parametrize(("shots", "sites"), [(1, 1), (3, 2), (10, 8), (15, 32)])
def test_the_fewest_and_the_most_evaluations_of_the_papers_rule(shots, sites):
    from layersurgery.search import TableOracle

    rule = PaperRule(shots)
    fewest, most = rule.evaluations(sites)
    for scores, expected in [(np.eye(sites + 1)[1], fewest), (np.zeros(sites + 1), most)]:
        oracle = TableOracle(np.repeat(scores[:, None], rule.labels_needed, axis=1))
        rule(oracle, np.random.default_rng(0))
        assert oracle.cells == expected
