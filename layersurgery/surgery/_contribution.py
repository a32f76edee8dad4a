"""What a site adds to the residual stream: where that can be changed."""

from __future__ import annotations

from torch import nn

from layersurgery.errors import ModelMismatchError, SurgeryError
from layersurgery.interventions import OutputForm, Skip
from layersurgery.surgery._ledger import Plan
from layersurgery.surgery._step import Step
from layersurgery.surgery._taps import Tap


def contribution(model: nn.Module, step: Step) -> Plan:
    """The tap through which what a site adds can be changed.

    Raises:
        ModelMismatchError: if the module that it names is not there.
        SurgeryError: if it is not known how what the site adds leaves it.
    """
    site = step.site
    if site.slices:
        raise SurgeryError(
            f"{str(site)!r} is a slice of parameters, and not all that a module adds; use what='parameters', which for "
            "heads silences just what they add"
        )
    if isinstance(step.do, OutputForm) and step.do.positions is not None and "positions_first" in site.hazards:
        raise SurgeryError(
            f"the states at {str(site)!r} are [position, sample, width], and positions= is for [sample, position, "
            "width]. Leave positions= out"
        )
    how, _, named = _adds(model, step).partition(":")
    path = _joined(site.path, named) if how == "module" else site.path
    try:
        module = model.get_submodule(path)
    except AttributeError:
        raise ModelMismatchError(
            f"{str(site)!r} adds through {path!r}, which this {type(model).__name__} lacks; select the site anew"
        ) from None
    entry = int(named) if how == "output" and named else 0
    return Plan(taps=(Tap(module, path, step, named if how == "input" else None, _numbered(model, path), entry),))


def _adds(model: nn.Module, step: Step) -> str:
    site = step.site
    if site.role == "layer" or isinstance(step.do, Skip):
        return site.adds if site.adds.startswith("input:") else "input:"
    if site.adds:
        return site.adds
    module = model.get_submodule(site.path)
    if site.role == "module" and not any(True for _ in module.children()):
        return "output"  # a single matrix or norm: what it gives
    raise SurgeryError(
        f"it is not known how what {str(site)!r} adds to the residual stream leaves it: it was selected without seeing "
        "it run. Select it with an example input, layersurgery.select(model, example={...}), or use what='parameters'"
    )


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _numbered(model: nn.Module, path: str) -> nn.Module:
    """The nearest numbered module around a path, which is given the KV cache; else the module itself."""
    names = path.split(".")
    numbered = [end for end in range(1, len(names) + 1) if names[end - 1].isdigit()]
    return model.get_submodule(".".join(names[: max(numbered)]) if numbered else path)
