"""`Skip`: a layer that returns its input."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from layersurgery.errors import InterventionError
from layersurgery.interventions._base import What, register
from layersurgery.interventions._output_form import OutputForm


@register
@dataclass(frozen=True, repr=False)
class Skip(OutputForm):
    """A whole layer returns the residual stream that entered it, bit for bit; its KV cache is filled as ever.

    For sites of role "layer", and for any module whose output has the shape of its input.

    Args:
        what: "contribution"; a layer is skipped through its output only.
        positions: as for `Zero`.
        steps: as for `Zero`.

    Raises:
        InterventionError: if `what` is something else.

    Examples:
        >>> Skip(positions=-1)
        Skip(positions=(-1,))
    """

    name: ClassVar[str] = "skip"
    roles: ClassVar[tuple[str, ...]] = ("layer", "module")
    what: What = field(default="contribution", kw_only=True)

    def __post_init__(self) -> None:
        if self.what != "contribution":
            raise InterventionError(
                f"Skip(what={self.what!r}): a layer is skipped through its output; leave `what` out"
            )
        super().__post_init__()

    def outcome(self, output: torch.Tensor) -> torch.Tensor:
        """Zeros: the layer adds nothing."""
        return torch.zeros_like(output)
