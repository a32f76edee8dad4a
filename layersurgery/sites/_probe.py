"""Whether a module mixes positions: it is called again with one position made not-a-number, and what comes out tells.

Not-a-number passes through every sum, product, norm and softmax, so that it shows where information can go, whatever
the weights are.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

MIXES, APART = "mixes", "apart"


@dataclass(frozen=True)
class Frame:
    """The states that a module is called with.

    Args:
        where: their argument: a keyword, or a position.
        shape: their shape.
        features: the dimension that holds the features of a position; the others are samples and positions.
    """

    where: str | int
    shape: torch.Size
    features: int

    @property
    def width(self) -> int:
        """Features of a position."""
        return self.shape[self.features]

    @property
    def rows(self) -> int:
        """Samples times positions."""
        return self.shape.numel() // max(1, self.width)


def frame_of(
    module: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any], layer: Frame | None
) -> Frame | None:
    """Where the states are in a call; None, where there are none. `layer`: the frame of the layer around."""
    values = [*enumerate(arguments), *keywords.items()]
    states = [(where, value) for where, value in values if is_states(value)]
    if layer is not None:  # a condition or a bias may come first
        states.sort(key=lambda entry: entry[1].numel() != layer.shape.numel())
    if not states:
        return None
    where, value = states[0]
    return Frame(where, value.shape, _features(value, module, layer))


def look(
    module: nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]], output: Any, frame: Frame | None, outside: set[int]
) -> tuple[str | None, bool]:
    """What a module does, and whether it mixes through a second input that comes from outside its layer."""
    arguments, keywords = call
    usual = main_tensor(output)
    if frame is None or usual is None or frame.rows < 2 or bool(usual.isnan().any()):
        return None, False
    states = arguments[frame.where] if isinstance(frame.where, int) else keywords[frame.where]

    def run(change: list[torch.Tensor]) -> str | None:
        changed = {id(value): _spoilt(value, frame) for value in change}

        def put(value: Any) -> Any:
            return changed[id(value)] if id(value) in changed else fresh(value)

        try:
            given = main_tensor(module.forward(*map(put, arguments), **{key: put(v) for key, v in keywords.items()}))
        except Exception:  # a branch on values, an index made of them: whatever a module raises, it tells nothing
            return None
        return None if given is None else _spread(given, frame)

    others = [
        value
        for value in (*arguments, *keywords.values())
        if is_states(value) and value is not states and value.dim() == states.dim()
    ]
    twins = [value for value in others if value.shape == states.shape and value.data_ptr() == states.data_ptr()]
    did = run([states, *twins])
    others = [value for value in others if not any(value is twin for twin in twins)]
    if did != APART or not others:
        return did, False
    if run(others) == MIXES:
        return (APART, True) if any(value.data_ptr() in outside for value in others) else (MIXES, False)
    return did, False


def normalises(module: nn.Module, frame: Frame | None) -> bool:
    """Whether a leaf with no more than a number per feature gives the same for states that are eight times as large."""
    parameters = list(module.parameters())
    if frame is None or not parameters or any(parameter.dim() > 1 for parameter in parameters):
        return False
    few = [size if at == frame.features % len(frame.shape) else min(size, 8) for at, size in enumerate(frame.shape)]
    for shape in dict.fromkeys((tuple(few), tuple(frame.shape))):  # large pictures take long
        states = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        try:
            usual, larger = (main_tensor(module.forward(states * factor)) for factor in (1, 8))
        except Exception:  # it needs all rows, or takes something else besides
            continue
        if usual is None or larger is None or usual.shape != states.shape:
            continue
        return bool(usual.std() > 0) and torch.allclose(usual, larger, rtol=1e-2, atol=1e-3)
    return False


def is_states(value: Any) -> bool:
    """Whether an argument can be states: numbers, and at least rows of them."""
    return isinstance(value, torch.Tensor) and value.dim() >= 2 and value.is_floating_point()


def main_tensor(output: Any) -> torch.Tensor | None:
    """The first floating-point tensor of an output."""
    if isinstance(output, torch.Tensor):
        return output if output.is_floating_point() else None
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return next((found for found in map(main_tensor, output) if found is not None), None)
    return None


def fresh(value: Any) -> Any:
    """An argument for another call: without memory, and so that what is written to it is written to a copy."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if type(value).__name__.endswith("Cache"):
        return None
    if isinstance(value, MutableMapping):
        again = copy.copy(value)
        again.update({key: fresh(entry) for key, entry in value.items()})
        return again
    if type(value) in (list, tuple):
        return type(value)(map(fresh, value))
    return value


def _spoilt(value: torch.Tensor, frame: Frame) -> torch.Tensor:
    """The tensor with one position of one sample made not-a-number."""
    features = frame.features if value.shape[frame.features] == frame.width else value.dim() - 1
    place: list[Any] = [min(int(at > 0), size - 1) for at, size in enumerate(value.shape)]
    place[features] = slice(None)
    changed = value.clone()
    changed[tuple(place)] = torch.nan
    return changed


def _spread(given: torch.Tensor, frame: Frame) -> str | None:
    features = frame.features if given.dim() == len(frame.shape) else given.dim() - 1
    if given.shape[features] != frame.width and frame.width in given.shape[1:]:
        features = [*given.shape].index(frame.width, 1)
    rows = given.isnan().any(features)
    if rows.numel() < frame.rows:
        return None  # fewer rows than positions: each is made of several
    return MIXES if int(rows.sum()) > max(1, rows.numel() // frame.rows) else APART


def _features(states: torch.Tensor, module: nn.Module, layer: Frame | None) -> int:
    last = states.dim() - 1
    if layer is not None:
        fitting = [at for at in range(1, states.dim()) if states.shape[at] == layer.width]
        if len(fitting) > 1 and last in fitting and not states.is_contiguous():
            return next((at for at in fitting if states.stride(at) == 1), last)  # turned round, and as long as wide
        if last in fitting and not (layer.features == 1 and 1 in fitting):
            return last
        return fitting[0] if fitting else last
    sizes = {size for parameter in module.parameters() for size in parameter.shape}
    preferred = (1, last) if states.dim() > 3 else (last, 1)
    return next((at for at in preferred if at <= last and states.shape[at] in sizes), last)
