"""`Finding`: what a search found, how sure that is, and what it does not say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from layersurgery.search._correct import Corrected
from layersurgery.search._decision import Decision, Rule
from layersurgery.search._intervals import Interval

if TYPE_CHECKING:
    from layersurgery.sites import Site
    from layersurgery.surgery import Surgery
    from layersurgery.sweeps import Answers, ScoreTable


@dataclass(frozen=True, eq=False)
class Finding:
    """The result of `talo`; `print(found)` gives it as a paragraph.

    Scores and gains are in the scorer's own unit: fractions, for 0/1 scores.

    Args:
        surgery: what to apply, or None: keep the model. It is what the rule chose, even if the held-out check went
            against it: see `harmful`.
        decision: the rule's own account.
        table: the scores that the search read, on the samples that it read.
        probe_base: mean score of the unmodified model on the probe.
        probe_gain: mean score change of the chosen site on the probe, which is biased upwards by the choice; 0 if the
            model is kept.
        n_probe: number of samples that the decision rests on; None: not known.
        confirm_base: mean score of the unmodified model on the held-out samples; None: not evaluated.
        confirm_score: the same with the surgery applied.
        n_confirm: number of held-out samples evaluated.
        interval: paired interval of the held-out gain; without a check one from the probe that allows for the choice,
            as its `method` says. None: no site was chosen, or the scorer does not score single samples.
        evaluations: cells evaluated in all: one sample on one variant each.
        rule: the rule.
        seed: the seed.
        seconds: wall time.
        probe_ids: names of the samples that the decision rests on, in the order in which they were drawn.
        confirm_ids: names of the held-out samples evaluated, in order.
        probe_answers: what belongs beside the scores on the probe: how often no answer could be read, and what always
            answering the same letter would score.
        confirm_answers: the same of the held-out samples; None: not evaluated.
        corrected: where a site was chosen and not checked on other samples: its gain without the luck of the choice;
            None: that cannot be told.
    """

    surgery: Surgery | None
    decision: Decision
    table: ScoreTable = field(repr=False)
    probe_base: float
    probe_gain: float
    n_probe: int | None
    confirm_base: float | None
    confirm_score: float | None
    n_confirm: int
    interval: Interval | None
    evaluations: int
    rule: Rule
    seed: int
    seconds: float
    probe_ids: tuple[str, ...] = field(default=(), repr=False)
    confirm_ids: tuple[str, ...] = field(default=(), repr=False)
    probe_answers: Answers | None = None
    confirm_answers: Answers | None = None
    corrected: Corrected | None = None

    @property
    def verdict(self) -> str:
        """What the rule says: "knock out" or "keep"."""
        return "keep" if self.surgery is None else "knock out"

    @property
    def site(self) -> Site | None:
        """The chosen site; `decision.site` is its index."""
        return None if self.decision.site is None else self.table.sites[self.decision.site]

    @property
    def confirmed(self) -> bool:
        """Whether the gain was measured on held-out samples - not whether it was found to be one."""
        return self.confirm_score is not None

    @property
    def gain(self) -> float:
        """The held-out gain if there was a check; else the probe's, less the luck of the choice where that is known."""
        if self.confirm_score is None or self.confirm_base is None:
            known = self.corrected is not None and math.isfinite(self.corrected.gain)
            return self.corrected.gain if self.corrected is not None and known else self.probe_gain
        return self.confirm_score - self.confirm_base

    @property
    def harmful(self) -> bool:
        """Whether the whole interval of the gain lies below 0."""
        return self.interval is not None and self.interval.high < 0

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON-able data; numbers that are not finite become None."""
        decision = self.decision
        record = {
            "verdict": self.verdict,
            "site": None if self.site is None else self.site.to_dict(),
            "surgery": None if self.surgery is None else str(self.surgery),
            "sites": len(self.table.sites),
            "probe": {
                "samples": self.n_probe,
                "base": self.probe_base,
                "gain": self.probe_gain,
                **_beside(self.probe_answers),
                "ids": self.probe_ids,
            },
            "confirm": None
            if not self.confirmed
            else {
                "samples": self.n_confirm,
                "base": self.confirm_base,
                "score": self.confirm_score,
                "gain": self.gain,
                "interval": None if self.interval is None else vars(self.interval),
                "harmful": self.harmful,
                **_beside(self.confirm_answers),
                "ids": self.confirm_ids,
            },
            "corrected": None
            if self.corrected is None
            else {**vars(self.corrected), "interval": vars(self.corrected.interval)},
            "decision": {**vars(decision), "gains": None if decision.gains is None else decision.gains.tolist()},
            "evaluations": self.evaluations,
            "rule": repr(self.rule),
            "seed": self.seed,
            "seconds": self.seconds,
            "text": str(self),
        }
        return _jsonable(record)

    def __str__(self) -> str:
        unit = _Unit.of(self.table)
        parts = [_found(self, unit), _checked(self, unit), _doubts(self, unit), [_cost(self)], _unknown(self)]
        return " ".join(chain.from_iterable(parts))


@dataclass(frozen=True)
class _Unit:
    """How scores are written: as percentages and points where they are all 0 or 1, else as they are."""

    percent: bool

    @classmethod
    def of(cls, table: ScoreTable) -> _Unit:
        scores = table.correct[np.isfinite(table.correct)]
        return cls(bool(table.per_sample and np.isin(scores, (0.0, 1.0)).all()))

    def level(self, value: float) -> str:
        return f"{100 * value:.1f} %" if self.percent else f"{value:.4g}"

    def change(self, value: float) -> str:
        return f"{self.number(value)} points" if self.percent else self.number(value)

    def number(self, value: float) -> str:
        return f"{100 * value:+.1f}" if self.percent else f"{value:+.4g}"


def _found(found: Finding, unit: _Unit) -> Iterator[str]:
    sites, probe = len(found.table.sites), _samples(found.n_probe, "probe ")
    if found.surgery is not None and found.site is not None:
        layer = "" if found.site.layer is None else f" (layer {found.site.layer})"
        yield f"Knock out: {found.surgery}{layer}."
        yield (
            f"On {probe} the unmodified model scores {unit.level(found.probe_base)}, and the knock-out changes that by "
            f"{unit.change(found.probe_gain)}{_aside(found.probe_answers)}."
        )
    else:
        yield "Keep the model as it is."
        yield f"On {probe} it scores {unit.level(found.probe_base)}{_aside(found.probe_answers)}."
        gains = found.decision.gains
        if gains is not None and np.isfinite(gains).all():
            best = unit.change(float(np.nanmax(gains)))
            yield f"The largest change by any of {_count(sites, 'site')} is {best}."
    if found.decision.reason:
        yield f"Reason: {found.decision.reason}."


def _checked(found: Finding, unit: _Unit) -> Iterator[str]:
    if found.confirm_base is None or found.confirm_score is None:
        yield from _without_check(found, unit)
        return
    yield (
        f"On {_samples(found.n_confirm, 'held-out ')} the score goes from {unit.level(found.confirm_base)} to "
        f"{unit.level(found.confirm_score)}{_aside(found.confirm_answers)}: a held-out gain of "
        f"{unit.change(found.gain)}"
    )
    if found.interval is None:
        yield "(no interval: the scorer gives one number for all samples)."
        return
    low, high = unit.number(found.interval.low), unit.number(found.interval.high)
    yield f"({100 * found.interval.level:g} % paired interval {low} to {high}, {found.interval.method})."
    if found.harmful:
        yield "This is a harm: do not use the knock-out, keep the model."
    elif found.interval.low <= 0:
        yield "The interval includes 0: that it helps is not shown."


def _without_check(found: Finding, unit: _Unit) -> Iterator[str]:
    corrected, interval = found.corrected, found.interval
    if corrected is None or interval is None:
        return
    if math.isfinite(corrected.gain) and len(found.table.sites) > 1:
        yield f"Corrected for the luck of the choice, the gain is estimated at {unit.change(corrected.gain)}"
    else:
        yield "What is known of the gain"
    low, high = unit.number(interval.low), unit.number(interval.high)
    yield f"({100 * interval.level:g} % interval {low} to {high}, {interval.method})."
    if interval.low <= 0:
        yield "The interval includes 0: that it helps is not shown."


def _doubts(found: Finding, unit: _Unit) -> Iterator[str]:
    """Whether a gain could be the work of a model that was damaged, and not of one that answers better."""
    answers = found.confirm_answers if found.confirmed else found.probe_answers
    if found.surgery is None or answers is None:
        return
    if answers.fewer_answers and answers.unanswered is not None:
        before, after = (f"{100 * share:.1f} %" for share in answers.unanswered)
        yield (
            f"With the knock-out no answer can be read more often than without, in {after} against {before}: look at "
            "the answers before using it."
        )
    base = found.probe_base if found.confirm_base is None else found.confirm_base
    if answers.floor is not None and base < answers.floor[1] - 1e-9:
        name, floor = answers.floor
        yield (
            f"The unmodified model's score of {unit.level(base)} is below that of {name}, {unit.level(floor)}: many "
            "disturbances are gains from there."
        )
    score = base + found.gain
    if answers.constant is not None and score <= answers.constant + 1e-9:  # a sum of fractions is not exact
        yield (
            f"With the knock-out the score of {unit.level(score)} is no higher than that of always answering "
            f"{answers.letter}, {unit.level(answers.constant)}: a model that gives the same letter to everything would "
            "score as much, so this shows no skill."
        )


def _aside(answers: Answers | None) -> str:
    return f" ({answers})" if answers is not None and str(answers) else ""


def _beside(answers: Answers | None) -> dict[str, Any]:
    return {} if answers is None else answers.to_dict()


def _cost(found: Finding) -> str:
    return f"{_count(found.evaluations, 'evaluation')} (one sample on one variant each) in {found.seconds:.1f} s."


def _unknown(found: Finding) -> Iterator[str]:
    probe, sites = _samples(found.n_probe, ""), _count(len(found.table.sites), "site")
    if found.surgery is None and not np.isfinite(found.table.scores).any():
        yield "Not known: what any site would do, since none was evaluated."
    elif found.surgery is None:
        yield f"Not known: whether a site helps by less than {probe} can show. There is nothing to confirm."
    elif found.confirmed:
        yield "Not known: what the knock-out does to other tasks."
    else:
        yield (
            "Not known: the true gain, and what the knock-out does to other tasks. The probe gain is the best of "
            f"{sites} on {probe} and is biased upwards; it was not checked on held-out samples (confirm=)."
        )


def _samples(count: int | None, kind: str) -> str:
    return f"the {kind}samples" if count is None else _count(count, f"{kind}sample")


def _count(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(part) for part in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
