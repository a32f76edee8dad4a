"""`ModelOracle`: scores of a real model and its variants, evaluated when they are asked for, and never twice."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np

from layersurgery._fields import field_of
from layersurgery.errors import SampleError, ScoringError, SurgeryError
from layersurgery.interventions import Intervention
from layersurgery.scoring import Reading, Scores
from layersurgery.scoring._scores import BatchSize
from layersurgery.sites import Site, Sites
from layersurgery.surgery import Surgery
from layersurgery.sweeps._answers import chance_level, constant_answer
from layersurgery.sweeps._call import Scorer, check_samples, sample_name
from layersurgery.sweeps._cells import Cells
from layersurgery.sweeps._executor import Executor, Job, Share
from layersurgery.sweeps._local import LocalExecutor
from layersurgery.sweeps._progress import Progress
from layersurgery.sweeps._store import Store, file_of
from layersurgery.sweeps._store_run import StoredRun
from layersurgery.sweeps._table import ScoreTable


class ModelOracle:
    """Answers a decision rule's `read(rows, columns)` by running the model.

    Row 0 is the unmodified model, row i + 1 the model with site i changed. Given several interventions, each site has a
    row for each of them. Given a surgery to work under, that is in force in all rows, the first included.

    Every cell is evaluated at most once, by an executor (`LocalExecutor` says how). A scorer that gives one number for
    all samples is called once per row with all columns asked for; its number then stands in each of them.

    Args:
        model: the model, in evaluation mode.
        score: `score(model, samples)`, giving one number per sample, or one in all, or `Scores`.
        samples: what the columns stand for.
        at: the sites, one per row after the first.
        do: what happens at each site; several, of which each site then has a row for each.
        batch_size: most samples in one call of the scorer; "auto": as many as there is memory for, up to the scorer's
            own `batch_size`, else 64; None: the latter.
        progress: show a bar with rate and time left on a terminal, or in a log a line every half minute; a string is
            its label.
        store: a file, or a `Store`, that each micro-batch is written to as soon as it was scored, and that what is
            there already is taken from; None: nothing is kept.
        share: let variants share what the unmodified model computes below their sites, as in `sweep`.
        executor: makes of a `Job` what runs the evaluations.
        under: a surgery that is in force in all rows, so that row 0 is the model with it; None: nothing is.

    Attributes:
        cells: cells (row and sample) known so far.
        recalled: how many of them were taken from the store, and not evaluated.
        per_sample: whether the scorer scores single samples; None before the first read.

    Raises:
        SampleError: if there are no samples.
        ScoringError: if the model is in training mode or `score` cannot be called; on reading: if the scorer fails, a
            site takes no part in what it does, or memory does not suffice for a single sample.
        SurgeryError: if a surgery cannot be done on this model.
        StoreError: if the store cannot be opened or written, or the model, the scorer or a sample cannot be told from
            others; on reading: if the store can no longer be written. What could not be written is kept, and written
            at the next reading.
    """

    def __init__(
        self,
        model: Any,
        score: Scorer,
        samples: Sequence[Any],
        *,
        at: Site | Iterable[Site],
        do: Intervention | Iterable[Intervention],
        batch_size: BatchSize | None = None,
        progress: bool | str = False,
        store: Store | str | os.PathLike[str] | None = None,
        share: Share = True,
        executor: Callable[[Job], Executor] = LocalExecutor,
        under: Surgery | None = None,
    ) -> None:
        self._samples = check_samples(samples)
        self._names = [sample_name(sample, index) for index, sample in enumerate(self._samples)]
        steps = _variants(at, do)
        self._under = under
        self._sites = Sites.repeating(step.sites[0] for step in steps)
        self._surgeries = tuple(step if under is None else under + step for step in steps)
        self._progress = Progress(_label(progress))
        job = Job(model, score, self._samples, self._names, self._sites, steps, batch_size, share, under)
        self._executor: Executor = executor(job)
        self._cells = Cells(len(self._sites) + 1, len(self._samples))
        self.per_sample: bool | None = None
        self.cells = 0
        self.recalled = 0
        self._stored: StoredRun | None = None
        if store is not None:
            self._stored = StoredRun(
                file_of(store),
                model,
                score,
                samples=self._samples,
                names=self._names,
                surgeries=(under, *self._surgeries),
            )

    @property
    def n_sites(self) -> int:
        """Number of variants."""
        return len(self._sites)

    @property
    def n_samples(self) -> int:
        """Number of samples that can be read."""
        return len(self._samples)

    @property
    def sites(self) -> Sites:
        """Where the rows after the first change the model; one of several interventions' sites once for each."""
        return self._sites

    @property
    def groups(self) -> tuple[Hashable, ...] | None:
        """Of each sample, what its `group` names, so that samples of one group can be told; None: no sample has any."""
        groups = [field_of(sample, "group") for sample in self._samples]
        if all(group is None for group in groups):
            return None
        return tuple((index,) if group is None else group for index, group in enumerate(groups))

    @property
    def surgeries(self) -> tuple[Surgery, ...]:
        """The variants themselves, each with what is in force in all rows."""
        return self._surgeries

    @property
    def under(self) -> Surgery | None:
        """What is in force in all rows."""
        return self._under

    @property
    def batch_size(self) -> int | None:
        """Most samples in one call of the scorer, as far as memory allowed so far; None: not known."""
        return self._executor.batch_size

    def read(self, rows: Iterable[int], columns: Iterable[int]) -> Reading:
        """Scores of these rows and columns, evaluating what was not evaluated before.

        Raises:
            SampleError: if a row or column is out of range, or there is none.
            ScoringError: if the scorer fails; what was evaluated before stays available.
            StoreError: if the store can no longer be read or written; what was evaluated before stays available.
        """
        rows, columns = _indices(rows, self.n_sites + 1, "row"), _indices(columns, self.n_samples, "column")
        if self._stored is not None and self.per_sample is None:
            self._learn_kind(self._stored.per_sample())
        if self.per_sample is not False:
            self._evaluate_missing(rows, columns)
        if self.per_sample is False:  # found out just now, perhaps
            return self._read_totals(rows, columns)
        return self._cells.reading(rows, columns)

    def table(self, columns: Iterable[int] | None = None) -> ScoreTable:
        """What was evaluated so far, on these columns in this order; None: on all that the base was evaluated on.

        Raises:
            SampleError: if a column is out of range, or there is none.
        """
        if self.per_sample is False:
            totals = self._cells.totals_table(self._sites, self._surgeries)
            return replace(totals, notes=self._executor.notes, under=self._under)
        wanted = self.columns if columns is None else _indices(columns, self.n_samples, "column")
        asked = [self._samples[column] for column in wanted]
        table = self._cells.table(self._sites, self._surgeries, self._names, wanted, constant_answer(asked))
        chance = None if table.constant is None else chance_level(asked)
        return replace(table, notes=self._executor.notes, chance=chance, under=self._under)

    @property
    def columns(self) -> list[int]:
        """The columns that row 0 was evaluated on; of a scorer of one number in all, the last ones."""
        return self._cells.columns()

    def names(self, columns: Iterable[int] | None = None) -> tuple[str, ...]:
        """What the samples of these columns are called; None: those that the base was last evaluated on."""
        wanted = self.columns if columns is None else _indices(columns, self.n_samples, "column")
        return tuple(self._names[column] for column in wanted)

    def _evaluate_missing(self, rows: list[int], columns: list[int]) -> None:
        rows = list(dict.fromkeys(rows))
        missing = sum(len(self._unknown(row, columns)) for row in rows)
        if not missing:
            return
        with self._progress.over(missing) as evaluated:

            def wanted(row: int, some: list[int]) -> list[int]:
                return self._unknown(row, some, evaluated)

            with closing(self._executor.run(rows, columns, wanted)) as results:
                for result in results:
                    self._learn_kind(isinstance(result.scores, Scores))
                    if not isinstance(result.scores, Scores):
                        self._take_total(result.row, result.columns, result.scores)
                        return
                    self._take(result.row, result.columns, result.scores)
                    evaluated(len(result.columns))

    def _unknown(self, row: int, columns: list[int], known: Callable[[int], None] | None = None) -> list[int]:
        """Which columns are still to be evaluated: another process may have stored some since they were asked for."""
        missing = self._cells.missing(row, columns)
        if self._stored is None or not missing:
            return missing
        found = self._stored.cells(row, missing)
        self._cells.restore(row, found)
        self.cells += len(found)
        self.recalled += len(found)
        if known is not None and found:
            known(len(found))
        return [column for column in missing if column not in found]

    def _take(self, row: int, columns: list[int], scores: Scores) -> None:
        """Keep what was evaluated, in the store first."""
        all_new = self._stored is None or self._stored.keep(row, columns, scores)
        self._cells.store(row, columns, scores)
        if self._stored is not None and not all_new:  # another process was faster, and who goes on from here has its
            self._cells.restore(row, self._stored.cells(row, columns))
        self.cells += len(columns)

    def _take_total(self, row: int, columns: list[int], total: float) -> None:
        if self._stored is not None:
            self._stored.keep_total(row, columns, total)
        self._cells.totals.setdefault(tuple(columns), {})[row] = total
        self.cells += len(columns)

    def _learn_kind(self, single: bool | None) -> None:
        if single is None:
            return
        if self.per_sample is None:
            self.per_sample = single
        if self.per_sample and not single:
            raise ScoringError(
                "the scorer gave one number in all, after one number per sample before; it must keep to one"
            )

    def _read_totals(self, rows: list[int], columns: list[int]) -> Reading:
        known = self._cells.totals.setdefault(tuple(columns), {})
        wanted = [row for row in dict.fromkeys(rows) if row not in known]
        if self._stored is not None and wanted:
            found = self._stored.totals(wanted, columns)
            known.update(found)
            self.cells += len(found) * len(columns)
            self.recalled += len(found) * len(columns)
            wanted = [row for row in wanted if row not in found]
        with (
            self._progress.over(len(wanted) * len(columns)) as evaluated,
            closing(self._executor.run(wanted, columns, lambda _, some: some, whole=True)) as results,
        ):
            for result in results:
                if isinstance(result.scores, Scores):
                    raise ScoringError(
                        "the scorer gave one number per sample, after one in all before; it must keep to one"
                    )
                self._take_total(result.row, columns, result.scores)
                evaluated(len(columns))
        return Reading(np.repeat([[known[row]] for row in rows], len(columns), axis=1))


