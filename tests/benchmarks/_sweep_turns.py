"""A sweep that lets others have their turn after each of its evaluations."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import layersurgery as ls
from layersurgery.sweeps import Result
from layersurgery.sweeps._executor import Share, Wanted
from layersurgery.sweeps._local import LocalExecutor


def in_turns(
    model: Any,
    score: Callable[..., Any],
    samples: Sequence[Any],
    at: Any,
    batch_size: int,
    turn: Callable[[Result], None],
    share: Share = True,
) -> ls.ScoreTable:
    """What `ls.sweep` does and gives, with a call of `turn` after each variant of each micro-batch.

    The first call comes as soon as the first result is there.
    """

    class TakingTurns(LocalExecutor):
        def run(
            self, rows: Sequence[int], columns: Sequence[int], wanted: Wanted, *, whole: bool = False
        ) -> Generator[Result]:
            for result in super().run(rows, columns, wanted, whole=whole):
                yield result
                turn(result)

    oracle = ls.ModelOracle(
        model, score, samples, at=at, do=ls.Zero(), batch_size=batch_size, share=share, executor=TakingTurns
    )
    oracle.read(range(oracle.n_sites + 1), range(oracle.n_samples))
    return oracle.table(range(oracle.n_samples))
