"""What other libraries leave on a module: compiled code in its place, hooks that bring its weights in for each call."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList


def is_untouched(module: nn.Module) -> bool:
    """Whether no other library has left anything on a module that could change how it runs: nearly always.

    Examples:
        >>> is_untouched(nn.Linear(2, 2)), is_untouched(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
        (True, False)
    """
    held, inside = module.__dict__, module._modules
    return not (
        "forward" in held
        or "_hf_hook" in held
        or "_orig_mod" in inside
        or "parametrizations" in inside
        or module._forward_pre_hooks
        or held.get("_compiled_call_impl") is not None
        or runs_as(type(module))
    )


@cache
def runs_as(cls: type[nn.Module]) -> str:
    """In what form modules of a class run, if not as plain ones: "script", "copies", "sharded" or "computed".

    Copies are those of data parallelism; what is computed is a parametrised weight, from a list of others. Found once
    for each class, since this is asked at each application.
    """
    if issubclass(cls, torch.jit.ScriptModule):
        return "script"
    if issubclass(cls, nn.DataParallel):
        return "copies"
    if issubclass(cls, ParametrizationList):
        return "computed"
    sharded = any(base.__name__ in ("FSDPModule", "FullyShardedDataParallel") for base in cls.__mro__)
    return "sharded" if sharded else ""


def runs_compiled(module: nn.Module) -> bool:
    """Whether a module runs as code that torch.compile made of it.

    Examples:
        >>> import torch
        >>> plain = nn.Linear(2, 2)
        >>> runs_compiled(plain), runs_compiled(torch.compile(plain))
        (False, True)
    """
    held = vars(module)
    if "_orig_mod" in module._modules or held.get("_compiled_call_impl") is not None:
        return True  # torch.compile(module), module.compile()
    # module.forward = torch.compile(module.forward)
    return "forward" in held and hasattr(held["forward"], "_torchdynamo_orig_callable")


def offload_hooks(module: nn.Module) -> list[Any]:
    """Accelerate's hooks on a module that keep weights elsewhere between calls."""
    hook = vars(module).get("_hf_hook")
    if hook is None:
        return []
    return [one for one in (hook, *getattr(hook, "hooks", ())) if getattr(one, "offload", False)]
