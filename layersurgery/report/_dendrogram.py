"""`dendrogram`: the tree of a hierarchical clustering."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from layersurgery.report._figure import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MIXED = "0.6"


def dendrogram(
    tree: np.ndarray, names: Sequence[str], labels: Sequence[int] | None = None, *, title: str | None = None
) -> Figure:
    """Draw a linkage matrix with the items at the left and the distance, 1 - rho, to the right.

    Args:
        tree: SciPy's linkage matrix [n - 1, 4].
        names: the n items.
        labels: cluster of each item, 1 or above: branches within one cluster get its colour. None: one
            colour.
        title: a line above the picture.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    width = 0.085 * max(map(len, names)) + 5.0
    figure = new_figure(width, max(2.0, 0.24 * len(names) + (1.0 if title else 0.7)))
    from matplotlib import colormaps
    from scipy.cluster.hierarchy import dendrogram as layout

    palette = colormaps["tab10"]
    clusters = _clusters_of_branches(tree, [1] * len(names) if labels is None else list(labels))
    colours = [_MIXED if cluster is None else palette((cluster - 1) % 10) for cluster in clusters]
    axes = figure.add_subplot()
    order, segments = _order_and_branches(tree, layout(tree, no_plot=True)["leaves"])
    for branch, colour in zip(segments, colours[len(names) :], strict=True):
        axes.plot(*branch, color=colour, linewidth=1.4, solid_joinstyle="miter")
    axes.set_yticks(range(len(names)), [names[item] for item in order], fontsize=8 if len(names) <= 20 else 7)
    if labels is not None:
        for tick, item in zip(axes.get_yticklabels(), order, strict=True):
            tick.set_color(colours[item])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, max(float(tree[:, 2].max()), 1e-9) * 1.03)
    axes.set_xlabel("distance, 1 - correlation", fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    if title:
        axes.set_title(title, fontsize=10, loc="left")
    return figure


def _order_and_branches(
    tree: np.ndarray, leaves: Sequence[int]
) -> tuple[list[int], list[tuple[list[float], list[float]]]]:
    """Items from top to bottom, and for each merge the x and y of its bracket."""
    place = {int(item): float(row) for row, item in enumerate(leaves)}
    depth = dict.fromkeys(place, 0.0)
    branches = []
    for merge, (left, right, height, _) in enumerate(tree):
        one, two, new = int(left), int(right), len(leaves) + merge
        branches.append(([depth[one], height, height, depth[two]], [place[one], place[one], place[two], place[two]]))
        place[new], depth[new] = (place[one] + place[two]) / 2, float(height)
    return [int(item) for item in leaves], branches


def _clusters_of_branches(tree: np.ndarray, labels: list[int]) -> list[int | None]:
    """The cluster of every item and merge; None where a merge joins different ones."""
    clusters: list[int | None] = list(labels)
    for left, right, *_ in tree:
        one, two = clusters[int(left)], clusters[int(right)]
        clusters.append(one if one == two else None)
    return clusters
