"""One call of a scorer: what goes in, what must come out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from layersurgery.errors import LayerSurgeryError, SampleError, ScoringError
from layersurgery.scoring import Scores
from layersurgery.scoring._scores import as_floats

Scorer = Callable[[Any, Sequence[Any]], Any]


def sample_name(sample: Any, index: int) -> str:
    """What a sample is called in messages and tables: its `id` if it has one, else its position.

    Examples:
        >>> sample_name("no id", 3)
        '3'
    """
    name = getattr(sample, "id", None)
    if name is None and isinstance(sample, dict):
        name = sample.get("id")
    return str(index if name is None else name)


def check_samples(samples: Sequence[Any]) -> tuple[Any, ...]:
    """The samples as a tuple.

    Raises:
        SampleError: if there are none, or they are no sequence.
    """
    if isinstance(samples, str) or not hasattr(samples, "__len__") or not hasattr(samples, "__getitem__"):
        raise SampleError(f"samples must be a list of samples, got {type(samples).__name__}")
    taken = tuple(samples[index] for index in range(len(samples)))
    if not taken:
        raise SampleError("samples is empty; give at least one labelled sample")
    return taken


def call(
    score: Scorer, model: Any, samples: Sequence[Any], names: Sequence[str], variant: Callable[[], str]
) -> Scores | float:
    """Call the scorer and read its answer: one score per sample, or one number for all of them.

    Raises:
        ScoringError: if it raised or returned anything else; the message names the variant and the samples.
    """

    def where() -> str:
        return f"at {variant()}, samples {_span(names)}"

    try:
        answer = score(model, list(samples))
    except LayerSurgeryError as error:
        raise type(error)(f"{error} ({where()})") from error
    except Exception as error:
        raise ScoringError(f"the scorer failed {where()}: {type(error).__name__}: {error}") from error
    return _read(answer, names, where)


def _read(answer: Any, names: Sequence[str], where: Callable[[], str]) -> Scores | float:
    if isinstance(answer, Scores):
        if len(answer) != len(names):
            raise ScoringError(_wrong_length((len(answer),), names, where()))
        return answer
    try:
        values = as_floats(answer)
    except (TypeError, ValueError):
        raise ScoringError(
            f"the scorer returned {type(answer).__name__} {where()}; expected one real number per sample, or one in all"
        ) from None
    if values.ndim and values.shape != (len(names),):
        raise ScoringError(_wrong_length(values.shape, names, where()))
    try:
        scores = Scores(np.atleast_1d(values))
    except ScoringError:  # of the right shape, so that a number is not finite
        bad = int(np.isfinite(values).argmin())
        culprit = f" for sample {names[bad]!r}" if values.ndim else ""
        raise ScoringError(
            f"the scorer returned {values.flat[bad]}{culprit} {where()}; scores must be finite"
        ) from None
    return scores if values.ndim else float(values)


def _wrong_length(shape: tuple[int, ...], names: Sequence[str], where: str) -> str:
    return (
        f"the scorer gave scores of shape {shape} {where}; expected {len(names)} numbers, one per sample, or one in all"
    )


def _span(names: Sequence[str]) -> str:
    return repr(names[0]) if len(names) == 1 else f"{names[0]!r} to {names[-1]!r}"
