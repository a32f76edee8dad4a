"""Permanent surgery."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from layersurgery.errors import SurgeryError
from layersurgery.surgery import _ledger
from layersurgery.surgery._resolve import resolve
from layersurgery.surgery._step import Step


def merge_(model: nn.Module, steps: Iterable[Step]) -> None:
    """Put the steps' tensors, with memory of their own, in place of the parameters for good; all or nothing."""
    plan = resolve(model, tuple(steps))
    if plan.taps:
        tap = plan.taps[0]
        raise SurgeryError(
            f"{tap.step} is done through the output of {tap.path}, and no change of weights says the same; merge an "
            "intervention with what='parameters', on a model with plain weights"
        )
    slots = plan.slots
    active = _ledger.in_force(model.modules())
    if active:
        raise SurgeryError(
            f"a surgery is in force on this model ({active[0]}); leave its block or remove it before merging"
        )
    _refuse_tied(model, slots)
    token = _ledger.put(plan)
    try:
        merged = {id(p): _with_memory(p) for slot in slots if (p := slot.module._parameters[slot.name]) is not None}
        final = [(slot, merged[id(slot.module._parameters[slot.name])]) for slot in slots]
    finally:
        _ledger.lift(token, plan)
    for slot, parameter in final:
        _ledger.set_parameter(slot.module, slot.name, parameter)


def _with_memory(parameter: nn.Parameter) -> nn.Parameter:
    with torch.inference_mode(False), torch.no_grad():
        return nn.Parameter(parameter.detach().clone(memory_format=torch.contiguous_format), parameter.requires_grad)


def _refuse_tied(model: nn.Module, slots: tuple[_ledger.Slot, ...]) -> None:
    inside = {(id(slot.module), slot.name) for slot in slots}
    merged = {id(slot.module._parameters[slot.name]): slot for slot in slots}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if id(parameter) in merged and (id(module), name) not in inside:
                place = merged[id(parameter)].target.place
                raise SurgeryError(
                    f"{place.site}.{place.name} is tied to {path}.{name}: a saved model would be tied "
                    "again on loading and lose the merge. Use Surgery(..., tied='everywhere'), or untie the model first"
                )
