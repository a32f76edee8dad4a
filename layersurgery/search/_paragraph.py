"""What a finding says in words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from layersurgery.search._finding import Finding
    from layersurgery.search._intervals import Interval
    from layersurgery.surgery import Surgery
    from layersurgery.sweeps import Answers, ScoreTable


def paragraph(found: Finding) -> str:
    """A finding, how sure it is, and what it does not say."""
    unit = _Unit.of(found.table)
    parts = [_found(found, unit), _further(found, unit), _checked(found, unit), _doubts(found, unit)]
    return " ".join(chain(chain.from_iterable(parts), [_cost(found)], _unknown(found)))


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

    def interval(self, interval: Interval, kind: str = "") -> str:
        low, high = self.number(interval.low), self.number(interval.high)
        return f"({100 * interval.level:g} % {kind}interval {low} to {high}, {interval.method})"


def _found(found: Finding, unit: _Unit) -> Iterator[str]:
    first, probe = found.stages[0], _samples(found.n_probe, "probe ")
    if found.surgery is not None and first.surgery is not None:
        several = f" {len(found.surgery)} sites" if len(found.surgery) > 1 else ""
        yield f"Knock out{several}: {_named(found.surgery)}."
        what = "the knock-out" if found.surgery == first.surgery else f"{_named(first.surgery)} alone"
        yield (
            f"On {probe} the unmodified model scores {unit.level(found.probe_base)}, and {what} changes that by "
            f"{unit.change(found.probe_gain)}{_aside(found.probe_answers)}."
        )
    else:
        yield "Keep the model as it is."
        yield f"On {probe} it scores {unit.level(found.probe_base)}{_aside(found.probe_answers)}."
        gains = found.decision.gains
        if gains is not None and np.isfinite(gains).all():
            best = unit.change(float(np.nanmax(gains)))
            yield f"The largest change by any of {_candidates(found.table)} is {best}."
        elif first.finalist is not None:
            yield f"The best candidate is {_named(first.finalist)}."
    if found.decision.reason:
        yield f"Reason: {found.decision.reason}."


def _further(found: Finding, unit: _Unit) -> Iterator[str]:
    """What was found on top of the first site, or that nothing was."""
    for number, stage in enumerate(found.stages[1:], 2):
        which = ordinal(number)
        reason = f" Reason: {stage.decision.reason}." if stage.decision.reason else ""
        if stage.surgery is None or stage.under is None:
            best = "" if stage.finalist is None else f"; the best candidate is {_named(stage.finalist)}"
            yield f"No {which} site was found that helps on top of that{best}.{reason}"
            continue
        yield (
            f"With a {which} site, {_named(stage.surgery)} changes the score of {_named(stage.under)} by "
            f"{unit.change(stage.probe_gain)} on {_samples(stage.n_probe, 'probe ')}.{reason}"
        )


def ordinal(number: int) -> str:
    """Which one, in words, from the second on.

    Examples:
        >>> ordinal(2), ordinal(4)
        ('second', '4th')
    """
    return {2: "second", 3: "third"}.get(number, f"{number}th")


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
    yield f"{unit.interval(found.interval, 'paired ')}."
    if found.harmful:
        yield "This is a harm: do not use the knock-out, keep the model."
    elif found.interval.low <= 0:
        yield _not_shown(found.interval)
    yield from _added(found, unit)


def _added(found: Finding, unit: _Unit) -> Iterator[str]:
    """What further sites gained on the held-out samples."""
    for number, stage in enumerate(found.stages[1:], 2):
        if stage.held_out_gain is None or stage.surgery is None or found.surgery is None:
            continue
        which = ordinal(number)
        interval = "" if stage.held_out_interval is None else f" {unit.interval(stage.held_out_interval, 'paired ')}"
        there = f"{unit.change(stage.held_out_gain)}{interval}"
        if len(stage.surgery) > len(found.surgery):
            yield f"The {which} site is left out, since with it the score changes by {there} there."
        else:
            yield f"Of that, the {which} site adds {there}."


def _without_check(found: Finding, unit: _Unit) -> Iterator[str]:
    interval = found.interval
    if interval is None or found.corrected is None:
        return
    several = found.surgery is not None and len(found.surgery) > 1
    if math.isfinite(found.corrected.gain) and len(found.table.sites) > 1:
        luck, gain = ("choices", "gain of all") if several else ("choice", "gain")
        yield f"Corrected for the luck of the {luck}, the {gain} is estimated at {unit.change(found.gain)}"
    else:
        yield "What is known of the gain"
    yield f"{unit.interval(interval)}."
    if interval.low <= 0:
        yield _not_shown(interval)


def _not_shown(interval: Interval) -> str:
    return f"The interval includes {'harm' if interval.low < 0 else '0'}: that it helps is not shown."


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


def _cost(found: Finding) -> str:
    return f"{_count(found.evaluations, 'evaluation')} (one sample on one variant each) in {found.seconds:.1f} s."


def _unknown(found: Finding) -> Iterator[str]:
    probe = _samples(found.n_probe, "")
    if found.surgery is None and not np.isfinite(found.table.scores).any():
        yield "Not known: what any site would do, since none was evaluated."
    elif found.surgery is None:
        yield f"Not known: whether a site helps by less than {probe} can show. There is nothing to confirm."
    elif found.confirmed:
        yield "Not known: what the knock-out does to other tasks."
    else:
        yield (
            "Not known: the true gain, and what the knock-out does to other tasks. The probe gain is the best of "
            f"{_candidates(found.table)} on {probe} and is biased upwards; it was not checked on held-out samples "
            "(confirm=)."
        )


def _named(surgery: Surgery) -> str:
    """A surgery, with the layers that it is in."""
    layers = [str(site.layer) for site in surgery.sites if site.layer is not None]
    if len(layers) < len(surgery):
        return str(surgery)
    return f"{surgery} (layer{'s' if len(layers) > 1 else ''} {_listed(layers)})"


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _candidates(table: ScoreTable) -> str:
    return _count(len(table.sites), "site" if table.is_of_one_kind else "variant")


def _aside(answers: Answers | None) -> str:
    return f" ({answers})" if answers is not None and str(answers) else ""


def _samples(count: int | None, kind: str) -> str:
    return f"the {kind}samples" if count is None else _count(count, f"{kind}sample")


def _count(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
