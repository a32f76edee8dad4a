"""How many new samples each round of a halving reads, so that neither labels nor cells run out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from layersurgery.errors import SearchError

_EXPONENT = -0.5  # of what a sample costs in a round, to which the number of samples is proportional
_FLATTEST = 30.0  # exponent at which nearly all samples are read in the first round


@dataclass(frozen=True)
class Round:
    """One round: this many sites are read on this many new samples, and so is the unmodified model."""

    sites: int
    samples: int

    @property
    def cells(self) -> int:
        """Cells that it reads."""
        return (self.sites + 1) * self.samples


def schedule(sites: int, labels: int, budget: int, eta: int) -> list[Round]:
    """Rounds of `sites`, `sites / eta`, `sites / eta^2`, ... sites, down to the last that has more than one.

    A round of a quarter of the sites reads about twice as many samples, and so half as many cells. Where the labels
    would run out before the cells do, the first rounds get more of the samples, as far as the cells allow; in the limit
    every site is read on every sample in one round.

    Args:
        sites: candidates.
        labels: most samples to read in all.
        budget: most cells to read in all.
        eta: one of `eta` sites survives a round.

    Raises:
        SearchError: if the cells do not suffice for one sample on every site, or there is no sample.
    """
    if budget < sites + 1 or labels < 1:
        raise SearchError(
            f"budget={budget} cells and {labels} labelled samples: one sample on the unmodified model and on each of "
            f"{sites} sites takes {sites + 1} cells; give at least 1 sample and {sites + 1} cells, or fewer sites"
        )
    rounds: list[Round] = []
    alive = sites
    while alive > 0:
        sizes = _ladder(alive, eta)
        wanted = max(1, round(_samples(sizes, labels, budget)[0]))
        taken = min(wanted, labels, budget // (alive + 1))
        if taken < 1:
            break
        rounds.append(Round(alive, taken))
        labels, budget = labels - taken, budget - rounds[-1].cells
        alive = sizes[1] if len(sizes) > 1 else 0
    return rounds


def _ladder(sites: int, eta: int) -> list[int]:
    sizes = [sites]
    while sizes[-1] > eta:
        sizes.append(math.ceil(sizes[-1] / eta))
    return sizes


def _samples(sizes: list[int], labels: int, budget: int) -> np.ndarray:
    """New samples of each round, before rounding: proportional to a power of what a sample costs there."""
    cost = np.array(sizes, dtype=np.float64) + 1

    def shares(exponent: float) -> np.ndarray:
        logs = exponent * np.log(cost)
        weights = np.exp(logs - logs.max())
        return weights / weights.sum()

    usual = shares(_EXPONENT)
    if labels * float(usual @ cost) >= budget:  # the cells run out first
        return usual * budget / float(usual @ cost)
    if labels * float(cost.max()) <= budget:
        return labels * shares(_FLATTEST)
    low, high = _EXPONENT, _FLATTEST
    for _ in range(50):
        middle = (low + high) / 2
        if labels * float(shares(middle) @ cost) > budget:
            high = middle
        else:
            low = middle
    return labels * shares(low)
