"""`Reading`: a rectangle of scores, rows of model variants by columns of samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layersurgery.errors import ScoringError


@dataclass(frozen=True, eq=False)
class Reading:
    """What an oracle answers to `read(rows, columns)`: one score for every row and column asked for.

    Args:
        correct: [r, c] real numbers, higher is better; 0/1 correctness is the common case.
        margin: [r, c] log-probability of the right option minus that of the best other one, or None.
        best: the best value that a score can take, where the scorer declares one; None: not declared.

    Raises:
        ScoringError: if an array is not two-dimensional, the two shapes differ, or a number is not finite.

    Examples:
        >>> Reading([[1, 0, 1], [1, 1, 1]]).correct.mean(axis=1).round(2).tolist()
        [0.67, 1.0]
    """

    correct: np.ndarray
    margin: np.ndarray | None = None
    best: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "correct", _rectangle(self.correct, "correct", None))
        if self.margin is not None:
            object.__setattr__(self, "margin", _rectangle(self.margin, "margin", self.correct.shape))
        if self.best is not None:
            object.__setattr__(self, "best", float(self.best))


def _rectangle(values: object, name: str, shape: tuple[int, ...] | None) -> np.ndarray:
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ScoringError(f"Reading.{name} must be real numbers [rows, columns]; got {values!r}") from error
    if array.ndim != 2 or (shape is not None and array.shape != shape):
        expected = "two dimensions, [rows, columns]" if shape is None else f"the shape of correct, {shape}"
        raise ScoringError(f"Reading.{name} must have {expected}; got shape {array.shape}")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        row, column = bad[0].tolist()
        raise ScoringError(
            f"Reading.{name} is {array[row, column]} at row {row}, column {column} of what was read; scores "
            "must be finite: check the scorer on that sample"
        )
    array.flags.writeable = False
    return array
