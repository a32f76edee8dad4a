"""What all reports share: a matrix of changes in points with its labels, and the range of its colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from layersurgery.errors import VectorError


@dataclass(frozen=True, eq=False)
class Table:
    """Changes [tasks, layers] in points or another unit, with labels of both."""

    points: np.ndarray
    tasks: tuple[str, ...]
    layers: tuple[str, ...]
    limit: float


def as_table(values: Any, tasks: Sequence[str] | None, layers: Sequence[object] | None, scale: float) -> Table:
    """Read `InteractionVectors` or a matrix of score changes; labels given explicitly win.

    Raises:
        VectorError: if it is not a matrix, has no cell, or the labels do not fit it.
    """
    matrix = np.asarray(getattr(values, "matrix", values), dtype=np.float64)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise VectorError(f"a heat map needs a matrix of score changes, [tasks, layers]; got shape {matrix.shape}")
    rows = tasks if tasks is not None else getattr(values, "tasks", [str(row) for row in range(len(matrix))])
    columns = layers if layers is not None else getattr(values, "layers", range(matrix.shape[1]))
    for what, labels, size in (("task", rows, matrix.shape[0]), ("layer", columns, matrix.shape[1])):
        if len(labels) != size:
            raise VectorError(f"{len(labels)} {what} labels for {size} {what}s; give one for each")
    limit = scale * _colour_limit(matrix)
    return Table(matrix * scale, tuple(map(str, rows)), tuple(map(str, columns)), limit)


def _colour_limit(changes: np.ndarray) -> float:
    """The change that gets the full colour: no gain is ever clipped, but heavy losses may be.

    A layer whose loss wipes out every task would otherwise leave all others near white. Below one point there is
    nothing to tell apart, and the range does not shrink further, unless all changes are that small.
    """
    known = changes[np.isfinite(changes)]
    largest = float(np.abs(known).max()) if len(known) else 0.0
    floor = min(0.01, largest) or 0.01
    return max(floor, float(known.max()), float(np.percentile(np.abs(known), 75))) if len(known) else floor
