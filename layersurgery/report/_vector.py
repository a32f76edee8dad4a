"""`plot_vector`: one task's interaction vector as bars."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from layersurgery.report._figure import new_figure
from layersurgery.search import paired_interval
from layersurgery.vectors import InteractionVectors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BETTER, _WORSE = "#b2182b", "#2166ac"


def plot_vector(
    table: Any, *, title: str | None = None, level: float = 0.95, scale: float = 100.0, unit: str = "points"
) -> Figure:
    """Score change of each site against the unmodified model, red where it gains and blue where it loses.

    Where the table knows, a line under the axis says in how many samples no answer could be read and what always
    answering the same letter would score, and a dashed line marks the change that reaches that score, if it is a gain:
    a bar that ends below it may be that of a model which gives one letter to everything.

    The whiskers are paired intervals for each site by itself. With many sites some will miss their true change: they
    do not say which site to choose.

    Args:
        table: a `ScoreTable`, or a flat array of score changes (then without whiskers).
        title: a line above the picture.
        level: nominal coverage of the whiskers.
        scale: what a change is multiplied by to give `unit`.
        unit: name of the unit, for the axis.

    Raises:
        ImportError: if matplotlib is not installed.
        VectorError: if a site has no score change.
    """
    vectors = InteractionVectors({"task": table})
    changes = vectors.matrix[0] * scale
    figure = new_figure(max(3.0, 0.22 * len(changes) + 1.2), 2.8)
    axes = figure.add_subplot()
    places = np.arange(len(changes))
    axes.bar(places, changes, color=[_BETTER if change > 0 else _WORSE for change in changes], width=0.8)
    reach = _reach(table, level)
    if reach is not None:
        axes.errorbar(places, changes, yerr=reach * scale, fmt="none", ecolor="0.35", elinewidth=0.9, capsize=1.5)
    axes.axhline(0, color="0.2", linewidth=0.8)
    _mark_constant(axes, table, scale)
    every = max(1, len(changes) // 40 + 1)
    axes.set_xticks(places[::every], [str(layer) for layer in vectors.layers[::every]], fontsize=7)
    axes.set_xlim(-0.7, len(changes) - 0.3)
    axes.tick_params(axis="x", length=0)
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel("\n".join(["layer", *_beside(table)]), fontsize=8)
    axes.set_ylabel(f"change in {unit}", fontsize=8)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    if title:
        axes.set_title(title, fontsize=10, loc="left")
    return figure


def _mark_constant(axes: Axes, table: Any, scale: float) -> None:
    """The change that takes the unmodified model to the score of always answering the same letter."""
    constant = getattr(table, "constant", None)
    if constant is None:
        return
    needed = constant - float(np.nanmean(table.base))
    if needed > 0:
        axes.axhline(needed * scale, color="0.45", linewidth=0.9, linestyle="--")
        place = {"xycoords": ("axes fraction", "data"), "xytext": (0, 2), "textcoords": "offset points"}
        text = f"always {table.constant_letter}"
        axes.annotate(text, (1.0, needed * scale), ha="right", fontsize=7, color="0.35", **place)


def _beside(table: Any) -> list[str]:
    """The accuracy that the changes start from, with what belongs beside it; nothing for plain arrays."""
    beside = str(table.answers()) if hasattr(table, "answers") else ""
    if not beside:
        return []
    base = table.base[np.isfinite(table.base)]
    share = [f"unmodified: {100 * float(base.mean()):.1f} %"] if np.isin(base, (0.0, 1.0)).all() else []
    return [*share, *beside.split("; ")]


def _reach(table: Any, level: float) -> np.ndarray | None:
    """[2, sites] how far each interval goes below and above the change; None where samples were not scored singly."""
    if not getattr(table, "per_sample", False):
        return None
    reaches = []
    for scores, change in zip(table.scores, table.vector, strict=True):
        there = np.isfinite(scores) & np.isfinite(table.base)
        interval = paired_interval(table.base[there], scores[there], level)
        reaches.append((change - interval.low, interval.high - change))
    reach = np.maximum(np.array(reaches).T, 0.0)  # rounding may leave a point a hair outside its interval
    return reach if np.isfinite(reach).all() else None
