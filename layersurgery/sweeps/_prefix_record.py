"""The base call: which modules ran when, what they gave, and what else they did."""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import torch
from torch import nn

from layersurgery.sweeps._prefix_before import DRAWS, Before, Prints
from layersurgery.sweeps._prefix_map import Map
from layersurgery.sweeps._prefix_reach import Reach, UnknownValueError
from layersurgery.sweeps._prefix_state import Chance, World, is_traced
from layersurgery.sweeps._prefix_values import Clones, Counted, Freezer, Held, Inputs
from layersurgery.sweeps._prefix_zeros import Ending, Endings, SiteParts
from layersurgery.sweeps._stand_ins import Forward

LATER_STEPS = "calls with a KV cache that holds something already, such as later steps of a generation, run in full"
NO_ROOM = "there is not the memory to keep it"
NEVER = math.inf  # as a cut: nothing that was changed takes part


@dataclass(eq=False, slots=True)
class Call:
    """One call of a module, and what is needed to answer for it.

    Args:
        module: the module.
        begin: how many calls had begun before it.
        end: how many calls had begun when it ended.
        inside: the calls that it made itself, as far as they are recorded.
        output: what it gave, frozen.
        effects: what it changed of what it was given: number of the holder, and what that holds then, frozen.
        inputs: what it was given.
        given: the types of the holders among that, in order.
        held: all tensors of `inputs`, `output` and `effects`.
        needed: whether a site begins after it, while what is around it goes on.
        problem: why it cannot be answered for; empty: it can.
    """

    module: nn.Module
    begin: int
    end: int = 0
    inside: list[Call] = field(default_factory=list["Call"])
    output: Any = None
    effects: list[tuple[int, Any]] = field(default_factory=list[tuple[int, Any]])
    inputs: Inputs | None = None
    given: tuple[type[Any], ...] = ()
    held: list[Held] = field(default_factory=list[Held])
    needed: bool = True
    problem: str = ""
    _counted: Counted | None = field(default=None, init=False)

    @property
    def counted(self) -> Counted:
        """Whether anybody writes into what it gave, or was given."""
        if self._counted is None:
            self._counted = Counted.of(self.held)
        return self._counted

    def keep(self, counted: Counted) -> None:
        """Hold on to these tensors, all of them themselves."""
        self._counted, self.held = counted, list(map(Held, counted.tensors, counted.versions))

    def release(self) -> None:
        """Let go of it: it is not answered for."""
        self.needed = False
        self.let_go()

    def let_go(self) -> None:
        """Keep nothing of what it was given and gave."""
        self.inputs, self.output, self.effects, self.held, self._counted = None, None, [], [], None


@dataclass(eq=False)
class Pass:
    """One call that the scorer made, of the model or a part of it, with all calls inside.

    Args:
        module: what was called.
        inputs: its arguments and keywords, frozen.
        world: the settings under which it was called.
        events: the modules in the order in which their calls began.
        first: when each module began first.
        top: the call itself.
        held: all tensors of calls that are answered for.
        watched: the modules whose calls can be answered for, this one or others, by when they began.
        endings: how sites ended that need not be run where they are knocked out.
        pays: whether it may pay to leave positions out at its end.
        problem: why nothing in it can be answered for; empty: it can.
    """

    module: nn.Module
    inputs: Any
    world: World
    top: Call
    events: list[nn.Module] = field(default_factory=list[nn.Module])
    first: dict[nn.Module, int] = field(default_factory=dict[nn.Module, int])
    held: Counted = field(default_factory=lambda: Counted.of(()))
    watched: list[tuple[int, nn.Module]] = field(default_factory=list[tuple[int, nn.Module]])
    endings: dict[nn.Module, Ending | None] = field(default_factory=dict["nn.Module", "Ending | None"])
    pays: bool = True
    problem: str = ""
    _cuts: dict[Collection[nn.Module], float] = field(default_factory=dict[Collection[nn.Module], float], init=False)

    def watched_before(self, cut: float) -> list[nn.Module]:
        """Of these, those that began before a cut."""
        return [module for _, module in self.watched[: bisect_left(self.watched, cut, key=itemgetter(0))]]

    def cut(self, changed: tuple[nn.Module, ...] | frozenset[nn.Module], parts: Map) -> float:
        """When the first of these modules began; `NEVER` if none takes part. To be asked when the call is over.

        A module that was not called may lend its weights to one that holds it (torch's multi-head attention does), so
        that the nearest of those counts.
        """
        found = self._cuts.get(changed)
        if found is None:
            found = self._cuts[changed] = self.cut_by_now(changed, parts)
        return found

    def cut_by_now(self, changed: Collection[nn.Module], parts: Map) -> float:
        """The same, while the call goes on."""
        found = NEVER
        for module in changed:
            begun = self.first.get(module)
            if begun is None:
                begun = min(self._begun_above(module, parts), default=NEVER)
            found = min(found, begun)
        return found

    def _begun_above(self, module: nn.Module, parts: Map) -> list[int]:
        """When the nearest modules began of those that hold one, directly or not."""
        level = set(parts.holders(module))
        while level:
            begun = [self.first[one] for one in level if one in self.first]
            if begun:
                return begun
            level = {holder for one in level for holder in parts.holders(one)}
        return []

    def calls(self) -> Iterator[Call]:
        """All recorded calls."""
        waiting = [self.top]
        while waiting:
            call = waiting.pop()
            yield call
            waiting.extend(call.inside)


