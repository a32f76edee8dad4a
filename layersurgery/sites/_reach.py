"""What reaches what inside a site, read off the derivatives of a flow, and the pieces of parameters that it makes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import nn

from layersurgery.sites._flow import Axis, Flow, Use
from layersurgery.sites._geometry import Piece

NOBODY = frozenset[int]()


@dataclass(frozen=True)
class Inside:
    """What a flow holds of one site.

    Attributes:
        uses: its products, in order.
        values: values of its parameters that act entry by entry.
        parameters: its parameters by name, relative to the site.
        shared: ids of those products and values that something outside the site reads as well, or whose trace is lost.
        others: the products of the rest of the model.
        kept: its keys and values are kept for later, by a part of the model that did not run: what reaches other
            positions may be read there.
    """

    uses: tuple[Use, ...]
    values: tuple[tuple[nn.Parameter, torch.Tensor], ...]
    parameters: Mapping[str, nn.Parameter]
    shared: frozenset[int]
    others: tuple[torch.Tensor, ...]
    kept: bool = False

    @classmethod
    def of(cls, flow: Flow, parameters: Mapping[str, nn.Parameter], *, kept: bool = False) -> Inside:
        """The part of a flow that belongs to a site with these parameters."""
        own = {id(parameter) for parameter in parameters.values()}
        uses = tuple(use for use in flow.uses if id(use.out.parameter) in own)
        values = tuple(pair for pair in flow.values if id(pair[0]) in own)
        outside = [use for use in flow.uses if id(use.out.parameter) not in own]
        leaves = {*(id(use.made) for use in uses), *(id(value) for _, value in values)}
        shared = reached((*(use.given for use in outside), *flow.lost), leaves)
        return cls(uses, values, parameters, frozenset(shared), tuple(use.made for use in outside), kept)

    def name(self, parameter: nn.Parameter) -> str | None:
        """The name of a parameter of the site."""
        return next((name for name, own in self.parameters.items() if own is parameter), None)

    def structure(self) -> tuple[Any, ...]:
        """What is the same for sites whose parameters divide in the same way."""
        uses = (
            (self.name(use.out.parameter), use.out.dim, use.out.start, use.given.shape, id(use.made) in self.shared)
            for use in self.uses
        )
        values = ((self.name(parameter), id(value) in self.shared) for parameter, value in self.values)
        return (self.kept, *uses, *values, *((name, parameter.shape) for name, parameter in self.parameters.items()))

    def rows(self, use: Use, own: Sequence[frozenset[int]], letters: Sequence[str]) -> Iterator[Piece]:
        """What makes the entries of a product: rows of the matrix, and numbers of the bias."""
        yield from self.pieces(use.out, own, letters)
        bias = self._bias(use)
        if bias is not None:
            yield from self.pieces(bias, own, letters)

    def columns(self, use: Use, own: Sequence[frozenset[int]], letter: str) -> Iterator[Piece]:
        """What reads the entries that a matrix is given: its columns. The bias is nobody's."""
        yield from self.pieces(use.into, own, [letter] * len(own))
        bias = self._bias(use)
        if bias is not None:
            size = use.made.shape[-1]
            yield from self.pieces(bias, [NOBODY] * size, [letter] * size)

    def _bias(self, use: Use) -> Axis | None:
        """What is added to a product: in the same step, or later, if it is called the matrix's bias (of experts)."""
        later = self.parameters.get(f"{self.name(use.out.parameter)}_bias")
        if use.bias is not None or later is None or later.shape[-1] != use.made.shape[-1]:
            return use.bias
        return Axis(later, later.dim() - 1)

    def pieces(self, axis: Axis, own: Sequence[frozenset[int]], letters: Sequence[str]) -> Iterator[Piece]:
        """Runs of entries along an axis that belong to the same heads and projection."""
        name = self.name(axis.parameter)
        if name is None:
            return
        each = axis.parameter.numel() // max(1, axis.parameter.shape[axis.dim])
        for (heads, letter), run in groupby(range(len(own)), key=lambda at: (own[at], letters[at])):
            at = [axis.start + entry for entry in run]
            if heads or letter:
                yield Piece(name, axis.dim, at[0], at[-1] + 1, each, heads, letter)


class Reach:
    """Which entries of some leaves reach which columns of what a matrix reads.

    Args:
        read: what the matrix reads; [..., width].
        made: products of other matrices; the entries of each are its last dimension.
        vectors: values of parameters; all their numbers are entries.
    """

    def __init__(self, read: torch.Tensor, made: Sequence[torch.Tensor], vectors: Sequence[torch.Tensor] = ()) -> None:
        self.width = read.shape[-1]
        self.sizes = [*(leaf.shape[-1] for leaf in made), *(leaf.numel() for leaf in vectors)]
        self._rows = read.reshape(-1, self.width)
        self._leaves = [*made, *vectors]
        draw = torch.Generator().manual_seed(1)
        self._weights = torch.rand(self._rows.shape, generator=draw, dtype=read.dtype) + 0.5

    def of(self, first: int, end: int) -> torch.Tensor:
        """Entries that reach the columns from `first` to before `end`: [entries], bool, leaf after leaf."""
        return self._joined(rows.any(0) for rows in self._reaching(slice(None), slice(first, end)))

    def positions(self) -> torch.Tensor:
        """How many positions of each entry reach the last row: [entries]; 1 for queries, several for keys, values."""
        return self._joined(rows.sum(0) for rows in self._reaching(slice(-1, None), slice(None)))

    def _joined(self, entries: Iterable[torch.Tensor]) -> torch.Tensor:
        return torch.cat([torch.zeros(0, dtype=torch.bool), *entries])

    def _reaching(self, rows: slice, columns: slice) -> list[torch.Tensor]:
        total = (self._rows[rows, columns] * self._weights[rows, columns]).sum()
        grads = gradients(total, self._leaves)
        return [(grad != 0).reshape(-1, size) for grad, size in zip(grads, self.sizes, strict=True)]


def mixes(read: torch.Tensor, made: Iterable[torch.Tensor]) -> bool:
    """Whether one row of what a matrix reads depends on several rows of what another matrix made."""
    leaves = [leaf for leaf in made if leaf.dim() > 1]
    near = reached([read], {id(leaf) for leaf in leaves})
    leaves = [leaf for leaf in leaves if id(leaf) in near]
    if not leaves:
        return False
    last = read.reshape(-1, read.shape[-1])[-1]
    grads = gradients((last * torch.linspace(0.5, 1.5, len(last))).sum(), leaves)
    return any(int((grad != 0).reshape(-1, grad.shape[-1]).any(-1).sum()) > 1 for grad in grads)


def reached(tensors: Iterable[torch.Tensor], wanted: set[int]) -> set[int]:
    """Ids of those leaves that the tensors' histories lead back to."""
    found: set[int] = set()
    seen: set[object] = set()
    todo: list[Any] = []
    for tensor in tensors:
        if tensor.grad_fn is not None:
            todo.append(tensor.grad_fn)
        elif id(tensor) in wanted:
            found.add(id(tensor))
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)  # what autograd ends in
        if leaf is not None and id(leaf) in wanted:
            found.add(id(leaf))
        todo += [before for before, _ in node.next_functions if before is not None]
    return found


def gradients(total: torch.Tensor, leaves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The derivatives of a number by each leaf; zeros where it does not depend on it."""
    if not leaves or not total.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return [*torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)]
