"""Equal layers as one entry, and numbers and names as people read them: what both pictures of an anatomy share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from layersurgery.inspection._anatomy import Anatomy, LayerPart, Remainder, SitePart, TowerPart, common_reason
from layersurgery.sites import Site


@dataclass(frozen=True)
class Run:
    """Layers of a tower that differ in their place only."""

    layers: tuple[LayerPart, ...]

    @property
    def first(self) -> LayerPart:
        """The one that stands for all."""
        return self.layers[0]

    @property
    def title(self) -> str:
        """Which layers these are, what they are, and how large each is."""
        numbers = [layer.index for layer in self.layers]
        each = " each" if len(numbers) > 1 else ""
        return f"{numbered(numbers)}: {self.first.module}, {entries(self.first.parameters)}{each}"


def runs(tower: TowerPart) -> list[Run]:
    """The layers of a tower, equal ones together, in order of first appearance."""
    found: dict[object, list[LayerPart]] = {}
    for layer in tower.layers:
        sites = tuple(map(_likeness, layer.sites))
        found.setdefault((layer.module, layer.parameters, layer.rest, sites), []).append(layer)
    return [Run(tuple(layers)) for layers in found.values()]


def heading(anatomy: Anatomy) -> str:
    """The model in a line."""
    kinds = _shares(anatomy.dtypes, anatomy.parameters)
    places = _shares(anatomy.devices, anatomy.parameters)
    what = f"{anatomy.parameters:,} parameters" if anatomy.parameters else "no parameters"
    return ", ".join([f"{anatomy.module}: {what}", *filter(None, [kinds, f"on {places}" if places else ""])])


def remarks(anatomy: Anatomy) -> list[str]:
    """What is to be said of the model as a whole, in sentences."""
    empty = "Its weights are not in memory: what is said of a surgery holds once they are loaded."
    return [*([empty] if anatomy.is_empty else []), *([anatomy.note] if anatomy.note else [])]


def tower_title(tower: TowerPart, total: int) -> str:
    """A tower in a line."""
    layers = f"{len(tower.layers)} layer{'s' if len(tower.layers) != 1 else ''}"
    default = ", where select(model) looks" if tower.default else ""
    return (
        f"{tower.name}: {tower.path}, {layers}, {entries(tower.parameters)} ({share(tower.parameters, total)}){default}"
    )


def elsewhere_title(anatomy: Anatomy) -> str:
    """What is in no layer, in a line."""
    count = sum(item.parameters for item in anatomy.elsewhere)
    what = "elsewhere" if anatomy.towers else "modules"
    return f"{what}: {entries(count)} ({share(count, anatomy.parameters)})"


def ties(item: Remainder) -> str:
    """What a module outside the layers shares with what was counted before."""
    return f"{'partly ' if item.parameters else ''}tied to {item.tied}" if item.tied else ""


def hazards(site: Site, anatomy: Anatomy) -> list[str]:
    """The codes of a site's hazards, without what is true of the whole model and said of it."""
    return [code for code in site.hazards if not (code == "meta" and anatomy.is_empty)]


def legend(anatomy: Anatomy) -> list[str]:
    """The codes that are shown at some site, in order of first appearance."""
    return list(dict.fromkeys(code for site in anatomy.sites for code in hazards(site, anatomy)))


def effect(part: SitePart, refused: Sequence[str]) -> str:
    """What `Zero()` does at a site, or the number of the reason for which it does not."""
    return f"refused ({refused.index(common_reason(part)) + 1})" if part.refusal else part.effect


def entries(count: int) -> str:
    """A number of parameters in three digits.

    Examples:
        >>> entries(960), entries(12_288), entries(6_738_415_616)
        ('960', '12.3k', '6.74B')
    """
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size * (0.9995 if unit != "k" else 1):
            scaled = count / size
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f}{unit}"
    return str(count)


def share(count: int, total: int) -> str:
    """A part of the whole in per cent.

    Examples:
        >>> share(1, 3), share(1, 10**6), share(0, 0)
        ('33.3%', '<0.1%', '-')
    """
    if not count or not total:
        return "-"
    return "<0.1%" if count / total < 0.0005 else f"{count / total:.1%}"


def numbered(numbers: Sequence[int]) -> str:
    """Layer numbers, runs of them as one.

    Examples:
        >>> numbered([3]), numbered([0, 1, 2]), numbered([1, 3, 5, 7]), numbered([0, 1, 4, 7, 8, 9])
        ('layer 3', 'layers 0 to 2', 'layers 1 to 7 by 2', 'layers 0, 1, 4, 7 to 9')
    """
    if len(numbers) == 1:
        return f"layer {numbers[0]}"
    step = numbers[1] - numbers[0]
    if len(numbers) > 2 and step > 1 and list(numbers) == list(range(numbers[0], numbers[-1] + 1, step)):
        return f"layers {numbers[0]} to {numbers[-1]} by {step}"
    starts = [at for at, number in enumerate(numbers) if at == 0 or numbers[at - 1] != number - 1]
    pieces = [numbers[start:end] for start, end in zip(starts, [*starts[1:], len(numbers)], strict=True)]
    return "layers " + ", ".join(
        f"{piece[0]} to {piece[-1]}" if len(piece) > 2 else ", ".join(map(str, piece)) for piece in pieces
    )


def _likeness(part: SitePart) -> tuple[object, ...]:
    """What sites of equal layers have in common."""
    site = part.site
    return (part.name, site.kind, site.module, site.parameters, site.hazards, part.effect, common_reason(part))


def _shares(counts: tuple[tuple[str, int], ...], total: int) -> str:
    if len(counts) == 1:
        return counts[0][0]
    return ", ".join(f"{name} {share(count, total)}" for name, count in counts)
