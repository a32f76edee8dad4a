"""`sweep_pairs`: every two sites together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from layersurgery._labels import labels_of
from layersurgery.errors import SelectionError
from layersurgery.interventions import Intervention, Zero
from layersurgery.scoring._scores import BatchSize
from layersurgery.sites import Site, Sites, select
from layersurgery.surgery import Surgery
from layersurgery.sweeps._call import Scorer
from layersurgery.sweeps._executor import Share
from layersurgery.sweeps._sets import SetOracle, extended
from layersurgery.sweeps._store import Store, opened
from layersurgery.sweeps._table import ScoreTable

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class PairTable:
    """What every site and every two sites do to the score.

    Args:
        sites: the sites.
        table: the scores, sample by sample: of the unmodified model, of each site, and of each two sites.
    """

    sites: Sites
    table: ScoreTable

    @property
    def matrix(self) -> np.ndarray:
        """[sites, sites] mean change of the score against the unmodified model, symmetric; the diagonal: one site."""
        found = np.full((len(self.sites), len(self.sites)), np.nan)
        places = {site: number for number, site in enumerate(self.sites)}
        for surgery, change in zip(self.table.surgeries, self.table.vector, strict=True):
            one, other = places[surgery.sites[0]], places[surgery.sites[-1]]
            found[one, other] = found[other, one] = change
        return found

    @property
    def interaction(self) -> np.ndarray:
        """[sites, sites] how much more two sites change together than one by one; nan on the diagonal.

        Below 0 where either makes up for the other, or both gain on the same samples.
        """
        alone = np.diag(self.matrix)
        found = self.matrix - alone[:, None] - alone
        np.fill_diagonal(found, np.nan)
        return found

    @property
    def best(self) -> Surgery | None:
        """The site or pair with the highest mean score, on these samples; None: none beats the unmodified model.

        A pair only if it beats every single site. It is the best of many on the samples by which it is chosen, so its
        score there is too high: `talo(max_sites=2)` decides with a gate, and checks on other samples.
        """
        vector = self.table.vector
        order = np.argsort(-vector, kind="stable")  # single sites come first, so that they win ties
        return self.table.surgeries[order[0]] if vector[order[0]] > 0 else None

    def to_pandas(self) -> pandas.DataFrame:
        """`matrix` as a frame, with the sites' names on both sides."""
        import pandas as pd

        names = pd.Index(self.sites.paths, name="site")
        return pd.DataFrame(self.matrix, index=names, columns=names)

    def plot(self, **settings: Any) -> Figure:
        """`matrix` in colours, see `layersurgery.report.heatmap`; needs matplotlib."""
        from layersurgery.report import heatmap

        labels = [str(label) for label in labels_of(self)]
        return heatmap(self.matrix, labels, labels, **settings)

    def __str__(self) -> str:
        count, alone = len(self.sites), self.table.vector[: len(self.sites)]
        base = float(np.nanmean(self.table.base))
        lines = [f"base {base:.4g}; {count} sites, {count * (count - 1) // 2} pairs"]
        lines.append(f"best site  {alone.max():+.3f}  {self.sites[int(alone.argmax())]}")
        pair = self.best
        if pair is not None and len(pair) > 1:
            lines.append(f"best pair  {self.table.vector.max():+.3f}  {pair}")
        else:
            lines.append("no pair scores higher than the best site, or than the unmodified model")
        return "\n".join([*lines, *self.table.notes])


def sweep_pairs(
    model: Any,
    score: Scorer,
    samples: Sequence[Any],
    *,
    at: Iterable[Site] | None = None,
    do: Intervention | None = None,
    batch_size: BatchSize | None = None,
    progress: bool | str = False,
    store: Store | str | os.PathLike[str] | None = None,
    share: Share = True,
) -> PairTable:
    """Score the unmodified model, every site, and every two sites together (paper, section C.3).

    All pairs with a site share what the model with that site changed computes below the other one.

    Args:
        model: as for `sweep`, and so on for all that have the same name there.
        score: `score(model, samples)`.
        samples: the labelled samples.
        at: two sites or more; None: the attention of every layer of the language backbone, `select(model)`.
        do: the intervention, at both; None: `Zero()`.
        batch_size: most samples in one call of the scorer, as for `sweep`.
        progress: show a bar for each site.
        store: a file, or a `Store`, that scores are kept in and taken from.
        share: let variants share what they can.

    Raises:
        SelectionError: if there are fewer than two sites, or one is given twice.
        SampleError, ScoringError, SurgeryError, StoreError: as `sweep`.

    Examples:
        >>> import torch
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(1, 1, bias=False) for _ in range(3))).eval()
        >>> def score(model, samples):                       # the first two stand in the way together
        ...     model(torch.ones(1))
        ...     gone = [layer.weight.item() == 0 for layer in model]
        ...     return [float(gone[0] and gone[1])] * len(samples)
        >>> pairs = sweep_pairs(model, score, range(4), at=select(model, pattern="*"))
        >>> pairs.matrix.tolist()
        [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
        >>> print(pairs.best)
        zero 0 + zero 1
    """
    sites = Sites(select(model) if at is None else at)
    if len(sites) < 2:
        raise SelectionError(f"at= holds {len(sites)} site; pairs need two or more: use layersurgery.sweep for one")
    singles = [Surgery(site, Zero() if do is None else do) for site in sites]
    with nullcontext() if store is None else opened(store) as kept:
        oracle = SetOracle(
            model,
            score,
            samples,
            sets=[*singles, *extended(singles, singles)],
            batch_size=batch_size,
            progress=progress,
            store=kept,
            share=share,
        )
        oracle.read(range(oracle.n_sites + 1), range(oracle.n_samples))
        return PairTable(sites, oracle.table())
