"""`correct_gain`: what a chosen site gains, from the samples by which it was chosen, without the luck of the choice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from layersurgery.errors import SearchError
from layersurgery.search._intervals import Interval, paired_interval
from layersurgery.search._seen import OPTIMISM, guarded
from layersurgery.search._smooth import smooth

_AT_ONCE = 2_000_000  # numbers that are held at a time


@dataclass(frozen=True)
class Corrected:
    """A gain without fresh samples.

    Args:
        gain: the mean score change on the samples, less `bias`; nan where one sample says nothing of it.
        apparent: the mean score change on the samples.
        bias: how much of that the choice is expected to have added.
        interval: of the true gain, wide enough to hold for whichever site was chosen.
    """

    gain: float
    apparent: float
    bias: float
    interval: Interval


def correct_gain(
    correct: Any, site: int, margin: Any = None, *, level: float = 0.95, resamples: int = 500, seed: int = 0
) -> Corrected:
    """The chosen site's gain, corrected for having been chosen on these samples.

    The search is played again on resampled samples: sites drop out after as many samples as they did, always those
    with the lowest mean and 1.5 standard errors, as in `HalvingRule`, and the best of the last is chosen. How much
    higher its mean is than its true one there is the bias. In these replays the true gains are not those seen, which
    scatter too widely, but are drawn towards their mean as far as their standard errors say (empirical Bayes). Where a
    site was not evaluated, cells are resampled from where it was. The gate is not replayed: the gain of a site that
    just passed it is still somewhat too high.

    The interval is `paired_interval` at a level that holds for all sites compared (Bonferroni), and is not centred on
    the corrected gain. It is honest and wide; fresh samples give a narrower one.

    Args:
        correct: [sites + 1, n] scores, row 0 the unmodified model, columns in the order in which they were read; nan
            where a site was not evaluated. A site that dropped out must be nan from there on; one that was never
            evaluated was not among what was compared, and does not count.
        site: index of the chosen site, evaluated on all columns.
        margin: [sites + 1, n] margins, if the sites were compared by them; None: by the scores.
        level: nominal coverage of the interval.
        resamples: how many replays.
        seed: for the replays.

    Raises:
        SearchError: if the shapes do not fit, the base or the site has a gap, or a site was evaluated again after a
            gap.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> scores = (rng.random((33, 20)) < 0.5).astype(float)           # 32 sites, none of which matters
        >>> chosen = int((scores[1:] - scores[0]).mean(axis=1).argmax())
        >>> found = correct_gain(scores, chosen)
        >>> round(found.apparent, 2), found.gain < 0.15, 0 in found.interval
        (0.3, True, True)
    """
    scores = _table(correct, site)
    margins = None if margin is None else np.asarray(margin, dtype=np.float64)
    if margins is not None and margins.shape != scores.shape:
        raise SearchError(f"correct_gain: margin has shape {margins.shape}, correct {scores.shape}; give both alike")
    counts = _counts(scores)
    compared = counts > 0
    rows = np.flatnonzero([True, *compared])
    scores, counts, site = scores[rows], counts[compared], int(compared[:site].sum())
    margins = None if margins is None else margins[rows]
    changes = scores[1:] - scores[0]
    by = changes if margins is None else _smoothed(margins, counts)
    apparent = float(changes[site].mean())
    bias = float("nan") if scores.shape[1] < 2 else _bias(changes, by, counts, resamples, seed)
    return Corrected(apparent - bias, apparent, bias, _interval(scores, site, level))


def _table(correct: Any, site: int) -> np.ndarray:
    scores = np.asarray(correct, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[0] < 2 or not scores.shape[1]:
        raise SearchError(f"correct_gain needs correct [sites + 1, n], one sample or more; got shape {scores.shape}")
    if isinstance(site, bool) or not isinstance(site, (int, np.integer)) or not 0 <= site < len(scores) - 1:
        raise SearchError(f"correct_gain: site is {site!r}; give its index, 0 to {len(scores) - 2}")
    if not np.isfinite(scores[[0, site + 1]]).all():
        raise SearchError(
            "correct_gain: the unmodified model and the chosen site must have a score on every sample; give the "
            "samples that the decision rests on, Decision.columns"
        )
    return scores


def _counts(scores: np.ndarray) -> np.ndarray:
    """[sites] on how many samples each was evaluated, which must be the first ones."""
    known = np.isfinite(scores[1:])
    counts = known.sum(axis=1)
    gaps = np.flatnonzero((known != (np.arange(scores.shape[1]) < counts[:, None])).any(axis=1))
    if len(gaps):
        raise SearchError(
            f"correct_gain: site {gaps[0]} must be evaluated on the first samples without a gap, or on none; give "
            "the columns in the order in which they were read"
        )
    return counts


def _smoothed(margins: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[sites, n] changes of smoothed margins against the unmodified model, on the same samples."""
    changes = np.full((len(counts), margins.shape[1]), np.nan)
    for site, count in enumerate(counts):
        before, after = smooth(margins[[0, site + 1], :count])
        changes[site, :count] = after - before
    return changes


