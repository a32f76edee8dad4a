"""`LocalExecutor`: one evaluation after the other, in this process."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

from layersurgery.errors import LayerSurgeryWarning, SampleError, ScoringError
from layersurgery.scoring import Scores
from layersurgery.scoring._scores import MOST, BatchSize
from layersurgery.sites import unwrap
from layersurgery.surgery import Surgery
from layersurgery.surgery._resolve import resolve
from layersurgery.sweeps._call import call
from layersurgery.sweeps._executor import Job, Result, Wanted
from layersurgery.sweeps._fit import most_that_fit
from layersurgery.sweeps._memory import free_memory, no_memory_for_all, no_memory_for_one, ran_out_of_memory
from layersurgery.sweeps._sharing import Sharing
from layersurgery.sweeps._watch import Uses, Watch


class LocalExecutor:
    """Runs the evaluations of a job one after the other, on the model itself.

    Per micro-batch of samples, the base runs first and then each variant, so that a scorer that keeps its last inputs
    prepares them once, and that variants can share what the base computes below their sites. Long samples come first,
    where the scorer says how long they are (`length(sample)`), so that those in a batch are of a length.

    Where as many samples as fit are asked for, the unmodified model is run on one of them first, the longest, to see
    what that takes. Where memory runs out, the micro-batch is halved, with a warning, and stays so; what was evaluated
    is kept. Where what variants share does not fit into the memory at hand, it is halved before anything stands.

    Args:
        job: what there is to evaluate.

    Raises:
        SampleError: if the batch size is neither a whole number above 0 nor "auto".
        ScoringError: if the model is in training mode or the scorer cannot be called.
        SurgeryError: if a surgery cannot be done on this model.
    """

    def __init__(self, job: Job) -> None:
        module = unwrap(job.model)
        self._job = job
        self._most, self._seeks_most = _checked_batch_size(job.batch_size, job.score)
        _check_ready(module, job.score)
        if job.share not in (True, False, "all"):
            raise ScoringError(f"share={job.share!r}: give True, False or 'all'")
        for surgery in job.surgeries:  # refuse what cannot be done before anything is evaluated
            resolve(module, (*(job.under or ()), *surgery.steps))
        self._watch = Watch(module, job.sites)
        self._sharing = Sharing(module, job.sites, job.share)
        self._pays_to_share = False
        self._untold: list[str] = []

    @property
    def batch_size(self) -> int:
        """Most samples in one call of the scorer, as far as memory allowed so far."""
        return self._most

    @property
    def notes(self) -> tuple[str, ...]:
        """What variants did not share, and why."""
        return self._sharing.notes

    def run(
        self, rows: Sequence[int], columns: Sequence[int], wanted: Wanted, *, whole: bool = False
    ) -> Generator[Result]:
        """Evaluate these rows on these columns: see `Executor.run`."""
        left = self._in_order(columns)
        in_force = nullcontext() if self._job.under is None else self._job.under(self._job.model)
        try:
            with in_force, self._watch.throughout():
                self._look_ahead(rows, left, wanted, whole)
                while left:
                    batch = left if whole else left[: self._most]
                    all_done = yield from self._run_batch(sorted(rows), batch, wanted, whole)
                    if all_done:
                        left = left[len(batch) :]
        finally:
            self._sharing.forget()

    def _look_ahead(self, rows: Sequence[int], left: list[int], wanted: Wanted, whole: bool) -> None:
        """Settle how many samples to run at once, and whether variants are to share what the base computes."""
        variants = len(set(rows) - {0})
        new = len(wanted(max(rows), left)) if variants or self._seeks_most else 0
        if self._seeks_most and new > 1 and not whole:
            self._most = most_that_fit(unwrap(self._job.model), lambda: self._scored(0, left[:1]), self._most)
            self._seeks_most = False
        size = min(self._most, len(left))
        # The base pays for what is kept, and the first variant for the check.
        self._pays_to_share = variants * len(left) > 2 * size
        if variants:
            self._sharing.expect(variants * math.ceil(new / max(1, size)))

    def _run_batch(
        self, rows: list[int], batch: list[int], wanted: Wanted, whole: bool
    ) -> Generator[Result, None, bool]:
        """Whether base and variants now stand for this micro-batch; if not, it was too large for the memory.

        What stands already is not evaluated again when the rest of its micro-batch is, in smaller ones. A variant may
        then be compared with a base of another batch size: the same samples in other company, which changes float noise
        and nothing else.
        """
        order = self._sharing.in_order([row for row in rows if wanted(row, batch)])
        for position, row in enumerate(order):
            columns = wanted(row, batch)
            if not columns:
                continue
            scores = self._attempt(row, columns, order[position:], whole)
            if scores is None:
                return False
            if row == 0 and len(columns) > 1 and not whole and self._sharing.wants_fewer():
                self._most = len(columns) // 2
                return False
            if isinstance(scores, Scores):
                self._tell()
            yield Result(row, columns, scores)
        return True

    def _attempt(self, row: int, columns: list[int], left: list[int], whole: bool) -> Scores | float | None:
        """The scorer's answer; None if memory ran out and a smaller batch may be tried, which is what comes next."""
        try:
            return self._evaluate(row, columns, left)
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            where = _where(self._job, row)
            if whole:
                raise ScoringError(no_memory_for_all(len(columns), where, error)) from error
            if len(columns) == 1:
                raise ScoringError(no_memory_for_one(self._job.names[columns[0]], where, error)) from error
        # Not before the error is gone: its frames hold the tensors of the call that failed.
        self._sharing.forget()
        free_memory()
        self._most = len(columns) // 2
        self._untold.append(
            f"out of memory with {len(columns)} samples at once; going on with {self._most}. Give "
            f"batch_size={self._most} to start with that"
        )
        return None

    def _tell(self) -> None:
        """Of smaller batches, once it is known that there are any: a scorer of one number in all has none."""
        while self._untold:
            warnings.warn(self._untold.pop(0), LayerSurgeryWarning, stacklevel=2)

    def _evaluate(self, row: int, columns: list[int], left: list[int]) -> Scores | float:
        """One variant on some samples; `left` are the rows that are still to come for them, this one included."""
        job = self._job

        def scored() -> Scores | float:
            return self._scored(row, columns)

        def ahead() -> Scores | float:
            return self._scored(next(filter(None, left)), columns)

        def to_come() -> list[Surgery]:
            return [job.surgeries[other - 1] for other in left if other]

        if row == 0:
            if not self._pays_to_share:
                return scored()
            # A scorer that says how many samples it takes gives a score for each; of others it is not known yet.
            knows = any(left) and hasattr(job.score, "batch_size")
            return self._sharing.base(columns, to_come(), scored, ahead if knows else None)
        site, surgery = job.sites[row - 1], job.surgeries[row - 1]
        if len(left) > 2 and self._sharing.lacks(columns):  # recalled from a store, or read before
            self._sharing.base(columns, to_come(), lambda: self._scored(0, columns), ahead)
        self._sharing.prepare(columns, to_come)
        ran = self._sharing.ran(surgery, columns)
        with self._watch.on(site) if ran is None else nullcontext():
            scores = self._sharing.variant(surgery, columns, scored)
        ran = self._watch.ran(site) if ran is None else ran
        if not ran and not (surgery.steps[0].do.what == "parameters" and self._is_used(row, columns[0])):
            first, last = job.names[columns[0]], job.names[columns[-1]]
            raise ScoringError(
                f"site {str(site)!r} never ran while samples {first!r} to {last!r} were scored, so "
                "nothing is known of it. Leave it out, or make sure that the scorer runs this part of the model"
            )
        return scores

    def _is_used(self, row: int, column: int) -> bool:
        """Whether a module that was not called lends its parameters to one that was (torch's multi-head attention)."""
        with Uses(self._watch.parameters(self._job.sites[row - 1])) as uses:
            self._scored(row, [column])
        return uses.seen

    def _scored(self, row: int, columns: list[int]) -> Scores | float:
        """The scorer's answer on the model as it is now, said to be that of a row."""
        job = self._job
        samples, names = [job.samples[column] for column in columns], [job.names[column] for column in columns]
        return call(job.score, job.model, samples, names, lambda: _where(job, row))

    def _in_order(self, columns: Sequence[int]) -> list[int]:
        length: Callable[[Any], int] | None = getattr(self._job.score, "length", None)
        once = list(dict.fromkeys(columns))
        if length is None:
            return once
        return sorted(once, key=lambda column: -length(self._job.samples[column]))


def _where(job: Job, row: int) -> str:
    base = "the unmodified model" if job.under is None else f"the model under {job.under}"
    if row == 0:
        return base
    return f"site {str(job.sites[row - 1])!r}" + ("" if job.under is None else f" of {base}")


def _checked_batch_size(batch_size: BatchSize | None, score: Any) -> tuple[int, bool]:
    """The most samples in one call, and whether as many are sought as there is memory for."""
    own = getattr(score, "batch_size", None)
    size: Any = next((one for one in (batch_size, own) if one not in (None, "auto")), MOST)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise SampleError(f'batch_size={size!r}: give a whole number >= 1, "auto" or None')
    return size, (own if batch_size is None else batch_size) == "auto"


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
