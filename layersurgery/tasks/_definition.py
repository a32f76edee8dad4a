"""From the tables of a definition file to a `Benchmark`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from layersurgery.errors import TaskError
from layersurgery.tasks._benchmark import Benchmark, Task
from layersurgery.tasks._layout import Count, Layout
from layersurgery.tasks._names import plain
from layersurgery.tasks._schema import build, did_you_mean


@dataclass(frozen=True)
class TaskEntry:
    """A task as a definition file writes it."""

    where: Mapping[str, str]
    title: str = ""
    count: Count = "?"
    paper: bool = False
    aliases: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Definition:
    """What a definition file has beside the fields of `Layout`."""

    name: str
    version: str
    title: str
    split: str
    description: str = ""
    hub_ids: tuple[str, ...] = ()
    configs: tuple[str, ...] = ()
    rows: Count = "?"
    samples: Count = "?"
    licence: str = "unknown"
    sources: tuple[str, ...] = ()
    extractor: str = "letters-v1"
    max_new_tokens: int = 128
    aliases: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    overlaps: Mapping[str, int] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, Count]] = field(default_factory=dict)
    tasks: Mapping[str, TaskEntry] = field(default_factory=dict)
    layouts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    prompt: Mapping[str, Mapping[str, Mapping[str, str]]] = field(default_factory=dict)


def benchmark_from_table(table: Mapping[str, Any], where: str) -> Benchmark:
    """A benchmark from the fields of a definition, which are those of `Definition` and of `Layout`.

    Raises:
        TaskError: if a field is missing, unknown or malformed.
    """
    of_layout = {one.name for one in fields(Layout)}
    own = {one.name for one in fields(Definition)}
    for name in table:
        if name not in of_layout | own:
            raise TaskError(
                f"{where}: unknown field {name!r}; {did_you_mean(name, of_layout | own)}The fields: "
                f"{', '.join(sorted(own))}; and of the layout {', '.join(sorted(of_layout))}"
            )
    said = build(Definition, {name: value for name, value in table.items() if name in own}, where)
    plain_layout = {name: value for name, value in table.items() if name in of_layout}
    layouts = {"hub": build(Layout, plain_layout, where)}
    for name, changed in said.layouts.items():
        if name != "tsv":
            raise TaskError(f"{where}: layouts.{name}; the only other layout is [layouts.tsv]")
        layouts[name] = build(Layout, {**plain_layout, **changed}, f"{where}: layouts.{name}")
    shared = {one.name: getattr(said, one.name) for one in fields(Benchmark) if one.name in own - {"tasks", "layouts"}}
    found = Benchmark(**shared, samples_expected=said.samples, prompts=said.prompt, layouts=layouts, tasks=_tasks(said))
    _check_tasks(found, where)
    return found


def _tasks(said: Definition) -> dict[str, Task]:
    """The named tasks first, then one for each known value that none of them is."""
    tasks = {
        name: Task(name, entry.where, entry.title, entry.count, entry.paper, entry.aliases, entry.note)
        for name, entry in said.tasks.items()
    }
    taken = {plain(name) for task in tasks.values() for name in task.names}
    there = [task.where for task in tasks.values()]
    for division, values in said.values.items():
        for value, count in values.items():
            if {division: value} in there:
                continue
            name = plain(value) if plain(value) and plain(value) not in taken else f"{division}={value}"
            taken.add(plain(name))
            tasks[name] = Task(name, {division: value}, value if plain(value) == name else "", count)
    return tasks


def _check_tasks(found: Benchmark, where: str) -> None:
    seen: dict[str, str] = {}
    for task in found.tasks.values():
        _check_divisions(task.where, found, f"{where}: tasks.{task.name}")
        for name in dict.fromkeys(map(plain, task.names)):
            if seen.setdefault(name, task.name) != task.name:
                raise TaskError(f"{where}: the tasks {seen[name]!r} and {task.name!r} share the name {name!r}")


def _check_divisions(divisions: Iterable[str], found: Benchmark, where: str) -> None:
    names = list(divisions)
    if not names:
        raise TaskError(f"{where}: where is empty; give the values it wants, such as {{ topic = 'geography' }}")
    for name in names:
        if name not in found.divisions:
            raise TaskError(
                f"{where}: there is no division {name!r}; {did_you_mean(name, found.divisions)}The categories: "
                f"{', '.join(found.divisions)}"
            )
