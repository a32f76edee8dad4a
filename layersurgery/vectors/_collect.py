"""From score tables and plain arrays to one matrix with one set of labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from layersurgery._labels import names_of
from layersurgery.errors import VectorError


def collect(vectors: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `InteractionVectors`; refuses vectors that do not belong together."""
    if not isinstance(vectors, Mapping) or not vectors:
        raise VectorError(f"give a mapping of task names to score tables or arrays, one at least; got {vectors!r}")
    tasks = tuple(str(task) for task in vectors)
    matrix = np.array(_same_length({task: _vector(task, value) for task, value in vectors.items()}))
    labels, layers = _sites(vectors, matrix.shape[1])
    base = np.array([_base(value) for value in vectors.values()])
    matrix.flags.writeable = base.flags.writeable = False
    return {
        "tasks": tasks,
        "matrix": matrix,
        "sites": labels,
        "layers": layers,
        "base": base,
        "surgeries": _surgeries(vectors),
    }


def _vector(task: str, value: Any) -> np.ndarray:
    try:
        vector = np.asarray(getattr(value, "vector", value), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise VectorError(f"task {task!r}: expected a score table or a flat array; got {value!r}") from error
    if vector.ndim != 1 or not len(vector):
        raise VectorError(
            f"task {task!r}: expected a score table or a flat array, one score change per site; got shape "
            f"{vector.shape}"
        )
    bad = np.flatnonzero(~np.isfinite(vector))
    if len(bad):
        raise VectorError(
            f"task {task!r}: {len(bad)} of {len(vector)} sites have no score change (the first is site {bad[0]}); "
            "sweep all sites of the task first"
        )
    return vector


def _same_length(vectors: dict[str, np.ndarray]) -> list[np.ndarray]:
    (first, reference), *rest = vectors.items()
    for task, vector in rest:
        if len(vector) != len(reference):
            raise VectorError(
                f"task {first!r} has {len(reference)} sites and task {task!r} {len(vector)}; vectors must be of the "
                "same sites"
            )
    return list(vectors.values())


def _sites(vectors: Mapping[str, Any], n: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Labels and layer numbers of the sites, the same for all vectors that know theirs."""
    known = {task: value for task, value in vectors.items() if hasattr(value, "sites")}
    if not known:
        return tuple(map(str, range(n))), tuple(range(n))
    (first, table), *rest = known.items()
    sites, labels = tuple(table.sites), names_of(table)
    for task, others in rest:
        for mine, theirs in zip(labels, names_of(others), strict=True):
            if mine != theirs:
                raise VectorError(
                    f"task {first!r} was swept at {mine} where task {task!r} was at {theirs}; vectors must be of the "
                    "same sites in the same order"
                )
    layers = [getattr(site, "layer", None) for site in sites]
    if None in layers or len(set(layers)) < n:
        return labels, tuple(range(n))
    return labels, tuple(int(layer) for layer in layers if layer is not None)


def _base(value: Any) -> float:
    base = getattr(value, "base", None)
    if base is None:
        return float("nan")
    scores = np.asarray(base, dtype=np.float64)
    return float(scores[np.isfinite(scores)].mean()) if np.isfinite(scores).any() else float("nan")


def _surgeries(vectors: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """What was done at each site, the same for all vectors that know it."""
    known = {task: tuple(value.surgeries) for task, value in vectors.items() if hasattr(value, "surgeries")}
    if not known:
        return None
    (first, surgeries), *rest = known.items()
    for task, others in rest:
        for mine, theirs in zip(surgeries, others, strict=True):
            if mine != theirs:
                raise VectorError(
                    f"task {first!r} was swept with {mine} where task {task!r} was with {theirs}; keep interventions "
                    "apart and compare them with .consistency"
                )
    return surgeries
