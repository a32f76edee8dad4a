"""What is to be seen in each of a scene's 16 cells: the labels of the first two stages."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from layersurgery.embedded._scenes import CELLS, GRID, Digits, Layout, Scene, Shapes, draw_scene


@dataclass(frozen=True)
class Patch:
    """One cell: its kind of content, and whatever of the rest applies.

    Args:
        content: "empty", "digit", "shape", "region" or "legend".
        colour: name of the colour.
        shape: name of the shape.
        digit: the handwritten digit.
        flag: the shape is large, or the region marked.
    """

    content: str = "empty"
    colour: str | None = None
    shape: str | None = None
    digit: int | None = None
    flag: bool | None = None

    @property
    def words(self) -> list[str]:
        """The words that describe the cell."""
        mark = {"shape": "larger", "region": "marked"}.get(self.content) if self.flag else None
        digit = None if self.digit is None else str(self.digit)
        word = {"digit": "digit", "shape": "shape", "region": "regions", "legend": "stands"}.get(self.content)
        return [w for w in (word, self.colour, self.shape, digit, mark) if w]


def patches(layout: Layout) -> list[Patch]:
    """The 16 cells of a layout, row by row."""
    grid = [Patch()] * CELLS
    if isinstance(layout, Digits):
        for cell, value in zip(layout.cells, layout.values, strict=True):
            grid[cell % GRID * GRID + cell // GRID] = Patch("digit", digit=value)
    elif isinstance(layout, Shapes):
        for shape in layout.objects:
            grid[shape.row * GRID + shape.column] = Patch("shape", shape.colour, shape.kind, flag=shape.large)
    else:
        for cell, place in enumerate(layout.regions):
            grid[cell] = Patch("region", layout.colours[place], flag=cell == layout.marked)
        for place, value in enumerate(layout.values):
            grid[CELLS - GRID + place] = Patch("legend", layout.colours[place], digit=value)
    return grid


def training_scenes(rng: Random, mixture: dict[str, float], n: int) -> list[Scene]:
    """Scenes of the training split, their kinds drawn from a mixture."""
    kinds = rng.choices(list(mixture), list(mixture.values()), k=n)
    return [draw_scene(rng, kind, "train") for kind in kinds]
