"""A forward of our own in place of modules', for the time of a block."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

Forward = Callable[..., Any]
Called = Callable[[nn.Module, Forward, "tuple[Any, ...]", "dict[str, Any]"], Any]


class _StandIn:
    """A module's forward while a block is open.

    Attributes:
        called: what runs in its place; None: the block is over, and it does nothing more wherever somebody has kept it.
        before: what others had put in place of the module's own; None: nothing.
    """

    __slots__ = ("__wrapped__", "_module", "before", "called")

    def __init__(self, module: nn.Module, called: Called) -> None:
        self._module = module
        self.called: Called | None = called
        self.before = vars(module).get("forward")
        self.__wrapped__: Forward = module.forward  # whose signature is the one that is shown

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        if self.called is None:
            return self.__wrapped__(*arguments, **keywords)
        return self.called(self._module, self.__wrapped__, arguments, keywords)

    def __reduce__(self) -> tuple[Any, ...]:
        return _own_forward, (self._module,)  # a copy of the module runs on its own


def _own_forward(module: nn.Module) -> Forward:
    return types.MethodType(type(module).forward, module)


class StandIns(AbstractContextManager[None]):
    """Lets `called` run in place of modules' forward; afterwards all is as it was, whatever happens.

    When dropped without having been left, too: an interrupt may come just when it is about to be.
    """

    def __init__(self, modules: Iterable[nn.Module], called: Called) -> None:
        self._modules, self._called = modules, called
        self._placed: list[tuple[dict[str, Any], _StandIn]] = []

    def __enter__(self) -> None:
        try:
            for module in self._modules:
                stand_in = _StandIn(module, self._called)
                self._placed.append((vars(module), stand_in))
                vars(module)["forward"] = stand_in
        except BaseException:
            self._leave()
            raise

    def __exit__(self, *_: object) -> None:
        self._leave()

    def __del__(self) -> None:
        self._leave()

    def _leave(self) -> None:
        for held, stand_in in self._placed:
            stand_in.called = None
            if held.get("forward") is not stand_in:
                continue
            if stand_in.before is None:
                del held["forward"]
            else:
                held["forward"] = stand_in.before
        self._placed = []  # not before all are gone
