"""What a call of a module was given and gave, seen before and after it, so that it can be answered for."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch

from layersurgery.sweeps._prefix_reach import Reach, UnknownValueError, shallow
from layersurgery.sweeps._prefix_state import Chance, captured
from layersurgery.sweeps._prefix_values import Clones, Counted, Freezer, Held, Inputs, Print, equal

if TYPE_CHECKING:
    from layersurgery.sweeps._prefix_record import Call

DRAWS = "it draws random numbers"


class Prints:
    """Of large tensors that modules are given, and that nobody keeps anyhow, it is enough to recognise them.

    Args:
        kept: those that are kept from the start.
    """

    def __init__(self, kept: Iterable[torch.Tensor]) -> None:
        self._kept: dict[int, weakref.ref[torch.Tensor]] = {}
        self._found: dict[int, tuple[weakref.ref[torch.Tensor], int, Print]] = {}
        self.keep(kept)

    def keep(self, tensors: Iterable[torch.Tensor]) -> None:
        """These are kept; small ones share no memory with what is looked for."""
        large = (one for one in tensors if one.layout == torch.strided and one.nbytes >= _LARGE)
        self._kept.update({_address(one): weakref.ref(one) for one in large})

    def of(self, tensor: torch.Tensor) -> Print | None:
        """What to keep in place of a tensor that a module is given; None: the tensor."""
        plain = type(tensor) is torch.Tensor and tensor.device.type == "cpu" and tensor.layout == torch.strided
        if not plain or tensor.is_inference() or tensor.nbytes < _LARGE or tensor.requires_grad:
            return None
        kept = self._kept.get(_address(tensor))
        if kept is not None and kept() is not None:
            return None
        before = self._found.get(id(tensor))
        if before is None or before[0]() is not tensor or before[1] != tensor._version:
            before = self._found[id(tensor)] = weakref.ref(tensor), tensor._version, Print.of(tensor)
        return before[2]


_LARGE = 1 << 17  # bytes


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Before:
    """What a call was given, before it ran.

    Where all that a call is given and gives are small tensors that count writes, that is written down when what is
    around it is over, for all calls in one go: what that takes is in the processor's cache then, as it is not between
    two layers.
    """

    def __init__(
        self,
        given: tuple[tuple[Any, ...], dict[str, Any]],
        clones: Clones,
        copies: bool,
        prints: Callable[[torch.Tensor], Print | None],
        chance: Chance | None,
    ) -> None:
        self.problem = ""
        self._given, self._clones = given, clones
        self._chance = chance
        self._captured = captured()
        self._reach = Reach([], [], [])
        self._inputs, self._taken = None, list[Held]()
        self._output: Any = None
        self._waits = False
        try:
            self._reach = Reach.of((given[0], *given[1].values()))
            self._waits = not copies and not torch.is_grad_enabled() and _can_wait(self._reach)
            if not self._waits:
                self._freeze(Freezer(self._reach.objects, copies, clones, prints))
        except UnknownValueError as error:
            self.problem = f"it is given {error}, which cannot be looked into"
        self._holders = [(holder, list(shallow(holder))) for holder in self._reach.holders]
        tensors = self._reach.tensors
        self._counts = Counted.now([one for one in tensors if not one.is_inference()])
        # A tensor of inference mode does not count writes, so that its values must tell.
        self._values = [(one, one.clone()) for one in tensors if one.is_inference()]

    def compare(self, call: Call, output: Any, copies: bool) -> bool:
        """Write down what the call gave and did; whether it is for `finish` to do so."""
        call.problem = self.problem or self._trouble()
        if call.problem:
            return False
        try:
            if self._waits:
                reach = Reach.of(output)
                if _can_wait(reach):
                    self._output, self._counts = output, Counted.now([*self._reach.tensors, *reach.tensors])
                    return True
                self._freeze(Freezer(clones=self._clones))
            self._keep(call, output, Freezer(self._reach.holders, copies, self._clones))
        except UnknownValueError as error:
            call.problem = f"it gives {error}, which cannot be kept"
        return False

    def finish(self, call: Call) -> None:
        """Write down what the call was given and gave: all of it as it is, since only writes could change it."""
        call.inputs, call.output = Inputs(*self._given), self._output
        call.keep(self._counts)

    def _freeze(self, freezer: Freezer) -> None:
        self._inputs, self._taken = freezer.freeze(self._given), freezer.held

    def _keep(self, call: Call, output: Any, freezer: Freezer) -> None:
        call.given = tuple(type(holder) for holder in self._reach.holders)
        call.output = freezer.freeze(output)
        for number, (holder, was) in enumerate(self._holders):
            now = list(shallow(holder))
            if len(now) != len(was) or any(one is not other for one, other in zip(now, was, strict=True)):
                call.effects.append((number, freezer.contents_of(holder)))
        call.inputs, call.held = Inputs(*self._given, self._inputs), self._taken + freezer.held
        if torch.is_grad_enabled() and any(held.tensor.requires_grad for held in call.held):
            call.problem = "gradients are recorded (score under torch.no_grad())"
        elif freezer.copied_any_of(self._reach.tensors):
            call.problem = "others may write into what it gives, which it was given itself"
        if call.problem:
            call.output, call.effects, call.held = None, [], []

    def _trouble(self) -> str:
        if not self._counts.are_intact or any(not equal(one, was) for one, was in self._values):
            return "it writes into what it is given"
        if self._chance is not None and not self._chance.is_untouched():
            return DRAWS
        return "" if captured() == self._captured else "what happens inside it is captured"


def _can_wait(reach: Reach) -> bool:
    """Whether there are but small tensors, in which each write is counted."""
    return not reach.holders and all(map(_is_small, reach.tensors))


def _is_small(tensor: torch.Tensor) -> bool:
    plain = type(tensor) is torch.Tensor and tensor.layout == torch.strided and not tensor.is_inference()
    return plain and tensor.nbytes < _LARGE
