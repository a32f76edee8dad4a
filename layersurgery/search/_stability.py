"""`stability`: whether the same site is chosen from other samples, and how often it is where none matters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from layersurgery.errors import SearchError
from layersurgery.search._decision import Rule
from layersurgery.search._oracle import TableOracle
from layersurgery.search._smooth import smooth


@dataclass(frozen=True, eq=False)
class Stability:
    """How often each site was chosen (figure 7 of the paper), beside what happens where no site matters.

    Args:
        chosen: [sites] in how many resamples each site was chosen.
        resamples: how many there were; in those that are missing from `chosen` the model was kept.
        reference: [sites] the same where the labels of base and variant are swapped at random, on average.
        reference_shares: [references] share of the site chosen most often, in each of these.
        undecided: resamples in which the rule lacked samples to decide; the model counts as kept there.
    """

    chosen: np.ndarray = field(repr=False)
    resamples: int
    reference: np.ndarray = field(repr=False)
    reference_shares: np.ndarray = field(repr=False)
    undecided: int = 0

    @property
    def site(self) -> int | None:
        """The site chosen most often; None if the model was always kept."""
        return int(self.chosen.argmax()) if self.chosen.any() else None

    @property
    def share(self) -> float:
        """In what share of the resamples it was chosen."""
        return float(self.chosen.max() / self.resamples)

    @property
    def p(self) -> float:
        """How often a site is chosen as often as that where none matters; never 0."""
        as_high = int((self.reference_shares >= self.share - 1e-12).sum())
        return (1 + as_high) / (1 + len(self.reference_shares))

    def __str__(self) -> str:
        usual = f"{100 * self.reference_shares.mean():.0f} % of the resamples, and as often as that or more"
        if self.site is None:
            return (
                f"In all {self.resamples} resamples the model is kept. Where no site matters, one has {usual} always."
            )
        late = f" In {self.undecided} resamples there were too few samples to decide." if self.undecided else ""
        return (
            f"Site {self.site} is chosen in {100 * self.share:.0f} % of {self.resamples} resamples. Where no site "
            f"matters, the one chosen most often has {usual} in {100 * self.p:.0f} % of the cases.{late}"
        )


def stability(
    correct: Any,
    rule: Rule,
    margin: Any = None,
    *,
    resamples: int = 50,
    references: int = 20,
    seed: int = 0,
) -> Stability:
    """Repeat a rule's choice on bootstrap samples, and on such where no site matters.

    At ten shots the site chosen most often has a large share even if nothing is there to be found: the resamples
    repeat the accidents of the samples. So the same is done with tables in which, sample by sample, base and variant
    trade places with probability one half, for all sites of a sample together: no site gains then, and all else is
    as it was. A share says something only if it is above theirs.

    Args:
        correct: [sites + 1, n] scores of every site on every sample of the probe, row 0 the unmodified model.
        rule: the rule; what it draws depends on `seed` alone.
        margin: [sites + 1, n] margins, for a rule that compares by them. The rule then gets the smoothed margins as
            its scores, in the tables where base and variant trade places too, so that the shares compare.
        resamples: bootstrap samples per table; the paper takes 50.
        references: how many tables where no site matters.
        seed: for everything drawn.

    Raises:
        SearchError: if a cell is missing, shapes do not fit, there are fewer samples than the rule needs, or it cannot
            decide on any resample.

    Examples:
        >>> from layersurgery.search import PaperRule
        >>> rng = np.random.default_rng(0)
        >>> scores = (rng.random((9, 30)) < 0.5).astype(float)            # 8 sites, none of which matters
        >>> found = stability(scores, PaperRule(10))
        >>> found.share > 0.3, found.p > 0.1
        (True, True)
    """
    scores = _scores(correct, margin)
    for name, value in (("resamples", resamples), ("references", references)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise SearchError(f"stability: {name}={value!r}; give a whole number, 1 or above")
    needed = getattr(rule, "labels_needed", 1)
    if scores.shape[1] < needed:
        raise SearchError(f"{rule!r} may need {needed} samples, and there are {scores.shape[1]}; give more samples")
    rng = np.random.default_rng(seed)
    chosen, undecided = _histogram(scores, rule, resamples, rng)
    swapped = np.array([_histogram(table, rule, resamples, rng)[0] for table in _swapped(scores, references, rng)])
    return Stability(chosen, resamples, swapped.mean(axis=0), swapped.max(axis=1) / resamples, undecided)


def _scores(correct: Any, margin: Any) -> np.ndarray:
    scores = np.asarray(correct, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[0] < 2 or not scores.shape[1]:
        raise SearchError(f"stability needs correct [sites + 1, n], one sample or more; got shape {scores.shape}")
    if margin is not None:
        if np.shape(margin) != scores.shape:
            raise SearchError(
                f"stability: margin has shape {np.shape(margin)}, correct {scores.shape}; give both alike"
            )
        missing = np.isnan(np.asarray(margin, dtype=np.float64)) | np.isnan(scores)
    else:
        missing = np.isnan(scores)
    if missing.any():
        row, column = np.argwhere(missing)[0].tolist()
        raise SearchError(
            f"stability needs every site on every sample, and row {row}, column {column} is missing; evaluate the "
            "probe samples in full, with layersurgery.sweep"
        )
    return scores if margin is None else smooth(margin)


def _histogram(scores: np.ndarray, rule: Rule, resamples: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    chosen, undecided, error = np.zeros(len(scores) - 1, dtype=np.intp), 0, None
    for _ in range(resamples):
        columns = rng.integers(0, scores.shape[1], scores.shape[1])
        try:
            site = rule(TableOracle(scores[:, columns]), rng).site
        except SearchError as caught:  # samples that all are solved were discarded, and too few are left
            undecided, error = undecided + 1, caught
            continue
        if site is not None:
            chosen[site] += 1
    if error is not None and undecided == resamples:
        raise SearchError(f"{rule!r} cannot decide on any of {resamples} resamples: {error}") from error
    return chosen, undecided


def _swapped(scores: np.ndarray, references: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Tables with the differences of a sample turned round, or not, for all sites alike.

    The base stays, and the variant gets the turned difference: rules compare differences, and one row of the base
    cannot trade places with many.
    """
    for _ in range(references):
        signs = rng.choice([-1.0, 1.0], scores.shape[1])
        yield np.vstack([scores[:1], scores[0] + signs * (scores[1:] - scores[0])])
