"""`talo`: find the site whose knock-out helps a task, on a real model."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from layersurgery.errors import SearchError
from layersurgery.scoring._reading import Reading
from layersurgery.search._correct import Corrected, correct_gain
from layersurgery.search._decision import Decision, Rule
from layersurgery.search._finding import Finding
from layersurgery.search._halving import HalvingRule
from layersurgery.search._intervals import Interval, paired_interval
from layersurgery.search._split import split

if TYPE_CHECKING:
    from layersurgery.interventions import Intervention
    from layersurgery.sites import Site
    from layersurgery.sweeps import Answers, ModelOracle, ScoreTable, Store
    from layersurgery.sweeps._executor import Share


def talo(
    model: Any,
    score: Callable[[Any, Sequence[Any]], Any],
    samples: Sequence[Any],
    *,
    at: Site | Iterable[Site] | None = None,
    do: Intervention | None = None,
    rule: Rule | None = None,
    confirm: int | Sequence[Any] | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool | str = False,
    store: Store | str | os.PathLike[str] | None = None,
    share: Share = True,
) -> Finding:
    """Task-Adaptive Layer Knockout: search for a site whose knock-out helps, and check it on other samples (section 4).

    Args:
        model: any model in evaluation mode, plain or nnsight-wrapped; it is left as it was.
        score: `score(model, samples)`, giving one real number per sample (higher is better), one in all, or `Scores`.
        samples: the labelled samples that the probe is drawn from.
        at: the candidate sites; None: the attention of every layer of the language backbone, `select(model)`.
        do: the intervention; None: `Zero()`.
        rule: how to decide; None: `HalvingRule()`; `PaperRule(shots)` is the paper's.
        confirm: held-out samples for the check of the chosen site, which the search never sees: how many of `samples`
            to draw and set aside (whole groups, so it may be fewer), or samples of their own. None: no check.
        seed: for all draws: the same seed, samples and scores give the same finding.
        batch_size: most samples in one call of the scorer, halved where memory runs out; None: the scorer's own
            `batch_size`, else 64.
        progress: show a bar with rate and time left on a terminal, or in a log a line every half minute; a string is
            its label.
        store: a file, or a `Store`, that each micro-batch is written to as soon as it was scored, and that what is
            there already is taken from, so that a search that was killed goes on where it was. None: nothing is kept.
        share: let variants share what the unmodified model computes below their sites, as in `sweep`.

    Returns:
        The finding. Where no site is chosen there is nothing to check, and the held-out samples are not evaluated.

    Raises:
        SampleError: if there are no samples, fewer than the rule may need and `confirm` takes together, or a sample or
            a group is both held out and searched on. Nothing was evaluated then.
        SearchError: if the rule cannot work or does not return a `Decision`.
        ScoringError: if the model is in training mode, the scorer fails, or a site never runs.
        SurgeryError: if the intervention cannot be done on this model.
        SelectionError: if there are no such sites, or one is given twice.
        StoreError: if the store cannot be opened or written, or the model, the scorer or a sample cannot be told from
            others.

    Examples:
        >>> import torch, layersurgery as ls
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(1, 1, bias=False) for _ in range(3))).eval()
        >>> def score(model, samples):                       # the middle layer stands in the way
        ...     model(torch.ones(1))
        ...     return [model[1].weight.item() == 0] * len(samples)
        >>> sites = ls.select(model, pattern="*")
        >>> found = ls.talo(model, score, range(60), at=sites, confirm=40)
        >>> found.verdict, found.site.path, found.gain, found.n_confirm
        ('knock out', '1', 1.0, 40)
    """
    from layersurgery.interventions import Zero
    from layersurgery.sites import select
    from layersurgery.sweeps import ModelOracle
    from layersurgery.sweeps._call import check_samples
    from layersurgery.sweeps._store import opened

    start = time.perf_counter()
    rule = HalvingRule() if rule is None else rule
    _check(rule, seed)
    pool, held = split(check_samples(samples), confirm, rule, np.random.default_rng([seed, 1]))
    do = Zero() if do is None else do
    sites = select(model) if at is None else at
    label = _label(progress, "search")
    with nullcontext() if store is None else opened(store) as kept:
        given = {"do": do, "store": kept, "share": share}
        oracle = ModelOracle(model, score, pool, at=sites, batch_size=batch_size, progress=label, **given)
        decision = _decide(rule, oracle, np.random.default_rng(seed))
        chosen = decision.site
        check = None
        if chosen is not None and held:
            label, site = _label(progress, "held-out check"), oracle.sites[chosen]
            # with the batch size that the search was left with: what did not fit there will not fit here
            size = oracle.batch_size
            check = ModelOracle(model, score, held, at=site, batch_size=size, progress=label, **given)
        reading = None if check is None else check.read([0, 1], range(check.n_samples))

    table = oracle.table()
    probe = decision.columns or None
    base, gain = _on_probe(decision, table)
    corrected = None if reading is not None else _corrected(oracle, decision)
    return Finding(
        surgery=None if chosen is None else oracle.surgeries[chosen],
        decision=decision,
        table=table,
        probe_base=base,
        probe_gain=gain,
        n_probe=len(decision.columns) or (len(table.samples) if table.per_sample else None),
        confirm_base=None if reading is None else float(reading.correct[0].mean()),
        confirm_score=None if reading is None else float(reading.correct[1].mean()),
        n_confirm=0 if check is None else check.n_samples,
        interval=_interval(check, reading) if corrected is None else corrected.interval,
        corrected=corrected,
        evaluations=oracle.cells + (0 if check is None else check.cells),
        rule=rule,
        seed=seed,
        seconds=time.perf_counter() - start,
        probe_ids=oracle.names(probe),
        confirm_ids=() if check is None else check.names(),
        probe_answers=_answers(oracle, probe, chosen),
        confirm_answers=None if check is None else check.table().answers(0),
    )


def _check(rule: Any, seed: Any) -> None:
    if not callable(rule):
        raise SearchError(f"rule={rule!r} is not callable; give a rule such as HalvingRule(), or a function of yours")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise SearchError(f"seed={seed!r}; give a whole number, 0 or above")


def _decide(rule: Rule, oracle: ModelOracle, rng: np.random.Generator) -> Decision:
    decision = rule(oracle, rng)
    if not isinstance(decision, Decision):
        raise SearchError(
            f"the rule {rule!r} returned {decision!r}; return a layersurgery.Decision: Decision(3), or Decision(None) "
            "to keep the model"
        )
    if decision.site is not None and decision.site >= oracle.n_sites:
        raise SearchError(
            f"the rule {rule!r} chose site {decision.site}, but there are {oracle.n_sites}, 0 to {oracle.n_sites - 1} "
            "(row i + 1 of a reading is site i)"
        )
    strange = [column for column in decision.columns if not 0 <= column < oracle.n_samples]
    if strange:
        raise SearchError(
            f"the rule {rule!r} names column {strange[0]} as one that it rests on, but there are {oracle.n_samples} "
            f"samples, 0 to {oracle.n_samples - 1}"
        )
    return decision


def _on_probe(decision: Decision, table: ScoreTable) -> tuple[float, float]:
    """Base and gain by the rule's own account, or from what was read where it gives none."""
    known = table.base[np.isfinite(table.base)]
    base = decision.base if decision.base is not None else float(known.mean()) if len(known) else float("nan")
    if decision.site is None:
        return base, 0.0
    if decision.gains is not None:
        return base, float(decision.gains[decision.site])
    return base, float(table.vector[decision.site])


def _corrected(oracle: ModelOracle, decision: Decision) -> Corrected | None:
    """The gain without the luck of the choice; None where too little is known of what was compared with what."""
    if decision.site is None or not oracle.per_sample or not decision.columns:
        return None
    table = oracle.table(decision.columns)
    try:
        return correct_gain(table.correct, decision.site, table.margin if decision.smoothed else None)
    except SearchError:  # a rule of one's own, or pruning, evaluated sites in another order
        return None


def _answers(oracle: ModelOracle, probe: tuple[int, ...] | None, chosen: int | None) -> Answers | None:
    """What belongs beside the scores on the probe; None where the base was never evaluated."""
    return oracle.table(probe).answers(chosen) if oracle.names(probe) else None


def _interval(check: ModelOracle | None, reading: Reading | None) -> Interval | None:
    if check is None or reading is None or not check.per_sample:
        return None
    return paired_interval(reading.correct[0], reading.correct[1])


def _label(progress: bool | str, stage: str) -> bool | str:
    if not progress:
        return False
    return f"{progress}: {stage}" if isinstance(progress, str) else stage
