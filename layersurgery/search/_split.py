"""Which samples the search may see, and which are kept away from it for the check afterwards."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from layersurgery._fields import field_of
from layersurgery.errors import SampleError


def split(
    samples: Sequence[Any], confirm: int | Sequence[Any] | None, rule: Any, rng: np.random.Generator
) -> tuple[list[Any], list[Any]]:
    """The pool that the search draws from, and the held-out samples.

    Args:
        samples: all samples given for the search.
        confirm: None: hold nothing out. A number: hold out this many of `samples`, drawn at random; groups stay whole,
            so that it may be fewer where groups do not fit. Samples: hold out these, which must be others.
        rule: its `labels_needed` is the most samples that it may ask for; without one, 1.
        rng: what the held-out samples are drawn with.

    Raises:
        SampleError: if there are fewer samples than the rule and `confirm` need together, or a sample is on both sides.

    Warns if the two sides are from benchmarks of which one was built from the other.
    """
    count = _count(confirm)
    _check_enough(len(samples), rule, count)
    if count:
        pool, held = _draw(list(samples), count, rng)
    else:
        pool, held = list(samples), [] if confirm is None else list(confirm)  # pyright: ignore[reportArgumentType]
    _check_disjoint(pool, held)
    _warn_of_overlap(pool, held)
    return pool, held


def _count(confirm: int | Sequence[Any] | None) -> int:
    """How many samples to draw for the check; 0 if they are given or not wanted."""
    if confirm is None:
        return 0
    if isinstance(confirm, (int, np.integer)) and not isinstance(confirm, bool):
        if confirm < 1:
            raise SampleError(f"confirm={confirm!r}: give the number of samples to hold out, 1 or above, or None")
        return int(confirm)
    listed = hasattr(confirm, "__len__") and hasattr(confirm, "__getitem__")
    if isinstance(confirm, (str, bool, dict)) or not listed or not len(confirm):
        raise SampleError(f"confirm={confirm!r}: give a number of samples to hold out, a list of samples, or None")
    return 0


def _check_enough(there: int, rule: Any, held: int) -> None:
    needed = getattr(rule, "labels_needed", 1)
    if needed + held <= there:
        return
    kept = f", and confirm={held} keeps {held} away from it: {needed + held} in all" if held else ""
    raise SampleError(
        f"{rule!r} may need {needed} labelled samples{kept}; there are {there}. Give more samples"
        f"{', hold out fewer' if held else ''}, or use a rule that needs fewer"
    )


def _draw(samples: list[Any], count: int, rng: np.random.Generator) -> tuple[list[Any], list[Any]]:
    units: dict[Hashable, list[int]] = {}
    for index, sample in enumerate(samples):
        units.setdefault(_unit(sample), []).append(index)
    names = list(units)
    taken: set[int] = set()
    for position in rng.permutation(len(names)):
        members = units[names[position]]
        if len(taken) + len(members) <= count:
            taken.update(members)
    if not taken:
        raise SampleError(
            f"confirm={count}: the smallest group has {min(map(len, units.values()))} samples, and groups are not "
            "split; hold out at least as many, or pass the held-out samples themselves"
        )
    pool = [sample for index, sample in enumerate(samples) if index not in taken]
    return pool, [samples[index] for index in sorted(taken)]


def _check_disjoint(pool: list[Any], held: list[Any]) -> None:
    seen = {key for sample in pool for key in _keys(sample)}
    for sample in held:
        for kind, *what in _keys(sample):
            if (kind, *what) in seen:
                name = what[-1] if kind != "object" else sample
                raise SampleError(
                    f"the held-out samples must be others than the search sees: {kind} {name!r} is on both sides. "
                    "Remove it from one of them"
                )


def _warn_of_overlap(pool: list[Any], held: list[Any]) -> None:
    """Of benchmarks that were built from one another, where the two sides come from different ones."""
    sides = [dict.fromkeys(str(field_of(sample, "benchmark") or "") for sample in side) for side in (pool, held)]
    pairs = [(one, other) for one in sides[0] for other in sides[1] if one and other and one != other]
    if not pairs:
        return
    from layersurgery.tasks import benchmarks, warn_of_overlap

    known = benchmarks()
    for one, other in pairs:
        if one in known and other in known:  # nothing is said of a definition that was given as a file
            warn_of_overlap(one, other)


def _unit(sample: Any) -> Hashable:
    """What is never split between the two sides: a group, or else a sample."""
    return _keys(sample)[0]


def _keys(sample: Any) -> list[tuple[Hashable, ...]]:
    """By what a sample is known to be the same as another, or to belong to it; the widest first."""
    keys: list[tuple[Hashable, ...]] = []
    if (group := field_of(sample, "group")) is not None:
        keys.append(("group", group))
    if (name := field_of(sample, "id")) is not None:
        keys.append(("sample", field_of(sample, "task"), name))
        return keys
    try:
        hash(sample)
    except TypeError:
        return [*keys, ("object", id(sample))]
    return [*keys, ("sample", sample)]
