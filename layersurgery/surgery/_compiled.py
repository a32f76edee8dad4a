"""Code compiled from a model's modules: what it takes notice of, and what it does not."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence

from torch import nn

from layersurgery._foreign import runs_compiled
from layersurgery.errors import SurgeryError


def is_compiled(holders: Sequence[nn.Module]) -> bool:
    """Whether one of the modules runs as compiled code, whose inputs are the weights: others are seen, hooks are not.

    Raises:
        SurgeryError: if not even weights are seen.
    """
    compiled = any(map(runs_compiled, holders))
    if compiled and getattr(sys.modules.get("torch._inductor.config"), "freezing", False):
        raise SurgeryError(
            "torch._inductor.config.freezing is on: compiled code holds its own copy of the weights. Switch it off and "
            "compile the model again"
        )
    return compiled


def is_blind_to_hooks(around: Sequence[nn.Module], compiled: bool) -> bool:
    """Whether there may be code for these modules that a hook put there now would not be part of.

    Args:
        around: the modules around a site.
        compiled: whether one of them is known to run as compiled code.
    """
    return compiled or (_anything_is_compiled() and _is_wrapped(around))


def _anything_is_compiled() -> bool:
    """Whether this process has compiled anything since the last torch._dynamo.reset()."""
    dynamo = sys.modules.get("torch._dynamo.convert_frame")
    return dynamo is not None and bool(getattr(getattr(dynamo, "input_codes", None), "seen", True))


def _is_wrapped(around: Sequence[nn.Module]) -> bool:
    """Whether torch.compile(module) gave an object for one of these, of which the module itself knows nothing."""
    inside = set(map(id, around))
    return any(
        isinstance(referrer, dict) and id(referrer.get("_orig_mod")) in inside for referrer in gc.get_referrers(*around)
    )
