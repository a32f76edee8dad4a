"""Running a shadow without multiplying by its weights: a product with a constant matrix is a sum.

The results are those of the real products, not-a-numbers included; only the work and the memory are saved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from layersurgery.sites._shadow import is_constant

LARGE = 1 << 18  # entries of a weight from which on it pays
_aten = torch.ops.aten


class Weightless(TorchDispatchMode):
    """While active, products with large constant tensors cost no more than reading the other factor.

    Args:
        seen: told the name of each operation, such as "_softmax".
    """

    def __init__(self, seen: Callable[[str], None]) -> None:
        super().__init__()
        self._seen = seen

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, which takes seconds, to keep it away from a mode it never sees

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for every operation."""
        self._seen(func._schema.name)
        if func._schema.is_mutable and _writes_to_a_weight(args):
            return func(_value(args[0]), *args[1:], **(kwargs or {})).expand(args[0].shape)
        shortcut = _SHORTCUTS.get(func)
        if shortcut is not None:
            result = shortcut(*args, **(kwargs or {}))
            if result is not None:
                return result
        return func(*args, **(kwargs or {}))


def _writes_to_a_weight(args: tuple[Any, ...]) -> bool:
    """RWKV divides weights in place: all entries by the same number."""
    target = args[0] if args else None
    return (
        isinstance(target, torch.Tensor)
        and target.numel() > 1
        and is_constant(target)
        and all(not isinstance(other, torch.Tensor) or other.numel() == 1 for other in args[1:])
    )


def _large(tensor: torch.Tensor) -> bool:
    return tensor.numel() >= LARGE and is_constant(tensor)


def _value(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_strided((), ())


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor | None:
    """Matrix product over the last two dimensions, if one factor is a large constant."""
    if _large(right):
        rows = left.sum(-1, keepdim=True) * _value(right)
        return rows.expand(*left.shape[:-1], right.shape[-1]).contiguous()
    if _large(left):
        columns = right.sum(-2, keepdim=True) * _value(left)
        return columns.expand(*right.shape[:-2], left.shape[-2], right.shape[-1]).contiguous()
    return None


def _sum_product(
    added: torch.Tensor, left: torch.Tensor, right: torch.Tensor, *, beta: float = 1, alpha: float = 1
) -> torch.Tensor | None:
    product = _product(left, right)
    return None if product is None else added * beta + product * alpha


def _grouped(left: torch.Tensor, right: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor | None:
    if not (_large(right) and left.dim() == 2 and right.dim() == 3):
        return None
    return (left.sum(-1, keepdim=True) * _value(right)).expand(left.shape[0], right.shape[-1]).contiguous()


def _convolution(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *how: Any) -> Any:
    """`how`: stride, padding, dilation, whether transposed, output padding, groups."""
    *_, transposed, _, groups = how
    if transposed or not _large(weight):
        return None
    batch, channels, *space = states.shape
    summed = states.reshape(batch, groups, channels // groups, *space).sum(2)
    kernel = _value(weight).expand(groups, 1, *weight.shape[2:]).contiguous()
    result = _aten.convolution(summed, kernel, None, *how).repeat_interleave(weight.shape[0] // groups, 1)
    return result if bias is None else result + bias.view(1, -1, *[1] * len(space))


def _rows(tensor: torch.Tensor, indices: list[torch.Tensor | None]) -> torch.Tensor | None:
    first = indices[0] if indices else None
    if len(indices) != 1 or first is None or first.dtype == torch.bool or not _large(tensor):
        return None
    return _value(tensor).expand(*first.shape, *tensor.shape[1:])


def _same(tensor: torch.Tensor, **_: Any) -> torch.Tensor | None:
    return tensor if _large(tensor) else None  # a weight is not written to


_SHORTCUTS: dict[Any, Callable[..., torch.Tensor | None]] = {
    _aten.mm.default: _product,
    _aten.bmm.default: _product,
    _aten.addmm.default: _sum_product,
    _aten.baddbmm.default: _sum_product,
    _aten._grouped_mm.default: _grouped,
    _aten.convolution.default: _convolution,
    _aten.index.Tensor: _rows,
    _aten.clone.default: _same,
}
