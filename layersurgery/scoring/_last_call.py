"""What a scorer keeps between two calls on the same samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch

from layersurgery.tasks import Sample

CACHE_BYTES = 1 << 30
"""Processed inputs of one call that are kept for the next one, at most (on the host)."""


class HasInputs(Protocol):
    """A batch, as far as `LastCall` is concerned."""

    @property
    def inputs(self) -> dict[str, Any]:
        """The model's inputs, on the host."""
        ...


B = TypeVar("B", bound=HasInputs)


@dataclass
class LastCall(Generic[B]):
    """The batches of the last call, for the next one on the very same sample objects.

    A sweep scores the same samples once per layer; they are processed once. Keeps nothing where that would take more
    than `CACHE_BYTES`, and does not travel with copies or pickles.
    """

    _samples: tuple[Sample, ...] = ()
    _variant: object = None
    _batches: list[B] = field(default_factory=list)

    def batches(self, samples: tuple[Sample, ...], variant: object, build: Callable[[], Iterator[B]]) -> Iterator[B]:
        """The batches of `samples`: kept ones, or those that `build` makes.

        Args:
            samples: recognised by identity, since equal samples may differ in their images.
            variant: whatever else the batches depend on.
            build: makes the batches, one at a time.
        """
        same = len(samples) == len(self._samples) and all(map(_is, samples, self._samples))
        if same and variant == self._variant:
            yield from self._batches
            return
        self._samples, self._variant, self._batches = (), None, []
        kept: list[B] = []
        size = 0
        for batch in build():
            size += sum(_bytes(value) for value in batch.inputs.values())
            if size <= CACHE_BYTES:
                kept.append(batch)
            else:
                kept.clear()
            yield batch
        if size <= CACHE_BYTES:
            self._samples, self._variant, self._batches = samples, variant, kept

    def __reduce__(self) -> tuple[type[LastCall[Any]], tuple[()]]:
        return LastCall, ()


def _is(one: object, other: object) -> bool:
    return one is other


def _bytes(value: Any) -> int:
    if isinstance(value, list):
        return sum(map(_bytes, value))
    return value.nbytes if isinstance(value, torch.Tensor) else 0
