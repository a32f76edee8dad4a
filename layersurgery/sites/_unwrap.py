"""From what users hold (a module, or an nnsight model around one) to the module itself."""

from __future__ import annotations

from typing import Any

from torch import nn

from layersurgery.errors import SelectionError


def unwrap(model: Any) -> nn.Module:
    """The `torch.nn.Module` behind `model`: itself, or the module that an nnsight model wraps.

    Raises:
        SelectionError: if there is no module in it.

    Examples:
        >>> unwrap(nn.Linear(2, 3))
        Linear(in_features=2, out_features=3, bias=True)
    """
    if isinstance(model, nn.Module):
        return model
    wrapped = getattr(model, "_module", None)  # nnsight keeps the module of every envoy here
    if isinstance(wrapped, nn.Module):
        return wrapped
    raise SelectionError(
        f"expected a torch.nn.Module or an nnsight model around one, got {type(model).__name__}; "
        "pass the loaded model itself, not its name or its pipeline"
    )