@dataclass(frozen=True)
class Record:
    """All calls that the scorer made on the unmodified model.

    Args:
        passes: these calls.
        watched: the modules that the scorer called, and those whose calls can be answered for.
    """

    passes: list[Pass] = field(default_factory=list[Pass])
    watched: set[nn.Module] = field(default_factory=set[nn.Module])

    @classmethod
    def of(cls, passes: list[Pass]) -> Record:
        """The record of these, once it is known which of their calls can be answered for."""
        watched = {one.module for one in passes}
        for one in passes:
            kept = [call for call in one.calls() if call.needed]
            watched.update(call.module for call in kept)
            held = {(id(held.tensor), held.version): held for call in kept for held in call.held}
            one.held = Counted.of(held.values())
        for one in passes:
            begun = [(one.first[module], module) for module in watched if module in one.first]
            one.watched = sorted(begun, key=itemgetter(0))
        return cls(passes, watched)


class Recorder:
    """Writes down one call of the scorer.

    Args:
        parts: how the model's modules are nested.
        sites: the sites.
        below: the modules that hold sites, and these sites; inside of them calls are recorded one by one.
        copied: modules whose inputs or output are written into by others, so that copies are kept.
        limit: bytes that may be kept; None: any number.
        inside: modules that do not come here, each with one that does and holds it: as if both had begun at once.
        each: whether to see of each call if it draws random numbers; if not, of the scorer's calls as a whole.

    Attributes:
        passes: the calls of the scorer.
        problem: why nothing of the model can be answered for, in words; empty: it can.
        left_alone: why some calls were not recorded, in words.
        lacked_memory: whether something was not kept since there was no room.
        drew: whether torch's random numbers were drawn.
        ran: all modules that were called, in calls that were not recorded, too.
    """

    def __init__(
        self,
        parts: Map,
        sites: SiteParts,
        below: Mapping[nn.Module, list[tuple[nn.Module, ...]]],
        copied: Collection[nn.Module],
        limit: int | None = None,
        *,
        inside: Mapping[nn.Module, Sequence[nn.Module]],
        each: bool = True,
    ) -> None:
        self.passes: list[Pass] = []
        self.problem = ""
        self.left_alone = ""
        self.lacked_memory = False
        self._parts, self._sites, self._below = parts, sites, below
        self._copied, self._inside = copied, inside
        self.drew = False
        self.ran: set[nn.Module] = set()
        self._each = each
        self._endings = Endings(self._sites)
        self._thread = threading.get_ident()
        self._pass: Pass | None = None
        self._around: list[Call | None] = []
        self._waiting: list[tuple[Call, Before]] = []
        self._aside = False
        self._clones: Clones = {}
        self._prints = Prints([])
        self._room = math.inf if limit is None else limit
        self._seen: set[int] = set()

    def called(self, module: nn.Module, forward: Forward, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Run a module, in place of its forward."""
        self.ran.add(module)
        if threading.get_ident() != self._thread:
            self.problem = "it runs in several threads"
            return forward(*arguments, **keywords)
        if self._aside:
            return forward(*arguments, **keywords)
        if self._pass is None:
            return self._outermost(module, forward, arguments, keywords)
        here = self._pass
        begin = len(here.events)
        here.events.append(module)
        if module not in here.first:
            self._began(module, begin, here)
        around = self._around[-1]
        if module in self._sites.ends:
            forward = self._endings.followed(module, forward)
        if around is not None and self._may_be_needed(module, around, here):
            call = Call(module, begin)
            around.inside.append(call)
            return self._recorded(call, forward, arguments, keywords)
        if around is None:  # what it calls in turn is not recorded either
            return forward(*arguments, **keywords)
        self._around.append(None)
        try:
            return forward(*arguments, **keywords)
        finally:
            self._around.pop()

    def _began(self, module: nn.Module, begin: int, here: Pass) -> None:
        here.first[module] = begin
        for part in self._inside.get(module, ()):
            here.first[part] = begin

    def _outermost(
        self, module: nn.Module, forward: Forward, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> Any:
        why = left_alone(forward, arguments, keywords)
        if why:
            self.left_alone = self.left_alone or why
            self._aside = True
            try:
                return forward(*arguments, **keywords)
            finally:
                self._aside = False
        inputs = Freezer().freeze((arguments, keywords))
        here = self._pass = Pass(module, inputs, World.now(), Call(module, 0), [module])
        self._began(module, 0, here)
        self._prints = Prints(Reach.of((arguments, keywords)).tensors)
        chance, self._endings = Chance(of_all=True), Endings(self._sites)
        try:
            output = self._recorded(here.top, forward, arguments, keywords)
        except BaseException:
            self.problem = "a forward pass failed"
            self._waiting.clear()
            raise
        finally:
            self._pass = None
            self._around.clear()
            steady = chance.is_untouched()
            here.endings = self._endings.close(steady)
        if not steady:
            self.drew, here.problem = True, "" if self._each else DRAWS
        if not chance.others_are_untouched():
            here.problem = "it draws random numbers with Python's or numpy's generator"
        self._prune(here.top, [here.top], NEVER, here)
        self._finish_waiting()
        self.passes.append(here)
        return output

    def _recorded(self, call: Call, forward: Forward, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        copies = call.module in self._copied
        chance = Chance() if self._each else None
        before = Before((arguments, keywords), self._clones, copies, self._prints.of, chance)
        self._around.append(call if call.module in self._below else None)
        try:
            output = forward(*arguments, **keywords)
        finally:
            self._around.pop()
        here = self._pass
        if here is None:
            return output
        call.end = len(here.events)
        if call.module in self._below:
            self._prune(call, call.inside, call.end, here)
        if before.compare(call, output, copies):
            self._waiting.append((call, before))
        else:
            self._finish_waiting()
            self._prints.keep(held.tensor for held in call.held)
            self._weigh(call)
        return output

    def _finish_waiting(self) -> None:
        for call, before in self._waiting:
            if call.needed:
                before.finish(call)
                self._weigh(call)
        self._waiting.clear()

    def _weigh(self, call: Call) -> None:
        """Let go of a call's values where they do not fit any more."""
        for held in call.held:
            storage = held.tensor.untyped_storage() if held.tensor.layout == torch.strided else None
            if storage is not None and storage.data_ptr() not in self._seen:
                self._seen.add(storage.data_ptr())
                self._room -= storage.nbytes()
        if self._room < 0:
            self.lacked_memory = True
            call.problem = call.problem or NO_ROOM
            call.let_go()

    def _may_be_needed(self, module: nn.Module, around: Call, here: Pass) -> bool:
        """Whether a site may begin after a call that begins now; what a single site needs must be worth it, too."""
        if isinstance(module, nn.Embedding):
            return False  # rows of a table are read as quickly as kept ones
        sites = self._below[around.module]
        if len(sites) > 1:
            return True
        return module in self._parts.heavy and not any(part in here.first for part in sites[0])

    def _prune(self, around: Call, calls: list[Call], end: float, here: Pass) -> None:
        """Let go of what no site needs: none begins between the call's end and the end of what is around it.

        And of what a single site needs and is quickly computed: norms, activations, tables.
        """
        if not calls:
            return
        sites = self._sites.sites if end == NEVER else self._below.get(around.module, ())
        cuts = sorted(here.cut_by_now(site, self._parts) for site in sites)
        for call in calls:
            first = bisect_left(cuts, call.end)
            uses = bisect_left(cuts, end) - first if end != NEVER else len(cuts) - first
            if not uses or (uses == 1 and call.module not in self._parts.heavy):
                call.release()


def left_alone(forward: Forward, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> str:
    """Why a call by the scorer is left alone, and not counted, in words; empty: it is not.

    Later steps of a generation, whose KV cache holds something already, are left alone, and traces of nnsight.
    """
    if is_traced(forward):
        return "traces of nnsight run in full"
    given = (arguments, keywords)
    try:
        reach = Reach.of(given)
        if reach.inside:
            return LATER_STEPS
        if any(tensor.is_inference() for tensor in reach.tensors):
            Freezer().freeze(given)  # such are copied, which not all can be
    except UnknownValueError as error:
        return f"calls that are given {error} run in full"
    return ""
