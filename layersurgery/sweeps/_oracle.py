"""`ModelOracle`: scores of a real model and its variants, evaluated when they are asked for, and never twice."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from layersurgery.errors import LayerSurgeryWarning, SampleError, ScoringError, SurgeryError
from layersurgery.interventions import Intervention
from layersurgery.scoring import Reading, Scores
from layersurgery.sites import Site, Sites, unwrap
from layersurgery.surgery import Surgery
from layersurgery.surgery._resolve import resolve
from layersurgery.sweeps._answers import constant_answer
from layersurgery.sweeps._call import Scorer, call, check_samples, sample_name
from layersurgery.sweeps._cells import Cells
from layersurgery.sweeps._memory import free_memory, no_memory_for_all, no_memory_for_one, ran_out_of_memory
from layersurgery.sweeps._progress import Progress
from layersurgery.sweeps._store import Store, file_of
from layersurgery.sweeps._store_run import StoredRun
from layersurgery.sweeps._table import ScoreTable
from layersurgery.sweeps._watch import Uses, Watch


class ModelOracle:
    """Answers a decision rule's `read(rows, columns)` by running the model.

    Row 0 is the unmodified model, row i + 1 the model with site i changed.

    Per micro-batch of samples, the base runs first and then each variant, so that a scorer that keeps its last inputs
    prepares them once. Every cell is evaluated at most once. A scorer that gives one number for all samples is called
    once per row with all columns asked for; its number then stands in each of them.

    Where memory runs out, the micro-batch is halved, with a warning, and stays so; what was evaluated is kept.

    Args:
        model: the model, in evaluation mode.
        score: `score(model, samples)`, giving one number per sample, or one in all, or `Scores`.
        samples: what the columns stand for.
        at: the sites, one per row after the first.
        do: what happens at each site.
        batch_size: most samples in one call of the scorer; None: the scorer's own `batch_size`, else all at once.
        progress: show a bar with rate and time left on a terminal, or in a log a line every half minute; a string is
            its label.
        store: a file, or a `Store`, that each micro-batch is written to as soon as it was scored, and that what is
            there already is taken from; None: nothing is kept.

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
        do: Intervention,
        batch_size: int | None = None,
        progress: bool | str = False,
        store: Store | str | os.PathLike[str] | None = None,
    ) -> None:
        self._model = model
        self._score = score
        self._samples = check_samples(samples)
        self._names = [sample_name(sample, index) for index, sample in enumerate(self._samples)]
        self._sites = Sites([at] if isinstance(at, Site) else at)
        if not len(self._sites):
            raise SurgeryError("at= holds no site; use layersurgery.select(model) to find some")
        self._surgeries = tuple(Surgery(at=site, do=do) for site in self._sites)
        self._batch_size = _checked_batch_size(batch_size, score)
        self._untold: list[str] = []
        self._progress = Progress(_label(progress))
        module = unwrap(model)
        _check_ready(module, score)
        for surgery in self._surgeries:  # refuse what cannot be done before anything is evaluated
            resolve(module, surgery.steps)
        self._watch = Watch(module, self._sites)
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
                surgeries=(None, *self._surgeries),
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
        """What the rows after the first stand for."""
        return self._sites

    @property
    def surgeries(self) -> tuple[Surgery, ...]:
        """The variants themselves."""
        return self._surgeries

    @property
    def batch_size(self) -> int | None:
        """Most samples in one call of the scorer, as far as memory allowed so far; None: all at once."""
        return None if self._batch_size == _ALL else self._batch_size

    def read(self, rows: Iterable[int], columns: Iterable[int]) -> Reading:
        """Scores of these rows and columns, evaluating what was not evaluated before.

        Raises:
            SampleError: if a row or column is out of range, or there is none.
            ScoringError: if the scorer fails; what was evaluated before stays available.
            StoreError: if the store can no longer be read or written; what was evaluated before stays available.
        """
        rows, columns = _indices(rows, self.n_sites + 1, "row"), _indices(columns, self.n_samples, "column")
        with self._watch.watching():
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
            return self._cells.totals_table(self._sites, self._surgeries)
        wanted = self._cells.columns() if columns is None else _indices(columns, self.n_samples, "column")
        constant = constant_answer([self._samples[column] for column in wanted])
        return self._cells.table(self._sites, self._surgeries, self._names, wanted, constant)

    def names(self, columns: Iterable[int] | None = None) -> tuple[str, ...]:
        """What the samples of these columns are called; None: those that the base was last evaluated on."""
        wanted = self._cells.columns() if columns is None else _indices(columns, self.n_samples, "column")
        return tuple(self._names[column] for column in wanted)

    def _evaluate_missing(self, rows: list[int], columns: list[int]) -> None:
        missing = sum(len(self._unknown(row, columns)) for row in dict.fromkeys(rows))
        if not missing:
            return
        with self._progress.over(missing) as evaluated:
            start = 0
            while start < len(columns):
                batch = columns[start : start + self._batch_size]
                if self._evaluate_batch(rows, batch, evaluated):
                    start += len(batch)
                if self.per_sample is False:
                    return

    def _evaluate_batch(self, rows: list[int], batch: list[int], evaluated: Callable[[int], None]) -> bool:
        """Whether base and variants now stand for this micro-batch; if not, it was too large for the memory.

        What stands already is not evaluated again when the rest of its micro-batch is, in smaller ones. A variant may
        then be compared with a base of another batch size: the same samples in other company, which changes float noise
        and nothing else.
        """
        for row in rows:
            wanted = self._unknown(row, batch, evaluated)
            if not wanted:
                continue
            scores = self._attempt(row, wanted)
            if scores is None:
                return False
            self._learn_kind(isinstance(scores, Scores))
            if not isinstance(scores, Scores):
                self._take_total(row, wanted, scores)
                return False
            self._take(row, wanted, scores)
            evaluated(len(wanted))
        return True

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
            self._tell()
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
        with self._progress.over(len(wanted) * len(columns)) as evaluated:
            for row in wanted:
                total = self._attempt(row, columns)
                if not isinstance(total, float):
                    raise ScoringError(
                        "the scorer gave one number per sample, after one in all before; it must keep to one"
                    )
                self._take_total(row, columns, total)
                evaluated(len(columns))
        return Reading(np.repeat([[known[row]] for row in rows], len(columns), axis=1))

    def _attempt(self, row: int, columns: list[int]) -> Scores | float | None:
        """The scorer's answer; None if memory ran out and a smaller batch may be tried, which is what comes next."""
        try:
            return self._call(row, columns)
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            where = "the unmodified model" if row == 0 else f"site {str(self._sites[row - 1])!r}"
            if self.per_sample is False:
                raise ScoringError(no_memory_for_all(len(columns), where, error)) from error
            if len(columns) == 1:
                raise ScoringError(no_memory_for_one(self._names[columns[0]], where, error)) from error
        # Not before the error is gone: its frames hold the tensors of the call that failed.
        free_memory()
        self._batch_size = len(columns) // 2
        self._untold.append(
            f"out of memory with {len(columns)} samples at once; going on with {self._batch_size}. Give "
            f"batch_size={self._batch_size} to start with that"
        )
        self._tell()
        return None

    def _tell(self) -> None:
        """Of smaller batches, as soon as it is known that there are any: a scorer of one number in all has none."""
        while self.per_sample and self._untold:
            warnings.warn(self._untold.pop(0), LayerSurgeryWarning, stacklevel=2)

    def _call(self, row: int, columns: list[int]) -> Scores | float:
        samples = [self._samples[column] for column in columns]
        names = [self._names[column] for column in columns]
        if row == 0:
            return call(self._score, self._model, samples, names, "the unmodified model")
        surgery, site = self._surgeries[row - 1], self._sites[row - 1]
        self._watch.forget()
        with surgery(self._model):
            scores = call(self._score, self._model, samples, names, f"site {str(site)!r}")
            by_weights = surgery.steps[0].do.what == "parameters"
            ran = self._watch.ran(site) or (by_weights and self._is_used(site, samples[:1], names[:1]))
            if not ran:
                raise ScoringError(
                    f"site {str(site)!r} never ran while samples {names[0]!r} to {names[-1]!r} were scored, so "
                    "nothing is known of it. Leave it out, or make sure that the scorer runs this part of the model"
                )
        return scores

    def _is_used(self, site: Site, samples: Sequence[Any], names: Sequence[str]) -> bool:
        """Whether a module that was not called lends its parameters to one that was (torch's multi-head attention)."""
        with Uses(self._watch.parameters(site)) as uses:
            call(self._score, self._model, samples, names, f"site {str(site)!r}")
        return uses.seen


_ALL = 2**62  # as a batch size: all at once


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


def _checked_batch_size(batch_size: int | None, score: Any) -> int:
    size = batch_size if batch_size is not None else getattr(score, "batch_size", None)
    if size is None:
        return _ALL
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise SampleError(f"batch_size={size!r}: give a whole number >= 1, or None")
    return size


def _check_ready(module: Any, score: Callable[..., Any]) -> None:
    if not callable(score):
        raise ScoringError(f"score={score!r} is not callable; give a function score(model, samples)")
    name = next(_in_training(module), None)
    if name is not None:
        raise ScoringError(
            f"{name} is in training mode: dropout and batch statistics would make scores random. Call "
            "model.eval() first"
        )


def _in_training(module: Any) -> Iterator[str]:
    return (name or type(module).__name__ for name, part in module.named_modules() if part.training)
