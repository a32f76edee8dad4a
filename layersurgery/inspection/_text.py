"""An anatomy as a tree of text."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from layersurgery._terminal import wants_color
from layersurgery.inspection import _fold
from layersurgery.inspection._anatomy import Anatomy, LayerPart, Remainder, TowerPart
from layersurgery.sites import HAZARDS

_WIDEST = 140
_NARROWEST_NOTE = 28  # in fewer columns, what is said of a line goes below it
_PLAIN = str.maketrans({"├": "|", "└": "`", "│": "|", "─": "-", "→": ">", "…": "~"})


def as_text(anatomy: Anatomy, width: int | None = None) -> str:
    """The tree.

    Args:
        anatomy: what to show.
        width: columns to stay within, where names allow it; None: the terminal's, at most 140.
    """
    room = min(_WIDEST, shutil.get_terminal_size((100, 24)).columns) if width is None else width
    refused = list(anatomy.refusals)
    nodes = [_tower(tower, anatomy, refused) for tower in anatomy.towers]
    if anatomy.elsewhere:
        children = [_remainder(item, anatomy) for item in anatomy.elsewhere]
        nodes.append(_Node((_fold.elsewhere_title(anatomy),), children=children))
    lines = [*_wrap(_fold.heading(anatomy), room, "", "  ")]
    lines += [line for remark in _fold.remarks(anatomy) for line in _wrap(remark, room, "", "")]
    lines += _branches(nodes, "", room)
    lines += _legend(anatomy, room)
    text = "\n".join(_coloured(lines) if wants_color() else lines)
    return text if _can_show(text) else text.translate(_PLAIN)


@dataclass
class _Node:
    """A line of the tree: cells that stand below those of its siblings, and what is said of it."""

    cells: tuple[str, ...]
    note: str = ""
    children: list[_Node] = field(default_factory=list["_Node"])


def _tower(tower: TowerPart, anatomy: Anatomy, refused: Sequence[str]) -> _Node:
    children = [_Node((run.title,), children=_sites(run.first, anatomy, refused)) for run in _fold.runs(tower)]
    return _Node((_fold.tower_title(tower, anatomy.parameters),), children=children)


def _sites(layer: LayerPart, anatomy: Anatomy, refused: Sequence[str]) -> list[_Node]:
    nodes: list[_Node] = []
    for part in layer.sites:
        codes = _fold.hazards(part.site, anatomy)
        hazards = f" [{', '.join(codes)}]" if codes else ""
        size = part.site.parameters
        cells = (part.name, part.site.kind, _fold.entries(size), _fold.share(size, anatomy.parameters))
        nodes.append(_Node(cells, f"→ {_fold.effect(part, refused)}{hazards}"))
    if layer.rest:
        share = _fold.share(layer.rest, anatomy.parameters)
        nodes.append(_Node(("the rest of it", "", _fold.entries(layer.rest), share)))
    return nodes


def _remainder(item: Remainder, anatomy: Anatomy) -> _Node:
    sizes = (_fold.entries(item.parameters), _fold.share(item.parameters, anatomy.parameters))
    return _Node((item.path or "(the model itself)", item.module, *sizes), _fold.ties(item))


def _branches(nodes: list[_Node], before: str, room: int) -> Iterator[str]:
    widths = _widths(nodes)
    for node in nodes:
        last = node is nodes[-1]
        below = before + ("   " if last else "│  ")
        yield from _line(
            node, widths, before + ("└─ " if last else "├─ "), below + ("│  " if node.children else ""), room
        )
        yield from _branches(node.children, below, room)


def _line(node: _Node, widths: list[int], start: str, further: str, room: int) -> Iterator[str]:
    columns = len(node.cells)
    right = {columns - 2, columns - 1} if columns > 2 else set[int]()
    cells = [
        cell.rjust(size) if at in right else cell.ljust(size)
        for at, (cell, size) in enumerate(zip(node.cells, widths, strict=False))
    ]
    text = "  ".join(cells)
    if columns == 1 or len(start) + len(text) > room:
        yield from _wrap(" ".join("  ".join(node.cells).split()), room, start, further + "   ")
        yield from _wrap(node.note, room, further + "   ", further + "   ")
        return
    margin = len(start) + len(text) + 2
    if room - margin < max(_NARROWEST_NOTE, *map(len, node.note.split()), 0):
        yield (start + text).rstrip()
        yield from _wrap(node.note, room, further + "   ", further + "     ")
        return
    yield from _wrap(node.note or " ", room, f"{start}{text}  ", further.ljust(margin) + ("  " if node.note else ""))


def _widths(nodes: list[_Node]) -> list[int]:
    columns = max((len(node.cells) for node in nodes), default=0)
    return [
        max(len(node.cells[at]) for node in nodes if len(node.cells) > at) if columns > 1 else 0
        for at in range(columns)
    ]


def _wrap(text: str, room: int, start: str, further: str) -> list[str]:
    if not text.strip():
        return [start.rstrip()] if start.strip(" │├└─") else []
    # a name that is longer than the screen is left whole: it can be copied then
    return textwrap.wrap(
        text,
        max(room, len(start) + 1),
        initial_indent=start,
        subsequent_indent=further,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _legend(anatomy: Anatomy, room: int) -> Iterator[str]:
    if anatomy.sites:
        yield ""
        yield from _wrap(
            "→ what Zero() does at a site to the stream of states between layers; [hazards]", room, "", "  "
        )
    for code in _fold.legend(anatomy):
        yield from _wrap(f"{code}: {HAZARDS[code]}", room, "  ", "    ")
    for number, reason in enumerate(anatomy.refusals.values(), 1):
        yield from _wrap(f"({number}) {reason}", room, "  ", "      ")


def _coloured(lines: list[str]) -> list[str]:
    """The model in bold, the branches faint."""
    faint = [re.sub(r"^[ │├└─]*[│├└─]", lambda branch: f"\033[2m{branch[0]}\033[0m", line) for line in lines[1:]]
    return [f"\033[1m{lines[0]}\033[0m", *faint]


def _can_show(text: str) -> bool:
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
