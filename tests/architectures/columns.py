"""The checks of the bench: each is a column of its table, and its docstring the column's legend.

A check returns what to show instead of "yes", if anything; it raises `DoesNotApply` with the reason where it has
nothing to say, and anything else where the answer is no.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import pytest
import torch
from torch import nn

import layersurgery as ls
from layersurgery.errors import SurgeryError
from layersurgery.interventions import Intervention
from tests.architectures.check import differences
from tests.architectures.expected import LAYOUT_OF, NO_CONTRIBUTION
from tests.architectures.subject import DoesNotApply, Subject, apart, same
from tests.architectures.twin import Fill, one_over_n, own_mean, zeros
from tests.architectures.words import generation, left_padding, without_cache

Check = Callable[[Subject], str | None]

ROUNDING = 1e-5


def sites_right(subject: Subject) -> None:
    """Selection finds the attention sites, in their layers and with their kinds, that the model's source has."""
    _found_as_written(subject, "attention")


def mlp_right(subject: Subject) -> None:
    """Selection finds the feed-forwards that the model's source has."""
    _found_as_written(subject, "mlp")


def zero(subject: Subject) -> None:
    """`Zero` at all attention sites, and at one alone, gives bit for bit what a copy with zeroed weights gives."""
    _equals_copy(subject, ls.Zero(), zeros)


def zero_mlp(subject: Subject) -> None:
    """The same for the feed-forwards."""
    if subject.name in LAYOUT_OF and not LAYOUT_OF[subject.name].feed_forwards:
        raise DoesNotApply("its layers have no feed-forward")
    _applied(subject, subject.feed_forwards, ls.Zero(), zeros)


def uniform(subject: Subject) -> str | None:
    """`Uniform`, in the same way ("close": but for the order of summation, which a constant matrix may change)."""
    return _equals_copy(subject, ls.Uniform(), one_over_n)


def mean(subject: Subject) -> str | None:
    """`Mean`, in the same way."""
    return _equals_copy(subject, ls.Mean(), own_mean)


def noise(subject: Subject) -> str | None:
    """`Noise` is of each weight's own spread, the same on the next entry, and acts as the same numbers do in a copy."""
    with ls.Surgery(at=subject.sites, do=ls.Noise(seed=1))(subject.model):
        drawn = _values(subject.model, _fills(subject.sites, zeros))
        at_all = _same_as_copy(subject, _fills(subject.sites, lambda name, values: drawn[name]), "noise at all sites")
    for name, values in drawn.items():
        was = subject.model.get_parameter(name).detach()
        if was.numel() >= 256 and not torch.isclose(values.std(), was.std(), rtol=0.25):
            raise AssertionError(f"noise of spread {values.std():.3g} in {name}, which has {was.std():.3g}")
    at_one = _applied(subject, [subject.middle], ls.Noise(seed=1), lambda name, values: drawn[name])
    return at_all or at_one


def nested(subject: Subject) -> None:
    """`Mean` at two sites and `Zero` at one of them, lifted in crossed order: always what is still in force."""
    one, other = subject.middle, subject.sites[0]
    both, overlaid = _fills([other, one], own_mean), {**_fills([other], own_mean), **_fills([one], zeros)}
    outer = ls.Surgery(at=subject.sites[:1] if one == other else [other, one], do=ls.Mean()).attach(subject.model)
    try:
        _same_as_copy(subject, both, "Mean at two sites")
        inner = ls.Surgery(at=one, do=ls.Zero()).attach(subject.model)
        try:
            _same_as_copy(subject, overlaid, "Zero over Mean")
        finally:
            outer.remove()
            outer.remove()
        try:
            _same_as_copy(subject, _fills([one], zeros), "what was inside, after the outer was lifted")
        finally:
            inner.remove()
    finally:
        outer.remove()


