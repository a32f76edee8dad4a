"""What `Zero()` would do at a site, in words; nothing is applied."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from layersurgery.errors import SurgeryError
from layersurgery.interventions import Zero
from layersurgery.sites import Site
from layersurgery.surgery import Step
from layersurgery.surgery._resolve import resolve


@dataclass(frozen=True)
class Outlook:
    """Whether and how `Zero()` can be applied at a site.

    Args:
        refusal: why it cannot; empty: it can.
        by_outputs: it acts on what modules of the site give, since their weights cannot be replaced.
    """

    refusal: str = ""
    by_outputs: bool = False


def outlook(model: nn.Module, site: Site) -> Outlook:
    """Ask the surgery; it answers before it touches anything."""
    try:
        plan = resolve(model, [Step(site, Zero())])
    except SurgeryError as error:
        return Outlook(refusal=str(error))
    return Outlook(by_outputs=bool(plan.taps))


def effect_of(site: Site, by_outputs: bool = False) -> str:
    """What happens to the residual stream when all parameters of the site are zero.

    Examples:
        >>> effect_of(Site("h.0.attn", role="attention", adds="output"))
        'adds nothing'
        >>> effect_of(Site("h.0.attn", role="attention", adds="module:output.dense", hazards=("norm_inside",)))
        "wipes the stream, whose norm is inside; Zero(what='contribution') adds nothing"
    """
    besides = [phrase for code, phrase in _BESIDES.items() if code in site.hazards]
    how = ["through what its modules give"] if by_outputs else []
    return "; ".join([_itself(site), *besides, *how])


def _itself(site: Site) -> str:
    if site.role == "norm":
        return "its scale and shift become 0"
    how = site.adds.partition(":")[0]
    if "norm_inside" in site.hazards and how in _WITH_NORM:
        return _WITH_NORM[how]
    return "adds a constant only" if "adds_constant" in site.hazards else _WITHOUT_NORM[how]


# by how what a site adds leaves it (`Site.adds`)
_WITHOUT_NORM = {
    "output": "adds nothing",
    "input": "adds nothing; the stream inside passes through",
    "module": "adds nothing",
    "": "all its parameters become 0",
}
_WITH_NORM = {
    "module": "wipes the stream, whose norm is inside; Zero(what='contribution') adds nothing",
    "": "all its parameters become 0, those of the norm inside too",
}
_BESIDES = {
    "feeds_others": "changes what later layers read from it",
    "tied": "other holders of a tied parameter keep it",
    "shared": "at every place where it runs",
}
