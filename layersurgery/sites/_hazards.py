"""What a surgery at a site must be read with care for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from layersurgery._foreign import offload_hooks, runs_compiled
from layersurgery.sites._behaviour import Seen, stream_norms
from layersurgery.sites._shadow import is_packed
from layersurgery.sites._site import Site

HAZARDS: dict[str, str] = {
    "tied": "shares a parameter with another module; it changes here only, unless asked otherwise",
    "shared": "the module runs at several places of the model; it is changed at all of them",
    "norm_inside": "a norm on the residual stream is among its parameters; with parameters of zero the stream is wiped "
    "out there, not just what the site adds to it",
    "residual_inside": "its output holds the residual stream already; an output of zero would wipe that out as well",
    "adds_constant": "with all parameters zero it still adds something to the residual stream",
    "feeds_others": "its parameters act by a way besides what it adds to the residual stream (position biases, keys "
    "and values that other layers read, a bias that its layer adds); with parameters of zero that changes too",
    "unseen": "it was not seen at work within the whole model, so that what else reads its parameters is not known; "
    "select(model, example={...}) would show it",
    "positions_first": "its states are [position, sample, width], so that positions= cannot be told from samples",
    "meta": "weights are not in memory; load the model with its weights before a surgery",
    "offloaded": "weights are brought to the device for each forward, and are elsewhere in between",
    "quantized": "weights are packed in few bits; parameters cannot be replaced by others, the output can",
    "sharded": "weights are spread over several processes",
    "compiled": "runs as a compiled graph, which may not see what is changed later",
}


class Hazards:
    """Reads hazards of many sites of one model; what concerns the whole model is looked up once.

    Args:
        model: the model.
        seen: what was seen of a module when it ran.
    """

    def __init__(self, model: nn.Module, seen: Seen) -> None:
        self._model = model
        self._seen = seen
        everywhere = list(model.named_modules(remove_duplicate=False))
        self._uses = Counter(id(module) for _, module in everywhere)
        self._compiled = {path for path, module in everywhere if runs_compiled(module)}
        self._holders = Counter(
            id(parameter)
            for _, module in model.named_modules()
            for parameter in module._parameters.values()
            if parameter is not None
        )

    def of(self, site: Site) -> tuple[str, ...]:
        """The hazards of a site that can be read from its modules and from how it adds."""
        inside = [(name, module) for top in self._tops(site) for name, module in top.named_modules()]
        held = Counter(id(p) for _, module in inside for p in module._parameters.values() if p is not None)
        weights = [p for top in self._tops(site) for p in top.parameters()]
        found = {
            "tied": any(self._holders[key] > count for key, count in held.items()),
            "shared": any(self._uses[id(top)] > 1 for top in self._tops(site)),
            "norm_inside": site.role in ("attention", "mlp") and self._ends_in_a_norm(site),
            "residual_inside": site.role in ("attention", "mlp") and site.adds.startswith("input:"),
            "meta": any(p.is_meta for p in weights),
            "offloaded": any(offload_hooks(module) for module in (*self._around(site), *(one for _, one in inside))),
            "quantized": any(map(_is_quantized, weights)) or any(is_packed(module) for _, module in inside),
            "sharded": any(type(p.data).__module__.startswith("torch.distributed") for p in weights),
            "compiled": any(self._runs_compiled(path) for path in site.modules),
        }
        return tuple(name for name, present in found.items() if present)

    def parameters(self, site: Site) -> int:
        """How many parameter entries the site has."""
        return count_parameters(self._tops(site))

    def _ends_in_a_norm(self, site: Site) -> bool:
        """A norm before what is added, or on that alone, leaves the stream as it is."""
        passed_on = site.adds.startswith(("output", "input:"))
        return not passed_on and any(bool(stream_norms(top, self._seen)) for top in self._tops(site))

    def _tops(self, site: Site) -> list[nn.Module]:
        return [self._model.get_submodule(path) for path in site.modules]

    def _around(self, site: Site) -> list[nn.Module]:
        """Modules around a site; accelerate may bring in the weights of whole blocks at once."""
        names = site.path.split(".") if site.path else []
        return [self._model.get_submodule(".".join(names[:end])) for end in range(len(names))]

    def _runs_compiled(self, path: str) -> bool:
        return any(
            not at or path == at or path.startswith(at + ".") or at.startswith(path + ".") for at in self._compiled
        )


def count_parameters(modules: Iterable[nn.Module]) -> int:
    """Parameter entries in these modules; a lazy module that has not run yet has none."""
    return sum(
        p.numel() for module in modules for p in module.parameters() if not isinstance(p, UninitializedParameter)
    )


def _is_quantized(parameter: torch.Tensor) -> bool:
    """Integers, 8-bit floats, or a tensor class that keeps such inside."""
    if isinstance(parameter, UninitializedParameter):
        return False
    if not parameter.is_floating_point() or parameter.dtype.itemsize == 1:
        return True
    names = getattr(parameter, "__tensor_flatten__", lambda: ((), None))()[0]
    inner = [getattr(parameter, name, None) for name in names]
    return any(isinstance(one, torch.Tensor) and one.dtype.itemsize == 1 for one in inner)
