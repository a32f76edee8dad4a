"""How evaluations are run: the interface that an oracle sees, whatever is behind it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from layersurgery.scoring import Scores
from layersurgery.scoring._scores import BatchSize
from layersurgery.sites import Sites
from layersurgery.surgery import Surgery
from layersurgery.sweeps._call import Scorer

Share = bool | Literal["all"]


@dataclass(frozen=True, eq=False)
class Job:
    """What there is to evaluate: `rows` of variants by columns of samples.

    Args:
        model: the model, in evaluation mode, plain or nnsight-wrapped.
        score: the scorer.
        samples: what the columns stand for.
        names: what the samples are called in messages.
        sites: what the rows after the first stand for.
        surgeries: what the variants are, in the order of `sites`: put in force on top of `under`.
        batch_size: most samples in one call of the scorer; "auto": as many as there is memory for; None: the scorer's
            own `batch_size`, else the executor's choice.
        share: let variants share what the unmodified model computes below their sites; "all": also run short calls of
            all variants as one batch, and decode texts of all as one in half precision, which may round otherwise.
        under: a surgery that is in force throughout, in the base too, and that the executor puts in force and lifts.
    """

    model: Any
    score: Scorer
    samples: Sequence[Any]
    names: Sequence[str]
    sites: Sites
    surgeries: Sequence[Surgery]
    batch_size: BatchSize | None = None
    share: Share = True
    under: Surgery | None = None


@dataclass(frozen=True, eq=False)
class Result:
    """What the scorer said of one variant.

    Args:
        row: 0 is the base, i + 1 the model with site i changed.
        columns: the samples it was asked about.
        scores: one of each per sample, or one number in all.
    """

    row: int
    columns: list[int]
    scores: Scores | float


Wanted = Callable[[int, list[int]], list[int]]


class Executor(Protocol):
    """Runs the evaluations of a `Job`; the one that is used unless another is asked for is `LocalExecutor`.

    One that spreads the work over processes or machines needs nothing but these. Results may come in any order, and
    are kept as they come. It is made from a `Job` alone, and refuses there what cannot be done, before anything is
    evaluated.
    """

    @property
    def batch_size(self) -> int | None:
        """Most samples in one call of the scorer, as far as is known; None: all at once."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the results should know of how they were made."""
        ...

    def run(
        self, rows: Sequence[int], columns: Sequence[int], wanted: Wanted, *, whole: bool = False
    ) -> Generator[Result]:
        """Evaluate these rows on these columns, and give each result as soon as it is there.

        Args:
            rows: each once.
            columns: each once.
            wanted: tells which of some columns are still to be evaluated in a row; to be asked right before that is
                done, since other processes may have been faster.
            whole: all columns of a row belong into one call of the scorer, which gives one number in all.

        Raises:
            ScoringError: if the scorer fails, a site takes no part in what it does, or memory does not suffice.
        """
        ...
