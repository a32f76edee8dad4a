"""`Noise`: entries replaced by seeded random numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from layersurgery.errors import InterventionError
from layersurgery.interventions._base import Intervention, Place, register, wide


@register
@dataclass(frozen=True)
class Noise(Intervention):
    """Every entry becomes normal noise of mean 0 (paper, C.3): a control that destroys the model's output (Fig. 5).

    The paper gives no scale. The noise depends on the seed and the parameter's place only, so it is the same on every
    entry into a block and on every device; the global random state is not touched.

    Args:
        std: standard deviation; None: that of the tensor itself (0 for a tensor of one entry).
        seed: seed of the noise.

    Raises:
        InterventionError: if `std` is not a finite number >= 0 or `seed` is not an integer.

    Examples:
        >>> noise, place = Noise(std=1.0, seed=1), Place("attn", "weight")
        >>> torch.equal(noise.replace(torch.zeros(3), place), noise.replace(torch.ones(3), place))
        True
    """

    name: ClassVar[str] = "noise"
    std: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        number = isinstance(self.std, int | float) and not isinstance(self.std, bool)
        if self.std is not None and not (number and math.isfinite(self.std) and self.std >= 0):
            raise InterventionError(f"Noise(std={self.std!r}): give a finite number >= 0, or None for the tensor's own")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise InterventionError(f"Noise(seed={self.seed!r}): the seed must be an integer")

    def replace(self, tensor: torch.Tensor, place: Place) -> torch.Tensor:
        """Noise of the tensor's shape."""
        values = tensor.detach()
        scale = self.std
        if scale is None:
            # population form: defined for a single entry too
            scale = float(wide(values).var(correction=0).sqrt()) if values.numel() else 0.0
        noise = torch.randn(values.shape, generator=place.generator(self.seed), dtype=torch.float32, device="cpu")
        return (noise * scale).to(device=values.device, dtype=values.dtype)
