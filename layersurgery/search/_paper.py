"""`PaperRule`: the paper's decision rule, as it is written there."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from layersurgery.errors import SearchError
from layersurgery.scoring._reading import Reading
from layersurgery.search._decision import Decision
from layersurgery.search._oracle import Oracle, read
from layersurgery.search._prune import TOLERANCE, Gains


@dataclass(frozen=True, repr=False)
class PaperRule:
    """Task-Adaptive Layer Knockout: the site with the largest gain on a few samples (section 4, appendix B).

    1. Draw `shots` samples. If the unmodified model solves them all, discard them and draw others.
    2. Evaluate every site on them. A site that gains, and more than any other, is the decision.
    3. If several tie for the largest gain, or none gains, add `shots // 2` new samples and evaluate all sites
       on the enlarged set; if that does not settle it, add `shots // 4` more.
    4. If sites still tie, take the last of them; if none gains, keep the model.

    The halves are rounded down, and an addition of no sample (fewer than 2 or 4 shots) is left out. "Solves
    them all" means that all scores are 1 or equal to the best value that the scorer declares: real-valued
    scores without one never count as solved.

    Args:
        shots: N, the number of probe samples of the first round; the paper uses 10, 15 and 20.
        prune: leave out evaluations of sites that can no longer be among the best. The decision is the same, always;
            the gains of such sites are not known then (nan). It works for scores of single samples that have a `best`
            value, or are all 0 or 1 for the unmodified model and then taken to be so for all; for others nothing is
            left out.

    Raises:
        SearchError: if `shots` is below 1. When called: if the oracle has fewer than `shots` samples or no
            site, or if too few unused samples are left for an addition.

    Examples:
        >>> from layersurgery.search import TableOracle
        >>> scores = [[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]]        # the unmodified model, site 0, site 1
        >>> PaperRule(shots=4)(TableOracle(scores), np.random.default_rng(0)).site
        0
    """

    shots: int = 20
    prune: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.shots, bool) or not isinstance(self.shots, (int, np.integer)) or self.shots < 1:
            raise SearchError(f"PaperRule(shots={self.shots!r}): shots must be a whole number, 1 or above")

    def __repr__(self) -> str:
        return f"PaperRule(shots={self.shots}{', prune=True' if self.prune else ''})"

    @property
    def labels_needed(self) -> int:
        """The most samples that it asks for, discarded probe sets aside: N + N // 2 + N // 4."""
        return sum(self._steps)

    def evaluations(self, sites: int, samples: int | None = None, *, per_sample: bool = True) -> tuple[int, int]:
        """The fewest and the most evaluations of a search: one sample on one variant each, pruning aside.

        Fewest where the first round decides, most where it takes them all. Each probe set that is discarded before
        costs `shots` more; where all of them are, no site is evaluated.

        Args:
            sites: number of candidate sites.
            samples: makes no difference here: the rule draws as many as `shots` says, or refuses.
            per_sample: whether the scorer scores single samples; one that gives one number for all of them scores the
                enlarged set of each round anew.

        Examples:
            >>> PaperRule(shots=15).evaluations(sites=32)
            (495, 825)
        """
        del samples
        sets = list(accumulate(step for step in self._steps if step))
        return (sites + 1) * sets[0], (sites + 1) * (sets[-1] if per_sample else sum(sets))

    @property
    def _steps(self) -> tuple[int, int, int]:
        return self.shots, self.shots // 2, self.shots // 4

    def __call__(self, oracle: Oracle, rng: np.random.Generator, /) -> Decision:
        """Decide; see the class for the rule and for what is raised."""
        self._check(oracle)
        order = [int(column) for column in rng.permutation(oracle.n_samples)]
        start, base = self._informative_probe(oracle, order)
        redraws = start // self.shots
        if base is None:
            return Decision(
                None,
                f"the unmodified model solves every probe set: {redraws} sets of {self.shots} samples were "
                f"drawn and discarded, and the {len(order) - start} unused ones are not enough for another",
                redraws=redraws,
            )

        end, rounds = start, 0
        pruned = self._pruned(oracle, base)
        gains, leaders = np.zeros(oracle.n_sites), ()
        for step in self._steps:
            if step == 0:
                continue
            self._check_enough_left(step, end, order)
            end, rounds = end + step, rounds + 1
            if rounds > 1:
                base = read(oracle, [0], order[start:end])
            found = pruned.leaders(base.correct[0], order[start:end]) if pruned else None
            if found is None:
                pruned = None
                found = _evaluate(oracle, base, order[start:end])
            gains, leaders = found
            if len(leaders) == 1:
                break

        return Decision(
            leaders[-1] if leaders else None,
            _reason(leaders, end - start),
            gains=gains,
            columns=tuple(order[start:end]),
            base=float(base.correct.mean()),
            rounds=rounds,
            redraws=redraws,
            candidates=leaders,
        )

    def _pruned(self, oracle: Oracle, base: Reading) -> Gains | None:
        if not self.prune or getattr(oracle, "per_sample", True) is False:
            return None
        if base.best is not None:
            return Gains(oracle, base.best)
        return Gains(oracle, 1.0) if np.isin(base.correct, (0.0, 1.0)).all() else None

    def _check(self, oracle: Oracle) -> None:
        if oracle.n_sites < 1:
            raise SearchError("there is no site to search: give the oracle at least one besides the unmodified model")
        if self.shots > oracle.n_samples:
            raise SearchError(
                f"PaperRule(shots={self.shots}) draws {self.shots} probe samples, but there are "
                f"{oracle.n_samples}; give more samples or fewer shots"
            )

    def _informative_probe(self, oracle: Oracle, order: list[int]) -> tuple[int, Reading | None]:
        """Where in `order` the first probe set starts that the base does not solve, and the base on it."""
        start = 0
        while start + self.shots <= len(order):
            base = read(oracle, [0], order[start : start + self.shots])
            if not _solved(base):
                return start, base
            start += self.shots
        return start, None

    def _check_enough_left(self, step: int, end: int, order: list[int]) -> None:
        left = len(order) - end
        if step > left:
            raise SearchError(
                f"PaperRule(shots={self.shots}): no site stands out on the probe and the rule adds {step} "
                f"samples, but of {len(order)} samples {end} are used and {left} are left; give at least "
                f"{self.labels_needed} samples ({self.labels_needed - self.shots} beyond the shots, and more "
                "where probe sets are discarded) or fewer shots"
            )