def _variants(at: Site | Iterable[Site], do: Intervention | Iterable[Intervention]) -> tuple[Surgery, ...]:
    """Every intervention at every site, site by site."""
    sites = Sites([at] if isinstance(at, Site) else at)
    if not len(sites):
        raise SurgeryError("at= holds no site; use layersurgery.select(model) to find some")
    several = [do] if isinstance(do, Intervention) or not isinstance(do, Iterable) else list(do)
    if not several:
        raise SurgeryError("do= holds no intervention; give one, such as layersurgery.Zero(), or a list of some")
    twice = next((one for number, one in enumerate(several) if one in several[:number]), None)
    if twice is not None:
        raise SurgeryError(f"do= holds {twice!r} twice; give each intervention once")
    return tuple(Surgery(at=site, do=one) for site in sites for one in several)


def _label(progress: bool | str) -> str | None:
    if not progress:
        return None
    return progress if isinstance(progress, str) else "evaluating"


def _indices(values: Iterable[int], count: int, what: str) -> list[int]:
    indices = [int(value) for value in values]
    if not indices:
        raise SampleError(f"read needs at least one {what}")
    for index in indices:
        if not 0 <= index < count:
            raise SampleError(f"{what} {index} is out of range: there are {count}, 0 to {count - 1}")
    return indices
