"""Did a site take part? A site that never ran must be an error, not a gain of zero."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from layersurgery.sites import Site


class Onlooker:
    """Whoever hooks its methods into a model only looks: what modules give is the same with it and without it."""


class Watch(Onlooker):
    """Notes which sites' modules are called while `watching`. Its hooks are its own, and it removes only those."""

    def __init__(self, model: nn.Module, sites: Iterable[Site]) -> None:
        self._modules = {site: [model.get_submodule(path) for path in site.modules] for site in sites}
        self._called: set[int] = set()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch all sites at once: base and variants then run the same code, hooked modules included."""
        modules = {id(module): module for modules in self._modules.values() for module in modules}
        handles = []
        try:
            for module in modules.values():
                handles.append(module.register_forward_pre_hook(self._note))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def forget(self) -> None:
        """Start anew."""
        self._called.clear()

    def ran(self, site: Site) -> bool:
        """Whether one of the site's modules was called since `forget`."""
        return any(id(module) in self._called for module in self._modules[site])

    def parameters(self, site: Site) -> list[nn.Parameter]:
        """The parameters that are in the site's slots now."""
        return [parameter for module in self._modules[site] for parameter in module.parameters()]

    def _note(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        self._called.add(id(module))


class Uses(TorchFunctionMode):
    """Sees whether any of some tensors is handed to a torch function: a parent may use a child's weights uncalled.

    Examples:
        >>> weight = nn.Parameter(torch.ones(2, 2))
        >>> with Uses([weight]) as uses:
        ...     _ = nn.functional.linear(torch.ones(1, 2), weight)
        >>> uses.seen
        True
    """

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._ids = {id(tensor) for tensor in tensors}
        self.seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen = self.seen or self._finds((args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _finds(self, value: Any) -> bool:
        if isinstance(value, torch.Tensor):
            return id(value) in self._ids
        if isinstance(value, dict):
            return any(map(self._finds, value.values()))
        return isinstance(value, list | tuple) and any(map(self._finds, value))
