"""`inspect`: from a model to its anatomy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn
from torch.nn.parameter import UninitializedParameter

from layersurgery.errors import SelectionError
from layersurgery.inspection._anatomy import Anatomy, LayerPart, Remainder, SitePart, TowerPart
from layersurgery.inspection._effects import Outlook, effect_of, outlook
from layersurgery.sites import Site, unwrap
from layersurgery.sites._finder import LAYER, ROLES, Finder

_LINES_WITHOUT_TOWERS = 12


def inspect(model: Any, *, example: Any = None) -> Anatomy:
    """What a model is made of: its towers, their layers, the sites in these, and what a surgery would do there.

    Nothing is applied, and no weight is read: a model on the meta device is enough. A model without layers that mix
    tokens is no error; its anatomy says so, and lists its modules.

    Args:
        model: any `torch.nn.Module`, or an nnsight model around one.
        example: inputs of one forward pass, as for `select`.

    Returns:
        The anatomy: printed, it is a tree in which runs of equal layers are one; in a notebook, a table that unfolds.

    Raises:
        SelectionError: if `model` is something else, or cannot run the example.

    Examples:
        >>> model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False)
        >>> anatomy = inspect(model)
        >>> [(tower.name, len(tower.layers), tower.parameters) for tower in anatomy.towers]
        [('language', 2, 1200)]
        >>> [part.name for part in anatomy.towers[0].layers[0].sites][0]
        'self_attn'
    """
    module = unwrap(model)
    finder = Finder(module, example)
    default, note = _default(finder)
    towers = tuple(_towers(module, finder, default))
    return Anatomy(
        module=type(module).__name__,
        parameters=sum(_entries(module).values()),
        dtypes=_counted(module, lambda parameter: str(parameter.dtype).removeprefix("torch.")),
        devices=_counted(module, lambda parameter: str(parameter.device)),
        towers=towers,
        elsewhere=tuple(
            _elsewhere(module, [path for tower in towers for layer in tower.layers for path in layer.modules])
        ),
        note=note,
    )


def _default(finder: Finder) -> tuple[str, str]:
    """The tower in which `select` looks when asked for none; or why there is none."""
    try:
        first = finder.by_role(LAYER, None)[0]
    except SelectionError as error:
        return "", str(error)
    return next(tower.path for tower in finder.towers if any(layer.path == first.path for layer in tower.layers)), ""


def _towers(model: nn.Module, finder: Finder, default: str) -> Iterator[TowerPart]:
    order = {path: number for number, (path, _) in enumerate(model.named_modules())}
    empty = all(parameter.is_meta for parameter in model.parameters())
    for tower in finder.towers:
        layers = _sites(finder, LAYER, tower.path)
        by_layer: dict[int | None, list[Site]] = {}
        for site in [site for role in ROLES if role != LAYER for site in _sites(finder, role, tower.path)]:
            by_layer.setdefault(site.layer, []).append(site)
        parts: list[LayerPart] = []
        for layer in layers:
            sites = sorted(by_layer.get(layer.layer, []), key=lambda site: order.get(site.modules[0], len(order)))
            parts.append(_layer(model, layer, sites, empty))
        held = _union(model, [path for layer in layers for path in layer.modules])
        yield TowerPart(tower.name, tower.path, sum(held.values()), tuple(parts), default=tower.path == default)


def _sites(finder: Finder, role: str, tower: str) -> list[Site]:
    try:
        return finder.by_role(role, tower)
    except SelectionError:  # no layer of this tower has such a part
        return []


def _layer(model: nn.Module, layer: Site, sites: list[Site], empty: bool) -> LayerPart:
    parts: list[SitePart] = []
    for site in sites:
        # without weights all would be refused for this alone; what happens once they are loaded says more
        view = Outlook() if empty else outlook(model, site)
        parts.append(SitePart(site, _name(site, layer), effect_of(site, view.by_outputs), view.refusal))
    covered = _union(model, [path for site in sites for path in site.modules])
    held = _union(model, layer.modules)
    rest = sum(size for key, size in held.items() if key not in covered)
    return LayerPart(layer.layer or 0, layer.path, layer.module, sum(held.values()), tuple(parts), rest, layer.modules)


def _name(site: Site, layer: Site) -> str:
    """A site's name inside its layer; where each part is in a list of its own (`attentions.3`), without the number."""
    name = str(site).removeprefix(layer.path).removeprefix(".")
    return name if not layer.parts else ".".join("*" if step == str(layer.layer) else step for step in name.split("."))


