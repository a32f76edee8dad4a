"""What the heads and projections of a site own: pieces of its parameters, and the slices made of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import index

from layersurgery.errors import SelectionError, SiteIndexError
from layersurgery.sites._site import Slice

PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class Piece:
    """A run of entries of one parameter along one dimension.

    Args:
        parameter: its name, relative to the site's path.
        dim: the dimension.
        first: the first entry.
        end: the one after the last.
        each: numbers in one entry.
        heads: the heads whose computation the entries take part in; empty: not a matter of heads.
        projection: the projection that they are part of; empty: none.
    """

    parameter: str
    dim: int
    first: int
    end: int
    each: int
    heads: frozenset[int] = frozenset()
    projection: str = ""


@dataclass(frozen=True)
class Geometry:
    """How a site's parameters divide into heads and projections.

    Args:
        heads: number of heads; 0: not known.
        pieces: runs of entries that belong to heads or projections.
        why_no_heads: what stood in the way of telling heads.
        why_nothing: what stood in the way of telling anything.
    """

    heads: int = 0
    pieces: tuple[Piece, ...] = ()
    why_no_heads: str = ""
    why_nothing: str = ""

    def of_heads(self, numbers: Iterable[int] | int, site: str) -> tuple[tuple[int, ...], Selection]:
        """The heads meant, in order, and what belongs to them alone.

        Raises:
            SelectionError: if the site's heads are not known, or the numbers are none.
            SiteIndexError: if there is no such head.
        """
        if not self.heads:
            why = self.why_nothing or self.why_no_heads
            raise SelectionError(
                f"the heads of {site!r} cannot be told apart: {why}. Use its projections, the whole site, or "
                "layersurgery.select(model, pattern=...) with the module that you mean"
            )
        chosen = _numbers(numbers, self.heads, site)
        return chosen, _selection(piece for piece in self.pieces if piece.heads and piece.heads <= {*chosen})

    def of_projections(self, names: Iterable[str] | str, site: str) -> tuple[tuple[str, ...], Selection]:
        """The projections meant, in the order asked for, and all that they consist of.

        Raises:
            SelectionError: if the site has no such projection, or the names are none.
        """
        there = [name for name in PROJECTIONS if any(piece.projection == name for piece in self.pieces)]
        chosen = _names(names)
        missing = [name for name in chosen if name not in there]
        if missing:
            found = f"it has {', '.join(map(repr, there))}" if there else "none can be told apart in it"
            why = f" ({self.why_nothing})" if self.why_nothing else ""
            raise SelectionError(
                f"{site!r} has no projection {missing[0]!r}: {found}{why}. A module of its own is selected by "
                "layersurgery.select(model, pattern='*.name')"
            )
        return chosen, _selection(piece for piece in self.pieces if piece.projection in chosen)


@dataclass(frozen=True)
class Selection:
    """Slices of parameters, and how many numbers they hold."""

    slices: tuple[Slice, ...]
    parameters: int


def _selection(pieces: Iterable[Piece]) -> Selection:
    ranges: dict[tuple[str, int, int], list[tuple[int, int]]] = {}
    for piece in pieces:
        ranges.setdefault((piece.parameter, piece.dim, piece.each), []).append((piece.first, piece.end))
    joined = {key: _joined(found) for key, found in ranges.items()}
    slices = tuple(Slice(name, dim, found) for (name, dim, _), found in joined.items())
    total = sum(each * (end - first) for (_, _, each), found in joined.items() for first, end in found)
    return Selection(slices, total)


def _joined(ranges: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    joined: list[tuple[int, int]] = []
    for first, end in sorted(ranges):
        if joined and first <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((first, end))
    return tuple(joined)


def _numbers(numbers: Iterable[int] | int, heads: int, site: str) -> tuple[int, ...]:
    wanted = [numbers] if isinstance(numbers, int) else numbers
    try:
        chosen = [number if isinstance(number, bool) else index(number) for number in wanted]
    except TypeError:
        raise SelectionError(f"heads are whole numbers, such as [0, 4]; got {numbers!r}") from None
    if not chosen or any(isinstance(number, bool) for number in chosen):
        raise SelectionError(f"heads are one or more whole numbers, such as [0, 4]; got {numbers!r}")
    outside = [number for number in chosen if not 0 <= number < heads]
    if outside:
        raise SiteIndexError(f"{site!r} has no head {outside[0]}: its {heads} heads are 0 to {heads - 1}")
    if len({*chosen}) < len(chosen):
        raise SelectionError(f"a head is given twice in {numbers!r}; give each once")
    return tuple(sorted(chosen))


def _names(names: Iterable[str] | str) -> tuple[str, ...]:
    wanted = [names] if isinstance(names, str) else names
    known = ", ".join(map(repr, PROJECTIONS))
    try:
        chosen = list(wanted)
    except TypeError:
        raise SelectionError(f"projections are words out of {known}; got {names!r}") from None
    unknown = [name for name in chosen if name not in PROJECTIONS]
    if not chosen or unknown:
        raise SelectionError(f"projections are one or more of {known}; got {(unknown or [names])[0]!r}")
    if len({*chosen}) < len(chosen):
        raise SelectionError(f"a projection is given twice in {names!r}; give each once")
    return tuple(chosen)
