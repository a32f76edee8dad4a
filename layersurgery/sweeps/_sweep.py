"""`sweep`: every site on every sample."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

from layersurgery.interventions import Intervention, Zero
from layersurgery.scoring._scores import BatchSize
from layersurgery.sites import Site, select
from layersurgery.surgery import Surgery
from layersurgery.sweeps._call import Scorer
from layersurgery.sweeps._executor import Share
from layersurgery.sweeps._oracle import ModelOracle
from layersurgery.sweeps._store import Store, opened
from layersurgery.sweeps._table import ScoreTable


def sweep(
    model: Any,
    score: Scorer,
    samples: Sequence[Any],
    *,
    at: Site | Iterable[Site] | None = None,
    do: Intervention | Iterable[Intervention] | None = None,
    batch_size: BatchSize | None = None,
    progress: bool | str = False,
    store: Store | str | os.PathLike[str] | None = None,
    share: Share = True,
    under: Surgery | None = None,
) -> ScoreTable:
    """Score the unmodified model and, one site at a time, the model with that site changed (paper, section 3).

    Args:
        model: any model in evaluation mode, plain or nnsight-wrapped.
        score: `score(model, samples)`, giving one real number per sample (higher is better), one in all, or `Scores`.
        samples: the labelled samples; anything that the scorer understands.
        at: the sites; None: the attention of every layer of the language backbone, `select(model)`.
        do: the intervention; several: every site with each of them, in one table. None: `Zero()`.
        batch_size: most samples in one call of the scorer, halved where memory runs out; "auto": as many as there is
            memory for, up to the scorer's own `batch_size`, else 64; None: the latter.
        progress: show a bar with rate and time left on a terminal, or in a log a line every half minute; a string is
            its label.
        store: a file, or a `Store`, that each micro-batch is written to as soon as it was scored. What is there already
            is not evaluated again, so that a run that was killed goes on where it was. None: nothing is kept.
        share: let variants share what the unmodified model computes below their sites. Every score is the same to the
            last bit; where that cannot be had the model runs in full, and `table.notes` says why. False: always in
            full. "all": also run calls of a few tokens for all variants at once, and let them write their texts at once
            in half precision, too, which may change a score in its last digits.
        under: a surgery that is in force throughout, so that the table tells what each site does on top of it.

    Returns:
        The table of scores; `table.vector` is the task-layer interaction vector.

    Raises:
        SampleError: if there are no samples.
        ScoringError: if the model is in training mode, the scorer fails or returns something else, or a site never
            runs.
        SurgeryError: if an intervention cannot be done on this model.
        SelectionError: if there are no such sites, or one is given twice.
        StoreError: if the store cannot be opened or written, or the model, the scorer or a sample cannot be told from
            others.

    Examples:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)).eval()
        >>> def score(model, samples):
        ...     return [-abs(model(torch.tensor([x])).item()) for x in samples]
        >>> table = sweep(model, score, [0.5, 1.0, 2.0], at=select(model, pattern="*"))
        >>> table.scores.shape, table.vector.shape
        ((2, 3), (2,))
    """
    with nullcontext() if store is None else opened(store) as kept:
        oracle = ModelOracle(
            model,
            score,
            samples,
            at=select(model) if at is None else at,
            do=Zero() if do is None else do,
            batch_size=batch_size,
            progress=progress,
            store=kept,
            share=share,
            under=under,
        )
        oracle.read(range(oracle.n_sites + 1), range(oracle.n_samples))
        return oracle.table()
