"""Weights that are not plain tensors in a module's parameter table: packed, sharded over processes, or offloaded."""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
from torch import nn

from layersurgery._foreign import offload_hooks, runs_as

_SHARDED = "sharded over processes"
_OFFLOADED = "offloaded"
_MULTIPLIES = (nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.modules.conv._ConvNd)


def holds_plain_weights(module: nn.Module) -> bool:
    """Whether a module's own weights are ordinary tensors in its parameter table: nearly always.

    One loop, for speed: this is asked at each application.
    """
    matrix = False
    for one in module._parameters.values():
        if one is None:
            continue
        if type(one) is not nn.Parameter or one.is_meta or not one.is_floating_point() or one.dtype.itemsize == 1:
            return False
        matrix = matrix or one.dim() > 1
    return matrix or not _is_linear(module)


def elsewhere(module: nn.Module, managed: str) -> str:
    """Where a module's own weights are, in words that follow "the weights are"; empty: in its parameter table.

    Args:
        module: the module.
        managed: where a module around it keeps its weights between passes (see `manages`), in the same words.
    """
    if not managed and holds_plain_weights(module):
        return ""
    own = [parameter for parameter in module._parameters.values() if parameter is not None]
    leaf = not any(True for _ in module.children())
    if managed and (own or (leaf and (_is_linear(module) or "weight" in vars(module)))):
        return managed
    if any(parameter.is_meta for parameter in own) and offload_hooks(module):
        return _OFFLOADED
    if _is_sharded(own):
        return _SHARDED
    return _packed(module, own)


def manages(holder: nn.Module) -> str:
    """Where a module keeps the weights of all that is in it between passes, whatever is in the tables; empty: nowhere.

    FSDP gathers them in each pass, and accelerate loads whole blocks at once where it is told to.
    """
    if runs_as(type(holder)) == "sharded":
        return _SHARDED
    whole = any(getattr(hook, "place_submodules", False) for hook in offload_hooks(holder))
    return _OFFLOADED if whole else ""


def divides_by_its_size(module: nn.Module) -> bool:
    """Whether a module divides its weights by their norm (DoRA), so that weights of zero do not give zero, but NaN."""
    used = vars(module).get("use_dora")
    return isinstance(used, dict) and any(used.values())


def silenced_by_zeros(module: nn.Module) -> bool:
    """Whether what a module gives is proportional to its parameters, so that zeros there are zeros in its output."""
    if isinstance(module, _MULTIPLIES) or _is_linear(module):
        return True
    own = [parameter for parameter in module._parameters.values() if parameter is not None]
    if any(True for _ in module.children()) or any(parameter.dim() > 1 for parameter in own):
        return False
    return _zeros_give_zeros(module)


def _is_linear(module: nn.Module) -> bool:
    """A linear layer of whatever make: GPTQ, bitsandbytes, torchao and others keep torch's two sizes."""
    held = vars(module)
    sizes = (held.get("in_features"), held.get("out_features"))
    conv1d = type(module).__name__ == "Conv1D" and isinstance(held.get("nf"), int)  # of transformers
    return all(isinstance(size, int) for size in sizes) or conv1d


def _packed(module: nn.Module, own: list[nn.Parameter]) -> str:
    if any(not parameter.is_floating_point() for parameter in own):
        return "packed integers (quantised)"
    if any(parameter.dtype.itemsize == 1 for parameter in own):
        return "8-bit floats with scales of their own (quantised)"
    # an adapter's wrapper has no matrix of its own, but there is one inside
    without = _is_linear(module) and not any(parameter.dim() > 1 for parameter in module.parameters())
    return "packed by its own code (quantised)" if without else ""


def _is_sharded(own: list[nn.Parameter]) -> bool:
    tensors = sys.modules.get("torch.distributed.tensor")
    if tensors is None:
        return False  # nothing can be sharded by what was never imported
    return any(isinstance(one, tensors.DTensor) or isinstance(one.data, tensors.DTensor) for one in own)


def _zeros_give_zeros(module: nn.Module) -> bool:
    """Try it: a norm may multiply by its weight, or by one more than it."""
    twin: Any = copy.copy(module)
    twin.__dict__ = {
        key: value for key, value in vars(module).items() if key not in ("forward", "_hf_hook", "_old_forward")
    }
    twin._parameters = {
        name: None if parameter is None else nn.Parameter(torch.zeros(parameter.shape), requires_grad=False)
        for name, parameter in module._parameters.items()
    }
    width = next((parameter.shape[-1] for parameter in twin._parameters.values() if parameter is not None), 1)
    states = torch.linspace(-1, 1, 3 * width).reshape(1, 3, width)
    try:
        with torch.no_grad():
            given = type(module).forward(twin, states)
    except Exception:  # it takes something else than hidden states
        return False
    return isinstance(given, torch.Tensor) and not given.any()
