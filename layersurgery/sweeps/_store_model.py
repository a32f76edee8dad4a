"""The fingerprint of a model: all that makes it give what it gives, wherever it lies and was loaded from."""

from __future__ import annotations

import copy
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

import torch
from torch import nn

from layersurgery._foreign import offload_hooks
from layersurgery.errors import StoreError
from layersurgery.sites import unwrap
from layersurgery.surgery import Surgery, status
from layersurgery.surgery._elsewhere import holds_plain_weights
from layersurgery.surgery._step import Step
from layersurgery.sweeps._store_values import Digests, class_code, class_name, joined, parts_of, tensor_digest

VERSION = 1
"""Raised whenever the same model and surgery come to give other results, or other fingerprints."""

_THREADS = 8
_SMALL = 1 << 25  # bytes of a model for which threads do not pay; and Ctrl-C while one starts may come as another error


_known: ContextVar[dict[nn.Module, str] | None] = ContextVar("_known", default=None)


@contextmanager
def read_once() -> Iterator[None]:
    """A block in which each model's fingerprint is computed once at most; nothing that could change it may run there.

    Examples:
        >>> model = nn.Linear(2, 2)
        >>> with read_once():
        ...     model_fingerprint(model) is model_fingerprint(model)
        True
    """
    token = _known.set({})
    try:
        yield
    finally:
        _known.reset(token)


def model_fingerprint(model: Any) -> str:
    """A digest of all bytes of a model's parameters and buffers, and of what is done with them.

    In it are: names, kinds, shapes and every byte of parameters and buffers; the class of each module with its code and
    plain settings; the configuration and the settings of generation; hooks and replaced forwards that are not another
    library's; and surgeries in force. Not in it are the device, where the weights were loaded from, and what modules
    keep in objects of their own that are neither parameters nor buffers.

    It is a SHA-256 of everything, not of samples of it, so two models that differ in one bit are never taken for one.
    That takes about a second per GB and core; offloaded weights are read from where they are kept.

    Raises:
        StoreError: if weights cannot be read: sharded over processes, or on the meta device; or if a hook cannot be
            told from another.

    Examples:
        >>> model = nn.Linear(2, 2)
        >>> before = model_fingerprint(model)
        >>> model.bias.data[0] += 1
        >>> model_fingerprint(model) == before
        False
    """
    module, found = unwrap(model), _known.get()
    if found is None:
        return _fingerprint(module)
    if module not in found:
        found[module] = _fingerprint(module)
    return found[module]


def surgery_key(surgery: Surgery | None) -> str:
    """What tells a surgery apart from others that do something else; None: the unmodified model.

    Examples:
        >>> import layersurgery as ls
        >>> first, other = (ls.Surgery(ls.Site("h.0.attn"), ls.Noise(seed=seed)) for seed in (0, 1))
        >>> surgery_key(first) == surgery_key(other)
        False
    """
    if surgery is None:
        return "base"
    return joined("surgery", [str(VERSION).encode(), *(step_key(step).encode() for step in surgery)]).hex()[:32]


def step_key(step: Step) -> str:
    """What a step does, without what is only told of its site."""
    site, do = step.site, step.do
    where = [site.path, site.parts, [(piece.parameter, piece.dim, piece.ranges) for piece in site.slices]]
    if do.what != "parameters":
        where += [site.role, site.adds]
    try:
        done = joined("do", [Digests().of(do), class_code(type(do)).encode()]).hex()
    except StoreError as error:
        raise StoreError(
            f"{do!r} cannot be told from another of its kind: {error}. Make it a frozen dataclass"
        ) from None
    return f"{json.dumps(where)} {done} {step.tied}"


def _fingerprint(module: nn.Module) -> str:
    known = parts_of(module)
    parts = [f"version {VERSION}", _config(module), *map(step_key, status(module))]
    for path, one in sorted(module.named_modules(remove_duplicate=False), key=itemgetter(0)):
        parts.append(f"{path}: {class_name(one)} {class_code(type(one))} {_settings(one)}")
        parts += _hooks(path, one, known)
    weights = sorted(_weights(module), key=attrgetter("path"))
    once = {weight.key: weight for weight in weights}
    found = dict(zip(once, _digests(module, list(once.values())), strict=True))
    parts += [f"{weight.path} = {found[weight.key].hex()}" for weight in weights]
    return joined("model", [part.encode("utf-8", "surrogatepass") for part in parts]).hex()[:32]


def _config(module: nn.Module) -> str:
    """The configuration and the settings of generation, without where they were loaded from and by which version."""
    found: list[Any] = []
    for name in ("config", "generation_config"):
        held: Any = getattr(module, name, None)
        found.append(_cleaned(held.to_dict()) if callable(getattr(held, "to_dict", None)) else None)
        found.append(getattr(held, "_attn_implementation", None))
    return _without_addresses(json.dumps(found, sort_keys=True, default=repr))


def _cleaned(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _cleaned(entry) for key, entry in value.items() if key not in _PROVENANCE}
    return [_cleaned(entry) for entry in value] if isinstance(value, list | tuple) else value


_PROVENANCE = frozenset(
    {"_name_or_path", "name_or_path", "transformers_version", "_commit_hash", "_from_model_config", "architectures"}
    | {"dtype", "torch_dtype"}  # what was asked for; what came of it is seen in each parameter
)
# What libraries write into modules as they place and run them; none of it changes what a model gives.
_NO_SETTINGS = frozenset(vars(nn.Module())) | {"hf_device_map", "warnings_issued", "_is_hf_initialized", "_hf_hook"}
_LIBRARIES = frozenset({"torch", "transformers", "accelerate", "nnsight", "peft", "layersurgery"})


