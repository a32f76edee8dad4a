"""`plot_stability`: how often each site is chosen on resamples, always beside how often it is by chance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from layersurgery.report._figure import new_figure
from layersurgery.search._stability import CHANCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from layersurgery.search import Stability

_CHOSEN, _KEPT, _BY_CHANCE = "#b2182b", "0.45", "0.85"
_LONGEST_LABEL = 28
_HERE = "on these samples"
_WIDE = 5.5  # inches, in which the legend fits into one line


def plot_stability(found: Stability, *, title: str | None = None) -> Figure:
    """In what share of the resamples each site was chosen (Fig. 7 of the paper), beside what it is by chance.

    The last bar is for the resamples in which the model was kept. Behind each bar stands what it is where no site
    matters: the middle nine tenths of the tables in grey, with a line at the mean. With many sites some bar will end
    above its own grey; so what a site must be above to stand out is the dashed line, which only one in twenty of these
    tables passes with any of its sites. Below the axis is the share of the site that is chosen most often, and `p`.

    Args:
        found: what `stability` returned; its labels stand below the bars.
        title: a line above the picture.

    Raises:
        ImportError: if matplotlib is not installed.

    Examples:
        >>> from layersurgery.search import PaperRule, stability
        >>> found = stability([[0, 1, 0], [1, 1, 1], [0, 0, 0]], PaperRule(1), labels=[4, 5])
        >>> [label.get_text() for label in plot_stability(found).axes[0].get_xticklabels()]
        ['4', '5', 'keep']
    """
    labels = [_short(str(label)) for label in found.labels or range(len(found.chosen))]
    longest = max(map(len, labels))
    upright = longest > 3
    figure = new_figure(max(3.6, 0.22 * len(labels) + 1.6), 3.4 + (0.07 * longest if upright else 0))
    axes = figure.add_subplot()
    legend = {**_draw_bars(axes, found), **_mark_luck(axes, found)}
    places = np.arange(len(labels))
    every = max(1, len(labels) // 40 + 1)
    axes.set_xticks([*places[::every], _keep_place(found)], [*labels[::every], "keep"], fontsize=7)
    if upright:
        axes.tick_params(axis="x", labelrotation=90)
    axes.set_xlim(-0.7, _keep_place(found) + 0.7)
    axes.tick_params(axis="x", length=0)
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel("\n".join([_axis(found), *_beside(found)]), fontsize=8)
    axes.set_ylabel(f"chosen, % of {found.resamples} resamples", fontsize=8)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    columns = len(legend) if figure.get_figwidth() > _WIDE else 1
    both = {legend[_HERE]: _side_by_side()}  # the two colours of bars; others of several parts lie on each other
    form = {"loc": "outside lower center", "ncols": columns, "fontsize": 7, "frameon": False}
    figure.legend(list(legend.values()), list(legend), handler_map=both, **form)
    if title:
        axes.set_title(title, fontsize=10, loc="left")
    return figure


def _short(label: str) -> str:
    """Both ends of a long label: what is done at a site stands before its path, the layer near the end."""
    return label if len(label) <= _LONGEST_LABEL else f"{label[:9]}…{label[10 - _LONGEST_LABEL :]}"


def _side_by_side() -> Any:
    from matplotlib.legend_handler import HandlerTuple

    return HandlerTuple(ndivide=None)


def _keep_place(found: Stability) -> float:
    return len(found.chosen) + 0.5  # a little apart: to keep the model is no site


def _draw_bars(axes: Axes, found: Stability) -> dict[str, Any]:
    """Bars of the sites and of the kept model, and for the legend what they are."""
    places = [*range(len(found.chosen)), _keep_place(found)]
    shares = 100 * np.append(found.chosen, found.kept) / found.resamples
    kept = found.resamples - found.references.sum(axis=1)
    by_chance = 100 * np.column_stack([found.references, kept]) / found.resamples
    low, high = np.percentile(by_chance, [5, 95], axis=0)
    band = axes.bar(places, high - low, bottom=low, color=_BY_CHANCE, width=0.9)
    bars = axes.bar(places, shares, color=[_CHOSEN] * len(found.chosen) + [_KEPT], width=0.5)
    ends = np.array(places)[:, None] + [-0.45, 0.45]
    mean = axes.hlines(by_chance.mean(axis=0), *ends.T, color="0.2", linewidth=1.0, zorder=3)
    axes.axhline(0, color="0.2", linewidth=0.8)
    return {_HERE: (bars[0], bars[-1]), "if no site matters: 5 to 95 %, and mean": (band, mean)}


def _mark_luck(axes: Axes, found: Stability) -> dict[str, Any]:
    """The share that a site must pass for a p of one in twenty; where the tables are too few, of all of them."""
    shares = 100 * np.sort(found.reference_shares)[::-1]
    may_pass = int(CHANCE * (len(shares) + 1) + 1e-9) - 1  # of the tables, and p would still be small enough
    text = f"above it p ≤ {CHANCE:g}" if may_pass >= 0 else f"the most that a site has in {len(shares)} such tables"
    ends = -0.6, len(found.chosen) - 0.4
    line = axes.hlines(shares[max(0, may_pass)], *ends, color="0.2", linewidth=0.9, linestyle="--", zorder=3)
    return {text: line}


def _axis(found: Stability) -> str:
    of_layers = found.labels is not None and all(isinstance(label, int) for label in found.labels)
    return "layer" if of_layers else "site"


def _beside(found: Stability) -> list[str]:
    most = (
        "always kept" if found.name is None else f"{_short(found.name)}: {100 * found.share:.0f} %, p = {found.p:.2g}"
    )
    late = [f"too few samples to decide in {found.undecided}, kept there"] if found.undecided else []
    return [most, *late]