def _interval(scores: np.ndarray, site: int, level: float) -> Interval:
    if not 0 < level < 1:
        raise SearchError(f"level is {level!r}; give the nominal coverage between 0 and 1, such as 0.95")
    sites = len(scores) - 1
    wide = paired_interval(scores[0], scores[site + 1], 1 - (1 - level) / sites)
    return replace(wide, method=f"{wide.method}, selection-adjusted: Bonferroni over {sites} sites", level=level)


def _bias(changes: np.ndarray, by: np.ndarray, counts: np.ndarray, resamples: int, seed: int) -> float:
    rng = np.random.default_rng(seed)
    truth, by_truth = _shrunk(changes, counts), _shrunk(by, counts)
    changes = changes + (truth - _means(changes, counts))[:, None]
    by = by + (by_truth - _means(by, counts))[:, None]
    excess = [
        np.take_along_axis(changes[chosen], columns, axis=1).mean(axis=1) - truth[chosen]
        for chosen, columns in _replays(by, counts, resamples, rng)
    ]
    return max(0.0, float(np.concatenate(excess).mean()))  # being chosen never makes a gain look smaller, but noise may


def _replays(
    by: np.ndarray, counts: np.ndarray, resamples: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Per replay, the site chosen, and which column stands in each place of its row."""
    sites, n = by.shape
    ends = np.unique(counts)
    if ends[-1] != n:  # never so: the chosen site is known on all
        raise SearchError("correct_gain: no site was evaluated on every sample")
    unit = float(np.nanmax(np.abs(by))) or 1.0
    alive_after = [int((counts > end).sum()) for end in ends[:-1]] + [1]
    size = max(1, _AT_ONCE // (sites * n))
    for start in range(0, resamples, size):
        many = min(size, resamples - start)
        shared = np.concatenate(
            [rng.integers(low, high, (many, high - low)) for low, high in zip([0, *ends[:-1]], ends, strict=True)],
            axis=1,
        )
        columns = np.repeat(shared[:, None, :], sites, axis=1)
        for site in np.flatnonzero(counts < n):
            columns[:, site, counts[site] :] = rng.integers(0, counts[site], (many, n - counts[site]))
        drawn = by[np.arange(sites)[:, None], columns]
        totals, squares = np.cumsum(drawn, axis=2), np.cumsum(drawn**2, axis=2)
        alive = np.ones((many, sites), dtype=bool)
        best = np.zeros((many, 1), dtype=np.intp)
        for end, left in zip(ends, alive_after, strict=True):
            hopes = _hopes(totals[:, :, end - 1], squares[:, :, end - 1], int(end), unit, last=left == 1)
            best = np.argsort(-np.where(alive, hopes, -np.inf), axis=1, kind="stable")[:, :left]
            alive = np.zeros_like(alive)
            np.put_along_axis(alive, best, True, axis=1)
        yield best[:, 0], columns[np.arange(many), best[:, 0]]


def _hopes(totals: np.ndarray, squares: np.ndarray, n: int, unit: float, *, last: bool) -> np.ndarray:
    """What sites are ranked by after n samples: see `Comparison.hopes`."""
    means = totals / n
    if last or n < 2:
        return means
    return means + OPTIMISM * np.sqrt(guarded(squares - means * totals, n, unit) / n)


def _means(changes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.nansum(changes, axis=1) / counts


def _shrunk(changes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[sites] mean changes, drawn towards their common mean by as much as chance has spread them."""
    means = _means(changes, counts)
    unit = float(np.nanmax(np.abs(changes))) or 1.0
    deviations = np.nansum((changes - means[:, None]) ** 2, axis=1)
    errors = guarded(deviations, np.maximum(counts, 2), unit) / counts  # one sample: as if there were two
    spread, centre = 0.0, float(np.average(means, weights=counts))
    for _ in range(20):
        weights = 1 / (errors + spread)
        centre = float(np.average(means, weights=weights))
        spread = max(0.0, float(np.average((means - centre) ** 2 - errors, weights=weights)))
    return centre + (means - centre) * spread / (spread + errors)
