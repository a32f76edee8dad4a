"""What an oracle remembers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from layersurgery.scoring import Reading, Scores
from layersurgery.sites import Sites
from layersurgery.surgery import Surgery
from layersurgery.sweeps._answers import ConstantAnswer
from layersurgery.sweeps._store_run import StoredCell
from layersurgery.sweeps._table import ScoreTable


class Cells:
    """Scores by row (variant) and column (sample), or by whole row where the scorer gives one number in all."""

    def __init__(self, rows: int, columns: int) -> None:
        self.correct = np.full((rows, columns), np.nan)
        self.margin = np.full((rows, columns), np.nan)
        self.answered = np.full((rows, columns), np.nan)
        self.text: list[list[str | None]] = [[None] * columns for _ in range(rows)]
        self.totals: dict[tuple[int, ...], dict[int, float]] = {}
        self.best: float | None = None

    def missing(self, row: int, columns: Iterable[int]) -> list[int]:
        """Which of these columns were not evaluated in this row."""
        return [column for column in dict.fromkeys(columns) if np.isnan(self.correct[row, column])]

    def store(self, row: int, columns: list[int], scores: Scores) -> None:
        """Keep what a scorer said of these columns."""
        self.correct[row, columns] = scores.correct
        self.best = scores.best if scores.best is not None else self.best
        if scores.margin is not None:
            self.margin[row, columns] = scores.margin
        if scores.answered is not None:
            self.answered[row, columns] = scores.answered
        if scores.text is not None:
            for column, text in zip(columns, scores.text, strict=True):
                self.text[row][column] = text

    def restore(self, row: int, found: Mapping[int, StoredCell]) -> None:
        """Keep what is stored of these columns, in place of anything that is there."""
        for column, cell in found.items():
            self.correct[row, column] = cell.correct
            self.margin[row, column] = np.nan if cell.margin is None else cell.margin
            self.answered[row, column] = np.nan if cell.answered is None else cell.answered
            self.text[row][column] = cell.text
            self.best = cell.best if cell.best is not None else self.best

    def reading(self, rows: list[int], columns: list[int]) -> Reading:
        """A rectangle that is known in full."""
        cells = np.ix_(rows, columns)
        margin = self.margin[cells]
        return Reading(self.correct[cells], None if np.isnan(margin).any() else margin, self.best)

    def columns(self) -> list[int]:
        """The columns that the base was evaluated on; of whole rows, the last ones."""
        if self.totals:
            return list(next(reversed(self.totals)))
        return [int(column) for column in np.flatnonzero(~np.isnan(self.correct[0]))]

    def table(
        self,
        sites: Sites,
        surgeries: tuple[Surgery, ...],
        names: list[str],
        columns: list[int],
        constant: ConstantAnswer | None,
    ) -> ScoreTable:
        """These columns, scored sample by sample."""
        correct = self.correct[:, columns]
        texts = [tuple(row[column] for column in columns) for row in self.text]
        comparable = np.isin(correct[~np.isnan(correct)], (0.0, 1.0)).all()  # else a share of letters is no score
        return ScoreTable(
            sites,
            surgeries,
            tuple(names[column] for column in columns),
            correct,
            _or_none(self.margin[:, columns]),
            _or_none(self.answered[:, columns]),
            tuple(texts) if any(text is not None for row in texts for text in row) else None,
            best=self.best,
            constant=constant.score if constant and comparable else None,
            constant_letter=constant.letter if constant and comparable else None,
        )

    def totals_table(self, sites: Sites, surgeries: tuple[Surgery, ...]) -> ScoreTable:
        """The last whole rows: one number each."""
        last = next(reversed(self.totals.values()), {})
        correct = np.array([[last.get(row, np.nan)] for row in range(len(sites) + 1)])
        return ScoreTable(sites, surgeries, ("all",), correct, per_sample=False)


def _or_none(values: np.ndarray) -> np.ndarray | None:
    return None if np.isnan(values).all() else values
