"""What a surgery at a site must be read with care for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from torch import nn
from torch.nn.parameter import UninitializedParameter

from layersurgery.sites._roles import is_stream_norm
from layersurgery.sites._site import Site


class Hazards:
    """Reads hazards of many sites of one model; what concerns the whole model is looked up once."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        everywhere = list(model.named_modules(remove_duplicate=False))
        self._uses = Counter(id(module) for _, module in everywhere)
        self._holders = Counter(
            id(parameter)
            for _, module in model.named_modules()
            for parameter in module._parameters.values()
            if parameter is not None
        )

    def of(self, site: Site) -> tuple[str, ...]:
        """The hazards of a site, in a fixed order."""
        inside = [(name, module) for top in self._tops(site) for name, module in top.named_modules()]
        held = Counter(id(p) for _, module in inside for p in module._parameters.values() if p is not None)
        weights = [p for top in self._tops(site) for p in top.parameters()]
        found = {
            "tied": any(self._holders[key] > count for key, count in held.items()),
            "shared": any(self._uses[id(top)] > 1 for top in self._tops(site)),
            "norm_inside": site.role in ("attention", "mlp") and any(is_stream_norm(*pair) for pair in inside),
            "meta": any(p.is_meta for p in weights),
            "quantized": any(not p.is_floating_point() for p in weights),
        }
        return tuple(name for name, present in found.items() if present)

    def parameters(self, site: Site) -> int:
        """How many parameter entries the site has."""
        return count_parameters(self._tops(site))

    def _tops(self, site: Site) -> list[nn.Module]:
        return [self._model.get_submodule(path) for path in site.modules]


def count_parameters(modules: Iterable[nn.Module]) -> int:
    """Parameter entries in these modules; a lazy module that has not run yet has none."""
    return sum(
        p.numel() for module in modules for p in module.parameters() if not isinstance(p, UninitializedParameter)
    )
