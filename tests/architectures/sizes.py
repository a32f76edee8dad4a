"""How large the bench's instances are; other sizes than the usual ones show what was only right by their numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Sizes of an instance.

    Args:
        heads: attention heads; half as many for keys and values where these are fewer.
        head_dim: width of a head.
        layers: fewest layers of the main stack; more where more kinds of layers must be shown.
        biases: biases of attention and feed-forward, where the config has a say: as by default, or all of them.
    """

    heads: int = 4
    head_dim: int = 16
    layers: int = 3
    biases: bool | None = None

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return self.heads * self.head_dim


USUAL = Sizes()
SIZES = {
    "usual": USUAL,
    "narrow": Sizes(head_dim=8, layers=5),
    "wide": Sizes(heads=8, head_dim=32, layers=4),
    "biased": Sizes(heads=8, layers=6, biases=True),
}
