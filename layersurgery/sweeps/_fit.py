"""How many samples at once: as many as there is memory for."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from layersurgery.sweeps._memory import ran_out_of_memory
from layersurgery.sweeps._prefix_values import storages
from layersurgery.sweeps._usage import free_on


def most_that_fit(model: nn.Module, run_one: Callable[[], object], most: int) -> int:
    """How many samples to run at once.

    Half of what is free is for what the samples take; a sweep may keep what it shares in a quarter. Fewer than the most
    are a power of two, so that a little memory more or less makes no difference.

    Args:
        model: the model itself.
        run_one: runs it on a single sample. What the samples take is in proportion to what this one does.
        most: no more than these; so many where nothing is known of the memory.
    """
    try:
        with _Alive(model) as alive:
            run_one()
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        return 1
    fit = most
    for device, taken in alive.highest.items():
        free = free_on(device)
        fit = fit if free is None else min(fit, free // 2 // taken)
    return most if fit >= most else 1 << max(1, fit).bit_length() - 1


class _Alive(TorchDispatchMode):
    """Counts what the tensors take that are made in this block, as long as they are there.

    Args:
        model: whose weights are not counted.

    Attributes:
        highest: by device, the most bytes at a time.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.highest: Counter[torch.device] = Counter()
        self._now: Counter[torch.device] = Counter()
        self._weights = storages(list(filter(_is_plain, (*model.parameters(), *model.buffers()))))
        self._seen: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for one in tree_leaves(output):
            if _is_plain(one):
                self._note(one.untyped_storage())
        return output

    def _note(self, storage: torch.UntypedStorage) -> None:
        address, size, device = storage.data_ptr(), storage.nbytes(), storage.device
        if not size or address in self._seen or address in self._weights:
            return

        def gone(_: object) -> None:
            del self._seen[address]
            self._now[device] -= size

        self._seen[address] = weakref.ref(storage, gone)
        self._now[device] += size
        self.highest[device] = max(self.highest[device], self._now[device])


def _is_plain(value: Any) -> bool:
    """Whether it is a tensor with memory of its own, which one that packs others (a quantised weight) has not."""
    return type(value) in (torch.Tensor, nn.Parameter) and value.layout == torch.strided and not value.is_meta
