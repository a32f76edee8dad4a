"""`Scores`: what a scorer says of a batch of samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from layersurgery.errors import ScoringError

BatchSize = int | Literal["auto"]  # samples in one call; "auto": as many as there is memory for, at most `MOST`
MOST = 64


@dataclass(frozen=True, eq=False)
class Scores:
    """One score per sample, and what else the scorer knows.

    A scorer may return a plain array in place of this; it is then read as `Scores(correct=array)`.

    Args:
        correct: [n] real numbers, higher is better; 0/1 correctness is the common case.
        margin: [n] log-probability of the right option minus that of the best other one, or None.
        text: n generated answers, or None.
        answered: [n] booleans, whether an answer could be read out of the output; None: not known.
        best: the best value that `correct` can take, for scores that are not 0/1 but have one.

    Raises:
        ScoringError: if lengths differ or a number is not finite.

    Examples:
        >>> Scores([1, 0, 1]).correct.mean().round(3)
        np.float64(0.667)
    """

    correct: np.ndarray
    margin: np.ndarray | None = None
    text: Sequence[str] | None = None
    answered: np.ndarray | None = None
    best: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "correct", _vector(self.correct, "correct", None))
        n = len(self.correct)
        if self.margin is not None:
            object.__setattr__(self, "margin", _vector(self.margin, "margin", n))
        if self.answered is not None:
            object.__setattr__(self, "answered", _vector(self.answered, "answered", n).astype(bool))
        if self.text is not None:
            object.__setattr__(self, "text", tuple(self.text))
            if len(self.text or ()) != n:
                raise ScoringError(
                    f"Scores.text has {len(self.text or ())} entries for {n} scores; give one per sample"
                )

    def __len__(self) -> int:
        return len(self.correct)


def _vector(values: object, name: str, length: int | None) -> np.ndarray:
    try:
        array = as_floats(values)
    except (TypeError, ValueError) as error:
        raise ScoringError(f"Scores.{name} must be real numbers, one per sample; got {values!r}") from error
    if array.ndim != 1 or (length is not None and len(array) != length):
        expected = "a flat array" if length is None else f"{length} numbers"
        raise ScoringError(f"Scores.{name} must be {expected}, one per sample; got shape {array.shape}")
    finite = np.isfinite(array)
    if not finite.all():
        bad = int(finite.argmin())
        raise ScoringError(f"Scores.{name} is {array[bad]} for sample {bad} of the batch; scores must be finite")
    return array


def as_floats(values: object) -> np.ndarray:
    """Numbers, a numpy array or a torch tensor of any kind and device as float64.

    Raises:
        TypeError, ValueError: if they are no numbers.

    Examples:
        >>> as_floats([True, 2])
        array([1., 2.])
    """
    if hasattr(values, "detach"):  # numpy knows neither other devices nor bfloat16
        values = values.detach().cpu().float().numpy()  # pyright: ignore[reportAttributeAccessIssue]
    return np.asarray(values, dtype=np.float64)