def _elsewhere(model: nn.Module, layers: list[str]) -> Iterator[Remainder]:
    """The largest modules without a layer inside that hold parameters, and parameters between these and the layers."""
    around = {path[:end] for path in layers for end in _ends(path)}
    homes: dict[int, str] = {}  # the name of each parameter where it was met first, layers before all else
    for path in layers:
        homes |= _named(model.get_submodule(path), path, recurse=True)
    for path, module in _shown(model, around, set(layers)):
        recurse = path not in around and path != ""
        held = _entries(module, recurse)
        if not held:
            continue
        own = sum(size for key, size in held.items() if key not in homes)
        tied = next((homes[key] for key in held if key in homes), "")
        yield Remainder(path, type(module).__name__, own, tied)
        homes = _named(module, path, recurse) | homes


def _shown(model: nn.Module, around: set[str], layers: set[str]) -> list[tuple[str, nn.Module]]:
    """What is listed: without layers, as many lines as fit, the largest modules opened first."""
    items: list[tuple[str, nn.Module]] = []
    queue = [("", model)]
    while queue:
        path, module = queue.pop(0)
        items.append((path, module))
        if path == "" or path in around:
            children = [(f"{path}.{name}" if path else name, child) for name, child in module.named_children()]
            queue = [pair for pair in children if pair[0] not in layers] + queue
    while not layers and (at := _largest(items, around)) is not None:
        path, module = items[at]
        inner = [(f"{path}.{name}", child) for name, child in module.named_children() if _entries(child)]
        if len(items) + len(inner) > _LINES_WITHOUT_TOWERS:
            break
        items[at + 1 : at + 1] = inner
        around.add(path)
    return items


def _largest(items: list[tuple[str, nn.Module]], opened: set[str]) -> int | None:
    """Which of the items to open next."""
    sizes = {
        at: sum(_entries(module).values())
        for at, (path, module) in enumerate(items)
        if path and path not in opened and any(_entries(child) for child in module.children())
    }
    return max(sizes, key=lambda at: sizes[at]) if sizes else None


def _ends(path: str) -> list[int]:
    """Where the names of the modules around a path end, without the path itself."""
    return [at for at, sign in enumerate(path) if sign == "."]


def _named(module: nn.Module, path: str, recurse: bool) -> dict[int, str]:
    return {id(parameter): name for name, parameter in module.named_parameters(path, recurse)}


def _union(model: nn.Module, paths: Iterable[str]) -> dict[int, int]:
    found: dict[int, int] = {}
    for path in paths:
        found |= _entries(model.get_submodule(path))
    return found


def _entries(module: nn.Module, recurse: bool = True) -> dict[int, int]:
    """How many entries each parameter has, by identity; a lazy module that has not run yet has none."""
    return {
        id(parameter): parameter.numel()
        for parameter in module.parameters(recurse)
        if not isinstance(parameter, UninitializedParameter)
    }


def _counted(module: nn.Module, key: Callable[[nn.Parameter], str]) -> tuple[tuple[str, int], ...]:
    found: Counter[str] = Counter()
    for parameter in module.parameters():
        if not isinstance(parameter, UninitializedParameter):
            found[key(parameter)] += parameter.numel()
    return tuple(found.most_common())
