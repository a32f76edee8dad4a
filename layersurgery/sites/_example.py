"""Arguments that a module may run on, guessed from its signature, its config and its first layer."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from layersurgery.errors import SelectionError

Call = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword arguments

SAMPLES, POSITIONS = 2, 7  # a length that is no usual width, head count or window


def given(example: Any) -> Call:
    """What a user calls an example input, as arguments.

    Raises:
        SelectionError: if it is neither a tensor, nor a tuple or list, nor a mapping with words for keys.

    Examples:
        >>> given({"input_ids": 3}), given((1, 2))
        (((), {'input_ids': 3}), ((1, 2), {}))
    """
    if isinstance(example, torch.Tensor):
        return (example,), {}
    if isinstance(example, Mapping) and all(isinstance(key, str) for key in example):
        return (), dict(example)
    if isinstance(example, list | tuple):
        return tuple(example), {}
    raise SelectionError(
        f"example must be the arguments of one forward - a mapping of keywords, a tuple, or one tensor - got "
        f"{type(example).__name__}; e.g. example={{'input_ids': torch.tensor([[1, 2, 3]])}}"
    )


def guesses(module: nn.Module) -> Iterator[Call]:
    """Arguments to try in this order; the first that runs will do."""
    accepted = inspect.signature(_callee(module).forward).parameters
    named = list(_named(module, accepted))
    if named:
        yield from _with_switches(named, accepted)
    needed = [
        name
        for name, parameter in accepted.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    for value in _first_inputs(module):
        yield tuple(value.clone() for _ in range(max(1, len(needed)))), {}


def _callee(module: nn.Module) -> nn.Module:
    """What a wrapper calls."""
    while type(module).__module__ == "layersurgery.sites._shadow" and len(module._modules) == 1:
        module = next(child for child in module._modules.values() if child is not None)
    return module


def _with_switches(named: list[dict[str, Any]], accepted: Mapping[str, Any]) -> Iterator[Call]:
    switches = {name: False for name in ("use_cache",) if name in accepted}
    for call in named:
        yield (), {**call, **switches}
    if switches:
        for call in named:
            yield (), call


def _named(module: nn.Module, accepted: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Arguments by the names that models of transformers, and others after them, give to their inputs."""
    text = {"input_ids": _tokens(module)} if "input_ids" in accepted else {}
    if text and "decoder_input_ids" in accepted:
        text["decoder_input_ids"] = _tokens(module)
    data = [
        {name: value}
        for name, make in (("pixel_values", _pictures), ("input_values", _sounds), ("input_features", _spectra))
        if name in accepted
        for value in make(module)
    ]
    main = getattr(_callee(module), "main_input_name", "")
    if any(main in entry for entry in data):
        data = sorted(data, key=lambda entry: main not in entry)
        yield from data
        for name in ("decoder_input_ids", "input_ids"):
            if name in accepted:
                yield from ({**entry, name: _tokens(module)} for entry in data)
    if text:
        yield text
        yield {**text, "attention_mask": torch.ones_like(text["input_ids"])}
        yield from ({**text, **entry} for entry in data)
    if "inputs_embeds" in accepted:
        width = getattr(getattr(_callee(module), "config", None), "hidden_size", None)
        if isinstance(width, int):
            yield {"inputs_embeds": _states(width)}
    if "grid_thw" in accepted and "hidden_states" in accepted:
        yield from _patches(module)
    if not any(main in entry for entry in data):
        yield from data


def _tokens(module: nn.Module) -> torch.Tensor:
    """Texts without the tokens that a config speaks of, such as placeholders for a picture."""
    config = getattr(_callee(module), "config", None)
    special = set(_integers(getattr(config, "to_dict", dict)()))
    tables = [part for part in module.modules() if isinstance(part, nn.Embedding)]
    own = _input_table(module)
    size = own.num_embeddings if own is not None else max((part.num_embeddings for part in tables), default=1000)
    free = [token for token in range(int(size) - 1, 0, -1)[: 4 * POSITIONS + len(special)] if token not in special]
    picked = (free or [0])[: 2 * POSITIONS]
    row = torch.tensor([picked[at % len(picked)] for at in range(SAMPLES * POSITIONS)], device="cpu")
    return row.reshape(SAMPLES, POSITIONS)


