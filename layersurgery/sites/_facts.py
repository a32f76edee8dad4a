"""What is known of a site besides its place: class, size, how it adds to the stream, hazards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from layersurgery.sites._adds import Outlet, find_leaks, watch
from layersurgery.sites._behaviour import normalises
from layersurgery.sites._hazards import HAZARDS, Hazards
from layersurgery.sites._roles import FEED_FORWARD, MIXER
from layersurgery.sites._site import Site
from layersurgery.sites._trace import Trace


class Facts:
    """Completes sites of one model.

    Args:
        model: the model.
        trace: what was seen of it.
    """

    def __init__(self, model: nn.Module, trace: Trace) -> None:
        self._model = model
        self._trace = trace
        self._hazards = Hazards(model, trace.of)

    def complete(self, drafts: Sequence[Site], layers: Sequence[str]) -> list[Site]:
        """The sites with everything that is known of them; `layers`: names of all modules that are layers."""
        self._find_out([site for site in drafts if site.role in (MIXER, FEED_FORWARD, "module")], layers)
        return [self._completed(site) for site in drafts]

    def _completed(self, site: Site) -> Site:
        outlet = self._trace.outlets.get(_key(site))
        site = replace(
            site,
            module=type(self._model.get_submodule(site.path)).__name__,
            parameters=self._hazards.parameters(site),
            adds=self._adds(site, outlet),
        )
        found = {*self._hazards.of(site)}
        modules = [self._model.get_submodule(path) for path in site.modules]
        if site.role in (MIXER, FEED_FORWARD) and not self._trace.saw_whole(modules):
            found.add("unseen")
        if self._positions_come_first(modules):
            found.add("positions_first")
        if outlet is not None:
            found |= {name for name, present in outlet.hazards.items() if present}
        return replace(site, hazards=tuple(name for name in HAZARDS if name in found))

    def _adds(self, site: Site, outlet: Outlet | None) -> str:
        if site.role == "layer":
            record = self._trace.of(self._model.get_submodule(site.path))
            return f"input:{record.frame.where}" if record is not None and record.frame is not None else ""
        if outlet is not None:
            return outlet.adds
        return f"module:{site.parts[-1]}" if site.parts and site.role == FEED_FORWARD else ""

    def _positions_come_first(self, modules: Sequence[nn.Module]) -> bool:
        """Whether the states of these modules are the text turned round (XLNet)."""
        run = self._trace.run_of(modules)
        frames = [record.frame for module in modules if (record := self._trace.of(module)) is not None]
        if run is None or not frames or frames[0] is None:
            return False
        arguments, keywords = run[1]
        texts = [value.shape for value in (*arguments, *keywords.values()) if _is_text(value)]
        states = frames[0].shape[:2]
        return any(text[0] != text[1] and states == text[::-1] for text in texts)

    def _find_out(self, sites: Sequence[Site], layers: Sequence[str]) -> None:
        """Run the shadow changed, where it ran and that was not done before."""
        tops = [top for name in layers if (top := self._twin(name)) is not None]
        runs: dict[int, list[Outlet]] = {}
        called = {id(run): run for run in self._trace.runs}
        for site in sites:
            run = self._trace.run_of([self._model.get_submodule(path) for path in site.modules])
            if run is None or _key(site) in self._trace.outlets:
                continue
            holder, parts = self._twin(site.path), {part: self._twin(path) for part, path in _parts(site)}
            if holder is not None and all(parts.values()):
                outlet = Outlet(holder, {name: part for name, part in parts.items() if part is not None})
                self._trace.outlets[_key(site)] = outlet
                runs.setdefault(id(run), []).append(outlet)
        norms = self._norms()
        for at, outlets in runs.items():
            watch(called[at], outlets, lambda module: id(module) in norms)
            find_leaks(called[at], outlets, tops)

    def _twin(self, path: str) -> nn.Module | None:
        return self._trace.twin(self._model.get_submodule(path))

    def _norms(self) -> set[int]:
        named = ((path.rpartition(".")[2], module) for path, module in self._model.named_modules())
        return {id(self._trace.twin(module)) for name, module in named if normalises(name, module, self._trace.of)}


def _is_text(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 2 and not value.is_floating_point()


def _key(site: Site) -> tuple[str, tuple[str, ...]]:
    return site.path, site.parts


def _parts(site: Site) -> list[tuple[str, str]]:
    return list(zip(site.parts, site.modules, strict=True)) if site.parts else []
