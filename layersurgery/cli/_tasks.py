"""`layersurgery tasks`."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from layersurgery.cli import _screen as screen
from layersurgery.errors import TaskError

if TYPE_CHECKING:
    from layersurgery.tasks import Benchmark, Counts, Task

PAPER = "of the paper"


def tasks(options: argparse.Namespace) -> None:
    """Print all benchmarks with their tasks; or one of them, and what of it is in a source.

    Args:
        options: `benchmark` (name, alias or definition file; None: all), `source` (None: nothing is read) and `json`.

    Raises:
        TaskError: for an unknown benchmark, or a source without a benchmark.
    """
    from layersurgery.tasks import benchmark, benchmarks

    if options.benchmark is None:
        if options.source is not None:
            raise TaskError(f"--source {options.source} needs a benchmark to read it as; give one before it")
        _print_all(list(benchmarks().values()), options.json)
        return
    chosen = benchmark(options.benchmark)
    _print_one(chosen, None if options.source is None else chosen.count(options.source), options)


def _print_all(known: list[Benchmark], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"benchmarks": [_record(one) for one in known], "embedded": list(_embedded())}))
        return
    for one in known:
        print(screen.title(f"{one.name}: {one.title}, {one.samples_expected} questions"))
        print(screen.table([_row(task) for task in one.tasks.values()]))
    print(screen.title("embedded: comes along, as many questions as you like"))
    print(screen.table([{"task": name, "about": text} for name, text in _embedded().items()]))
    print()
    print(
        screen.paragraph(
            "?: nobody has counted. Any other value is a task as well: division=value, such as topic=biology. One "
            "benchmark in detail: layersurgery tasks NAME."
        )
    )


def _print_one(one: Benchmark, found: Counts | None, options: argparse.Namespace) -> None:
    if options.json:
        counted = None if found is None else {"source": options.source, **_counts_record(found)}
        print(json.dumps({**_record(one), "found": counted}))
        return
    print(screen.title(f"{one.name}: {one.title}"))
    print(screen.paragraph(one.description))
    print()
    print("\n".join(f"{name:22}{value}" for name, value in _facts(one).items()))
    print(screen.title("Tasks"))
    print(screen.table([_row(task, found) for task in one.tasks.values()]))
    if found is not None:
        print(screen.title(f"Found in {options.source}"))
        print(f"{found.rows} rows, of which {found.samples} take part")
        if found.others:
            print(screen.table([{"other tasks": name, "found": str(count)} for name, count in found.others.items()]))
    for heading, notes in (("To know", one.notes), ("Tasks to know", _notes(one))):
        if notes:
            print(screen.title(heading))
            print("\n".join(screen.paragraph(f"- {note}") for note in notes))


def _facts(one: Benchmark) -> dict[str, str]:
    from layersurgery.tasks import benchmarks

    facts = {
        "version": one.version,
        "also called": ", ".join(one.aliases),
        "hub": ", or ".join(one.hub_ids),
        "configuration": ", ".join(one.configs) if len(one.configs) < 4 else f"{len(one.configs)}, one after the other",
        "split": one.split,
        "rows": str(one.rows),
        "questions": str(one.samples_expected),
        "licence": one.licence,
        "answers read by": one.extractor,
        "filed under": ", ".join(one.divisions),
        "took questions from": ", ".join(f"{name} ({rows})" for name, rows in one.overlaps.items()),
        "gave questions to": ", ".join(
            f"{other.name} ({other.overlaps[one.name]})"
            for other in benchmarks().values()
            if one.name in other.overlaps
        ),
    }
    return {name: value for name, value in facts.items() if value}


def _row(task: Task, found: Counts | None = None) -> dict[str, str]:
    row = {"task": task.name, "questions": str(task.count)}
    if found is not None:
        row["found"] = str(found.tasks[task.name])
    return {**row, "": PAPER if task.paper else "", "where": task.rule}


def _notes(one: Benchmark) -> list[str]:
    return [f"{task.name}: {task.note}" for task in one.tasks.values() if task.note]


def _embedded() -> dict[str, str]:
    from layersurgery._toml import read_toml

    return {name: task["description"] for name, task in read_toml("embedded")["tasks"].items()}


def _record(one: Benchmark) -> dict[str, Any]:
    return {
        "name": one.name,
        "version": one.version,
        "title": one.title,
        "description": one.description,
        "aliases": list(one.aliases),
        "hub_ids": list(one.hub_ids),
        "configs": list(one.configs),
        "split": one.split,
        "rows": one.rows,
        "samples": one.samples_expected,
        "licence": one.licence,
        "extractor": one.extractor,
        "divisions": list(one.divisions),
        "overlaps": dict(one.overlaps),
        "notes": list(one.notes),
        "tasks": [_task_record(task) for task in one.tasks.values()],
    }


def _task_record(task: Task) -> dict[str, Any]:
    return {
        "name": task.name,
        "title": task.title,
        "where": dict(task.where),
        "count": task.count,
        "paper": task.paper,
        "aliases": list(task.aliases),
        "note": task.note,
    }


def _counts_record(found: Counts) -> dict[str, Any]:
    return {
        "rows": found.rows,
        "samples": found.samples,
        "tasks": dict(found.tasks),
        "others": dict(found.others),
    }
