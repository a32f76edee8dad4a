"""`Finding`: what a search found, how sure that is, and what it does not say."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from layersurgery.search._correct import Corrected
from layersurgery.search._decision import Decision, Rule
from layersurgery.search._intervals import Interval
from layersurgery.search._stage import Stage

if TYPE_CHECKING:
    from layersurgery.sites import Site, Sites
    from layersurgery.surgery import Surgery
    from layersurgery.sweeps import Answers, ScoreTable


@dataclass(frozen=True, eq=False)
class Finding:
    """The result of `talo`; `print(found)` gives it as a paragraph.

    Scores and gains are in the scorer's own unit: fractions, for 0/1 scores.

    Args:
        surgery: what to apply, or None: keep the model. It is what the rule chose, even if the held-out check went
            against it: see `harmful`. Only of several sites those are left out that did not gain there.
        stages: the search for the first site, and those for further ones on top of it.
        confirm_base: mean score of the unmodified model on the held-out samples; None: not evaluated.
        confirm_score: the same with the surgery applied.
        n_confirm: number of held-out samples evaluated.
        interval: paired interval of the held-out gain; without a check one from the probe that allows for the choice,
            as its `method` says. None: no site was chosen, or the scorer does not score single samples.
        evaluations: cells evaluated in all: one sample on one variant each.
        rule: the rule.
        seed: the seed.
        seconds: wall time.
        confirm_ids: names of the held-out samples evaluated, in order.
        confirm_answers: what belongs beside the scores on the held-out samples; None: not evaluated.
    """

    surgery: Surgery | None
    stages: tuple[Stage, ...]
    confirm_base: float | None
    confirm_score: float | None
    n_confirm: int
    interval: Interval | None
    evaluations: int
    rule: Rule
    seed: int
    seconds: float
    confirm_ids: tuple[str, ...] = field(default=(), repr=False)
    confirm_answers: Answers | None = None

    @property
    def verdict(self) -> str:
        """What the rule says: "knock out" or "keep"."""
        return "keep" if self.surgery is None else "knock out"

    @property
    def site(self) -> Site | None:
        """The chosen site, the first of several."""
        return None if self.surgery is None else self.surgery.sites[0]

    @property
    def sites(self) -> Sites:
        """All sites of the surgery; empty: the model is kept."""
        from layersurgery.sites import Sites

        return Sites(() if self.surgery is None else self.surgery.sites)

    @property
    def decision(self) -> Decision:
        """The rule's account of the first site; `decision.site` is its row in the table."""
        return self.stages[0].decision

    @property
    def table(self) -> ScoreTable:
        """The scores that the search for the first site read, on the samples that it read."""
        return self.stages[0].table

    @property
    def probe_base(self) -> float:
        """Mean score of the unmodified model on the probe."""
        return self.stages[0].probe_base

    @property
    def probe_gain(self) -> float:
        """Mean score change of the first site on the probe, biased upwards by the choice; 0 if the model is kept."""
        return self.stages[0].probe_gain

    @property
    def n_probe(self) -> int | None:
        """Number of samples that the first decision rests on; None: not known."""
        return self.stages[0].n_probe

    @property
    def probe_ids(self) -> tuple[str, ...]:
        """Their names, in the order in which they were drawn."""
        return self.stages[0].probe_ids

    @property
    def probe_answers(self) -> Answers | None:
        """What belongs beside the scores on the probe: answers that could not be read, and scores without skill."""
        return self.stages[0].probe_answers

    @property
    def corrected(self) -> Corrected | None:
        """Of the first site, where it was not checked on other samples: the gain without the luck of the choice."""
        return self.stages[0].corrected

    @property
    def confirmed(self) -> bool:
        """Whether the gain was measured on held-out samples - not whether it was found to be one."""
        return self.confirm_score is not None

    @property
    def gain(self) -> float:
        """The held-out gain if there was a check; else the probe's, less the luck of the choice where that is known.

        Of several sites without a check, it is the sum of what each gained on top of the others.
        """
        if self.confirm_score is None or self.confirm_base is None:
            return float(sum(map(_gain, self.stages)))
        return self.confirm_score - self.confirm_base

    @property
    def harmful(self) -> bool:
        """Whether the whole interval of the gain lies below 0."""
        return self.interval is not None and self.interval.high < 0

    @property
    def labels(self) -> int | None:
        """How many labelled samples were used in all, the check included; None: not known."""
        if any(not stage.table.per_sample for stage in self.stages):
            return None
        return len({name for stage in self.stages for name in stage.table.samples}) + self.n_confirm

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON-able data; numbers that are not finite become None."""
        import layersurgery

        first, *further = self.stages
        record = {
            "layersurgery": layersurgery.__version__,
            "verdict": self.verdict,
            "site": None if self.site is None else self.site.to_dict(),
            "surgery": None if self.surgery is None else str(self.surgery),
            "sites": len(self.table.sites),
            **_record(first),
            "confirm": None
            if not self.confirmed
            else {
                "samples": self.n_confirm,
                "base": self.confirm_base,
                "score": self.confirm_score,
                "gain": self.gain,
                "harmful": self.harmful,
                **_beside(self.confirm_answers),
                "ids": self.confirm_ids,
            },
            "gain": self.gain,
            "interval": _vars(self.interval),
            "further": [
                {
                    "under": str(stage.under),
                    "surgery": None if stage.surgery is None else str(stage.surgery),
                    **_record(stage),
                    "confirm": None
                    if stage.held_out_gain is None
                    else {"gain": stage.held_out_gain, "interval": _vars(stage.held_out_interval)},
                }
                for stage in further
            ],
            "evaluations": self.evaluations,
            "labels": self.labels,
            "rule": repr(self.rule),
            "seed": self.seed,
            "seconds": self.seconds,
            "text": str(self),
        }
        return _jsonable(record)

    def __str__(self) -> str:
        from layersurgery.search._paragraph import paragraph

        return paragraph(self)


def _gain(stage: Stage) -> float:
    known = stage.corrected is not None and math.isfinite(stage.corrected.gain)
    return stage.corrected.gain if stage.corrected is not None and known else stage.probe_gain


def _record(stage: Stage) -> dict[str, Any]:
    decision, corrected = stage.decision, stage.corrected
    return {
        "finalist": None if stage.finalist is None else str(stage.finalist),
        "probe": {
            "samples": stage.n_probe,
            "base": stage.probe_base,
            "gain": stage.probe_gain,
            **_beside(stage.probe_answers),
            "ids": stage.probe_ids,
        },
        "corrected": None if corrected is None else {**vars(corrected), "interval": vars(corrected.interval)},
        "decision": {**vars(decision), "gains": None if decision.gains is None else decision.gains.tolist()},
    }


def _beside(answers: Answers | None) -> dict[str, Any]:
    return {} if answers is None else answers.to_dict()


def _vars(value: Any) -> dict[str, Any] | None:
    return None if value is None else vars(value)


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(part) for part in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
