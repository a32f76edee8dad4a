"""How the modules of a model are nested, and which of them a record is needed of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn


class Map:
    """All modules of a model, and what holds what: as a child, or in an attribute.

    Attributes:
        root: the model.
        modules: all of them, each once.
        paths: their names.
        heavy: those that hold matrices, directly or not; others, such as norms, are quickly computed.

    Examples:
        >>> inner = nn.Linear(2, 2)
        >>> model = nn.Sequential(inner)
        >>> Map(model).above([inner]) == {model}
        True
    """

    def __init__(self, model: nn.Module) -> None:
        self.root = model
        self.modules = list(model.modules())
        self.paths = {module: name or type(model).__name__ for name, module in model.named_modules()}
        self._holders: defaultdict[nn.Module, list[nn.Module]] = defaultdict(list)
        self._above: dict[frozenset[nn.Module], frozenset[nn.Module]] = {}
        known = set(self.modules)
        for holder in self.modules:
            for held in (*holder.children(), *_in_attributes(holder)):
                if held in known and held is not holder:
                    self._holders[held].append(holder)
        matrices = [module for module in self.modules if any(map(_is_matrix, module._parameters.values()))]
        self.heavy = {*matrices, *self.above(matrices)}

    def holders(self, module: nn.Module) -> list[nn.Module]:
        """The modules that hold a module directly."""
        return self._holders.get(module, [])

    def above(self, modules: Iterable[nn.Module]) -> frozenset[nn.Module]:
        """All modules that hold one of these, directly or not."""
        wanted = frozenset(modules)
        if wanted not in self._above:
            self._above[wanted] = self._find_above(wanted)
        return self._above[wanted]

    def _find_above(self, modules: Iterable[nn.Module]) -> frozenset[nn.Module]:
        found = set[nn.Module]()
        waiting = list(modules)
        while waiting:
            new = [holder for holder in self.holders(waiting.pop()) if holder not in found]
            found.update(new)
            waiting += new
        return frozenset(found)


def _is_matrix(parameter: nn.Parameter | None) -> bool:
    return parameter is not None and parameter.dim() > 1


def _in_attributes(module: nn.Module) -> Iterator[nn.Module]:
    """Modules that an attribute refers to without being registered, so that they stay out of the state dict."""
    for name, value in vars(module).items():
        if name != "_modules":
            yield from _modules_in(value)


def _modules_in(value: Any) -> Iterator[nn.Module]:
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _modules_in(one)
    elif isinstance(value, dict):
        for one in value.values():
            if isinstance(one, nn.Module):
                yield one
