"""A variant's call: the model's own code runs, and modules that ended before the cut answer from the record."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence, Set
from typing import Any

from torch import nn

from layersurgery.sweeps._prefix_map import Map
from layersurgery.sweeps._prefix_reach import Reach
from layersurgery.sweeps._prefix_record import Call, Pass, Record, left_alone
from layersurgery.sweeps._prefix_state import World, is_traced
from layersurgery.sweeps._prefix_tail import Kept, Tail
from layersurgery.sweeps._prefix_values import Found, pour, same, thaw
from layersurgery.sweeps._prefix_zeros import Silence, silence
from layersurgery.sweeps._stand_ins import Forward


class Moved:
    """What of a model is not as it was when it was recorded.

    Args:
        parts: how the model's modules are nested.
        changed: modules with other weights or hooks, the site's among them.
        unsettled: modules whose state has changed, as it did in the recording.
    """

    def __init__(self, parts: Map, changed: frozenset[nn.Module], unsettled: Collection[nn.Module]) -> None:
        self.parts, self.changed, self.unsettled = parts, changed, frozenset(unsettled)
        # The code of what holds a module may use its weights without calling it.
        self.above = parts.above(changed.union(unsettled) if unsettled else changed)

    def touches(self, recorded: Pass, call: Call) -> bool:
        """Whether a call has to do with one of them, whenever it was."""
        if call.module in self.above:
            return True
        return bool(self.unsettled) and not self.unsettled.isdisjoint(recorded.events[call.begin : call.end])


class Ground:
    """What the answers for a variant rest on: modules that begin before what it changes does.

    Whatever has become of others has no part in what was recorded, and what they do is computed.

    Args:
        parts: how the model's modules are nested.
        passes: what was recorded.
        groups: all modules, in groups.
        always: modules on which something rests in any case.
    """

    def __init__(
        self,
        parts: Map,
        passes: Sequence[Pass],
        groups: Sequence[Sequence[nn.Module]],
        always: Set[nn.Module],
    ) -> None:
        self._parts, self._passes = parts, passes
        self._number = {module: number for number, group in enumerate(groups) for module in group}
        self._always = {number for number, group in enumerate(groups) if not always.isdisjoint(group)}
        # One that was not called may lend its weights to one that was.
        begins = [[min([one.first.get(module, -1) for module in group]) for group in groups] for one in passes]
        self._orders = [sorted(zip(begun, range(len(groups)), strict=True)) for begun in begins]

    def groups(self, changed: tuple[nn.Module, ...] | frozenset[nn.Module], *, itself: bool = False) -> list[int]:
        """The numbers of the groups with such modules, for a variant with these modules changed; or with one of these.

        Args:
            changed: these modules.
            itself: the groups with one of these, too.
        """
        found = {*self._always, *([self._number[module] for module in changed] if itself else ())}
        for one, order in zip(self._passes, self._orders, strict=True):
            before = bisect_left(order, (one.cut(changed, self._parts), -1))
            found.update([number for _, number in order[:before]])
        return sorted(found)


_NOTHING = Reach([], [], [])


class Replayer:
    """Answers for modules in one call of the scorer.

    Args:
        record: what was recorded.
        moved: what is not as it was then.
        silent: what of that is zeros only.
        tell: is told in words why something is run in full.
        tail: the modules of which only scored positions are needed; None: there are none.

    Attributes:
        has_answered: whether anything was left out.
        has_cut: whether positions were left out.
    """

    def __init__(
        self, record: Record, moved: Moved, silent: Silence, tell: Callable[[str], None], tail: Tail | None = None
    ) -> None:
        self._record, self._moved, self._silent, self._tell = record, moved, silent, tell
        self._tail = tail
        self._kept: Kept | None = None
        self._thread = threading.get_ident()
        self._count = 0
        self.has_answered = self.has_cut = False
        self._running = False
        self._script: list[tuple[nn.Module, Call | None]] = []
        self._line = 0
        self._recorded: Pass | None = None
        self._found: Found = {}

    @property
    def watched(self) -> set[nn.Module]:
        """The modules whose calls must come here."""
        found = {*self._silent.linear, *self._silent.whole}
        for one in self._record.passes:
            found.update(one.watched_before(one.cut(self._moved.changed, self._moved.parts)))
        return found | self._tail.modules | self._tail.holders if self._tail else found

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
            self._script = script(recorded, self._moved, self._record.watched)
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


def script(recorded: Pass, moved: Moved, watched: Collection[nn.Module]) -> list[tuple[nn.Module, Call | None]]:
    """What is to happen at each call of a watched module, in order, up to the cut: the call to answer for, or None."""
    cut = recorded.cut(moved.changed, moved.parts)
    intact = recorded.held.are_intact
    answered: dict[int, Call] = {}  # the outermost calls that had ended when the cut came, and can be answered for
    waiting = [recorded.top]
    while waiting:
        call = waiting.pop()
        if call.begin >= cut:
            continue
        ended = call.end <= cut and call.needed and not call.problem
        if ended and (intact or call.counted.are_intact) and not moved.touches(recorded, call):
            answered[call.begin] = call
        else:
            waiting += call.inside
    lines: list[tuple[nn.Module, Call | None]] = []
    position, end = 0, min(cut, len(recorded.events))
    while position < end:
        call = answered.get(position)
        if call is not None:
            lines.append((call.module, call))
            position = call.end
            continue
        if recorded.events[position] in watched:
            lines.append((recorded.events[position], None))
        position += 1
    return lines


def _takes(call: Call, given: Reach, arguments: tuple[Any, ...], keywords: dict[str, Any], found: Found) -> bool:
    """Whether what was recorded is what the module would give and do now."""
    if call.inputs is None or not call.counted.are_intact:
        return False
    if not call.given:
        return call.inputs.are(arguments, keywords, found)
    alike = tuple(map(type, given.holders)) == call.given
    return alike and call.inputs.are(arguments, keywords, found, given.objects)
