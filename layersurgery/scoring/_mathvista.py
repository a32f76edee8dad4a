"""MathVista's numbers and lists, read without the language model that the benchmark asks to read them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from layersurgery.errors import ScoringError
from layersurgery.scoring import _extract

_TEN_TO_THE = re.compile(r"(?<=\d)\s*(?:x|\*|\u00d7|\\times|\\cdot)\s*10\s*\^\s*\{?\s*([-+]?\d+)\s*\}?", re.IGNORECASE)
_EXPONENT = re.compile(r"\^\s*\{?\s*[-+]?\d+\s*\}?")
_LIST = re.compile(r"\[([^\[\]]*)\]")


def read_number(text: str) -> float | None:
    """The last number of an answer, with thousands commas or a power of ten, and whatever unit follows it.

    Args:
        text: the generated answer.

    Returns:
        The number; None also where it is written as a fraction or a power, which nobody has worked out.

    Examples:
        >>> read_number("3 + 11 makes 14 cm^2."), read_number("1.5 x 10^3 m"), read_number("fourteen")
        (14.0, 1500.0, None)
    """
    text = _TEN_TO_THE.sub(r"e\1", text.translate(_extract.PLAIN_MARKS))
    text = _EXPONENT.sub("^", text)  # so that the last number of "cm^2" is not 2
    found = [match for match in _extract.ANY_NUMBER.finditer(text) if not text.startswith("^", match.end())]
    return _extract.value(found[-1]["number"]) if found else None


def read_list(text: str) -> tuple[float | str, ...] | None:
    """The last list in square brackets: of numbers and quoted texts, not nested.

    Args:
        text: the generated answer.

    Examples:
        >>> read_list("The answer is [1,2]."), read_list("[see the figure]")
        ((1.0, 2.0), None)
    """
    spans = _LIST.findall(text.translate(_extract.PLAIN_MARKS))
    if not spans:
        return None
    items = [_item(item.strip()) for item in spans[-1].split(",")]
    return None if None in items else tuple(item for item in items if item is not None)


def number_of(gold: object, name: str) -> float:
    """The right number of a sample called `name`.

    Raises:
        ScoringError: if it is none.

    Examples:
        >>> number_of("1,250", "q1")
        1250.0
    """
    number = _extract.value(str(gold).strip())
    if number is None:
        raise ScoringError(
            f"sample {name!r}: the right answer {gold!r} is no number; give a number, or another kind of question"
        )
    return number


def list_of(gold: object, name: str) -> tuple[float | str, ...]:
    """The right list of a sample called `name`, from a text such as "[1, 2]" or from its items.

    Raises:
        ScoringError: if it is none.

    Examples:
        >>> list_of("[1, 2]", "q1"), list_of(("1", "red"), "q2")
        ((1.0, 2.0), (1.0, 'red'))
    """
    if isinstance(gold, tuple):
        numbers = [_extract.value(str(item)) for item in gold]
        return tuple(str(item) if number is None else number for item, number in zip(gold, numbers, strict=True))
    items = read_list(str(gold))
    if items is None:
        raise ScoringError(
            f"sample {name!r}: the right answer {gold!r} is no list; give a text such as '[1, 2]', or the items"
        )
    return items


def same(answer: float | str, right: float | str, precision: int | None) -> bool:
    """Whether two are equal once both are rounded to `precision` decimals, if they are numbers (None: as they are).

    Examples:
        >>> same(1.24, 1.2, 1), same(1.24, 1.2, None)
        (True, False)
    """
    return _rounded(answer, precision) == _rounded(right, precision)


def same_list(answer: Sequence[float | str], right: Sequence[float | str], precision: int | None) -> bool:
    """Whether two lists are equal, item by item.

    Examples:
        >>> same_list((1.0, 2.0), (1, 2), None), same_list((1.0, 2.0), (2, 1), None)
        (True, False)
    """
    return len(answer) == len(right) and all(same(a, b, precision) for a, b in zip(answer, right, strict=True))


def _item(text: str) -> float | str | None:
    quoted = re.fullmatch(r"(['\"])(.*)\1", text, re.DOTALL)
    return quoted[2] if quoted else _extract.value(text)


def _rounded(value: object, precision: int | None) -> object:
    return round(value, precision) if isinstance(value, (int, float)) and precision is not None else value
