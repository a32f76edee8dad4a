"""Which rows of a feed-forward's matrices are gate, up and down: by how its last matrix's input depends on the others.

Each entry that "down" reads is made of one row of "up", and where there is a gate, of one row of it as well. The factor
that goes in as it is is "up"; the one that goes through an activation function is "gate".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import torch

from layersurgery.sites._flow import Use
from layersurgery.sites._geometry import Geometry, Piece
from layersurgery.sites._names import words
from layersurgery.sites._reach import NOBODY, Inside, Reach, gradients, reached


def feed_forward(inside: Inside) -> Geometry:
    """Gate, up and down of a feed-forward, of all experts where there are several."""
    pieces: list[Piece] = []
    for down in inside.uses:
        if _routes(inside, down):
            continue
        for use, letters in _factors(down, inside):
            pieces += inside.rows(use, [NOBODY] * len(letters), letters)
            pieces += inside.columns(down, [NOBODY] * down.given.shape[-1], "down")
    there = tuple(dict.fromkeys(pieces))
    return Geometry(pieces=(*there, *_alike(there, inside)), why_no_heads="no matrix in it reads what its tokens mixed")


def _routes(inside: Inside, use: Use) -> bool:
    """Whether a matrix is part of a router, which may be a small feed-forward itself; only names tell that."""
    around = (inside.name(use.out.parameter) or "").split(".")[:-2]
    return any(words(name) & {"router", "gate"} for name in around)


def _alike(pieces: tuple[Piece, ...], inside: Inside) -> Iterator[Piece]:
    """The same pieces of experts that happened not to be chosen."""
    seen = {piece.parameter for piece in pieces}
    patterns: dict[tuple[str, torch.Size], dict[str, list[Piece]]] = {}
    for piece in pieces:
        key = (_NUMBER.sub("#", piece.parameter), inside.parameters[piece.parameter].shape)
        patterns.setdefault(key, {}).setdefault(piece.parameter, []).append(piece)
    for name, parameter in inside.parameters.items():
        found = patterns.get((_NUMBER.sub("#", name), parameter.shape))
        if found and name not in seen:
            yield from (replace(piece, parameter=name) for piece in next(iter(found.values())))


def _factors(down: Use, inside: Inside) -> list[tuple[Use, list[str]]]:
    """The products that reach what a matrix reads, column by column, and which of their rows are gate and which up."""
    near = reached([down.given], {id(use.made) for use in inside.uses})
    inner = [use for use in inside.uses if id(use.made) in near]
    width = down.given.shape[-1]
    columns = sorted({0, 1, width // 2, width - 1})
    reach = Reach(down.given, [use.made for use in inner])
    touched = [reach.of(column, column + 1).split(reach.sizes) for column in columns] if inner else []
    factors: list[Use] = []
    for at, use in enumerate(inner):
        rows = [[*entries[at].nonzero().flatten().tolist()] for entries in touched]
        size = use.made.shape[-1]
        if size == width and rows == [[column] for column in columns]:
            factors.append(use)
        elif size == 2 * width and rows == [[column, column + width] for column in columns]:
            return _told_apart(inside, down, [(use, torch.arange(size) < width), (use, torch.arange(size) >= width)])
        elif size == 2 * width and rows == [[2 * column, 2 * column + 1] for column in columns]:
            return _told_apart(inside, down, [(use, torch.arange(size) % 2 == 0), (use, torch.arange(size) % 2 == 1)])
    told = _told_apart(inside, down, [(use, torch.ones(width, dtype=torch.bool)) for use in factors])
    return told or _as_called(inside, [use for use in inner if use.made.shape[-1] == width])


def _as_called(inside: Inside, candidates: list[Use]) -> list[tuple[Use, list[str]]]:
    """Where a norm or a threshold over all entries lies between: the only candidate, or by what two are called."""
    called = [
        next((letter for letter in ("gate", "up") if letter in words(inside.name(use.out.parameter) or "")), "")
        for use in candidates
    ]
    names = ["up"] if len(candidates) == 1 else called
    if len(candidates) > 2 or "up" not in names or len({*names}) < len(names) or "" in names:
        return []
    return [(use, [name] * use.made.shape[-1]) for use, name in zip(candidates, names, strict=True)]


def _told_apart(inside: Inside, down: Use, factors: list[tuple[Use, torch.Tensor]]) -> list[tuple[Use, list[str]]]:
    """The factor that goes in as it is is "up"; the one that goes through an activation function is "gate".

    Args:
        inside: what flows in the site.
        down: the product whose input the factors make.
        factors: a product and which of its rows are this factor; [rows], bool.
    """
    if not 0 < len(factors) <= 2:
        return []
    bent = [_bends(down, *factor) for factor in factors]
    if len(factors) == 2 and bent[0] == bent[1]:
        name = inside.name(factors[0][0].out.parameter) or ""
        if factors[0][0] is not factors[1][0] or not {"gate", "up"} <= words(name):
            return []
        bent = [name.find("gate") < name.rfind("up"), name.rfind("up") < name.find("gate")]  # all that is left to go by
    names = ["gate" if does and len(factors) == 2 else "up" for does in bent]
    return [
        (use, [name if mine else "" for mine in rows.tolist()])
        for (use, rows), name in zip(factors, names, strict=True)
    ]


def _bends(down: Use, use: Use, rows: torch.Tensor) -> bool:
    """Whether what a matrix reads depends on these rows by more than proportion."""
    (slope,) = torch.autograd.grad(down.given.sum(), use.made, create_graph=True)
    if not slope.requires_grad:
        return False
    bend = gradients(slope[..., rows].sum(), [use.made])[0]
    return bool((bend[..., rows] != 0).any())


_NUMBER = re.compile(r"\d+")
