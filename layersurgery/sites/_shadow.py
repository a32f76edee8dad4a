"""`shadow`: a copy of a model that holds no weight, so that what its modules do can be seen by running it.

The model itself is never run and never changed: the copy has its classes, settings and small buffers, and in the place
of each parameter a single number that is seen in the parameter's shape.
"""

from __future__ import annotations

import copy
import functools
import math
import types
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

SMALL = 1 << 16  # entries; a buffer up to this size keeps its values, a larger one is a constant too


class NoShadowError(Exception):
    """The model cannot be copied without its weights, or the copy would reach back to the model."""


def shadow(model: nn.Module) -> tuple[nn.Module, dict[int, nn.Module]]:
    """A weightless copy of a model on the CPU, in evaluation mode, and from `id(module)` to the copy of each module.

    Left behind are hooks, instance-level replacements of `forward` (offloading, tracing), and compilation. Parameters
    are float32 whatever they are in the model; what is shared in the model is shared in the copy.

    Raises:
        NoShadowError: if something in the model cannot be copied, or holds on to the model from outside.

    Examples:
        >>> twin, of = shadow(nn.Linear(50_000, 50_000, device="meta"))
        >>> twin.weight.shape, twin.weight.untyped_storage().nbytes()
        (torch.Size([50000, 50000]), 4)
    """
    try:
        return _Copier().copy(model)
    except NoShadowError:
        raise
    except Exception as error:  # whatever a foreign __deepcopy__, property or class raises
        raise NoShadowError(f"{type(model).__name__} cannot be copied: {type(error).__name__}: {error}") from error


