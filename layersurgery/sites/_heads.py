"""Which head, and which of q, k, v and o, each row of an attention's matrices belongs to.

What a head computes is a stretch of what the output projection reads. Entries of the other parameters that reach one
head's stretch and no other are that head's own; how they act there tells queries, keys and values apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import nn

from layersurgery.sites._flow import Axis, Use
from layersurgery.sites._geometry import Geometry, Piece
from layersurgery.sites._names import words
from layersurgery.sites._reach import NOBODY, Inside, Reach, mixes, reached


def outputs_of(inside: Inside, *, sure: bool) -> list[Use]:
    """The products of a site that read what its tokens mixed.

    Args:
        inside: what flows there.
        sure: it is an attention; then its keys and values may all come from outside, as shared ones do.
    """
    found = [use for use in inside.uses if mixes(use.given, (other.made for other in inside.uses if other is not use))]
    return found or [use for use in inside.uses if sure and mixes(use.given, inside.others)]


def attention(inside: Inside, outputs: Sequence[Use], head_counts: frozenset[int]) -> Geometry:
    """Heads and projections of an attention.

    Args:
        inside: what flows there.
        outputs: the products that read what its tokens mixed; there may be none.
        head_counts: the numbers of heads that its modules speak of; empty: none.
    """
    if not outputs:
        return Geometry(why_no_heads="no matrix in it reads what its tokens mixed")
    first = outputs[0]
    together = [use for use in outputs if _same(use.given, first.given)]
    parameters = {id(use.out.parameter) for use in together}
    if any(id(use.out.parameter) not in parameters for use in outputs):
        return Geometry(why_no_heads="more than one matrix reads what its tokens mixed")
    ways = _ways(inside, outputs)
    reach = ways[0].reach
    edges = next((found for count in _divisors(reach.width) if (found := _edges(reach, count)) is not None), None)
    heads = 0 if edges is None else len(edges)
    letters = _letters(reach, edges, _owners(reach, heads), [_said(inside, use) for use in ways[0].uses])
    doubt = _doubt(heads, head_counts)
    heads = 0 if doubt else heads
    pieces = _merged(inside, ways, heads, letters)
    for use in together:
        own = [frozenset({column * heads // reach.width}) if heads else NOBODY for column in range(reach.width)]
        pieces += inside.columns(use, own, "o")
    return Geometry(heads, tuple(pieces), doubt)


@dataclass(frozen=True)
class _Way:
    """What reaches the output projection in one of its uses.

    Attributes:
        uses: products that do.
        vectors: parameters that act entry by entry and do, and their values.
        mixed: ids of those products and values that are no head's own: they go on through another matrix of the site,
            or out of it.
    """

    uses: list[Use]
    vectors: list[tuple[nn.Parameter, torch.Tensor]]
    mixed: set[int]
    reach: Reach

    def entries(self) -> Iterator[tuple[Axis, Axis | None, slice, bool]]:
        """Of each leaf: where its entries are in a parameter and a bias, which entries, whether they may be owned."""
        start = 0
        leaves = [
            *((use.out, use.bias, use.made) for use in self.uses),
            *((Axis(parameter, _long_dim(parameter)), None, value) for parameter, value in self.vectors),
        ]
        for (axis, bias, leaf), size in zip(leaves, self.reach.sizes, strict=True):
            yield axis, bias, slice(start, start + size), id(leaf) not in self.mixed
            start += size


def _ways(inside: Inside, outputs: Sequence[Use]) -> list[_Way]:
    """The different ways in which the output projection is reached; a module that runs again runs in the same way."""
    inner = [use for use in inside.uses if not any(use is output for output in outputs)]
    vectors = [(parameter, value) for parameter, value in inside.values if _long(value) <= 1]
    ids = {*(id(use.made) for use in inner), *(id(value) for _, value in vectors)}
    mixed = reached((use.given for use in inner), ids) | inside.shared
    ways: dict[tuple[Any, ...], _Way] = {}
    for output in outputs:
        near = reached([output.given], ids)
        uses = [use for use in inner if id(use.made) in near]
        values = [pair for pair in vectors if id(pair[1]) in near]
        key = (output.given.shape, *((id(use.out.parameter), use.out.start, use.made.shape) for use in uses))
        if key not in ways:
            reach = Reach(output.given, [use.made for use in uses], [value for _, value in values])
            ways[key] = _Way(uses, values, mixed, reach)
    return list(ways.values())


def _merged(inside: Inside, ways: Sequence[_Way], heads: int, letters: Sequence[str]) -> list[Piece]:
    """Pieces of the parameters that reach the output; one that is used several times is what it is in all its uses."""
    owned: dict[Axis, list[frozenset[int]]] = {}
    said: dict[Axis, list[str]] = {}
    for at, way in enumerate(ways):
        owners = _owners(way.reach, heads)
        if inside.kept:
            positions = way.reach.positions().tolist()
            owners = [own if count < 2 else NOBODY for own, count in zip(owners, positions, strict=True)]
        for axis, bias, entries, may in way.entries():
            own = owners[entries] if may else [NOBODY] * len(owners[entries])
            before = owned.get(axis, own)
            for place in (axis, bias):
                if place is None:
                    continue
                owned[place] = [a if a == b else NOBODY for a, b in zip(own, before, strict=True)]
                if at == 0:
                    seen = letters[entries]
                    said[place] = [a if a == b else "" for a, b in zip(seen, said.get(place, seen), strict=True)]
    return [piece for axis, own in owned.items() for piece in inside.pieces(axis, own, said.get(axis, [""] * len(own)))]


def _doubt(heads: int, said: frozenset[int]) -> str:
    """Why the number of heads that was found is not to be believed; empty: it is."""
    if not heads or (heads == 1 and not said):
        return "what reaches its output projection does not fall into heads"
    if said and heads not in said:
        counts = " or ".join(map(str, sorted(said)))
        return f"its modules or their config speak of {counts} heads, but what it computes has {heads} separate part(s)"
    return ""


def _edges(reach: Reach, heads: int) -> torch.Tensor | None:
    """If the columns fall into this many heads: what reaches first and last column of each; [heads, 2, entries], bool.

    They do if in each stretch something reaches its first and its last column, and no other stretch: queries, or the
    gain of a norm on them. The largest number that fits is the number of heads: nothing reaches both ends of two heads
    alone, for where keys are shared by a group, queries are not; and what reaches a half reaches the other half.
    """
    width = reach.width // heads
    edges: list[torch.Tensor] = []
    for start in range(0, reach.width, width):
        edges.append(torch.stack([reach.of(at, at + 1) for at in (start, start + width - 1)]))
        if len(edges) == 2 and not _alone(torch.stack(edges))[0]:
            return None
    stacked = torch.stack(edges)
    return stacked if bool(_alone(stacked).all()) else None


def _alone(edges: torch.Tensor) -> torch.Tensor:
    shared = edges.any(1).sum(0) > 1
    return (edges.all(1) & ~shared).any(1)


def _owners(reach: Reach, heads: int) -> list[frozenset[int]]:
    """The heads that each entry reaches."""
    if not heads:
        return [NOBODY] * sum(reach.sizes)
    width = reach.width // heads
    table = torch.stack([reach.of(start, start + width) for start in range(0, reach.width, width)])
    known: dict[tuple[bool, ...], frozenset[int]] = {}
    return [
        known.setdefault(does := tuple(column), frozenset(head for head, reaches in enumerate(does) if reaches))
        for column in table.T.tolist()
    ]


def _letters(
    reach: Reach, edges: torch.Tensor | None, owners: Sequence[frozenset[int]], said: Sequence[str | None]
) -> list[str]:
    """q, k or v of each entry; empty where it is none of them, or where that cannot be told.

    A query acts on its own position and on its whole head, a key on other positions and its whole head, a value on
    other positions and on one column. Where a norm or a gate lies between, a value looks like a key, or a gate like a
    query; then what a module is called decides, if all its rows look alike. In the end a head's queries and keys must
    be equally many.
    """
    total = sum(reach.sizes)
    if edges is None:
        return [""] * total
    positions, whole = reach.positions().tolist(), edges.all(1).any(0).tolist()
    letters: list[str] = []
    for size, name in zip(reach.sizes, said, strict=False):  # what comes after the matrices are vectors
        rows = range(len(letters), len(letters) + size)
        seen = [_LETTERS.get((positions[at] > 1, whole[at]), "") if positions[at] else "" for at in rows]
        letters += [name] * size if name is not None and {*seen} in _CONFUSED[name] else seen
    letters += [""] * (total - len(letters))
    strangers = _without_strangers(letters, reach.sizes, said)
    named = _as_called(letters, reach.sizes, said)
    if "q" not in named:
        named = [""] * total  # some of it took a way that cannot be followed
    return next((guess for guess in (letters, strangers) if _plausible(guess, owners)), named)


def _plausible(letters: Sequence[str], owners: Sequence[frozenset[int]]) -> bool:
    there = {letter for letter in letters if letter}
    queries, keys = (
        sum(at == letter and 0 in own for at, own in zip(letters, owners, strict=True)) for letter in ("q", "k")
    )
    return there == {"q"} or (there == {"q", "k", "v"} and queries == keys)


def _as_called(letters: list[str], sizes: Sequence[int], said: Sequence[str | None]) -> list[str]:
    """Only what belongs to matrices whose rows all act as their names say."""
    kept: list[str] = []
    for size, name in zip_longest(sizes, said):
        rows = letters[len(kept) : len(kept) + size]
        kept += rows if name and {*rows} == {name} else [""] * size
    return kept


def _without_strangers(letters: list[str], sizes: Sequence[int], said: Sequence[str | None]) -> list[str]:
    """Only what belongs to matrices that are called queries, keys or values."""
    kept: list[str] = []
    for size, name in zip_longest(sizes, said):
        kept += letters[len(kept) : len(kept) + size] if name else [""] * size
    return kept


def _said(inside: Inside, use: Use) -> str | None:
    """The projection that a matrix is called after; empty: a gate; None: another name."""
    name = (inside.name(use.out.parameter) or "").removesuffix(".weight").rsplit(".", 1)[-1]
    return next((letter for letter, hints in _CALLED.items() if words(name) & hints), None)


_LETTERS = {(False, True): "q", (True, True): "k", (True, False): "v"}  # by: other positions, the whole head
_CALLED = {"": {"gate", "g"}, "q": {"q", "query"}, "k": {"k", "key"}, "v": {"v", "value"}}
_CONFUSED: dict[str, Iterable[set[str]]] = {"": [{"q"}], "q": [], "k": [], "v": [{"k"}]}  # what these may look like


def _divisors(width: int) -> list[int]:
    """Numbers of heads that are possible, the largest first; a head of one column could be anything."""
    return [count for count in range(width // 2, 0, -1) if width % count == 0]


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _long(tensor: torch.Tensor) -> int:
    return sum(size > 1 for size in tensor.shape)


def _long_dim(tensor: torch.Tensor) -> int:
    return max(range(tensor.dim()), key=lambda at: tensor.shape[at], default=0)
