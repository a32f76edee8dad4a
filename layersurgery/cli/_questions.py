"""What `talo` asks the model: questions of a benchmark, of the user's own file, or of the embedded benchmark."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from layersurgery.errors import TaskError
from layersurgery.tasks import Sample

PROBE = 200
EMBEDDED_CONFIRM = 500
OWN_STYLE, BENCHMARK_STYLE = "plain", "vlmevalkit"


@dataclass(frozen=True)
class Questions:
    """Samples for the search and for the check afterwards, and how their makers would ask and read them.

    Args:
        pool: what the search draws from.
        confirm: held-out samples, or how many of `pool` to hold out, as `layersurgery.talo` takes it.
        origin: where they are from, as JSON-able data.
        style: the prompt style.
        prompts: a benchmark's own pieces of prompts, by style and family.
        extract: the rule that reads answers.
        max_new_tokens: how long an answer may be.
        notes: what a reader of the result should know.
    """

    pool: Sequence[Sample]
    confirm: int | Sequence[Sample] | None
    origin: dict[str, Any]
    style: str = OWN_STYLE
    prompts: dict[str, Any] = field(default_factory=dict)
    extract: str = "letters-v1"
    max_new_tokens: int = 16
    notes: tuple[str, ...] = ()

    @property
    def all_choices(self) -> bool:
        """Whether every question has options."""
        held = [] if self.confirm is None or isinstance(self.confirm, int) else self.confirm
        return all(sample.kind == "mcq" for sample in (*self.pool, *held))


def questions(options: argparse.Namespace, needed: int | None) -> Questions:
    """The questions that the command line asks for.

    Args:
        options: the arguments of `talo`.
        needed: how many samples the search may need; None: any number will do, and of a benchmark it gets half, 200 at
            most.

    Raises:
        TaskError: for an unknown benchmark or task, or arguments that do not go together.
        SampleError: if the data cannot be read.
    """
    if options.benchmark is not None and options.data is not None:
        raise TaskError("--benchmark and --data were both given; a benchmark's local copy goes to --source")
    if options.benchmark is None:
        for name in ("source", "data_revision"):
            if getattr(options, name) is not None:
                raise TaskError(f"--{name.replace('_', '-')} belongs to --benchmark, which was not given")
        for name in ("streaming", "circular"):
            if getattr(options, name):
                raise TaskError(f"--{name} belongs to --benchmark, which was not given")
    if options.benchmark is not None:
        return _of_benchmark(options, needed)
    return _of_embedded(options, needed) if options.data is None else _own(options)


def _of_benchmark(options: argparse.Namespace, needed: int | None) -> Questions:
    from layersurgery.tasks import benchmark

    found = benchmark(options.benchmark)
    samples = found.samples(
        options.task,
        source=options.source,
        revision=options.data_revision,
        streaming=options.streaming,
        limit=options.limit,
        circular=options.circular,
    )
    # The paper's way: what the search cannot need is the test set.
    search = min(PROBE, math.ceil(len(samples) / 2)) if needed is None else needed
    confirm = max(0, len(samples) - search) if options.confirm is None else options.confirm
    return Questions(
        samples,
        confirm or None,
        dict(samples.origin),
        style=BENCHMARK_STYLE,
        prompts=dict(found.prompts),
        extract=found.extractor,
        max_new_tokens=found.max_new_tokens,
        notes=tuple(_overlap_notes(found)),
    )


def _overlap_notes(found: Any) -> list[str]:
    if not found.overlaps:
        return []
    shared = ", ".join(f"{name} ({rows} rows)" for name, rows in found.overlaps.items())
    return [
        f"{found.title} shares rows with {shared}: what is chosen on one of them is not independently tested by the "
        "other"
    ]


def _own(options: argparse.Namespace) -> Questions:
    from layersurgery.tasks import load_samples

    samples = load_samples(options.data, task=options.task)[: options.limit]
    return Questions(samples, options.confirm or None, {"data": options.data, "samples": len(samples)})


def _of_embedded(options: argparse.Namespace, needed: int | None) -> Questions:
    from layersurgery.embedded import TASKS, make_samples

    if options.task is None:
        raise TaskError(f"--task is needed without --benchmark and --data; the embedded tasks are {', '.join(TASKS)}")
    pool = make_samples(options.task, "probe", options.limit or max(PROBE, 4 * (options.shots or 0), needed or 0))
    count = EMBEDDED_CONFIRM if options.confirm is None else options.confirm
    held = make_samples(options.task, "test", count) if count else None
    return Questions(pool, held, {"benchmark": "embedded", "samples": len(pool)})
