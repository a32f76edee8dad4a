"""A copy of a model that is changed by hand, to compare the library with: nothing here uses the library."""

from __future__ import annotations

import copy
import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

Fill = Callable[[str, torch.Tensor], torch.Tensor]  # from a parameter's name and values to what stands in for them


def zeros(name: str, values: torch.Tensor) -> torch.Tensor:
    """0 everywhere."""
    return torch.zeros_like(values)


def one_over_n(name: str, values: torch.Tensor) -> torch.Tensor:
    """1/N everywhere, N the first dimension."""
    return torch.full_like(values, 1.0 / values.shape[0])


def own_mean(name: str, values: torch.Tensor) -> torch.Tensor:
    """The mean everywhere."""
    return torch.full_like(values, float(values.double().mean()))


class Twin:
    """A deep copy of a model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model)

    @contextmanager
    def filled(self, fills: Mapping[str, Fill]) -> Iterator[None]:
        """In the block, all parameters in the modules of these paths hold other values.

        They are written into the parameter itself, unless a module outside the paths holds it too: such a tie is cut.
        """
        slots = {(id(part), leaf): (name, fill, part, leaf) for name, fill, part, leaf in self._slots(fills)}
        inside = Counter(id(part._parameters[leaf]) for _, _, part, leaf in slots.values())
        held = Counter(id(value) for part in self.model.modules() for value in part._parameters.values())
        with torch.no_grad(), ExitStack() as undo:
            written: set[int] = set()
            for name, fill, part, leaf in slots.values():
                parameter = part._parameters[leaf]
                if held[id(parameter)] > inside[id(parameter)]:
                    undo.callback(part._parameters.__setitem__, leaf, parameter)
                    part._parameters[leaf] = nn.Parameter(fill(name, parameter.detach()), requires_grad=False)
                elif id(parameter) not in written:
                    written.add(id(parameter))
                    undo.callback(parameter.copy_, parameter.clone())
                    parameter.copy_(fill(name, parameter.detach()))
            yield

    @contextmanager
    def silenced(self, additions: Mapping[str, str]) -> Iterator[None]:
        """In the block, the modules of these paths add nothing to the residual stream (see `Layout.residual`)."""
        with ExitStack() as undo:
            for path, holds in additions.items():
                hook = self.model.get_submodule(path).register_forward_hook(_silencing(holds), with_kwargs=True)
                undo.callback(hook.remove)
            yield

    def _slots(self, fills: Mapping[str, Fill]) -> Iterator[tuple[str, Fill, nn.Module, str]]:
        for path, fill in fills.items():
            for name, part in self.model.get_submodule(path).named_modules(prefix=path):
                for leaf, parameter in part._parameters.items():
                    if parameter is not None:
                        yield f"{name}.{leaf}", fill, part, leaf


def _silencing(holds: str) -> Callable[..., Any]:
    if holds == "*":
        return lambda module, arguments, named, output: _all_zero(output)
    norm, argument = re.fullmatch(r"(?:([\w.]+)\()?(\w*)\)?", holds).groups()

    def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        if not argument:
            return _with_first(output, torch.zeros_like)
        stream = inspect.signature(module.forward).bind(*arguments, **named).arguments[argument].clone()
        return _with_first(output, lambda old: module.get_submodule(norm)(stream) if norm else stream)

    return hook


def _all_zero(output: Any) -> Any:
    if isinstance(output, torch.Tensor):
        return torch.zeros_like(output)
    return type(output)(map(_all_zero, output)) if isinstance(output, tuple | list) else output


def _with_first(output: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same output with its first entry changed."""
    if isinstance(output, torch.Tensor):
        return change(output)
    if isinstance(output, Mapping):
        first = next(iter(output))
        return type(output)(**{**output, first: _with_first(output[first], change)})
    inside = [_with_first(output[0], change), *output[1:]]
    return type(output)(*inside) if hasattr(output, "_fields") else type(output)(inside)
