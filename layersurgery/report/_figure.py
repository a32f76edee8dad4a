"""A matplotlib figure without pyplot: no window, no global state."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this many inches.

    Raises:
        ImportError: if matplotlib is not installed; the message says how to get it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install layersurgery[plots]") from error
    return Figure(figsize=(width, height), dpi=150, layout="constrained")
