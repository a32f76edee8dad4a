"""`python -m tests.benchmarks.search`: what the decision rules find, what they break, and what they cost.

On simulated tasks of several worlds (`_simulate.py`), and with `embedded` on the embedded models' own answers: every
site on 600 test samples a task, made by a sweep once (about ten minutes) and kept in `build/search-tables/`. The probe
is drawn from a task's samples; gains are of the samples that were not read. `prior`: what a prior from other tasks
changes, on both (`_prior.py`, about two minutes).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from tests.benchmarks import _prior
from tests.benchmarks._simulate import KINDS, WORLDS, simulate
from tests.benchmarks._tables import KnownTask, embedded_tasks
from tests.benchmarks._trials import FRESH, Summary, entries, trial

SHOTS = (10, 15, 20)
HEADER = (
    f"{'rule':24} {'shots':>5} {'gain':>6} {'more':>6} {'+-':>5} {'harm':>5} {'null':>6} {'best':>5} {'evals':>6} "
    f"{'cost':>5} {'labels':>6}   {'fresh':>5} {'null':>5}   {'adj.':>5} {'null':>5}  {'bias':>5} {'corr.':>5}"
)
LEGEND = f"""
gain    mean held-out gain in points, 0 where the model is kept; more: than the paper's rule, +- its standard error
harm    share of the tasks where no site helps in which a harmful one is knocked out; null: mean gain on these tasks
best    how often the best site is found, in tasks that have one
evals   evaluations (one sample on one variant each); cost: as a share of the paper's; labels: samples read
fresh   coverage of the 95 % interval on {FRESH} fresh samples, and on null tasks; adj.: without fresh ones
bias    gain on the probe less the held-out one, in points, where a site is knocked out; corr.: of the corrected gain
"""


def main(given: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.search", description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", choices=("simulated", "embedded", "prior"), default="simulated")
    parser.add_argument(
        "--tasks", type=int, help="simulated tasks per world (default: 90), or per kind of family (440)"
    )
    parser.add_argument(
        "--draws", type=int, help="searches per task (default: 1 simulated, 200 embedded, 12 for prior)"
    )
    parser.add_argument("--worlds", nargs="+", choices=list(WORLDS), default=list(WORLDS))
    parser.add_argument("--shots", nargs="+", type=int, default=list(SHOTS))
    parser.add_argument("--adjust-every", type=int, default=0, help="searches between two looks at corrected gains")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(given)
    if asked.source == "prior":
        return _say_prior(asked.tasks or 440, asked.worlds, asked.draws or 12, asked.seed)
    if asked.source == "embedded":
        groups = {"embedded": list(embedded_tasks())}
        _say_tasks(groups["embedded"])
    else:
        groups = {name: _simulated(name, asked.tasks or 90, asked.seed) for name in asked.worlds}
    draws = asked.draws or (200 if asked.source == "embedded" else 1)
    every = asked.adjust_every or (20 if asked.source == "embedded" else 2)
    found = {name: _run(tasks, asked.shots, draws, every, asked.seed) for name, tasks in groups.items()}
    whole = _joined(list(found.values()))
    count = sum(map(len, groups.values()))
    _say(f"\n{count} tasks, {draws} search{'es' if draws > 1 else ''} each\n\n{HEADER}")
    for summary in whole:
        _say(_line(summary))
    _say(LEGEND)
    if lacking := sum(each.lacking for summary in whole for each in summary.trials):
        _say(
            f"In {lacking} searches the paper's rule had too few samples left to decide: taken as keeping the model.\n"
        )
    if len(groups) > 1:
        _say_worlds(found)
    if asked.source == "embedded":
        _say_kinds(whole)
    return 0


def _simulated(name: str, count: int, seed: int) -> list[KnownTask]:
    rng = np.random.default_rng([seed, list(WORLDS).index(name)])
    kinds = [kind for kind, share in KINDS.items() for _ in range(round(share * count))]
    return [simulate(WORLDS[name], kind, rng) for kind in kinds]


def _run(tasks: list[KnownTask], shots: Sequence[int], draws: int, every: int, seed: int) -> list[Summary]:
    summaries = [Summary(entry) for entry in entries(shots)]
    for number, task in enumerate(tasks):
        for draw in range(draws):
            adjust = (number * draws + draw) % every == 0
            for summary in summaries:
                place = [seed, number, draw, summary.entry.shots]
                summary.trials.append(trial(task, summary.entry, place, adjust=adjust))
    for summary in summaries:
        summary.paper = _paper(summaries, summary).trials
    return summaries


def _paper(summaries: list[Summary], summary: Summary) -> Summary:
    return next(
        other for other in summaries if other.entry.name == "paper" and other.entry.shots == summary.entry.shots
    )


def _joined(found: list[list[Summary]]) -> list[Summary]:
    return [
        Summary(
            parts[0].entry,
            [each for part in parts for each in part.trials],
            [each for part in parts for each in part.paper],
        )
        for parts in zip(*found, strict=True)
    ]


def _line(of: Summary) -> str:
    points = [of.more, of.more_error, of.null_gain, of.bias("apparent"), of.bias("corrected")]
    more, error, null, bias, corrected = (100 * value for value in points)
    covers = [of.coverage(name, null=only) for name in ("fresh", "adjusted") for only in (False, True)]
    return (
        f"{of.entry.name:24} {of.entry.shots:5d} {100 * of.gain:+6.2f} {more:+6.2f} {error:5.2f} {of.harm:5.2f} "
        f"{null:+6.2f} {of.best:5.2f} {of.evaluations:6.0f} {of.cost:5.2f} {of.labels:6.0f}   "
        f"{covers[0]:5.3f} {covers[1]:5.3f}   {covers[2]:5.3f} {covers[3]:5.3f}  {bias:+5.1f} {corrected:+5.1f}"
    )


def _say_worlds(found: dict[str, list[Summary]]) -> None:
    _say("By world: more gain than the paper's rule in points / harm on null tasks / cost\n")
    _say(f"{'rule':24} {'shots':>5}  " + "  ".join(f"{name:>16}" for name in found))
    for parts in zip(*found.values(), strict=True):
        if parts[0].entry.name == "paper":
            cells = [f"{100 * part.gain:+6.2f} {part.harm:4.2f} {part.cost:4.2f}" for part in parts]
        else:
            cells = [f"{100 * part.more:+6.2f} {part.harm:4.2f} {part.cost:4.2f}" for part in parts]
        _say(f"{parts[0].entry.name:24} {parts[0].entry.shots:5d}  " + "  ".join(f"{cell:>16}" for cell in cells))
    _say("(of the paper's rule: its gain itself)")


def _say_tasks(tasks: list[KnownTask]) -> None:
    for task in tasks:
        changes = " ".join(f"{100 * change:+5.1f}" for change in task.truth)
        _say(f"{task.name:22} {task.kind:6} {100 * task.correct[0].mean():5.1f}  {changes}")


def _say_kinds(summaries: list[Summary]) -> None:
    _say("Mean held-out gain by kind of task, in points\n")
    kinds = list(KINDS)
    _say(f"{'rule':24} {'shots':>5}  " + " ".join(f"{kind:>8}" for kind in kinds))
    for of in summaries:
        gains = [np.mean([each.gain for each in of.trials if each.task.kind == kind]) for kind in kinds]
        _say(f"{of.entry.name:24} {of.entry.shots:5d}  " + " ".join(f"{100 * gain:+8.2f}" for gain in gains))


def _say_prior(tasks: int, worlds: Sequence[str], draws: int, seed: int) -> int:
    _say(_prior.HEADER)
    groups = {name: (_prior.families(name, tasks, worlds, seed), _prior.OTHERS, 1) for name in _prior.FAMILIES}
    known: dict[str, list[KnownTask]] = {}
    for task in embedded_tasks():
        known.setdefault(task.name.split()[0], []).append(task)
    groups |= {name: (iter([own]), (*_prior.OTHERS[:-1], len(own) - 1), draws) for name, own in known.items()}
    for name, (families, others, searches) in groups.items():
        for (count, setting), found in _prior.compare(families, others, searches, seed).items():
            _say(found.line(name, count, setting))
    _say(_prior.LEGEND)
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
