"""`Attributes`: what modules hold besides parameters, to be put back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn


class Attributes:
    """What modules hold besides parameters, so that it can be seen what changes, and be put back.

    Examples:
        >>> module = nn.Linear(2, 2)
        >>> before = Attributes([module])
        >>> module.steps = 3
        >>> before.changed()
        {(Linear(in_features=2, out_features=2, bias=True), 'steps'): 3}
        >>> before.restore()
        >>> hasattr(module, "steps")
        False
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._held = [(module, _attributes(module), dict(module._buffers)) for module in modules]

    def changed(self) -> dict[tuple[nn.Module, str], Any]:
        """What is held under which name of which module, where it is something else than before."""
        found: dict[tuple[nn.Module, str], Any] = {}
        for module, attributes, buffers in self._held:
            for now, was in ((vars(module), attributes), (module._buffers, buffers)):
                if len(now) != len(was) or any(now.get(name, now) is not value for name, value in was.items()):
                    found.update(
                        {(module, name): value for name, value in now.items() if was.get(name, was) is not value}
                    )
        return found

    def restore(self) -> None:
        """Let the modules hold what they held."""
        for module, attributes, buffers in self._held:
            for now, was in ((vars(module), attributes), (module._buffers, buffers)):
                for name in [name for name in now if name not in was]:
                    del now[name]
                for name, value in was.items():
                    if now.get(name, now) is not value:
                        now[name] = value


def _attributes(module: nn.Module) -> dict[str, Any]:
    return dict(vars(module))
