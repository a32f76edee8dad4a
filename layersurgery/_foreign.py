"""What other libraries leave on a module: compiled code in its place, hooks that bring its weights in for each call."""

from __future__ import annotations

from typing import Any

from torch import nn


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
