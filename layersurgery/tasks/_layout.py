"""`Layout`: where in a row each part of a question is. Data only; `_reading` follows it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from layersurgery.errors import TaskError
from layersurgery.tasks._sample import KINDS, Kind

Count: TypeAlias = int | Literal["?"]
"""How many rows there should be; "?" where nobody has counted."""


@dataclass(frozen=True)
class Filter:
    """Which rows take part.

    Args:
        column: the column that is looked at.
        test: "present" (there is something in it), "equals", "below" or "one_of".
        value: what it is compared with: as a number where this is a number, else as text; a list for "one_of".
    """

    column: str
    test: Literal["present", "equals", "below", "one_of"]
    value: Any = None

    def __post_init__(self) -> None:
        if (self.value is None) != (self.test == "present"):
            raise TaskError(f"test = {self.test!r} goes {'without' if self.test == 'present' else 'with'} a value")
        if self.test == "below" and (isinstance(self.value, bool) or not isinstance(self.value, int)):
            raise TaskError(f"value = {self.value!r}; 'below' compares with a whole number")
        if isinstance(self.value, list):
            object.__setattr__(self, "value", tuple(self.value))
        if (self.test == "one_of") != isinstance(self.value, tuple):
            raise TaskError(f"value = {self.value!r}; 'one_of' takes a list, 'equals' a single value")


@dataclass(frozen=True)
class Images:
    """Where the pictures are.

    Args:
        kind: "column" (one picture, or none, in each column), "list" (a column of lists), "numbered" (as "column", and
            the question counts them: `<image 2>` is the second column's) or "base64" (text; or the `uid` of the row
            that has the picture).
        columns: names of the columns.
    """

    kind: Literal["column", "list", "numbered", "base64"]
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Options:
    """Where the options are.

    Args:
        kind: "columns" (one for each option), "list" (a column of lists), "literal" (the text of a Python list),
            "in_question" (inside the question's text) or "none".
        columns: names of the columns.
        parser: for "in_question": how they are written there.
    """

    kind: Literal["columns", "list", "literal", "in_question", "none"]
    columns: tuple[str, ...] = ()
    parser: Literal["mmstar"] | None = None

    def __post_init__(self) -> None:
        if (self.kind == "in_question") != (self.parser is not None):
            raise TaskError("a parser is for kind = 'in_question', and needed there")
        if bool(self.columns) != (self.kind in ("columns", "list", "literal")):
            raise TaskError(f"columns = {list(self.columns)!r} does not go with kind = {self.kind!r}")


@dataclass(frozen=True)
class Gold:
    """Where the right answer is, and how it is written for questions with options. For others it is the text itself.

    Args:
        column: name of the column.
        kind: "letter", "index" (counted from 0) or "option_text".
        several: the answer to a question without options may be the text of a Python list, each of which is right.
    """

    column: str
    kind: Literal["letter", "index", "option_text"]
    several: bool = False


@dataclass(frozen=True)
class KindFrom:
    """What is asked for, where that differs from row to row.

    Args:
        column: name of the column.
        names: from its values to `KINDS`.
    """

    column: str
    names: Mapping[str, Kind]


@dataclass(frozen=True)
class Category:
    """What a question is filed under.

    Args:
        name: name of the division.
        column: the column, or a path into nested ones with full stops.
        pattern: a regular expression with one group, which is what counts of the column's text; or nothing.
        names: from the column's values to the names that are used; or nothing, and then the values are used.
        several: the column is a list.
    """

    name: str
    column: str
    pattern: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    several: bool = False

    def __post_init__(self) -> None:
        try:
            groups = re.compile(self.pattern).groups
        except re.error as error:
            raise TaskError(f"pattern = {self.pattern!r} is no regular expression: {error}") from error
        if self.pattern and groups != 1:
            raise TaskError(f"pattern = {self.pattern!r} has {groups} groups; expected one: what counts of the text")


@dataclass(frozen=True)
class Circular:
    """How rows that ask the same question with rotated options are told from the main rows.

    Args:
        column: a column of whole numbers; the k-th rotation of row i has the number i + k * step.
        step: the distance, larger than any main row's number.
    """

    column: str
    step: int

    def __post_init__(self) -> None:
        if self.step < 1:
            raise TaskError(f"step = {self.step}; expected 1 or more")


@dataclass(frozen=True)
class Layout:
    """Where in a row each part of a question is.

    Args:
        uid: the column that names a row; "row_number" where there is none: rows are counted from 0, before any filter.
        question: the column with the question's text.
        images: where the pictures are.
        options: where the options are.
        gold: where the right answer is.
        kind: what is asked for: one of `KINDS`, or a column that says so.
        hint: the column with what is to be known in addition; or nothing.
        missing: texts that mean "nothing there", in options, hints, units and categories.
        precision: the column with the decimals that count; or nothing.
        unit: the column with the answer's unit; or nothing.
        filters: which rows take part.
        categories: what a question is filed under.
        group: a column; rows with the same value there are never split between probe and test.
        circular: how rotated copies are recognised; they form a group.
        meta: columns kept as they are: names in `Sample.meta`, and the columns.
    """

    uid: str
    question: str
    images: Images
    options: Options
    gold: Gold
    kind: Kind | KindFrom = "mcq"
    hint: str = ""
    missing: tuple[str, ...] = ("",)
    precision: str = ""
    unit: str = ""
    filters: tuple[Filter, ...] = ()
    categories: tuple[Category, ...] = ()
    group: str = ""
    circular: Circular | None = None
    meta: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [category.name for category in self.categories]
        if twice := {name for name in names if names.count(name) > 1}:
            raise TaskError(f"categories: {', '.join(sorted(twice))} is there twice")
        if self.group and self.circular:
            raise TaskError("group and circular do not go together: rotated copies are a group already")
        if isinstance(self.kind, str) and (self.kind == "mcq") != (self.options.kind != "none"):
            raise TaskError(
                f"kind = {self.kind!r} does not go with options.kind = {self.options.kind!r}; kinds: {KINDS}"
            )

    @property
    def deciding(self) -> frozenset[str]:
        """The columns that say whether a row takes part, and what it is filed under; none of them is a picture's."""
        columns = {filter.column for filter in self.filters} | {category.column for category in self.categories}
        columns |= {self.circular.column} if self.circular else set()
        return frozenset(column.split(".")[0] for column in columns - set(self.images.columns))

    @property
    def present(self) -> frozenset[str]:
        """The columns of pictures of which a filter asks whether there is one."""
        return frozenset(filter.column for filter in self.filters) & frozenset(self.images.columns)

    @property
    def needed(self) -> frozenset[str]:
        """All columns that a row must have."""
        columns = {self.question, self.hint, self.precision, self.unit, self.group, self.gold.column}
        columns |= {*self.images.columns, *self.options.columns, *self.meta.values()} - {""}
        columns |= set() if self.uid == ROW_NUMBER else {self.uid}
        columns |= {self.kind.column} if isinstance(self.kind, KindFrom) else set()
        columns |= {filter.column for filter in self.filters}
        return frozenset(column.split(".")[0] for column in columns if column) | self.deciding


ROW_NUMBER = "row_number"
