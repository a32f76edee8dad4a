"""Which tokens a forward pass is about: positions and steps, counted where the layer's own calls can be seen."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from layersurgery.errors import SurgeryError
from layersurgery.surgery._outputs import main_tensor


class Clock:
    """Counts the positions and steps of one layer across the passes of a generation.

    A pass continues the one before it when it is given the same KV cache, or one that holds what was read so far. All
    else begins at position 0 and step 0. A forward pre-hook of the layer's module.
    """

    def __init__(self) -> None:
        self.start = 0  # position of the first token of the present pass
        self.step = 0
        self._length = 0
        self._cache: weakref.ref[Any] | None = None

    def __call__(self, layer: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        """Take down the pass that begins."""
        states = main_tensor(arguments)
        states = main_tensor(keywords) if states is None else states
        length = 0 if states is None or states.dim() < 2 else states.shape[-2]  # 0: not known
        cache = next((value for value in (*arguments, *keywords.values()) if _is_cache(value)), None)
        end = self.start + self._length
        held = _held(cache, layer)
        same = cache is not None and self._cache is not None and self._cache() is cache
        goes_on = (same and not (held == 0 and length != 1)) or (held is not None and 0 < held == end)
        if goes_on:
            self.start, self.step = end, self.step + 1
        else:
            self.start, self.step = held or 0, 0
        self._length = length
        self._cache = None if cache is None else weakref.ref(cache)

    def mask(self, positions: tuple[int, ...] | None, steps: tuple[int, ...] | None, like: torch.Tensor) -> Any:
        """Where the present pass is asked for: True (everywhere), False, or a mask [rows, 1] over `like`.

        Raises:
            SurgeryError: if the rows of `like` are not the positions of the pass.
        """
        rows = like.shape[-2] if like.dim() > 1 else 1
        length = self._length = self._length or rows
        if steps is not None and self.step not in steps:
            return False
        if positions is None:
            return True
        # a mixture of experts may work on the rows of all samples, one after the other
        if rows != length and (like.dim() != 2 or rows % length):
            raise SurgeryError(
                f"positions={positions!r}: the layer was given {length} positions, and the site gives "
                f"{tuple(like.shape)}; leave positions= out here"
            )
        inside = [p - self.start if p >= 0 else length + p for p in positions]
        mask = torch.zeros(length, 1, dtype=torch.bool)
        mask[[p for p in inside if 0 <= p < length]] = True
        return mask.repeat(rows // length, 1).to(like.device)


def _is_cache(value: Any) -> bool:
    return hasattr(value, "get_seq_length") or type(value).__name__.endswith("Cache")


def _held(cache: Any, layer: nn.Module) -> int | None:
    """How many positions a cache holds for this layer; None: it does not say.

    Earlier layers have read the present tokens already, so that only the layer's own entry will do.
    """
    index = next((i for m in layer.modules() if isinstance(i := getattr(m, "layer_idx", None), int)), None)
    if index is None or not hasattr(cache, "get_seq_length"):
        return None
    try:
        return int(cache.get_seq_length(index))
    except Exception:  # a cache of states without positions, or one that has no such layer yet
        return None
