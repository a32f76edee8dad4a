"""`HalvingRule`: successive halving of the sites on smoothed margins, and a gate that keeps the model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from layersurgery.errors import SearchError
from layersurgery.search._decision import Decision
from layersurgery.search._gate import Gate, luck, passes
from layersurgery.search._oracle import Oracle
from layersurgery.search._prior import Prior, drawn, entering, remaining
from layersurgery.search._schedule import Round, schedule
from layersurgery.search._seen import Seen

_SHOTS = (10, 20)  # between which the default budget is that of the paper's rule
# Samples per row that the paper's rule reads in the end for one shot, a little less than on average: it decides sooner
# on more shots.
_PER_SHOT = (1.45, 1.38)
_ROUNDS = 0.8  # share of the cells for the rounds; the rest is for close calls
_CLOSER = 6  # samples at a time, for these
_HALF = 0.62  # most of all cells


@dataclass(frozen=True)
class HalvingRule:
    """Successive halving: all sites on few samples, the better half on more, down to one, and a gate at the end.

    1. Each round reads new samples, on the unmodified model and all sites still in the running; the better half goes
       on (32, 16, 8, 4, 2 sites), by mean score on all samples so far and 1.5 standard errors: less is known of a site
       that changes many answers, and it may yet prove the best. The last round goes by the mean alone. With fewer
       sites a round reads more samples, but fewer cells.
    2. Scores are smoothed margins (`smooth`): an answer that nearly flips counts too, and each site's unit cancels.
    3. The best of the last round is the finalist. It is knocked out if its mean score is higher than that of the
       unmodified model, it repairs more answers than it breaks, and both by enough: the first by `z` standard errors,
       the second by a quarter of that. On 20 samples or fewer two thirds of `z` will do, and all of it is asked for
       from 60 on; with fewer sites, the best of which chance lifts less, a smaller `z` will: 0.7 of it for 8 sites,
       half for 3 or fewer. Otherwise the model is kept. As long as it is a close call, by about a standard error,
       further samples are read on these two alone.
    4. Without margins, or where scores are not 0 or 1, the scores themselves are compared, and must differ by `z`
       standard errors, on few samples too. A scorer of one number in all is judged by Student's t over sets of samples.

    The gate is a decision, not a test: with `z` = 1.5, chance alone passes it in a good part of the tasks where no
    site matters. What a chosen site gains must be measured on other samples.

    A `prior` from other tasks on the same model may bar sites, and draws the means by which sites are compared towards
    what it expects. The gate rests on the samples alone, for as many sites as were compared.

    A standard error is sqrt((S + 1/4) / (n (n - 1))), S the sum of squared deviations: the quarter keeps few samples
    that agree from looking certain. An oracle may have `groups`, one name per sample. Samples of a group (questions on
    one picture, say) then count as one in the standard error, and other groups are drawn first.

    Args:
        labels: most labelled samples to read; None: all there are.
        budget: most cells (one sample on one variant) to read. None: about as many as the paper's rule reads with a
            tenth as many shots as there are labels, but not fewer than 10 shots or more than 20, and never more
            than some 60 % of all cells. A fifth of it is for close calls, and often not used.
        z: the gate for 32 sites, in standard errors; 0: any gain will do.
        eta: one in `eta` sites survives a round.
        prior: what other tasks let one expect, `Prior.of(vectors)`; None: nothing.

    Raises:
        SearchError: if a setting makes no sense. When called: if there is no site, the prior is of other sites, or the
            budget does not suffice for one sample on every site.

    Examples:
        >>> from layersurgery.search import TableOracle
        >>> rng = np.random.default_rng(0)
        >>> margins = rng.normal(size=(9, 60))
        >>> margins[6] += 2                                     # site 5 helps
        >>> HalvingRule()(TableOracle(margins > 0, margins), rng).site
        5
    """

    labels: int | None = None
    budget: int | None = None
    z: float = 1.5
    eta: int = 2
    prior: Prior | None = None

    def __post_init__(self) -> None:
        for name, least, often in (("labels", 1, True), ("budget", 2, True), ("eta", 2, False)):
            value = getattr(self, name)
            whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
            if not (whole and value >= least) and not (often and value is None):
                none = ", or None" if often else ""
                raise SearchError(
                    f"HalvingRule({name}={value!r}): {name} must be a whole number, {least} or above{none}"
                )
        if isinstance(self.z, bool) or not isinstance(self.z, (int, float, np.number)) or not 0 <= self.z < math.inf:
            raise SearchError(f"HalvingRule(z={self.z!r}): z must be a number of standard errors, 0 or above")
        if self.prior is not None and not isinstance(self.prior, Prior):
            raise SearchError(f"HalvingRule(prior={self.prior!r}): give a Prior, such as Prior.of(vectors), or None")

    @property
    def labels_needed(self) -> int:
        """The most samples that it asks for: `labels`; where that is None any number will do, and this is 1."""
        return 1 if self.labels is None else int(self.labels)

    def evaluations(self, sites: int, samples: int | None = None, *, per_sample: bool = True) -> tuple[int, int]:
        """The fewest and the most evaluations of a search: one sample on one variant each.

        It is known beforehand what the rounds read; a close call at the end takes more.

        Args:
            sites: number of candidate sites.
            samples: number of labelled samples there are; None: as many as `labels` says, or, without that, any number.
            per_sample: makes no difference here: no sample is read twice on the same variant, by whatever scorer.

        Raises:
            SearchError: if the prior is of another number of sites.

        Examples:
            >>> HalvingRule(labels=100).evaluations(sites=32)
            (381, 477)
        """
        del per_sample
        sites = sites if self.prior is None else len(remaining(self.prior, sites))
        there = self.labels if samples is None else self._labels(samples)
        fewest, most = (1, 10 * _SHOTS[1]) if there is None else (there, there)
        return self._cells(sites, fewest)[0], self._cells(sites, most)[1]

    def __call__(self, oracle: Oracle, rng: np.random.Generator, /) -> Decision:
        """Decide; see the class for the rule and for what is raised."""
        if oracle.n_sites < 1:
            raise SearchError("there is no site to search: give the oracle at least one besides the unmodified model")
        sites, dropped = entering(self.prior, oracle), []
        order = _order(oracle, rng)[: self._labels(oracle.n_samples)]
        entered, rounds = len(sites), self._rounds(len(sites), len(order))
        lots = rng.permutation(oracle.n_sites)  # sites that tie go by these, so that no layer is preferred
        seen = Seen(oracle)
        for each in rounds:
            sites, dropped = sites[: each.sites], sites[each.sites :] + dropped
            seen.add(sites, order[len(seen.columns) :][: each.samples])
            compared = seen.compared(sites)
            hopes = drawn(self.prior, compared, sites) + (0.0 if each is rounds[-1] else compared.hopes)
            place = dict(zip(sites, hopes, strict=True))
            sites.sort(key=lambda site: (-place[site], lots[site]))
        lift, groups = luck(entered), _groups(oracle)
        spare = self._budget(entered, len(order)) - sum(each.cells for each in rounds)
        while abs((gate := passes(seen, sites[0], self.z * lift, groups)).margin) < lift:
            closer = order[len(seen.columns) :][: min(_CLOSER, spare // 2)]
            if not closer:
                break
            sites, dropped, spare = sites[:1], sites[1:] + dropped, spare - 2 * len(closer)
            seen.add(sites, closer)
        return self._decision(seen, gate, sites, dropped, len(rounds))

    def _decision(self, seen: Seen, gate: Gate, finalists: list[int], dropped: list[int], rounds: int) -> Decision:
        compared = len(finalists) + len(dropped)
        gains = np.full(seen.n_sites, np.nan)
        gains[finalists] = seen.gains(finalists)
        return Decision(
            finalists[0] if gate.open else None,
            _reason(gate, seen, compared, seen.n_sites - compared),
            gains=gains,
            columns=tuple(seen.columns),
            base=seen.base,
            rounds=rounds,
            candidates=tuple(sorted(finalists)),
            smoothed=not seen.note,
            ranking=(*finalists, *dropped),
        )

    def _labels(self, there: int) -> int:
        return there if self.labels is None else min(int(self.labels), there)

    def _rounds(self, sites: int, labels: int) -> list[Round]:
        budget = self._budget(sites, labels)
        if budget < labels * (sites + 1):  # else every site is read on every sample
            budget = min(budget, max(sites + 1, math.floor(_ROUNDS * budget)))
        return schedule(sites, labels, budget, self.eta)

    def _budget(self, sites: int, labels: int) -> int:
        if self.budget is not None:
            return int(self.budget)
        shots = min(max(labels / 10, _SHOTS[0]), _SHOTS[1])
        samples = min(_HALF * labels, float(np.interp(shots, _SHOTS, _PER_SHOT)) * shots)
        return math.floor((sites + 1) * max(1.0, samples))

    def _cells(self, sites: int, labels: int) -> tuple[int, int]:
        """The fewest and the most: with all that a close call may take."""
        rounds = self._rounds(sites, labels)
        fewest, left = sum(each.cells for each in rounds), labels - sum(each.samples for each in rounds)
        return fewest, fewest + 2 * max(0, min(left, (self._budget(sites, labels) - fewest) // 2))


def _order(oracle: Oracle, rng: np.random.Generator) -> list[int]:
    """A random order in which no group comes a second time before every group has come once."""
    order = [int(column) for column in rng.permutation(oracle.n_samples)]
    groups = _groups(oracle)
    if groups is None:
        return order
    count: dict[Any, int] = {}
    turn: dict[int, int] = {}
    for column in order:
        turn[column] = count.get(groups[column], 0)
        count[groups[column]] = turn[column] + 1
    return sorted(order, key=turn.__getitem__)


def _groups(oracle: Oracle) -> list[Any] | None:
    groups = getattr(oracle, "groups", None)
    if groups is None:
        return None
    groups = list(groups)
    if len(groups) != oracle.n_samples:
        raise SearchError(
            f"{type(oracle).__name__}.groups names the groups of {len(groups)} samples, but there are "
            f"{oracle.n_samples}; give one name per sample, or None"
        )
    return groups


def _reason(gate: Gate, seen: Seen, sites: int, barred: int) -> str:
    n = len(seen.columns)
    best = "the only candidate" if sites == 1 else f"the best of {sites} candidates by halving"
    best += f" ({barred} more barred by the prior)" if barred else ""
    where = f"{best}, on {n} sample{'' if n == 1 else 's'}"
    found = f"{where}: {gate.text}" if gate.open else f"{where}, is not shown to help: {gate.text}"
    return f"{found}; compared {seen.note}" if seen.note else found
