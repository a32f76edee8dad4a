"""For your own tests: prove that a model is restored, and draw random surgeries on it (hypothesis, an extra)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from layersurgery.testing._snapshot import Snapshot, assert_restored, restored

if TYPE_CHECKING:
    from layersurgery.testing._strategies import Block, PlannedFailure, blocks, contributions, interventions, surgeries

__all__ = [
    "Snapshot",
    "assert_restored",
    "restored",
    "Block",
    "PlannedFailure",
    "blocks",
    "interventions",
    "contributions",
    "surgeries",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'layersurgery.testing' has no attribute {name!r}")
    try:
        from layersurgery.testing import _strategies
    except ModuleNotFoundError as error:
        raise ImportError(
            f"layersurgery.testing.{name} needs hypothesis: pip install 'layersurgery[testing]'"
        ) from error
    return getattr(_strategies, name)
