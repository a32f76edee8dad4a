"""`Stage`: the search for one site, and how further ones are searched on top of those that were found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from layersurgery.errors import SearchError
from layersurgery.search._correct import Corrected, correct_gain
from layersurgery.search._decision import Decision, Rule
from layersurgery.search._halving import HalvingRule
from layersurgery.search._intervals import Interval

if TYPE_CHECKING:
    from collections.abc import Callable

    from layersurgery.sites import Site
    from layersurgery.surgery import Surgery
    from layersurgery.sweeps import Answers, ModelOracle, ScoreTable
    from layersurgery.sweeps._sets import SetOracle

    AnyOracle = ModelOracle | SetOracle


@dataclass(frozen=True, eq=False)
class Stage:
    """The search for one site: the first, or a further one on top of those that were found before.

    Args:
        under: what was found before, which is the base of this stage; None: nothing, the base is the unmodified model.
        surgery: what was found now, with all that is in force; None: no site helps (any further).
        decision: the rule's own account.
        table: the scores that were read, on the samples that they were read on.
        probe_base: mean score of the base on the probe.
        probe_gain: mean score change of the chosen site on the probe, which is biased upwards by the choice; 0 if none
            was chosen.
        n_probe: number of samples that the decision rests on; None: not known.
        probe_ids: their names, in the order in which they were drawn.
        probe_answers: what belongs beside the scores on the probe: how often no answer could be read, and what always
            answering the same letter would score.
        corrected: the gain without the luck of the choice; None: it was measured on other samples, or cannot be told.
        held_out_gain: mean score change on the held-out samples against the base of this stage; None: not measured.
        held_out_interval: its paired interval.
    """

    under: Surgery | None
    surgery: Surgery | None
    decision: Decision
    table: ScoreTable = field(repr=False)
    probe_base: float
    probe_gain: float
    n_probe: int | None
    probe_ids: tuple[str, ...] = field(default=(), repr=False)
    probe_answers: Answers | None = None
    corrected: Corrected | None = None
    held_out_gain: float | None = None
    held_out_interval: Interval | None = None

    @property
    def site(self) -> Site | None:
        """The site that was found here."""
        return None if self.surgery is None else self.surgery.steps[-1].site

    @property
    def finalist(self) -> Surgery | None:
        """What came out best, chosen or not; None: the rule does not say."""
        ranked = [*([] if self.decision.site is None else [self.decision.site]), *self.decision.ranking]
        return self.table.surgeries[ranked[0]] if ranked else None


def stages(
    rule: Rule,
    seed: int,
    first: AnyOracle,
    further: Callable[[list[Surgery]], AnyOracle | None],
    *,
    most: int,
    beam: int,
) -> Iterator[tuple[AnyOracle, Decision]]:
    """Search for a site, and, as long as one is found, for one more on top of it.

    Args:
        rule: what decides in each stage; a prior of single sites has a say in the first only.
        seed: for its draws: the same in each stage, so that all rest on the same samples.
        first: answers for the candidates of the first stage.
        further: gives what answers for those of the next, from the sets to extend, of which the first is the one that
            was found; None: there are no more.
        most: how many sites at most.
        beam: how many sets to extend.
    """
    oracle: AnyOracle | None = first
    for number in range(most):
        if oracle is None:
            return
        try:
            decision = decide(rule, oracle, seed)
        except SearchError as error:
            if not number:
                raise
            decision = Decision(None, f"the rule cannot decide: {error}")  # a base that solves all samples, say
        yield oracle, decision
        if decision.site is None:
            return
        if isinstance(rule, HalvingRule):
            rule = replace(rule, prior=None)  # it is of single sites
        if number + 1 < most:
            oracle = further([oracle.surgeries[site] for site in _best(decision, oracle)[:beam]])


def decide(rule: Rule, oracle: AnyOracle, seed: int) -> Decision:
    """What the rule says, if it makes sense.

    Raises:
        SearchError: if it does not.
    """
    decision = rule(oracle, np.random.default_rng(seed))
    if not isinstance(decision, Decision):
        raise SearchError(
            f"the rule {rule!r} returned {decision!r}; return a layersurgery.Decision: Decision(3), or Decision(None) "
            "to keep the model"
        )
    for site in (decision.site, *decision.ranking):
        if site is not None and not 0 <= site < oracle.n_sites:
            raise SearchError(
                f"the rule {rule!r} chose site {site}, but there are {oracle.n_sites}, 0 to {oracle.n_sites - 1} "
                "(row i + 1 of a reading is site i)"
            )
    strange = [column for column in decision.columns if not 0 <= column < oracle.n_samples]
    if strange:
        raise SearchError(
            f"the rule {rule!r} names column {strange[0]} as one that it rests on, but there are {oracle.n_samples} "
            f"samples, 0 to {oracle.n_samples - 1}"
        )
    return decision


def stage(oracle: AnyOracle, decision: Decision, level: float | None) -> Stage:
    """The account of one stage; the gain is corrected, with an interval of this level, unless that is None."""
    probe = decision.columns or None
    table = oracle.table()
    base, gain = _on_probe(decision, table)
    return Stage(
        under=oracle.under,
        surgery=None if decision.site is None else oracle.surgeries[decision.site],
        decision=decision,
        table=table,
        probe_base=base,
        probe_gain=gain,
        n_probe=len(decision.columns) or (len(table.samples) if table.per_sample else None),
        probe_ids=oracle.names(probe),
        # None where the base was never evaluated
        probe_answers=oracle.table(probe).answers(decision.site) if oracle.names(probe) else None,
        corrected=None if level is None else _corrected(oracle, decision, level),
    )


def _best(decision: Decision, oracle: AnyOracle) -> list[int]:
    """All candidates that were evaluated, the chosen one first, then as the rule ranks them, then by mean change."""
    vector = oracle.table().vector
    by_change = [int(site) for site in np.argsort(-vector, kind="stable") if np.isfinite(vector[site])]
    return list(dict.fromkeys([int(decision.site or 0), *decision.ranking, *by_change]))


def _on_probe(decision: Decision, table: ScoreTable) -> tuple[float, float]:
    """Base and gain by the rule's own account, or from what was read where it gives none."""
    known = table.base[np.isfinite(table.base)]
    base = decision.base if decision.base is not None else float(known.mean()) if len(known) else float("nan")
    if decision.site is None:
        return base, 0.0
    if decision.gains is not None:
        return base, float(decision.gains[decision.site])
    return base, float(table.vector[decision.site])


def _corrected(oracle: AnyOracle, decision: Decision, level: float) -> Corrected | None:
    """The gain without the luck of the choice; None where too little is known of what was compared with what."""
    if decision.site is None or not oracle.per_sample or not decision.columns:
        return None
    table = oracle.table(decision.columns)
    margins: Any = table.margin if decision.smoothed else None
    try:
        return correct_gain(table.correct, decision.site, margins, level=level)
    except SearchError:  # a rule of one's own, or pruning, evaluated sites in another order
        return None
