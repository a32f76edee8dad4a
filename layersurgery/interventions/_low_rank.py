"""`LowRank`: matrices without their smallest directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from layersurgery.errors import InterventionError
from layersurgery.interventions._base import Intervention, Place, plain, register, wide


@register
@dataclass(frozen=True)
class LowRank(Intervention):
    """Every matrix becomes its best approximation of lower rank; vectors (biases, norms) stay.

    Layer-selective rank reduction (LASER; Sharma et al. 2023, arXiv 2312.13558, section 3): of the singular values the
    largest `floor(fraction * min(rows, columns))` are kept, at least one. Convolutions are matrices of outputs by all
    the rest; stacked experts [experts, rows, columns] are reduced one by one. Computed in float64 at each application.

    Args:
        fraction: share of the full rank that is kept, above 0 and at most 1; 1 changes nothing.

    Raises:
        InterventionError: if it is anything else.

    Examples:
        >>> kept = LowRank(0.5).replace(torch.diag(torch.tensor([3.0, 1.0])), Place("mlp.up_proj", "weight"))
        >>> kept.round(decimals=4) + 0
        tensor([[3., 0.],
                [0., 0.]])
    """

    name: ClassVar[str] = "low_rank"
    fraction: float

    def __post_init__(self) -> None:
        number = isinstance(self.fraction, int | float) and not isinstance(self.fraction, bool)
        if not number or not 0 < self.fraction <= 1:
            raise InterventionError(f"LowRank(fraction={self.fraction!r}): give a number above 0 and at most 1")

    def replace(self, tensor: torch.Tensor, place: Place) -> torch.Tensor:
        """The approximation."""
        if tensor.dim() < 2 or tensor.numel() == 0 or self.fraction == 1:
            return plain(tensor).clone()
        values = wide(tensor)
        matrix = values if tensor.dim() == 3 else values.flatten(1)  # 4-D and 5-D: convolutions
        keep = max(1, int(self.fraction * min(matrix.shape[-2:])))
        left, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
        reduced = (left[..., :keep] * sizes[..., None, :keep]) @ right[..., :keep, :]
        return reduced.reshape(tensor.shape).to(tensor.dtype)
