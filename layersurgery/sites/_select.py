"""`select`: from a model and a description to the sites that fit it."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from layersurgery.errors import SelectionError
from layersurgery.sites._anatomy import Tower, towers_of
from layersurgery.sites._hazards import Hazards
from layersurgery.sites._roles import FEED_FORWARD, MIXER
from layersurgery.sites._site import Site, Sites
from layersurgery.sites._unwrap import unwrap

Pattern = str | re.Pattern[str] | type[nn.Module] | Callable[[str, nn.Module], bool]

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
            (searched in the name), a module class, or a predicate `f(name, module) -> bool`. With `role` or `tower` it
            narrows those sites down.

    Returns:
        The sites, in layer order; at least one.

    Raises:
        SelectionError: if nothing matches, a name is unknown, or several towers fit; the message lists near misses.

    >>> model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False)
    >>> select(model).paths
    ('layers.0.self_attn', 'layers.1.self_attn')
    >>> select(model, pattern="*.linear1").paths
    ('layers.0.linear1', 'layers.1.linear1')
    >>> select(model, pattern=nn.LayerNorm)[0].path
    'layers.0.norm1'
    """
    module = unwrap(model)
    _check_words(role, kind)
    towers = towers_of(module)
    hazards = Hazards(module)
    if pattern is None or role is not None:
        sites = _by_role(module, towers, role or MIXER, tower, kind, hazards)
        if pattern is not None:
            sites = _narrowed(module, sites, pattern)
    else:
        sites = _by_pattern(module, towers, pattern, tower, kind, hazards)
    return Sites(sites)


def _check_words(role: str | None, kind: str | None) -> None:
    if role is not None and role not in ROLES:
        hint = "" if not isinstance(role, str) else f"; for module names use pattern={role!r}"
        raise SelectionError(f"unknown role {role!r}; roles are {', '.join(map(repr, ROLES))}{hint}")
    if kind is not None and not isinstance(kind, str):
        raise SelectionError(f"kind must be a word such as 'self_attention', got {kind!r}")


def _by_role(
    model: nn.Module,
    towers: tuple[Tower, ...],
    role: str,
    tower: str | None,
    kind: str | None,
    hazards: Hazards,
) -> list[Site]:
    chosen = _choose_tower(model, towers, tower)
    every = [site for part in chosen for site in _sites_of(model, part, role, hazards)]
    if not every:
        raise SelectionError(
            f"no layer of the {chosen[0].name} tower ({chosen[0].path}) has a part with role {role!r}; "
            f"use pattern= with a name such as {_some_names(model, chosen[0].layers[0].path)}"
        )
    kept = [site for site in every if kind is None or site.kind == kind]
    if not kept:
        raise SelectionError(f"no {role} of kind {kind!r} here; kinds are {_listed(site.kind for site in every)}")
    return kept


def _choose_tower(model: nn.Module, towers: tuple[Tower, ...], name: str | None) -> list[Tower]:
    if not towers:
        raise SelectionError(
            f"{type(model).__name__} has no list of layers that mix tokens, so roles and towers mean nothing here; select "
            f"by pattern=, for example {_some_names(model, '')} or pattern={_some_type(model)}"
        )
    if name is None:
        for default in ("language", "decoder"):
            fitting = [tower for tower in towers if tower.name == default]
            if fitting:
                return _only(fitting, default)
        return _only(list(towers), None)
    fitting = [tower for tower in towers if name in (tower.name, tower.path)]
    if not fitting and name == "language":  # an encoder-decoder's language backbone is the half that writes
        fitting = [tower for tower in towers if tower.name == "decoder"]
    if not fitting and name == "encoder":  # BERT's only tower may be asked for by what it is
        fitting = [tower for tower in towers if tower.name == "language" and ".encoder." in f".{tower.path}."]
    if not fitting:
        raise SelectionError(f"no tower {name!r} in {type(model).__name__}; towers are {_towers(towers)}")
    return _only(fitting, name)


def _only(towers: list[Tower], name: str | None) -> list[Tower]:
    """One tower; several are an ambiguity, except the stages of one staged network (Swin), which form one chain."""
    if len(towers) == 1:
        return towers
    holders = {re.sub(r"\.\d+(\.|$)", ".#.", tower.path) for tower in towers}
    if len(holders) == 1:
        return towers
    what = f"{len(towers)} towers called {name!r}" if name else f"{len(towers)} towers"
    raise SelectionError(f"ambiguous: there are {what}; choose one with tower=<path>: {_towers(towers)}")


def _sites_of(model: nn.Module, tower: Tower, role: str, hazards: Hazards) -> list[Site]:
    sites = []
    for layer in tower.layers:
        if role == "layer":
            sites.append(_site(model, layer.path, "layer", "layer", tower.name, layer.index, (), hazards))
            continue
        for part in layer.parts:
            if part.role == role:
                path = f"{layer.path}.{part.path}" if part.path else layer.path
                sites.append(_site(model, path, role, part.kind, tower.name, layer.index, part.parts, hazards))
    return sites