def is_constant(tensor: torch.Tensor) -> bool:
    """Whether all entries of a tensor are one and the same number in memory."""
    return all(stride == 0 or size == 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def constant(shape: torch.Size | tuple[int, ...], value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A number seen as a tensor of that shape."""
    return torch.full((), value, dtype=dtype, device="cpu").expand(shape)


def stand_in(shape: torch.Size | tuple[int, ...]) -> nn.Parameter:
    """A parameter of that shape in four bytes; small enough that what passes through many of them stays finite."""
    inputs = math.prod(shape[1:]) if len(shape) > 1 else 1
    return nn.Parameter(constant(shape, 0.5 / inputs if inputs else 0.5), requires_grad=False)


def is_packed(module: nn.Module) -> bool:
    """A leaf that says it is linear, and has no matrix of ordinary numbers of that size."""
    sizes = {getattr(module, "in_features", None), getattr(module, "out_features", None)}
    if not all(isinstance(size, int) for size in sizes) or any(True for _ in module.children()):
        return False
    held = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
    matrices = [t for t in held if isinstance(t, torch.Tensor) and not isinstance(t, UninitializedParameter)]
    plain = any(t.dim() == 2 and set(t.shape) == sizes and t.dtype in _FLOATS for t in matrices)
    return bool(matrices) and not plain


class _Copier:
    def __init__(self) -> None:
        self._memo: dict[int, Any] = {}  # as of `copy.deepcopy`: from ids to copies

    def copy(self, model: nn.Module) -> tuple[nn.Module, dict[int, nn.Module]]:
        modules = list(model.modules())
        twins = {id(module): self._bare(module) for module in modules}
        self._memo.update(twins)
        for module in modules:
            self._fill(module, twins[id(module)])
        for config in {id(twin.config): twin.config for twin in twins.values() if "config" in vars(twin)}.values():
            _plain_implementations(config)
        return twins[id(model)].eval(), twins

    def _bare(self, module: nn.Module) -> nn.Module:
        if isinstance(module, torch.jit.ScriptModule):
            raise NoShadowError(f"{type(module).__name__} is a script, whose code belongs to its weights")
        if is_packed(module):
            return _PackedLinear(module)
        inner = next((name for name in _WRAPPED if _wraps(module, name)), None)
        kind = type(module) if inner is None else _WRAPPERS[inner]
        return object.__new__(kind)

    def _fill(self, module: nn.Module, twin: nn.Module) -> None:
        if isinstance(twin, _PackedLinear):
            return
        for name, value in vars(module).items():
            if name in ("_parameters", "_buffers", "_modules"):
                vars(twin)[name] = {key: self._value(entry) for key, entry in value.items()}
            elif name.endswith(_HOOKS):
                vars(twin)[name] = type(value)() if isinstance(value, dict) else value
            elif name == "_compiled_call_impl":
                vars(twin)[name] = None
            elif not _foreign(module, name, value):
                vars(twin)[name] = self._value(value)

    def _value(self, value: Any) -> Any:
        """The copy of an attribute's value; tensors at any depth become stand-ins."""
        if isinstance(value, torch.Tensor):
            return self._memo.setdefault(id(value), _tensor(value))
        _refuse_reach_back(value)
        if isinstance(value, str | int | float | bool | None | type):
            return value
        self._remember_tensors(value)
        return copy.deepcopy(value, self._memo)

    def _remember_tensors(self, value: Any) -> None:
        """`copy.deepcopy` would copy the bytes of tensors in containers; what the memo has it takes from there."""
        if isinstance(value, torch.Tensor):
            self._memo.setdefault(id(value), _tensor(value))
        elif isinstance(value, Mapping):
            for entry in value.values():
                self._remember_tensors(entry)
        elif isinstance(value, list | tuple | set):
            for entry in value:
                self._remember_tensors(entry)
        else:
            _refuse_reach_back(value)


class _Compiled(nn.Module):
    """In the place of `torch.compile`'s wrapper, so that names stay what they are."""

    inner = "_orig_mod"

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        return self._modules[self.inner](*arguments, **keywords)  # pyright: ignore[reportOptionalCall]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._modules[self.inner], name)


class _Replicated(_Compiled):
    """In the place of data-parallel wrappers."""

    inner = "module"


_WRAPPERS: dict[str, type[nn.Module]] = {"_orig_mod": _Compiled, "module": _Replicated}
_WRAPPED = tuple(_WRAPPERS)


def _wraps(module: nn.Module, name: str) -> bool:
    known = name == "_orig_mod" or isinstance(module, nn.DataParallel | torch.nn.parallel.DistributedDataParallel)
    return known and isinstance(module._modules.get(name), nn.Module)


class _PackedLinear(nn.Module):
    """In the place of a linear layer whose matrix is packed (4 bits, integers): the same shapes in and out."""

    def __init__(self, packed: Any) -> None:
        super().__init__()
        self.in_features, self.out_features = int(packed.in_features), int(packed.out_features)
        self.weight = stand_in((self.out_features, self.in_features))
        bias = getattr(packed, "bias", None)
        self.bias = stand_in((self.out_features,)) if isinstance(bias, torch.Tensor) else None

    def forward(self, states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return nn.functional.linear(states, self.weight, self.bias)


_HOOKS = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def _tensor(value: torch.Tensor) -> torch.Tensor:
    if isinstance(value, UninitializedParameter):
        raise NoShadowError("a lazy module has no shape yet")
    floating = value.is_floating_point()
    if isinstance(value, nn.Parameter):
        return stand_in(value.shape) if floating else nn.Parameter(constant(value.shape, 0, value.dtype), False)
    if value.is_meta or value.numel() > SMALL:
        if value.dtype == torch.bool:
            return constant(value.shape, 1, torch.bool)
        return constant(value.shape, 0.01 if floating else 0, torch.float32 if floating else value.dtype)
    taken = value.detach().to("cpu", copy=True)
    return taken.float() if floating else taken


def _foreign(module: nn.Module, name: str, value: Any) -> bool:
    """Attributes that other libraries put on an instance to divert its calls, not part of what the module does."""
    if name == "forward":
        return not (isinstance(value, types.MethodType) and value.__self__ is module)
    if isinstance(value, types.FunctionType) and hasattr(nn.Module, name):
        return True  # accelerate guards `to` and `cuda` of a model that it dispatched
    return name in ("_hf_hook", "_old_forward") or name.startswith("__nnsight")


def _refuse_reach_back(value: Any) -> None:
    """A closure over a module or tensor would run the model itself from within its copy."""
    function = value.func if isinstance(value, functools.partial) else value
    if not isinstance(function, types.FunctionType):
        return
    held = [cell.cell_contents for cell in function.__closure__ or () if cell != types.CellType()]
    if any(isinstance(entry, nn.Module | torch.Tensor) for entry in held):
        raise NoShadowError(f"{function.__qualname__} is a closure over a part of the model")


def _plain_implementations(config: Any) -> None:
    """Attention and experts in plain torch: what is made for a GPU does not run here, and hides what it mixes."""
    for name in ("_attn_implementation", "_experts_implementation"):
        if hasattr(config, name):
            setattr(config, name, "eager")
