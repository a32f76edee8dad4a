"""How the demo looks in a terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from layersurgery._terminal import wants_color


def width() -> int:
    """Columns to write in: the terminal's, at most 100."""
    return min(100, shutil.get_terminal_size((100, 24)).columns)


def title(text: str) -> str:
    """A heading with a line below it, after an empty line; bold where the terminal can."""
    return f"\n\033[1m{text}\033[0m\n{'─' * len(text)}" if wants_color() else f"\n{text}\n{'-' * len(text)}"


def paragraph(text: str) -> str:
    """Text wrapped to the screen, with percent signs kept at their numbers."""
    tied = text.replace(" %", "\u00a0%")
    return textwrap.fill(tied, width(), break_on_hyphens=False).replace("\u00a0", " ")


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows under the names of their fields.

    Examples:
        >>> print(table([{"before": "A", "after": "B"}]))
        before  after
        A       B
    """
    if not rows:
        return "none"
    names = list(rows[0])
    widths = [max(len(name), *(len(row[name]) for row in rows)) for name in names]
    lines = [names, *([row[name] for name in names] for row in rows)]
    return "\n".join(
        "  ".join(cell.ljust(size) for cell, size in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def progress(items: Iterable[Any], label: str, show: bool) -> Iterable[Any]:
    """The items, with a bar and the time left on a terminal."""
    from tqdm.auto import tqdm

    return tqdm(list(items), desc=label, disable=None if show else True, leave=False, dynamic_ncols=True)


def yes(value: bool) -> str:
    """A word for a truth value."""
    return "yes" if value else "NO"
