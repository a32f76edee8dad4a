"""`Finder`: one model, its towers, and all that is known of a place in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from layersurgery.errors import SelectionError
from layersurgery.sites._anatomy import Layer, Part, Tower, joined, towers_of
from layersurgery.sites._behaviour import normalises, stream_norms
from layersurgery.sites._facts import Facts
from layersurgery.sites._match import Pattern, matcher, no_match, quoted
from layersurgery.sites._outline import Outline
from layersurgery.sites._roles import FEED_FORWARD, MIXER
from layersurgery.sites._site import Site
from layersurgery.sites._trace import Trace, trace

NORM, LAYER = "norm", "layer"
ROLES = (MIXER, FEED_FORWARD, NORM, LAYER)


class Finder:
    """Sites of one model, by role or pattern.

    Args:
        model: the model.
        example: arguments of one forward, as in `select`; None: guessed.

    Raises:
        SelectionError: if the model cannot run on the example.
    """

    def __init__(self, model: nn.Module, example: Any = None) -> None:
        self._model = model
        self._trace = trace(model, example)
        self._towers = towers_of(model, self._trace)
        if not self._towers and self._trace.look_at(model):
            self._towers = towers_of(model, self._trace)  # a part that ran by itself shows what the whole did not

    @property
    def towers(self) -> tuple[Tower, ...]:
        """All towers, in the order in which they are registered."""
        return self._towers

    def by_role(self, role: str, tower: str | None) -> list[Site]:
        """The sites with that role in a tower; None: the language backbone, or the only tower.

        Raises:
            SelectionError: if there is no such tower, or several, or nothing of that role in it.
        """
        chosen = self._seen(self._choose(tower))
        found = list(self._drafts(chosen, role))
        if not found:
            raise SelectionError(
                f"no layer of the {chosen.name} tower ({chosen.path}) has a part with role {role!r}; use pattern= "
                f"with a name such as {self._some_names(chosen.layers[0].path)}{self._advice()}"
            )
        return self._complete(found)

    def by_pattern(self, pattern: Pattern, tower: str | None) -> list[Site]:
        """The modules that a pattern fits; those with a role keep it.

        Raises:
            SelectionError: if it fits none.
        """
        fits = matcher(pattern)
        chosen = None if tower is None else self._choose(tower)
        named = [(path, module) for path, module in self._model.named_modules() if path]
        if chosen is not None:
            named = [(path, module) for path, module in named if path.startswith(joined(chosen.path, ""))]
        matched = [path for path, module in named if fits(path, module)]
        if not matched:
            raise no_match(pattern, [path for path, _ in named], self._model)
        for part in self._towers:
            if any(self._holding(part, path) for path in matched):
                self._seen(part)
        drafts = (site for part in self._towers for role in ROLES for site in self._drafts(part, role))
        known: dict[str, Site] = {}
        for site in drafts:
            if not site.parts:
                known.setdefault(site.path, site)
        return self._complete([known.get(path) or self._loose(path) for path in matched])

    def narrowed(self, sites: list[Site], pattern: Pattern) -> list[Site]:
        """Those of the sites that a pattern fits.

        Raises:
            SelectionError: if it fits none.
        """
        fits = matcher(pattern)
        kept = [site for site in sites if fits(site.path, self._model.get_submodule(site.path))]
        if not kept:
            raise no_match(pattern, [site.path for site in sites], self._model)
        return kept

    def _choose(self, name: str | None) -> Tower:
        if not self._towers:
            raise SelectionError(
                f"{type(self._model).__name__} has no list of layers that mix tokens, so roles and towers mean nothing "
                f"here; select by pattern=, with a module class or a name such as {self._some_names('')}"
                f"{self._advice()}"
            )
        if name is None:
            named = {tower.name for tower in self._towers}
            name = next((default for default in ("language", "decoder") if default in named), None)
        if name is None:
            return self._only(list(self._towers), None)
        fitting = [tower for tower in self._towers if name in (tower.name, tower.path)]
        if not fitting and name == "language":  # an encoder-decoder's language backbone is the half that writes
            fitting = [tower for tower in self._towers if tower.name == "decoder"]
        if not fitting and name == "encoder":  # BERT's only tower may be asked for by what it is
            fitting = [t for t in self._towers if t.name == "language" and ".encoder." in f".{t.path}."]
        if not fitting:
            raise SelectionError(
                f"no tower {name!r} in {type(self._model).__name__}; towers are {_listed(self._towers)}"
            )
        return self._only(fitting, name)

    def _only(self, towers: list[Tower], name: str | None) -> Tower:
        if len(towers) > 1:  # convolutions beside a tower prepare its input, or its positions
            towers = [tower for tower in towers if {part.kind for part in _mixers(tower)} != {"conv"}] or towers
        if len(towers) == 1:
            return towers[0]
        what = f"{len(towers)} towers called {name!r}" if name else f"{len(towers)} towers"
        raise SelectionError(f"ambiguous: there are {what}; choose one with tower=<path>: {_listed(towers)}")

    def _seen(self, tower: Tower) -> Tower:
        """The tower, read again if its layers ran only now, by themselves."""
        first = self._model.get_submodule(tower.layers[0].modules[0])
        if self._trace.of(first) is not None or not self._trace.look_at(self._model, first):
            return tower
        self._towers = towers_of(self._model, self._trace)
        return next((again for again in self._towers if again.path == tower.path), tower)

    def _drafts(self, tower: Tower, role: str) -> Iterator[Site]:
        for layer in tower.layers:
            draft = Site(layer.path, role, role, tower.name, layer.index)
            if role == LAYER:
                yield replace(draft, parts=layer.pieces)
            elif role == NORM:
                for path in self._norms(layer):
                    yield replace(draft, path=path)
            else:
                for part in layer.parts:
                    if part.role == role:
                        yield replace(draft, path=joined(layer.path, part.path), kind=part.kind, parts=part.parts)

    def _norms(self, layer: Layer) -> Iterator[str]:
        for path in layer.modules:
            top = self._model.get_submodule(path)
            if normalises("", top, self._trace.of):
                yield path  # a piece of a layer without a module
            yield from (joined(path, name) for name in stream_norms(top, self._trace.of, layer=True))

    def _holding(self, tower: Tower, path: str) -> Layer | None:
        within = (layer for layer in tower.layers if any(path.startswith(f"{top}.") for top in layer.modules))
        return next(within, None)

    def _loose(self, path: str) -> Site:
        """A site that a pattern found outside the roles."""
        for tower in self._towers:
            layer = self._holding(tower, path)
            if layer is not None:
                return Site(path, tower=tower.name, layer=layer.index)
        return Site(path)

    def _complete(self, drafts: list[Site]) -> list[Site]:
        layers = [name for tower in self._towers for layer in tower.layers for name in layer.modules]
        outline = Outline(self._trace)
        sites = Facts(self._model, self._trace).complete(drafts, layers)
        return [replace(site, outline=outline.note(site, self._model)) for site in sites]

    def _some_names(self, within: str) -> str:
        names = [path for path, _ in self._model.named_modules() if path.startswith(within) and path != within]
        return quoted(names[:3])

    def _advice(self) -> str:
        """What may help where the model could not be run."""
        return "" if self._trace.ran else advice(self._trace)


def advice(seen: Trace) -> str:
    """Why nothing was seen, and what would help."""
    return (
        f". What its modules do could not be seen either ({seen.why_not or 'no input could be guessed'}): an example "
        "input may help, select(model, example={...}) with the arguments of one forward"
    )


def _mixers(tower: Tower) -> Iterator[Part]:
    return (part for layer in tower.layers for part in layer.parts if part.role == MIXER)


def _listed(towers: Iterable[Tower]) -> str:
    return ", ".join(f"{tower.name!r} ({tower.path}, {len(tower.layers)} layers)" for tower in towers)
