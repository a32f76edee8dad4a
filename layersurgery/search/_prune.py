"""Exact pruning: which sites gain most, without evaluating those that can no longer be among them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from layersurgery.search._oracle import Oracle, read

TOLERANCE = 1e-12
_PARTS = 4  # in which a site is evaluated where it can only lose: fewer waste cells, more make small batches


class Gains:
    """Gains of all sites on a set of samples that may grow, known in full only for sites that may be among the best.

    No score is above `best`, so that on each sample a site gains at most what the unmodified model left open. Where it
    left something open, all sites are evaluated first. What they repaired there bounds what each can gain in all. Then
    the site with the highest bound is evaluated where it can only lose, until no bound reaches the best gain.

    Args:
        oracle: what is asked for scores.
        best: the best value that a score can take.
    """

    def __init__(self, oracle: Oracle, best: float) -> None:
        self._oracle = oracle
        self._best = best
        self._changes: list[dict[int, float]] = [{} for _ in range(oracle.n_sites)]

    def leaders(self, base: np.ndarray, columns: Sequence[int]) -> tuple[np.ndarray, tuple[int, ...]] | None:
        """Mean gains on `columns`, nan where a site was left out, and the sites that share the largest if positive.

        Args:
            base: [columns] the unmodified model's scores.
            columns: the samples.

        Returns:
            The sites that an evaluation of all sites on all samples would give. None: a score above `best` was met,
            so that nothing can be ruled out.
        """
        scores = dict(zip(columns, base.tolist(), strict=True))
        hopeful = [column for column in columns if self._best - scores[column] > TOLERANCE]
        settled = [column for column in columns if self._best - scores[column] <= TOLERANCE]
        size = max(1, math.ceil(len(settled) / _PARTS))
        parts = [settled[start : start + size] for start in range(0, len(settled), size)]
        while wanted := self._undecided(scores):
            part = self._missing(wanted, hopeful)
            if not part:
                wanted = [max(wanted, key=lambda site: self._bound(site, scores))]
                part = next(missing for part in parts if (missing := self._missing(wanted, part)))
            if not self._evaluate(wanted, part, scores):
                return None
        return self._result(columns)

    def _undecided(self, scores: dict[int, float]) -> list[int]:
        """Sites that are not known on all samples, and may still gain as much as the best that is."""
        known = [site for site in range(len(self._changes)) if not self._missing([site], scores)]
        enough = max([self._bound(site, scores) for site in known], default=0.0)
        return [
            site
            for site in range(len(self._changes))
            if site not in known and self._bound(site, scores) > max(TOLERANCE, enough - TOLERANCE)
        ]

    def _bound(self, site: int, scores: dict[int, float]) -> float:
        """The most that the site can gain in sum; its gain, where it is known on all samples."""
        changes = self._changes[site]
        return math.fsum(changes.get(column, self._best - score) for column, score in scores.items())

    def _missing(self, sites: Sequence[int], columns: Sequence[int] | dict[int, float]) -> list[int]:
        return [column for column in columns if any(column not in self._changes[site] for site in sites)]

    def _evaluate(self, sites: list[int], columns: list[int], scores: dict[int, float]) -> bool:
        reading = read(self._oracle, [site + 1 for site in sites], columns)
        for site, row in zip(sites, reading.correct.tolist(), strict=True):
            self._changes[site] |= {column: score - scores[column] for column, score in zip(columns, row, strict=True)}
        return bool(np.all(reading.correct <= self._best + TOLERANCE))

    def _result(self, columns: Sequence[int]) -> tuple[np.ndarray, tuple[int, ...]]:
        gains = np.full(len(self._changes), np.nan)
        for site, changes in enumerate(self._changes):
            if all(column in changes for column in columns):
                gains[site] = math.fsum(changes[column] for column in columns)
        top = np.nanmax(gains) if not np.isnan(gains).all() else 0.0
        slack = TOLERANCE * max(1.0, len(columns))
        leaders = np.flatnonzero(gains >= top - slack) if top > slack else np.zeros(0, dtype=np.intp)
        return gains / len(columns), tuple(int(site) for site in leaders)
