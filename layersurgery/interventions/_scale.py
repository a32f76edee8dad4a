"""`Scale`: everything a factor larger or smaller."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from layersurgery.errors import InterventionError
from layersurgery.interventions._base import Place, plain, register
from layersurgery.interventions._output_form import OutputForm


@register
@dataclass(frozen=True, repr=False)
class Scale(OutputForm):
    """Every entry is multiplied by a factor.

    On the parameters of a whole attention module this is no scaling of what it adds: queries, keys, values and outputs
    are scaled each. `what="contribution"` scales just what the site adds to the residual stream.

    Args:
        factor: the factor; 0 is `Zero`, 1 changes nothing.
        what: as for `Zero`.
        positions: as for `Zero`.
        steps: as for `Zero`.

    Raises:
        InterventionError: if the factor is not a finite number.

    Examples:
        >>> Scale(0.5).replace(torch.tensor([2.0, 4.0]), Place("attn", "weight"))
        tensor([1., 2.])
    """

    name: ClassVar[str] = "scale"
    factor: float

    def __post_init__(self) -> None:
        if not isinstance(self.factor, int | float) or isinstance(self.factor, bool) or not math.isfinite(self.factor):
            raise InterventionError(f"Scale(factor={self.factor!r}): give a finite number, such as 0.5")
        super().__post_init__()

    def replace(self, tensor: torch.Tensor, place: Place) -> torch.Tensor:
        """`tensor` times the factor."""
        return plain(tensor) * self.factor

    def outcome(self, output: torch.Tensor) -> torch.Tensor:
        """`output` times the factor."""
        return output * self.factor
