"""`Outline`: how the sites of one selection divide into heads and projections, found when it is first asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from layersurgery.sites._example import Call
from layersurgery.sites._factors import feed_forward
from layersurgery.sites._flow import flow
from layersurgery.sites._geometry import Geometry
from layersurgery.sites._heads import attention, outputs_of
from layersurgery.sites._names import words
from layersurgery.sites._reach import Inside
from layersurgery.sites._roles import FEED_FORWARD, MIXER
from layersurgery.sites._site import Site
from layersurgery.sites._trace import Trace

_Key = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class _Place:
    """A site in the model's shadow, and the run in which it ran; `partial`: that was a part of the model by itself."""

    twin: nn.Module | None
    run: tuple[nn.Module, Call] | None
    partial: bool
    role: str


class Outline:
    """The geometries of the sites of one selection.

    It holds on to the weightless copy that a trace made, and not to the model. Copies of a site share it, and a
    pickled site leaves it behind.

    Args:
        trace: what was seen of the model.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._places: dict[_Key, _Place] = {}
        self._known: dict[_Key, Geometry] = {}

    def note(self, site: Site, model: nn.Module) -> Outline:
        """Remember where a site is; returns itself."""
        top = model.get_submodule(site.path)
        run = self._trace.run_of(model.get_submodule(path) for path in site.modules)
        if run is None and not site.parts:  # such as cross-attention in a decoder that ran without an encoder
            top = next((other for other in model.modules() if _same(other, top) and self._trace.of(other)), top)
            run = self._trace.run_of([top])
        partial = run is not None and run[0] is not self._trace.twin(model)
        self._places[site.path, site.parts] = _Place(self._trace.twin(top), run, partial, site.role)
        return self

    def of(self, site: Site) -> Geometry:
        """The geometry of a site that was noted."""
        key = (site.path, site.parts)
        if key not in self._known:
            self._find(key)
        return self._known[key]

    def __deepcopy__(self, memo: dict[int, Any]) -> Outline:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _absent, ()

    def _find(self, key: _Key) -> None:
        place = self._places[key]
        if place.twin is None or place.run is None:
            why = self._trace.why_not or "nothing shows how it is called; give select an example input (example=...)"
            self._known[key] = Geometry(why_nothing=f"it did not run ({why})")
            return
        try:
            self._known.update(self._alike(key, *place.run))
        except Exception as error:  # whatever a foreign forward raises where its weights have no values
            why = f"following what flows there failed: {type(error).__name__}: {error}"
            self._known[key] = Geometry(why_nothing=why)

    def _alike(self, key: _Key, top: nn.Module, call: Call) -> dict[_Key, Geometry]:
        """The geometries of this site and of the same one in other layers, all from one forward."""
        found: dict[_Key, Geometry] = {}
        with flow(top, *call) as flowing:
            known: dict[Any, Geometry] = {}
            for other, place in self._places.items():
                if place.twin is None or place.run is None or place.run[0] is not top or not _similar(other, key):
                    continue
                kept = place.partial and _has_cache(place.twin)
                inside = Inside.of(flowing, dict(_parameters(place.twin, other[1])), kept=kept)
                counts = frozenset(_head_counts(place.twin))
                same = (inside.structure(), counts)
                if same not in known:
                    known[same] = _geometry(inside, counts, place.role)
                found[other] = known[same]
        return found


def _geometry(inside: Inside, head_counts: frozenset[int], role: str) -> Geometry:
    outputs = outputs_of(inside, sure=role == MIXER) if role != FEED_FORWARD else []
    return attention(inside, outputs, head_counts) if outputs or role == MIXER else feed_forward(inside)


def _absent() -> None:
    """What a pickled outline becomes."""


def _similar(one: _Key, other: _Key) -> bool:
    """Whether two sites differ in numbers alone, such as that of their layer."""
    return _NUMBER.sub("#", one[0]) == _NUMBER.sub("#", other[0]) and one[1] == other[1]


def _parameters(twin: nn.Module, parts: tuple[str, ...]) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in twin.named_parameters():
        if not parts or any(name.startswith(part + ".") for part in parts):
            yield name, parameter


def _head_counts(twin: nn.Module) -> Iterator[int]:
    """Numbers of heads that the modules of a site keep as attributes, or else those in their configs."""
    kept = [value for module in twin.modules() for value in _heads_in(vars(module))]
    configs = (vars(module)["config"] for module in twin.modules() if "config" in vars(module))
    yield from kept or (value for config in configs for value in _heads_in(getattr(config, "__dict__", {})))


def _heads_in(attributes: Mapping[str, Any]) -> Iterator[int]:
    for name, value in attributes.items():
        said = words(name)
        if isinstance(value, int) and not isinstance(value, bool) and said & _HEADS and not said & _NOT_HEADS:
            yield value


def _has_cache(twin: nn.Module) -> bool:
    """Whether keys and values can be kept when the module is called."""
    return any(words(name) & {"cache", "past"} for name in signature(twin.forward).parameters)


def _same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules are of the same class, size and settings."""
    return type(one) is type(other) and _settings(one) == _settings(other) and _shapes(one) == _shapes(other)


def _shapes(module: nn.Module) -> list[tuple[str, Any]]:
    return [(name, None if is_lazy(parameter) else parameter.shape) for name, parameter in module.named_parameters()]


def _settings(module: nn.Module) -> dict[str, Any]:
    """Numbers that a module keeps; which layer it is in does not count."""
    plain = {name: value for name, value in vars(module).items() if isinstance(value, int | float)}
    return {name: value for name, value in plain.items() if "layer" not in words(name) and not isinstance(value, bool)}


_NUMBER = re.compile(r"\d+")
_HEADS = {"head", "heads", "nhead", "nheads"}
_NOT_HEADS = {"kv", "key", "value", "dim", "dims", "size", "width", "group", "groups", "per", "index", "idx", "layer"}
