"""Towers and their layers, read from the structure of a model."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from torch import nn

from layersurgery.sites import _names
from layersurgery.sites._names import words
from layersurgery.sites._roles import FEED_FORWARD, MIXER, Part, has_weights, parts_of


@dataclass(frozen=True)
class Layer:
    """One layer of a tower: where it is and what it consists of."""

    index: int
    path: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Tower:
    """A chain of layers that the residual stream passes through; `path` is the list that holds them."""

    name: str
    path: str
    layers: tuple[Layer, ...]


def towers_of(model: nn.Module) -> tuple[Tower, ...]:
    """All towers of a model, in the order in which they are registered; empty where nothing is layered."""
    stacks = _chained(_stacks(model))
    names = _name_towers(model, stacks)
    return tuple(Tower(names[path], path, layers) for path, layers in stacks.items())


def _stacks(model: nn.Module) -> dict[str, tuple[Layer, ...]]:
    """Lists of layers by path.

    Of two lists, one inside the other, the one whose elements are whole layers counts: the blocks of a Swin stage
    rather than its stages, the blocks of T5 rather than the sub-layers of a block.
    """
    found: dict[str, tuple[Layer, ...]] = {}
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        layers = _layers(path, module)
        if not layers:
            continue
        around = next((outer for outer in found if path.startswith(outer + ".")), None)
        if around is None:
            found[path] = layers
        elif _whole(layers):
            found.pop(around)
            found[path] = layers
    return found


def _layers(path: str, module: nn.Module) -> tuple[Layer, ...]:
    blocks = [(int(name), child) for name, child in module.named_children() if name.isdigit() and has_weights(child)]
    layers = [
        Layer(index, f"{path}.{index}" if path else str(index), tuple(parts_of(block))) for index, block in blocks
    ]
    mixing = [layer for layer in layers if any(part.role == MIXER for part in layer.parts)]
    # every layer mixes tokens or at least transforms them, and some layer mixes: else it is a list of experts or heads
    return tuple(layers) if mixing and all(layer.parts for layer in layers) else ()


def _whole(layers: tuple[Layer, ...]) -> bool:
    return all({MIXER, FEED_FORWARD} <= {part.role for part in layer.parts} for layer in layers)


def _chained(stacks: dict[str, tuple[Layer, ...]]) -> dict[str, tuple[Layer, ...]]:
    """Stages of one network (`stages.0.blocks`, `stages.1.blocks`, ...) as one chain, its layers counted through."""
    chains: dict[str, list[Layer]] = {}
    for path, layers in stacks.items():
        chains.setdefault(re.sub(r"\.\d+(?=\.|$)", ".#", path), []).extend(layers)
    return {
        path.partition(".#")[0]: tuple(replace(layer, index=index) for index, layer in enumerate(layers))
        if ".#" in path
        else tuple(layers)
        for path, layers in chains.items()
    }


def _name_towers(model: nn.Module, stacks: dict[str, tuple[Layer, ...]]) -> dict[str, str]:
    read = {path: _modality(model, path) for path in stacks}
    names = {path: name for path, (name, _) in read.items()}
    for path, name in list(names.items()):
        twin = _twin(path, stacks)
        if twin is not None and names[twin] == name and "decoder" in path.split("."):
            names[path] = "decoder"
            names[twin] = "encoder" if name == "language" else name  # Whisper's encoder is its audio tower
    named = [path for path, name in names.items() if name == "language"]
    for beside in (
        lambda path: not read[path][1],  # nothing says that it is language, as it does of another
        lambda path: "encoder" in words(path),  # of proteins, of bytes
        lambda path: bool(words(path.rsplit(".", 1)[-1]) & (_names.CROSS | _names.ATTENTION)),  # adapters in between
    ):
        others = [path for path in named if not beside(path)]
        if others and len(named) > 1:
            names.update((path, "other") for path in named if path not in others)
            named = others
    return names


def _twin(path: str, stacks: dict[str, tuple[Layer, ...]]) -> str | None:
    """The stack in the other half of an encoder-decoder: `a.encoder...` for `a.decoder...`."""
    steps = path.split(".")
    if "decoder" not in steps:
        return None
    start = ".".join([*steps[: steps.index("decoder")], "encoder"]) + "."
    return next((other for other in stacks if other.startswith(start)), None)


def _modality(model: nn.Module, path: str) -> tuple[str, bool]:
    """What data a stack reads - what its path says, else the classes on the way - and whether anything says so.

    Where nothing does, it is what the model's main input is, or language.
    """
    ways = [words(step) for step in path.split(".")]
    module, classes = model, []
    for step in path.split("."):
        module = getattr(module, step)
        classes.append(words(type(module).__name__))
    for said in (ways, classes):
        for name, hints in _names.TOWERS.items():
            if any(step & hints for step in said):
                return name, True
    return _MAIN_INPUT.get(getattr(model, "main_input_name", ""), "language"), False


_MAIN_INPUT = {"pixel_values": "vision", "input_features": "audio", "input_values": "audio"}
