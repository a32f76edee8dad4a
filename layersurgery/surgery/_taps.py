"""Changing what comes out of a module: one hook for each module, which runs all surgeries' changes in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from layersurgery.errors import SurgeryError
from layersurgery.interventions import OutputForm
from layersurgery.surgery._clock import Clock
from layersurgery.surgery._outputs import main_tensor, stream, with_tensor
from layersurgery.surgery._step import Step


@dataclass(frozen=True)
class Tap:
    """A module whose output is changed.

    Args:
        module: the module.
        path: its name in the model.
        step: what is done, and for which site.
        stream: the argument of its call that its output holds already, added to what is changed: a keyword, a position,
            or empty for the first one of the output's shape; None: the output itself is changed.
        layer: the module whose calls are counted, where only some positions or steps are asked for.
        entry: another entry of the tuple that it gives, which is changed as well; 0: there is none.
    """

    module: nn.Module
    path: str
    step: Step
    stream: str | None
    layer: nn.Module
    entry: int = 0

    @property
    def is_counted(self) -> bool:
        """Whether only some positions or steps are asked for."""
        do = self.step.do
        return isinstance(do, OutputForm) and (do.positions is not None or do.steps is not None)

    def rewrite(
        self, output: Any, inputs: tuple[tuple[Any, ...], Mapping[str, Any]], clock: Clock | None = None
    ) -> Any:
        """What comes out instead, given the module's arguments and keywords; a clock that ticked, if it is counted."""
        return _rewritten(Entry(0, 0, self.step, self.stream, clock, self.entry), output, *inputs)


@dataclass
class Entry:
    """One change in force; holds no module, so that a model that is dropped is freed."""

    token: int
    order: int
    step: Step
    stream: str | None
    clock: Clock | None = None
    entry: int = 0


@dataclass
class Outlet:
    """The hook of a module; the first of all hooks, so that others see what comes out."""

    entries: list[Entry] = field(default_factory=list[Entry])

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> Any:
        for entry in tuple(self.entries):
            output = _rewritten(entry, output, arguments, keywords)
        return output


def put(taps: Sequence[Tap], token: int) -> None:
    """Put the changes in force."""
    for order, tap in enumerate(taps):
        entry = Entry(token, order, tap.step, tap.stream, entry=tap.entry)
        outlet = _outlet(tap.module)
        if outlet is None:
            outlet = Outlet()
            tap.module.register_forward_hook(outlet, with_kwargs=True, prepend=True)
        outlet.entries.append(entry)
        if tap.is_counted:
            entry.clock = Clock()
            tap.layer.register_forward_pre_hook(entry.clock, with_kwargs=True)


def lift(taps: Iterable[Tap], token: int) -> None:
    """Take away the changes of this token; twice does nothing more."""
    for tap in taps:
        outlet = _outlet(tap.module)
        if outlet is None:
            continue
        for entry in outlet.entries:  # ticking first: an interrupt in between leaves what a second call needs
            if entry.token == token and entry.clock is not None:
                _unhook(entry.clock, tap.layer._forward_pre_hooks, tap.layer._forward_pre_hooks_with_kwargs)
        outlet.entries = [entry for entry in outlet.entries if entry.token != token]
        if not outlet.entries:
            _unhook(outlet, tap.module._forward_hooks, tap.module._forward_hooks_with_kwargs)


def entries(module: nn.Module) -> list[Entry]:
    """The changes in force on a module."""
    outlet = _outlet(module)
    return [] if outlet is None else outlet.entries


def _outlet(module: nn.Module) -> Outlet | None:
    return next((hook for hook in module._forward_hooks.values() if isinstance(hook, Outlet)), None)


def _unhook(hook: Any, hooks: dict[int, Any], with_kwargs: dict[int, bool]) -> None:
    """Take a hook out by what it is: an interrupt may come before a handle for it is in our hands."""
    for key in [key for key, held in hooks.items() if held is hook]:
        with_kwargs.pop(key, None)
        del hooks[key]


def _rewritten(entry: Entry, output: Any, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
    do, site = entry.step.do, entry.step.site
    states = main_tensor(output)
    if states is None:
        raise SurgeryError(f"{str(site)!r} gives no floating-point tensor ({type(output).__name__}) to change")
    mask: Any = True
    if entry.clock is not None and isinstance(do, OutputForm):
        mask = entry.clock.mask(do.positions, do.steps, states)
        if mask is False:
            return output
    if entry.stream is None:
        changed = do.outcome(states)
    else:
        held = stream(entry.stream, arguments, keywords, states)
        changed = held + do.outcome(states - held)
    if changed.shape != states.shape:
        raise SurgeryError(f"{do!r} gave {tuple(changed.shape)} for an output of shape {tuple(states.shape)}")
    also = main_tensor(output[entry.entry]) if entry.entry and entry.entry < len(output) else None
    output = with_tensor(output, states, _where(mask, changed, states))
    return output if also is None else with_tensor(output, also, _where(mask, do.outcome(also), also))


def _where(mask: Any, changed: torch.Tensor, as_it_is: torch.Tensor) -> torch.Tensor:
    return changed if mask is True else torch.where(mask, changed, as_it_is)
