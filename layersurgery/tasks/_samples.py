"""`Samples`: questions, and a record of where they are from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

from layersurgery.tasks._sample import Sample


class Samples(Sequence[Sample]):
    """Questions in their order, which does not change, and a record of where they are from.

    It is equal to any list or tuple of the same samples.

    Args:
        samples: the questions.
        origin: JSON-able data: source, revision, how many rows were read and kept, and so on.

    Examples:
        >>> two = Samples([Sample("a", "1 + 1?", answer="2"), Sample("b", "1 + 2?", answer="3")], {"source": "sums"})
        >>> two
        Samples(2 from 'sums')
        >>> two[1].answer, two[:1].origin
        ('3', {'source': 'sums', 'part': '[0:1]'})
    """

    def __init__(self, samples: Iterable[Sample], origin: Mapping[str, Any] | None = None) -> None:
        self._samples = tuple(samples)
        self._origin = dict(origin or {})

    @property
    def origin(self) -> dict[str, Any]:
        """Where the samples are from, as JSON-able data."""
        return dict(self._origin)

    def part(self, samples: Iterable[Sample], what: str) -> Samples:
        """Some of these samples, with an origin that says which part they are."""
        before = self._origin.get("part")
        return Samples(samples, {**self._origin, "part": f"{before}, {what}" if before else what})

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Samples: ...
    def __getitem__(self, index: int | slice) -> Sample | Samples:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return self.part(self._samples[index], f"[{start}:{stop}{'' if step == 1 else f':{step}'}]")
        return self._samples[index]

    def __len__(self) -> int:
        return len(self._samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self._samples)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Samples | list | tuple):
            return self._samples == tuple(other)
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self._samples)

    def __repr__(self) -> str:
        source = self._origin.get("benchmark") or self._origin.get("source")
        return f"Samples({len(self)}{f' from {source!r}' if source else ''})"
