"""What layersurgery adds to the model's own work: a sweep beside layers that are replaced by what they gave, by hand.

Forwards take about 50 ms, `FORWARD`; on a quicker machine the limit is still that of these. In a model with next to no
width, what is left being Python's work, it is less: a larger one leaves little of that in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats

import layersurgery as ls
from layersurgery.sweeps import Result
from tests.benchmarks._sweep_methods import scored
from tests.benchmarks._sweep_shapes import Case
from tests.benchmarks._sweep_turns import in_turns

LIMIT = 0.03
FORWARD = 0.05  # seconds


@dataclass
class Overhead:
    """Seconds per forward that a sweep takes beyond a replay by hand.

    Of each row, the half of the micro-batches in the middle counts: others were disturbed, on either side.

    Args:
        seconds: the mean of the rows.
        lowest: from where on it lies, with a probability of 95 %.
        highest: and up to where.
        forward: what a full forward takes.
        same: whether all scores are those of the replay by hand.
    """

    seconds: float
    lowest: float
    highest: float
    forward: float
    same: bool

    @property
    def share(self) -> float:
        """Of a full forward."""
        return self.seconds / self.forward

    @property
    def missed(self) -> list[str]:
        """What was to be reached and was not."""
        missed = [] if self.same else ["a replay by hand gives other scores"]
        if self.seconds > LIMIT * max(self.forward, FORWARD):
            added = f"{1e3 * self.seconds:.2f} ms to a forward of {1e3 * self.forward:.0f} ms"
            missed.append(f"layersurgery adds {added}, and not {LIMIT:.0%} of {1e3 * FORWARD:.0f} ms or more")
        return missed


def overhead(clock: Callable[[], float], case: Case) -> Overhead:
    """Measure it, on a Llama and micro-batches of one sample: the sweep and the replay by hand take turns, row by row.

    The first micro-batches are not counted: what a sweep does once is no part of a forward.
    """
    sites = ls.select(case.model)
    by_hand = Replay(Case(case.copied(), case.samples, 1), [site.path for site in sites])
    rows, batches = len(sites) + 1, len(case.batches)
    ours, theirs, scores = (np.zeros((batches, rows)) for _ in range(3))
    began = 0.0

    def turn(result: Result) -> None:
        nonlocal began
        place = (result.columns[0], result.row)
        middle = clock()
        scores[place] = by_hand.score(*place)
        ours[place], theirs[place] = middle - began, clock() - middle
        began = clock()

    def score(model: Any, samples: Sequence[int]) -> Any:
        return scored(case.run(model, case.batches[samples[0]]))

    began = clock()
    table = in_turns(case.model, score, range(batches), sites, 1, turn)
    added = (ours - theirs)[_FIRST:]
    again = np.random.default_rng(0).integers(0, len(added), (_RESAMPLES, len(added)))
    lowest, highest = np.quantile([_middle(added[chosen]) for chosen in again], [0.025, 0.975])
    same = bool((table.correct == scores.T).all())
    return Overhead(_middle(added), float(lowest), float(highest), float(np.median(theirs[_FIRST:, 0])), same)


def _middle(added: np.ndarray) -> float:
    return float(stats.trim_mean(added, 0.25).mean())


_FIRST = 4  # micro-batches that are not counted
_RESAMPLES = 1000


class Replay:
    """A Llama whose layers below a site give what they gave, done without any care.

    Args:
        case: the model and its samples.
        paths: of the sites, each layer's attention in turn.
    """

    def __init__(self, case: Case, paths: list[str]) -> None:
        self._case = case
        model: Any = case.model
        self._layers: list[Any] = [model.get_submodule(path.rpartition(".")[0]) for path in paths]
        self._outputs: list[torch.Tensor] = []

    @torch.no_grad()
    def score(self, batch: int, row: int) -> float:
        """Of one sample; row 0 is the unmodified model, which comes first."""
        return self._base(batch) if row == 0 else self._variant(batch, row - 1)

    def _base(self, batch: int) -> float:
        self._outputs.clear()
        handles = [layer.register_forward_hook(lambda *call: self._outputs.append(call[-1])) for layer in self._layers]
        try:
            return self._run(batch)
        finally:
            for handle in handles:
                handle.remove()

    def _variant(self, batch: int, number: int) -> float:
        zeros = torch.zeros_like(self._outputs[0])
        below, mixer = self._layers[:number], self._layers[number].self_attn
        for layer, output in zip(below, self._outputs, strict=False):
            layer.forward = lambda *_, output=output, **__: output
        mixer.forward = lambda *_, **__: (zeros, None)
        try:
            return self._run(batch)
        finally:
            for module in (*below, mixer):
                del module.forward

    def _run(self, batch: int) -> float:
        return float(scored(self._case.run(self._case.model, self._case.batches[batch]))[0])
