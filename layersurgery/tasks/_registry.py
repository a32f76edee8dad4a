"""`benchmarks` and `benchmark`: those that come along, those of other packages, and a user's own file."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from importlib import resources
from importlib.metadata import EntryPoint, entry_points
from os import PathLike
from pathlib import Path
from typing import Any

from layersurgery._toml import read_toml
from layersurgery.errors import LayerSurgeryError, LayerSurgeryWarning, TaskError
from layersurgery.tasks._benchmark import Benchmark
from layersurgery.tasks._definition import benchmark_from_table
from layersurgery.tasks._names import plain
from layersurgery.tasks._schema import did_you_mean

ENTRY_POINT_GROUP = "layersurgery.benchmarks"

_NOT_LOADED = {"embedded", "prompts"}  # what else is in the folder: a benchmark that is generated, and wordings


def benchmarks() -> dict[str, Benchmark]:
    """All benchmarks known by name: those that come along, and those that other packages declare.

    A package declares one in the entry-point group `layersurgery.benchmarks`, as a `Benchmark`, the path of a
    definition file, or a function that returns one of them.

    Raises:
        TaskError: if a definition is malformed, an entry point cannot be loaded, or two go by one name.

    Examples:
        >>> list(benchmarks())[:3]
        ['mathvista_mini', 'mmbench_en', 'mmmu_val']
    """
    found = dict(_shipped())
    for point in entry_points(group=ENTRY_POINT_GROUP):
        declared = _declared(point)
        taken = {plain(name): one.name for one in found.values() for name in (one.name, *one.aliases)}
        for name in (declared.name, *declared.aliases):
            if plain(name) in taken:
                raise TaskError(
                    f"benchmark entry point {point.name!r} ({point.value}): the name {name!r} is taken by "
                    f"{taken[plain(name)]!r}; choose another"
                )
        found[declared.name] = declared
    return found


def benchmark(name: str | PathLike[str] | Benchmark) -> Benchmark:
    """A benchmark by its name.

    Args:
        name: its name or an alias ("scienceqa", "MMBench-EN"), where case and punctuation do not matter; the path of a
            definition file (.toml); or a `Benchmark`, which is returned.

    Raises:
        TaskError: if there is none of this name; the message says which are near.

    Examples:
        >>> benchmark("scienceqa").name
        'scienceqa_val'
    """
    if isinstance(name, Benchmark):
        return name
    if isinstance(name, PathLike) or name.endswith(".toml"):
        return Benchmark.from_toml(name)
    known = benchmarks()
    for one in known.values():
        if plain(name) in map(plain, (one.name, *one.aliases)):
            return one
    if plain(name) == "embedded":
        raise TaskError("the embedded benchmark is generated, not loaded: use layersurgery.embedded.make_samples")
    names = [alias for one in known.values() for alias in (one.name, *one.aliases)]
    raise TaskError(
        f"no benchmark {name!r}; {did_you_mean(name.casefold(), names)}There are {', '.join(known)}; or give the path "
        "of a definition file (.toml)"
    )


def overlap_warning(first: str, second: str) -> str | None:
    """What to say about two benchmarks of which one was built from the other; None if neither was.

    A layer that was chosen on one is not checked on independent questions by the other.

    Args:
        first: name or alias of a benchmark.
        second: name or alias of another.

    Raises:
        TaskError: if there is no such benchmark.

    Examples:
        >>> overlap_warning("mathvista", "mmstar")[:50]
        'MMStar took 345 of its 1500 questions from where M'
        >>> overlap_warning("mmstar", "scienceqa") is None
        True
    """
    pair = benchmark(first), benchmark(second)
    for one, other in (pair, pair[::-1]):
        rows = one.overlaps.get(other.name)
        if rows:
            of = "" if one.rows == "?" else f" of its {one.rows}"
            return (
                f"{one.title} took {rows}{of} questions from where {other.title} is from: what was chosen on one of "
                "them is not checked on independent questions by the other"
            )
    return None


def warn_of_overlap(first: str, second: str) -> None:
    """Warn if one of two benchmarks was built from the other; see `overlap_warning`.

    Args:
        first: name or alias of a benchmark.
        second: name or alias of another.

    Raises:
        TaskError: if there is no such benchmark.
    """
    message = overlap_warning(first, second)
    if message is not None:
        warnings.warn(message, LayerSurgeryWarning, stacklevel=2)


@functools.cache
def _shipped() -> dict[str, Benchmark]:
    folder = resources.files("benchmarks_tasks")
    names = sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))
    found = [benchmark_from_table(read_toml(name), f"{name}.toml") for name in names if name not in _NOT_LOADED]
    return {one.name: one for one in found}


def _declared(point: EntryPoint) -> Benchmark:
    """What an entry point gives, made a benchmark."""
    named = f"benchmark entry point {point.name!r} ({point.value})"
    try:
        given: Any = point.load()
        maker: Callable[[], Any] | None = given if callable(given) and not isinstance(given, Benchmark) else None
        given = given if maker is None else maker()
    except LayerSurgeryError as error:
        raise TaskError(f"{named}: {error}") from error
    except (ImportError, AttributeError, TypeError) as error:
        raise TaskError(f"{named} cannot be loaded: {error}") from error
    if isinstance(given, str | PathLike):
        return Benchmark.from_toml(Path(given))
    if not isinstance(given, Benchmark):
        raise TaskError(
            f"{named} gives a {type(given).__name__}; expected a Benchmark, the path of a definition file, or a "
            "function that returns one of them"
        )
    return given
