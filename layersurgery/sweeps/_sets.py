"""`SetOracle`: scores of sets of sites that are changed together."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from layersurgery.scoring import Reading
from layersurgery.sites import Sites
from layersurgery.surgery import Surgery
from layersurgery.sweeps._call import Scorer
from layersurgery.sweeps._oracle import ModelOracle
from layersurgery.sweeps._store_model import read_once
from layersurgery.sweeps._table import ScoreTable


class SetOracle:
    """Answers as `ModelOracle` does, of surgeries of several steps.

    Sets that differ in their last step only are evaluated together, with all other steps in force throughout, so that
    they share what lies below that last site.

    Args:
        model: the model, in evaluation mode.
        score: the scorer.
        samples: what the columns stand for.
        sets: the rows after the first, each once.
        base: what row 0 is; None: the unmodified model. One of the sets at least must be this and one step more.
        settings: further arguments of each `ModelOracle`.
    """

    def __init__(
        self,
        model: Any,
        score: Scorer,
        samples: Sequence[Any],
        *,
        sets: Iterable[Surgery],
        base: Surgery | None = None,
        **settings: Any,
    ) -> None:
        self._sets, self._base = tuple(sets), base
        together: dict[Surgery | None, list[Surgery]] = {}
        for one in self._sets:
            together.setdefault(without_last(one), []).append(one)
        with read_once():  # of gigabytes of weights, for a store
            self._oracles = {
                under: ModelOracle(
                    model,
                    score,
                    samples,
                    at=dict.fromkeys(one.steps[-1].site for one in ones),
                    do=dict.fromkeys(one.steps[-1].do for one in ones),
                    under=under,
                    **settings,
                )
                for under, ones in together.items()
            }
        self._places = [_place(self._oracles[without_last(one)], one) for one in self._sets]
        self._first = self._oracles[base]
        self._places.insert(0, (self._first, 0))

    @property
    def n_sites(self) -> int:
        """Number of variants."""
        return len(self._sets)

    @property
    def n_samples(self) -> int:
        """Number of samples that can be read."""
        return self._first.n_samples

    @property
    def sites(self) -> Sites:
        """The last site of each set."""
        return Sites.repeating(one.steps[-1].site for one in self._sets)

    @property
    def surgeries(self) -> tuple[Surgery, ...]:
        """The sets."""
        return self._sets

    @property
    def under(self) -> Surgery | None:
        """What row 0 is."""
        return self._base

    @property
    def groups(self) -> tuple[Hashable, ...] | None:
        """As `ModelOracle.groups`."""
        return self._first.groups

    @property
    def cells(self) -> int:
        """Cells known so far."""
        return sum(oracle.cells for oracle in self._oracles.values())

    @property
    def per_sample(self) -> bool | None:
        """Whether the scorer scores single samples; None before the first read."""
        known = [oracle.per_sample for oracle in self._oracles.values() if oracle.per_sample is not None]
        return known[0] if known else None

    @property
    def batch_size(self) -> int | None:
        """Most samples in one call of the scorer, as far as memory allowed so far; None: not known."""
        sizes = [oracle.batch_size for oracle in self._oracles.values() if oracle.batch_size is not None]
        return min(sizes, default=None)

    def read(self, rows: Iterable[int], columns: Iterable[int]) -> Reading:
        """Scores of these rows and columns; errors as of `ModelOracle.read`."""
        rows, columns = list(rows), list(columns)
        wanted: dict[ModelOracle, list[int]] = {}
        for row in rows:
            oracle, there = self._places[row]
            wanted.setdefault(oracle, []).append(there)
        found = {oracle: oracle.read(some, columns) for oracle, some in wanted.items()}
        at = [(found[oracle], wanted[oracle].index(row)) for oracle, row in (self._places[row] for row in rows)]
        margins = [None if one.margin is None else one.margin[row] for one, row in at]
        best = next((one.best for one in found.values() if one.best is not None), None)
        known = None if any(margin is None for margin in margins) else np.array(margins)
        return Reading(np.array([one.correct[row] for one, row in at]), known, best)

    def names(self, columns: Iterable[int] | None = None) -> tuple[str, ...]:
        """As `ModelOracle.names`."""
        return self._first.names(columns)

    def table(self, columns: Iterable[int] | None = None) -> ScoreTable:
        """As `ModelOracle.table`: None: all columns that row 0 was evaluated on."""
        wanted = self._first.columns if columns is None else list(columns)
        columns = None if self.per_sample is False else wanted
        tables = {oracle: oracle.table(columns) for oracle in self._oracles.values()}
        rows = [(tables[oracle], row) for oracle, row in self._places]
        first = rows[0][0]
        texts = [None if one.text is None else one.text[row] for one, row in rows]
        nothing = (None,) * len(first.samples)
        return ScoreTable(
            self.sites,
            self._sets,
            first.samples,
            np.array([one.correct[row] for one, row in rows]),
            _stacked([None if one.margin is None else one.margin[row] for one, row in rows], len(first.samples)),
            _stacked([None if one.answered is None else one.answered[row] for one, row in rows], len(first.samples)),
            None if all(text is None for text in texts) else tuple(text or nothing for text in texts),
            per_sample=first.per_sample,
            best=next((one.best for one in tables.values() if one.best is not None), None),
            notes=tuple(dict.fromkeys(note for one in tables.values() for note in one.notes)),
            constant=first.constant,
            constant_letter=first.constant_letter,
            chance=first.chance,
            under=self._base,
        )


def without_last(surgery: Surgery) -> Surgery | None:
    """All steps but the last; None: there is one only."""
    return Surgery.of(surgery.steps[:-1]) if len(surgery) > 1 else None


def extended(parents: Iterable[Surgery], steps: Iterable[Surgery]) -> list[Surgery]:
    """Every parent with each of the steps on top that is at another site, each set once, in whichever order."""
    steps, found = list(steps), dict[frozenset[Any], Surgery]()
    for parent in parents:
        for step in steps:
            if step.sites[0] not in parent.sites:
                both = parent + step
                found.setdefault(frozenset(both.steps), both)
    return list(found.values())


def _place(oracle: ModelOracle, one: Surgery) -> tuple[ModelOracle, int]:
    return oracle, oracle.surgeries.index(one) + 1


def _stacked(rows: Sequence[np.ndarray | None], columns: int) -> np.ndarray | None:
    if all(row is None for row in rows):
        return None
    return np.array([np.full(columns, np.nan) if row is None else row for row in rows])
