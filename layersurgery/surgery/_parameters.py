"""A site's parameters: the slots that hold them, or, where weights are not plain tensors, the modules that use them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from layersurgery.errors import ModelMismatchError, SurgeryError
from layersurgery.interventions import Intervention, Place
from layersurgery.sites import Site, Slice
from layersurgery.surgery._elsewhere import (
    divides_by_its_size,
    elsewhere,
    holds_plain_weights,
    manages,
    silenced_by_zeros,
)
from layersurgery.surgery._ledger import Plan, Slot, Target, original
from layersurgery.surgery._step import Step
from layersurgery.surgery._taps import Tap


def parameters(
    model: nn.Module,
    step: Step,
    inside: Iterable[tuple[str, nn.Module]],
    strange: Collection[nn.Module],
    *,
    solid: bool,
    managed: str = "",
) -> Plan:
    """All slots of a site, or taps on the modules whose weights cannot be replaced.

    Args:
        model: the model.
        step: the step.
        inside: the site's modules, each once, with their names relative to its path.
        strange: those of them on which other libraries have left something (see `is_untouched`).
        solid: give the new tensors memory of their own, laid out like the parameter's: compiled code is made for it.
        managed: where a module around the site keeps the weights between passes, in words; empty: there is none.

    Raises:
        ModelMismatchError: if the site's slices do not fit.
        SurgeryError: if the site holds no parameters, or some that can be reached in neither way.
    """
    site = step.site
    slots: list[Slot] = []
    taps: list[Tap] = []
    places: dict[int, Place] = {}  # a parameter in several slots of the site has one place, and so one value
    wanted = _by_parameter(site)
    managers = [("", managed)] if managed else []
    done: list[str] = []  # modules whose output is changed for all that is in them
    for name, module in inside:
        if done and any(_is_in(name, above) for above in done):
            continue
        if module in strange:
            _refuse_computed(module, site)
            if where := manages(module):
                managers.append((name, where))
        where = ""
        if managers or not holds_plain_weights(module):
            _refuse_lazy(module, site)
            where = elsewhere(module, next((where for above, where in managers if _is_in(name, above)), ""))
        if (where and not wanted) or (divides_by_its_size(module) and _silences(step.do)):
            taps.append(_tap(module, name, step, where))
            done.append(name)
            continue
        for leaf, parameter in module._parameters.items():
            full = f"{name}.{leaf}" if name else leaf
            slices = wanted.pop(full, ())
            if parameter is None or (site.slices and not slices):
                continue
            _check(parameter, slices, full, site, where)
            place = places.setdefault(id(original(module, leaf)), Place(site.path, full))
            slots.append(Slot(module, leaf, Target(step, place, slices, solid)))
    if wanted:
        raise ModelMismatchError(
            f"{str(site)!r} has no parameter {next(iter(wanted))!r} in this {type(model).__name__}; select it anew"
        )
    if not slots and not taps:
        raise SurgeryError(
            f"{str(site)!r} has no parameters to replace; select the module that holds the weights (print the model, "
            "or use layersurgery.select(model, pattern=...))"
        )
    if step.tied == "everywhere":
        _refuse_tied(taps)
        slots += _tied_slots(model, slots)
    return Plan(tuple(slots), tuple(taps))


def _by_parameter(site: Site) -> dict[str, tuple[Slice, ...]]:
    found: defaultdict[str, tuple[Slice, ...]] = defaultdict(tuple)
    for piece in site.slices:
        found[piece.parameter] += (piece,)
    return dict(found)


def _check(parameter: nn.Parameter, slices: tuple[Slice, ...], name: str, site: Site, where: str) -> None:
    if where:
        raise SurgeryError(
            f"{site.path}.{name} is {where}: a slice of it cannot be replaced. Load the model with plain weights on a "
            "device"
        )
    if parameter.is_meta:
        raise SurgeryError(
            f"{site.path}.{name} is on the meta device: the model was built without weights. Load the model with its "
            "weights on a device"
        )
    for piece in slices:
        size = parameter.shape[piece.dim] if piece.dim < parameter.dim() else 0
        if not all(0 <= first < end <= size for first, end in piece.ranges):
            raise ModelMismatchError(
                f"{str(site)!r} is entries {piece.ranges} of dimension {piece.dim} of {name}, which has shape "
                f"{tuple(parameter.shape)} in this model. Select the site anew on this model"
            )


def _tied_slots(model: nn.Module, slots: list[Slot]) -> list[Slot]:
    """The other slots, anywhere in the model, that hold a parameter of the site."""
    target = {id(original(slot.module, slot.name)): slot.target for slot in slots}
    inside = {(id(slot.module), slot.name) for slot in slots}
    return [
        Slot(module, name, target[key])
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and (key := id(original(module, name))) in target and (id(module), name) not in inside
    ]


def _refuse_tied(taps: list[Tap]) -> None:
    if taps:
        raise SurgeryError(
            f"tied='everywhere' with {taps[0].path}, whose weights are reached through its output only: what is tied "
            "to them elsewhere would not change. Leave `tied` out, or load the model with plain weights on a device"
        )


def _is_in(name: str, above: str) -> bool:
    return not above or name == above or name.startswith(above + ".")


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def _silences(do: Intervention) -> bool:
    """Whether nothing comes out of a module after it."""
    return type(do).outcome is not Intervention.outcome and not do.outcome(torch.ones(1)).any()


def _tap(module: nn.Module, name: str, step: Step, where: str) -> Tap:
    """The module's output instead of its weights; the same thing for an intervention that knows what comes out."""
    path = _joined(step.site.path, name)
    if where and type(step.do).outcome is Intervention.outcome:
        raise SurgeryError(
            f"the weights of {path} are {where}, and {step.do!r} needs their values. Zero() and Scale() work there, "
            "through the module's output; or load the model with plain weights on a device"
        )
    if where and not silenced_by_zeros(module):
        raise SurgeryError(
            f"the weights of {path} ({type(module).__name__}) are {where}, and what the module gives is not simply "
            "proportional to them. Use what='contribution', or load the model with plain weights on a device"
        )
    return Tap(module, path, step, None, module)


def _refuse_lazy(module: nn.Module, site: Site) -> None:
    for parameter in module._parameters.values():
        if parameter is not None and is_lazy(parameter):
            raise SurgeryError(
                f"{str(site)!r} has parameters without a shape yet (a lazy module); run the model once first"
            )


def _refuse_computed(module: nn.Module, site: Site) -> None:
    hooks = {type(hook).__name__ for hook in module._forward_pre_hooks.values()}
    within = "parametrizations" in module._modules or isinstance(module, ParametrizationList)
    if within or "WeightNorm" in hooks or "SpectralNorm" in hooks:
        raise SurgeryError(
            f"{str(site)!r} holds a parametrised weight (weight norm, spectral norm, ...): zeroing what it is "
            "computed from does not zero the weight. Call torch.nn.utils.parametrize.remove_parametrizations (or "
            "remove_weight_norm) first, or use what='contribution'"
        )
