"""`Uniform`: every entry 1/N."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from layersurgery.errors import InterventionError
from layersurgery.interventions._base import Intervention, Place, constant_like, register


@register
@dataclass(frozen=True)
class Uniform(Intervention):
    """Every entry becomes 1/N, N the tensor's first dimension; of a 1-D bias, its length (paper, section 3.1).

    Examples:
        >>> Uniform().replace(torch.zeros(4, 2), Place("attn", "weight"))[0]
        tensor([0.2500, 0.2500])
    """

    name: ClassVar[str] = "uniform"

    def replace(self, tensor: torch.Tensor, place: Place) -> torch.Tensor:
        """1/N everywhere.

        Raises:
            InterventionError: for a tensor without dimensions or entries: it has no N.
        """
        if tensor.dim() == 0 or tensor.shape[0] == 0:
            raise InterventionError(
                f"Uniform needs a first dimension of at least 1; {place.site}.{place.name} has shape "
                f"{tuple(tensor.shape)}. "
                "Select a narrower site, or use Zero or Mean"
            )
        return constant_like(tensor, 1.0 / tensor.shape[0])
