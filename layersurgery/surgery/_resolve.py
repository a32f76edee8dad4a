"""From steps to what they change in a real model; what cannot be done is refused here, before anything is touched."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from torch import nn
from torch.nn.parameter import is_lazy

from layersurgery._foreign import is_untouched, runs_as
from layersurgery.errors import ModelMismatchError, SurgeryError
from layersurgery.sites import Site
from layersurgery.surgery._compiled import is_blind_to_hooks, is_compiled
from layersurgery.surgery._contribution import contribution
from layersurgery.surgery._elsewhere import elsewhere, manages
from layersurgery.surgery._ledger import Plan
from layersurgery.surgery._parameters import parameters
from layersurgery.surgery._step import Step


def resolve(model: nn.Module, steps: Iterable[Step]) -> Plan:
    """All that the steps change in this model.

    Raises:
        ModelMismatchError: if a site is not in the model, or is something else there.
        SurgeryError: if a step cannot be done on this model.
    """
    plans = [_planned(model, step) for step in steps]
    return plans[0] if len(plans) == 1 else sum(plans, Plan())


def _planned(model: nn.Module, step: Step) -> Plan:
    site = step.site
    if step.do.roles and site.role not in step.do.roles:
        raise SurgeryError(
            f"{step.do!r} is for sites of role {' or '.join(map(repr, step.do.roles))}, and {str(site)!r} is of role "
            f"{site.role!r}: select(model, {step.do.roles[0]!r}), or use Zero(what='contribution')"
        )
    around, tops = _around(model, site)
    inside = _inside(site, tops)
    strange = [one for one in (*around, *(module for _, module in inside)) if not is_untouched(one)]
    _refuse_copies(strange)
    compiled = is_compiled(strange)
    _check_identity(model, site, tops[0] if not site.parts else model.get_submodule(site.path), inside)
    managed = next((where for one in strange if one in around and (where := manages(one))), "")
    if step.do.what == "contribution":
        _refuse_without_weights(site, inside, managed)
        plan = contribution(model, step)
    else:
        plan = parameters(model, step, inside, strange, solid=compiled, managed=managed)
    if plan.taps and is_blind_to_hooks(around, compiled):
        weights = ", use what='parameters'" if step.do.what == "contribution" else ""
        raise SurgeryError(
            f"{str(site)!r} is in a compiled model, whose code takes no notice of hooks that come after it, and "
            f"{step.do!r} is done by one here. Apply it to the model before torch.compile{weights}, or drop what "
            "torch.compile gave and call torch._dynamo.reset()"
        )
    return plan


def _refuse_without_weights(site: Site, inside: Iterable[tuple[str, nn.Module]], managed: str) -> None:
    for name, module in inside:
        empty = any(p is not None and p.is_meta for p in module._parameters.values())
        if empty and not elsewhere(module, managed) and not any(manages(one) for _, one in inside):
            raise SurgeryError(
                f"{str(site)!r} has no weights (those of {name or site.path!r} are on the meta device), and gives "
                "nothing that could be changed. Load the model with its weights on a device"
            )


def _refuse_copies(holders: Iterable[nn.Module]) -> None:
    for holder in holders:
        form = runs_as(type(holder))
        if form == "script":
            raise SurgeryError(
                "a TorchScript model cannot be changed; apply the surgery to the Python model before scripting"
            )
        if form == "copies" and len(vars(holder)["device_ids"]) > 1:
            raise SurgeryError(
                "DataParallel copies the model to other devices in each pass, where a surgery is not checked; apply it "
                "to `model.module` and run that on one device"
            )


def _around(model: nn.Module, site: Site) -> tuple[list[nn.Module], list[nn.Module]]:
    """The model and all modules on the way to the site's own; and these."""
    found, tops = [model], list[nn.Module]()
    for path in site.modules:
        module = model
        for name in path.split(".") if path else ():
            module = _child(model, module, name, path)
            found.append(module)
        tops.append(module)
    return found, tops


def _inside(site: Site, tops: Iterable[nn.Module]) -> list[tuple[str, nn.Module]]:
    """The modules whose parameters are the site's, each once, with their names relative to its path."""
    found: dict[nn.Module, str] = {}
    for path, top in zip(site.modules, tops, strict=True):
        for name, module in top.named_modules(prefix=path[len(site.path) :].lstrip(".")):
            found.setdefault(module, name)
    return [(name, module) for module, name in found.items()]


def _child(model: nn.Module, module: nn.Module, name: str, path: str) -> nn.Module:
    child = module._modules.get(name) or getattr(module, name, None)  # wrappers pass the names of what is in them on
    if isinstance(child, nn.Module):
        return child
    names = [name for name, _ in model.named_modules() if name]
    near = difflib.get_close_matches(path, names, 3, 0.5)
    hint = f"; near misses: {', '.join(map(repr, near))}" if near else ""
    raise ModelMismatchError(
        f"{type(model).__name__} has no module {path!r}, which the surgery is for{hint}. "
        "Make the surgery from `layersurgery.select(model)` on this model"
    )


def _check_identity(model: nn.Module, site: Site, module: nn.Module, inside: list[tuple[str, nn.Module]]) -> None:
    found = type(module)
    # sharding puts a class of its own in front
    if site.module and site.module != found.__name__ and site.module not in [cls.__name__ for cls in found.__mro__]:
        raise ModelMismatchError(
            f"{str(site)!r} is a {found.__name__} in this {type(model).__name__}; the surgery was made for a "
            f"{site.module}. Select the site anew on this model"
        )
    if not site.parameters or site.slices:
        return
    held = _count(one for _, one in inside)
    if held == site.parameters or "quantized" in site.hazards:
        return
    if not any(elsewhere(one, "") for _, one in inside):  # packing changes how many entries there are
        raise ModelMismatchError(
            f"{str(site)!r} has {held:,} parameters in this {type(model).__name__}; the surgery was made for "
            f"{site.parameters:,}: a model of another size. Select the site anew on this model"
        )


def _count(modules: Iterable[nn.Module]) -> int:
    """Parameter entries of these modules themselves, each parameter once."""
    own = {id(p): p for module in modules for p in module._parameters.values() if p is not None}
    return sum(0 if is_lazy(p) else p.numel() for p in own.values())
