"""`heatmap`: tasks x layers as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from layersurgery.errors import VectorError
from layersurgery.report._figure import new_figure
from layersurgery.report._table import Table, as_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_NUMBERED_COLUMNS = 16
_NEW_LINE = "\n"


def heatmap(
    values: Any,
    tasks: Sequence[str] | None = None,
    layers: Sequence[object] | None = None,
    *,
    title: str | None = None,
    limit: float | None = None,
    numbers: bool | None = None,
    scale: float = 100.0,
    unit: str = "points",
) -> Figure:
    """Score changes in colours, one row per task and one column per layer (Fig. 2a and 9 to 20 of the paper).

    Red is better and blue worse, white is no change. Save the figure with `figure.savefig("heatmap.png")`.

    Args:
        values: `InteractionVectors`, or a matrix [tasks, layers] of score changes; nan stays grey.
        tasks: names of the rows; None: those of `values`, or numbers.
        layers: heads of the columns; None: those of `values`, or numbers.
        title: a line above the picture.
        limit: the change, in `unit`, that gets the full colour; None: the largest gain, or more where losses
            are common. Larger changes get the full colour too, and the colour bar then ends in an arrow.
        numbers: whether to write the change into each cell; None: if there are at most 16 layers.
        scale: what a change is multiplied by to give `unit`.
        unit: name of the unit, for the colour bar.

    Raises:
        ImportError: if matplotlib is not installed.
        VectorError: if the values are not a matrix, labels do not fit it, or `limit` is not positive.
    """
    table = as_table(values, tasks, layers, scale)
    if limit is None:
        limit = table.limit
    if not limit > 0:
        raise VectorError(f"limit={limit!r}; give the change with the full colour, above 0 {unit}")
    if numbers is None:
        numbers = len(table.layers) <= _MOST_NUMBERED_COLUMNS
    figure = _fitting_figure(table, numbers, title)
    axes = figure.add_subplot()
    colours = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
    image = axes.imshow(table.points, aspect="auto", interpolation="none", **colours)
    axes.set_facecolor("0.8")
    _label(axes, table, title)
    if numbers:
        _write_numbers(axes, table.points, limit)

    tall = len(table.tasks) >= 10
    form = {"extend": _clipped(table.points, limit), "aspect": 20 if tall else 8, "fraction": 0.05, "pad": 0.02}
    bar = figure.colorbar(image, ax=axes, **form)
    bar.set_label(f"change in {unit}{' ' if tall else _NEW_LINE}(red: better)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.ax.spines[:].set_visible(False)
    return figure


def _fitting_figure(table: Table, numbers: bool, title: str | None) -> Figure:
    rows, columns = table.points.shape
    cell_width, cell_height = (0.5, 0.3) if numbers else (0.26, 0.24)
    width = 0.085 * max(map(len, table.tasks)) + columns * cell_width + 1.4
    heads = 0.08 * max(map(len, table.layers)) if _upright(table) else 0.2
    height = rows * cell_height + heads + (1.0 if title else 0.6)
    return new_figure(width, max(2.2, height))


def _upright(table: Table) -> bool:
    """Whether the heads of the columns are too long to stand side by side."""
    return max(map(len, table.layers)) > 3


def _clipped(points: np.ndarray, limit: float) -> str:
    """At which ends the colour bar needs an arrow."""
    below, above = bool((points < -limit).any()), bool((points > limit).any())
    if below and above:
        return "both"
    return "min" if below else "max" if above else "neither"


def _label(axes: Axes, table: Table, title: str | None) -> None:
    rows, columns = table.points.shape
    axes.set_xticks(range(columns), table.layers, fontsize=7)
    axes.set_yticks(range(rows), table.tasks, fontsize=8 if rows <= 20 else 7)
    if _upright(table):
        axes.tick_params(axis="x", labelrotation=90)
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("layer", fontsize=8)
    if title:
        axes.set_title(title, fontsize=10, loc="left")


def _write_numbers(axes: Axes, points: np.ndarray, limit: float) -> None:
    digits = 1 if limit >= 1 else 2
    for (row, column), value in np.ndenumerate(points):
        if np.isfinite(value):
            text = f"{value:+.{digits}f}" if round(value, digits) else "0"
            ink = "white" if abs(value) > 0.6 * limit else "0.15"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=ink)
