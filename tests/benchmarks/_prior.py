"""What a prior from other tasks changes: `HalvingRule` with and without one, in the same draws.

Simulated tasks come in families, of which the sites' gains are alike to some degree; each task of a family is searched
with a prior from some of the others. Their vectors are measured on few samples, as anybody's are. The embedded models'
own tasks are searched likewise, each with a prior from others of the same model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from layersurgery.search import HalvingRule, Prior
from tests.benchmarks._simulate import KINDS, WORLDS, World, simulate
from tests.benchmarks._tables import KnownTask
from tests.benchmarks._trials import Entry, Summary, Trial, trial

MEMBERS = 11  # of a family
OTHERS = (1, 3, 10)  # tasks that a prior is made of
LABELS = 150
SWEPT = 200  # samples that another task's vector is measured on
FAMILIES = {"unrelated": 0.0, "alike 0.3": 0.3, "alike 0.7": 0.7, "losses alike": 0.7}
SETTINGS = {"weight and bar": {}, "weight only": {"bar": math.inf}, "bar only": {"samples": 0.0}}
HEADER = (
    f"{'tasks':14} {'others':>6} {'prior':14} {'gain':>6} {'more':>6} {'+-':>5} {'harm':>5} {'was':>5} {'null':>6} "
    f"{'was':>6} {'cost':>5} {'worth':>5} {'barred':>6} {'best':>5}"
)
LEGEND = f"""
gain    mean held-out gain in points with the prior; more: than without one in the same draws, +- its standard error
harm    share of the tasks where no site helps in which a harmful one is knocked out; was: without a prior
null    mean gain on these tasks; was: without a prior
cost    evaluations, as a share of those without a prior
worth   samples that the prior counts as; barred: share of the sites; best: how often the best one is, if one helps
alike   0.3, 0.7: so much of what ranks a task's sites is common to the family; losses alike: 0.7, but which of the
        sites that do not lose gains is each task's own

{LABELS} labels; other tasks' vectors are measured on {SWEPT} samples each.
"""


@dataclass
class Compared:
    """Searches with one kind of prior, from one number of tasks.

    Args:
        summary: the searches, beside those without a prior.
        priors: the prior of each search.
    """

    summary: Summary
    priors: list[Prior] = field(default_factory=list)

    @property
    def best_barred(self) -> float:
        """In which share of the tasks that have a site that helps the best one is barred."""
        found = [
            int(each.task.truth.argmax()) in prior.barred
            for each, prior in zip(self.summary.trials, self.priors, strict=True)
            if each.task.kind != "null"
        ]
        return float(np.mean(found)) if found else math.nan

    def line(self, name: str, others: int, setting: str) -> str:
        """As the header says."""
        with_, was = self.summary, Summary(self.summary.entry, self.summary.paper)
        gains = [with_.gain, with_.more, with_.more_error]
        gain, more, error, null, null_was = (100 * value for value in [*gains, with_.null_gain, was.null_gain])
        worth = np.mean([prior.samples for prior in self.priors])
        barred = np.mean([len(prior.barred) / len(prior.changes) for prior in self.priors])
        return (
            f"{name:14} {others:6d} {setting:14} {gain:+6.2f} {more:+6.2f} {error:5.2f} {with_.harm:5.2f} "
            f"{was.harm:5.2f} {null:+6.2f} {null_was:+6.2f} {with_.cost:5.2f} {worth:5.1f} {barred:6.2f} "
            f"{self.best_barred:5.2f}"
        )


def families(name: str, tasks: int, worlds: Sequence[str], seed: int) -> Iterator[list[KnownTask]]:
    """Families with about so many tasks in all, each of the next world."""
    for number in range(max(1, round(tasks / MEMBERS))):
        rng = np.random.default_rng([seed, list(FAMILIES).index(name), number])
        made = family(WORLDS[worlds[number % len(worlds)]], FAMILIES[name], rng)
        yield [_gains_moved(task, rng) for task in made] if name == "losses alike" else made


def family(world: World, alike: float, rng: np.random.Generator) -> list[KnownTask]:
    """Tasks of which the sites' gains have similar ranks; how large they are is each task's own.

    Args:
        world: what is assumed of each task.
        alike: how much of what ranks the sites is common, from 0 to 1.
        rng: what they are drawn with.
    """
    common = rng.normal(size=world.sites)
    tasks = []
    for kind in rng.choice(list(KINDS), MEMBERS, p=list(KINDS.values())):
        task = simulate(world, str(kind), rng)
        own = rng.normal(size=world.sites)
        place = np.argsort(np.argsort(math.sqrt(alike) * common + math.sqrt(1 - alike) * own))
        tasks.append(_moved(task, np.argsort(task.truth, kind="stable")[place]))
    return tasks


def _gains_moved(task: KnownTask, rng: np.random.Generator) -> KnownTask:
    rows = np.arange(len(task.truth))
    free = np.flatnonzero(task.truth > -0.01)
    rows[free] = rng.permutation(free)
    return _moved(task, rows)


def _moved(task: KnownTask, rows: np.ndarray) -> KnownTask:
    """The same task, of which site i is what site rows[i] was."""
    table = np.r_[0, rows + 1]
    return KnownTask(task.name, task.correct[table], task.margin[table], task.truth[rows], task.kind)


def compare(
    groups: Iterator[list[KnownTask]], others: Sequence[int], draws: int, seed: int
) -> dict[tuple[int, str], Compared]:
    """Search each task of each group without a prior, and with those from some others of its group."""
    plain = Entry("without", HalvingRule(LABELS), LABELS // 10)
    found = {(count, setting): Compared(Summary(plain)) for count in others for setting in SETTINGS}
    for number, group in enumerate(groups):
        for which, task in enumerate(group):
            rest = group[:which] + group[which + 1 :]
            for draw in range(draws):
                place = [seed, number, which, draw]
                without = trial(task, plain, place, adjust=False)
                for count in others:
                    vectors = _vectors(rest, count, np.random.default_rng([*place, count]))
                    for setting, options in SETTINGS.items():
                        prior = Prior.of(vectors, **options)
                        into = found[count, setting]
                        into.priors.append(prior)
                        into.summary.trials.append(_searched(task, prior, place, without))
                        into.summary.paper.append(without)
    return found


def _vectors(tasks: list[KnownTask], count: int, rng: np.random.Generator) -> np.ndarray:
    """[count, sites] of some of the tasks, each on samples of its own."""
    rows: list[np.ndarray] = []
    for which in rng.permutation(len(tasks))[:count]:
        correct = tasks[which].correct
        columns = rng.choice(correct.shape[1], SWEPT, replace=False)
        rows.append((correct[1:, columns] - correct[0, columns]).mean(axis=1))
    return np.array(rows)


def _searched(task: KnownTask, prior: Prior, place: Sequence[int], without: Trial) -> Trial:
    if not prior.samples and not prior.barred:  # it changes nothing
        return without
    return trial(task, Entry("with", HalvingRule(LABELS, prior=prior), LABELS // 10), place, adjust=False)
