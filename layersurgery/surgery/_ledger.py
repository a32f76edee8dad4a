"""The heart: putting other tensors in place of parameters, and the very same parameters back; changing outputs, too.

A *slot* is one entry of one module's parameter table. While surgeries are in force, the ledger remembers for each slot
the parameter that was there first and, in order, what each surgery put on top of it. The value in the slot is always
that of the surgeries in force, applied in order to the original; so surgeries can be lifted in any order. Original
tensors are never written to: restoring puts the same object back.
"""

from __future__ import annotations

import itertools
import threading
import warnings
import weakref
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from layersurgery.errors import LayerSurgeryWarning, SurgeryError
from layersurgery.interventions import Place
from layersurgery.interventions._base import plain
from layersurgery.sites import Slice
from layersurgery.surgery import _taps
from layersurgery.surgery._step import Step
from layersurgery.surgery._taps import Tap


class Target(NamedTuple):
    """What is to be done to one parameter: all of it, or these slices; `solid`: with memory laid out like its own."""

    step: Step
    place: Place
    slices: tuple[Slice, ...] = ()
    solid: bool = False


class Slot(NamedTuple):
    """One entry of a module's parameter table, and what is to be done there."""

    module: nn.Module
    name: str
    target: Target


@dataclass(frozen=True)
class Plan:
    """All that a surgery changes in one model."""

    slots: tuple[Slot, ...] = ()
    taps: tuple[Tap, ...] = ()

    def __add__(self, other: Plan) -> Plan:
        return Plan(self.slots + other.slots, self.taps + other.taps)

    def __bool__(self) -> bool:
        return bool(self.slots or self.taps)


class _Overlay(NamedTuple):
    token: int
    order: int
    target: Target
    value: nn.Parameter


@dataclass
class _State:
    original: nn.Parameter
    overlays: list[_Overlay]

    def top(self) -> nn.Parameter:
        return self.overlays[-1].value if self.overlays else self.original


# Keyed weakly by module, and nothing in a value refers to a module: a model that is dropped takes its entries along.
_states: weakref.WeakKeyDictionary[nn.Module, dict[str, _State]] = weakref.WeakKeyDictionary()
_lock = threading.RLock()
_tokens = itertools.count(1)


def put(plan: Plan, values: Sequence[torch.Tensor] | None = None) -> int:
    """Put all of a plan in force, or nothing; returns the token that lifts it again.

    Args:
        plan: the plan.
        values: what it puts in place of each slot's parameter, as `values` told before; None: that is computed.

    Raises:
        SurgeryError: if an intervention gives a tensor that does not fit. What an intervention raises passes through.
    """
    with _lock:
        token = next(_tokens)
        overlays = _prepare(plan.slots, token, values)
        try:
            for slot, overlay in zip(plan.slots, overlays, strict=True):
                states = _states.setdefault(slot.module, {})
                if slot.name not in states:
                    states[slot.name] = _State(_parameter(slot.module, slot.name), [])
                state = states[slot.name]
                state.overlays.append(overlay)
                set_parameter(slot.module, slot.name, overlay.value)
            _taps.put(plan.taps, token)
        except BaseException:  # an interrupt too: the model must not stay half changed
            lift(token, plan)
            raise
        return token


def lift(token: int, plan: Plan) -> None:
    """Take away what `put` put there under this token. Doing it twice does nothing more."""
    try:
        _lift(token, plan)
    except BaseException:  # a second interrupt must not stop the restoration half-way
        _lift(token, plan)
        raise


def values(plan: Plan) -> list[torch.Tensor]:
    """What a plan puts in place of each slot's parameter as it is now; raises what `put` does."""
    return [overlay.value.detach() for overlay in _prepare(plan.slots, 0, None)]


def original(module: nn.Module, name: str) -> nn.Parameter:
    """The parameter that a slot holds when nothing is in force. What is tied to what is read from these."""
    state = _states.get(module, {}).get(name)
    return _parameter(module, name) if state is None else state.original


def in_force(modules: Iterable[nn.Module]) -> list[Step]:
    """The steps in force on these modules, each once per surgery, in the order in which they were applied."""
    with _lock:
        found: list[tuple[int, int, Step]] = []
        for module in modules:
            for state in _states.get(module, {}).values():
                found.extend((overlay.token, overlay.order, overlay.target.step) for overlay in state.overlays)
            found.extend((entry.token, entry.order, entry.step) for entry in _taps.entries(module))
    first: dict[tuple[int, int], Step] = {}
    for token, _, step in sorted(found, key=lambda item: item[:2]):
        first.setdefault((token, id(step)), step)
    return list(first.values())


def _prepare(slots: Sequence[Slot], token: int, values: Sequence[torch.Tensor] | None) -> list[_Overlay]:
    """Every new tensor, before any slot is touched. One parameter in several slots of a site stays one parameter."""
    current: dict[tuple[int, str], nn.Parameter] = {}
    made: dict[tuple[int, int], nn.Parameter] = {}
    overlays = []
    with _ordinary():
        for order, slot in enumerate(slots):
            key = (id(slot.module), slot.name)
            below = current[key] if key in current else _parameter(slot.module, slot.name)
            shared = (id(below), id(slot.target.step))
            if shared not in made:
                value = _replacement(below.detach(), slot.target) if values is None else values[order]
                made[shared] = _in_place_of(below, value)
            current[key] = made[shared]
            overlays.append(_Overlay(token, order, slot.target, made[shared]))
    return overlays


