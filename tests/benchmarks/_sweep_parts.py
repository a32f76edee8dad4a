"""What a forward is made of, what it could take at best, and how much memory something takes."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import layersurgery as ls
from tests.benchmarks._sweep_shapes import Case


@dataclass
class Parts:
    """What a forward is made of.

    Args:
        bound: the loop's work over that of an exact sweep that does nothing but what has changed.
        below: the share of a forward before the first layer, a vision tower's among it.
        residuals: bytes of the residual stream that enters the layers, of one micro-batch.
        forward: seconds that it takes.
        rate: floating-point operations in a second of it.
        matrices: those in a second of multiplying large matrices of the same type: what could be had at best.
    """

    bound: float
    below: float
    residuals: int
    forward: float
    rate: float = 0.0
    matrices: float = 0.0


def taken_apart(case: Case, clock: Callable[[], float], repeats: int = 3) -> Parts:
    """What a forward is made of, from the time that each part of it takes."""
    model, given = case.model, case.batches[0]
    sites = ls.select(model)
    mixers = [model.get_submodule(site.path) for site in sites]
    layers = [model.get_submodule(site.path.rpartition(".")[0]) for site in sites]
    stream: dict[nn.Module, int] = {}

    def entering(layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        states = arguments[0] if arguments else keywords["hidden_states"]
        stream[layer] = max(stream.get(layer, 0), states.nbytes)  # in a generation, the first step's

    handles = [layer.register_forward_pre_hook(entering, with_kwargs=True) for layer in layers]
    case.run(model, given)
    for handle in handles:
        handle.remove()
    spans = {module: _Span(module, clock) for module in (model, *layers, *mixers)}
    forwards = Case(model, case.samples, case.batch_size)
    found: list[Parts] = []
    for _ in range(repeats):
        forwards.run(model, given)
        whole = spans[model]
        after = whole.end - spans[layers[-1]].end
        needed = whole.seconds
        for number, mixer in enumerate(mixers):
            needed += sum(spans[layer].seconds for layer in layers[number:]) - spans[mixer].seconds + after
        below = (spans[layers[0]].begin - whole.begin) / whole.seconds
        bound = (len(layers) + 1) * whole.seconds / needed
        found.append(Parts(bound, below, sum(stream.values()), whole.seconds))
    for span in spans.values():
        span.remove()
    best = min(found, key=lambda parts: parts.forward)
    with FlopCounterMode(display=False) as counter:
        forwards.run(model, given)
    best.rate = counter.get_total_flops() / best.forward
    best.matrices = _matrix_rate(next(model.parameters()), clock)
    return best


class _Span:
    """When a module last began and ended."""

    def __init__(self, module: nn.Module, clock: Callable[[], float]) -> None:
        self.begin = self.end = 0.0
        self._clock = clock
        self._handles = [module.register_forward_pre_hook(self._begins), module.register_forward_hook(self._ends)]

    @property
    def seconds(self) -> float:
        return self.end - self.begin

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _begins(self, *_: Any) -> None:
        self.begin = self._clock()

    def _ends(self, *_: Any) -> None:
        self.end = self._clock()


def peak(action: Callable[[], None], device: str = "cpu") -> int:
    """The most bytes of tensors that an action holds at a time, beyond what was there before."""
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        action()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        action()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    most = now = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def clock_of(device: str) -> Callable[[], float]:
    """Processor time of this process; on an accelerator the time on the wall, once its work is done."""
    if device == "cpu":
        return time.process_time

    def now() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return now


def _matrix_rate(like: torch.Tensor, clock: Callable[[], float]) -> float:
    size = 8192 if like.is_cuda else 512
    matrix = torch.ones(size, size, dtype=like.dtype, device=like.device)
    times: list[float] = []
    for _ in range(5):
        began = clock()
        matrix @ matrix
        times.append(clock() - began)
    return 2 * size**3 / max(min(times), 1e-9)
