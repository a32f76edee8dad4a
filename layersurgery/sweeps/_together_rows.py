"""Surgeries that are in force for some rows of a batch only: there, modules run with the weights of that variant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from layersurgery.surgery import Surgery
from layersurgery.sweeps._prefix_reach import Reach
from layersurgery.sweeps._prefix_zeros import silence, silent_among
from layersurgery.sweeps._stand_ins import Forward
from layersurgery.sweeps._together_values import CannotError
from layersurgery.sweeps._watch import Uses


@dataclass(frozen=True)
class Variant:
    """A surgery, and the parameters that it puts in place.

    Args:
        surgery: the surgery.
        weights: of each module that it changes, the parameters under their names.
        silent: those of the modules that multiply with zeros only.
    """

    surgery: Surgery
    weights: Mapping[nn.Module, Mapping[str, nn.Parameter]]
    silent: frozenset[nn.Module]

    @property
    def nbytes(self) -> int:
        """Bytes that these parameters take; those that show one number in the shape of a matrix take next to none."""
        storages = {
            parameter.untyped_storage().data_ptr(): parameter.untyped_storage().nbytes()
            for weights in self.weights.values()
            for parameter in weights.values()
        }
        return sum(storages.values())


class Weights:
    """The parameters of a model as they are, from which it is seen what a surgery changes.

    Examples:
        >>> import layersurgery as ls
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> surgery = ls.Surgery(at=ls.select(model, pattern="1"), do=ls.Zero())
        >>> list(Weights(model.modules()).under(model, surgery).weights) == [model[1]]
        True
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._modules = list(modules)
        self._parameters = [
            (module, name, parameter, None if parameter.is_inference() else parameter._version)
            for module in self._modules
            for name, parameter in module._parameters.items()
            if parameter is not None
        ]

    @property
    def are_in_place(self) -> bool:
        """Whether they are still what the model has, with the values that they had."""
        return all(
            module._parameters.get(name) is parameter and (version is None or parameter._version == version)
            for module, name, parameter, version in self._parameters
        )

    def under(self, model: nn.Module, surgery: Surgery) -> Variant:
        """What a surgery changes.

        Raises:
            CannotError: if that is not only weights, of modules that can be run with those of each variant.
        """
        weights: dict[nn.Module, dict[str, nn.Parameter]] = {}
        hooks = _hooks(self._modules)
        with surgery(model):
            if _hooks(self._modules) != hooks:
                raise CannotError("what a module gives is changed there, not its weights")
            for module, name, parameter, _ in self._parameters:
                now = module._parameters.get(name)
                if now is not None and now is not parameter:
                    weights.setdefault(module, {})[name] = now
            silent = silent_among(list(weights))
        for module in weights:
            if any(True for _ in module.children()):
                raise CannotError("weights are held there by a module that is made of others")
            if isinstance(module, nn.RNNBase):
                raise CannotError("there is a recurrent module of torch there")
        return Variant(surgery, weights, silent)


class Rowwise:
    """Runs the modules that variants change so that each row has the weights of its variant.

    Args:
        variants: the rows of each variant, as a slice of all rows, and the variant.
        rows: how many rows there are.

    Attributes:
        active: whether that is done now; otherwise modules run as they are.
    """

    def __init__(self, variants: Sequence[tuple[slice, Variant]], rows: int) -> None:
        self.rows = rows
        self.active = False
        self._inside = 0
        self._parts: dict[nn.Module, list[tuple[slice, Variant]]] = {}
        for part, variant in variants:
            for module in variant.weights:
                self._parts.setdefault(module, []).append((part, variant))

    @property
    def modules(self) -> list[nn.Module]:
        """The modules whose calls must come here."""
        return list(self._parts)

    def called(self, module: nn.Module, forward: Forward, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Run a module, in place of its forward."""
        if not self.active:
            return forward(*arguments, **keywords)
        self._inside += 1
        try:
            return self._run(module, forward, arguments, keywords)
        finally:
            self._inside -= 1

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Make sure that no module uses the weights of another one, which nothing is done about here.

        Raises:
            CannotError: at the end, if one did.
        """
        with _Lent(self) as lent:
            yield
        if lent.seen:
            raise CannotError("a module uses the weights of another one there without calling it")

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All parameters of the modules that variants change."""
        return [one for module in self._parts for one in module._parameters.values() if one is not None]

    @property
    def is_inside(self) -> bool:
        """Whether one of the modules is running just now."""
        return self._inside > 0

    def _run(self, module: nn.Module, forward: Forward, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        given = (*arguments, *keywords.values())
        if Reach.of(given).objects:
            raise CannotError("a module is given more than tensors there", module)
        output = forward(*arguments, **keywords)
        if not isinstance(output, torch.Tensor) or not output.dim() or output.shape[0] != self.rows:
            raise CannotError("what a module gives there has not one row for each sample", module)
        if not any(isinstance(one, torch.Tensor) and one.dim() and one.shape[0] == self.rows for one in given):
            raise CannotError("what a module is given there has not one row for each sample", module)
        if type(module) is not nn.Linear:  # which makes a new tensor; others may give what they were given
            output = output.clone()
        for part, variant in self._parts[module]:
            own = tuple(self._of(part, value) for value in arguments)
            named = {name: self._of(part, value) for name, value in keywords.items()}
            zeros = silence(module, own, named) if module in variant.silent else None
            if zeros is not None:
                output[part] = 0
                continue
            with _exchanged(module, variant.weights[module]):
                output[part] = forward(*own, **named)
        return output

    def _of(self, part: slice, value: Any) -> Any:
        """What of a value belongs to some rows."""
        return value[part] if isinstance(value, torch.Tensor) and value.dim() and len(value) == self.rows else value


@contextmanager
def _exchanged(module: nn.Module, weights: Mapping[str, nn.Parameter]) -> Iterator[None]:
    held = module._parameters
    before = {name: held[name] for name in weights}
    try:
        held.update(weights)
        yield
    finally:
        held.update(before)


class _Lent(TorchFunctionMode):
    """Sees whether weights are used outside of the modules that hold them."""

    def __init__(self, rowwise: Rowwise) -> None:
        super().__init__()
        self._rowwise = rowwise
        self._uses = Uses(rowwise.parameters)
        self.seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._rowwise.is_inside:
            self.seen = self.seen or self._uses._finds((args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def _hooks(modules: Iterable[nn.Module]) -> list[tuple[nn.Module, list[tuple[Any, int]]]]:
    """What tells whether hooks were put on modules, or do more than before."""
    return [
        (module, [(key, len(getattr(hook, "entries", ()))) for key, hook in (*before.items(), *after.items())])
        for module in modules
        for before, after in [(module._forward_pre_hooks, module._forward_hooks)]
        if before or after
    ]
