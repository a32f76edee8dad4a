"""Multiple choice and open answers as MMMU's own evaluation reads them, without its draw by chance."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable, Iterator, Sequence

from layersurgery.tasks import LETTERS

_MARKS = (",", ".", "!", "?", ";", ":", "'")
_LEADS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
# Three searches, as the benchmark makes them: "1,234" is also read as 234, and "12cm" not at all.
_NUMBERS = (
    re.compile(r"-?(?<!\w)\d{1,3}(?:,\d{3})+(?!\w)"),
    re.compile(r"-?\d+(?:\.\d+)?e[+-]?\d+"),
    re.compile(r"-?(?:\d*\.\d+|\d+(?!\w))(?![\d,])(?!e[+-]?\d)"),
)


def read_choice(text: str, options: Sequence[str]) -> int | None:
    """The option named last: as "(B)", else as a capital between blanks, else, in longer answers, by its text.

    Args:
        text: the generated answer.
        options: the options' texts; an empty one is only ever named by its letter.

    Returns:
        The option's index; None where MMMU's evaluation draws one by chance.

    Examples:
        >>> read_choice("Either (A) or (B).", ("cat", "dog")), read_choice("dog", ("cat", "dog"))
        (1, None)
    """
    for mark in _MARKS:  # one after the other: of "B'." nothing but the letter is left, of "B.'" also the stop
        text = text.strip(mark)
    text = f" {text} "
    for form in ("({})", " {} "):
        named = _last(text, [form.format(letter) for letter in LETTERS[: len(options)]])
        if named is not None:
            return named
    return _last(text.lower(), [option.lower() for option in options]) if len(text.split()) > 5 else None


def read_open(text: str) -> tuple[float | str, ...] | None:
    """What an open answer may have meant: what follows its "is", "so", "=", ... in each line, and the numbers there.

    Args:
        text: the generated answer.

    Returns:
        Numbers, rounded to two decimals, and texts in lower case; a text of one character comes padded, once on each
        side, so that it is found as a word only.

    Examples:
        >>> read_open("I count again. The answer is 8 dogs.")
        ('8 dogs', 8.0)
    """
    whole = text.strip().strip(".").lower()
    if not whole:
        return None
    said = list(_said(whole.split("\n"))) or [whole]
    numbers = [number for part in said for form in _NUMBERS for number in form.findall(part)]
    return tuple(dict.fromkeys(meant for part in [*said, *numbers] for meant in _normalised(part)))


def same_open(answer: Iterable[float | str], gold: object) -> bool:
    """Whether one thing that an answer may have meant equals a right number or contains a right text.

    Args:
        answer: as `read_open` gives it.
        gold: the right answer, or several, as a list or as the text of one.

    Examples:
        >>> same_open(("it is tampa bay",), "Tampa"), same_open((3.43,), "['24/7', '3.429']"), same_open((18.0,), "8")
        (True, True, False)
    """
    right = [meant for one in _golds(gold) for meant in _normalised(str(one)) if meant != ""]
    return any(_agrees(said, one) for said in answer for one in right)


def _last(text: str, names: Sequence[str]) -> int | None:
    """Which of `names` stands last in `text`; of those at the same place, the first."""
    places = [text.rfind(name) if name else -1 for name in names]
    best = max(range(len(places)), key=places.__getitem__)
    return best if places[best] >= 0 else None


def _said(parts: Sequence[str]) -> Iterator[str]:
    """Per part with a lead ("is", "so", ...), the shortest text that follows one."""
    for position, part in enumerate(parts, 1):
        leads = (*_LEADS, "=") if position == len(parts) else _LEADS  # an equation counts at the end only
        shortest = ""
        for rest in (part.rpartition(lead)[2].strip() for lead in leads if lead in part):
            if not shortest or len(rest) < len(shortest):  # in turn: an empty rest only counts as one if it is the last
                shortest = rest
        if shortest and shortest not in _MARKS:
            yield shortest


def _normalised(text: str) -> tuple[float | str, ...]:
    text = text.strip().lower()
    try:
        number = float(text.replace(",", ""))
    except ValueError:
        number = math.nan
    if math.isfinite(number):
        return (round(number, 2),)
    return (f" {text}", f"{text} ") if len(text) == 1 else (text,)


def _agrees(said: float | str, right: float | str) -> bool:
    return right in said if isinstance(right, str) and isinstance(said, str) else right == said


def _golds(gold: object) -> Iterable[object]:
    if isinstance(gold, str) and gold.lstrip().startswith("["):
        try:
            gold = ast.literal_eval(gold.strip())
        except (ValueError, SyntaxError):  # "[0, 1)" is an interval, and a text
            return [gold]
    return gold if isinstance(gold, (list, tuple)) else [gold]
