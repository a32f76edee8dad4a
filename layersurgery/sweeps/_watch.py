"""Did a site take part? A site that never ran must be an error, not a gain of zero."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from layersurgery.sites import Site
from layersurgery.sweeps._prefix_state import Onlooker, cannot_share, cannot_share_here
from layersurgery.sweeps._stand_ins import Forward, StandIns


class Watch(Onlooker):
    """Notes which sites' modules are called.

    They are the same modules with it as without, so that code which looks for hooks (torch's own encoder layers run in
    another way where there are any) runs as ever. Only models whose modules take no forward of others are hooked, all
    sites at once: base and variants then run the same code.

    Args:
        model: the model itself.
        sites: the sites.
    """

    def __init__(self, model: nn.Module, sites: Iterable[Site]) -> None:
        self._modules = {site: [model.get_submodule(path) for path in site.modules] for site in sites}
        self._called: set[nn.Module] = set()
        self._hooks = bool(cannot_share(model.modules()) or cannot_share_here(model))

    @contextmanager
    def throughout(self) -> Iterator[None]:
        """Around a run: puts the hooks on, where there must be any. They are its own, and it removes only those."""
        modules = dict.fromkeys(module for modules in self._modules.values() for module in modules)
        handles = []
        try:
            for module in modules if self._hooks else ():
                handles.append(module.register_forward_pre_hook(self._note))
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def on(self, site: Site) -> Iterator[None]:
        """Look at a site in this block, inside of `throughout`."""
        self._called.clear()
        with StandIns([] if self._hooks else dict.fromkeys(self._modules[site]), self._run):
            yield

    def ran(self, site: Site) -> bool:
        """Whether one of the site's modules was called in the last block."""
        return not self._called.isdisjoint(self._modules[site])

    def parameters(self, site: Site) -> list[nn.Parameter]:
        """The parameters that are in the site's slots now."""
        return [parameter for module in self._modules[site] for parameter in module.parameters()]

    def _note(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        self._called.add(module)

    def _run(self, module: nn.Module, forward: Forward, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        self._called.add(module)
        return forward(*arguments, **keywords)


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
