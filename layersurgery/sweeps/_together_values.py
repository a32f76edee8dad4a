"""Values of several variants as those of one batch: what each gives alone, row by row."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from layersurgery.sweeps._prefix_reach import UnknownValueError
from layersurgery.sweeps._prefix_values import Freezer, Held, thaw


class CannotError(Exception):
    """Why variants cannot be computed together, in words that follow "since".

    Args:
        why: the words.
        module: the module that is in the way; None: it is not a matter of those that change a certain one.
    """

    def __init__(self, why: str, module: nn.Module | None = None) -> None:
        super().__init__(why)
        self.module = module


def words(error: Exception) -> str:
    """Why something could not be computed together, in words that follow "since".

    Examples:
        >>> words(CannotError("it is in training mode")), words(ValueError("no rows"))
        ('it is in training mode', 'that failed (ValueError: no rows)')
    """
    if isinstance(error, CannotError):
        return str(error)
    if isinstance(error, UnknownValueError):
        return f"there is {error}, which cannot be looked into"
    lines = str(error).strip().splitlines()
    return f"that failed ({type(error).__name__}: {lines[0] if lines else ''})"


class Merged:
    """One value made of a value per variant, which differ in the rows of their tensors only.

    The rows of one sample lie next to each other, as `generate` lays them out: row `sample * variants + variant`. A
    tensor has rows if its first dimension has as many entries as there are samples. All else must be the same for all.

    Args:
        variants: how many there are.
        samples: how many samples, which are the rows of each.

    Examples:
        >>> merged = Merged(variants=2, samples=1)
        >>> merged.add(0, {"states": torch.ones(1, 2), "length": 2})
        >>> merged.add(1, {"states": torch.zeros(1, 2), "length": 2})
        >>> merged.value()
        {'states': tensor([[1., 1.],
                [0., 0.]]), 'length': 2}
    """

    def __init__(self, variants: int, samples: int) -> None:
        self._variants, self._samples = variants, samples
        self._places: list[_Place] = []
        self._form: Any = None
        self._added = 0

    def add(self, variant: int, value: Any) -> None:
        """Take in the value of a variant; all must be taken in, each once.

        Raises:
            CannotError: if it differs from the others in more than its rows.
            UnknownValueError: if there is something in it that cannot be looked into.
        """
        pourer = _Pourer(self, variant)
        form = pourer.freeze(value)
        if self._form is None:
            self._form = form
        elif pourer.count != len(self._places) or not _alike(form, self._form):
            raise CannotError("what they leave for later steps is not of the same form")
        self._added += 1

    def value(self) -> Any:
        """The value for all of them, in fresh containers."""
        if self._added != self._variants:
            raise CannotError("some of them gave nothing")
        return thaw(self._form)

    def place(self, number: int, variant: int, tensor: torch.Tensor) -> Held:
        """Where a tensor of a variant goes to, by its number among those of the variant."""
        if number == len(self._places) and self._form is None:
            self._places.append(_Place(tensor, self._variants, self._samples))
        elif number >= len(self._places):
            raise CannotError("what they leave for later steps is not of the same form")
        self._places[number].take(variant, tensor)
        return self._places[number].held


class _Place:
    """A tensor for all variants."""

    def __init__(self, tensor: torch.Tensor, variants: int, samples: int) -> None:
        if tensor.layout != torch.strided:
            raise CannotError("they leave sparse tensors for later steps")
        self._variants = variants
        self._shape, self._dtype, self._device = tensor.shape, tensor.dtype, tensor.device
        self._has_rows = tensor.dim() > 0 and tensor.shape[0] == samples
        rows = variants * samples
        self.held = Held(tensor.new_empty((rows, *tensor.shape[1:])) if self._has_rows else tensor, 0)

    def take(self, variant: int, tensor: torch.Tensor) -> None:
        if (tensor.shape, tensor.dtype, tensor.device) != (self._shape, self._dtype, self._device):
            raise CannotError("what they leave for later steps is not of the same size")
        if self._has_rows:
            self.held.tensor[variant :: self._variants] = tensor
        elif tensor is not self.held.tensor and not torch.equal(tensor, self.held.tensor):
            raise CannotError("what they leave for later steps differs in more than rows")


class _Pourer(Freezer):
    """Takes a value apart, and its tensors to where they belong."""

    def __init__(self, merged: Merged, variant: int) -> None:
        super().__init__()
        self.count = 0
        self._merged, self._variant = merged, variant

    def _hold(self, tensor: torch.Tensor) -> Held:
        held = self._merged.place(self.count, self._variant, tensor)
        self.count += 1
        return held


def _alike(form: Any, other: Any) -> bool:
    """Whether two values that were taken apart are of the same form, with the same tensors in the same places."""
    if type(form) is not type(other):
        return False
    if form is other:
        return True
    if isinstance(form, Held | torch.Tensor):
        return False
    if isinstance(form, tuple):
        return len(form) == len(other) and all(map(_alike, form, other))
    parts = getattr(type(form), "__dataclass_fields__", None)
    if parts is not None and type(form).__module__ == Held.__module__:
        return all(_alike(getattr(form, part), getattr(other, part)) for part in parts)
    return bool(form == other)


class Placed(AbstractContextManager[None]):
    """An attribute of a module for the time of a block: a function in place of a method; afterwards all is as before.

    When dropped without having been left, too: an interrupt may come just when it is about to be.

    Examples:
        >>> module = nn.Linear(2, 2)
        >>> with Placed(module, "extra_repr", lambda: "placed"):
        ...     module
        Linear(placed)
        >>> module
        Linear(in_features=2, out_features=2, bias=True)
    """

    def __init__(self, module: nn.Module, name: str, value: Any) -> None:
        self._held, self._name, self._value = vars(module), name, value

    def __enter__(self) -> None:
        self._held[self._name] = self._value

    def __exit__(self, *_: object) -> None:
        if self._held.get(self._name) is self._value:
            del self._held[self._name]

    def __del__(self) -> None:
        self.__exit__()
