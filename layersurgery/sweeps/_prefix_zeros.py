"""What comes out of matrices of zeros, as a knock-out leaves them: it need not be computed."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import nn

from layersurgery.sweeps._prefix_reach import Reach, UnknownValueError
from layersurgery.sweeps._prefix_state import hooks_on, is_patched
from layersurgery.sweeps._stand_ins import Forward


@dataclass(eq=False, slots=True)
class Ending:
    """How a module ended in a call of the unmodified model: it gave what a linear module inside gave, nothing else.

    Where that matrix is zero, zeros come out of it, whatever else the module computes, if only that is finite.

    Args:
        linear: the module at the end.
        shape: of what it gave.
        dtype: its type.
        device: where it is.
        entries: how many entries the tuple had in which it was given first, the others None; 0: it was no tuple.
        inputs: the shapes of the tensors that the module was given.
        widths: how wide inputs of the linear modules inside are.
        makeup: what the module is made of.
    """

    linear: nn.Linear
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    entries: int
    inputs: tuple[torch.Size, ...]
    widths: frozenset[int]
    makeup: tuple[Any, ...]

    @property
    def kind(self) -> tuple[Any, ...]:
        """What it is made of, and what numbers are computed with."""
        return self.dtype, self.device, self.makeup

    def zeros(self) -> Any:
        """What the module gives when it is silent."""
        zeros = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        return (zeros, *[None] * (self.entries - 1)) if self.entries else zeros

    def fits(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
        """Whether it would end so when given this: nothing that it could write to, or that is not finite."""
        tensors = _given(arguments, keywords)
        return (
            tensors is not None
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled(self.device.type)
            and tuple(tensor.shape for tensor in tensors) == self.inputs
            and all(
                math.isfinite(_sum(tensor).item())
                for tensor in tensors
                if tensor.is_floating_point() and tensor.shape[-1] in self.widths
            )
        )


@dataclass(frozen=True)
class SiteParts:
    """What sites are made of.

    Args:
        sites: the sites, each as its modules.
        tops: those of the modules that hold others, whose endings are of interest.
        linear: of each of these, the linear modules in it.
        widths: of each, how wide inputs of those are.
        makeup: of each, what it is made of: types, by names.
        ends: the tops and the linear modules.
    """

    sites: list[tuple[nn.Module, ...]]
    tops: frozenset[nn.Module]
    linear: dict[nn.Module, frozenset[nn.Linear]]
    widths: dict[nn.Module, frozenset[int]]
    makeup: dict[nn.Module, tuple[Any, ...]]
    ends: frozenset[nn.Module]

    @classmethod
    def of(cls, sites: Iterable[tuple[nn.Module, ...]]) -> SiteParts:
        """As they are now."""
        sites = list(sites)
        tops = frozenset(part for site in sites for part in site if part._modules)
        linear = {top: frozenset(one for one in top.modules() if isinstance(one, nn.Linear)) for top in tops}
        widths = {top: frozenset(one.in_features for one in found) for top, found in linear.items()}
        makeup = {top: _makeup(top) for top in tops}
        return cls(sites, tops, linear, widths, makeup, tops.union(*linear.values()))

    def ending_so(self, endings: Mapping[nn.Module, Ending | None]) -> SiteParts:
        """The same, once it is known with which linear modules some end: others in these are not followed any more."""
        last = {top: ending.linear for top, ending in endings.items() if ending is not None}
        followed = (frozenset([last[top]]) if top in last else self.linear[top] for top in self.tops)
        return replace(self, ends=self.tops.union(*followed))


@dataclass
class Endings:
    """Looks for endings in one call of the unmodified model.

    Args:
        parts: the sites, of whose modules it looks for those that end so.
        found: theirs; None: it does not end so, or runs more than once.
    """

    parts: SiteParts
    found: dict[nn.Module, Ending | None] = field(default_factory=dict["nn.Module", "Ending | None"])
    _last: tuple[nn.Linear, torch.Tensor, int] | None = None
    _sums: list[tuple[nn.Module, torch.Tensor]] = field(default_factory=list[tuple[nn.Module, torch.Tensor]])

    def followed(self, module: nn.Module, forward: Forward) -> Forward:
        """The forward of one of the ends, of which notice is taken."""
        if module in self.parts.tops:
            return self._of_top(module, forward)
        return self._of_linear(module, forward) if type(module) is nn.Linear else forward

    def close(self, steady: bool) -> dict[nn.Module, Ending | None]:
        """What was found, at the end of the call; nothing where it is not `steady`, but draws random numbers."""
        self._last = None
        if not steady:
            return {}
        for module, total in self._sums:  # read here: during the call, an accelerator would be waited for
            if not math.isfinite(total.item()):
                self.found[module] = None
        return self.found

    def _of_linear(self, module: nn.Linear, forward: Forward) -> Forward:
        def run(*arguments: Any, **keywords: Any) -> Any:
            output = forward(*arguments, **keywords)
            counts = isinstance(output, torch.Tensor) and not output.is_inference()
            self._last = (module, output, output._version) if counts else None
            return output

        return run

    def _of_top(self, module: nn.Module, forward: Forward) -> Forward:
        def run(*arguments: Any, **keywords: Any) -> Any:
            tensors = None if module in self.found else _given(arguments, keywords)
            # A tensor of inference mode does not count writes.
            plain = tensors is not None and not any(tensor.is_inference() for tensor in tensors)
            versions = [tensor._version for tensor in tensors or () if plain]
            self._last = None
            output = forward(*arguments, **keywords)
            self.found[module] = None
            if plain and tensors is not None and [tensor._version for tensor in tensors] == versions:
                self.found[module] = self._ending(module, output, tensors)
            return output

        return run

    def _ending(self, module: nn.Module, output: Any, tensors: list[torch.Tensor]) -> Ending | None:
        row: tuple[Any, ...] = output if type(output) is tuple and output else (output,)
        if self._last is None or self._last[1] is not row[0] or any(one is not None for one in row[1:]):
            return None
        linear, first, version = self._last
        if linear not in self.parts.linear[module] or linear.in_features < _MANY or first._version != version:
            return None
        if not first.is_contiguous():
            return None
        self._sums.append((module, _sum(first)))
        entries = len(row) if row is output else 0
        shapes = tuple(tensor.shape for tensor in tensors)
        widths, makeup = self.parts.widths[module], self.parts.makeup[module]
        return Ending(linear, first.shape, first.dtype, first.device, entries, shapes, widths, makeup)


@dataclass(frozen=True)
class SilentParts:
    """Modules that are zeros only.

    Args:
        linear: those that multiply with a matrix of zeros.
        whole: those that are made of others, and hold no other number than zero.
    """

    linear: frozenset[nn.Module] = frozenset()
    whole: frozenset[nn.Module] = frozenset()

    @classmethod
    def among(cls, modules: Collection[nn.Module]) -> SilentParts:
        """Those among some modules, as they are now."""
        linear = silent_among(modules)
        whole = (module for module in modules if module._modules and _is_silent(module, linear)) if linear else ()
        return cls(linear, frozenset(whole))


class Silence:
    """Answers for the modules of a variant that are matrices of zeros, or hold nothing else.

    Args:
        parts: these modules.
        proven: for each kind of module whether it was seen to give zeros; what is learnt is written there. None: the
            model's state changes in each call, so that none is left out.

    Attributes:
        linear: those that are matrices of zeros.
        whole: those that hold nothing else.
    """

    def __init__(self, parts: SilentParts, proven: dict[tuple[Any, ...], bool] | None) -> None:
        self.linear = parts.linear
        self.whole = frozenset[nn.Module]() if proven is None else parts.whole
        self._proven = {} if proven is None else proven

    def answer(
        self,
        module: nn.Module,
        forward: Forward,
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        ending: Ending | None,
    ) -> tuple[Any, bool]:
        """What one of `whole` gives, and whether it was left out for that.

        The first of a kind, made of the same modules, is run: that all is finite on its way is known from that.
        """
        if ending is None or ending.linear not in self.linear or not ending.fits(arguments, keywords):
            return forward(*arguments, **keywords), False
        kind = ending.kind
        if kind not in self._proven:
            output = forward(*arguments, **keywords)
            self._proven[kind] = _is_silence(output, ending)
            return output, False
        return (ending.zeros(), True) if self._proven[kind] else (forward(*arguments, **keywords), False)


def _is_silent(module: nn.Module, linear: Collection[nn.Module]) -> bool:
    """Whether there is no other number in it than zero, and nobody looks into it."""
    for part in module.modules():
        zero = part in linear if type(part) is nn.Linear else all(map(_is_zero, part._parameters.values()))
        if not zero or is_patched(part) or (part is not module and hooks_on(part)):
            return False
    return True


def silent_among(modules: Collection[nn.Module]) -> frozenset[nn.Module]:
    """Those that multiply with a matrix of zeros, as a knock-out leaves it: zeros come out of whatever is finite.

    Examples:
        >>> module = nn.Linear(2, 2)
        >>> silent_among([module])
        frozenset()
        >>> for parameter in module.parameters():
        ...     parameter.data = torch.zeros(()).expand(parameter.shape)
        >>> silent_among([module])
        frozenset({Linear(in_features=2, out_features=2, bias=True)})
    """
    return frozenset(
        module
        for module in modules
        if type(module) is nn.Linear and all(map(_is_zero, module._parameters.values())) and not is_patched(module)
    )


def silence(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> torch.Tensor | None:
    """What a silent module gives; None: that would have to be computed."""
    if len(arguments) != 1 or keywords or torch.is_grad_enabled():
        return None
    states, weight = arguments[0], cast(torch.Tensor, module.weight)
    if type(states) is not torch.Tensor or states.dtype != weight.dtype or states.device != weight.device:
        return None
    if torch.is_autocast_enabled(weight.device.type):
        return None
    # A single product may come out as the negative zero. Infinity times zero is no zero at all, and shows in the sum.
    if states.shape[-1] != weight.shape[1] or weight.shape[1] < _MANY or not math.isfinite(_sum(states).item()):
        return None
    return states.new_zeros((*states.shape[:-1], weight.shape[0]))


_MANY = 8  # products in each sum


def _sum(states: torch.Tensor) -> torch.Tensor:
    return states.sum(dtype=torch.promote_types(states.dtype, torch.float32))


def _is_zero(parameter: torch.Tensor | None) -> bool:
    """Whether it is nothing, or a single zero seen in the shape of a matrix."""
    if parameter is None:
        return True
    plain = type(parameter) in (torch.Tensor, nn.Parameter) and parameter.layout == torch.strided
    single = plain and not any(parameter.stride()) and not parameter.is_meta and parameter.numel() > 0
    return single and not parameter.detach().as_strided((), ()).item()


def _makeup(module: nn.Module) -> tuple[Any, ...]:
    """Its type, and that of all that it holds, by their names."""
    return type(module), *((name, _makeup(part)) for name, part in module._modules.items() if part is not None)


def _given(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> list[torch.Tensor] | None:
    """The tensors among what a module is given; None: there is something else that it could write to."""
    try:
        reach = Reach.of((arguments, *keywords.values()))
    except UnknownValueError:
        return None
    return None if reach.holders else reach.tensors


def _is_silence(output: Any, ending: Ending) -> bool:
    """Whether this is what `ending.zeros()` gives, to the last bit."""
    row: tuple[Any, ...] = output if ending.entries and type(output) is tuple else (output,)
    first = row[0] if row else None
    if len(row) != max(1, ending.entries) or any(one is not None for one in row[1:]) or type(first) is not torch.Tensor:
        return False
    alike = first.dtype == ending.dtype and first.shape == ending.shape and first.is_contiguous()
    return alike and not first.any().item() and not first.signbit().any().item()