def contribution(subject: Subject) -> None:
    """`Zero(what="contribution")` takes away what the sites add, by the source; at all, and at one alone."""
    _refused_where_written(subject)
    for sites in (subject.running, subject.running[len(subject.running) // 2 :][:1]):
        where = LAYOUT_OF[subject.name].additions(subject.model)
        with subject.twin.silenced(dict(where[site.path, site.parts] for site in sites)):
            wanted = subject.twin_output()
        with ls.Surgery(at=sites, do=ls.Zero(what="contribution"))(subject.model):
            found = subject.output()
        if apart(found, wanted) > ROUNDING:
            raise AssertionError(f"{len(sites)} sites: {apart(found, wanted):.2g} from the model without what they add")


def forms_agree(subject: Subject) -> str:
    """Both forms of `Zero` agree bit for bit ("equal") or to rounding ("close"), or the sites' hazards say why not."""
    _refused_where_written(subject)
    with ls.Surgery(at=subject.running, do=ls.Zero())(subject.model):
        parameters = subject.output()
    with ls.Surgery(at=subject.running, do=ls.Zero(what="contribution"))(subject.model):
        added = subject.output()
    if same(parameters, added):
        return "equal"
    if apart(parameters, added) <= ROUNDING:
        return "close"
    hazards = _why_apart(subject.running) or _why_apart(subject.with_example)
    if not hazards:
        raise AssertionError(f"they differ by {apart(parameters, added):.2g}, and no hazard of the sites says why")
    return ", ".join(hazards)


CHECKS: Mapping[str, Check] = {
    "attention sites": sites_right,
    "mlp sites": mlp_right,
    "zero": zero,
    "zero mlp": zero_mlp,
    "uniform": uniform,
    "mean": mean,
    "noise": noise,
    "nested": nested,
    "contribution": contribution,
    "forms agree": forms_agree,
    "generation": generation,
    "without cache": without_cache,
    "left padding": left_padding,
}


def _found_as_written(subject: Subject, role: str) -> None:
    wrong = differences(subject.name, subject.model, role, lambda _, role: subject.selected(role))
    if wrong:
        raise AssertionError("; ".join(wrong))


def _why_apart(sites: ls.Sites) -> list[str]:
    return sorted({hazard for site in sites for hazard in site.hazards} - {"tied", "shared"})


def _refused_where_written(subject: Subject) -> None:
    if subject.name not in NO_CONTRIBUTION:
        return
    with pytest.raises(SurgeryError), ls.Surgery(at=subject.running, do=ls.Zero(what="contribution"))(subject.model):
        pass
    raise DoesNotApply(f"refused: {NO_CONTRIBUTION[subject.name]}")


def _equals_copy(subject: Subject, do: Intervention, fill: Fill) -> str | None:
    return _applied(subject, subject.sites, do, fill) or _applied(subject, [subject.middle], do, fill)


def _applied(subject: Subject, sites: Iterable[ls.Site], do: Intervention, fill: Fill) -> str | None:
    sites = list(sites)
    what = f"{do!r} at {len(sites)} sites"
    with ls.Surgery(at=sites, do=do)(subject.model):
        equal = _same_as_copy(subject, _fills(sites, fill), what)
        if same(subject.output(), subject.before):
            raise AssertionError(f"{what} changes nothing")
    return equal


def _same_as_copy(subject: Subject, fills: Mapping[str, Fill], what: str) -> str | None:
    """None where the model gives bit for bit what the copy gives. Where weights are not 0, matrices in another place
    or with other strides may be summed in another order: "close"."""
    found = subject.output()
    with subject.twin.filled(fills):
        wanted = subject.twin_output()
    if same(found, wanted):
        return None
    if apart(found, wanted) > ROUNDING or all(fill is zeros for fill in fills.values()):
        raise AssertionError(f"{what}: {apart(found, wanted):.2g} from a copy that was changed by hand")
    return "close"


def _fills(sites: Iterable[ls.Site], fill: Fill) -> dict[str, Fill]:
    return {path: fill for site in sites for path in site.modules}


def _values(model: nn.Module, paths: Iterable[str]) -> dict[str, torch.Tensor]:
    """What the parameters in the modules of these paths are now, by name."""
    return {
        f"{name}.{leaf}": values.detach().clone()
        for path in paths
        for name, part in model.get_submodule(path).named_modules(prefix=path)
        for leaf, values in part._parameters.items()
        if values is not None
    }
