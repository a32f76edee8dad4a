"""From a benchmark's rows to `Samples`: filter, read, join rotations, and count."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from layersurgery.errors import LayerSurgeryWarning, SampleError, TaskError
from layersurgery.tasks._cells import Row, no_column
from layersurgery.tasks._layout import Layout
from layersurgery.tasks._names import plain
from layersurgery.tasks._pictures import is_reference
from layersurgery.tasks._reading import categories_of, read_sample, row_name, takes_part
from layersurgery.tasks._sample import Sample
from layersurgery.tasks._samples import Samples
from layersurgery.tasks._source import Source, plural

if TYPE_CHECKING:
    from layersurgery.tasks._benchmark import Benchmark, Task


@dataclass(frozen=True)
class Counts:
    """How many questions of each task are in a source.

    Args:
        rows: rows that were read.
        samples: those of them that take part.
        tasks: by task, how many questions it has.
        others: by "division=value", the same for what no task is defined for.
    """

    rows: int
    samples: int
    tasks: Mapping[str, int]
    others: Mapping[str, int]


@dataclass
class Tally:
    """What was seen of a source: rows read, rows dropped by filters, and how often each category value was there."""

    read: int = 0
    dropped: int = 0
    values: dict[str, dict[str, int]] = field(default_factory=dict)

    def count(self, categories: Mapping[str, tuple[str, ...]]) -> None:
        """Count a row that takes part."""
        for division, values in categories.items():
            counts = self.values.setdefault(division, {})
            for value in values:
                counts[value] = counts.get(value, 0) + 1


def load(
    benchmark: Benchmark, layout: Layout, source: Source, task: Task | None, *, limit: int | None, circular: bool
) -> Samples:
    """The samples of a benchmark, or of a task of it, from a source.

    Raises:
        SampleError: if a row is not as the layout says, or nothing is left.
        TaskError: if no row is of this task; the message lists what there is.
    """
    tally = Tally()
    # of circular questions, the main row and its rotations may be far apart
    chosen = _chosen(layout, source, task, tally, limit=None if circular else limit, circular=circular)
    if not chosen:
        raise _nothing(benchmark, source, task, tally)
    rows = [(number, Row(cells, source.where(number), layout.missing)) for number, cells in source.take(chosen)]
    look_up = _references(layout, source, [row for _, row in rows])
    samples = [
        read_sample(
            row,
            layout,
            row_name(row, layout, number),
            task=task.name if task else "",
            benchmark=benchmark.name,
            look_up=look_up,
            folder=source.folder,
        )
        for number, row in rows
    ]
    if circular:
        samples = _joined(samples, [row for _, row in rows], layout)[:limit]
    _check_ids(samples, source)
    origin = {
        "benchmark": benchmark.name,
        "version": benchmark.version,
        "task": task.name if task else "",
        "source": source.label,
        "revision": source.revision,
        "layout": source.layout,
        "rows_read": tally.read,
        "rows_dropped": tally.dropped,
        "rows_kept": len(rows),
        "samples": len(samples),
        "circular": circular,
        "limit": limit,
    }
    if source.from_hub and limit is None:
        _compare_counts(benchmark, task, tally.read, len(samples))
    return Samples(samples, origin)


def count(benchmark: Benchmark, layout: Layout, source: Source) -> Counts:
    """What is in a source: only the columns that decide are looked at, where that can be.

    Raises:
        SampleError: if a row is not as the layout says.
    """
    tally = Tally()
    found = dict.fromkeys(benchmark.tasks, 0)
    for _, _, categories in _taking_part(layout, source, tally, circular=False):
        for task in benchmark.tasks.values():
            found[task.name] += task.covers(categories)
    known = [(division, plain(value)) for task in benchmark.tasks.values() for division, value in task.where.items()]
    others = {
        f"{division}={value}": number
        for division, values in tally.values.items()
        for value, number in values.items()
        if (division, plain(value)) not in known
    }
    return Counts(tally.read, tally.read - tally.dropped, found, others)


def _chosen(
    layout: Layout, source: Source, task: Task | None, tally: Tally, *, limit: int | None, circular: bool
) -> list[tuple[int, Any]]:
    """The rows of the task, at most as many as are wanted; of a table, the deciding columns are all that is read."""
    chosen: list[tuple[int, Any]] = []
    for number, row, categories in _taking_part(layout, source, tally, circular):
        if task is None or task.covers(categories):
            chosen.append((number, row.cells))
            if len(chosen) == limit:
                break
    return chosen


def _taking_part(
    layout: Layout, source: Source, tally: Tally, circular: bool
) -> Iterator[tuple[int, Row, dict[str, tuple[str, ...]]]]:
    _check_columns(layout, source, source.columns)
    for number, cells in source.glance(layout.deciding, layout.present):
        row = Row(cells, source.where(number), layout.missing)
        if tally.read == 0 and source.columns is None:
            _check_columns(layout, source, row.cells)
        tally.read += 1
        if takes_part(row, layout.filters) and (circular or not _is_rotated(row, layout)):
            categories = categories_of(row, layout)
            tally.count(categories)
            yield number, row, categories
        else:
            tally.dropped += 1


def _check_columns(layout: Layout, source: Source, there: Iterable[str] | None) -> None:
    if there is None:
        return
    names = list(there)
    for column in sorted(layout.needed - set(names)):
        raise SampleError(no_column(source.name, column, names))


def _is_rotated(row: Row, layout: Layout) -> bool:
    return layout.circular is not None and row.integer(layout.circular.column) >= layout.circular.step


def _references(layout: Layout, source: Source, rows: list[Row]) -> Callable[[str], Any]:
    """The pictures of rows that others refer to, found in one more pass over the source if there are any."""
    found: dict[str, Any] = {}
    if layout.images.kind == "base64":
        column = layout.images.columns[0]
        wanted = {str(row.cell(column)).strip() for row in rows if is_reference(row.cell(column))}
        for number, cells in source.read() if wanted else ():
            row = Row(cells, source.where(number), layout.missing)
            if (name := row_name(row, layout, number)) in wanted:
                found[name] = row.cell(column)
    return found.get


def _joined(samples: list[Sample], rows: list[Row], layout: Layout) -> list[Sample]:
    """One sample a question: its main row, with the rotated ones as variants."""
    main: dict[str | None, Sample] = {}
    rotated: dict[str | None, list[tuple[int, Sample]]] = {}
    for sample, row in zip(samples, rows, strict=True):
        if _is_rotated(row, layout):
            number = row.integer(layout.circular.column)  # pyright: ignore[reportOptionalMemberAccess]
            rotated.setdefault(sample.group, []).append((number, sample))
        else:
            main[sample.group] = sample
    if alone := [group for group in rotated if group not in main]:
        raise SampleError(f"question {alone[0]!r} has rotated rows and no main row; give a source with all rows")
    if not rotated:
        raise SampleError("circular=True, and the source has no rotated rows; give one that has, or leave circular out")
    fewer = [sample.id for group, sample in main.items() if len(rotated.get(group, ())) < len(sample.options) - 1]
    if fewer:
        warnings.warn(
            f"{plural(len(fewer), 'question')} have fewer rotations than options, such as {fewer[0]!r}: it is easier "
            "to get all of them right",
            LayerSurgeryWarning,
            stacklevel=5,
        )
    in_order = {group: sorted(copies, key=lambda copy: copy[0]) for group, copies in rotated.items()}
    return [
        replace(sample, variants=tuple(variant for _, variant in in_order.get(group, ())))
        for group, sample in main.items()
    ]


def _check_ids(samples: list[Sample], source: Source) -> None:
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise SampleError(f"{source.name}: the id {sample.id!r} is there twice; ids must be unique")
        seen.add(sample.id)


def _nothing(benchmark: Benchmark, source: Source, task: Task | None, tally: Tally) -> Exception:
    if task is None or not tally.values:
        return SampleError(
            f"{source.name}: no row is left of {tally.read}; {benchmark.name} wants rows with "
            f"{benchmark.wanted(source.layout)}"
        )
    there = "; ".join(f"{division}: {', '.join(sorted(tally.values.get(division, {})))}" for division in task.where)
    return TaskError(f"{source.name} has no row of task {task.name!r} ({task.rule}). There are {there}")


def _compare_counts(benchmark: Benchmark, task: Task | None, read: int, kept: int) -> None:
    expected = task.count if task else benchmark.samples_expected
    said = [
        f"{got} {what}, where the definition says {count}"
        for what, got, count in (
            ("rows", read, benchmark.rows),
            (f"samples of {task.name if task else 'all tasks'}", kept, expected),
        )
        if count not in ("?", got)
    ]
    if said:
        warnings.warn(
            f"{benchmark.name} has {' and '.join(said)}; the dataset may have changed, or that number may be wrong",
            LayerSurgeryWarning,
            stacklevel=4,
        )
