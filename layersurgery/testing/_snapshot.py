"""`Snapshot` and `assert_restored`: proof that a model, and the world around it, are bit for bit what they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from layersurgery.sites import unwrap
from layersurgery.surgery import status


@dataclass(frozen=True)
class Snapshot:
    """Everything about a model that a surgery must leave as it found it, as named facts.

    Parameters and buffers (same objects, same memory, same bytes, never written to, `requires_grad`, gradient), hooks
    of every kind (ours and others', in order), training flags, instance attributes, the config, the order of the state
    dict, surgeries in force, and the world: random state of torch, numpy and python, gradient and inference mode,
    default dtype.

    Examples:
        >>> Snapshot.of(nn.Linear(2, 2)).facts["module", "", "training"]
        True
    """

    facts: dict[tuple[str, ...], Any]
    kept: tuple[Any, ...]  # references, so that no identity above can be taken by another object

    @classmethod
    def of(cls, model: Any) -> Snapshot:
        """Take down the present state. Costs one copy of all parameters and buffers."""
        module = unwrap(model)
        facts: dict[tuple[str, ...], Any] = {}
        kept: list[Any] = []
        for name, part in module.named_modules(remove_duplicate=False):
            facts.update(_module_facts(name, part, kept))
        for attribute in ("config", "generation_config"):
            as_dict = getattr(getattr(module, attribute, None), "to_dict", None)
            if as_dict is not None:
                facts["model", attribute] = repr(as_dict())
        facts["model", "state dict"] = tuple(_state_names(module))
        facts["model", "surgeries in force"] = tuple(status(module))
        facts.update(_world())
        return cls(facts, tuple(kept))


def _state_names(module: nn.Module) -> Iterator[str]:
    """The names in the state dict, in their order. It is not asked for: bitsandbytes and FSDP rewrite weights then."""
    for path, part in module.named_modules(remove_duplicate=False):
        kept = [name for name, buffer in part._buffers.items() if buffer is not None]
        names = [name for name, parameter in part._parameters.items() if parameter is not None]
        names += [name for name in kept if name not in part._non_persistent_buffers_set]
        yield from (f"{path}.{name}" if path else name for name in names)


def assert_restored(model: Any, before: Snapshot) -> None:
    """Check that nothing of `Snapshot` differs from `before`.

    Transformers installs hooks of its own at some models' first forward: take the snapshot after a warm-up.

    Raises:
        AssertionError: naming each difference.

    Examples:
        >>> model = nn.Linear(2, 2)
        >>> before = Snapshot.of(model)
        >>> model.weight.requires_grad_(False)  # doctest: +ELLIPSIS
        Parameter containing:...
        >>> assert_restored(model, before)
        Traceback (most recent call last):
        AssertionError: not restored: parameter weight requires_grad: was True, is False
    """
    differences = list(_differences(before.facts, Snapshot.of(model).facts))
    if differences:
        shown = "; ".join(differences[:5])
        more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise AssertionError(f"not restored: {shown}{more}")


@contextmanager
def restored(model: Any) -> Iterator[Snapshot]:
    """A block after which, however it is left, the model must be as it was before.

    Raises:
        AssertionError: if it is not.
    """
    before = Snapshot.of(model)
    try:
        yield before
    finally:
        assert_restored(model, before)


def _differences(before: dict[tuple[str, ...], Any], after: dict[tuple[str, ...], Any]) -> Iterator[str]:
    for key in [*before, *(key for key in after if key not in before)]:
        was, now = before.get(key, "absent"), after.get(key, "absent")
        same = (
            torch.equal(was, now)
            if isinstance(was, torch.Tensor) and isinstance(now, torch.Tensor)
            else was is now or was == now
        )
        if not same:
            values = "" if isinstance(was, torch.Tensor) else f": was {_short(was)}, is {_short(now)}"
            yield " ".join(key) + values


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _module_facts(name: str, module: nn.Module, kept: list[Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    kept.append(module)
    yield ("module", name, "identity"), id(module)
    yield ("module", name, "training"), module.training
    yield ("module", name, "attributes"), tuple(sorted(vars(module)))
    for attribute, value in vars(module).items():
        if attribute.endswith("_hooks") and isinstance(value, dict):
            kept.append(list(value.values()))
            yield ("module", name, attribute), tuple((key, id(hook)) for key, hook in value.items())
        elif attribute == "_flat_weights":  # what a recurrent layer's kernels really read
            yield ("module", name, attribute), tuple(id(weight) for weight in value)
    for what, table in (("parameter", module._parameters), ("buffer", module._buffers)):
        yield ("module", name, f"names of {what}s"), tuple(table)
        for leaf, tensor in table.items():
            if tensor is not None:
                kept.append(tensor)
                yield from _tensor_facts((what, f"{name}.{leaf}".lstrip(".")), tensor)


def _tensor_facts(key: tuple[str, str], tensor: torch.Tensor) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield (*key, "identity"), id(tensor)
    yield (*key, "requires_grad"), tensor.requires_grad
    yield (*key, "dtype"), tensor.dtype
    yield (*key, "device"), str(tensor.device)
    yield (*key, "grad"), id(tensor.grad) if tensor.is_leaf and tensor.grad is not None else None
    if not tensor.is_inference():
        yield (*key, "version"), tensor._version
    if not tensor.is_meta:
        yield from _memory_facts(key, tensor)


def _memory_facts(key: tuple[str, ...], tensor: torch.Tensor) -> Iterator[tuple[tuple[str, ...], Any]]:
    inner = getattr(tensor, "__tensor_flatten__", None)
    if inner is not None:  # packed or sharded: made of plain tensors, which hold the bytes
        parts = [(name, getattr(tensor, name)) for name in inner()[0]]
        for name, part in parts:
            if isinstance(part, torch.Tensor):  # a sharded one names its mesh as well
                yield from _memory_facts((*key, name), part)
        return
    yield (*key, "memory"), (tensor.data_ptr(), tuple(tensor.stride()), tensor.storage_offset())
    yield (*key, "bytes"), tensor.detach().clone().contiguous().reshape(-1).view(torch.uint8)


def _world() -> dict[tuple[str, ...], Any]:
    numpy_state = np.random.get_state()  # noqa: NPY002 - the global state is just what must not move
    facts: dict[tuple[str, ...], Any] = {
        ("world", "torch random state"): torch.get_rng_state(),
        ("world", "numpy random state"): repr((numpy_state[0], numpy_state[1].tobytes(), *numpy_state[2:])),  # pyright: ignore
        ("world", "python random state"): random.getstate(),
        ("world", "gradient mode"): torch.is_grad_enabled(),
        ("world", "inference mode"): torch.is_inference_mode_enabled(),
        ("world", "default dtype"): torch.get_default_dtype(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            facts["world", f"cuda {index} random state"] = torch.cuda.get_rng_state(index)
    return facts
