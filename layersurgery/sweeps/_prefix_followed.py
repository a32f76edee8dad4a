"""Which modules a recording follows: of most, a first recording shows that their calls tell nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from layersurgery.sweeps._prefix_map import Map
from layersurgery.sweeps._prefix_record import Call, Pass


@dataclass(frozen=True)
class Followed:
    """The modules of whose calls a recording takes notice.

    Args:
        modules: these.
        inside: all others, each with the nearest of these that holds it, and began before it.
    """

    modules: Sequence[nn.Module]
    inside: Mapping[nn.Module, Sequence[nn.Module]] = field(default_factory=dict[nn.Module, "Sequence[nn.Module]"])

    @classmethod
    def after(
        cls, parts: Map, passes: Sequence[Pass], kept: Collection[nn.Module], tops: Iterable[nn.Module]
    ) -> Followed:
        """Those to follow from now on, when all modules were followed in some passes.

        Others ran there within calls that were written down, of modules that hold them, and were not to be written
        down themselves. One that did not run is followed: nothing is known of it.

        Args:
            parts: how the model's modules are nested.
            passes: these.
            kept: modules that are to be followed in any case.
            tops: modules of which it matters when what they hold began, as does it of themselves.
        """
        kept = {*kept, *tops, *(call.module for one in passes for call in one.calls())}
        below = {part for top in tops for part in top.modules()}
        within: dict[nn.Module, nn.Module] = {}
        for module, calls in _innermost(passes).items():
            if module in kept or not calls <= parts.above([module]):
                continue
            holder = _nearest(module, parts, passes)
            if holder is not None and (module not in below or holder in below):
                within[module] = holder
        found: defaultdict[nn.Module, list[nn.Module]] = defaultdict(list)
        for module in within:
            found[_end(module, within)].append(module)
        return cls([module for module in parts.modules if module not in within], dict(found))


def _nearest(module: nn.Module, parts: Map, passes: Sequence[Pass]) -> nn.Module | None:
    """What holds a module, alone, and began before it wherever it ran; None: there is no such thing."""
    holders = parts.holders(module)
    while len(holders) == 1 and not any(holders[0] in one.first for one in passes):  # a list of modules
        holders = parts.holders(holders[0])
    if len(holders) != 1:
        return None
    begun = (
        one.first.get(holders[0], one.first[module] + 1) < one.first[module] for one in passes if module in one.first
    )
    return holders[0] if all(begun) else None


def _end(module: nn.Module, within: Mapping[nn.Module, nn.Module]) -> nn.Module:
    while module in within:
        module = within[module]
    return module


def _innermost(passes: Sequence[Pass]) -> Mapping[nn.Module, set[nn.Module]]:
    """Of each module that ran, the modules of the innermost written calls in which it did, or with which it began."""
    found: defaultdict[nn.Module, set[nn.Module]] = defaultdict(set)
    for one in passes:
        calls: list[Call] = [one.top] * len(one.events)
        for call in one.calls():  # what is around others comes before them
            calls[call.begin : call.end] = [call] * (call.end - call.begin)
        for module, call in zip(one.events, calls, strict=True):
            found[module].add(call.module)
    return found
