"""`Anatomy`: the parts of one model as plain data; it holds no module and no weight."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from layersurgery.sites import Site


@dataclass(frozen=True)
class SitePart:
    """One site of a layer.

    Args:
        site: the site.
        name: its name inside the layer.
        effect: what `Zero()` does there, in a phrase.
        refusal: why `Zero()` is refused there, in a sentence; empty: it is not.
    """

    site: Site
    name: str
    effect: str
    refusal: str = ""


@dataclass(frozen=True)
class LayerPart:
    """One layer of a tower.

    Args:
        index: its number in the tower, from 0.
        path: its name in the model.
        module: class name of its module.
        parameters: number of parameter entries in it.
        sites: its sites, in the order in which they are registered.
        rest: number of its parameter entries that are in none of the sites.
        modules: names of the modules that it consists of; its path, but where a layer has no module of its own.
    """

    index: int
    path: str
    module: str
    parameters: int
    sites: tuple[SitePart, ...]
    rest: int = 0
    modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class TowerPart:
    """One tower: a chain of layers.

    Args:
        name: "language", "vision", "audio", "encoder", "decoder", ...
        path: name of what holds its layers; `select(model, tower=...)` takes both.
        parameters: number of parameter entries in its layers; what layers share counts once.
        layers: its layers, in order.
        default: whether this is where `select(model)` looks.
    """

    name: str
    path: str
    parameters: int
    layers: tuple[LayerPart, ...]
    default: bool = False


@dataclass(frozen=True)
class Remainder:
    """A module outside all layers: embeddings, a projector, a head.

    Args:
        path: its name in the model.
        module: its class name.
        parameters: number of its parameter entries that were not counted before: what is tied counts once.
        tied: name of a parameter counted before that it shares; empty: it shares none.
    """

    path: str
    module: str
    parameters: int
    tied: str = ""


@dataclass(frozen=True)
class Anatomy:
    """The towers, layers and sites of a model; `print` it, or look at it in a notebook.

    Args:
        module: class name of the model.
        parameters: number of parameter entries; tied ones count once.
        dtypes: name of each dtype and the number of parameter entries of it, the commonest first.
        devices: the same for devices; "meta" is where parameters are whose weights are not in memory.
        towers: its towers, in the order in which they are registered.
        elsewhere: modules with parameters outside all layers, in the order in which they are registered.
        note: why there are no towers, or no default one, and what to do about it; empty: there are.
    """

    module: str
    parameters: int
    dtypes: tuple[tuple[str, int], ...]
    devices: tuple[tuple[str, int], ...]
    towers: tuple[TowerPart, ...]
    elsewhere: tuple[Remainder, ...]
    note: str = ""

    @property
    def sites(self) -> tuple[Site, ...]:
        """All sites of all layers, in order."""
        return tuple(part.site for tower in self.towers for layer in tower.layers for part in layer.sites)

    @property
    def hazards(self) -> tuple[str, ...]:
        """The codes of the hazards that some site has, in order of first appearance."""
        return tuple(dict.fromkeys(hazard for site in self.sites for hazard in site.hazards))

    @property
    def refusals(self) -> dict[str, str]:
        """Why `Zero()` is refused at some sites: one reason, which names one site, for all that are refused alike.

        The keys are the reasons without the place that they name.
        """
        found: dict[str, str] = {}
        for tower in self.towers:
            for layer in tower.layers:
                for part in layer.sites:
                    if part.refusal:
                        found.setdefault(common_reason(part), part.refusal)
        return found

    @property
    def is_empty(self) -> bool:
        """Whether no weight is in memory."""
        return bool(self.devices) and all(device == "meta" for device, _ in self.devices)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-able data."""
        return {
            **asdict(self),
            "dtypes": dict(self.dtypes),
            "devices": dict(self.devices),
            "towers": [{**asdict(tower), "layers": [*map(_layer, tower.layers)]} for tower in self.towers],
            "elsewhere": [asdict(item) for item in self.elsewhere],
        }

    def __str__(self) -> str:
        """A tree, as wide as the terminal."""
        from layersurgery.inspection._text import as_text

        return as_text(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from layersurgery.inspection._html import as_html

        return as_html(self)


def common_reason(part: SitePart) -> str:
    """A refusal without the place that it names."""
    return part.refusal.replace(part.site.path, "…")


def _layer(layer: LayerPart) -> dict[str, Any]:
    sites = [
        {"name": part.name, "site": part.site.to_dict(), "effect": part.effect, "refusal": part.refusal}
        for part in layer.sites
    ]
    return {**asdict(layer), "sites": sites}
