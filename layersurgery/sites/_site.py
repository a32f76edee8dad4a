"""`Site` and `Sites`: where in a model a surgery acts. Plain data: they hold no module and no weight."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from html import escape
from typing import TYPE_CHECKING, Any, overload

from layersurgery.errors import SelectionError, SiteIndexError

if TYPE_CHECKING:
    from layersurgery.sites._geometry import Geometry, Selection
    from layersurgery.sites._outline import Outline


@dataclass(frozen=True)
class Slice:
    """A part of one parameter: some ranges of entries along one dimension.

    Args:
        parameter: name of the parameter, relative to the site's path.
        dim: the dimension that is cut, from 0.
        ranges: first entry and the one after the last, for each range, in ascending order.
    """

    parameter: str
    dim: int
    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Slice:
        """A slice from its record."""
        return cls(str(data["parameter"]), int(data["dim"]), tuple((int(a), int(b)) for a, b in data["ranges"]))


@dataclass(frozen=True)
class Site:
    """One place in a model: a module, some children of a module that belong together, or slices of its parameters.

    Args:
        path: dotted name of the module in the model, as in `model.named_modules()`.
        role: "attention", "mlp", "layer", or "module" for what a pattern found outside these.
        kind: what it is: "self_attention", "cross_attention", "linear_attention", "mamba", "mlp", "moe", "layer", ...
        tower: the tower it belongs to: "language", "vision", "audio", "encoder", "decoder", ...; None: none.
        layer: number of its layer in the tower, from 0; None: in no layer.
        hazards: what a surgery here should be read with care for: "tied" (shares a parameter with another module),
            "shared" (the module runs at several places), "norm_inside" (a norm on the residual stream is part of it),
            "meta" (weights are not in memory), "quantized".
        parts: names of the children, relative to `path`, that make up the site; empty: the whole module.
        module: class name of the module.
        parameters: number of parameter entries that a surgery replaces here.
        adds: how what the site adds to the residual stream leaves it: "output" (its output is that),
            "output:<n>" (so is entry n of the tuple that it gives, from 0), "input:<argument>" (its output holds that
            argument's residual stream already), "module:<name>" (it is the output of that module inside, and a norm of
            the sum follows); empty: not known.
        slices: the parts of parameters that make up the site; empty: all parameters of its modules.
        label: what the slices are, such as "heads 0, 4" or "q".
        outline: how the site divides into heads and projections, found when first asked for. It takes no part in
            comparisons, and is not saved: a site that was loaded or unpickled knows nothing of it.

    Examples:
        >>> Site("layers.3.mlp", role="mlp", layer=3).layer
        3
    """

    path: str
    role: str = "module"
    kind: str = "module"
    tower: str | None = None
    layer: int | None = None
    hazards: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    module: str = ""
    parameters: int = 0
    adds: str = ""
    slices: tuple[Slice, ...] = ()
    label: str = ""
    outline: Outline | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        inside = ", ".join(self.parts) + (f" {self.label}" if self.parts and self.label else self.label)
        return f"{self.path}[{inside}]" if inside else self.path

    @property
    def modules(self) -> tuple[str, ...]:
        """Dotted names of the modules whose parameters make up the site."""
        if not self.parts:
            return (self.path,)
        return tuple(f"{self.path}.{part}" if self.path else part for part in self.parts)

    def heads(self, numbers: int | Iterable[int]) -> Site:
        """These attention heads alone: what of the site's parameters acts through them and through no other head.

        That is the columns of the output projection that read them, and of the other parameters each entry that
        reaches no other head: rows of queries, keys and values with their biases, sinks, gains per head. Where a group
        of heads shares keys and values, these belong to the site if the whole group was asked for. A bias of the output
        projection belongs to no head. With all of that zero, the model gives what it gives when these heads' stretch of
        the output projection's input is zero.

        How parameters divide is read off what the module does in a copy of the model without weights.

        Args:
            numbers: numbers of query heads, from 0, in the order of the output projection's input.

        Raises:
            SelectionError: if the numbers are none, or the heads of this module cannot be told apart.
            SiteIndexError: if there is no such head.

        Examples:
            >>> from torch import nn
            >>> import layersurgery as ls
            >>> model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False)
            >>> first = ls.select(model)[0].heads(0)
            >>> str(first), first.parameters
            ('layers.0.self_attn[head 0]', 140)
            >>> first.slices[-1]
            Slice(parameter='out_proj.weight', dim=1, ranges=((0, 4),))
        """
        chosen, found = self._outlined("heads").of_heads(numbers, str(self))
        label = f"{'head' if len(chosen) == 1 else 'heads'} {', '.join(map(str, chosen))}"
        return self._part(found, label, {*_OF_THE_WHOLE, "feeds_others"})  # what others read is no head's own

    def projections(self, names: str | Iterable[str]) -> Site:
        """These projections alone, whether each is a module of its own or some rows of a larger matrix.

        The path stays that of the site, and the projections' parameters - weights and biases - are its slices.

        Args:
            names: "q", "k", "v" and "o" of an attention; "gate", "up" and "down" of a feed-forward, of all experts
                where there are several.

        Raises:
            SelectionError: if the site has no such projection, or it cannot be told apart.

        Examples:
            >>> from torch import nn
            >>> import layersurgery as ls
            >>> model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False)
            >>> ls.select(model)[0].projections("v").slices[0]
            Slice(parameter='in_proj_weight', dim=0, ranges=((16, 24),))
            >>> print(ls.select(model, "mlp")[0].projections("up").slices[0])
            Slice(parameter='linear1.weight', dim=0, ranges=((0, 16),))
        """
        chosen, found = self._outlined("projections").of_projections(names, str(self))
        return self._part(found, ", ".join(chosen), _OF_THE_WHOLE)

    def _part(self, found: Selection, label: str, without: set[str]) -> Site:
        hazards = tuple(code for code in self.hazards if code not in without)
        return replace(self, slices=found.slices, parameters=found.parameters, label=label, hazards=hazards)

    def _outlined(self, what: str) -> Geometry:
        if self.slices:
            raise SelectionError(f"{str(self)!r} is a part of a module already; ask the whole site for its {what}")
        if self.outline is None:
            raise SelectionError(
                f"{str(self)!r} was made without a model, loaded or unpickled, and nothing is known of its {what}; "
                "take the site from layersurgery.select(model)"
            )
        return self.outline.of(self)

    def to_dict(self) -> dict[str, Any]:
        """The site as JSON-able data; `Site.from_dict` reads it."""
        return {
            **{name: value for name, value in vars(self).items() if name != "outline"},
            "hazards": list(self.hazards),
            "parts": list(self.parts),
            "slices": [*map(asdict, self.slices)],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Site:
        """A site from what `to_dict` gave.

        Raises:
            SelectionError: if a field is missing, unknown or of the wrong type.
        """
        try:
            several = {"hazards": tuple(data["hazards"]), "parts": tuple(data["parts"])}
            slices = tuple(map(Slice.from_dict, data.get("slices", ())))
            site = cls(**{**data, **several, "slices": slices})
        except (TypeError, KeyError, ValueError) as error:
            raise SelectionError(f"not the record of a site: {data!r} ({error})") from error
        strings = (site.path, site.role, site.kind, site.module, site.adds, site.label, *site.hazards, *site.parts)
        if not all(isinstance(text, str) for text in strings) or not isinstance(site.parameters, int):
            raise SelectionError(f"not the record of a site: {data!r} (a field has the wrong type)")
        return site


class Sites(Sequence[Site]):
    """Sites of one model in order; what `select` returns. Slices and picks are `Sites` again; printing shows a table.

    Raises:
        SelectionError: if a site is there twice, or something is not a `Site`.

    Examples:
        >>> sites = Sites([Site("h.0.attn", layer=0), Site("h.1.attn", layer=1)])
        >>> sites[1].path, sites[1:].paths, len(sites.layers([0]))
        ('h.1.attn', ('h.1.attn',), 1)
    """

    def __init__(self, sites: Iterable[Site]) -> None:
        self._sites = tuple(sites)
        seen: set[Site] = set()
        for site in self._sites:
            if not isinstance(site, Site):
                raise SelectionError(
                    f"expected a Site, got {site!r}; `layersurgery.select(model, pattern=...)` makes sites from names"
                )
            if site in seen:
                raise SelectionError(f"site {str(site)!r} is given twice; pass each site once")
            seen.add(site)

    @classmethod
    def repeating(cls, sites: Iterable[Site]) -> Sites:
        """Sites of which one may be there several times, each time with something else done to it: rows of a table."""
        found = cls(())
        found._sites = tuple(sites)
        return found

    def __len__(self) -> int:
        return len(self._sites)

    def __iter__(self) -> Iterator[Site]:
        return iter(self._sites)

    @overload
    def __getitem__(self, index: int) -> Site: ...
    @overload
    def __getitem__(self, index: slice) -> Sites: ...
    def __getitem__(self, index: int | slice) -> Site | Sites:
        if isinstance(index, slice):
            return Sites.repeating(self._sites[index])
        try:
            return self._sites[index]
        except IndexError:
            raise SiteIndexError(
                f"site {index} is out of range: there are {len(self)} sites, 0 to {len(self) - 1}"
            ) from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sites) and self._sites == other._sites

    def __hash__(self) -> int:
        return hash(self._sites)

    def __add__(self, other: Sites) -> Sites:
        return Sites((*self, *other))

    @property
    def paths(self) -> tuple[str, ...]:
        """Dotted module names, in order."""
        return tuple(site.path for site in self)

    def layers(self, numbers: int | Iterable[int]) -> Sites:
        """The sites in these layers (layer numbers of the tower, not positions in the list), in the order asked for.

        Raises:
            SiteIndexError: if a layer has no site here; the message lists those that have.
        """
        wanted = [numbers] if isinstance(numbers, int) else list(numbers)
        there = sorted({site.layer for site in self if site.layer is not None})
        missing = [number for number in wanted if number not in there]
        if missing:
            raise SiteIndexError(f"no site in layer {missing[0]}; layers with sites are {_ranges(there)}")
        return Sites(site for number in wanted for site in self if site.layer == number)

    def heads(self, numbers: int | Iterable[int]) -> Sites:
        """These attention heads of each site, see `Site.heads`.

        Raises:
            SelectionError: if the numbers are none, or the heads of a site cannot be told apart.
            SiteIndexError: if a site has no such head.
        """
        wanted = numbers if isinstance(numbers, int) else list(numbers)
        return Sites(site.heads(wanted) for site in self)

    def projections(self, names: str | Iterable[str]) -> Sites:
        """These projections of each site, see `Site.projections`.

        Raises:
            SelectionError: if a site has no such projection, or it cannot be told apart.
        """
        wanted = names if isinstance(names, str) else list(names)
        return Sites(site.projections(wanted) for site in self)

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        """A table for a terminal, and below it what the hazards in it mean."""
        if not self._sites:
            return "no sites"
        rows = [_HEADER, *map(_row, self)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
        right = {"layer", "parameters"}
        table = [
            "  ".join(
                cell.rjust(width) if title in right else cell.ljust(width)
                for cell, width, title in zip(row, widths, _HEADER, strict=True)
            ).rstrip()
            for row in rows
        ]
        legend = [f"{code}: {meaning}" for code, meaning in _legend(self).items()]
        return "\n".join([*table, "", *legend] if legend else table)

    def _repr_html_(self) -> str:
        def line(cells: Iterable[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        body = "".join(line(_row(site), "td") for site in self)
        terms = "".join(f"<dt>{escape(code)}</dt><dd>{escape(text)}</dd>" for code, text in _legend(self).items())
        legend = f"<dl>{terms}</dl>" if terms else ""
        return f"<table><thead>{line(_HEADER, 'th')}</thead><tbody>{body}</tbody></table>{legend}"


_OF_THE_WHOLE = {"norm_inside", "residual_inside", "adds_constant"}  # hazards that a part of the matrices has not

_HEADER = ("layer", "path", "kind", "tower", "parameters", "hazards")


def _row(site: Site) -> tuple[str, ...]:
    layer = "-" if site.layer is None else str(site.layer)
    return (
        layer,
        str(site),
        site.kind,
        site.tower or "-",
        f"{site.parameters:,}",
        ", ".join(site.hazards) or "-",
    )


def _legend(sites: Iterable[Site]) -> dict[str, str]:
    """The hazards that are present, and what they mean."""
    from layersurgery.sites._hazards import HAZARDS  # that module reads sites

    present = {code for site in sites for code in site.hazards}
    return {code: meaning for code, meaning in HAZARDS.items() if code in present}


def _ranges(numbers: list[int]) -> str:
    if not numbers:
        return "none"
    if numbers == list(range(numbers[0], numbers[-1] + 1)) and len(numbers) > 2:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))
