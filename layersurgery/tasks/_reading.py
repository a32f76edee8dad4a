"""From a row to a `Sample`, as a layout says."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from layersurgery.errors import LayerSurgeryWarning, SampleError
from layersurgery.tasks._cells import Row, literal_list
from layersurgery.tasks._layout import ROW_NUMBER, Category, Filter, KindFrom, Layout
from layersurgery.tasks._options import read_options, right_option
from layersurgery.tasks._pictures import base64_pictures, is_reference, picture
from layersurgery.tasks._sample import Kind, Sample


def takes_part(row: Row, filters: tuple[Filter, ...]) -> bool:
    """Whether a row passes the filters.

    Raises:
        SampleError: if a filter's column is missing, or has no number where one is compared.
    """
    return all(_passes(row, filter) for filter in filters)


def categories_of(row: Row, layout: Layout) -> dict[str, tuple[str, ...]]:
    """What a row is filed under: the name of each division, and its values.

    Raises:
        SampleError: if a column is missing, or a value is none that the definition knows.
    """
    return {category.name: tuple(_values(row, category)) for category in layout.categories}


def row_name(row: Row, layout: Layout, number: int) -> str:
    """The id of a row.

    Raises:
        SampleError: if it has none.
    """
    return str(number - 1) if layout.uid == ROW_NUMBER else row.name(layout.uid)


def read_sample(
    row: Row,
    layout: Layout,
    name: str,
    *,
    task: str,
    benchmark: str,
    look_up: Callable[[str], Any],
    folder: Path | None = None,
) -> Sample:
    """The sample that a row holds.

    Args:
        row: the row.
        layout: where in it each part is.
        name: the sample's id.
        task: name of the task that was asked for.
        benchmark: name of the benchmark.
        look_up: gives the picture's cell of another row, by its id.
        folder: what paths of pictures are relative to.

    Raises:
        SampleError: if a part is missing, or is not what it should be; the message names the row.
    """
    row = Row(row.cells, f"{row.where} (id {name!r})", row.missing)
    asked = row.text(layout.question)
    kind = _kind(row, layout)
    question, options = read_options(row, layout.options, asked)
    if kind == "mcq" and len(options) < 2:
        raise SampleError(f"{row.where}: it asks for an option and has {len(options)}: {list(options)}")
    meta = {"question": asked, **{name: row.cell(column) for name, column in layout.meta.items()}}
    images, numbers = _images(row, layout, look_up, folder)
    if layout.images.kind == "numbered":
        meta["image_numbers"] = numbers
    try:
        return Sample(
            id=name,
            question=question,
            options=options if kind == "mcq" else (),
            answer=right_option(row, layout.gold, options) if kind == "mcq" else _open_answer(row, layout),
            images=tuple(images),
            task=task,
            group=_group(row, layout, name),
            meta=meta,
            hint=row.text(layout.hint, "") if layout.hint else "",
            kind=kind,
            precision=row.integer_or_none(layout.precision) if layout.precision else None,
            unit=row.text(layout.unit, "") if layout.unit else "",
            categories=categories_of(row, layout),
            benchmark=benchmark,
        )
    except SampleError as error:
        raise error if str(error).startswith(row.where) else SampleError(f"{row.where}: {error}") from error


def _passes(row: Row, filter: Filter) -> bool:
    if filter.test == "present":
        value = row.cell(filter.column)
        if isinstance(value, Mapping):  # a picture, as it is stored
            return any(part is not None for part in value.values())
        return value is not None and value != "" and not row.is_missing(value)
    if filter.test == "below":
        return row.integer(filter.column) < filter.value
    wanted = filter.value if filter.test == "one_of" else (filter.value,)
    value = row.cell(filter.column)
    return any(row.integer(filter.column) == one if isinstance(one, int) else str(value) == one for one in wanted)


def _values(row: Row, category: Category) -> list[str]:
    value = row.cell(category.column)
    if row.is_missing(value):
        return []
    if category.several:
        stored = row.literal(category.column) if isinstance(value, str) else row.items(category.column)
        return [_named(row, category, one) for one in stored]
    return [_named(row, category, value)]


def _named(row: Row, category: Category, value: Any) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise row.wrong(category.column, value, "a text or a whole number")
    text = str(value)
    if category.pattern:
        found = re.fullmatch(category.pattern, text)
        if found is None:
            raise row.wrong(category.column, value, f"a text like {category.pattern}")
        text = found[1]
    if category.names and text not in category.names:
        raise row.wrong(category.column, value, f"one of {', '.join(category.names)}")
    return category.names.get(text, text)


def _kind(row: Row, layout: Layout) -> Kind:
    if not isinstance(layout.kind, KindFrom):
        return layout.kind
    value = row.name(layout.kind.column)
    if value not in layout.kind.names:
        raise row.wrong(layout.kind.column, value, f"one of {', '.join(layout.kind.names)}")
    return layout.kind.names[value]


def _open_answer(row: Row, layout: Layout) -> str | tuple[str, ...]:
    text = row.name(layout.gold.column)
    items = literal_list(text) if layout.gold.several else None
    if items == ():
        raise row.wrong(layout.gold.column, text, "at least one answer")
    return text if items is None else items


def _group(row: Row, layout: Layout, name: str) -> str | None:
    if layout.circular is not None:
        return str(row.integer(layout.circular.column) % layout.circular.step)
    if layout.images.kind == "base64" and not layout.group:
        cell = row.cell(layout.images.columns[0])
        return str(cell).strip() if is_reference(cell) else name  # rows that refer to one picture belong together
    return row.name(layout.group) if layout.group else None


def _images(
    row: Row, layout: Layout, look_up: Callable[[str], Any], folder: Path | None
) -> tuple[list[Any], tuple[int, ...]]:
    """The pictures, and the numbers of their columns."""
    kind, columns = layout.images.kind, layout.images.columns
    if kind == "list":
        return [picture(item, folder, row.where) for column in columns for item in row.items(column)], ()
    there = [(number, row.cell(column)) for number, column in enumerate(columns, start=1)]
    if kind == "base64":
        return [image for _, cell in there for image in base64_pictures(cell, look_up, row.where)], ()
    there = [(number, cell) for number, cell in there if not row.is_missing(cell) and not _is_empty(cell)]
    numbers = tuple(number for number, _ in there)
    if kind == "numbered" and numbers != tuple(range(1, len(numbers) + 1)):
        warnings.warn(
            f"{row.where}: it has the images {', '.join(map(str, numbers))}, with gaps; '<image N>' in its text is not "
            "its N-th image. Its meta['image_numbers'] says which they are",
            LayerSurgeryWarning,
            stacklevel=2,
        )
    return [picture(cell, folder, row.where) for _, cell in there], numbers


def _is_empty(cell: Any) -> bool:
    return isinstance(cell, Mapping) and all(part is None for part in cell.values())