def _settings(module: nn.Module) -> str:
    """Numbers, texts and lists of them among a module's attributes, such as the epsilon of a norm."""
    held = {name: value for name, value in vars(module).items() if name not in _NO_SETTINGS | _PROVENANCE}
    if any(base.__name__ == "PreTrainedModel" for base in type(module).__mro__):  # its private ones: how to load it
        held = {name: value for name, value in held.items() if not name.startswith("_")}
    return Digests().of({name: value for name, value in held.items() if value is not None and _is_plain(value)}).hex()


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(_is_plain(key) and _is_plain(entry) for key, entry in value.items())
    return value is None or isinstance(value, bool | int | float | str)


def _hooks(path: str, module: nn.Module, known: Mapping[int, str]) -> Iterator[str]:
    """Hooks and a replaced `forward`; those of libraries act by weights and settings that are seen in other ways."""
    held = vars(module)
    found: list[Callable[..., Any]] = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    if "forward" in held and "_hf_hook" not in held:
        found.append(held["forward"])
    for hook in found:
        origin = getattr(hook, "func", hook)
        if str(getattr(origin, "__module__", None) or type(origin).__module__).split(".")[0] in _LIBRARIES:
            continue
        try:
            yield f"{path}: hook {Digests(known).of(hook).hex()}"
        except StoreError as error:
            raise StoreError(
                f"the model has a hook at {path!r}, {hook!r}, that cannot be told from another: {error}. Give it an "
                "attribute `fingerprint`, a text that changes with what it does, or take it off"
            ) from None


class _Weight(NamedTuple):
    """A parameter, a buffer, or what a packed one has beside it; `key` is the same where it is used a second time."""

    path: str
    key: int
    load: Callable[[], Any]  # not before it is read: a model on disk may be larger than the memory


def _weights(root: nn.Module) -> Iterator[_Weight]:
    for path, module in root.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                load = partial(_kept, root, path, name) if tensor.is_meta else partial(_itself, tensor)
                yield _Weight(f"{prefix}{name}", id(tensor), load)
        if not holds_plain_weights(module):
            beside = {name: value for name, value in vars(module).items() if name not in _NO_SETTINGS}
            for name, value in (*beside.items(), ("SCB", _moving_scales(module))):
                if _holds_tensors(value):
                    yield _Weight(f"{prefix}{name}", id(value), partial(_itself, value))


def _itself(value: Any) -> Any:
    return value


def _kept(root: nn.Module, path: str, name: str) -> torch.Tensor:
    """A weight that accelerate keeps elsewhere between calls."""
    parents, below = path.split(".") if path else [], [name]
    while True:
        for hook in offload_hooks(root.get_submodule(".".join(parents))):
            try:
                return hook.weights_map[".".join(below)]
            except (KeyError, TypeError):  # it keeps the weights of others, or none
                continue
        if not parents:
            raise StoreError("they are on the meta device, and nothing says where they are kept")
        below.insert(0, parents.pop())


def _moving_scales(module: nn.Module) -> Any:
    """The scales of bitsandbytes' 8-bit weights, which move from the parameter to the module in its first call."""
    at_first = getattr(module._parameters.get("weight"), "SCB", None)
    return getattr(vars(module).get("state"), "SCB", None) if at_first is None else at_first


def _digests(root: nn.Module, weights: list[_Weight]) -> list[bytes]:
    if sum(parameter.nbytes for parameter in root.parameters()) < _SMALL:
        return [_weight_digest(weight) for weight in weights]
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(_weight_digest, weights))


def _weight_digest(weight: _Weight) -> bytes:
    try:
        return _content(weight.load())
    except (StoreError, RuntimeError, TypeError, OSError) as error:
        raise StoreError(
            f"the values of {weight.path!r} cannot be read, so this model cannot be told from another: {error}. Load "
            "it with plain weights, or leave store= out"
        ) from error


def _content(value: Any) -> bytes:
    """All of a tensor, with all that belongs to a packed one, or of several tensors."""
    if not isinstance(value, torch.Tensor):
        return Digests().of(value)
    return tensor_digest(value) if type(value) in (torch.Tensor, nn.Parameter, nn.Buffer) else _packed(value)


def _packed(value: torch.Tensor) -> bytes:
    if hasattr(value, "device_mesh"):
        raise StoreError("they are sharded over processes")
    flatten = getattr(value, "__tensor_flatten__", None)
    if flatten is not None:  # how a tensor of another kind names the tensors that it is made of
        names, context = flatten()
        inner = [_content(getattr(value, name)) for name in names]
        return joined(class_name(value), [*inner, _without_addresses(repr(context)).encode()])
    beside = {
        name: held
        for name, held in vars(value).items()
        if not isinstance(held, nn.Module) and name not in ("CB", "SCB")  # see _moving_scales
    }
    numbers = value.detach().as_subclass(torch.Tensor)
    if "quant_state" in beside:
        numbers, beside["quant_state"] = _as_called(numbers, beside["quant_state"])
    return joined(class_name(value), [tensor_digest(numbers), Digests().of(beside)])


def _as_called(numbers: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
    """The 4-bit weights of bitsandbytes as they are after their first call: on some processors it packs them anew."""
    functional = sys.modules.get("bitsandbytes.functional")
    pack = getattr(functional, "_convert_weight_packed_for_cpu", None)
    packs: Callable[[], bool] = getattr(functional, "has_avx512bf16", bool)
    if pack is None or numbers.device.type != "cpu" or getattr(state, "packing_format_for_cpu", False) or not packs():
        return numbers, state
    return pack(numbers, copy.deepcopy(state))


def _holds_tensors(value: Any) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
    return any(isinstance(one, torch.Tensor) for one in inside)


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", text)
