"""Hierarchical clustering of a distance matrix, cut into an exact number of clusters."""

from __future__ import annotations

import operator
from typing import Literal, get_args

import numpy as np

from layersurgery.errors import VectorError

LinkageMethod = Literal["average", "complete", "single", "weighted"]


def merge_tree(distance: np.ndarray, method: LinkageMethod) -> np.ndarray:
    """SciPy's linkage matrix [n - 1, 4] of a symmetric distance matrix [n, n], lowest merge first.

    Raises:
        VectorError: if the method is unknown or there is a single item.
    """
    if method not in get_args(LinkageMethod):
        raise VectorError(f"method={method!r}; give one of {', '.join(map(repr, get_args(LinkageMethod)))}")
    if len(distance) < 2:
        raise VectorError("a single task has no tree; give two at least")
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    return linkage(squareform(distance, checks=False), method)


def flat_clusters(distance: np.ndarray, k: int, method: LinkageMethod) -> list[int]:
    """Label 1 to k of each item: what is left when the n - k lowest merges are made.

    SciPy's `fcluster` makes fewer clusters than asked for where distances tie; this makes exactly `k`.

    Raises:
        VectorError: if `k` is not a number of clusters that n items can form, or the method is unknown.
    """
    n = len(distance)
    try:
        count = 0 if isinstance(k, bool) else operator.index(k)
    except TypeError:
        count = 0
    if not 1 <= count <= n:
        raise VectorError(f"k={k!r} clusters of {n} tasks cannot be; give a whole number from 1 to {n}")
    members = {item: [item] for item in range(n)}
    if n > 1:
        for merge, (left, right, *_) in enumerate(merge_tree(distance, method)[: n - count]):
            members[n + merge] = members.pop(int(left)) + members.pop(int(right))
    labels = [0] * n
    for label, items in enumerate(sorted(members.values(), key=min), start=1):
        for item in items:
            labels[item] = label
    return labels
