"""What a decision rule may ask: the `Oracle` protocol, and `TableOracle`, which answers from known scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from layersurgery.errors import SearchError
from layersurgery.scoring._reading import Reading


class Oracle(Protocol):
    """Answers a rule's questions; an oracle of one's own needs nothing but these three.

    Row 0 is the unmodified model and row i + 1 the model with site i intervened; a column is one labelled
    sample. The answer of `read` may be any object with `correct` [r, c] and `margin` ([r, c] or None);
    `best`, the best value that a score can take, is optional.
    """

    @property
    def n_sites(self) -> int:
        """Number of candidate sites; there is one row more."""
        ...

    @property
    def n_samples(self) -> int:
        """Number of labelled samples that may be read."""
        ...

    def read(self, rows: Sequence[int], columns: Sequence[int]) -> Any:
        """Score these rows on these columns."""
        ...


class TableOracle:
    """An oracle over known scores: for tests, replays and simulations of decision rules.

    Args:
        correct: [sites + 1, samples] scores, row 0 of the unmodified model. Cells may be nan as long as no
            rule reads them.
        margin: [sites + 1, samples] margins, or None.
        best: the best value that a score can take; None: not declared.

    Raises:
        SearchError: if an array is not two-dimensional, has no row or no column, or the two shapes differ.

    Examples:
        >>> oracle = TableOracle([[0, 1, 0], [1, 1, 0]])
        >>> oracle.read([0, 1], [0, 2]).correct.tolist()
        [[0.0, 0.0], [1.0, 0.0]]
        >>> oracle.cells
        4
    """

    def __init__(self, correct: Any, margin: Any = None, *, best: float | None = None) -> None:
        self._correct = np.array(correct, dtype=np.float64)
        if self._correct.ndim != 2 or 0 in self._correct.shape:
            raise SearchError(
                f"TableOracle needs correct as [sites + 1, samples], row 0 the unmodified model; got shape "
                f"{self._correct.shape}"
            )
        self._margin = None if margin is None else np.array(margin, dtype=np.float64)
        if self._margin is not None and self._margin.shape != self._correct.shape:
            raise SearchError(
                f"TableOracle: margin has shape {self._margin.shape}, correct {self._correct.shape}; give "
                "one margin per score"
            )
        self._best = best
        self._seen = np.zeros(self._correct.shape, dtype=bool)

    @property
    def n_sites(self) -> int:
        """Number of candidate sites; there is one row more."""
        return len(self._correct) - 1

    @property
    def n_samples(self) -> int:
        """Number of samples."""
        return self._correct.shape[1]

    @property
    def cells(self) -> int:
        """Number of distinct cells read so far: what the search would have cost on a model."""
        return int(self._seen.sum())

    def read(self, rows: Sequence[int], columns: Sequence[int]) -> Reading:
        """Scores of `rows` on `columns`, in the order asked for.

        Raises:
            SearchError: if a row or column is outside the table.
            ScoringError: if a cell asked for is nan.
        """
        cells = np.ix_(
            _positions(rows, len(self._correct), "row"),
            _positions(columns, self.n_samples, "column"),
        )
        self._seen[cells] = True
        margin = None if self._margin is None else self._margin[cells]
        return Reading(self._correct[cells], margin, self._best)


def read(oracle: Oracle, rows: Sequence[int], columns: Sequence[int]) -> Reading:
    """Ask any oracle, and make a checked `Reading` of whatever it answers.

    Raises:
        SearchError: if the answer has no `correct`, or its shape is not [rows, columns].
        ScoringError: if a number in it is not finite.
    """
    answer = oracle.read(rows, columns)
    if not hasattr(answer, "correct"):
        raise SearchError(
            f"{type(oracle).__name__}.read returned {type(answer).__name__}, which has no .correct; return "
            "layersurgery.scoring.Reading(correct=[rows, columns])"
        )
    reading = Reading(answer.correct, getattr(answer, "margin", None), getattr(answer, "best", None))
    expected = (len(rows), len(columns))
    if reading.correct.shape != expected:
        raise SearchError(
            f"{type(oracle).__name__}.read was asked for {expected[0]} rows on {expected[1]} columns and "
            f"returned scores of shape {reading.correct.shape}; return one score per row and column"
        )
    return reading


def _positions(values: Sequence[int], size: int, what: str) -> np.ndarray:
    positions = np.asarray(values)
    if positions.ndim != 1 or (positions.size and not np.issubdtype(positions.dtype, np.integer)):
        raise SearchError(f"read needs a flat list of {what} numbers; got {values!r}")
    for position in positions.tolist():
        if not 0 <= position < size:
            raise SearchError(f"{what} {position} does not exist: the table has {what}s 0 to {size - 1}")
    return positions.astype(np.intp)
