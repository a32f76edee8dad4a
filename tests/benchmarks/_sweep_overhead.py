"""What layersurgery adds to the model's own work: a sweep beside layers that are replaced by what they gave, by hand.

The model has many layers and next to no width, so that what is left is Python's work: it does not grow with the model.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import layersurgery as ls
from tests.benchmarks._sweep_methods import Score, scored
from tests.benchmarks._sweep_shapes import Case, Given, llama

FORWARD = 0.050  # seconds of a forward that the share is of
LIMIT = 0.03


@dataclass
class Overhead:
    """Seconds per forward that a sweep takes beyond a replay by hand.

    Args:
        seconds: the median of the rounds.
        lowest: the least.
        highest: the most.
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


def overhead(clock: Callable[[], float], layers: int = 24, rounds: int = 7, device: str = "cpu") -> Overhead:
    """Measure it, on micro-batches of one sample.

    What twelve of them take beyond four is counted: what a sweep does once is no part of a forward.
    """
    with torch.device(device):
        case = llama(layers=layers, width=64, samples=_MANY, batch=1, tokens=8)
    sites = ls.select(case.model)
    paths = [site.path for site in sites]
    same = True
    added: list[float] = []
    by_hand: list[float] = []
    for _ in range(rounds + 1):
        seconds: list[float] = []
        for count in (_FEW, _MANY):
            began = clock()
            table = ls.sweep(case.model, Score(case), range(count), at=sites, batch_size=1)
            middle = clock()
            replayed = replay(case, paths, count)
            seconds += [middle - began, clock() - middle]
            same = same and bool((table.correct == replayed).all())
        forwards = (_MANY - _FEW) * (len(sites) + 1)
        by_hand.append((seconds[3] - seconds[1]) / forwards)
        added.append((seconds[2] - seconds[0]) / forwards - by_hand[-1])
    added = added[1:]  # the first warms up
    return Overhead(statistics.median(added), min(added), max(added), statistics.median(by_hand[1:]), same)


_FEW, _MANY = 4, 12


@torch.no_grad()
def replay(case: Case, paths: list[str], count: int) -> Any:
    """[sites + 1, n] scores of a Llama whose layers below the site give what they gave, done without any care."""
    import numpy as np

    columns = [_replay_one(case, given, paths) for given in case.batches[:count]]
    return np.concatenate(columns, axis=1)


def _replay_one(case: Case, given: Given, paths: list[str]) -> Any:
    import numpy as np

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
