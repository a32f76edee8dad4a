"""What a halving has read so far, and how the sites compare on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from layersurgery.search._oracle import Oracle, read
from layersurgery.search._smooth import smooth

_PARTS = 4  # in which a round is read by a scorer of one number for each
OPTIMISM = 1.5  # standard errors by which sites are given the benefit of the doubt, while more samples are to come
_GUARD = 0.25  # squared, in the largest change a score can take: what the deviations of a few samples have at least
_AGREE = 0.95  # of the margins must have the sign that the 0/1 scores say


def guarded(squares: Any, n: Any, unit: float = 1.0) -> Any:
    """The variance of n changes, 2 or more, by the sum of their squared deviations: few that agree do not look certain.

    Args:
        squares: the sum, a number or an array of any shape.
        n: how many, likewise.
        unit: the largest change that a score can take.
    """
    return (squares + _GUARD * unit**2) / (n - 1)


@dataclass(frozen=True)
class Comparison:
    """Sites against the unmodified model, on the same samples.

    Args:
        differences: [sites, n] score of the site minus that of the unmodified model; where the scorer gives one number
            for a set of samples, n is the number of sets.
        sizes: [n] how many samples each stands for.
        smoothed: whether they are differences of smoothed margins.
    """

    differences: np.ndarray
    sizes: np.ndarray
    smoothed: bool

    @cached_property
    def means(self) -> np.ndarray:
        """[sites] mean difference; an exact sum, so that sites that tie do so in any order of the samples."""
        weights = self.sizes / self.sizes.sum()
        return np.array([math.fsum(row * weights) for row in self.differences])

    @cached_property
    def variances(self) -> np.ndarray:
        """[sites] of the change on one sample, `guarded`. Infinite: nothing is known."""
        if len(self.sizes) < 2:
            return np.full(len(self.differences), math.inf)
        unit = float(np.abs(self.differences).max()) or 1.0
        squares = self.sizes * (self.differences - self.means[:, None]) ** 2
        return guarded(np.array(list(map(math.fsum, squares))), len(self.sizes), unit)

    @property
    def hopes(self) -> np.ndarray:
        """[sites] by how much each mean may be too low: `OPTIMISM` standard errors; 0 where these are not known."""
        known = np.where(np.isfinite(self.variances), self.variances, 0.0)
        return OPTIMISM * np.sqrt(known / self.sizes.sum())


class Seen:
    """Every score that was read. A column is read once, on the unmodified model and on some sites.

    Args:
        oracle: what is asked for scores.

    Attributes:
        columns: the samples read, in order.
        sets: [n] which set of samples a column was read in: those that came in one answer.
        per_sample: whether the scorer scores single samples.
    """

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self._correct = np.zeros((oracle.n_sites + 1, 0))
        self._margin = np.zeros((oracle.n_sites + 1, 0))
        self._margins_there = True
        self.columns: list[int] = []
        self.sets: list[int] = []
        self.per_sample = True

    @property
    def n_sites(self) -> int:
        """Number of candidate sites."""
        return len(self._correct) - 1

    def add(self, sites: Sequence[int], columns: Sequence[int]) -> None:
        """Read the unmodified model and these sites on new samples."""
        waiting = list(columns)
        part = math.ceil(len(waiting) / _PARTS)
        while waiting:
            # an oracle that does not know yet what kind its scorer is learns it by the first part
            whole = getattr(self._oracle, "per_sample", True) is True
            now, waiting = (waiting, []) if whole else (waiting[:part], waiting[part:])
            self._read(sites, now)
        self.per_sample = getattr(self._oracle, "per_sample", True) is not False

    def _read(self, sites: Sequence[int], columns: list[int]) -> None:
        rows = [0, *(site + 1 for site in sites)]
        reading = read(self._oracle, rows, columns)
        correct = np.full((len(self._correct), len(columns)), np.nan)
        correct[rows] = reading.correct
        margin = np.full_like(correct, np.nan)
        if reading.margin is None:
            self._margins_there = False
        else:
            margin[rows] = reading.margin
        self._correct = np.hstack([self._correct, correct])
        self._margin = np.hstack([self._margin, margin])
        self.sets += [self.sets[-1] + 1 if self.sets else 0] * len(columns)
        self.columns += columns

    def compared(self, sites: Sequence[int]) -> Comparison:
        """These sites, which must have been read on every sample so far, by smoothed margins where there are any."""
        if self._unusable:
            return self.answers(sites)
        scores = smooth(self._margin[[0, *(site + 1 for site in sites)]])
        return Comparison(scores[1:] - scores[0], np.ones(len(self.columns)), smoothed=True)

    def answers(self, sites: Sequence[int]) -> Comparison:
        """The same by the scores themselves."""
        differences = self._correct[[site + 1 for site in sites]] - self._correct[0]
        if self.per_sample:
            return Comparison(differences, np.ones(len(self.columns)), smoothed=False)
        _, first, sizes = np.unique(self.sets, return_index=True, return_counts=True)
        return Comparison(differences[:, first], sizes, smoothed=False)

    def gains(self, sites: Sequence[int]) -> np.ndarray:
        """[sites] mean change of the score."""
        return self.answers(sites).means

    @property
    def base(self) -> float:
        """Mean score of the unmodified model."""
        return float(self._correct[0].mean())

    @property
    def note(self) -> str:
        """Why margins were not used; empty where they were."""
        return self._unusable

    @property
    def _unusable(self) -> str:
        """Why the scores themselves are compared, or an empty string."""
        if not self.per_sample:
            return "by one number for each set of samples, which is all that the scorer gives"
        known = np.isfinite(self._correct)
        scores = self._correct[known]
        if not np.isin(scores, (0.0, 1.0)).all():
            return "by the scores themselves, since they are not all 0 or 1"
        if not self._margins_there:
            return "by 0/1 answers, since the scorer gives no margins"
        margins = self._margin[known]
        if np.mean((margins == 0) | ((margins > 0) == (scores == 1))) < _AGREE:
            return "by 0/1 answers, since the scorer's margins often contradict them"
        return ""