def _ordinary() -> AbstractContextManager[object]:
    """A surgery may be entered inside inference mode; its tensors must be ordinary ones, usable after it as well."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


def _in_place_of(below: nn.Parameter, value: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=below.requires_grad)  # detaches it


def _replacement(values: torch.Tensor, target: Target) -> torch.Tensor:
    value = _sliced(values, target) if target.slices else _checked(values, target.step, target.place)
    if target.solid and type(values) is torch.Tensor:  # a packed one has no layout to keep: compiled anew
        value = torch.empty_like(values).copy_(value)
    elif _same_memory(value, values):
        value = value.clone()  # handing back the parameter's own memory would let later writes reach the original
    return value


def _checked(values: torch.Tensor, step: Step, place: Place) -> torch.Tensor:
    value = step.do.replace(values, place)
    expected = (values.shape, values.dtype, values.device)
    if not isinstance(value, torch.Tensor) or (value.shape, value.dtype, value.device) != expected:
        got = (value.shape, value.dtype, value.device) if isinstance(value, torch.Tensor) else type(value).__name__
        raise SurgeryError(
            f"{step.do!r} gave {got} for {place.site}.{place.name}, which needs {expected}; "
            "an intervention must keep shape, dtype and device"
        )
    return value


def _sliced(values: torch.Tensor, target: Target) -> torch.Tensor:
    """A copy in which each slice is what the intervention gives for it; the slices of one parameter act in order."""
    value = plain(values).clone(memory_format=torch.preserve_format)
    for piece in target.slices:
        entries = torch.cat([torch.arange(first, end, device=values.device) for first, end in piece.ranges])
        place = Place(target.place.site, f"{target.place.name}[{piece.dim}:{piece.ranges}]")
        new = _checked(value.index_select(piece.dim, entries), target.step, place)
        value.index_copy_(piece.dim, entries, new.contiguous())
    return value


def _same_memory(value: torch.Tensor, below: torch.Tensor) -> bool:
    plain = type(value) is torch.Tensor and type(below) is torch.Tensor  # subclasses pack theirs elsewhere
    return plain and value.untyped_storage().data_ptr() == below.untyped_storage().data_ptr()


def _lift(token: int, plan: Plan) -> None:
    moved = None
    with _lock:
        _taps.lift(plan.taps, token)
        for slot in plan.slots:
            states = _states.get(slot.module)
            state = None if states is None else states.get(slot.name)
            if states is None or state is None:
                continue
            if token in [overlay.token for overlay in state.overlays]:
                moved = moved or _moved(state)
                state.overlays = _without(state, token)
            set_parameter(slot.module, slot.name, state.top())
            if not state.overlays:
                del states[slot.name]
            if not states:
                _states.pop(slot.module, None)
    if moved is not None:
        warnings.warn(
            f"the model was moved or cast ({moved}) while a surgery was in force; the parameters that came back are as "
            "they were before it. Move the model again, or move it outside the block",
            LayerSurgeryWarning,
            stacklevel=4,
        )


def _moved(state: _State) -> str | None:
    """How what is in force differs from the original in place or kind: `model.to(...)` cannot reach the original."""
    was, now = state.original, state.top()
    if (was.dtype, was.device) == (now.dtype, now.device):
        return None
    return f"{was.dtype} on {was.device} to {now.dtype} on {now.device}"


def _without(state: _State, token: int) -> list[_Overlay]:
    """The other surgeries' overlays; what lay above the lifted one now acts on what lay below it."""
    kept: list[_Overlay] = []
    moved = False
    for overlay in state.overlays:
        if overlay.token == token:
            moved = True
            continue
        below = kept[-1].value if kept else state.original
        kept.append(_rebased(overlay, below) if moved else overlay)
    return kept


def _rebased(overlay: _Overlay, below: nn.Parameter) -> _Overlay:
    try:
        with _ordinary():
            return overlay._replace(value=_in_place_of(below, _replacement(below.detach(), overlay.target)))
    except Exception as error:  # a restoration must go through: the old value stays, and the user hears of it
        warnings.warn(
            f"{overlay.target.step} could not be computed anew after a surgery below it was lifted ({error}); it keeps "
            "its value",
            LayerSurgeryWarning,
            stacklevel=2,
        )
        return overlay


def _parameter(module: nn.Module, name: str) -> nn.Parameter:
    parameter = module._parameters[name]
    assert parameter is not None  # slots are made of existing parameters only
    return parameter


def set_parameter(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Put a parameter into a slot that exists, whatever was there."""
    if isinstance(module, nn.RNNBase):
        setattr(module, name, parameter)  # keeps the flat weight list that its kernels read in step
    else:
        module._parameters[name] = parameter  # in place: the order of the state dict stays
