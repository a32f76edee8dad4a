"""Circular evaluation: a question that is asked in several ways counts as right where every one of them is."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from layersurgery.scoring._scores import Scores
from layersurgery.tasks import Sample


def spread(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """Every sample, each with its variants after it.

    Examples:
        >>> turned = Sample("q1-2", "Which?", ("blue", "red"), 0)
        >>> [sample.id for sample in spread([Sample("q1", "Which?", ("red", "blue"), 1, variants=(turned,))])]
        ['q1', 'q1-2']
    """
    return tuple(one for sample in samples for one in (sample, *sample.variants))


def reduced(samples: Sequence[Sample], scores: Scores) -> Scores:
    """One score per sample, out of one for each of `spread(samples)`: the worst of its own and its variants'.

    Args:
        samples: the samples themselves.
        scores: of all that `spread` made of them.
    """
    if not any(sample.variants for sample in samples):
        return scores
    starts = np.cumsum([0, *(1 + len(sample.variants) for sample in samples)])[:-1]
    bounds = [*starts.tolist(), len(scores)]
    spans = list(itertools.pairwise(bounds))
    return Scores(
        np.minimum.reduceat(scores.correct, starts),
        margin=None if scores.margin is None else np.minimum.reduceat(scores.margin, starts),
        text=None if scores.text is None else ["\n".join(scores.text[first:last]) for first, last in spans],
        answered=None if scores.answered is None else np.logical_and.reduceat(scores.answered, starts),
        best=scores.best,
    )
