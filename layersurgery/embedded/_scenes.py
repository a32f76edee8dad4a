"""The pictures of the embedded benchmark: handwritten digits, drawn shapes and drawn maps on a grid of 4 x 4.

A *layout* says what is to be seen where; it is small, hashable and free of pixels. A *scene* is a layout and
one picture of it: the digit images, the small shifts, the exact colours and the background differ from
picture to picture. Every layout belongs to exactly one split, by its hash, and a split's pictures use only
that split's digit images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from random import Random

import numpy as np

from layersurgery.embedded._digits import digit_indices, glyphs, split_of

SIZE = 64
CELL = 16
GRID = 4
CELLS = GRID * GRID
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (235, 220, 50),
    "purple": (160, 60, 190),
    "orange": (245, 140, 30),
}
SHAPES = ("circle", "square", "triangle", "cross")


@dataclass(frozen=True)
class Digits:
    """Handwritten digits. Cells are numbered column by column, so they run from left to right."""

    cells: tuple[int, ...]
    values: tuple[int, ...]


@dataclass(frozen=True)
class Shape:
    """One drawn shape."""

    colour: str
    kind: str
    large: bool
    column: int
    row: int


@dataclass(frozen=True)
class Shapes:
    """Two to six shapes of different colours, ordered by column and row."""

    objects: tuple[Shape, ...]


@dataclass(frozen=True)
class Map:
    """Twelve coloured regions, one of them marked, above a legend of four coloured tiles with a digit each.

    Args:
        colours: the legend's colours from left to right.
        values: the legend's digits from left to right.
        regions: for each region, row by row, the place of its colour in the legend.
        marked: the marked region, row by row.
    """

    colours: tuple[str, ...]
    values: tuple[int, ...]
    regions: tuple[int, ...]
    marked: int


Layout = Digits | Shapes | Map


@dataclass(frozen=True, eq=False)
class Scene:
    """A layout and one picture of it, [64, 64, 3] uint8."""

    layout: Layout
    image: np.ndarray


def draw_scene(rng: Random, kind: str, split: str) -> Scene:
    """Draw a layout that belongs to the split, and a picture of it.

    Args:
        rng: the source of all randomness.
        kind: one of `SCENE_KINDS`: "pair" (two digits, one in each half), "digits" (one, three or four),
            "shapes", "map".
        split: "train", "probe" or "test".

    Examples:
        >>> scene = draw_scene(Random(0), "pair", "test")
        >>> scene.image.shape, layout_split(scene.layout)
        ((64, 64, 3), 'test')
    """
    while True:  # a seventh of all layouts is in the smallest split
        layout = SCENE_KINDS[kind](rng)
        if layout_split(layout) == split:
            return Scene(layout, _render(rng, layout, split))


def layout_split(layout: Layout) -> str:
    """The one split that a layout belongs to."""
    return split_of(repr(layout).encode())


def _pair(rng: Random) -> Digits:
    half = CELLS // 2
    return Digits((rng.randrange(half), half + rng.randrange(half)), (rng.randrange(10), rng.randrange(10)))


def _digits(rng: Random) -> Digits:
    cells = sorted(rng.sample(range(CELLS), rng.choice((1, 3, 4))))
    return Digits(tuple(cells), tuple(rng.randrange(10) for _ in cells))


def _shapes(rng: Random) -> Shapes:
    cells = sorted(rng.sample(range(CELLS), rng.randrange(2, 7)))
    colours = rng.sample(list(COLOURS), len(cells))
    return Shapes(
        tuple(
            Shape(colour, rng.choice(SHAPES), rng.random() < 0.5, cell // GRID, cell % GRID)
            for cell, colour in zip(cells, colours, strict=True)
        )
    )


def _map(rng: Random) -> Map:
    regions = tuple(rng.randrange(4) for _ in range(12))
    return Map(tuple(rng.sample(list(COLOURS), 4)), tuple(rng.sample(range(10), 4)), regions, rng.randrange(12))


SCENE_KINDS: dict[str, Callable[[Random], Layout]] = {
    "pair": _pair,
    "digits": _digits,
    "shapes": _shapes,
    "map": _map,
}


def _render(rng: Random, layout: Layout, split: str) -> np.ndarray:
    if isinstance(layout, Digits):
        return _render_digits(rng, layout, split)
    if isinstance(layout, Shapes):
        return _render_shapes(rng, layout)
    return _render_map(rng, layout, split)


def _render_digits(rng: Random, layout: Digits, split: str) -> np.ndarray:
    ink = np.zeros((SIZE, SIZE), np.int16)
    for cell, value in zip(layout.cells, layout.values, strict=True):
        left = _inside(cell // GRID * CELL + rng.randrange(-2, 3))
        top = _inside(cell % GRID * CELL + rng.randrange(-2, 3))
        window = ink[top : top + CELL, left : left + CELL]
        np.maximum(window, _glyph(rng, split, value), out=window)
    paper = np.frombuffer(rng.randbytes(SIZE * SIZE), np.uint8).reshape(SIZE, SIZE).astype(np.int16) * 20 // 256
    grey = np.minimum(ink + paper, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def _render_shapes(rng: Random, layout: Shapes) -> np.ndarray:
    image = np.full((SIZE, SIZE, 3), rng.randrange(40), np.uint8)
    for shape in layout.objects:
        radius, shift = (7, 0) if shape.large else (4, rng.randrange(-2, 3))
        x, y = shape.column * CELL + CELL // 2 + shift, shape.row * CELL + CELL // 2 + shift
        window = image[y - radius : y + radius + 1, x - radius : x + radius + 1]
        window[_mask(shape.kind, radius)] = _tint(rng, shape.colour)
    return image


def _render_map(rng: Random, layout: Map, split: str) -> np.ndarray:
    tints = [_tint(rng, colour) for colour in layout.colours]
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    for region, place in enumerate(layout.regions):
        top, left = region // GRID * CELL, region % GRID * CELL
        image[top : top + CELL, left : left + CELL] = tints[place]
    for place, value in enumerate(layout.values):
        ink = _glyph(rng, split, value)[..., None].astype(np.int64)
        tile = tints[place].astype(np.int64) * 3 * (255 - ink) // (5 * 255) + ink
        image[SIZE - CELL :, place * CELL : (place + 1) * CELL] = tile
    top, left = layout.marked // GRID * CELL + 5, layout.marked % GRID * CELL + 5
    image[top : top + 6, left : left + 6] = 255
    return image


def _glyph(rng: Random, split: str, value: int) -> np.ndarray:
    return glyphs()[rng.choice(digit_indices(split, value))]


def _tint(rng: Random, colour: str) -> np.ndarray:
    return np.array([min(255, max(0, part + rng.randrange(-20, 21))) for part in COLOURS[colour]], np.uint8)


def _inside(position: int) -> int:
    return min(max(position, 0), SIZE - CELL)


@cache
def _mask(kind: str, radius: int) -> np.ndarray:
    """Which pixels of the square around a shape's centre it covers."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    if kind == "circle":
        return x * x + y * y <= radius * (radius + 1)
    if kind == "square":
        return np.ones_like(x, bool)
    if kind == "triangle":
        return 2 * np.abs(x) <= y + radius
    return np.minimum(np.abs(x), np.abs(y)) <= max(1, radius // 3)