def _input_table(module: nn.Module) -> nn.Embedding | None:
    try:
        table: Any = getattr(_callee(module), "get_input_embeddings", lambda: None)()
    except (NotImplementedError, AttributeError):  # transformers' way of saying that there is none
        return None
    return table if isinstance(table, nn.Embedding) else None


def _integers(value: Any) -> Iterator[int]:
    if isinstance(value, int):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for entry in value.values() if isinstance(value, Mapping) else value:
            yield from _integers(entry)


def _states(width: int) -> torch.Tensor:
    return _ramp(SAMPLES, POSITIONS, width)


def _ramp(*shape: int) -> torch.Tensor:
    return torch.linspace(-1, 1, math.prod(shape), device="cpu").reshape(shape)


def _pictures(module: nn.Module) -> Iterator[torch.Tensor]:
    first = next((part for part in module.modules() if isinstance(part, nn.Conv2d | nn.Conv3d)), None)
    channels = first.in_channels if first is not None else 3
    inner = channels > _COLOURS  # in the middle of a network, where pictures are small, and large ones would be huge
    for high, wide in _SMALL[::-1] if inner else _picture_sizes(module):
        yield _ramp(SAMPLES, channels, high, wide)


def _picture_sizes(module: nn.Module) -> list[tuple[int, int]]:
    """What configs and modules say about the size of a picture, then usual sizes; large ones take long."""
    said: list[Any] = []
    for part in module.modules():
        for holder in (
            part,
            getattr(part, "config", None),
            getattr(getattr(part, "config", None), "vision_config", None),
        ):
            said += [getattr(holder, name, None) for name in ("image_size", "img_size")]
    sizes = [pair for value in said if (pair := _pair(value)) is not None]
    large = [size for size in sizes if max(size) > 256]
    smaller = [(224, 224)] if large and large == sizes else []
    return list(dict.fromkeys([*smaller, *sizes, (224, 224), *_SMALL]))[:6]


_SMALL = [(64, 64), (32, 32)]
_COLOURS = 16


def _pair(value: Any) -> tuple[int, int] | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value, value
    if isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(side, int) for side in value):
        return value[0], value[1]
    return None


def _patches(module: nn.Module) -> Iterator[dict[str, Any]]:
    """Pictures that were cut up before: 4 x 4 patches, each flattened."""
    config = getattr(_callee(module), "config", None)
    patch, frames, channels = (
        getattr(config, name, usual)
        for name, usual in (("patch_size", 14), ("temporal_patch_size", 1), ("in_channels", 3))
    )
    if all(isinstance(size, int) for size in (patch, frames, channels)):
        pixels = _ramp(16, channels * frames * patch * patch)
        yield {"hidden_states": pixels, "grid_thw": torch.tensor([[1, 4, 4]], device="cpu")}


def _sounds(module: nn.Module) -> Iterator[torch.Tensor]:
    yield _ramp(SAMPLES, 4000)


def _spectra(module: nn.Module) -> Iterator[torch.Tensor]:
    config = getattr(_callee(module), "config", None)
    bins = getattr(config, "num_mel_bins", None) or getattr(config, "feature_size", None) or 80
    length = 2 * (getattr(config, "max_source_positions", None) or 64)
    yield _ramp(SAMPLES, bins, length)
    yield _ramp(SAMPLES, length, bins)


def _first_inputs(module: nn.Module) -> Iterator[torch.Tensor]:
    """What the first module that holds weights takes."""
    first = next((part for part in module.modules() if any(True for _ in part.parameters(recurse=False))), None)
    for part in (first, *_typical(module)):
        if isinstance(part, nn.Embedding):
            yield _tokens(module)
        elif isinstance(part, nn.Conv2d):
            yield from _pictures(module)
        elif isinstance(part, nn.Conv1d):
            yield _ramp(SAMPLES, part.in_channels, 64)
        elif part is not None:
            width = next((tensor.shape[-1] for tensor in part.parameters(recurse=False) if tensor.dim()), 0)
            width = getattr(part, "in_features", width)
            if isinstance(width, int) and width:
                yield _states(width)


def _typical(module: nn.Module) -> Iterator[nn.Module]:
    """One module of each type that says much about a network's input, where its first module does not run it."""
    for kind in (nn.Embedding, nn.Conv2d, nn.Linear):
        found = next((part for part in module.modules() if isinstance(part, kind)), None)
        if found is not None:
            yield found
