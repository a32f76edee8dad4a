"""Runs the methods on a shape in turns, and says what each took, gave and kept."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from tests.benchmarks._sweep_methods import CannotRunError, HookLoop, Method, Prefix, Sweep, SweepAll
from tests.benchmarks._sweep_parts import Parts, peak, taken_apart
from tests.benchmarks._sweep_shapes import Case, Place, Shape

CLOSE = 1e-5  # scored log-probabilities where logits are not the same to the last bit
SPARE = 1.05  # times the residual stream of one micro-batch


@dataclass
class Line:
    """What was seen of one method.

    Args:
        name: the method.
        ratios: of each round: the loop's time over its own, without what a run does once.
        whole: the same with that.
        cells: of each round: seconds per row and sample.
        difference: the largest between its logits and the loop's; of generated tokens, how many differ.
        log_probabilities: the largest between scored log-probabilities.
        same_best: whether the most likely tokens are the loop's.
        peak: bytes beyond the model, at most.
        kept: bytes of what was recorded, where that is known.
        problem: why there is nothing.
    """

    name: str
    ratios: list[float] = field(default_factory=list[float])
    whole: list[float] = field(default_factory=list[float])
    cells: list[float] = field(default_factory=list[float])
    difference: float = 0.0
    log_probabilities: float = 0.0
    same_best: bool = True
    peak: int = 0
    kept: int = 0
    problem: str = ""

    @property
    def ratio(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.ratios)

    def compare(self, output: torch.Tensor, expected: torch.Tensor) -> None:
        """Take note of how far an output is from the loop's."""
        if output.shape != expected.shape:
            self.difference = self.log_probabilities = float("inf")
            self.same_best = False
        elif expected.dim() == 2:
            self.difference += int((output != expected).sum())
        elif not torch.equal(output, expected):
            self.difference = max(self.difference, _largest(output, expected))
            ours, theirs = (one[:, -1].float().log_softmax(-1) for one in (output, expected))
            self.log_probabilities = max(self.log_probabilities, _largest(ours, theirs))
            self.same_best = self.same_best and torch.equal(ours.argmax(-1), theirs.argmax(-1))


@dataclass
class Outcome:
    """What was seen of one shape."""

    title: str
    parts: Parts
    lines: list[Line]
    timed: str
    notes: tuple[str, ...] = ()
    missed: list[str] = field(default_factory=list[str])


def measure(
    shape: Shape,
    size: str,
    kinds: Sequence[type[Method]],
    clock: Callable[[], float],
    device: str = "cpu",
    rounds: int | None = None,
) -> Outcome:
    """Run the methods on a shape.

    Args:
        shape: what is measured.
        size: "full", "usual" or "quick".
        kinds: the methods; the first is the one that others are compared with.
        clock: gives seconds.
        device: where the model is.
        rounds: how often; None: as the shape says.
    """
    settings = shape.chosen(size)
    with torch.device(device):
        case = shape.build(**settings)
    parts = taken_apart(case, clock)
    lines: dict[str, Line] = {}
    methods: list[Method] = []
    for kind in kinds:
        line = lines[kind.name] = Line(kind.name)
        try:
            method = kind(case)
            line.peak = peak(lambda method=method: _begin(method), device)
            methods.append(method)
        except CannotRunError as error:
            line.problem = str(error)
    rounds = rounds or (1 if size == "quick" else shape.rounds)
    rows = len(methods[0].sites) + 1
    timed = [Timed.of(case, rows, None if size == "full" else shape.sampled, number) for number in range(rounds)]
    for one in timed:
        _round(case, methods, lines, clock, one)
    for method in methods:
        if isinstance(method, Prefix):
            lines[method.name].kept = method.kept
    loop = len(set[Place]().union(*(one.loop for one in timed)))
    others = len(set[Place]().union(*(one.others for one in timed)))
    outcome = Outcome(
        shape.title.format(**settings),
        parts,
        list(lines.values()),
        f"{rounds} round{'s' * (rounds > 1)}, in which the loop was timed at {loop} of {len(timed[0].places)} places, "
        f"others that run full forwards at {others}",
        next((method.notes for method in methods if isinstance(method, Sweep)), ()),
    )
    outcome.missed = list(_missed(outcome, shape, size))
    return outcome


