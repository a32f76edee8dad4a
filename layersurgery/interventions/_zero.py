"""`Zero`: the paper's knock-out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from layersurgery.interventions._base import Intervention, Place, constant_like, register


@register
@dataclass(frozen=True)
class Zero(Intervention):
    """Every entry becomes 0: an attention module then adds nothing to the residual stream (paper, section 3.1).

    Examples:
        >>> Zero().replace(torch.ones(2, 3), Place("attn", "weight"))
        tensor([[0., 0., 0.],
                [0., 0., 0.]])
    """

    name: ClassVar[str] = "zero"

    def replace(self, tensor: torch.Tensor, place: Place) -> torch.Tensor:
        """Zeros like `tensor`."""
        return constant_like(tensor, 0.0)
