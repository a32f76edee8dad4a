"""What a search would take, before it is run: evaluations, time and memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layersurgery.interventions import Intervention
    from layersurgery.scoring._scores import BatchSize
    from layersurgery.search import Rule
    from layersurgery.sites import Site, Sites
    from layersurgery.sweeps import ModelOracle
    from layersurgery.sweeps._usage import Memory


@dataclass(frozen=True)
class Plan:
    """What `talo` would take with the same arguments.

    Args:
        samples: how many the search may draw from.
        confirm: how many are held out for the check.
        sites: how many candidates there are: sites, once for each intervention.
        evaluations: the fewest and the most that the rule asks for, check included: one sample on one variant each.
        seconds: what these take.
        rate: evaluations in a second.
        batch_size: samples in one call of the scorer, as far as memory allowed.
        memory: what the model and one call take on each device.
        layers: how many layers of the model run for one sample in all of these evaluations, fewest and most, and how
            many would if each ran the model in full; None: sites are not in numbered layers of one tower.
        notes: what the numbers leave out.
    """

    samples: int
    confirm: int
    sites: int
    evaluations: tuple[int, int]
    seconds: tuple[float, float]
    rate: float
    batch_size: int
    memory: tuple[Memory, ...]
    layers: tuple[tuple[int, int], tuple[int, int]] | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data."""
        return asdict(self)

    def __str__(self) -> str:
        held = f", {self.confirm} held out for the check" if self.confirm else ", no check on held-out samples"
        rate = f"{self.rate:.1f}" if self.rate < 100 else f"{self.rate:.0f}"
        together = "1 sample" if self.batch_size == 1 else f"{self.batch_size} samples"
        passes = [] if self.layers is None else [("layers", _of_layers(*self.layers))]
        lines = [
            ("samples", f"{self.samples} to draw from{held}"),
            ("sites", str(self.sites)),
            ("evaluations", f"{_span(*self.evaluations, str)} (one sample on one variant each)"),
            *passes,
            ("time", f"about {_duration(*self.seconds)} at {rate} per second, {together} at once"),
            *(("memory", str(part)) for part in self.memory),
            *(("note", note) for note in self.notes),
        ]
        return "\n".join(f"{name:<13}{text}" for name, text in lines)


