"""`paired_interval`: how far two variants of a model are apart on the same samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from layersurgery.errors import SearchError


@dataclass(frozen=True)
class Interval:
    """A confidence interval for a mean score difference.

    Args:
        low: its lower end, in the scores' own unit (fractions, for 0/1 scores).
        high: its upper end.
        method: how it was computed, in words.
        level: its nominal coverage.
    """

    low: float
    high: float
    method: str
    level: float = 0.95

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def paired_interval(base: Any, variant: Any, level: float = 0.95) -> Interval:
    """Interval for the mean of `variant - base`, scored on the same samples.

    For 0/1 scores: Agresti and Min (2005), "Simple improved confidence intervals for comparing matched
    proportions", Statistics in Medicine 24: one half is added to each of the four cells of the paired table,
    and Wald's interval is taken of that. With n pairs, c of them repaired and b of them broken, it is centred
    at (c - b) / (n + 2), with standard error sqrt((b + c + 1) - (c - b)^2 / (n + 2)) / (n + 2), and clipped
    to [-1, 1].

    For other scores: Student's t interval of the differences. One pair has no spread to go by: the interval
    is then the whole line. Where all differences are equal it shrinks to a point, and `method` says so.

    It holds for two variants named beforehand. On the samples by which the variant was *chosen*, it promises
    too much.

    Args:
        base: [n] scores of the unmodified model.
        variant: [n] scores of the other one, on the same samples in the same order.
        level: nominal coverage, between 0 and 1.

    Raises:
        SearchError: if there is no pair, the lengths differ, a score is not finite, or `level` is not between
            0 and 1.

    Examples:
        >>> found = paired_interval([0, 0, 0, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0])
        >>> found.method, round(found.low, 3), round(found.high, 3)
        ('Agresti-Min', -0.22, 0.62)
    """
    before, after = _scores(base, "base"), _scores(variant, "variant")
    if len(before) != len(after):
        raise SearchError(
            f"paired_interval needs both variants on the same samples; got {len(before)} scores of the base "
            f"and {len(after)} of the variant"
        )
    if not 0 < level < 1:
        raise SearchError(f"level is {level!r}; give the nominal coverage between 0 and 1, such as 0.95")
    if _binary(before) and _binary(after):
        return _agresti_min(before, after, level)
    return _student(after - before, level)


def _agresti_min(before: np.ndarray, after: np.ndarray, level: float) -> Interval:
    repaired = int(np.sum(after > before))
    broken = int(np.sum(after < before))
    n = len(before) + 2
    centre = (repaired - broken) / n
    error = math.sqrt((repaired + broken + 1) - (repaired - broken) ** 2 / n) / n
    reach = NormalDist().inv_cdf((1 + level) / 2) * error
    return Interval(max(-1.0, centre - reach), min(1.0, centre + reach), "Agresti-Min", level)


def _student(differences: np.ndarray, level: float) -> Interval:
    n = len(differences)
    if n == 1:
        return Interval(-math.inf, math.inf, "paired t, one pair: no bound", level)
    centre = math.fsum(differences) / n
    if np.ptp(differences) <= 1e-12 * max(1.0, float(np.abs(differences).max())):
        return Interval(centre, centre, "paired t, all differences equal", level)
    from scipy.special import stdtrit

    reach = float(stdtrit(n - 1, (1 + level) / 2)) * float(differences.std(ddof=1)) / math.sqrt(n)
    return Interval(centre - reach, centre + reach, "paired t", level)


def _scores(values: Any, name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise SearchError(f"paired_interval: {name} must be a flat array of one score or more; got shape {array.shape}")
    if not np.isfinite(array).all():
        raise SearchError(
            f"paired_interval: {name} has a score that is not finite; leave samples out that were not scored"
        )
    return array


def _binary(scores: np.ndarray) -> bool:
    return bool(np.isin(scores, (0.0, 1.0)).all())
