"""What a module was given and what it gave: the hidden states among tensors, tuples, lists and named outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, cast

import torch

from layersurgery.errors import SurgeryError

Output = TypeVar("Output")


def main_tensor(output: Any) -> torch.Tensor | None:
    """The hidden states: the first floating-point tensor in a tensor, tuple, list, named tuple or mapping.

    Examples:
        >>> main_tensor((torch.arange(2), [torch.zeros(1), torch.ones(2)]))
        tensor([0.])
    """
    if isinstance(output, torch.Tensor):
        return output if output.is_floating_point() else None
    if not isinstance(output, tuple | list | Mapping):
        return None
    inner = output.values() if isinstance(output, Mapping) else output
    return next((found for found in map(main_tensor, inner) if found is not None), None)


def with_tensor(output: Output, old: torch.Tensor, new: torch.Tensor) -> Output:
    """The same output, of the same type, with another tensor in the place of one; the given one is not written to.

    Examples:
        >>> states = torch.zeros(1)
        >>> with_tensor((states, None), states, torch.ones(1))
        (tensor([1.]), None)
    """
    return cast(Output, _replaced(output, old, new))


def stream(named: str, arguments: tuple[Any, ...], keywords: Mapping[str, Any], like: torch.Tensor) -> torch.Tensor:
    """The argument of a module's call that holds the residual stream.

    Args:
        named: the argument's keyword or position; empty: the first tensor of the output's shape.
        arguments: positional arguments of the call.
        keywords: keyword arguments of the call.
        like: the hidden states that the module gives.

    Raises:
        SurgeryError: if there is no such argument, or it is of another shape.
    """
    found = _argument(named, arguments, keywords)
    if found is None:
        found = next((t for t in _tensors((arguments, keywords)) if t.shape == like.shape), None)
    if found is None or found.shape != like.shape:
        shapes = [tuple(tensor.shape) for tensor in _tensors((arguments, keywords))]
        raise SurgeryError(
            f"the module gives {tuple(like.shape)} and was called with {shapes or 'no tensor'}: none of these is the "
            "residual stream that it adds to. Select a site whose output has the shape of its input"
        )
    return found.to(device=like.device, dtype=like.dtype)


def _argument(named: str, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> torch.Tensor | None:
    if named.isdigit():
        return main_tensor(arguments[int(named)]) if int(named) < len(arguments) else None
    return main_tensor(keywords.get(named))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, tuple | list | Mapping):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(inner)


def _replaced(output: Any, old: torch.Tensor, new: torch.Tensor) -> Any:
    if output is old:
        return new
    if isinstance(output, Mapping):
        changed = {key: _replaced(value, old, new) for key, value in output.items()}
        return type(output)(**changed)  # a dictionary, or a model output of transformers
    if isinstance(output, tuple | list):
        items = [_replaced(value, old, new) for value in output]
        return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
    return output
