"""The end of a forward: where only some positions are scored, most of the last layer needs no others."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from layersurgery.sweeps._prefix_attention import FewQueries
from layersurgery.sweeps._prefix_map import Map
from layersurgery.sweeps._prefix_reach import Reach
from layersurgery.sweeps._prefix_record import Pass
from layersurgery.sweeps._prefix_state import hooks_on, is_patched
from layersurgery.sweeps._stand_ins import Forward


class Tail:
    """Modules in the last layer of which a call needs only some positions, as `logits_to_keep` tells.

    Keys and values of earlier positions are needed at all later ones; queries, what attention gives, and a feed-forward
    are not. Which modules are of that kind is seen in the unmodified model: not-a-number, put in the place of all other
    positions, must not reach anything that the model gives. Rows of a product of matrices may depend on their number in
    the last digit, so that for each shape a module runs in full once, and all must agree to the last bit.

    Args:
        parts: how the model's modules are nested.
        recorded: a call of the unmodified model.
        modules: those of which only some positions are needed.
        agree: for each of them and each shape, whether some rows come out as they do among all, as far as is known.

    Attributes:
        modules: as above.
        holders: what holds such a matrix, in which attention may then be for some positions only.
        around: what runs from the first of `modules` on, or holds that.
    """

    # Products of very few rows are computed in another way, and others come out to the last bit.
    fewest: ClassVar[int] = 16

    def __init__(
        self,
        parts: Map,
        recorded: Pass,
        modules: Iterable[nn.Module],
        agree: dict[tuple[Any, ...], bool] | None = None,
    ) -> None:
        self.modules = frozenset(modules)
        self._parts, self._recorded = parts, recorded
        begin = min((recorded.first[module] for module in self.modules), default=len(recorded.events))
        # A hook there may look at positions that are left out.
        self.around = frozenset({*recorded.events[begin:], *parts.above(self.modules)})
        self._agree = {} if agree is None else agree
        # Of what holds a matrix, the code between may be attention.
        self.holders = frozenset(
            holder for one in self.modules if not one._modules for holder in parts.holders(one)
        ).difference(self.modules)

    def serving(self, changed: Collection[nn.Module]) -> Tail | None:
        """What of it serves a variant with these modules changed: all that begins when the change is over."""
        if self.around.isdisjoint(changed):
            return self if self.modules else None
        first = self._recorded.first
        over = max(first.get(module, len(self._recorded.events)) for module in changed)
        rest = [one for one in self.modules if first[one] > over and self._parts.above([one]).isdisjoint(changed)]
        return Tail(self._parts, self._recorded, rest, self._agree) if rest else None

    def kept(self, recorded: Pass, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Kept | None:
        """The positions that a call asks for; None: all of them, or somebody looks at what modules give."""
        asked = asked_for(keywords)
        if asked is None or self.modules.isdisjoint(recorded.first) or any(map(hooks_on, self.around)):
            return None
        if Reach.of((arguments, *keywords.values())).objects:
            return None  # could not be run again, since a cache that it was given is filled by then
        return Kept(asked, self.fewest)

    def run(
        self, module: nn.Module, forward: Forward, arguments: tuple[Any, ...], keywords: dict[str, Any], kept: Kept
    ) -> Any:
        """What a module gives at the positions that are kept, and not-a-number elsewhere; or all of it."""
        chosen = kept.among(arguments, keywords)
        if not chosen:
            return forward(*arguments, **keywords)
        states = arguments[0]
        key = (module, states.shape, states.stride(), states.dtype, states.device, chosen)
        if key not in self._agree:
            full, rows = forward(states), torch.tensor(chosen, device=states.device)
            self._agree[key] = _same_rows(forward(states.index_select(1, rows)), full, rows)
            return full
        if not self._agree[key]:
            return forward(states)
        return some_of(forward, arguments, keywords, kept)

    def with_few_queries(self, forward: Forward, kept: Kept) -> Forward:
        """The forward of one of the holders, in which attention is for the positions that are kept."""

        def run(*arguments: Any, **keywords: Any) -> Any:
            given = (*arguments, *keywords.values())
            if not any(kept.among((one,), {}) for one in given if isinstance(one, torch.Tensor)):
                return forward(*arguments, **keywords)
            with FewQueries(kept.chosen, self._agree) as few:
                output = forward(*arguments, **keywords)
            kept.has_left_out = kept.has_left_out or few.has_left_out
            return output

        return run

    def is_sound(self, output: Any) -> bool:
        """Whether what a variant gave holds no not-a-number, which would come from positions that are left out."""
        logits = getattr(output, "logits", None)
        found = [logits] if isinstance(logits, torch.Tensor) else Reach.of(output).tensors
        first = next((one for one in found if one.is_floating_point()), None)
        return first is None or not math.isnan(first.sum(dtype=torch.float32).item())


class Probe(Tail):
    """The same with other positions made not-a-number in one module, to see whether they matter.

    Args:
        parts: how the model's modules are nested.
        recorded: a call of the unmodified model.
        modules: the modules with which the end begins.
        hidden: that of which positions are hidden; None: none is.
        agree: as for a `Tail`.

    Attributes:
        has_begun: whether one of the modules was called.
        rowwise: those of the modules that are given one tensor [batch, positions, width], of which not all positions
            are asked for, and give another.
    """

    def __init__(
        self,
        parts: Map,
        recorded: Pass,
        modules: Sequence[nn.Module],
        hidden: nn.Module | None,
        agree: dict[tuple[Any, ...], bool],
    ) -> None:
        super().__init__(parts, recorded, modules, agree)
        self.has_begun = False
        self.rowwise = set[nn.Module]()
        self.holders = frozenset()  # what lies between runs as it is
        self._hidden = hidden

    def run(
        self, module: nn.Module, forward: Forward, arguments: tuple[Any, ...], keywords: dict[str, Any], kept: Kept
    ) -> Any:
        """All that the module gives, but for the positions that are not asked for."""
        self.has_begun = True
        chosen = Kept(kept.asked, 1).among(arguments, keywords)
        if not chosen or module is not self._hidden:
            output = forward(*arguments, **keywords)
            if chosen and isinstance(output, torch.Tensor) and output.shape[:-1] == arguments[0].shape[:-1]:
                self.rowwise.add(module)
            return output
        output = super().run(module, forward, arguments, keywords, kept)
        kept.has_left_out = all(agree for key, agree in self._agree.items() if key[0] is module)
        rows = torch.tensor(chosen, device=output.device)
        return torch.where(_are(rows, output), output, math.nan)

    def is_sound(self, output: Any) -> bool:
        """It is what shall be seen."""
        return True


class Kept:
    """The positions that a call asks for.

    Args:
        asked: how many of the last ones, or which; an attribute, too.
        fewest: rows that a product is to have at least; so many more positions are taken along.

    Attributes:
        has_left_out: whether others were left out.
        chosen: what `among` gave, by batch and length.

    Examples:
        >>> kept = Kept(1, fewest=4)
        >>> kept.among((torch.zeros(1, 64, 2),), {}), kept.among((torch.zeros(2, 64, 2),), {})
        ((60, 61, 62, 63), (62, 63))
        >>> kept.among((torch.zeros(1, 6, 2),), {})  # it does not pay
        ()
    """

    def __init__(self, asked: int | torch.Tensor, fewest: int) -> None:
        self.has_left_out = False
        self.asked = asked
        self._asked = set(asked.tolist()) if isinstance(asked, torch.Tensor) else asked
        self._fewest = fewest
        self.chosen: dict[tuple[int, int], tuple[int, ...]] = {}

    @property
    def pays(self) -> bool:
        """Whether some may be left out of what it was asked about, or it was not asked."""
        return not self.chosen or any(self.chosen.values())

    def among(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[int, ...]:
        """Which positions of [batch, positions, width] to compute; none: all, since leaving any out does not pay."""
        states = arguments[0] if len(arguments) == 1 and not keywords else None
        if not isinstance(states, torch.Tensor) or states.dim() != 3:
            return ()
        batch, length = states.shape[:2]
        if (batch, length) not in self.chosen:
            asked = self._asked
            chosen = set(range(length - asked, length)) if isinstance(asked, int) else set(asked)
            more = iter(range(length - 1, -1, -1))
            while len(chosen) < min(length, math.ceil(self._fewest / batch)):
                chosen.add(next(more))
            pays = 2 * len(chosen) <= length and min(chosen) >= 0 and max(chosen) < length
            self.chosen[batch, length] = tuple(sorted(chosen)) if pays else ()
        return self.chosen[batch, length]


def some_of(forward: Forward, arguments: tuple[Any, ...], keywords: dict[str, Any], kept: Kept) -> Any:
    """What a module gives at the positions that are kept, and not-a-number elsewhere; or all of it."""
    chosen = kept.among(arguments, keywords)
    if not chosen:
        return forward(*arguments, **keywords)
    kept.has_left_out = True
    states = arguments[0]
    rows = torch.tensor(chosen, device=states.device)
    part = forward(states.index_select(1, rows))
    whole = part.new_full((part.shape[0], states.shape[1], part.shape[2]), math.nan)
    return whole.index_copy_(1, rows, part)


def asked_for(keywords: dict[str, Any]) -> int | torch.Tensor | None:
    """Of how many of the last positions, or of which, a call wants logits; None: of all.

    Examples:
        >>> asked_for({"logits_to_keep": 1})
        1
        >>> asked_for({"logits_to_keep": 0}) is None  # as transformers has it
        True
    """
    asked = keywords.get("logits_to_keep")
    if isinstance(asked, int) and not isinstance(asked, bool):
        return asked if asked > 0 else None
    if (
        isinstance(asked, torch.Tensor)
        and asked.dim() == 1
        and len(asked)
        and asked.dtype in (torch.int64, torch.int32)
    ):
        return asked
    return None


def candidates(recorded: Pass, sites: Sequence[tuple[nn.Module, ...]], parts: Map) -> list[nn.Module]:
    """Of the modules with matrices that began with or after the last site, and ran once, the last ones; latest first.

    What is made of others comes before these.
    """
    last = max((cut for cut in (recorded.cut(site, parts) for site in sites) if cut < math.inf), default=math.inf)
    if last == math.inf:
        return []
    late = recorded.events[int(last) :]
    able = [
        module
        for module in dict.fromkeys(reversed(late))
        if module in parts.heavy and recorded.events.count(module) == 1 and not is_patched(module)
    ]
    ordered: list[nn.Module] = []
    for module in able:
        holders = parts.above([module])
        ordered += [one for one in reversed(able) if one in holders and one not in ordered]  # the outermost first
        ordered += [module] if module not in ordered else []
    return ordered[:_LAYER]


_LAYER = 16  # as many as a layer has, and a head


def _same_rows(part: Any, full: Any, rows: torch.Tensor) -> bool:
    """Whether these rows are the same among all, to the last bit."""
    both = isinstance(part, torch.Tensor) and isinstance(full, torch.Tensor) and full.dim() == 3
    return both and torch.equal(part, full.index_select(1, rows))


def _are(rows: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """[positions, 1] whether each position of [batch, positions, width] is one of these."""
    return torch.isin(torch.arange(output.shape[1], device=output.device), rows)[:, None]