def _solved(base: Reading) -> bool:
    scores = base.correct
    if base.best is not None:
        return bool(np.all(scores >= base.best - TOLERANCE))
    return bool(np.all(scores == 1))


def _evaluate(oracle: Oracle, base: Reading, columns: list[int]) -> tuple[np.ndarray, tuple[int, ...]]:
    """Mean gain of every site, and the sites that share the largest one if it is positive.

    Gains are compared as exact sums of differences: means of 0/1 scores in different orders can differ in the
    last bit, which would break a tie by rounding.
    """
    variants = read(oracle, list(range(1, oracle.n_sites + 1)), columns)
    differences = variants.correct - base.correct
    totals = np.array([math.fsum(row) for row in differences])
    slack = TOLERANCE * max(1.0, float(np.abs(differences).sum(axis=1).max()))
    top = float(totals.max())
    leaders = np.flatnonzero(totals >= top - slack) if top > slack else np.zeros(0, dtype=np.intp)
    return totals / len(columns), tuple(int(site) for site in leaders)


def _reason(leaders: tuple[int, ...], n: int) -> str:
    if not leaders:
        return f"no site gains on {n} probe samples"
    if len(leaders) == 1:
        return f"the largest gain on {n} probe samples, and the only one of its size"
    return f"the last of {len(leaders)} sites that still tie for the largest gain on {n} probe samples"
