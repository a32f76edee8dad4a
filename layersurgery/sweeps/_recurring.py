"""Surgeries that are put in force on the same model again and again: what they change there is found once."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import nn

from layersurgery.surgery import Handle, Surgery, _ledger
from layersurgery.surgery._resolve import resolve
from layersurgery.surgery._surgery import Block
from layersurgery.sweeps._prefix_values import Counted
from layersurgery.sweeps._prefix_zeros import SilentParts


@dataclass(eq=False)
class Applied:
    """What a surgery changes in a model.

    Args:
        plan: the places.
        modules: the modules of its sites, those that hold the places, and those of which calls are counted.
        values: what is put there, and the counts of writes into it; None: that is computed each time, since it takes
            memory.
    """

    plan: _ledger.Plan
    modules: frozenset[nn.Module]
    values: Counted | None = None
    _silent: SilentParts | None = None

    @property
    def recurs(self) -> bool:
        """Whether it was in force, and its values, and which modules are silent then, will be the same again."""
        return self.values is not None and self._silent is not None

    @property
    def silent(self) -> SilentParts:
        """Those of the modules that are zeros only, while it is in force."""
        if self._silent is None or self.values is None:
            self._silent = SilentParts.among(self.modules)
        return self._silent


class Recurring:
    """Puts surgeries in force on a model, for as long as nothing else changes there.

    Args:
        model: the model itself.

    Examples:
        >>> import layersurgery as ls
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> cut, recurring = ls.Surgery(at=ls.select(model, pattern="0"), do=ls.Zero()), Recurring(model)
        >>> for _ in range(2):
        ...     with recurring.in_force(cut, [model[0]]) as applied:
        ...         assert not model[0].weight.any()
        >>> applied.modules
        frozenset({Linear(in_features=2, out_features=2, bias=True)})
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._known: dict[Surgery, Applied] = {}

    def known(self, surgery: Surgery) -> Applied | None:
        """What a surgery changes that was in force before."""
        return self._known.get(surgery)

    def in_force(self, surgery: Surgery, modules: Iterable[nn.Module]) -> AbstractContextManager[Applied]:
        """The same as `surgery(model)`, which tells what is changed; `modules` are those of its sites."""
        known = self._known.get(surgery)
        if known is None:
            plan = resolve(self._model, surgery.steps)
            tapped = (part for tap in plan.taps for part in (tap.module, tap.layer))
            changed = frozenset((*modules, *(slot.module for slot in plan.slots), *tapped))
            known = self._known[surgery] = Applied(plan, changed)
        return Block(lambda: _attach(known), known)


def _attach(known: Applied) -> Handle:
    kept = known.values
    if kept is not None and kept.are_intact:
        values = kept.tensors
    else:
        values = _ledger.values(known.plan)
        small = all(not any(value.stride()) for value in values)  # single numbers, seen in the shape of a matrix
        known.values = Counted.now(values) if small else None
    return Handle(_ledger.put(known.plan, values), known.plan)
