"""Hooks on a shadow that write down what each of its modules does in one forward."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from layersurgery.sites._probe import APART, Frame, frame_of, look, normalises
from layersurgery.sites._weightless import Weightless


@dataclass
class Record:
    """What was seen of one module.

    Args:
        order: number of its first call among all first calls.
        runs: how often it was called in one forward.
        did: `MIXES` or `APART`, where that could be told.
        beside: its positions come from a second input, which the layer was given from outside.
        normalises: it is a norm.
        operations: what ran inside, such as "aten::_softmax".
        frame: the shape of what it was called with, and where in it the features are.
    """

    order: int
    runs: int = 1
    did: str | None = None
    beside: bool = False
    normalises: bool = False
    operations: set[str] = field(default_factory=set[str])
    frame: Frame | None = None


class Recorder:
    """Hooks on a shadow that keep a `Record` of each module that runs.

    Args:
        top: the module that is called.
        layers: ids of modules that may be layers, elements of lists: what is inside is looked at closely.
        outside: ids of modules that hold such lists, which are not looked at.
    """

    def __init__(self, top: nn.Module, layers: set[int], outside: set[int]) -> None:
        self.records: dict[int, Record] = {}
        self._top, self._layers, self._outside = top, layers, outside
        self._open: list[tuple[nn.Module, Record]] = []
        self._frames: list[tuple[Frame | None, set[int]]] = []
        self._probing = False

    def run(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Call the module and record; what it raises is raised."""
        handles: list[Any] = []
        for module in self._top.modules():
            handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
            handles.append(module.register_forward_hook(self._leave, with_kwargs=True))
        try:
            with quiet(self._saw):
                return self._top(*arguments, **keywords)
        finally:
            for handle in handles:
                handle.remove()

    def _saw(self, operation: str) -> None:
        if not self._probing:
            for _, record in self._open:
                record.operations.add(operation)

    def _enter(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if self._probing:
            return
        record = self.records.get(id(module))
        if record is None:
            record = self.records[id(module)] = Record(len(self.records))
        else:
            record.runs += 1
        self._open.append((module, record))
        if id(module) in self._layers:
            others = {tensor.data_ptr() for tensor in _tensors((*arguments[1:], *list(keywords.values())))}
            self._frames.append((frame_of(module, arguments, keywords, None), others))

    def _leave(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        if self._probing:
            return
        record = self._open.pop()[1]
        frame, others = self._frames[-1] if self._frames else (None, set[int]())
        if id(module) in self._layers:
            self._frames.pop()
        if record.runs > 1 or id(module) in self._outside or not any(True for _ in module.parameters()):
            return
        record.frame = frame_of(module, arguments, keywords, frame)
        self._probing = True
        try:
            if any(True for _ in module.children()) or not normalises(module, record.frame):
                record.did, record.beside = look(module, (arguments, keywords), output, record.frame, others)
            else:
                record.did, record.normalises = APART, True
        finally:
            self._probing = False


@contextmanager
def quiet(seen: Callable[[str], None] = lambda operation: None) -> Iterator[None]:
    """A world in which a shadow can run: no gradients, no autocast, the CPU, plain kernels; undone after."""
    python, array = random.getstate(), np.random.get_state()  # noqa: NPY002 - models draw from the global state
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as world:
        world.callback(random.setstate, python)
        world.callback(np.random.set_state, array)
        world.callback(torch.backends.mha.set_fastpath_enabled, fast)
        world.enter_context(torch.random.fork_rng(devices=[]))
        world.enter_context(torch.inference_mode(False))
        world.enter_context(torch.no_grad())
        if torch.is_autocast_enabled("cpu"):
            world.enter_context(torch.autocast("cpu", enabled=False))
        if torch.get_default_device().type != "cpu":
            world.enter_context(torch.device("cpu"))
        world.enter_context(sdpa_kernel(SDPBackend.MATH))  # the others lose sight of what is not a number
        world.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)  # the tensors are small: threads would only wait for each other
        torch.backends.mha.set_fastpath_enabled(False)  # the fused path calls no module inside
        torch.manual_seed(0)
        world.enter_context(Weightless(seen))
        yield


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _tensors(entry)
