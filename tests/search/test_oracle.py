"""What rules read: `Reading`, `TableOracle`, and the check on other people's oracles."""

from types import SimpleNamespace

import numpy as np
import pytest

from layersurgery.errors import ScoringError, SearchError
from layersurgery.scoring._reading import Reading
from layersurgery.search import Decision, TableOracle
from layersurgery.search._oracle import read

TABLE = np.arange(12.0).reshape(3, 4)


def test_rows_and_columns_come_in_the_order_asked_for():
    oracle = TableOracle(TABLE, margin=-TABLE, best=11)
    reading = oracle.read([2, 0], [3, 1])
    assert reading.correct.tolist() == [[11, 9], [3, 1]]
    assert reading.margin is not None
    assert reading.margin.tolist() == [[-11, -9], [-3, -1]]
    assert reading.best == 11
    assert (oracle.n_sites, oracle.n_samples) == (2, 4)


def test_a_cell_is_counted_once_however_often_it_is_read():
    oracle = TableOracle(TABLE)
    oracle.read([0], [0, 1])
    oracle.read([0, 1], [1, 2])
    assert oracle.cells == 5


def test_a_reading_cannot_be_changed_and_does_not_change_the_table():
    oracle = TableOracle(TABLE)
    reading = oracle.read([0, 1], [0])
    with pytest.raises(ValueError, match="read-only"):
        reading.correct[0, 0] = 5
    assert oracle.read([0], [0]).correct.item() == 0


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([3], [0], "row 3 does not exist: the table has rows 0 to 2"),
        ([0], [4], "column 4 does not exist: the table has columns 0 to 3"),
        ([0], [-1], "column -1 does not exist"),
        ([0.5], [0], "flat list of row numbers"),
        ([[0]], [0], "flat list of row numbers"),
    ],
)
def test_what_is_outside_the_table_is_refused(rows, columns, message):
    with pytest.raises(SearchError, match=message):
        TableOracle(TABLE).read(rows, columns)


@pytest.mark.parametrize("table", [[1, 2], np.zeros((0, 3)), np.zeros((3, 0))])
def test_a_table_needs_rows_and_columns(table):
    with pytest.raises(SearchError, match=r"\[sites \+ 1, samples\]"):
        TableOracle(table)


def test_margins_must_fit_the_scores():
    with pytest.raises(SearchError, match="one margin per score"):
        TableOracle(TABLE, margin=TABLE[:2])


def test_an_unknown_cell_is_an_error_only_when_it_is_read():
    oracle = TableOracle([[0, 1], [np.nan, 1]])
    assert oracle.read([0, 1], [1]).correct.tolist() == [[1], [1]]
    with pytest.raises(ScoringError, match="is nan at row 1, column 0"):
        oracle.read([0, 1], [0])


@pytest.mark.parametrize(
    ("correct", "margin", "message"),
    [
        ([1, 0], None, "two dimensions"),
        ([["a"]], None, "must be real numbers"),
        ([[1, 0]], [[1.0]], r"Reading.margin must have the shape of correct, \(1, 2\)"),
        ([[1, np.inf]], None, "Reading.correct is inf at row 0, column 1"),
    ],
)
def test_a_reading_is_two_dimensional_and_finite(correct, margin, message):
    with pytest.raises(ScoringError, match=message):
        Reading(correct, margin)


def foreign(answer):
    return SimpleNamespace(n_sites=1, n_samples=2, read=lambda rows, columns: answer)


def test_any_object_with_correct_is_an_answer():
    reading = read(foreign(SimpleNamespace(correct=[[1, 0]])), [0], [0, 1])
    assert reading.correct.tolist() == [[1, 0]]
    assert reading.margin is None
    assert reading.best is None


def test_an_answer_without_correct_is_named():
    with pytest.raises(SearchError, match=r"returned list, which has no \.correct"):
        read(foreign([[1, 0]]), [0], [0, 1])


def test_an_answer_of_the_wrong_shape_is_named():
    with pytest.raises(SearchError, match=r"asked for 1 rows on 2 columns .* shape \(2, 1\)"):
        read(foreign(SimpleNamespace(correct=[[1], [0]])), [0], [0, 1])


def test_a_decision_needs_nothing_but_a_site():
    assert Decision(np.int64(3)) == Decision(3)
    assert Decision(None).site is None
    assert hash(Decision(1, gains=[0.0, 0.5])) == hash(Decision(1, gains=[1.0, 0.5]))


@pytest.mark.parametrize("site", [-1, 1.5, "2", True])
def test_a_decision_for_no_site_is_refused(site):
    with pytest.raises(SearchError, match="give the index of a site"):
        Decision(site)
