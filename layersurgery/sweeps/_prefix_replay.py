"""A variant's call: the model's own code runs, and modules that ended before the cut answer from the record."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import nn

from layersurgery.sweeps._prefix_course import Course, Script
from layersurgery.sweeps._prefix_reach import Reach
from layersurgery.sweeps._prefix_record import Call, Pass, left_alone
from layersurgery.sweeps._prefix_state import World, is_traced
from layersurgery.sweeps._prefix_tail import Kept
from layersurgery.sweeps._prefix_values import Found, pour, same, thaw
from layersurgery.sweeps._prefix_zeros import Silence, silence
from layersurgery.sweeps._stand_ins import Forward

_NOTHING = Reach([], [], [])


class Replayer:
    """Answers for modules in one call of the scorer.

    Args:
        course: what is to happen.
        silence: answers for modules that are zeros only.
        tell: is told in words why something is run in full.

    Attributes:
        has_answered: whether anything was left out.
        has_cut: whether positions were left out.
    """

    def __init__(self, course: Course, silence: Silence, tell: Callable[[str], None]) -> None:
        self._course, self._silent, self._tell = course, silence, tell
        self._record, self._tail = course.record, course.tail
        self._kept: Kept | None = None
        self._thread = threading.get_ident()
        self._count = 0
        self.has_answered = self.has_cut = False
        self._running = False
        self._script: Script = []
        self._line = 0
        self._recorded: Pass | None = None
        self._found: Found = {}

    def called(self, module: nn.Module, forward: Forward, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Run a module, in place of its forward, or answer for it."""
        if threading.get_ident() != self._thread:
            self._stop("it runs in several threads")
            return forward(*arguments, **keywords)
        if module in self._silent.linear:
            zeros = silence(module, arguments, keywords)
            self.has_answered = self.has_answered or zeros is not None
            return forward(*arguments, **keywords) if zeros is None else zeros
        if not self._running:
            return self._outermost(module, forward, arguments, keywords)
        if self._line < len(self._script) and module in self._record.watched:
            return self._next(module, forward, arguments, keywords)
        return self._changed(module, forward, arguments, keywords)

    def _changed(
        self, module: nn.Module, forward: Forward, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> Any:
        if module in self._silent.whole:
            ending = self._recorded.endings.get(module) if self._recorded else None
            output, left_out = self._silent.answer(module, forward, arguments, keywords, ending)
            self.has_answered = self.has_answered or left_out
            return output
        if self._kept is not None and self._tail is not None:
            if module in self._tail.modules:
                output = self._tail.run(module, forward, arguments, keywords, self._kept)
                self.has_cut = self.has_cut or self._kept.has_left_out
                return output
            if module in self._tail.holders:
                forward = self._tail.with_few_queries(forward, self._kept)
        return forward(*arguments, **keywords)

    def _outermost(
        self, module: nn.Module, forward: Forward, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> Any:
        self._running = True
        try:
            self._begin(module, forward, arguments, keywords)
            output = self._next(module, forward, arguments, keywords)
            if self._kept is not None and self._tail is not None and not self._tail.is_sound(output):
                self._tail = self._kept = None
                self._stop("positions that are not scored matter in a variant: such calls run in full")
                output = forward(*arguments, **keywords)
            elif self._recorded is not None and self._kept is not None:
                self._recorded.pays = self._kept.pays
            return output
        finally:
            self._running = False
            self._script, self._recorded, self._kept, self._found = [], None, None, {}

    def _begin(self, module: nn.Module, forward: Forward, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        """Look up what was recorded of this call by the scorer."""
        self._script, self._line = [], 0
        if self._count >= len(self._record.passes) or is_traced(forward):
            return
        recorded = self._record.passes[self._count]
        alike = recorded.module is module and recorded.world == World.now()
        alike = alike and same(recorded.inputs, (arguments, keywords))
        if not alike and left_alone(forward, arguments, keywords):
            return
        self._count += 1
        if not alike:
            self._count = len(self._record.passes)
            self._tell(
                "the scorer calls the model with other inputs than for the unmodified model: such calls run in full"
            )
            return
        if not recorded.problem:
            self._script = self._course.script(self._count - 1)
            self._recorded = recorded
            self._kept = self._tail.kept(recorded, arguments, keywords) if self._tail and recorded.pays else None

    def _next(self, module: nn.Module, forward: Forward, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        if self._line >= len(self._script):
            return forward(*arguments, **keywords)
        expected, call = self._script[self._line]
        self._line += 1
        if expected is not module:
            self._stop("modules are called in another order than for the unmodified model: such calls run in full")
            return forward(*arguments, **keywords)
        if call is None:
            return forward(*arguments, **keywords)
        given = Reach.of((arguments, *keywords.values())) if call.given else _NOTHING
        if not _takes(call, given, arguments, keywords, self._found):
            self._stop("modules are given other things than in the unmodified model: such calls run in full")
            return forward(*arguments, **keywords)
        self.has_answered = True
        made: dict[int, Any] = {}
        for number, frozen in call.effects:
            pour(frozen, given.holders[number], given.holders, made)
        return thaw(call.output, given.holders, made)

    def _stop(self, why: str) -> None:
        self._script, self._count = [], len(self._record.passes)
        self._tell(why)


def _takes(call: Call, given: Reach, arguments: tuple[Any, ...], keywords: dict[str, Any], found: Found) -> bool:
    """Whether what was recorded is what the module would give and do now."""
    if call.inputs is None or not call.counted.are_intact:
        return False
    if not call.given:
        return call.inputs.are(arguments, keywords, found)
    alike = tuple(map(type, given.holders)) == call.given
    return alike and call.inputs.are(arguments, keywords, found, given.objects)
