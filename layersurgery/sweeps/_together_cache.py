"""A KV cache of many rows that grows where it is, instead of being copied at each step."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Growing(TorchFunctionMode):
    """Lets `torch.cat` of a large tensor and what comes after it write the latter behind the former.

    A KV cache of transformers is copied at each step, which for many rows takes longer than the step itself. The result
    is a view of memory with room to spare. Nothing that was given out before is written over.

    Args:
        room: how many entries are expected to come.

    Examples:
        >>> states = torch.zeros(4, 8, 64, 16)
        >>> with Growing(room=8):
        ...     first = torch.cat([states, torch.ones(4, 8, 1, 16)], dim=-2)
        ...     second = torch.cat([first, torch.ones(4, 8, 1, 16)], dim=-2)
        >>> first.data_ptr() == second.data_ptr(), second.shape[-2], int(second.sum())
        (True, 66, 1024)
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room
        self._buffers: dict[int, _Buffer] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keywords = kwargs or {}
        if func is torch.cat:
            grown = self._grown(*args, **keywords)
            if grown is not None:
                return grown
        return func(*args, **keywords)

    def _grown(self, tensors: Any, dim: int = 0, **others: Any) -> torch.Tensor | None:
        if others or dim not in (-2, 2) or not isinstance(tensors, list | tuple) or len(tensors) != 2:
            return None
        states, more = tensors
        if states.dim() != 4 or more.dim() != 4 or states.dtype != more.dtype or states.nbytes < _LARGE:
            return None
        if states.shape[:2] != more.shape[:2] or states.shape[3] != more.shape[3]:
            return None  # for torch to complain of
        buffer = self._buffers.get(states.untyped_storage().data_ptr())
        if buffer is not None:
            return buffer.extended(states, more)
        buffer = _Buffer(states, more.shape[2] + self._room)
        self._buffers[buffer.address] = buffer
        return buffer.extended(buffer.memory[:, :, : states.shape[2]], more)


class _Buffer:
    """Memory with room behind what it holds."""

    def __init__(self, states: torch.Tensor, room: int) -> None:
        rows, heads, self._filled, size = states.shape
        self.memory = states.new_empty((rows, heads, self._filled + room, size))
        self.memory[:, :, : self._filled] = states
        self.address = self.memory.untyped_storage().data_ptr()

    def extended(self, states: torch.Tensor, more: torch.Tensor) -> torch.Tensor | None:
        """A view of what is held of `states`, and of `more` behind it; None: there is no room behind."""
        memory = self.memory
        begin, within = divmod(int(states.storage_offset()) - int(memory.storage_offset()), memory.stride(2))
        end = begin + states.shape[2]
        fits = states.stride() == memory.stride() and states.shape[:2] == memory.shape[:2] and not within
        if not fits or end != self._filled or end + more.shape[2] > memory.shape[2]:
            return None
        self._filled = end + more.shape[2]
        memory[:, :, end : self._filled] = more
        return memory[:, :, begin : self._filled]


_LARGE = 2**15  # bytes, from which on a copy takes longer than to see to it
