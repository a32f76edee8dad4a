"""Weights that are not plain tensors in a module's parameter table: packed, sharded over processes, or offloaded."""

from __future__ import annotations

import copy
import sys
from functools import cache
from typing import Any

import torch
from torch import nn

_SHARDED = "sharded over processes"
_MULTIPLIES = (nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.modules.conv._ConvNd)


def elsewhere(module: nn.Module, managed: bool) -> str:
    """Where a module's own weights are, in words that follow "the weights are"; empty: in its parameter table.

    Args:
        module: the module.
        managed: a module around it brings its weights in for each pass (see `manages`).
    """
    own = [parameter for parameter in module._parameters.values() if parameter is not None]
    if not managed and all(map(_is_plain, own)) and (_has_matrix(own) or not _is_linear(module)):
        return ""  # nearly always
    if managed and not any(True for _ in module.children()):
        return _SHARDED
    if _is_offloaded(module) and any(parameter.is_meta for parameter in own):
        return "offloaded"
    if _is_sharded(module, own):
        return _SHARDED
    if any(not parameter.is_floating_point() for parameter in own):
        return "packed integers (quantised)"
    packed = _is_linear(module) and not any(True for _ in module.children()) and not _has_matrix(own)
    return "packed by its own code (quantised)" if packed else ""


@cache
def manages(holder: type[nn.Module]) -> bool:
    """Whether modules of a class (FSDP) gather all weights inside before each pass, whatever is in the tables."""
    return any(cls.__name__ in ("FSDPModule", "FullyShardedDataParallel") for cls in holder.__mro__)


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


def _is_plain(parameter: nn.Parameter) -> bool:
    return type(parameter) is nn.Parameter and parameter.is_floating_point() and not parameter.is_meta


def _has_matrix(own: list[nn.Parameter]) -> bool:
    return any(parameter.dim() > 1 for parameter in own)


def _is_offloaded(module: nn.Module) -> bool:
    """Whether accelerate brings the weights in for each call."""
    hook = vars(module).get("_hf_hook")
    if hook is None:
        return False
    hooks = [hook, *getattr(hook, "hooks", ())]
    return any(getattr(one, "offload", False) for one in hooks)


def _is_sharded(module: nn.Module, own: list[nn.Parameter]) -> bool:
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
