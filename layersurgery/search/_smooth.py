"""`smooth`: scores between 0 and 1 that carry more than a right or wrong answer does."""

from __future__ import annotations

from typing import Any

import numpy as np

from layersurgery.errors import SearchError

_WIDTH = 1.5  # of the smoothing: this times n^(-1/3) of a row's root mean square, at most all of it


def smooth(margin: Any) -> np.ndarray:
    """Phi(margin / (h * rms)) for every row, with h = min(1, 1.5 n^(-1/3)) and rms the row's root mean square.

    A margin far above 0 counts nearly as a right answer, one near 0 as half of one. So an answer that a variant nearly
    flips counts too, and a few samples say more than their 0/1 scores do. Each row is measured in its own unit: a
    variant that makes all margins larger or smaller scores as before. With more samples the scores tend to 0 and 1,
    and their mean to the accuracy.

    Args:
        margin: [rows, n] log-probability of the right option minus that of the best other one.

    Returns:
        [rows, n] scores between 0 and 1. A row of zeros scores one half everywhere.

    Raises:
        SearchError: if there are not two dimensions, no sample, or a number is not finite.

    Examples:
        >>> smooth([[-1.0, 0.0, 1.0], [-100.0, 0.0, 100.0]]).round(2).tolist()
        [[0.11, 0.5, 0.89], [0.11, 0.5, 0.89]]
    """
    margins = np.asarray(margin, dtype=np.float64)
    if margins.ndim != 2 or not margins.shape[1]:
        raise SearchError(f"smooth needs margins [rows, n] of one sample or more; got shape {margins.shape}")
    if not np.isfinite(margins).all():
        raise SearchError("smooth: a margin is not finite; leave samples out that were not scored, or check the scorer")
    from scipy.special import ndtr

    largest = np.abs(margins).max(axis=1, keepdims=True)
    unit = np.where(largest > 0, largest, 1.0)  # so that no square overflows
    margins = margins / unit
    rms = np.sqrt(np.square(margins).mean(axis=1, keepdims=True))
    width = min(1.0, _WIDTH * margins.shape[1] ** (-1 / 3)) * np.where(rms > 0, rms, 1.0)
    return ndtr(margins / width)
