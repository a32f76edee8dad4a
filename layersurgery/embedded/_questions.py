"""The questions of the embedded benchmark: 13 tasks in 5 families."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from layersurgery.embedded._scenes import COLOURS, SHAPES, Digits, Layout, Map, Shapes

PLACES = ("left", "right", "above", "below")
NUMBERS = tuple(str(i) for i in range(19))


@dataclass(frozen=True)
class Question:
    """A question about one scene.

    Args:
        text: the question.
        answer: its right answer.
        pool: what options are drawn from; holds the answer.
    """

    text: str
    answer: str
    pool: tuple[str, ...]

    def options(self, rng: Random, place: int, always: tuple[str, ...] = ()) -> tuple[str, ...]:
        """The right answer at the given place among up to three others.

        Args:
            rng: draws the other options.
            place: index of the right answer; below the number of options.
            always: answers that must be among the others.

        Examples:
            >>> Question("Which digit is larger?", "left", ("left", "right")).options(Random(0), 1)
            ('right', 'left')
        """
        always = tuple(other for other in always if other != self.answer)
        free = [other for other in dict.fromkeys(self.pool) if other != self.answer and other not in always]
        count = self.option_count - 1
        others = [*always, *rng.sample(free, count - len(always))]
        rng.shuffle(others)
        return (*others[:place], self.answer, *others[place:])

    @property
    def option_count(self) -> int:
        """How many options the question is asked with: four, or all of a smaller pool."""
        return min(4, len(dict.fromkeys(self.pool)))


@dataclass(frozen=True)
class EmbeddedTask:
    """One task of the embedded benchmark.

    Args:
        name: the task's name.
        family: perception, counting, relation, arithmetic or map.
        description: what is asked.
        scenes: kinds of scenes and the share of each.
        option_count: options of every question.
        ask: draws a question about a layout, or None where the layout cannot carry one.
    """

    name: str
    family: str
    description: str
    scenes: dict[str, float]
    option_count: int
    ask: Callable[[Random, Any], Question | None]

    @property
    def chance(self) -> float:
        """Accuracy of guessing."""
        return 1 / self.option_count


def _digit_name(rng: Random, layout: Digits) -> Question:
    side = rng.randrange(2)
    return Question(f"Which digit is on the {PLACES[side]}?", str(layout.values[side]), NUMBERS[:10])


def _digit_larger(rng: Random, layout: Digits) -> Question | None:
    left, right = layout.values
    if left == right:
        return None
    return Question("Which digit is larger?", "left" if left > right else "right", ("left", "right"))


def _digit_sum(rng: Random, layout: Digits) -> Question:
    total = sum(layout.values)
    return Question("What is the sum of the digits?", str(total), NUMBERS[max(0, total - 5) : total + 6])


def _digit_even(rng: Random, layout: Digits) -> Question:
    return Question("Is the sum of the digits even?", "no" if sum(layout.values) % 2 else "yes", ("yes", "no"))


def _digit_count(rng: Random, layout: Digits) -> Question:
    return Question("How many digits are there?", str(len(layout.values)), NUMBERS[1:5])


def _shape_colour(rng: Random, layout: Shapes) -> Question | None:
    kinds = [shape.kind for shape in layout.objects]
    single = [shape for shape in layout.objects if kinds.count(shape.kind) == 1]
    if not single:
        return None
    shape = rng.choice(single)
    return Question(f"Which colour is the {shape.kind}?", shape.colour, tuple(COLOURS))


def _shape_kind(rng: Random, layout: Shapes) -> Question:
    shape = rng.choice(layout.objects)
    return Question(f"Which shape is {shape.colour}?", shape.kind, SHAPES)


def _shape_count(rng: Random, layout: Shapes) -> Question:
    return Question("How many shapes are there?", str(len(layout.objects)), NUMBERS[2:7])


def _shape_where(rng: Random, layout: Shapes) -> Question | None:
    aligned = [
        (a, b)
        for a in layout.objects
        for b in layout.objects
        if (a.column == b.column) != (a.row == b.row)  # on one line, so that one word says it
    ]
    if not aligned:
        return None
    a, b = rng.choice(aligned)
    place = PLACES[a.column > b.column] if a.row == b.row else PLACES[2 + (a.row > b.row)]
    return Question(f"Where is the {a.colour} shape from the {b.colour} one?", place, PLACES)


def _shape_size(rng: Random, layout: Shapes) -> Question | None:
    pairs = [(a, b) for a in layout.objects if a.large for b in layout.objects if not b.large]
    if not pairs:
        return None
    a, b = rng.choice(pairs)
    return Question("Which shape is larger?", a.colour, (a.colour, b.colour))


def _map_count(rng: Random, layout: Map) -> Question:
    place = rng.randrange(4)
    count = layout.regions.count(place)
    pool = NUMBERS[max(0, count - 3) : count + 4]
    return Question(f"How many regions are {layout.colours[place]}?", str(count), pool)


def _map_value(rng: Random, layout: Map) -> Question:
    value = layout.values[layout.regions[layout.marked]]
    return Question("What value has the marked region?", str(value), tuple(str(v) for v in layout.values))


def _map_legend(rng: Random, layout: Map) -> Question:
    place = rng.randrange(4)
    return Question(f"Which colour stands for {layout.values[place]}?", layout.colours[place], layout.colours)


_PAIR = {"pair": 1.0}
_COUNTED = {"pair": 0.25, "digits": 0.75}  # so that the counts one to four are equally frequent
_SHAPES = {"shapes": 1.0}
_MAP = {"map": 1.0}

TASKS: dict[str, EmbeddedTask] = {
    task.name: task
    for task in (
        EmbeddedTask("digit_name", "perception", "Name the left or right of two digits.", _PAIR, 4, _digit_name),
        EmbeddedTask("shape_colour", "perception", "Name a shape's colour.", _SHAPES, 4, _shape_colour),
        EmbeddedTask("shape_kind", "perception", "Name the shape of a colour.", _SHAPES, 4, _shape_kind),
        EmbeddedTask("digit_count", "counting", "Count one to four digits.", _COUNTED, 4, _digit_count),
        EmbeddedTask("shape_count", "counting", "Count two to six shapes.", _SHAPES, 4, _shape_count),
        EmbeddedTask("map_count", "counting", "Count the regions of a colour on a map.", _MAP, 4, _map_count),
        EmbeddedTask("digit_larger", "relation", "Say which of two digits is larger.", _PAIR, 2, _digit_larger),
        EmbeddedTask("shape_where", "relation", "Say where one shape is from another.", _SHAPES, 4, _shape_where),
        EmbeddedTask("shape_size", "relation", "Say which of two shapes is larger.", _SHAPES, 2, _shape_size),
        EmbeddedTask("digit_sum", "arithmetic", "Add two digits.", _PAIR, 4, _digit_sum),
        EmbeddedTask("digit_even", "arithmetic", "Say whether two digits' sum is even.", _PAIR, 2, _digit_even),
        EmbeddedTask("map_value", "map", "Look up the marked region's value in the legend.", _MAP, 4, _map_value),
        EmbeddedTask("map_legend", "map", "Find the colour that stands for a value.", _MAP, 4, _map_legend),
    )
}


def ask(rng: Random, task: str, layout: Layout) -> Question | None:
    """Draw a question of a task about a layout; None where the layout cannot carry one.

    Examples:
        >>> ask(Random(0), "digit_sum", Digits((0, 8), (3, 4))).answer
        '7'
    """
    return TASKS[task].ask(rng, layout)
