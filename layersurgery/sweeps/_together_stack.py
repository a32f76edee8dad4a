"""Short forwards: all variants as the rows of one, where each layer computes only the rows that differ by then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from layersurgery.surgery import Surgery
from layersurgery.sweeps._prefix_reach import Reach, UnknownValueError
from layersurgery.sweeps._prefix_record import Pass
from layersurgery.sweeps._prefix_tail import Kept, Tail, some_of
from layersurgery.sweeps._prefix_values import Freezer, Held, same, thaw
from layersurgery.sweeps._stand_ins import Forward, StandIns
from layersurgery.sweeps._together_rows import Rowwise, Variant
from layersurgery.sweeps._together_values import CannotError

FEW = 64  # tokens in all: of more, sharing the prefix alone is as good


@dataclass(eq=False)
class Short:
    """A short call of the model by the scorer, on the unmodified model.

    Args:
        recorded: the call.
        samples: how many rows it had.
        output: what it gave, frozen; None: that is not known yet.
        found: of each variant, what was computed for some at once, and which of these it is.
    """

    recorded: Pass
    samples: int
    output: Any = None
    found: dict[Surgery, tuple[Stacked, int]] = field(default_factory=dict[Surgery, "tuple[Stacked, int]"])

    def has(self, surgery: Surgery) -> bool:
        """Whether it is known what the model gives with a surgery, and nobody has written into that."""
        return surgery in self.found and self.found[surgery][0].is_intact

    def answer(self, surgery: Surgery) -> Any:
        """What the model gives with a surgery."""
        stacked, number = self.found[surgery]
        return stacked.part(number)


class Stacked:
    """What the model gave for several variants.

    Args:
        output: the output.
        samples: how many rows there are of each.
    """

    def __init__(self, output: Any, samples: int) -> None:
        freezer = Freezer()
        freezer.freeze(output)  # counts who writes into what is given out, which may be rows of several
        self._output, self._samples, self._held = output, samples, freezer.held

    @property
    def is_intact(self) -> bool:
        """Whether nobody has written into it."""
        return all(held.is_intact for held in self._held)

    def part(self, number: int) -> Any:
        """The rows of a variant, in fresh containers; where it has none, it does not differ from the first."""
        return thaw(_Narrower(number, self._samples).freeze(self._output))


def is_short(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
    """Whether a call is of a few tokens, and of nothing else."""
    try:
        reach = Reach.of((arguments, keywords))
    except UnknownValueError:
        return False
    tensors = reach.tensors
    if reach.objects or not tensors or any(one.is_floating_point() or one.dim() != 2 for one in tensors):
        return False
    return len({one.shape for one in tensors}) == 1 and tensors[0].numel() <= FEW


def differs(output: Any, other: Any) -> bool:
    """Whether two outputs differ by more than rounding."""
    ours, theirs = Reach.of(output).tensors, Reach.of(other).tensors
    return len(ours) != len(theirs) or any(map(_differ, ours, theirs))


class Stack:
    """One forward for several variants, the unmodified model first.

    Args:
        model: the model.
        recorded: the call on the unmodified model.
        samples: how many rows it had.
        variants: the variants, in the order in which they begin to differ.
        layers: of each variant, the layer in which it does.
        tail: what is needed at scored positions only; None: there is no such thing.
    """

    def __init__(
        self,
        model: nn.Module,
        recorded: Pass,
        samples: int,
        variants: Sequence[Variant],
        layers: Sequence[nn.Module],
        *,
        tail: Tail | None = None,
    ) -> None:
        self._tail = tail
        self._kept: Kept | None = None
        self._model, self._recorded, self._samples = model, recorded, samples
        self._rows = samples * (len(variants) + 1)
        parts = [(slice(samples * number, samples * (number + 1)), one) for number, one in enumerate(variants, 1)]
        self._rowwise = Rowwise(parts, self._rows)
        self._rowwise.active = True
        begins = [recorded.first[layer] for layer in layers]
        self._heads = {
            layer: samples * (1 + sum(begin <= recorded.first[layer] for begin in begins))
            for chosen in layers
            for layer in siblings(model, chosen)
            if layer in recorded.first
        }

    def output(self, watched: bool) -> Any:
        """What the model gives for all of them.

        Args:
            watched: make sure that no module uses the weights of another one.
        """
        arguments, keywords = thaw(self._recorded.inputs)
        if not same(self._recorded.inputs, (arguments, keywords)):
            raise CannotError("what the model was given has changed since")
        arguments, keywords = self._repeated(arguments), self._repeated(keywords)
        if self._tail is not None:
            self._kept = self._tail.kept(self._recorded, arguments, keywords)
        late = [] if self._tail is None or self._kept is None else self._tail.modules
        with StandIns({*self._heads, *self._rowwise.modules, *late}, self._called):
            if not watched:
                return self._model(*arguments, **keywords)
            with self._rowwise.watching():
                return self._model(*arguments, **keywords)

    def _repeated(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.repeat(self._rows // self._samples, *(1,) * (value.dim() - 1))
        return _each(value, self._repeated)

    def _called(self, module: nn.Module, forward: Forward, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        head = self._heads.get(module)
        if head is None and self._kept is not None and self._tail is not None and module in self._tail.modules:
            return some_of(self._row_by_row(module, forward), arguments, keywords, self._kept)
        if head is None:
            return self._row_by_row(module, forward)(*arguments, **keywords)
        if head == self._rows:
            return forward(*arguments, **keywords)
        self._rowwise.rows = head
        try:
            output = forward(*self._narrowed(arguments, head), **self._narrowed(keywords, head))
        finally:
            self._rowwise.rows = self._rows
        return self._filled(output, head)

    def _row_by_row(self, module: nn.Module, forward: Forward) -> Forward:
        if module not in self._rowwise.modules:
            return forward
        return lambda *arguments, **keywords: self._rowwise.called(module, forward, arguments, keywords)

    def _narrowed(self, value: Any, head: int) -> Any:
        if isinstance(value, torch.Tensor):
            return value[:head] if value.dim() and len(value) == self._rows else value
        return _each(value, lambda one: self._narrowed(one, head))

    def _filled(self, value: Any, head: int) -> Any:
        """The rows that do not differ by now are those of the unmodified model."""
        if isinstance(value, torch.Tensor):
            if not value.dim() or len(value) != head:
                raise CannotError("what a layer gives has not one row for each sample")
            return torch.cat([value, *[value[: self._samples]] * ((self._rows - head) // self._samples)])
        return _each(value, lambda one: self._filled(one, head))


def layer_of(model: nn.Module, variant: Variant, recorded: Pass) -> nn.Module:
    """The layer in which a variant begins to differ.

    Raises:
        CannotError: if there is no layer that holds all that it changes, and runs once.
    """
    path = variant.surgery.steps[0].site.path
    holder, found = model, None
    for name in path.split("."):
        child = getattr(holder, name)
        if isinstance(holder, nn.ModuleList | nn.Sequential):
            found = child
            break
        holder = child
    if found is None or not set(variant.weights) <= set(found.modules()):
        raise CannotError("it is not within a layer")
    if recorded.events.count(found) != 1 or any(module not in recorded.first for module in variant.weights):
        raise CannotError("its layer does not run once, all of it")
    return found


def siblings(model: nn.Module, layer: nn.Module) -> list[nn.Module]:
    """The layers beside a layer, and itself."""
    for holder in model.modules():
        if isinstance(holder, nn.ModuleList | nn.Sequential) and layer in holder.children():
            return list(holder.children())
    return [layer]


class _Narrower(Freezer):
    """Takes a value apart, of its tensors only some rows."""

    def __init__(self, number: int, samples: int) -> None:
        super().__init__()
        self._number, self._samples = number, samples

    def _hold(self, tensor: torch.Tensor) -> Held:
        begin, end = self._number * self._samples, (self._number + 1) * self._samples
        rows = tensor
        if tensor.dim() and not len(tensor) % self._samples:
            rows = tensor[begin:end] if end <= len(tensor) else tensor[: self._samples]
        return Held(rows.clone() if rows.is_inference() else rows, 0)


def _each(value: Any, change: Any) -> Any:
    """A value with all that it holds changed; what holds nothing stays."""
    if type(value) in (tuple, list):
        return type(value)(map(change, value))
    if type(value) is dict:
        return {name: change(one) for name, one in value.items()}
    return value


def _differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return True
    if not one.is_floating_point() or not one.numel():
        return not torch.equal(one, other)
    size = max(1.0, float(other.abs().amax()))
    rounding = max(1e-5, 16 * torch.finfo(one.dtype).eps)
    return not bool(((one - other).abs() <= rounding * size).all())