def _site(
    model: nn.Module,
    path: str,
    role: str,
    kind: str,
    tower: str | None,
    layer: int | None,
    parts: tuple[str, ...],
    hazards: Hazards,
) -> Site:
    module = model.get_submodule(path)
    draft = Site(path, role, kind, tower, layer, (), parts, type(module).__name__)
    return Site(path, role, kind, tower, layer, hazards.of(draft), parts, draft.module, hazards.parameters(draft))


def _by_pattern(
    model: nn.Module,
    towers: tuple[Tower, ...],
    pattern: Pattern,
    tower: str | None,
    kind: str | None,
    hazards: Hazards,
) -> list[Site]:
    fits = _matcher(pattern)
    within = "" if tower is None else _choose_tower(model, towers, tower)[0].path + "."
    named = [(path, module) for path, module in model.named_modules() if path and path.startswith(within)]
    matched = [path for path, module in named if fits(path, module)]
    if not matched:
        raise SelectionError(_no_match(pattern, [path for path, _ in named], model))
    known = {
        site.path: site
        for part in towers
        for role in ROLES
        for site in _sites_of(model, part, role, hazards)
        if not site.parts
    }
    sites = [known.get(path) or _loose_site(model, towers, path, hazards) for path in matched]
    kept = [site for site in sites if kind is None or site.kind == kind]
    if not kept:
        raise SelectionError(f"no match of kind {kind!r}; kinds matched are {_listed(site.kind for site in sites)}")
    return kept


def _loose_site(model: nn.Module, towers: tuple[Tower, ...], path: str, hazards: Hazards) -> Site:
    for tower in towers:
        for layer in tower.layers:
            if path.startswith(layer.path + "."):
                return _site(model, path, "module", "module", tower.name, layer.index, (), hazards)
    return _site(model, path, "module", "module", None, None, (), hazards)


def _narrowed(model: nn.Module, sites: list[Site], pattern: Pattern) -> list[Site]:
    fits = _matcher(pattern)
    kept = [site for site in sites if fits(site.path, model.get_submodule(site.path))]
    if not kept:
        raise SelectionError(_no_match(pattern, [site.path for site in sites], model))
    return kept


def _matcher(pattern: Pattern) -> Callable[[str, nn.Module], bool]:
    if isinstance(pattern, str):
        return lambda path, module: fnmatch.fnmatchcase(path, pattern)
    if isinstance(pattern, re.Pattern):
        return lambda path, module: pattern.search(path) is not None
    if isinstance(pattern, type):
        if not issubclass(pattern, nn.Module):
            raise SelectionError(
                f"pattern={pattern.__name__} is not a module class; give a subclass of torch.nn.Module"
            )
        return lambda path, module: isinstance(module, pattern)
    if callable(pattern):
        return lambda path, module: bool(pattern(path, module))
    raise SelectionError(f"pattern must be a glob, a compiled regex, a module class or a predicate, got {pattern!r}")


def _no_match(pattern: Pattern, paths: list[str], model: nn.Module) -> str:
    text = f"nothing in {type(model).__name__} matches pattern={pattern!r}"
    if not isinstance(pattern, str):
        return f"{text}; module names look like {_quoted(paths[-3:])}"
    bare = pattern.strip("*.")
    near = [path for path in paths if path.endswith("." + bare) or bare in path][:3]
    by_leaf = {path.rsplit(".", 1)[-1]: path for path in reversed(paths)}
    near += [by_leaf[leaf] for leaf in difflib.get_close_matches(bare.rsplit(".", 1)[-1], by_leaf, 3, 0.5)]
    near += difflib.get_close_matches(pattern, paths, 3, 0.5)
    near = list(dict.fromkeys(near))[:3] or paths[-3:]
    hint = "; a glob must match the whole name, so begin it with '*.'" if near and "*" not in pattern else ""
    return f"{text}; near misses: {_quoted(near)}{hint}"


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _listed(names: Iterable[str]) -> str:
    return _quoted(dict.fromkeys(names))


def _towers(towers: Iterable[Tower]) -> str:
    return ", ".join(f"{tower.name!r} ({tower.path}, {len(tower.layers)} layers)" for tower in towers)


def _some_names(model: nn.Module, within: str) -> str:
    names = [path for path, _ in model.named_modules() if path.startswith(within) and path != within]
    return _quoted(names[:3])


def _some_type(model: nn.Module) -> str:
    leaf = next((m for m in model.modules() if any(True for _ in m.parameters(recurse=False))), model)
    return (
        f"{type(leaf).__module__.split('.')[0]}.nn.{type(leaf).__name__}" if isinstance(leaf, nn.Module) else "a class"
    )
