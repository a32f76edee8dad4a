"""Values that a module is given and gives: what kinds there are, and what can be reached from them."""

from __future__ import annotations

import enum
import functools
import operator
import types
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


class UnknownValueError(Exception):
    """A value of a kind that cannot be copied, or looked into; the message says which."""


@dataclass
class Reach:
    """What can be reached from some values: what may change, in the order in which it is found, and tensors.

    Args:
        holders: lists, dictionaries, sets and plain objects, each once.
        tensors: all tensors.
        objects: those of the holders that are plain objects, such as a KV cache, or are held by one.
        inside: whether a plain object, such as a KV cache, holds a matrix or more; numbers and empty rows do not count.
    """

    holders: list[Any]
    tensors: list[torch.Tensor]
    objects: list[Any]
    inside: bool = False

    @classmethod
    def of(cls, value: Any) -> Reach:
        """What can be reached from a value.

        Raises:
            UnknownValueError: if there is something that cannot be looked into.
        """
        found = cls([], [], [])
        _visit(value, found, set(), False)
        return found


count_of_writes = operator.attrgetter("_version")  # of a tensor


def contents(holder: Any) -> tuple[Any, tuple[tuple[str, Any], ...]]:
    """What a holder holds now: its entries (None for a plain object) and its attributes."""
    if type(holder) is dict:
        return tuple(holder.items()), ()
    attributes = tuple(getattr(holder, "__dict__", {}).items())
    if isinstance(holder, dict):
        return tuple(holder.items()), attributes
    return (tuple(holder) if isinstance(holder, list | set) else None), attributes


def is_holder(value: Any) -> bool:
    """Whether a value can be changed, and what it holds can be seen."""
    return kind_of(type(value)) in ("container", "object")


def shallow(holder: Any) -> Iterator[Any]:
    """What a holder holds, one by one, as ids of living things."""
    entries, attributes = contents(holder)
    if isinstance(holder, dict):
        for key, one in entries:
            yield key
            yield one
    elif entries is not None:
        yield from entries
    for name, one in attributes:
        yield name
        yield one


_ATOMS = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    frozenset,
    range,
    slice,
    functools.partial,
    type(...),
    enum.Enum,
    type,
    nn.Module,
    torch.Size,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
)
_CONTAINERS = (OrderedDict, dict, list, set)
_CONFIGS = ("PreTrainedConfig", "PretrainedConfig")  # settings of a whole model, which take no part in a forward
_HEAP = 1 << 9  # of a type's flags: written in Python


@functools.cache
def kind_of(kind: type[Any]) -> str:
    """One of "atom" (it cannot change), "tensor", "tuple", "container", "object" (these can), and "unknown"."""
    if issubclass(kind, torch.Tensor):
        return "tensor"
    if issubclass(kind, _ATOMS) or any(base.__name__ in _CONFIGS for base in kind.__mro__):
        return "atom"
    if issubclass(kind, tuple):
        return "tuple"
    in_python = all(base in (object, *_CONTAINERS) or base.__flags__ & _HEAP for base in kind.__mro__)
    if not in_python or any(getattr(base, "__slots__", ()) for base in kind.__mro__):
        return "unknown"
    return "container" if issubclass(kind, _CONTAINERS) else "object"


def base_of(kind: type[Any]) -> Any:
    """The built-in type that makes and fills objects of a kind."""
    return next((base for base in _CONTAINERS if issubclass(kind, base)), object)


def _visit(value: Any, found: Reach, seen: set[int], inside: bool) -> None:
    kind = kind_of(type(value))
    if kind == "atom":
        return
    if kind == "tensor":
        found.tensors.append(value)
        found.inside = found.inside or (inside and value.dim() > 1)
    elif kind == "tuple":
        for entry in value:
            kind = kind_of(type(entry))
            if kind == "tensor":
                found.tensors.append(entry)
                found.inside = found.inside or (inside and entry.dim() > 1)
            elif kind != "atom":  # nearly always it is
                _visit(entry, found, seen, inside)
    elif kind == "unknown":
        raise UnknownValueError(f"a {type(value).__name__}")
    elif id(value) not in seen:
        seen.add(id(value))
        found.holders.append(value)
        inside = inside or kind == "object"
        if inside:
            found.objects.append(value)
        for one in shallow(value):
            if kind_of(type(one)) != "atom":
                _visit(one, found, seen, inside)
