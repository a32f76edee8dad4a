"""What is to happen in a variant, as far as the record of the unmodified model tells before it runs."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Sequence, Set

from torch import nn

from layersurgery.sweeps._prefix_map import Map
from layersurgery.sweeps._prefix_record import Call, Pass, Record
from layersurgery.sweeps._prefix_tail import Tail
from layersurgery.sweeps._prefix_zeros import SilentParts


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
        self.above = parts.above(changed | self.unsettled)

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


class Course:
    """What is to happen at the calls of a variant.

    Args:
        record: what was recorded.
        moved: what is not as it was then.
        silent: what of that is zeros only.
        tail: the modules of which only scored positions are needed; None: there are none.

    Attributes:
        record, moved, silent, tail: as above.
        watched: the modules whose calls must be looked at.
    """

    def __init__(self, record: Record, moved: Moved, silent: SilentParts, tail: Tail | None = None) -> None:
        self.record, self.moved, self.silent, self.tail = record, moved, silent, tail
        watched = {*silent.linear, *silent.whole}
        for one in record.passes:
            watched.update(one.watched_before(one.cut(moved.changed, moved.parts)))
        self.watched = watched | tail.modules | tail.holders if tail else watched
        self._scripts = [_script(one, moved, record.watched) if one.held.are_intact else None for one in record.passes]

    def script(self, number: int) -> Script:
        """What is to happen at each call of a watched module in a recorded call, in order, up to the cut."""
        recorded = self.record.passes[number]
        found = self._scripts[number] if recorded.held.are_intact else None
        return _script(recorded, self.moved, self.record.watched) if found is None else found


Script = list[tuple[nn.Module, Call | None]]  # the call to answer for, or None


def _script(recorded: Pass, moved: Moved, watched: Collection[nn.Module]) -> Script:
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
