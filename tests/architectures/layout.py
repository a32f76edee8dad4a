"""What selection should find in a model: a small language for expectations, and how they apply to a built model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import nn

Expected = tuple[int, str, tuple[str, ...], str]  # layer number, path, parts, kind


@dataclass(frozen=True)
class Layout:
    """Where the layers of a language backbone are, and what each consists of.

    Args:
        layers: path of the list of layers; several, where one chain runs through several lists. `#` is any number.
        mixers: path in a layer -> kind, for each token mixer.
        feed_forwards: the same for the feed-forward; "a + b" names parts of the layer where it is no module of its own.
        residual: path in a layer -> what its output is where it adds nothing, if the sum with the residual stream is
            inside: "argument" of its forward, or "norm(argument)" where a norm of the sum is inside too. "*": it hands
            out what is added in several parts. The (first) output of a path that is not here is what is added.

    A path that a layer does not have is passed over. "path: Class*" counts only where the module is of such a class; of
    several entries with one path the first that fits counts. A path that begins with "/" starts at the model, and `{}`
    in it stands for the number of the layer.
    """

    layers: str | tuple[str, ...]
    mixers: Mapping[str, str]
    feed_forwards: Mapping[str, str] = field(default_factory=dict)
    residual: Mapping[str, str] = field(default_factory=dict)

    def expected_mixers(self, model: nn.Module) -> set[Expected]:
        """All token mixers of the backbone."""
        return {site for _, site in self._expected(model, self.mixers)}

    def expected_feed_forwards(self, model: nn.Module) -> set[Expected]:
        """All feed-forwards of the backbone."""
        return {site for _, site in self._expected(model, self.feed_forwards)}

    def additions(self, model: nn.Module) -> dict[tuple[str, tuple[str, ...]], tuple[str, str]]:
        """Path and parts of each site -> the module whose output holds what it adds, and what is left without that."""
        both = (*self._expected(model, self.mixers), *self._expected(model, self.feed_forwards))
        return {
            (full, parts): (f"{full}.{parts[-1]}" if parts else full, self.residual.get(path, ""))
            for path, (_, full, parts, _) in both
        }

    def _expected(self, model: nn.Module, wanted: Mapping[str, str]) -> Iterator[tuple[str, Expected]]:
        fitted: set[str] = set()
        for number, layer in enumerate(self._layer_paths(model)):
            taken: set[str] = set()
            for entry, kind in wanted.items():
                path, _, wanted_class = (text.strip() for text in entry.partition(":"))
                place = _place(model, layer, number, path)
                if place is None or path in taken or not fnmatchcase(place[2], wanted_class or "*"):
                    continue
                taken.add(path)
                fitted.add(entry)
                yield path, (number, place[0], place[1], kind)
        if fitted != set(wanted):
            raise AssertionError(f"no layer in {self.layers} has {sorted(set(wanted) - fitted)}: a wrong expectation")

    def _layer_paths(self, model: nn.Module) -> list[str]:
        lists = (self.layers,) if isinstance(self.layers, str) else self.layers
        paths = [path for path, _ in model.named_modules()]
        found = [path for pattern in lists for path in paths if fnmatchcase(path, pattern.replace("#", "[0-9]"))]
        if not found:
            raise AssertionError(f"the model has no {self.layers}: a wrong expectation")
        return [f"{path}.{name}" for path in found for name, _ in model.get_submodule(path).named_children()]


def _place(model: nn.Module, layer: str, number: int, path: str) -> tuple[str, tuple[str, ...], str] | None:
    """Full path, parts and class name of what an entry names in a layer, where it is there."""
    if path.startswith("/"):
        layer, path = "", path[1:].format(number)
    parts = tuple(part.strip() for part in path.split("+")) if "+" in path else ()
    full = layer if parts or not path else f"{layer}.{path}".lstrip(".")
    modules = [_module(model, f"{full}.{part}") for part in parts] or [_module(model, full)]
    if any(module is None for module in modules):
        return None
    return full, parts, type(modules[0]).__name__


def _module(model: nn.Module, path: str) -> nn.Module | None:
    try:
        module = model.get_submodule(path)
    except AttributeError:
        return None
    return module if any(True for _ in module.parameters()) else None
