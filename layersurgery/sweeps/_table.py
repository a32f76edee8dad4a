"""`ScoreTable`: the scores of the unmodified model and of every variant, sample by sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from layersurgery.sites import Sites
from layersurgery.surgery import Surgery
from layersurgery.sweeps._answers import Answers

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Scores of base and variants; row i of `scores` belongs to `sites[i]`. Cells that were not evaluated are NaN.

    Args:
        sites: where each variant intervenes; a site is there once for each intervention that was tried at it.
        surgeries: what each variant is, in the order of `sites`, with all that is in force.
        samples: names of the samples (their `id`, else their position).
        correct: [sites + 1, n] scores; row 0 is the base: the unmodified model, or that with `under` in force.
        margin: [sites + 1, n] margins in nats, or None.
        answered: [sites + 1, n] 1 where an answer could be read, 0 where not, or None.
        text: generated answers by row and column, None where not evaluated; or None altogether.
        per_sample: whether scores are of single samples; otherwise n = 1 and each is the scorer's one number.
        best: the best value that a score can take, if the scorer declares one.
        notes: what a reader should know of how the table was made.
        constant: the score of always answering `constant_letter`, which is right more often on these samples than any
            other; a sample without options counts as wrong, and one with `variants` as right if the letter is right in
            all of them. None: the samples do not say which letter is right, or the scores are not all 0 or 1.
        constant_letter: that letter, or None.
        chance: the score of guessing among the options, or None where `constant` is.
        under: a surgery that is in force in all rows, the base included; None: nothing is.
    """

    sites: Sites
    surgeries: tuple[Surgery, ...]
    samples: tuple[str, ...]
    correct: np.ndarray
    margin: np.ndarray | None = None
    answered: np.ndarray | None = None
    text: tuple[tuple[str | None, ...], ...] | None = None
    per_sample: bool = True
    best: float | None = None
    notes: tuple[str, ...] = ()
    constant: float | None = None
    constant_letter: str | None = None
    chance: float | None = None
    under: Surgery | None = None

    @property
    def base(self) -> np.ndarray:
        """[n] scores of the base."""
        return self.correct[0]

    @property
    def scores(self) -> np.ndarray:
        """[sites, n] scores of the variants."""
        return self.correct[1:]

    @property
    def vector(self) -> np.ndarray:
        """[sites] mean change of the score against the base: the task-layer interaction vector (paper, eq. 1 and 2).

        Over the samples on which both were evaluated; NaN for a site that was evaluated on none.
        """
        change = self.scores - self.base
        there = np.isfinite(change)
        total = np.where(there, change, 0.0).sum(axis=1)
        return np.divide(total, there.sum(axis=1), out=np.full(len(total), np.nan), where=there.any(axis=1))

    @property
    def unanswered(self) -> np.ndarray | None:
        """[sites + 1] share of samples in which no answer could be read; row 0 is the base.

        NaN for a row that was not evaluated; None if the scorer does not say.
        """
        if self.answered is None:
            return None
        there = np.isfinite(self.answered)
        missed = np.where(there, self.answered == 0, False).sum(axis=1)
        return np.divide(missed, there.sum(axis=1), out=np.full(len(missed), np.nan), where=there.any(axis=1))

    def answers(self, site: int | None = None) -> Answers:
        """What belongs beside the base's mean score, and beside that of one site."""
        rows = [0] if site is None else [0, site + 1]
        known = self.unanswered is not None and np.isfinite(self.unanswered[rows]).all()
        shares = tuple(float(self.unanswered[row]) for row in rows) if known and self.unanswered is not None else None
        return Answers(shares, self.constant, self.constant_letter, self.chance)

    def to_pandas(self) -> pandas.DataFrame:
        """A frame of scores: one row for the base and one per site, one column per sample."""
        import pandas as pd

        rows = pd.Index(["base", *(str(surgery) for surgery in self.surgeries)], name="variant")
        return pd.DataFrame(self.correct, index=rows, columns=pd.Index(self.samples, name="sample"))

    def plot(self, **settings: Any) -> Figure:
        """A bar chart of `vector` by layer; needs matplotlib (`pip install 'layersurgery[plots]'`)."""
        from layersurgery.report import plot_vector

        return plot_vector(self, **settings)

    def __str__(self) -> str:
        base = float(np.nanmean(self.base))
        lines = [f"base {base:.3f} on {len(self.samples)} samples" if self.per_sample else f"base {base:.4g}"]
        if beside := str(self.answers()):
            lines[0] += f" ({beside})"
        if self.under is not None:
            lines[0] += f", under {self.under}"
        shown = self.sites if self.is_of_one_kind else [surgery.steps[-1] for surgery in self.surgeries]
        for site, change, name in zip(self.sites, self.vector, shown, strict=True):
            layer = "-" if site.layer is None else str(site.layer)
            lines.append(f"{layer:>5}  {change:+.3f}  {name}")
        return "\n".join([lines[0], "layer  change  site", *lines[1:], *self.notes])

    @property
    def is_of_one_kind(self) -> bool:
        """Whether the same was done at all sites, so that a site's name tells which variant it is."""
        return len({surgery.steps[-1].do for surgery in self.surgeries}) == 1
