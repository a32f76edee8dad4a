"""What stands beside an accuracy: how often no answer could be read, and what one letter for all would score."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import layersurgery as ls
from layersurgery.sweeps import Answers
from layersurgery.sweeps._answers import constant_answer
from layersurgery.tasks import Sample
from tests import models


def question(name, right, options=4, variants=()):
    return Sample(name, "?", tuple("wxyz"[:options]), right, variants=tuple(variants))


def turned(name, *rights):
    """One question, asked with its options in several orders."""
    first, *others = (question(f"{name}.{number}", right) for number, right in enumerate(rights))
    return question(name, first.answer, variants=others)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([question("a", 1), question("b", 1), question("c", 0)], ("B", 2 / 3)),
        ([question("a", 2), question("b", 0)], ("A", 0.5)),  # of equals the first
        ([question("a", 1), Sample("b", "?", answer="8")], ("B", 0.5)),  # a letter is no answer to an open question
        ([Sample("b", "?", answer="8")], None),
        ([turned("a", 0, 1, 2, 3), turned("b", 1, 2, 3, 0)], ("A", 0.0)),  # no letter is right in all orders
        ([turned("a", 1, 1), turned("b", 0, 1), turned("c", 0, 0), turned("d", 0, 0)], ("A", 0.5)),
        ([question("a", 1), turned("b", 0, 1)], ("B", 0.5)),
        ([{"options": ["x", "y"], "answer": 1}, {"options": ["x", "y"], "answer": " b "}], ("B", 1.0)),
        ([{"options": ["x", "y"], "answer": np.int64(1)}], ("B", 1.0)),
        ([SimpleNamespace(options=("x", "y"), answer="A")], ("A", 1.0)),
        ([{"options": ["x", "y"], "answer": "y"}], None),  # a text: which letter is not known
        ([{"options": ["x", "y"], "answer": 2}], None),
        ([{"options": ["x", "y"], "answer": True}], None),
        ([{"options": {"A": "x"}, "answer": "A"}], None),
        ([question("a", 1), "something else"], None),
        ([question("a", 1), Sample("b", "?", ("x", "y"), 1), {"options": ["x"]}], None),
        ([1, 2, 3], None),
        ([(torch.ones(3), 1)], None),
        ([], None),
    ],
)
def test_the_letter_that_is_right_most_often(samples, expected):
    assert constant_answer(samples) == expected


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), min_size=1, max_size=12))
def test_no_letter_scores_more_than_the_baseline(rights):
    """Against a count over all letters by hand."""
    samples = [turned(str(number), *answers) for number, answers in enumerate(rights)]
    shares = {"ABCD"[one]: np.mean([set(answers) == {one} for answers in rights]) for one in range(4)}
    found = constant_answer(samples)
    assert found.score == max(shares.values()) == shares[found.letter]


def test_words():
    assert str(Answers()) == ""
    assert str(Answers((0.033,))) == "no answer could be read in 3.3 %"
    assert str(Answers((0.0, 0.0))) == "no answer could be read in 0.0 % before and after"
    assert str(Answers((0.0, 0.25))) == "no answer could be read in 0.0 % before and 25.0 % after"
    assert str(Answers(None, 0.298, "B")) == "always answering B would score 29.8 %"
    assert [Answers(shares).fewer_answers for shares in (None, (0.5,), (0.5, 0.5), (0.5, 0.4), (0.4, 0.5))] == [
        *[False] * 4,
        True,
    ]
    empty = {"unanswered": None, "unanswered_changed": None, "constant": None, "constant_letter": None, "chance": None}
    assert Answers().to_dict() == empty
    assert Answers((0.1, 0.2), 0.3, "C", 0.25).to_dict() == dict(zip(empty, (0.1, 0.2, 0.3, "C", 0.25), strict=True))
    assert Answers().floor is None
    assert Answers(None, 0.2, "C", 0.25).floor == ("chance", 0.25)
    assert Answers(None, 0.3, "C", 0.25).floor == ("always answering C", 0.3)


# --- of real sweeps ----------------------------------------------------------------------------------------------


SAMPLES = [question("a", 1), question("b", 1), question("c", 0), question("d", 3)]


def answering(model, samples):
    """The unmodified model gets all right; without layer 1 it answers B, or nothing that can be read."""
    model(models.tokens(batch=1))
    status = ls.status(model)
    if not status or status[0].site.layer != 1:
        return ls.Scores([1] * len(samples), answered=[True] * len(samples))
    letters = ["B" if sample.id in "abc" else None for sample in samples]
    correct = [letter == sample.letter for letter, sample in zip(letters, samples, strict=True)]
    return ls.Scores(correct, answered=[letter is not None for letter in letters])


def test_a_table_knows_both():
    table = ls.sweep(models.built("llama"), answering, SAMPLES, batch_size=3)
    assert table.unanswered.tolist() == [0, 0, 0.25, 0]
    assert (table.constant, table.constant_letter) == (0.5, "B")
    assert table.answers() == Answers((0.0,), 0.5, "B")
    assert table.answers(1) == Answers((0.0, 0.25), 0.5, "B")
    assert "base 1.000 on 4 samples (no answer could be read in 0.0 %; always answering B would score 50.0 %)" in str(
        table
    )


def test_a_table_of_some_columns_is_of_these_alone():
    oracle = ls.ModelOracle(
        models.built("llama"), answering, SAMPLES, at=ls.select(models.built("llama")), do=ls.Zero()
    )
    oracle.read([0, 2], [3, 0, 2])
    table = oracle.table([3, 2])
    assert table.samples == oracle.names([3, 2]) == ("d", "c")
    assert table.constant == 0.5
    assert table.constant_letter == "A"
    np.testing.assert_array_equal(table.unanswered, [0, np.nan, 0.5, np.nan])
    assert table.answers(0) == Answers(None, 0.5, "A")  # site 0 was not evaluated
    assert table.answers(1) == Answers((0.0, 0.5), 0.5, "A")
    assert oracle.names() == oracle.table().samples == ("a", "c", "d")
    with pytest.raises(ls.errors.SampleError, match="column 4 is out of range"):
        oracle.table([4])


def plain(model, samples):
    return [float(model(models.tokens(batch=1)).logits.sum() > -1e9)] * len(samples)


@pytest.mark.parametrize(
    ("score", "samples"),
    [
        (plain, [1, 2]),
        (lambda model, samples: [0.5 * value for value in plain(model, samples)], SAMPLES),  # not 0/1: not comparable
        (lambda model, samples: plain(model, samples)[0], SAMPLES),  # one number in all
    ],
)
def test_what_is_not_known_is_not_made_up(score, samples):
    table = ls.sweep(models.built("llama"), score, samples)
    assert (table.constant, table.constant_letter, table.unanswered) == (None, None, None)
    assert "(" not in str(table).splitlines()[0]
