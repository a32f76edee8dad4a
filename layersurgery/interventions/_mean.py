"""`Mean`: every entry the tensor's own mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from layersurgery.errors import InterventionError
from layersurgery.interventions._base import Intervention, Place, constant_like, register, wide


@register
@dataclass(frozen=True)
class Mean(Intervention):
    """Every entry becomes the mean of the tensor it is in (paper, appendix C.3). The mean is taken in float64.

    Examples:
        >>> Mean().replace(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), Place("attn", "weight"))[1]
        tensor([3., 3.])
    """

    name: ClassVar[str] = "mean"

    def replace(self, tensor: torch.Tensor, place: Place) -> torch.Tensor:
        """The mean everywhere.

        Raises:
            InterventionError: for a tensor without entries.
        """
        if tensor.numel() == 0:
            raise InterventionError(f"Mean of {place.site}.{place.name}, which has no entries; select a narrower site")
        return constant_like(tensor, wide(tensor).mean())