def _missed(outcome: Outcome, shape: Shape, size: str) -> Iterator[str]:
    """What was to be reached and was not."""
    loop = outcome.lines[0]
    names = (Prefix.name, Sweep.name, SweepAll.name)
    ours = {line.name: line for line in outcome.lines if line.name in names and not line.problem}
    for line in ours.values():
        if line.name != SweepAll.name and line.difference:
            yield f"{line.name} differs from the loop by {line.difference:g}"
        elif line.log_probabilities > CLOSE or not line.same_best:
            yield f"{line.name}: scored log-probabilities differ by {line.log_probabilities:g}, at most {CLOSE:g}"
        extra = line.peak - loop.peak
        if shape.has_targets(size) and shape.bounded and extra > SPARE * outcome.parts.residuals:
            residuals = f"the residual stream's {in_mib(outcome.parts.residuals)}"
            yield f"{line.name} takes {in_mib(extra)} more than the loop, and not {residuals} at most"
    sweep = ours.get(shape.by)
    if sweep is None or not shape.has_targets(size):
        return
    if sweep.ratio < shape.target:
        yield f"{sweep.name} reaches {sweep.ratio:.2f} x, not {shape.target:g} x"
    share = sweep.ratio / outcome.parts.bound
    if share < shape.of_bound:
        yield f"{sweep.name} reaches {share:.1%} of the bound, not {shape.of_bound:.0%}"


def in_mib(size: float) -> str:
    """Bytes, to be read."""
    return f"{size / 2**20:.1f} MiB"


def _begin(method: Method) -> None:
    """The base and the first variant: both the warm-up, and as much memory as a method ever takes."""
    if isinstance(method, Sweep):
        method.begin(5)  # the base, the check of the last site, and the first site
        return
    method.output((0, 0))
    method.output((0, 1))


def _round(case: Case, methods: list[Method], lines: dict[str, Line], clock: Callable[[], float], timed: Timed) -> None:
    """One round: all methods take turns, place by place, in the order in which the first sweep comes to them."""
    spent = {method.name: 0.0 for method in methods}
    found: dict[tuple[str, Place], torch.Tensor] = {}

    def turn(place: Place) -> None:
        """That of all methods that can run single places."""
        for method in methods:
            if not isinstance(method, Sweep) and timed.runs(method, place):
                began = clock()
                found[method.name, place] = method.output(place)
                spent[method.name] += clock() - began

    sweeps = [method for method in methods if isinstance(method, Sweep)]
    for number, method in enumerate(sweeps):
        others = spent.copy()
        began = clock()
        outputs = method.outputs(clock, turn if not number else lambda _: None)
        waited = sum(spent[name] - others[name] for name in spent)
        spent[method.name] = clock() - began - waited
        found |= {(method.name, place): output for place, output in outputs.items()}
    if not sweeps:
        for place in timed.places:
            turn(place)
    loop = spent[methods[0].name] / len(timed.loop)
    for (name, place), output in found.items():
        if place in timed.loop:
            lines[name].compare(output, found[methods[0].name, place])
    for method in methods:
        count = len([place for place in timed.places if timed.runs(method, place)])
        once = method.once if isinstance(method, Sweep) else 0.0
        line, mean = lines[method.name], (spent[method.name] - once) / count
        line.ratios.append(loop / mean)
        line.whole.append(loop / (spent[method.name] / count))
        line.cells.append(mean / case.batch_size)


@dataclass
class Timed:
    """Where forwards that all cost the same are timed.

    Args:
        places: all places.
        loop: those of the loop, which all others are compared with.
        others: those of other such methods, among them.
    """

    places: list[Place]
    loop: set[Place]
    others: set[Place]

    @classmethod
    def of(cls, case: Case, rows: int, sampled: int | None, nth: int) -> Timed:
        """In one round; `sampled` is how many places others are timed at, None: all."""
        places = [(batch, row) for batch in range(len(case.batches)) for row in range(rows)]
        stride = 1 if sampled is None else max(len(places) // sampled, 1)
        often = max(stride // _OFTENER, 1)
        others = set(places[(stride // 2 + nth) % stride :: stride])
        return cls(places, others | set(places[(often // 2 + nth) % often :: often]), others)

    def runs(self, method: Method, place: Place) -> bool:
        """Whether a method runs there."""
        return method.pace != "any" or place in (self.loop if isinstance(method, HookLoop) else self.others)


_OFTENER = 3  # what the loop takes is in each ratio


def _largest(one: torch.Tensor, other: torch.Tensor) -> float:
    """Infinite where one of them is no number."""
    return float((one.double() - other.double()).abs().nan_to_num(nan=float("inf")).max())
