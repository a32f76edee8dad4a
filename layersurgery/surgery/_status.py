"""`status`: what is in force on a model."""

from __future__ import annotations

from typing import Any

from layersurgery.sites import unwrap
from layersurgery.surgery import _ledger
from layersurgery.surgery._step import Step


class Status(tuple[Step, ...]):
    """The steps in force, in the order in which they were applied; empty, and so false, when there are none."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "\n".join(f"{step.site}: {step.do!r}" for step in self) if self else "nothing in force"

    __str__ = __repr__


def status(model: Any) -> Status:
    """What is in force on a model: one step per site and surgery, in order of application.

    Raises:
        SelectionError: if `model` is neither a module nor an nnsight model.

    Examples:
        >>> import torch
        >>> status(torch.nn.Linear(1, 1))
        nothing in force
    """
    return Status(_ledger.in_force(unwrap(model).modules()))
