"""`Step`: one site and what is done there; surgeries are sequences of steps."""

from __future__ import annotations

from dataclasses import dataclass
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
        return f"{type(self.do).__name__.lower()} {self.site}"
