"""Towers and their layers, read from the structure of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
    stacks = _stacks(model)
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


def _name_towers(model: nn.Module, stacks: dict[str, Any]) -> dict[str, str]:
    names = {path: _modality(model, path) for path in stacks}
    for path in stacks:
        for half, other in (("encoder", "decoder"), ("decoder", "encoder")):
            twin = any(_swap(path, half, other) in stack for stack in (_without_leaf(stacks)))
            if twin and names[path] == "language":
                names[path] = half
    return names


def _without_leaf(stacks: dict[str, Any]) -> list[str]:
    return [path + "." for path in stacks]


def _swap(path: str, half: str, other: str) -> str:
    """The path of the other half up to the word that differs, or something that no path contains."""
    steps = path.split(".")
    if half not in steps:
        return "\0"
    at = steps.index(half)
    return ".".join([*steps[:at], other]) + "."


def _modality(model: nn.Module, path: str) -> str:
    """What data a stack reads: what its path says, else the classes on the way, else the model's main input."""
    ways = [words(step) for step in path.split(".")]
    module, classes = model, []
    for step in path.split("."):
        module = getattr(module, step)
        classes.append(words(type(module).__name__))
    for said in (ways, classes):
        for name, hints in _names.TOWERS.items():
            if any(step & hints for step in said):
                return name
    return _MAIN_INPUT.get(getattr(model, "main_input_name", ""), "language")


_MAIN_INPUT = {"pixel_values": "vision", "input_features": "audio", "input_values": "audio"}
