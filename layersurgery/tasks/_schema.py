"""From a TOML table to a frozen dataclass: every field checked against its annotation, every mistake named."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from layersurgery._toml import tomllib
from layersurgery.errors import TaskError

Built = TypeVar("Built")


def read_definition(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        TaskError: if there is no such file, or it is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TaskError(f"there is no benchmark definition {path} that can be read: {error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TaskError(f"{path} is no TOML: {error}") from error


def build(cls: type[Built], table: Mapping[str, Any], where: str) -> Built:
    """An instance of the dataclass `cls` from a table of its fields.

    Args:
        cls: a dataclass whose annotations use text, numbers, truth values, `Literal`, `None`, tuples, mappings and
            other such dataclasses.
        table: the fields as TOML gives them.
        where: the file, and the table in it, for messages.

    Raises:
        TaskError: for an unknown, missing or malformed field; it names the field, its value and what is allowed.

    Examples:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Point:
        ...     x: int
        ...     label: str = ""
        >>> build(Point, {"x": 3}, "points.toml")
        Point(x=3, label='')
        >>> build(Point, {"x": 3, "labell": "a"}, "points.toml")
        Traceback (most recent call last):
        ...
        layersurgery.errors.TaskError: points.toml: unknown field 'labell'; did you mean 'label'? The fields: x, label
    """
    known = {field.name: field for field in fields(cls) if field.init}  # pyright: ignore[reportArgumentType]
    for name in table:
        if name not in known:
            near = did_you_mean(name, known)
            raise TaskError(f"{where}: unknown field {name!r}; {near}The fields: {', '.join(known)}")
    for name, field in known.items():
        if field.default is MISSING and field.default_factory is MISSING and name not in table:
            raise TaskError(f"{where}: the field {name!r} is missing; it has {', '.join(table) or 'none'}")
    hints = get_type_hints(cls)
    values = {name: _value(hints[name], value, f"{where}: {name}") for name, value in table.items()}
    try:
        return cls(**values)
    except TaskError as error:
        raise TaskError(f"{where}: {error}") from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The beginning of a next step: the known names that `name` may have been meant for, or nothing.

    Examples:
        >>> did_you_mean("mathh", ["math", "maps"])
        "did you mean 'math'? "
    """
    near = difflib.get_close_matches(name, list(known), 3)
    return f"did you mean {' or '.join(map(repr, near))}? " if near else ""


def _value(wanted: Any, value: Any, where: str) -> Any:
    """The value as the annotation wants it: lists become tuples, tables become dataclasses."""
    kind = get_origin(wanted)
    if kind in (Union, types.UnionType):
        return _one_of(get_args(wanted), value, where)
    if kind is Literal:
        return _literal(get_args(wanted), value, where)
    if kind is tuple:
        items = _expect(value, list | tuple, "a list", where)
        return tuple(_value(get_args(wanted)[0], item, f"{where}[{place}]") for place, item in enumerate(items))
    if kind is not None:
        table = _expect(value, Mapping, "a table", where)
        return {str(name): _value(get_args(wanted)[1], item, f"{where}.{name}") for name, item in table.items()}
    if isinstance(wanted, type) and is_dataclass(wanted):
        return value if isinstance(value, wanted) else build(wanted, _expect(value, Mapping, "a table", where), where)
    if wanted is not Any and (not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool)):
        raise TaskError(f"{where} = {value!r}; expected {_NAMES.get(wanted, wanted)}")
    return value


def _expect(value: Any, wanted: Any, name: str, where: str) -> Any:
    if not isinstance(value, wanted):
        raise TaskError(f"{where} = {value!r}; expected {name}")
    return value


def _literal(allowed: tuple[Any, ...], value: Any, where: str) -> Any:
    if value not in allowed:
        near = did_you_mean(value, allowed) if isinstance(value, str) else ""
        raise TaskError(f"{where} = {value!r}; {near}Allowed: {', '.join(map(repr, allowed))}")
    return value


_NAMES: dict[Any, str] = {str: "a text", int: "a whole number", bool: "true or false"}


def _one_of(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    """The first of several annotations that the value fits; a table is built as a table, so that its error shows."""
    if value is None and type(None) in choices:
        return None
    choices = tuple(choice for choice in choices if choice is not type(None))
    errors: list[TaskError] = []
    for choice in choices:
        try:
            return _value(choice, value, where)
        except TaskError as error:
            errors.append(error)
            if is_dataclass(choice) and isinstance(value, Mapping):
                raise
    raise errors[0] if len(errors) == 1 else TaskError("; or ".join(map(str, errors)))
