"""`talo`: find the sites whose knock-out helps a task, on a real model."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from layersurgery.errors import SearchError
from layersurgery.search._decision import Rule
from layersurgery.search._finding import Finding
from layersurgery.search._halving import HalvingRule
from layersurgery.search._intervals import Interval, paired_interval
from layersurgery.search._paragraph import ordinal
from layersurgery.search._split import split
from layersurgery.search._stage import Stage, stage, stages

if TYPE_CHECKING:
    from layersurgery.interventions import Intervention
    from layersurgery.scoring._scores import BatchSize
    from layersurgery.sites import Site
    from layersurgery.surgery import Surgery
    from layersurgery.sweeps import ScoreTable, Store
    from layersurgery.sweeps._executor import Share
    from layersurgery.sweeps._sets import SetOracle

_LEVEL = 0.95


def talo(
    model: Any,
    score: Callable[[Any, Sequence[Any]], Any],
    samples: Sequence[Any],
    *,
    at: Site | Iterable[Site] | None = None,
    do: Intervention | Iterable[Intervention] | None = None,
    rule: Rule | None = None,
    confirm: int | Sequence[Any] | None = None,
    max_sites: int = 1,
    beam: int = 1,
    seed: int = 0,
    batch_size: BatchSize | None = None,
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
        do: the intervention; several compete at every site in one search. None: `Zero()`.
        rule: how to decide; None: `HalvingRule()`; `PaperRule(shots)` is the paper's.
        confirm: held-out samples for the check of what was found, which the search never sees: how many of `samples`
            to draw and set aside (whole groups, so it may be fewer), or samples of their own. None: no check.
        max_sites: most sites to knock out together. With 2 or more, a further site is searched on top of those that
            were found (section C.3): the rule compares each set with the best smaller one, on the same samples, and
            must choose one for it to be taken; one that does not gain on the held-out samples is left out again.
        beam: how many sets of one size to extend, the best ones: 1 is the paper's greedy search.
        seed: for all draws: the same seed, samples and scores give the same finding.
        batch_size: most samples in one call of the scorer, halved where memory runs out; "auto": as many as there is
            memory for, up to the scorer's own `batch_size`, else 64; None: the latter.
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
        SearchError: if the rule cannot work or does not return a `Decision`, or a number of sites makes no sense.
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
    from layersurgery.sweeps._sets import SetOracle, extended
    from layersurgery.sweeps._store import opened

    start = time.perf_counter()
    rule = HalvingRule() if rule is None else rule
    _check(rule, seed, max_sites, beam)
    pool, held = split(check_samples(samples), confirm, rule, np.random.default_rng([seed, 1]))
    do = Zero() if do is None else do
    with nullcontext() if store is None else opened(store) as kept:
        given: dict[str, Any] = {"store": kept, "share": share, "batch_size": batch_size}
        label = _label(progress, "search")
        at = select(model) if at is None else at
        first = ModelOracle(model, score, pool, at=at, do=do, progress=label, **given)

        def further(parents: list[Surgery]) -> SetOracle | None:
            sets = extended(parents, first.surgeries)
            label = _label(progress, f"{ordinal(len(parents[0]) + 1)} site")
            # with the batch size that the search was left with: what did not fit there will not fit here
            size = first.batch_size
            settings = {**given, "batch_size": size, "progress": label}
            return SetOracle(model, score, pool, sets=sets, base=parents[0], **settings) if sets else None

        found = list(stages(rule, seed, first, further, most=max_sites, beam=beam))
        searched = sum(oracle.cells for oracle, _ in found)
        level = None if held else 1 - (1 - _LEVEL) / max(1, sum(one.site is not None for _, one in found))
        accounts = [stage(oracle, decision, level) for oracle, decision in found]
        chosen = [one.surgery for one in accounts if one.surgery is not None]
        check = None
        if chosen and held:
            size, label = found[-1][0].batch_size, _label(progress, "held-out check")
            settings = {**given, "batch_size": size, "progress": label}
            check = SetOracle(model, score, held, sets=chosen, **settings)
            check.read(range(check.n_sites + 1), range(check.n_samples))

    finding = Finding(
        surgery=chosen[-1] if chosen else None,
        stages=tuple(accounts),
        confirm_base=None,
        confirm_score=None,
        n_confirm=0,
        interval=None if check is not None else _without_check(accounts),
        evaluations=searched + (0 if check is None else check.cells),
        rule=rule,
        seed=seed,
        seconds=time.perf_counter() - start,
    )
    return finding if check is None else _checked(finding, check)


def _check(rule: Any, seed: Any, max_sites: Any, beam: Any) -> None:
    if not callable(rule):
        raise SearchError(f"rule={rule!r} is not callable; give a rule such as HalvingRule(), or a function of yours")
    for name, value, least in (("seed", seed, 0), ("max_sites", max_sites, 1), ("beam", beam, 1)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise SearchError(f"{name}={value!r}; give a whole number, {least} or above")
    if beam > 1 and max_sites == 1:
        raise SearchError(f"beam={beam} is for sets of several sites; give max_sites=2 or more with it")


def _checked(found: Finding, check: SetOracle) -> Finding:
    """The finding with what the held-out samples say; sets that are no better there than smaller ones are left out."""
    table = check.table()
    scores = table.correct.mean(axis=1)
    accounts, kept = list[Stage](), 0
    for number, account in enumerate(found.stages):
        row = number + 1
        if account.surgery is None:
            accounts.append(account)
            continue
        gain = float(scores[row] - scores[row - 1])
        accounts.append(replace(account, held_out_gain=gain, held_out_interval=_interval(table, row - 1, row)))
        if number == 0 or (kept == number and gain > 0):
            kept = row
    return replace(
        found,
        surgery=check.surgeries[kept - 1],
        stages=tuple(accounts),
        confirm_base=float(scores[0]),
        confirm_score=float(scores[kept]),
        n_confirm=check.n_samples,
        interval=_interval(table, 0, kept, check.n_sites),
        confirm_ids=check.names(),
        confirm_answers=table.answers(kept - 1),
    )


def _interval(table: ScoreTable, base: int, row: int, sets: int = 1) -> Interval | None:
    """Of the gain of one row over another; of the one of several sets that these samples themselves led to."""
    if not table.per_sample:
        return None
    found = paired_interval(table.correct[base], table.correct[row], 1 - (1 - _LEVEL) / sets)
    if sets == 1:
        return found
    return replace(found, method=f"{found.method}, Bonferroni over {sets} sets", level=_LEVEL)


def _without_check(accounts: Sequence[Stage]) -> Interval | None:
    """Of the gain of all sites together: the sum of what is known of each, at a level at which all hold at once."""
    known = [one.corrected for one in accounts if one.surgery is not None]
    intervals = [one.interval for one in known if one is not None]
    if not known or len(intervals) < len(known):
        return None
    if len(intervals) == 1:
        return intervals[0]
    low, high = sum(one.low for one in intervals), sum(one.high for one in intervals)
    return Interval(low, high, f"{intervals[0].method}, summed over {len(intervals)} sites", _LEVEL)


def _label(progress: bool | str, stage: str) -> bool | str:
    if not progress:
        return False
    return f"{progress}: {stage}" if isinstance(progress, str) else stage
