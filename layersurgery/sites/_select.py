"""`select`: from a model and a description to the sites that fit it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from layersurgery.errors import SelectionError
from layersurgery.sites._anatomy import Tower, towers_of
from layersurgery.sites._hazards import Hazards
from layersurgery.sites._match import Pattern, matcher, no_match, quoted
from layersurgery.sites._roles import FEED_FORWARD, MIXER
from layersurgery.sites._site import Site, Sites
from layersurgery.sites._unwrap import unwrap

ROLES = (MIXER, FEED_FORWARD, "layer")


def select(
    model: Any,
    role: str | None = None,
    *,
    tower: str | None = None,
    kind: str | None = None,
    pattern: Pattern | None = None,
) -> Sites:
    """Find sites in a model; without further words, the attention of every layer of the language backbone.

    Nothing is run and no weight is read: a model on the meta device is enough.

    Args:
        model: any `torch.nn.Module`, or an nnsight model around one.
        role: "attention" (whatever mixes tokens; the default), "mlp" (whatever works on each token alone), or "layer".
        tower: "language", "vision", "audio", "encoder", "decoder", or the path of a list of layers. The default is the
            language backbone (of an encoder-decoder: the decoder), or the only tower there is.
        kind: keep only sites of this kind, such as "self_attention", "cross_attention", "mamba", "moe".
        pattern: instead of a role: a glob over module names ("*.self_attn.o_proj"), a compiled regular expression
            (searched in the name), a module class, or a predicate `f(name, module) -> bool`. With `role` it narrows
            those sites down.

    Returns:
        The sites, in layer order; at least one.

    Raises:
        SelectionError: if nothing matches, a name is unknown, or several towers fit; the message lists near misses.

    Examples:
        >>> model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False)
        >>> select(model).paths
        ('layers.0.self_attn', 'layers.1.self_attn')
        >>> select(model, pattern="*.linear1").paths
        ('layers.0.linear1', 'layers.1.linear1')
        >>> select(model, pattern=nn.LayerNorm)[0].path
        'layers.0.norm1'
    """
    _check_words(role, kind)
    finder = _Finder(unwrap(model))
    if pattern is None:
        found = finder.by_role(role or MIXER, tower)
    elif role is not None:
        found = finder.narrowed(finder.by_role(role, tower), pattern)
    else:
        found = finder.by_pattern(pattern, tower)
    kept = [site for site in found if kind is None or site.kind == kind]
    if not kept:
        raise SelectionError(f"no site of kind {kind!r} here; kinds are {quoted(site.kind for site in found)}")
    return Sites(kept)


def _check_words(role: str | None, kind: str | None) -> None:
    if role is not None and role not in ROLES:
        hint = f"; for module names use pattern={role!r}" if isinstance(role, str) else ""
        raise SelectionError(f"unknown role {role!r}; roles are {quoted(ROLES)}{hint}")
    if kind is not None and not isinstance(kind, str):
        raise SelectionError(f"kind must be a word such as 'self_attention', got {kind!r}")


class _Finder:
    """One model, its towers and its hazards."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._towers = towers_of(model)
        self._hazards = Hazards(model)

    def by_role(self, role: str, tower: str | None) -> list[Site]:
        chosen = self._choose(tower)
        found = self._sites(chosen, role)
        if not found:
            raise SelectionError(
                f"no layer of the {chosen.name} tower ({chosen.path}) has a part with role {role!r}; use "
                f"pattern= "
                f"with a name such as {self._some_names(chosen.layers[0].path)}"
            )
        return found

    def by_pattern(self, pattern: Pattern, tower: str | None) -> list[Site]:
        fits = matcher(pattern)
        within = "" if tower is None else self._choose(tower).path + "."
        named = [(path, module) for path, module in self._model.named_modules() if path and path.startswith(within)]
        matched = [path for path, module in named if fits(path, module)]
        if not matched:
            raise no_match(pattern, [path for path, _ in named], self._model)
        known = {
            site.path: site
            for part in self._towers
            for role in ROLES
            for site in self._sites(part, role)
            if not site.parts
        }
        return [known.get(path) or self._loose(path) for path in matched]

    def narrowed(self, sites: list[Site], pattern: Pattern) -> list[Site]:
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
        if len(towers) == 1:
            return towers[0]
        what = f"{len(towers)} towers called {name!r}" if name else f"{len(towers)} towers"
        raise SelectionError(f"ambiguous: there are {what}; choose one with tower=<path>: {_listed(towers)}")

    def _sites(self, tower: Tower, role: str) -> list[Site]:
        sites = []
        for layer in tower.layers:
            draft = Site("", role, tower=tower.name, layer=layer.index)
            if role == "layer":
                sites.append(self._complete(replace(draft, path=layer.path, kind="layer")))
                continue
            for part in layer.parts:
                if part.role == role:
                    path = f"{layer.path}.{part.path}" if part.path else layer.path
                    sites.append(self._complete(replace(draft, path=path, kind=part.kind, parts=part.parts)))
        return sites

    def _loose(self, path: str) -> Site:
        """A site that a pattern found outside the roles."""
        for tower in self._towers:
            for layer in tower.layers:
                if path.startswith(layer.path + "."):
                    return self._complete(Site(path, tower=tower.name, layer=layer.index))
        return self._complete(Site(path))

    def _complete(self, site: Site) -> Site:
        return replace(
            site,
            module=type(self._model.get_submodule(site.path)).__name__,
            hazards=self._hazards.of(site),
            parameters=self._hazards.parameters(site),
        )

    def _some_names(self, within: str) -> str:
        names = [path for path, _ in self._model.named_modules() if path.startswith(within) and path != within]
        return quoted(names[:3])


def _listed(towers: Iterable[Tower]) -> str:
    return ", ".join(f"{tower.name!r} ({tower.path}, {len(tower.layers)} layers)" for tower in towers)
