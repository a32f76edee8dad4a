"""What is in a cell of a row, as what it should be, or an error that names row, column and value."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Mapping
from typing import Any

from layersurgery.errors import SampleError
from layersurgery.tasks._schema import did_you_mean


class Row:
    """A row with a name: every mistake in it is reported with that name.

    Args:
        cells: what is in it, by column.
        where: what messages call it.
        missing: texts that mean "nothing there".
    """

    def __init__(self, cells: Any, where: str, missing: tuple[str, ...] = ()) -> None:
        if not isinstance(cells, Mapping):
            raise SampleError(f"{where}: expected an object with named fields, got {cells!r}")
        self.cells: Mapping[str, Any] = cells
        self.where = where
        self.missing = missing

    def cell(self, path: str) -> Any:
        """What is in a column, or at a path into nested ones.

        Raises:
            SampleError: if there is no such column; it lists those there are.
        """
        value: Any = self.cells
        for name in [path] if path in self.cells else path.split("."):
            if not isinstance(value, Mapping) or name not in value:
                raise SampleError(no_column(self.where, path, self.cells))
            value = value[name]
        return value

    def text(self, path: str, default: str | None = None) -> str:
        """A text; with a default for where there is nothing.

        Raises:
            SampleError: if it is no text; or nothing, and there is no default.
        """
        value = self.cell(path)
        if default is not None and self.is_missing(value):
            return default
        if not isinstance(value, str):
            raise self.wrong(path, value, "a text")
        return value

    def name(self, path: str) -> str:
        """A text, or a whole number as one.

        Raises:
            SampleError: if it is neither, or empty.
        """
        value = self.cell(path)
        if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
            raise self.wrong(path, value, "a text or a whole number")
        return str(value)

    def integer(self, path: str) -> int:
        """A whole number, also where it is written as text.

        Raises:
            SampleError: if it is none.
        """
        value = self.cell(path)
        number = _integer(value)
        if number is None:
            raise self.wrong(path, value, "a whole number")
        return number

    def integer_or_none(self, path: str) -> int | None:
        """A whole number, or None for nothing.

        Raises:
            SampleError: if it is something else.
        """
        return None if self.is_missing(self.cell(path)) else self.integer(path)

    def items(self, path: str) -> tuple[Any, ...]:
        """The items of a list; none for nothing.

        Raises:
            SampleError: if it is no list.
        """
        value = self.cell(path)
        if self.is_missing(value):
            return ()
        if not isinstance(value, list | tuple):
            raise self.wrong(path, value, "a list")
        return tuple(value)

    def literal(self, path: str) -> tuple[str, ...]:
        """The items of a list that is written as the text of a Python list; none for nothing.

        Raises:
            SampleError: if the text is none.
        """
        value = self.cell(path)
        if self.is_missing(value):
            return ()
        items = literal_list(value) if isinstance(value, str) else None
        if items is None:
            raise self.wrong(path, value, "the text of a list, such as \"['a', 'b']\"")
        return items

    def is_missing(self, value: Any) -> bool:
        """Whether a value means "nothing there"."""
        if isinstance(value, str):
            return value.strip() in self.missing
        return value is None or (isinstance(value, float) and math.isnan(value))

    def wrong(self, path: str, value: Any, expected: str) -> SampleError:
        """The error for a value of the wrong type."""
        shown = repr(value)
        shown = shown if len(shown) <= 80 else f"{shown[:80]}..."
        return SampleError(
            f"{self.where}: {path}={shown}; expected {expected}. The columns: {', '.join(map(str, self.cells))}"
        )


def no_column(where: str, column: str, there: Iterable[Any]) -> str:
    """The message for a column that is not there."""
    names = list(map(str, there))
    return f"{where}: there is no column {column!r}; {did_you_mean(column, names)}The columns: {', '.join(names)}"


def literal_list(text: str) -> tuple[str, ...] | None:
    """The items of the text of a Python list, as texts; None if it is none.

    Examples:
        >>> literal_list("['1/2', 0.5]"), literal_list("C")
        (('1/2', '0.5'), None)
    """
    try:
        value = ast.literal_eval(text.strip()) if text.strip().startswith("[") else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return tuple(item if isinstance(item, str) else str(item) for item in value) if isinstance(value, list) else None


def _integer(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            return None
    return int(value) if isinstance(value, int | float) and math.isfinite(value) and value == int(value) else None
