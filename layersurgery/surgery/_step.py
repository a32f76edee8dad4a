"""`Step`: one site and what is done there; surgeries are sequences of steps."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import Literal

from layersurgery.interventions import Intervention
from layersurgery.sites import Site

Tied = Literal["site", "everywhere"]


@dataclass(frozen=True)
class Step:
    """One intervention at one site.

    Args:
        site: where.
        do: what.
        tied: for parameters that other modules share: change them at this site only, or everywhere they are used.
    """

    site: Site
    do: Intervention
    tied: Tied = "site"

    def __str__(self) -> str:
        return f"{_named(self.do)} {self.site}"


def _named(do: Intervention) -> str:
    """An intervention in short: what it is, and settings that are not the usual ones.

    Examples:
        >>> from layersurgery.interventions import Scale, Zero
        >>> _named(Zero()), _named(Scale(0.5))
        ('zero', 'scale(factor=0.5)')
    """
    if not is_dataclass(do):
        return type(do).__name__.lower()
    settings = ((one.name, getattr(do, one.name), one.default) for one in fields(do) if one.repr)
    unusual = [f"{name}={value!r}" for name, value, default in settings if value is not default and value != default]
    return type(do).__name__.lower() + (f"({', '.join(unusual)})" if unusual else "")
