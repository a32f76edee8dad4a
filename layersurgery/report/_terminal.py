"""`terminal_heatmap`: tasks x layers as coloured text."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from layersurgery._terminal import wants_color
from layersurgery.errors import VectorError
from layersurgery.report._table import as_table

_LONGEST_NAME = 28
_BETTER, _NEUTRAL, _WORSE = (178, 24, 43), (247, 247, 247), (33, 102, 172)
# the same two ramps in the 256 colours of a plain terminal, from no change to the full colour
_BETTER_256, _WORSE_256 = (231, 224, 217, 174, 167, 124), (231, 189, 153, 110, 67, 25)
_DARK_INK, _LIGHT_INK = 16, 231


def terminal_heatmap(
    values: Any,
    tasks: Sequence[str] | None = None,
    layers: Sequence[object] | None = None,
    *,
    color: bool | Literal["auto"] = "auto",
    width: int | None = None,
    scale: float = 100.0,
) -> str:
    """Score changes as a text table of signed whole points, red where they gain and blue where they lose.

    Too many layers for one line are shown in blocks below each other.

    Args:
        values: `InteractionVectors`, or a matrix [tasks, layers] of score changes; nan is shown as a dot.
        tasks: names of the rows; None: those of `values`, or numbers.
        layers: heads of the columns; None: those of `values`, or numbers.
        color: whether to write ANSI colours; "auto": if standard output is a terminal that wants them
            (`NO_COLOR` is not set and `TERM` is not "dumb"). 24-bit where `COLORTERM` promises it, else 256
            colours.
        width: columns of text to stay within; None: the terminal's.
        scale: what a change is multiplied by to give points.

    Raises:
        VectorError: if the values are not a matrix, labels do not fit it, or `color` is not one of these.

    Examples:
        >>> print(terminal_heatmap([[0.125, -0.4], [0, 0.02]], ["sum", "maps"], color=False))
                0   1
        sum   +12 -40
        maps    0  +2
    """
    table = as_table(values, tasks, layers, scale)
    paint = _painter(table.limit) if _wants_color(color) else _leave
    texts = [[_signed(value) for value in row] for row in table.points]
    cell = 1 + max(3, *(len(text) for row in texts for text in row), *map(len, table.layers))
    margin = 1 + max(len(_shorten(task)) for task in table.tasks)
    rows = [(" " * margin, [label.rjust(cell) for label in table.layers])]
    for task, row, points in zip(table.tasks, texts, table.points, strict=True):
        cells = [paint(text.rjust(cell), value) for text, value in zip(row, points, strict=True)]
        rows.append((_shorten(task).ljust(margin), cells))

    room = width if width is not None else shutil.get_terminal_size().columns
    per_block = max(1, (room - margin) // cell)
    starts = range(0, len(table.layers), per_block)
    blocks = ["\n".join(name + "".join(cells[at : at + per_block]) for name, cells in rows) for at in starts]
    return "\n\n".join(blocks)


def _wants_color(color: bool | str) -> bool:
    if isinstance(color, bool):
        return color
    if color != "auto":
        raise VectorError(f'color={color!r}; give True, False or "auto"')
    return wants_color()


def _leave(text: str, value: float) -> str:
    return text


def _painter(limit: float) -> Callable[[str, float], str]:
    """A function that colours the background of a text by its value."""
    back = _exact_colour if os.environ.get("COLORTERM", "").lower() in ("truecolor", "24bit") else _cube_colour

    def paint(text: str, value: float) -> str:
        if not np.isfinite(value):
            return text
        share = min(1.0, abs(value) / limit)
        ink = _LIGHT_INK if share > 0.7 else _DARK_INK
        return f"\x1b[48;{back(share, value > 0)};38;5;{ink}m{text}\x1b[0m"

    return paint


def _exact_colour(share: float, better: bool) -> str:
    end = _BETTER if better else _WORSE
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(_NEUTRAL, end, strict=True))
    return f"2;{red};{green};{blue}"


def _cube_colour(share: float, better: bool) -> str:
    ramp = _BETTER_256 if better else _WORSE_256
    return f"5;{ramp[round(share * (len(ramp) - 1))]}"


def _signed(value: float) -> str:
    if not np.isfinite(value):
        return "."
    return f"{round(value):+d}" if round(value) else "0"


def _shorten(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