def plan(
    model: Any,
    scorer: Callable[[Any, Sequence[Any]], Any],
    samples: Sequence[Any],
    *,
    at: Site | Iterable[Site] | None = None,
    do: Intervention | Sequence[Intervention] | None = None,
    rule: Rule | None = None,
    confirm: int | Sequence[Any] | None = None,
    max_sites: int = 1,
    beam: int = 1,
    seed: int = 0,
    batch_size: BatchSize | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Plan:
    """Estimate what `talo` takes with these arguments, by scoring two micro-batches on the unmodified model.

    The first is to warm up. The second is scored twice, because a scorer may keep what it made of its samples: the base
    pays for that, the variants do not. And once more with all shared that the variant in the middle would share with
    the base. Nothing is changed in the model, and what `talo` would refuse before it starts is refused here too.

    Args:
        model: as for `talo`, and so on for all that have the same name there.
        scorer: its `score`.
        samples: the labelled samples that the probe is drawn from.
        at: the candidate sites.
        do: the intervention, or several.
        rule: how to decide. One without a method `evaluations` is taken to read anything from nothing to everything.
        confirm: held-out samples for the check.
        max_sites: most sites to knock out together; at most so many are searched.
        beam: how many sets of one size to extend.
        seed: for the draw of the held-out samples.
        batch_size: most samples in one call of the scorer, as for `talo`.
        clock: seconds that only go forward.

    Raises:
        SampleError, ScoringError, SurgeryError, SelectionError: as `talo`.
    """
    import numpy as np

    from layersurgery.interventions import Zero
    from layersurgery.search import HalvingRule
    from layersurgery.search._split import split
    from layersurgery.sites import select
    from layersurgery.sweeps._call import check_samples
    from layersurgery.sweeps._usage import measured

    rule = HalvingRule() if rule is None else rule
    pool, held = split(check_samples(samples), confirm, rule, np.random.default_rng([seed, 1]))
    settings = {"at": select(model) if at is None else at, "do": Zero() if do is None else do}
    watch = _Stopwatch(scorer, clock)
    with measured(model) as memory:
        trial = _Trial(model, watch, settings)
        most = _search_range(rule, trial.sites, len(pool), True)[1] // (trial.sites + 1)
        trial.read(pool[: max(1, min(most, len(pool)))], batch_size, one_batch=True)
        others = [*pool, *held][-trial.batch_size :]  # the farthest from those that were just read
        fresh, kept = (trial.read(others, trial.batch_size) for _ in range(2))
        shared = min(kept, trial.read_shared(others))

    search = _search_range(rule, trial.sites, len(pool), trial.per_sample)
    each_site, further = trial.sites // len(set(trial.at)), 0
    for taken in range(1, min(max_sites, trial.sites // each_site)):
        sets = (trial.sites - taken * each_site) * beam
        further += _search_range(rule, sets, len(pool), trial.per_sample)[1]
    base = 1 / (trial.sites + 1)  # share of the unmodified model, which comes first and pays for new samples
    each = base * max(fresh, kept) + (1 - base) * shared
    # searched, held-out samples, sets that are checked there: found early, kept, and as many found late as there may be
    ends = [(search[0], len(held), 1), (search[1], 0, 0), (search[1] + further, len(held), max_sites)]
    cells = [searched + (1 + sets) * checked for searched, checked, sets in ends]
    seconds = [searched * each + checked * (max(fresh, kept) + sets * kept) for searched, checked, sets in ends]
    return Plan(
        samples=len(pool),
        confirm=len(held),
        sites=trial.sites,
        evaluations=(min(cells), max(cells)),
        seconds=(min(seconds), max(seconds)),
        rate=max(cells) / max(*seconds, 1e-9),
        batch_size=trial.batch_size,
        memory=tuple(memory),
        layers=_layers(model, trial.at, cells),
        notes=_notes(rule),
    )


class _Stopwatch:
    """A scorer that notes how long each call takes."""

    def __init__(self, score: Callable[[Any, Sequence[Any]], Any], clock: Callable[[], float]) -> None:
        self._score = score
        self._clock = clock
        self.batch_size = getattr(score, "batch_size", None)
        self.calls: list[tuple[int, float]] = []

    def __call__(self, model: Any, samples: Sequence[Any]) -> Any:
        start = self._clock()
        answer = self._score(model, samples)
        self.calls.append((len(samples), self._clock() - start))
        return answer


class _Trial:
    """Scores samples on the unmodified model as a search would: in micro-batches that fit into memory."""

    def __init__(self, model: Any, watch: _Stopwatch, settings: dict[str, Any]) -> None:
        self._model = model
        self._watch = watch
        self._settings = settings
        oracle = self._oracle([None], None)
        self.sites, self.at = oracle.n_sites, oracle.sites
        self.batch_size = 0
        self.per_sample = True

    def read(self, samples: Sequence[Any], batch_size: BatchSize | None, one_batch: bool = False) -> float:
        """Seconds for one sample."""
        oracle = self._oracle(samples, batch_size)
        count = min(oracle.batch_size or len(samples), len(samples)) if one_batch else len(samples)
        before = len(self._watch.calls)
        oracle.read([0], range(count))
        self.per_sample = oracle.per_sample is not False
        self.batch_size = min(oracle.batch_size or count, count)
        calls = self._watch.calls[before:]
        return sum(seconds for _, seconds in calls) / sum(number for number, _ in calls)

    def _oracle(self, samples: Sequence[Any], batch_size: BatchSize | None) -> ModelOracle:
        from layersurgery.sweeps import ModelOracle

        return ModelOracle(self._model, self._watch, samples, **self._settings, batch_size=batch_size)

    def read_shared(self, samples: Sequence[Any]) -> float:
        """Seconds for one sample on the variant in the middle, which leaves out what it shares with the base."""
        from layersurgery.sites import unwrap
        from layersurgery.sweeps._memory import ran_out_of_memory
        from layersurgery.sweeps._prefix import SharedPrefix

        prefix = SharedPrefix(unwrap(self._model), self.at)
        try:
            with prefix.recording():
                self._watch(self._model, samples)
            with prefix.replaying(self.at[len(self.at) // 2]):
                self._watch(self._model, samples)
        except Exception as error:  # a search would go on with smaller batches
            if not ran_out_of_memory(error):
                raise
            return math.inf
        count, seconds = self._watch.calls[-1]
        return seconds / count


def _search_range(rule: Any, sites: int, pool: int, per_sample: bool) -> tuple[int, int]:
    if hasattr(rule, "evaluations"):
        return rule.evaluations(sites, pool, per_sample=per_sample)
    return 0, (sites + 1) * getattr(rule, "labels_needed", pool)


def _layers(model: Any, sites: Sites | None, cells: Sequence[int]) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Layer passes for the fewest and most cells: all layers in the base, and from the site's on in its variant."""
    from layersurgery.errors import SelectionError
    from layersurgery.sites import select

    towers = {site.tower for site in sites or ()}
    numbers = [site.layer for site in sites or () if site.layer is not None]
    if sites is None or len(numbers) < len(sites) or not towers <= {"language", "decoder"} or len(towers) != 1:
        return None
    try:
        count = len(select(model, "layer", tower=towers.pop()))
    except SelectionError:
        return None
    share = (count + sum(count - number for number in numbers)) / (len(numbers) + 1)
    ends = min(cells), max(cells)
    return (round(ends[0] * share), round(ends[1] * share)), (ends[0] * count, ends[1] * count)


def _of_layers(run: tuple[int, int], in_full: tuple[int, int]) -> str:
    return f"{_span(*run, str)} passes, of {_span(*in_full, str)} if none were shared between variants"


def _notes(rule: Any) -> tuple[str, ...]:
    if not hasattr(rule, "evaluations"):
        return ("the rule does not say how much it reads: anything from nothing to all that it may",)
    shots = getattr(rule, "shots", None)
    if shots is None:
        return ()
    return (f"each probe set that the unmodified model solves in full is discarded: {shots} evaluations more",)


def _span(low: Any, high: Any, write: Callable[[Any], str]) -> str:
    return write(low) if write(low) == write(high) else f"{write(low)} to {write(high)}"


def _duration(low: float, high: float) -> str:
    """A range of time in one unit.

    Examples:
        >>> _duration(183, 342), _duration(4, 5000)
        ('3 to 6 min', '0.1 to 83.3 min')
    """
    size, unit = (3600, "h") if high >= 2 * 3600 else (60, "min") if high >= 120 else (1, "s")
    digits = 1 if low < 3 * size else 0
    return f"{_span(low / size, high / size, lambda value: f'{value:.{digits}f}')} {unit}"
