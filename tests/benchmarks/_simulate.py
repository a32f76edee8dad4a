"""Simulated tasks whose truth is known: margins of a model and of its variants on the same samples.

The unmodified model has a margin on each sample, and is right where it is above 0. A variant's margin follows the
base's up to noise of its own, partly common to all sites, in a unit of its own. It is then shifted so that the share
of samples with a margin above 0 is exactly what the site's true gain asks for. How far it follows is found from the
share of answers that a site flips beyond those that its gain needs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.benchmarks._tables import KnownTask

POPULATION = 1200  # samples of a task: the probe is drawn from them, the rest is held out
_STEPS = 14  # of bisection, for how far a site's margins follow the base's


@dataclass(frozen=True)
class World:
    """What is assumed of models and tasks.

    Args:
        sites: candidates per task.
        accuracy: of the unmodified model, drawn between these.
        churn: answers that a site flips without any gain, as a share, drawn between these.
        unit: spread of the logarithm of a site's unit of margins.
        common: share of the sites' noise that is common to all.
        tail: degrees of freedom of all margins; a large number: normal.
        wild: share of the flips that are as likely on an answer with a large margin.
        lopsided: right answers' margins are wider than wrong ones' by this factor, drawn anew for each site.
        harmful: shares of sites that lose a little, and that lose much.
        best: gain of the best site, drawn between these, for weak and for strong tasks.
        spread: standard deviation of the gains of a task's sites, which are then normal and not of a few kinds; 0: of
            a few kinds.
    """

    sites: int = 32
    accuracy: tuple[float, float] = (0.35, 0.75)
    churn: tuple[float, float] = (0.08, 0.26)
    unit: float = 0.3
    common: float = 0.3
    tail: float = 30.0
    wild: float = 0.1
    lopsided: float = 1.3
    harmful: tuple[float, float] = (0.4, 0.15)
    best: tuple[tuple[float, float], tuple[float, float]] = ((0.02, 0.07), (0.08, 0.2))
    spread: float = 0.0


WORLDS = {
    "plain": World(),
    "units": World(unit=0.9, lopsided=2.5),
    "tails": World(tail=3.0, wild=0.3),
    "wild": World(wild=0.7),
    "common": World(common=0.8),
    "hard": World(accuracy=(0.25, 0.4), churn=(0.1, 0.4)),
    "easy": World(accuracy=(0.75, 0.92), churn=(0.02, 0.1)),
    "few": World(sites=12),
    "spread": World(spread=0.05),
}
KINDS = {"null": 0.3, "weak": 0.3, "strong": 0.4}


def simulate(world: World, kind: str, rng: np.random.Generator, *, population: int = POPULATION) -> KnownTask:
    """One task.

    Args:
        world: what is assumed.
        kind: "null" (no site helps), "weak" or "strong".
        rng: what it is drawn with.
        population: number of samples.
    """
    accuracy = rng.uniform(*world.accuracy)
    gains = _gains(world, kind, rng)
    gains = np.clip(gains, 0.05 - accuracy, 0.97 - accuracy)
    base = _noise(world, rng, (population,))
    base = _placed(base, accuracy)
    common = _noise(world, rng, (population,))
    own = _noise(world, rng, (world.sites, population))
    noise = np.sqrt(world.common) * common + np.sqrt(1 - world.common) * own
    churn = rng.uniform(*world.churn, world.sites) + np.abs(gains)
    margins = _following(base, noise, accuracy + gains, churn * (1 - world.wild))
    margins = _wild(margins, churn * world.wild, rng)
    stretch = np.exp(rng.normal(0, np.log(world.lopsided), (world.sites, 1)))
    margins = np.where(margins > 0, margins * stretch, margins)
    margins = np.vstack([base, margins * np.exp(rng.normal(0, world.unit, (world.sites, 1)))])
    correct = (margins > 0).astype(float)
    return KnownTask(kind, correct, margins, (correct[1:] - correct[0]).mean(axis=1), kind)


def _gains(world: World, kind: str, rng: np.random.Generator) -> np.ndarray:
    """[sites] true gains: most are small losses, some large ones, and a few gains where the task has any."""
    if world.spread:
        gains = rng.normal(-0.5 * world.spread, world.spread, world.sites)
        if kind == "null":
            return -np.abs(gains)
        return gains + rng.uniform(*world.best[kind == "strong"]) - gains.max()
    little, much = world.harmful
    draw = rng.random(world.sites)
    gains = np.where(rng.random(world.sites) < 0.5, 0.0, -rng.uniform(0, 0.01, world.sites))
    gains = np.where(draw < little + much, -rng.uniform(0.01, 0.06, world.sites), gains)
    gains = np.where(draw < much, -rng.uniform(0.06, 0.4, world.sites), gains)
    if kind != "null":
        best = rng.uniform(*world.best[kind == "strong"])
        helping = rng.choice(world.sites, size=int(rng.integers(1, max(2, world.sites // 10))), replace=False)
        gains[helping] = best * rng.uniform(0.1, 0.9, len(helping))
        gains[helping[0]] = best
    return gains


def _noise(world: World, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_t(world.tail, shape)


def _placed(margins: np.ndarray, accuracy: float | np.ndarray) -> np.ndarray:
    """Shifted, so that this share is above 0."""
    rank = np.round(np.asarray(accuracy) * margins.shape[-1]).astype(int)
    order = np.sort(margins, axis=-1)[..., ::-1]
    if margins.ndim == 1:
        return margins - (order[rank - 1] + order[rank]) / 2
    row = np.arange(len(margins))
    return margins - ((order[row, rank - 1] + order[row, rank]) / 2)[:, None]


def _following(base: np.ndarray, noise: np.ndarray, accuracies: np.ndarray, flips: np.ndarray) -> np.ndarray:
    """Margins that follow the base's as far as gives this share of flips."""
    low, high = np.zeros(len(noise)), np.ones(len(noise))
    for _ in range(_STEPS):
        middle = (low + high) / 2
        made = _mixed(base, noise, middle, accuracies)
        many = ((made > 0) != (base > 0)).mean(axis=1) > flips
        low, high = np.where(many, middle, low), np.where(many, high, middle)
    return _mixed(base, noise, high, accuracies)


def _mixed(base: np.ndarray, noise: np.ndarray, follow: np.ndarray, accuracies: np.ndarray) -> np.ndarray:
    part = follow[:, None]
    return _placed(part * base + np.sqrt(1 - part**2) * noise, accuracies)


def _wild(margins: np.ndarray, share: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As many right as wrong answers, drawn at random, trade places, whatever their margins: accuracy stays."""
    out = margins.copy()
    for row, part in zip(out, share, strict=True):
        right, wrong = np.flatnonzero(row > 0), np.flatnonzero(row <= 0)
        count = min(int(part / 2 * len(row)), len(right), len(wrong))
        one, other = rng.choice(right, count, replace=False), rng.choice(wrong, count, replace=False)
        row[one], row[other] = row[other].copy(), row[one].copy()
    return out
