"""`Benchmark` and `Task`: what a definition file says, and the samples that come of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layersurgery.errors import SampleError, TaskError
from layersurgery.tasks._layout import Count, Layout
from layersurgery.tasks._names import plain
from layersurgery.tasks._samples import Samples
from layersurgery.tasks._schema import did_you_mean, read_definition
from layersurgery.tasks._source import Source, open_hub, open_local, open_object

if TYPE_CHECKING:
    from layersurgery.tasks._load import Counts

Prompts = Mapping[str, Mapping[str, Mapping[str, str]]]


@dataclass(frozen=True)
class Task:
    """A part of a benchmark: the questions that are filed under certain values.

    Args:
        name: the name by which it is asked for.
        where: the values it wants, by the name of the division.
        title: how the benchmark or the paper writes it.
        count: how many questions it should have; "?" where nobody has counted.
        paper: whether it is one of the paper's tasks.
        aliases: other names.
        note: what is to be known of it.
    """

    name: str
    where: Mapping[str, str]
    title: str = ""
    count: Count = "?"
    paper: bool = False
    aliases: tuple[str, ...] = ()
    note: str = ""

    def covers(self, categories: Mapping[str, tuple[str, ...]]) -> bool:
        """Whether a question that is filed like this belongs to it.

        Examples:
            >>> Task("maps", {"topic": "geography"}).covers({"topic": ("geography",), "grade": ("grade4",)})
            True
        """
        return all(plain(value) in map(plain, categories.get(division, ())) for division, value in self.where.items())

    @property
    def rule(self) -> str:
        """The values it wants, in words.

        Examples:
            >>> Task("maps", {"topic": "geography", "category": "Maps"}).rule
            'topic=geography, category=Maps'
        """
        return ", ".join(f"{division}={value}" for division, value in self.where.items())

    @property
    def names(self) -> tuple[str, ...]:
        """All names that it goes by."""
        return (self.name, *([self.title] if self.title else []), *self.aliases)


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as its definition file declares it.

    Args:
        name: the name by which it is asked for.
        version: of the definition; it changes with anything that changes samples.
        title: how it is written.
        description: what it is.
        hub_ids: ids of datasets of the hub with this layout, the usual one first; empty: local files only.
        configs: configurations that make it up; empty: the dataset has only one.
        split: the split with answers.
        rows: how many rows it should have.
        samples_expected: how many of them take part.
        licence: what is known of it.
        sources: where the facts are from.
        extractor: name of the rule that reads answers from generated text.
        max_new_tokens: how long a generated answer may be.
        layouts: where in a row each part is: of the hub's dataset ("hub"), and of the harness's file ("tsv").
        tasks: its tasks by name.
        overlaps: other benchmarks that it shares questions with, and how many.
        prompts: how questions are written, by style and model family.
        aliases: other names.
        notes: traps, and what is not confirmed.

    Examples:
        >>> from layersurgery.tasks import benchmark
        >>> benchmark("mmstar").task("Math").count
        250
    """

    name: str
    version: str
    title: str
    description: str
    hub_ids: tuple[str, ...]
    configs: tuple[str, ...]
    split: str
    rows: Count
    samples_expected: Count
    licence: str
    sources: tuple[str, ...]
    extractor: str
    max_new_tokens: int
    layouts: Mapping[str, Layout]
    tasks: Mapping[str, Task]
    overlaps: Mapping[str, int] = field(default_factory=dict)
    prompts: Prompts = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def from_toml(cls, path: str | PathLike[str]) -> Benchmark:
        """The benchmark that a definition file declares.

        Args:
            path: a TOML file; its format is described in the how-to "Define your own benchmark".

        Raises:
            TaskError: if it cannot be read, or a field is missing, unknown or malformed.
        """
        from layersurgery.tasks._definition import benchmark_from_table

        return benchmark_from_table(read_definition(Path(path)), str(path))

    def task(self, name: str) -> Task:
        """A task by its name.

        Args:
            name: its name, the paper's or the benchmark's spelling of it, or "division=value" for any value. Case,
                spaces and punctuation do not matter.

        Raises:
            TaskError: if there is none of this name; the message says which are near.
        """
        division, equals, value = name.partition("=")
        if equals:
            return self._by_value(division.strip(), value.strip(), name)
        for task in self.tasks.values():
            if plain(name) in map(plain, task.names):
                return task
        known = list(self.tasks)
        raise TaskError(
            f"{self.name} has no task {name!r}; {did_you_mean(plain(name), known)}Its tasks: {', '.join(known)}; or "
            f"give division=value, with a division of {', '.join(self.divisions)}"
        )

    @property
    def divisions(self) -> tuple[str, ...]:
        """Names of what its questions are filed under."""
        return tuple(dict.fromkeys(one.name for layout in self.layouts.values() for one in layout.categories))

    def samples(
        self,
        task: str | None = None,
        *,
        source: Any = None,
        revision: str | None = None,
        streaming: bool = False,
        limit: int | None = None,
        circular: bool = False,
    ) -> Samples:
        """Its questions, or those of one task.

        Args:
            task: name of the task (see `task`); None: all questions.
            source: None: the hub. Another hub id; a local .parquet, .tsv, .csv or .jsonl file; a folder of such files,
                or one that `save_to_disk` wrote; or a `datasets.Dataset`. A .tsv is read in the harness's layout.
            revision: of the hub, the branch, tag or commit; None: the newest. The commit is in `Samples.origin`.
            streaming: of the hub, read while it is downloaded; good with `limit`. Local files are always read so.
            limit: stop at so many questions; None: all.
            circular: a question counts when it is answered rightly with its options in every rotation: one sample a
                question, with the rotated ones as `variants`. Else the rotated rows are left out.

        Returns:
            The samples, and where they are from.

        Raises:
            TaskError: if there is no such task.
            SampleError: if the source cannot be read, or a row is not as the definition says; the message names file,
                row and column.

        Examples:
            >>> from layersurgery.tasks import benchmark
            >>> row = {"question": "Which is a fruit?", "choices": ["an apple", "a stone"], "answer": 0, "hint": "",
            ...        "task": "closed choice", "grade": "grade2", "subject": "natural science", "topic": "biology",
            ...        "category": "Plants", "skill": "Sort", "lecture": "", "solution": "",
            ...        "image": {"bytes": None, "path": "apple.png"}}
            >>> from datasets import Dataset
            >>> samples = benchmark("scienceqa").samples("topic=biology", source=Dataset.from_list([row]))
            >>> samples[0].letter, samples.origin["rows_kept"]
            ('A', 1)
        """
        from layersurgery.tasks._load import load

        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise SampleError(f"limit={limit!r}; give a number of questions, 1 or more, or None for all")
        wanted = None if task is None else self.task(task)
        opened = self.open(source, revision=revision, streaming=streaming)
        layout = self.layout_of(opened)
        if circular and layout.circular is None:
            raise SampleError(f"circular=True, and {self.name} has no rotated rows; leave circular out")
        return load(self, layout, opened, wanted, limit=limit, circular=circular)

    def count(self, source: Any = None, *, revision: str | None = None, streaming: bool = False) -> Counts:
        """How many questions of each task are in a source.

        Args:
            source: see `samples`.
            revision: see `samples`.
            streaming: see `samples`.

        Raises:
            SampleError: if the source cannot be read, or a row is not as the definition says.
        """
        from layersurgery.tasks._load import count

        opened = self.open(source, revision=revision, streaming=streaming)
        return count(self, self.layout_of(opened), opened)

    def open(self, source: Any = None, *, revision: str | None = None, streaming: bool = False) -> Source:
        """The rows of a source, before anything is read; see `samples` for the arguments.

        Raises:
            SampleError: if the source cannot be read, or the arguments do not go together.
        """
        hub_id = self._hub_id(source)
        if hub_id is not None:
            return open_hub(hub_id, self.configs, self.split, revision=revision, streaming=streaming)
        if revision is not None:
            raise SampleError(f"revision={revision!r} is for the hub; {source!s:.80} is read as it is")
        if isinstance(source, str | PathLike):
            return open_local(Path(source), split=self.split, configs=self.configs)
        return open_object(source, self.split)

    def layout_of(self, source: Source) -> Layout:
        """The layout in which a source is read."""
        return self.layouts.get(source.layout, self.layouts["hub"])

    def wanted(self, layout: str) -> str:
        """What the filters of a layout want, in words."""
        filters = self.layouts.get(layout, self.layouts["hub"]).filters
        said = [f"{one.column} {one.test}" + ("" if one.value is None else f" {one.value!r}") for one in filters]
        return " and ".join(said).replace("one_of", "one of") or "any content"

    def _hub_id(self, source: Any) -> str | None:
        """The hub id that is meant, if one is: a name of the form owner/name that is not here as a file."""
        if source is None:
            if self.hub_ids:
                return self.hub_ids[0]
            raise SampleError(f"{self.name} names no dataset of the hub; give source= a local file or folder")
        if not isinstance(source, str) or Path(source).exists():
            return None
        looks_like_file = Path(source).suffix in (".parquet", ".tsv", ".csv", ".jsonl", ".json")
        return source if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not looks_like_file else None

    def _by_value(self, division: str, value: str, name: str) -> Task:
        for one in self.divisions:
            if plain(one) == plain(division) and value:
                return Task(f"{one}={value}", {one: value})
        raise TaskError(
            f"{self.name} has no task {name!r}; {did_you_mean(division, self.divisions)}Give division=value, with a "
            f"division of {', '.join(self.divisions)}"
        )
