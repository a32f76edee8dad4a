"""Options and the right one among them, in the ways in which benchmarks store them."""

from __future__ import annotations

import re

from layersurgery.errors import SampleError
from layersurgery.tasks._cells import Row
from layersurgery.tasks._layout import Gold, Options
from layersurgery.tasks._sample import LETTERS


def read_options(row: Row, options: Options, question: str) -> tuple[str, tuple[str, ...]]:
    """The question without its options, and the options.

    Raises:
        SampleError: if they are not there as the layout says.
    """
    if options.kind == "in_question":
        return PARSERS[options.parser or ""](question, row.where)
    if options.kind == "list":
        found = tuple(str(item) for column in options.columns for item in row.items(column))
    elif options.kind == "literal":
        found = tuple(item for column in options.columns for item in row.literal(column))
    elif options.kind == "columns":
        found = _from_columns(row, options.columns)
    else:
        found = ()
    return question, found


def right_option(row: Row, gold: Gold, options: tuple[str, ...]) -> int:
    """The index of the right option.

    Of options with the same text, it is the first: a rule that compares texts counts each of them as right.

    Raises:
        SampleError: if what is given fits no option.
    """
    if gold.kind == "index":
        index = row.integer(gold.column)
    elif gold.kind == "letter":
        letter = row.text(gold.column).strip().upper()
        index = LETTERS.index(letter) if len(letter) == 1 and letter in LETTERS else -1
    else:
        text = row.name(gold.column)
        index = options.index(text) if text in options else -1
    if not 0 <= index < len(options):
        expected = {"index": "an index counted from 0", "letter": "a letter", "option_text": "an option's text"}
        raise SampleError(
            f"{row.where}: {gold.column}={row.cell(gold.column)!r} fits none of the {len(options)} options "
            f"{list(options)}; expected {expected[gold.kind]}"
        )
    return index


def mmstar_options(question: str, where: str = "the question") -> tuple[str, tuple[str, ...]]:
    r"""The stem and the options of an MMStar question, which has its options in its text.

    They are in a last line `Options: A: ..., B: ...`; or one a line as `(A) ...`, with or without a line `Choices:`
    before them.

    Raises:
        SampleError: if there are none, or two of the same letter.

    Examples:
        >>> mmstar_options("What is it?\nOptions: A: a cat, a dog, B: nan")
        ('What is it?', ('a cat, a dog', 'nan'))
        >>> mmstar_options("Hint: Choose.\nQuestion: How many?\nChoices:\n(A) 1\n(B)2")
        ('Hint: Choose.\nQuestion: How many?', ('1', '2'))
    """
    stem, found, listed = question.rpartition("\nOptions: ")
    if found:
        return stem, _cut(listed, r"(?:^|, )([A-Z]): ", where)
    first = re.search(r"\n\(A\) ?", question)
    if first is None:
        raise SampleError(f"{where}: no options in the question {question!r}; expected 'Options: A: ...' or '(A) ...'")
    stem = question[: first.start()].removesuffix("\nChoices:")
    return stem, _cut(question[first.start() :], r"\n\(([A-Z])\)[ ]*", where)


PARSERS = {"mmstar": mmstar_options}


def _cut(listed: str, marker: str, where: str) -> tuple[str, ...]:
    """The texts between markers of consecutive letters; another letter's marker is text."""
    starts: list[tuple[int, int]] = []
    for match in re.finditer(marker, listed):
        place = LETTERS.index(match[1])
        if place == len(starts):
            starts.append(match.span())
        elif place < len(starts):
            raise SampleError(f"{where}: it is not clear where option {match[1]} begins in {listed!r}")
    if len(starts) < 2:
        raise SampleError(f"{where}: fewer than two options in {listed!r}")
    ends = [start for start, _ in starts[1:]] + [len(listed)]
    return tuple(listed[after:end].rstrip("\n") for (_, after), end in zip(starts, ends, strict=True))


def _from_columns(row: Row, columns: tuple[str, ...]) -> tuple[str, ...]:
    """Options until the first column with nothing in it; letters must not shift."""
    values = [row.cell(column) for column in columns]
    gone = [row.is_missing(value) for value in values]
    count = gone.index(True) if True in gone else len(gone)
    if not all(gone[count:]):
        later = columns[gone.index(False, count)]
        raise SampleError(
            f"{row.where}: option {later} is there and option {columns[count]} is not, so that the letters would shift"
        )
    return tuple(row.name(column) for column in columns[:count])
