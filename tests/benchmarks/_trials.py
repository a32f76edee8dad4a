"""One search on a task whose truth is known, and what many of them come to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from layersurgery.errors import SearchError
from layersurgery.scoring import Reading
from layersurgery.search import PaperRule, TableOracle, paired_interval
from layersurgery.search._correct import correct_gain
from layersurgery.search._decision import Decision, Rule
from layersurgery.search._halving import HalvingRule
from tests.benchmarks._tables import KnownTask

FRESH = 60  # samples of the check
_CHECKS = 100  # of them are drawn for each choice: one says too little of how often an interval covers
HARM = -0.001  # a true gain below it is a harm
_REPLAYS = 100


@dataclass(frozen=True)
class Entry:
    """A line of the table: a rule at a number of shots.

    Args:
        name: what it is.
        rule: the rule.
        shots: those of the paper's rule that it is compared with.
        margins: whether it is given margins.
    """

    name: str
    rule: Rule
    shots: int
    margins: bool = True


def entries(shots: Sequence[int]) -> list[Entry]:
    """The paper's rule; halving with ten times as many labels as shots, with the paper's, and without margins."""
    made: list[Callable[[int], Entry]] = [
        lambda n: Entry("paper", PaperRule(n), n),
        lambda n: Entry("halving, 10 N labels", HalvingRule(labels=10 * n), n),
        lambda n: Entry("halving, same labels", HalvingRule(labels=PaperRule(n).labels_needed), n),
        lambda n: Entry("halving, 10 N, 0/1 only", HalvingRule(labels=10 * n), n, margins=False),
    ]
    return [make(n) for n in shots for make in made]


@dataclass(frozen=True)
class Trial:
    """What one search came to.

    Args:
        task: where.
        gain: what the choice gains on samples that were not read; 0 where the model is kept.
        truth: what it gains on all samples.
        best: whether it is the site that gains most.
        evaluations: cells read.
        labels: samples read.
        fresh: how often the interval on fresh samples covers the gain; None where the model is kept.
        adjusted: whether the interval without fresh samples does; None where it was not asked for.
        apparent: gain on the probe less the held-out one; None likewise.
        corrected: the same of the corrected gain.
        lacking: whether the paper's rule could not decide, since too few samples were left; the model is kept then.
    """

    task: KnownTask
    gain: float
    truth: float
    best: bool
    evaluations: int
    labels: int
    fresh: float | None = None
    adjusted: bool | None = None
    apparent: float | None = None
    corrected: float | None = None
    lacking: bool = False


def trial(task: KnownTask, entry: Entry, seed: Sequence[int], *, adjust: bool) -> Trial:
    """One search.

    Args:
        task: where.
        entry: by what.
        seed: for all draws.
        adjust: whether to look at what can be said without fresh samples, too; that takes time.
    """
    rng = np.random.default_rng(list(seed))
    oracle = Record(task, margins=entry.margins)
    lacking = False
    try:
        decision = entry.rule(oracle, rng)
    except SearchError:  # the base solved all samples but a few, and these are the last ones
        if not isinstance(entry.rule, PaperRule):
            raise
        decision, lacking = Decision(None), True
    unread = np.flatnonzero(~oracle.read_at[0])
    cost = int(oracle.read_at.sum()), int(oracle.read_at[0].sum())
    site = decision.site
    if site is None:
        return Trial(task, 0.0, 0.0, False, *cost, lacking=lacking)
    base, variant = task.correct[0, unread], task.correct[site + 1, unread]
    gain = float((variant - base).mean())
    # put back each time: the truth is the mean of those unread
    checks = rng.integers(0, len(unread), (_CHECKS, FRESH))
    found = _mean(gain in paired_interval(base[fresh], variant[fresh]) for fresh in checks)
    told = (found,)
    if adjust:
        columns = list(decision.columns)
        seen = np.where(oracle.read_at, task.correct, np.nan)[:, columns]
        by = task.margin[:, columns] if entry.margins and not isinstance(entry.rule, PaperRule) else None
        known = correct_gain(seen, site, by, resamples=_REPLAYS)
        told = found, gain in known.interval, known.apparent - gain, known.gain - gain
    return Trial(task, gain, float(task.truth[site]), site == int(task.truth.argmax()), *cost, *told)


class Record(TableOracle):
    """A `TableOracle` that tells which cells were read."""

    def __init__(self, task: KnownTask, *, margins: bool) -> None:
        super().__init__(task.correct, task.margin if margins else None)
        self.read_at = np.zeros(task.correct.shape, dtype=bool)

    def read(self, rows: Sequence[int], columns: Sequence[int]) -> Reading:
        self.read_at[np.ix_(rows, columns)] = True
        return super().read(rows, columns)


@dataclass
class Summary:
    """Means over trials; a share of nothing is nan.

    Args:
        entry: the rule.
        trials: its searches.
        paper: those of the paper's rule at the same shots, on the same tasks in the same order.
    """

    entry: Entry
    trials: list[Trial] = field(default_factory=list)
    paper: list[Trial] = field(default_factory=list)

    @property
    def gain(self) -> float:
        return _mean(each.gain for each in self.trials)

    @property
    def more(self) -> float:
        return self.gain - _mean(each.gain for each in self.paper)

    @property
    def more_error(self) -> float:
        """Standard error of `more`, over tasks."""
        pairs: dict[int, list[float]] = {}
        for ours, theirs in zip(self.trials, self.paper, strict=True):
            pairs.setdefault(id(ours.task), []).append(ours.gain - theirs.gain)
        means = [np.mean(values) for values in pairs.values()]
        return float(np.std(means) / np.sqrt(len(means)))

    @property
    def harm(self) -> float:
        return _mean(each.truth < HARM for each in self._null)

    @property
    def null_gain(self) -> float:
        return _mean(each.gain for each in self._null)

    @property
    def best(self) -> float:
        return _mean(each.best for each in self.trials if each.task.kind != "null")

    @property
    def evaluations(self) -> float:
        return _mean(each.evaluations for each in self.trials)

    @property
    def cost(self) -> float:
        """Evaluations, as a share of the paper's."""
        return self.evaluations / _mean(each.evaluations for each in self.paper)

    @property
    def labels(self) -> float:
        return _mean(each.labels for each in self.trials)

    def coverage(self, name: str, *, null: bool) -> float:
        """How often the interval `name` ("fresh" or "adjusted") covers."""
        values = [getattr(each, name) for each in (self._null if null else self.trials)]
        return _mean(value for value in values if value is not None)

    def bias(self, name: str) -> float:
        """Mean of "apparent" or "corrected"."""
        return _mean(value for value in (getattr(each, name) for each in self.trials) if value is not None)

    @property
    def _null(self) -> list[Trial]:
        return [each for each in self.trials if each.task.kind == "null"]


def _mean(values: Iterable[float]) -> float:
    listed = [float(value) for value in values]
    return float(np.mean(listed)) if listed else float("nan")
