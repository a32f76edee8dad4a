"""The gate of a halving: whether what is known of the finalist is enough to knock it out."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from layersurgery.search._seen import Comparison, Seen, guarded

_FEW, _MANY = 20, 60  # samples, between which the gate rises from a share of z to all of it
_FEW_SHARE = 2 / 3
_ANSWERS = 0.25  # of what is asked of margins: answers scatter more, and are to confirm the sign
_SITES = 32  # for which z is meant
_LEAST_SETS = 3  # of which one number each is known, to say anything of their spread


@dataclass(frozen=True)
class Gate:
    """Whether the finalist passes, and why, in words.

    Args:
        open: whether it does.
        text: why.
        margin: by how many standard errors its gain is above what was asked for, or below, by that of the two
            conditions which is met less. Infinite: nothing is known.
    """

    open: bool
    text: str
    margin: float = -math.inf


def luck(sites: int) -> float:
    """How far chance alone lifts the best of the sites and the unmodified model, as a share of that with 32 sites.

    Half at the least: a single site must be shown to help, too. It is the expected largest of n standard normal
    numbers, after Blom (1958), "Statistical estimates and transformed beta-variables": the quantile at
    (n - 3/8) / (n + 1/4).
    """

    def largest(n: int) -> float:
        return NormalDist().inv_cdf((n - 0.375) / (n + 0.25))

    return max(0.5, largest(sites + 1) / largest(_SITES + 1))


def passes(seen: Seen, site: int, z: float, groups: Sequence[Hashable] | None) -> Gate:
    """Whether `site` is to be knocked out.

    Args:
        seen: what was read.
        site: the finalist.
        z: how many standard errors it must be better by; on few samples with margins, two thirds of that and more.
        groups: one name per sample of the oracle, or None.
    """
    compared, answers = seen.compared([site]), seen.answers([site])
    if not seen.per_sample:
        return _by_sets(answers, z)
    units = None if groups is None else [groups[column] for column in seen.columns]
    n = len(seen.columns) if units is None else len(set(units))
    if n < 2:
        return Gate(False, "one sample shows nothing" if units is None else "one group of samples shows nothing")
    gain = float(answers.means[0])
    if not compared.smoothed:
        unit = float(np.abs(answers.differences).max()) or 1.0
        found = standard_errors(answers.differences[0], units, unit=unit)
        text = f"its gain is {found:+.2f} standard errors {_asked(z)}"
        return Gate(gain > 0 and found >= z, text, found - z)
    asked = z * float(np.interp(n, (_FEW, _MANY), (_FEW_SHARE, 1)))
    found = standard_errors(compared.differences[0], units)
    flips = standard_errors(answers.differences[0], units)
    text = f"its gain is {found:+.2f} standard errors by margins {_asked(asked)} and {flips:+.2f} by answers "
    text += _asked(_ANSWERS * asked)
    margin = min(found - asked, flips - _ANSWERS * asked)
    return Gate(gain > 0 and compared.means[0] > 0 and margin >= 0, text, margin)


def standard_errors(differences: np.ndarray, units: Sequence[Hashable] | None = None, *, unit: float = 1.0) -> float:
    """The mean difference in guarded standard errors; differences of one group count as one.

    Args:
        differences: [n] score changes.
        units: [n] which group each sample belongs to; None: each is one of its own.
        unit: the largest change that a score can take; 1 for scores between 0 and 1.
    """
    n = len(differences)
    mean = math.fsum(differences) / n
    deviations = differences - mean
    if units is not None:
        numbers = {name: number for number, name in enumerate(dict.fromkeys(units))}
        deviations = np.bincount([numbers[name] for name in units], weights=deviations)
    count = len(deviations)
    variance = guarded(math.fsum(deviations**2), count, unit * n / count)  # a group's deviation is that of its sum
    return mean * n / math.sqrt(variance * count)


def _by_sets(answers: Comparison, z: float) -> Gate:
    """Student's t over sets of samples, of which larger ones weigh more; the same chance as `z` has asked for."""
    values, sizes = answers.differences[0], answers.sizes
    sets = len(values)
    gain = float(answers.means[0])
    if sets < _LEAST_SETS:
        return Gate(False, f"{sets} numbers do not show how far they scatter, {_LEAST_SETS} are the least")
    from scipy.special import stdtrit

    spread = math.sqrt(math.fsum(sizes * (values - gain) ** 2) / (sets - 1) / sizes.sum())
    asked = float(stdtrit(sets - 1, NormalDist().cdf(z)))
    tiny = 1e-12 * max(1.0, float(np.abs(values).max()))
    found = gain / spread if spread > tiny else math.copysign(math.inf, gain) if abs(gain) > tiny else 0.0
    text = f"its gain is {found:+.2f} standard errors over {sets} sets of samples {_asked(asked)}"
    return Gate(gain > 0 and found >= asked, text)


def _asked(value: float) -> str:
    return f"({value:.2f} asked for)"
