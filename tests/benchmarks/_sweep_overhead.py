"""What layersurgery adds to the model's own work: a sweep beside layers that are replaced by what they gave, by hand.

The model has many layers and next to no width, so that what is left is Python's work: it does not grow with the model.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import layersurgery as ls
from layersurgery.sweeps import Result
from tests.benchmarks._sweep_methods import scored
from tests.benchmarks._sweep_shapes import Case, Given, llama
from tests.benchmarks._sweep_turns import in_turns

FORWARD = 0.050  # seconds of a forward that the share is of
LIMIT = 0.03


@dataclass
class Overhead:
    """Seconds per forward that a sweep takes beyond a replay by hand.

    Args:
        seconds: the median of the micro-batches.
        lowest: their first quartile.
        highest: their third.
        by_hand: what the replay by hand takes, per forward.
        same: whether all scores are those of the replay by hand.
    """

    seconds: float
    lowest: float
    highest: float
    by_hand: float
    same: bool

    @property
    def share(self) -> float:
        """Of a forward of 50 ms."""
        return self.seconds / FORWARD

    @property
    def missed(self) -> list[str]:
        """What was to be reached and was not."""
        missed = [] if self.same else ["a replay by hand gives other scores"]
        if self.share > LIMIT:
            missed.append(f"layersurgery adds {self.share:.1%} to a forward of 50 ms, and not {LIMIT:.0%} at most")
        return missed


def overhead(clock: Callable[[], float], layers: int = 24, batches: int = 60, device: str = "cpu") -> Overhead:
    """Measure it, on micro-batches of one sample: the sweep and the replay by hand take turns, one by one.

    The first ones are not counted: what a sweep does once is no part of a forward.
    """
    with torch.device(device):
        case = llama(layers=layers, width=64, samples=batches, batch=1, tokens=8)
    sites = ls.select(case.model)
    by_hand = Case(case.copied(), case.samples, 1)
    paths = [site.path for site in sites]
    seconds: list[tuple[float, float]] = []
    replayed: list[Any] = []
    done, began = 0, 0.0

    def turn(_: Result) -> None:
        nonlocal done, began
        done += 1
        if done % (len(sites) + 1) == 0:
            middle = clock()
            replayed.append(replay(by_hand, by_hand.batches[len(replayed)], paths))
            seconds.append((middle - began, clock() - middle))
            began = clock()

    def score(model: Any, samples: Sequence[int]) -> Any:
        return scored(case.run(model, case.batches[samples[0]]))

    began = clock()
    table = in_turns(case.model, score, range(batches), sites, 1, turn)
    same = bool((table.correct == np.concatenate(replayed, axis=1)).all())
    pairs = [(ours / (len(sites) + 1), theirs / (len(sites) + 1)) for ours, theirs in seconds[_FIRST:]]
    added = [ours - theirs for ours, theirs in pairs]
    lowest, median, highest = statistics.quantiles(added, n=4)
    return Overhead(median, lowest, highest, statistics.median(theirs for _, theirs in pairs), same)


_FIRST = 4  # micro-batches that are not counted


@torch.no_grad()
def replay(case: Case, given: Given, paths: list[str]) -> Any:
    """[sites + 1, 1] scores of a Llama whose layers below the site give what they gave, done without any care."""
    model: Any = case.model
    layers: list[Any] = [model.get_submodule(path.rpartition(".")[0]) for path in paths]
    outputs: list[torch.Tensor] = []
    handles = [layer.register_forward_hook(lambda *call: outputs.append(call[-1])) for layer in layers]
    rows = [scored(case.run(model, given))]
    for handle in handles:
        handle.remove()
    zeros = torch.zeros_like(outputs[0])
    for number, layer in enumerate(layers):
        for below in range(number):
            layers[below].forward = lambda *_, output=outputs[below], **__: output
        layer.self_attn.forward = lambda *_, **__: (zeros, None)
        try:
            rows.append(scored(case.run(model, given)))
        finally:
            for below in range(number):
                del layers[below].forward
            del layer.self_attn.forward
    return np.stack(rows)
