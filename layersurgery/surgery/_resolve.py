"""From steps to the slots of a real model; what cannot be done is refused here, before anything is touched."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from layersurgery.errors import ModelMismatchError, SurgeryError
from layersurgery.interventions import Place
from layersurgery.sites import Site
from layersurgery.sites._hazards import count_parameters
from layersurgery.surgery._ledger import Slot, original
from layersurgery.surgery._step import Step


def resolve(model: nn.Module, steps: Iterable[Step]) -> list[Slot]:
    """All slots that the steps change in this model.

    Raises:
        ModelMismatchError: if a site is not in the model, or is something else there.
        SurgeryError: if a site cannot be changed by replacing its parameters.
    """
    _refuse_compiled(model)
    return [slot for step in steps for slot in _slots(model, step)]


def _slots(model: nn.Module, step: Step) -> list[Slot]:
    site = step.site
    found: list[Slot] = []
    seen: set[int] = set()
    places: dict[int, Place] = {}  # a parameter in several slots of the site has one place, and so one value
    for path in site.modules:
        top = _module_at(model, path, site)
        prefix = path[len(site.path) :].lstrip(".")
        for name, module in top.named_modules(prefix=prefix):
            if id(module) in seen:
                continue
            seen.add(id(module))
            _refuse_module(module, site)
            for leaf, parameter in module._parameters.items():
                if parameter is not None:
                    full = f"{name}.{leaf}" if name else leaf
                    _refuse_parameter(parameter, full, site, step)
                    place = places.setdefault(id(original(module, leaf)), Place(site.path, full))
                    found.append(Slot(module, leaf, place, step))
    _check_fit(model, site, found)
    return found + (_tied_slots(model, step, found) if step.tied == "everywhere" else [])


def _module_at(model: nn.Module, path: str, site: Site) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        names = [name for name, _ in model.named_modules() if name]
        near = difflib.get_close_matches(path, names, 3, 0.5)
        hint = f"; near misses: {', '.join(map(repr, near))}" if near else ""
        raise ModelMismatchError(
            f"{type(model).__name__} has no module {path!r}, which the surgery is for{hint}. "
            "Make the surgery from `layersurgery.select(model)` on this model"
        ) from None


def _check_fit(model: nn.Module, site: Site, slots: list[Slot]) -> None:
    if not slots:
        raise SurgeryError(
            f"{str(site)!r} has no parameters to replace; select the module that holds the weights (print the "
            f"model, or "
            "use layersurgery.select(model, pattern=...))"
        )
    module = type(model.get_submodule(site.path)).__name__
    if site.module and module != site.module:
        raise ModelMismatchError(
            f"{str(site)!r} is a {module} in this {type(model).__name__}; the surgery was made for a {site.module}. "
            "Select the site anew on this model"
        )
    parameters = count_parameters(model.get_submodule(path) for path in site.modules)
    if site.parameters and parameters != site.parameters:
        raise ModelMismatchError(
            f"{str(site)!r} has {parameters:,} parameters in this {type(model).__name__}; the surgery was made for "
            f"{site.parameters:,}: a model of another size. Select the site anew on this model"
        )


def _tied_slots(model: nn.Module, step: Step, slots: list[Slot]) -> list[Slot]:
    """The other slots, anywhere in the model, that hold a parameter of the site."""
    place = {id(original(slot.module, slot.name)): slot.place for slot in slots}
    inside = {(id(slot.module), slot.name) for slot in slots}
    return [
        Slot(module, name, place[key], step)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and (key := id(original(module, name))) in place and (id(module), name) not in inside
    ]


def _refuse_compiled(model: nn.Module) -> None:
    for module in model.modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise SurgeryError(
                f"{type(module).__name__} is compiled, and a compiled graph may go on using the old weights; apply the "
                "surgery to the model before torch.compile, or to `compiled._orig_mod`"
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise SurgeryError(
                "a TorchScript model cannot be changed; apply the surgery to the Python model before scripting"
            )


def _refuse_module(module: nn.Module, site: Site) -> None:
    recomputed = parametrize.is_parametrized(module) or any(
        type(hook).__name__ in ("WeightNorm", "SpectralNorm") for hook in module._forward_pre_hooks.values()
    )
    if recomputed:
        raise SurgeryError(
            f"{str(site)!r} holds a parametrised weight (weight norm, spectral norm, ...): zeroing what it is "
            f"computed from does "
            "not zero the weight. Call torch.nn.utils.parametrize.remove_parametrizations (or remove_weight_norm) first"
        )


def _refuse_parameter(parameter: nn.Parameter, name: str, site: Site, step: Step) -> None:
    where = f"{site.path}.{name}"
    if isinstance(parameter, UninitializedParameter):
        raise SurgeryError(f"{where} has no shape yet (a lazy module); run the model once first")
    if parameter.is_meta:
        raise SurgeryError(
            f"{where} is on the meta device: its weights are not in memory (offloaded, or the model was built without "
            "weights). Load the model with its weights on a device"
        )
    if not parameter.is_floating_point():
        raise SurgeryError(
            f"{where} is stored as {parameter.dtype} (quantised): {step.do!r} has no meaning on packed integers. "
            "Load the model unquantised"
        )
    if type(parameter.data).__module__.startswith("torch.distributed"):
        raise SurgeryError(
            f"{where} is sharded over processes ({type(parameter.data).__name__}); load the model unsharded"
        )
