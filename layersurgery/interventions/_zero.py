"""`Zero`: the paper's knock-out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from layersurgery.interventions._base import Place, constant_like, register
from layersurgery.interventions._output_form import OutputForm


@register
@dataclass(frozen=True, repr=False)
class Zero(OutputForm):
    """Every entry becomes 0: an attention module then adds nothing to the residual stream (paper, section 3.1).

    With `what="contribution"` what the site adds becomes 0 instead, and nothing else changes. The two agree but where a
    site's hazards say why not: a norm or a position bias inside, keys and values that other layers read.

    Examples:
        >>> Zero().replace(torch.ones(2, 3), Place("attn", "weight"))
        tensor([[0., 0., 0.],
                [0., 0., 0.]])
        >>> Zero(what="contribution", positions=range(2))
        Zero(what='contribution', positions=(0, 1))
    """

    name: ClassVar[str] = "zero"

    def replace(self, tensor: torch.Tensor, place: Place) -> torch.Tensor:
        """Zeros like `tensor`."""
        return constant_like(tensor, 0.0)

    def outcome(self, output: torch.Tensor) -> torch.Tensor:
        """Zeros like `output`."""
        return torch.zeros_like(output)
