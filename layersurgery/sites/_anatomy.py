"""Towers and their layers: lists of blocks in the structure of a model, read with what was seen when it ran."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import takewhile

import torch
from torch import nn

from layersurgery.sites import _names
from layersurgery.sites._behaviour import parts_of
from layersurgery.sites._names import words
from layersurgery.sites._roles import FEED_FORWARD, MIXER, Part, has_weights
from layersurgery.sites._trace import Trace


@dataclass(frozen=True)
class Layer:
    """One layer of a tower: where it is and what it consists of.

    Args:
        index: its number in the tower.
        path: its module; of a layer without one, the module around its pieces.
        parts: mixers and feed-forwards, relative to the path.
        pieces: names of the modules that make up a layer without a module, relative to the path.
    """

    index: int
    path: str
    parts: tuple[Part, ...]
    pieces: tuple[str, ...] = ()

    @property
    def modules(self) -> tuple[str, ...]:
        """Full names of the modules that the layer is."""
        return tuple(joined(self.path, piece) for piece in self.pieces) or (self.path,)


@dataclass(frozen=True)
class Tower:
    """A chain of layers that the residual stream passes through; `path` is the list that holds them."""

    name: str
    path: str
    layers: tuple[Layer, ...]


Stacks = dict[str, tuple[Layer, ...]]


def joined(*names: str) -> str:
    """Dotted names without the empty ones."""
    return ".".join(filter(None, names))


def towers_of(model: nn.Module, trace: Trace) -> tuple[Tower, ...]:
    """All towers of a model, in the order in which they are registered; empty where nothing is layered."""
    reader = _Reader(model, trace)
    stacks = reader.stacks()
    names = _Namer(model, trace, stacks).names()
    return tuple(Tower(names[path], path, layers) for path, layers in stacks.items())


@dataclass
class _Reader:
    """Finds lists of layers."""

    model: nn.Module
    trace: Trace
    _read: dict[int, tuple[Part, ...]] = field(default_factory=dict[int, tuple[Part, ...]])

    def stacks(self) -> Stacks:
        """Lists of layers by path, stages joined and lists that run in turn too."""
        return _in_turn(_chained(self._siblings(self._parallel(self._lists()))), self.model, self.trace)

    def _lists(self) -> Stacks:
        """The lists of modules among them.

        Of two lists, one inside the other, the one whose elements are whole layers counts: the blocks of a Swin stage
        rather than its stages, the blocks of T5 rather than the sub-layers of a block.
        """
        found: Stacks = {}
        for path, module in self.model.named_modules():
            if not isinstance(module, nn.ModuleList | nn.Sequential):
                continue
            layers = self._layers(
                path, [(int(n), joined(path, n), c) for n, c in module.named_children() if n.isdigit()]
            )
            if not layers:
                continue
            around = next((outer for outer in found if path.startswith(outer + ".") or not outer), None)
            if around is None:
                found[path] = layers
            elif _whole(layers):
                found.pop(around)
                found[path] = layers
        return found

    def _layers(self, path: str, blocks: list[tuple[int, str, nn.Module]]) -> tuple[Layer, ...]:
        weighted = [(index, place, block) for index, place, block in blocks if has_weights(block)]
        layers = [Layer(index, place, self._parts(block)) for index, place, block in weighted]
        mixing = [layer for layer in layers if any(part.role == MIXER for part in layer.parts)]
        # every layer mixes tokens or at least transforms them, and some layer mixes: else it is a list of experts
        return tuple(layers) if mixing and all(layer.parts for layer in layers) else ()

    def _parts(self, block: nn.Module) -> tuple[Part, ...]:
        if id(block) not in self._read:
            self._read[id(block)] = tuple(parts_of(block, self.trace.of))
        return self._read[id(block)]

    def _parallel(self, found: Stacks) -> Stacks:
        """Lists of attentions, norms and feed-forwards side by side, without a module for a layer (XLM)."""
        for path, module in self.model.named_modules():
            lists = {n: c for n, c in module.named_children() if isinstance(c, nn.ModuleList) and len(c) > 1}
            if len(lists) < 2 or _near(path, found):
                continue
            for length in Counter(map(len, lists.values())):
                layers = self._interleaved(path, {n: c for n, c in lists.items() if len(c) == length})
                if layers:
                    found = {**found, path: layers}
        return found

    def _interleaved(self, path: str, lists: dict[str, nn.ModuleList]) -> tuple[Layer, ...]:
        layers: list[Layer] = []
        for row in zip(*lists.values(), strict=True):
            index = len(layers)
            around = nn.ModuleDict(dict(zip(lists, row, strict=True)))  # as if there were a module for it
            parts = [replace(part, path=_numbered(part.path, index)) for part in parts_of(around, self.trace.of)]
            whole = {MIXER, FEED_FORWARD} <= {part.role for part in parts} and all(part.path for part in parts)
            if not whole:
                return ()
            layers.append(Layer(index, path, tuple(parts), tuple(f"{name}.{index}" for name in lists)))
        return tuple(layers)

    def _siblings(self, found: Stacks) -> Stacks:
        """Blocks of one class held by attributes of their own instead of by a list."""
        for path, module in self.model.named_modules():
            if isinstance(module, nn.ModuleList | nn.Sequential) or _near(path, found):
                continue
            alike: dict[type[nn.Module], list[tuple[str, nn.Module]]] = {}
            for name, child in module.named_children():
                alike.setdefault(type(child), []).append((name, child))
            for blocks in alike.values():
                placed = [(index, joined(path, name), block) for index, (name, block) in enumerate(blocks)]
                layers = self._layers(path, placed) if len(blocks) > 1 else ()
                if layers and _whole(layers):
                    found = {**found, path: layers}
        return found


def _near(path: str, found: Stacks) -> bool:
    """Whether a module lies in a stack that was found, or around one."""
    within = any(not place or path == place or path.startswith(place + ".") for place in found)
    return within or any(not path or place.startswith(path + ".") for place in found)


def _numbered(path: str, index: int) -> str:
    name, _, rest = path.partition(".")
    return joined(f"{name}.{index}" if name else "", rest)


def _whole(layers: tuple[Layer, ...]) -> bool:
    return all({MIXER, FEED_FORWARD} <= {part.role for part in layer.parts} for layer in layers)


def _chained(stacks: Stacks) -> Stacks:
    """Stages of one network (`stages.0.blocks`, `stages.1.blocks`, ...) as one chain, its layers counted through."""
    chains: dict[str, list[Layer]] = {}
    for path, layers in stacks.items():
        chains.setdefault(re.sub(r"\.\d+(?=\.|$)", ".#", path), []).extend(layers)
    return {
        path.partition(".#")[0]: _counted(layers) if ".#" in path else tuple(layers) for path, layers in chains.items()
    }


def _in_turn(stacks: Stacks, model: nn.Module, trace: Trace) -> Stacks:
    """Lists of layers of one class that run again and again in turn, as one chain."""
    turns: dict[type[nn.Module], list[str]] = {}
    for path, layers in stacks.items():
        modules = [model.get_submodule(layer.path) for layer in layers]
        records = [trace.of(module) for module in modules]
        if not layers[0].pieces and all(record is not None and record.runs > 1 for record in records):
            turns.setdefault(type(modules[0]), []).append(path)
    joint = {path: paths for paths in turns.values() if len(paths) > 1 for path in paths}
    merged: Stacks = {}
    for path, layers in stacks.items():
        paths = joint.get(path)
        if paths is None:
            merged[path] = layers
        elif path == paths[0]:
            steps = takewhile(lambda row: len({*row}) == 1, zip(*(one.split(".") for one in paths), strict=False))
            around = ".".join(step for step, *_ in steps)
            merged[around] = _counted([layer for one in paths for layer in stacks[one]])
    return merged


def _counted(layers: list[Layer]) -> tuple[Layer, ...]:
    return tuple(replace(layer, index=index) for index, layer in enumerate(layers))


@dataclass(frozen=True)
class _Namer:
    """Says of each stack what data it reads, and which one is the language backbone."""

    model: nn.Module
    trace: Trace
    stacks: Stacks

    def names(self) -> dict[str, str]:
        """Path of a stack -> name of the tower."""
        read = {path: self._modality(path) for path in self.stacks}
        names = {path: name for path, (name, _) in read.items()}
        for path, name in list(names.items()):
            twin = self._twin(path)
            if twin is not None and names[twin] == name and "decoder" in path.split("."):
                names[path] = "decoder"
                names[twin] = "encoder" if name == "language" else name  # Whisper's encoder is its audio tower
        named = [path for path, name in names.items() if name == "language"]
        for beside in self._not_the_backbone(read):
            others = [path for path in named if len(named) > 1 and not beside(path)]
            if others:
                names.update((path, "other") for path in named if path not in others)
                named = others
        return names

    def _not_the_backbone(self, read: dict[str, tuple[str, bool]]) -> Iterator[Callable[[str], bool]]:
        """What tells a stack beside the language backbone, the surest first."""
        yield lambda path: self._ran(path) is False  # of pictures, or of sounds: it does not run on text alone
        yield lambda path: not read[path][1]  # nothing says that it is language, as it does of another
        yield lambda path: "encoder" in words(path)  # of proteins, of bytes
        yield lambda path: bool(words(path.rsplit(".", 1)[-1]) & (_names.CROSS | _names.ATTENTION))  # adapters
        yield lambda path: bool(words(path) & _names.LOCAL)  # of bytes, around the one of words
        yield lambda path: len(self.stacks[path]) == 1  # of characters, before and after the one of words
        largest = max(map(self._parameters, self.stacks), default=0)
        yield lambda path: 8 * self._parameters(path) < largest  # an assistant, a head that drafts

    def _ran(self, path: str) -> bool | None:
        return self.trace.whole(self.model.get_submodule(self.stacks[path][0].modules[0]))

    def _runs_on_text(self, path: str) -> bool:
        """Whether it was seen to run when the whole model was given nothing but text."""
        run = self.trace.run_of([self.model.get_submodule(self.stacks[path][0].modules[0])])
        if run is None or not self._ran(path):
            return False
        arguments, keywords = run[1]
        given = {name for name, value in keywords.items() if isinstance(value, torch.Tensor)}
        return not arguments and given <= _TEXT

    def _parameters(self, path: str) -> int:
        modules = [self.model.get_submodule(name) for layer in self.stacks[path] for name in layer.modules]
        return sum(parameter.numel() for module in modules for parameter in module.parameters())

    def _twin(self, path: str) -> str | None:
        """The stack in the other half of an encoder-decoder: `a.encoder...` for `a.decoder...`."""
        steps = path.split(".")
        if "decoder" not in steps:
            return None
        start = ".".join([*steps[: steps.index("decoder")], "encoder"]) + "."
        return next((other for other in self.stacks if other.startswith(start)), None)

    def _modality(self, path: str) -> tuple[str, bool]:
        """What data a stack reads - what its path says, else the classes on the way - and whether anything says so.

        Where nothing does, it is what the main input of a part of the model is, or language.
        """
        ways = [words(step) for step in path.split(".")]
        modules = [self.model]
        for step in path.split(".") if path else ():
            modules.append(getattr(modules[-1], step))
        for said in (ways, [words(type(module).__name__) for module in modules[1:]]):
            for name, hints in _names.TOWERS.items():
                if any(step & hints for step in said):
                    # a model of speech may be named for what it is about: its backbone reads text
                    by_class = said is not ways and name != "language" and self._runs_on_text(path)
                    return ("language", False) if by_class else (name, True)
        mains = [getattr(module, "main_input_name", "") for module in reversed(modules)]
        return next((_MAIN_INPUT[main] for main in mains if main in _MAIN_INPUT), "language"), False


_TEXT = {"input_ids", "inputs_embeds", "decoder_input_ids", "attention_mask"}
_MAIN_INPUT = {"pixel_values": "vision", "input_features": "audio", "input_values": "audio"}
