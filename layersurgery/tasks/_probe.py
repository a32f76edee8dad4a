"""`draw_probe`: a few questions for the search, whole groups, the same ones for the same seed."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from layersurgery.errors import LayerSurgeryWarning, SampleError
from layersurgery.tasks._sample import Sample
from layersurgery.tasks._samples import Samples
from layersurgery.tasks._schema import did_you_mean

FORMAT = 1


@dataclass(frozen=True)
class Probe:
    """A fixed probe set, and what is left for the check.

    Args:
        probe: the questions that the search may see.
        rest: all others.
        shots: how many were asked for.
        seed: what they were drawn with.
    """

    probe: Samples
    rest: Samples
    shots: int
    seed: int

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the probe's questions."""
        return tuple(sample.id for sample in self.probe)

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the ids, and where the samples are from, as JSON.

        Args:
            path: the file.

        Returns:
            The file's path.
        """
        record = {
            "layersurgery_probe": FORMAT,
            "shots": self.shots,
            "seed": self.seed,
            "ids": list(self.ids),
            "origin": self.rest.origin,
        }
        Path(path).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        return Path(path)

    @classmethod
    def load(cls, path: str | PathLike[str], samples: Sequence[Sample]) -> Probe:
        """The probe set of a file, out of samples loaded again.

        Args:
            path: what `save` wrote.
            samples: the samples that it was drawn from; their order may be another.

        Raises:
            SampleError: if the file is none of `save`, or a sample of it is not among these.
        """
        record = _record(Path(path))
        known = {sample.id for sample in _unique(samples)}
        if gone := [name for name in record["ids"] if name not in known]:
            raise SampleError(
                f"{path}: {len(gone)} of its {len(record['ids'])} samples are not among the {len(known)} given, such "
                f"as {gone[0]!r}; {did_you_mean(gone[0], known)}It was drawn from {record['origin']}"
            )
        return _divided(samples, set(record["ids"]), record["shots"], record["seed"])


def draw_probe(samples: Sequence[Sample], shots: int, *, seed: int = 0) -> Probe:
    """Draw a probe set of whole groups.

    Which questions are drawn depends on the seed and their ids and groups only, not on the order in which they are
    given. A group that no longer fits is passed over.

    Args:
        samples: the questions of a task.
        shots: how many to draw; fewer, with a warning, where groups do not add up to it.
        seed: another one gives another draw.

    Raises:
        SampleError: if there are fewer samples, no group is small enough, or two have one id.

    Examples:
        >>> questions = [Sample(str(n), f"{n} + 1?", answer=str(n + 1), group=str(n // 2)) for n in range(10)]
        >>> drawn = draw_probe(questions, 4, seed=1)
        >>> len(drawn.probe), len(drawn.rest), len({sample.group for sample in drawn.probe})
        (4, 6, 2)
    """
    if isinstance(shots, bool) or not isinstance(shots, int) or not 1 <= shots <= len(samples):
        raise SampleError(f"shots={shots!r}; give a number from 1 to {len(samples)}, for so many samples there are")
    groups: dict[tuple[str, str], list[str]] = {}
    for sample in _unique(samples):
        unit = ("sample", sample.id) if sample.group is None else ("group", sample.group)
        groups.setdefault(unit, []).append(sample.id)
    drawn: set[str] = set()
    for unit in sorted(groups, key=lambda unit: _rank(seed, *unit)):
        if len(drawn) + len(groups[unit]) <= shots:
            drawn.update(groups[unit])
    if not drawn:
        smallest = min(map(len, groups.values()))
        raise SampleError(f"shots={shots}: the smallest group has {smallest} samples, and groups are not split")
    if len(drawn) < shots:
        warnings.warn(
            f"{len(drawn)} samples are drawn and not {shots}: groups are not split, and no other fits",
            LayerSurgeryWarning,
            stacklevel=2,
        )
    return _divided(samples, drawn, shots, seed)


def _rank(seed: int, *unit: str) -> bytes:
    return hashlib.sha256("\0".join((str(seed), *unit)).encode()).digest()


def _divided(samples: Sequence[Sample], drawn: set[str], shots: int, seed: int) -> Probe:
    whole = samples if isinstance(samples, Samples) else Samples(samples)
    probe = [sample for sample in whole if sample.id in drawn]
    rest = [sample for sample in whole if sample.id not in drawn]
    what = f"probe of {shots}, seed {seed}"
    return Probe(whole.part(probe, what), whole.part(rest, f"all but the {what}"), shots, seed)


def _unique(samples: Iterable[Sample]) -> list[Sample]:
    listed = list(samples)
    twice = [name for name, count in Counter(sample.id for sample in listed).items() if count > 1]
    if twice:
        raise SampleError(f"the id {twice[0]!r} is there twice; give the samples of one task")
    return listed


def _record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SampleError(f"{path} cannot be read as a saved probe set: {error}") from error
    if not isinstance(record, dict) or record.get("layersurgery_probe") != FORMAT:
        raise SampleError(f"{path} is no probe set that this library saved (layersurgery_probe = {FORMAT})")
    for name, kind in (("ids", list), ("shots", int), ("seed", int), ("origin", dict)):
        if not isinstance(record.get(name), kind):
            raise SampleError(f"{path}: {name}={record.get(name)!r}; expected a {kind.__name__}; save it again")
    return record
