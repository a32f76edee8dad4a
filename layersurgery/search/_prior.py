"""`Prior`: what other tasks on the same model let one expect of each site, and how little a search may rest on it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from layersurgery._labels import names_of
from layersurgery.errors import SearchError
from layersurgery.search._oracle import Oracle
from layersurgery.search._seen import Comparison

_MOST = 2 / 3  # of the other tasks must have lost by a site that is barred
_FEWEST = 3  # sites, among which order can be predicted at all
_NORMAL = 1.4826  # standard deviations in a median absolute one, of normal numbers


@dataclass(frozen=True, repr=False)
class Prior:
    """What other tasks on the same model let one expect of each site, for `HalvingRule(prior=...)`.

    It acts in two ways, and on the choice of the finalist only. Barred sites are not evaluated. Among the others, the
    mean change of a site on n samples is drawn towards the expected one: (n * mean + w * expected) / (n + w). Whether
    the finalist is knocked out depends on the samples alone.

    `Prior.of` makes one from other tasks' vectors, and finds out how much they tell.

    Args:
        changes: [sites] mean change of the score that is expected; above 0, the site helps if it is knocked out.
        samples: w, the most samples that the expectation counts as; 0: it does not count.
        barred: indices of the sites that are not evaluated.
        sites: the sites' labels, as `str(site)` says them; they must be those of the search. Empty: not known.
        error: by how much `changes` are typically wrong. Where the samples say more than that, fewer than `samples`
            count: as many as have this standard error. 0: not known.

    Raises:
        SearchError: if a number is not finite, a setting makes no sense, or no site is left.

    Examples:
        >>> prior = Prior([0.02, -0.3, 0.0], samples=4, barred=[1])
        >>> prior
        Prior(3 sites, 1 barred, worth 4 samples)
        >>> from layersurgery.search import HalvingRule, TableOracle
        >>> scores = np.zeros((4, 60))
        >>> scores[3, ::2] = 1                                  # site 2 helps
        >>> decision = HalvingRule(prior=prior)(TableOracle(scores), np.random.default_rng(0))
        >>> decision.site, sorted(decision.ranking)
        (2, [0, 2])
    """

    changes: tuple[float, ...]
    samples: float = 0.0
    barred: tuple[int, ...] = ()
    sites: tuple[str, ...] = ()
    error: float = 0.0

    def __init__(
        self,
        changes: Any,
        samples: float = 0.0,
        barred: Iterable[int] = (),
        sites: Iterable[Any] = (),
        error: float = 0.0,
    ) -> None:
        expected = np.asarray(changes, dtype=np.float64)
        if expected.ndim != 1 or not len(expected) or not np.isfinite(expected).all():
            raise SearchError(
                f"Prior: changes must be one finite number per site; got {changes!r}. Leave out tasks that were not "
                "swept at every site"
            )
        for name, value in (("samples", samples), ("error", error)):
            _check("Prior", name, value, "0 or above", _finite(value) and value >= 0)
        object.__setattr__(self, "changes", tuple(expected.tolist()))
        object.__setattr__(self, "samples", float(samples))
        object.__setattr__(self, "barred", _barred(barred, len(expected)))
        object.__setattr__(self, "sites", _labels(sites, len(expected)))
        object.__setattr__(self, "error", float(error))

    def __repr__(self) -> str:
        return f"Prior({len(self.changes)} sites, {len(self.barred)} barred, worth {self.samples:.3g} samples)"

    @classmethod
    def of(cls, vectors: Any, *, samples: float = 10.0, bar: float = 0.09) -> Prior:
        """The prior that other tasks' vectors give; the task to be searched must not be among them.

        1. Each task is left out in turn, and its changes are regressed on the mean of the others', over sites: the
           slope is 1 if they predict it, 0 if they do not. The mean of the slopes, less its standard error over tasks,
           is how far other tasks count. A vector measured on few samples lowers it, as it should.
        2. A site is barred if two thirds of the tasks lost `bar` or more by it, and so is the new one expected to: the
           mean over tasks, drawn to the mean of all sites by what the slope lacks to 1. If these are all sites, none
           is barred.
        3. For the weight the slope is taken anew, among the sites that are not barred. The weight is that share of
           `samples`; at most a third of them with 2 tasks, half with 3 and (m - 1) / (m + 1) with m.

        A single task does not show whether tasks are alike: it bars nothing and weighs nothing.

        Args:
            vectors: `InteractionVectors` of other tasks on the same model, under the same intervention, or an array
                [tasks, sites] of mean changes of the score.
            samples: the most samples that the prior can be worth.
            bar: loss from which on a site may be barred, in units of the score: 0.09 is 9 points; `math.inf`: none.

        Raises:
            SearchError: if there is no task, a number is not finite, or a setting makes no sense.

        Examples:
            >>> rng = np.random.default_rng(0)
            >>> common = np.r_[-0.3, rng.normal(0, 0.03, 31)]
            >>> Prior.of(common + rng.normal(0, 0.02, (5, 32)))                  # five tasks that are much alike
            Prior(32 sites, 1 barred, worth 6.67 samples)
            >>> Prior.of(rng.normal(0, 0.04, (5, 32)))                           # five that have nothing in common
            Prior(32 sites, 0 barred, worth 0 samples)
        """
        matrix = np.asarray(getattr(vectors, "matrix", vectors), dtype=np.float64)
        if matrix.ndim != 2 or 0 in matrix.shape or not np.isfinite(matrix).all():
            raise SearchError(
                f"Prior.of needs finite changes [tasks, sites] of one task or more; got shape {matrix.shape}"
                f"{'' if np.isfinite(matrix).all() else ' with numbers that are not finite'}. Give InteractionVectors, "
                "and leave out tasks that were not swept at every site"
            )
        _check("Prior.of", "samples", samples, "0 or above", _finite(samples) and samples >= 0)
        _check("Prior.of", "bar", bar, "above 0; math.inf bars nothing", (_finite(bar) and bar > 0) or bar == math.inf)
        barred = _losing(matrix, bar)
        slope, error = _predicted(matrix[:, ~barred])
        tasks = len(matrix)
        share = min(slope, (tasks - 1) / (tasks + 1))
        sites = tuple(map(str, getattr(vectors, "sites", ())))
        known = () if all(site.isdigit() for site in sites) else sites  # numbers stand for sites without a name
        return cls(matrix.mean(axis=0), samples * share, np.flatnonzero(barred).tolist(), known, error)


def entering(prior: Prior | None, oracle: Oracle) -> list[int]:
    """The sites that a search begins with.

    Raises:
        SearchError: if the prior is of other sites than the oracle's.
    """
    if prior is None:
        return list(range(oracle.n_sites))
    found = remaining(prior, oracle.n_sites)
    theirs = names_of(oracle) if prior.sites else ()
    for site, (mine, other) in enumerate(zip(prior.sites, theirs, strict=False)):
        if mine != other:
            raise SearchError(
                f"the prior's site {site} is {mine} and the search's is {other}; sweep the other tasks at the sites of "
                "this search, in the same order"
            )
    return found


def remaining(prior: Prior, sites: int) -> list[int]:
    """Those of so many sites that are not barred.

    Raises:
        SearchError: if the prior is of another number of sites.
    """
    if len(prior.changes) != sites:
        raise SearchError(
            f"the prior is of {len(prior.changes)} sites, but {sites} are searched; take it from tasks that were swept "
            "at the same sites"
        )
    return [site for site in range(sites) if site not in prior.barred]


def drawn(prior: Prior | None, compared: Comparison, sites: list[int]) -> np.ndarray:
    """[sites] mean changes of these sites, drawn towards the prior; without one they stay."""
    means = compared.means
    if prior is None:
        return means
    weight, told = prior.samples, float(compared.variances.mean())
    if weight * prior.error**2 > told:
        weight = told / prior.error**2
    return means + weight / (float(compared.sizes.sum()) + weight) * (np.array(prior.changes)[sites] - means)


def _losing(matrix: np.ndarray, bar: float) -> np.ndarray:
    """[sites] whether most tasks lost by it, and one more is expected to."""
    means = matrix.mean(axis=0)
    expected = means.mean() + _predicted(matrix)[0] * (means - means.mean())
    losing = ((matrix <= -bar).mean(axis=0) >= _MOST) & (expected <= -bar)
    known = len(matrix) > 1 and not losing.all()
    return losing if known else np.zeros_like(losing)


def _predicted(matrix: np.ndarray) -> tuple[float, float]:
    """How far tasks predict one that is left out, 0 to 1, and by how much they typically miss it."""
    tasks, sites = matrix.shape
    if tasks < 2 or sites < _FEWEST:
        return 0.0, 0.0
    centred = matrix - matrix.mean(axis=1, keepdims=True)
    others = (centred.sum(axis=0) - centred) / (tasks - 1)
    spread = (others**2).sum(axis=1)
    slopes = (others * centred).sum(axis=1) / np.where(spread > 0, spread, 1.0)
    slope = float(np.clip(slopes.mean() - slopes.std(ddof=1) / math.sqrt(tasks), 0.0, 1.0))
    # by the median, since one site that upsets some tasks only does not make the others harder to tell
    return slope, float(_NORMAL * np.median(np.abs(centred - slope * others)))


def _finite(value: Any) -> bool:
    real = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    return real and math.isfinite(value)


def _check(where: str, name: str, value: Any, expected: str, good: bool) -> None:
    if not good:
        raise SearchError(f"{where}({name}={value!r}): {name} must be a number, {expected}")


def _barred(barred: Iterable[int], sites: int) -> tuple[int, ...]:
    listed = list(barred)
    for site in listed:
        if isinstance(site, bool) or not isinstance(site, (int, np.integer)) or not 0 <= site < sites:
            raise SearchError(f"Prior: barred names site {site!r}; give indices of sites, 0 to {sites - 1}")
    found = tuple(sorted({int(site) for site in listed}))
    if len(found) == sites:
        raise SearchError(f"Prior: all {sites} sites are barred; leave at least one to search")
    return found


def _labels(sites: Iterable[Any], expected: int) -> tuple[str, ...]:
    labels = tuple(map(str, sites))
    if labels and len(labels) != expected:
        raise SearchError(f"Prior: there are {len(labels)} labels of sites for {expected} changes; give one for each")
    return labels
