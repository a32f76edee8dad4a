"""What a model is, apart from its inputs: parameters, buffers, hooks, attributes; and what has changed of them."""

from __future__ import annotations

import gc
import operator
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn

from layersurgery._foreign import runs_as, runs_compiled
from layersurgery.surgery._compiled import is_blind_to_hooks
from layersurgery.surgery._taps import Outlet
from layersurgery.sweeps._prefix_reach import count_of_writes, is_holder, shallow


class Onlooker:
    """Whoever hooks its methods into a model only looks: what modules give is the same with it and without it."""


@dataclass
class Changes:
    """What has changed of some modules.

    Args:
        made_over: modules with other parameters or hooks, or in another mode.
        attributes: buffers and attributes that are others or hold something else, as module and name.
    """

    made_over: set[nn.Module] = field(default_factory=set[nn.Module])
    attributes: set[tuple[nn.Module, str]] = field(default_factory=set[tuple[nn.Module, str]])

    def __bool__(self) -> bool:
        return bool(self.made_over or self.attributes)


class Standing:
    """How modules are at one moment. Holds on to what it saw, so that nothing new is taken for it.

    Examples:
        >>> model = nn.Linear(2, 2)
        >>> before = Standing([model])
        >>> model.note = "new"
        >>> before.changes().attributes
        {(Linear(in_features=2, out_features=2, bias=True), 'note')}
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._versions: list[tuple[nn.Module, str, torch.Tensor, int]] = []
        self._contents: list[tuple[nn.Module, str, Any, list[Any]]] = []
        states = [_State(module) for module in modules]
        self._groups = [_Group(states[start : start + _TOGETHER]) for start in range(0, len(states), _TOGETHER)]
        self._others: list[tuple[nn.Module, str, Any, list[Any]]] = []
        self._containers: list[Any] = []
        self._copies: list[Any] = []
        for state in states:
            for held in state.attributes:
                for name, value in held.items():
                    self._look(state.module, name, value)

    @property
    def groups(self) -> list[list[nn.Module]]:
        """All modules, some at a time, as they are looked at."""
        return [[state.module for state in group.states] for group in self._groups]

    @property
    def modules(self) -> Iterator[nn.Module]:
        """All modules."""
        return (state.module for group in self._groups for state in group.states)

    @cached_property
    def patched(self) -> set[nn.Module]:
        """Those with a forward that others have put there; to be asked for as long as nothing has changed."""
        return set(filter(is_patched, self.modules))

    @cached_property
    def hooked(self) -> set[nn.Module]:
        """Those with hooks that do something of which others may know; likewise."""
        return set(filter(hooks_on, self.modules))

    def changes(self, groups: Iterable[int] | None = None) -> Changes:
        """What has changed since; of some of `groups` at least, by their numbers, or of all.

        That an attribute has another name, and all is in its place as before, is seen only where all are looked at.
        """
        made_over, attributes = set[nn.Module](), {*self._rewritten()}
        for number in range(len(self._groups)) if groups is None else groups:
            group = self._groups[number]
            others = group.others(names=groups is None)
            if not others:
                continue
            replaced = {(state.module, name) for state in others for name in state.replaced()}
            found = {state.module for state in others if state.is_made_over()}
            if not replaced and not found:  # hooks of no consequence come and go: told quickly from here on
                self._groups[number] = _Group(group.states)
            attributes |= replaced
            made_over |= found
        modes = {module for module, name in attributes if name == "training"}
        return Changes(made_over | modes, {pair for pair in attributes if pair[1] != "training"})

    def _rewritten(self) -> Iterator[tuple[nn.Module, str]]:
        for module, name, tensor, version in self._versions:
            if tensor._version != version:
                yield module, name
        for module, name, holder, was in self._others if self._are_equal() else self._contents:
            now = list(shallow(holder))
            if len(now) != len(was) or any(one is not other for one, other in zip(now, was, strict=True)):
                yield module, name

    def _are_equal(self) -> bool:
        """Whether all lists and dictionaries hold what they held, told quickly."""
        try:
            return self._containers == self._copies
        except Exception:  # something else in them, which cannot be compared
            return False

    def _look(self, module: nn.Module, name: str, value: Any) -> None:
        version = _version(value)
        if version is not None:
            self._versions.append((module, name, value, version))
        elif is_holder(value):
            self._contents.append((module, name, value, list(shallow(value))))
            plain = value if type(value) in _CONTAINERS else vars(value) if not isinstance(value, _CONTAINERS) else None
            if plain is None:
                self._others.append(self._contents[-1])
            else:
                self._containers.append(plain)
                self._copies.append(plain.copy())


_TOGETHER = 32  # some layers
_PARTS = 4


class _Group:
    """Some modules. Nearly always all are as before when that is asked, so that there is a quick way to tell.

    What is looked at lies all over the memory, and is seldom in the processor's cache: as little as possible is. Lists
    are equal where they hold the same objects, which Python sees without looking at these. Tensors are told apart by
    what they are: comparing them would compare all of their numbers.
    """

    def __init__(self, states: list[_State]) -> None:
        self.states = states
        tables = [table for state in states for table in state.telling]
        weights = [table for state in states for table in state.tables[1:3]]
        self._empty = [table for table in (*tables, *weights) if not table]
        self._tables = [table for table in tables if type(table) is dict and table]
        self._hooks = [table for table in tables if type(table) is not dict and table]
        self._weights = [table for table in weights if table]
        self._values_of = _quickest_for((*self._tables, *self._weights))
        self._names, self._values = list(chain.from_iterable(self._tables)), self._values_of(*self._tables)
        self._hooked = _flat(self._hooks)
        self._tensors = self._values_of(*self._weights)
        self._parameters = [
            one for state in states for one, version in state.parameters.values() if version is not None
        ]
        self._versions = [one._version for one in self._parameters]
        self._sized = [*self._tables, *(state.tables[0] for state in states if state.is_plain)]
        self._sizes = list(map(len, self._sized))
        # Sets of hooks on a hook of ours grow and shrink without the tables' knowing.
        self._outlets = any(
            isinstance(hook, Outlet) for state in states for one in state.hooks for hook in one.values()
        )
        size = max(1, len(states) // _PARTS)
        starts = range(0, len(states), size) if len(states) > 1 else ()
        self._parts = [_Group(states[start : start + size]) for start in starts]

    def others(self, *, names: bool) -> list[_State]:
        """Those that are not as before, or may not be; `names`: of which attributes have other names, too."""
        if self._is_as_before(names):
            return []
        if len(self.states) == 1:
            return self.states
        return [state for part in self._parts for state in part.others(names=names)]

    def _is_as_before(self, names: bool) -> bool:
        """Whether nothing was put in or taken out, and no parameter written into."""
        now = self._values_of(*self._weights)
        if len(now) != len(self._tensors) or not all(map(operator.is_, now, self._tensors)):
            return False
        try:
            same = (
                not any(self._empty)
                and self._values_of(*self._tables) == self._values
                and list(map(len, self._sized)) == self._sizes
                and (not names or list(chain.from_iterable(self._tables)) == self._names)
                and (not self._hooks or _flat(self._hooks) == self._hooked)
            )
        except Exception:  # others than before, which cannot be compared
            return False
        return same and not self._outlets and list(map(count_of_writes, self._parameters)) == self._versions


def _values(*tables: dict[Any, Any]) -> list[Any]:
    """What is in some tables."""
    return list(chain.from_iterable(map(dict.values, tables)))


def _quickest_for(tables: Sequence[dict[Any, Any]]) -> Callable[..., list[Any]]:
    """What tells the values of these: the garbage collector, which follows them in one go, where it finds the same.

    It finds others in tables that keep more than their values, or lend them to an object.
    """
    found, values = gc.get_referents(*tables), _values(*tables)
    same = len(found) == len(values) and all(map(operator.is_, found, values))
    return gc.get_referents if same else _values


def _flat(tables: Sequence[dict[Any, Any]]) -> tuple[list[Any], list[Any]]:
    """The keys and values of some tables."""
    return list(chain.from_iterable(tables)), _values(*tables)


class _State:
    """How one module is at one moment: what it holds, not what that holds in turn."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        own = vars(module)
        self.tables: tuple[dict[str, Any], ...] = (own, module._parameters, module._buffers, module._modules)
        self.hooks: tuple[dict[Any, Any], ...] = (module._forward_pre_hooks, module._forward_hooks)
        # A matrix product has no state, and what is put in its forward's place makes its table longer.
        self.is_plain = type(module) in (nn.Linear, nn.Embedding) and "forward" not in own
        self.telling = self.hooks if self.is_plain else (own, module._modules, *self.hooks)
        self.parameters: dict[str, tuple[Any, int | None]] = {
            name: (one, _version(one)) for name, one in module._parameters.items()
        }
        self._marks, self._forward = _marks(module), own.get("forward")
        self.attributes = (
            dict(module._buffers),
            dict(module._modules),
            {name: value for name, value in own.items() if name not in _OF_TORCH},
        )

    def is_made_over(self) -> bool:
        """Whether it has other parameters or hooks, or another forward."""
        held = self.module._parameters
        for name, (parameter, version) in self.parameters.items():
            now = held.get(name)
            if now is not parameter:
                if not (_is_empty(now) and _is_empty(parameter)):
                    return True
            elif version is not None and parameter._version != version:
                return True
        return vars(self.module).get("forward") is not self._forward or _marks(self.module) != self._marks

    def replaced(self) -> Iterator[str]:
        """The names of buffers, children and other attributes that are not the same objects any more."""
        own, _, buffers, children = self.tables
        for held, expected in zip((buffers, children, own), self.attributes, strict=True):
            yield from (name for name, value in expected.items() if held.get(name, self) is not value)
            yield from (name for name in held if name not in expected and (held is not own or name not in _OF_TORCH))


_CONTAINERS = (dict, list, set)


@dataclass(frozen=True)
class World:
    """What a forward depends on besides model and inputs."""

    settings: tuple[Any, ...]

    @classmethod
    def now(cls) -> World:
        """The present one."""
        cuda = torch.cuda.is_initialized()
        kinds = ("cpu", "cuda") if cuda else ("cpu",)
        return cls(
            (
                torch.is_grad_enabled(),
                torch.is_inference_mode_enabled(),
                torch.get_default_dtype(),
                *((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds),
            )
        )

    @contextmanager
    def again(self) -> Iterator[bool]:
        """As far as it can be had again; whether it can."""
        with torch.inference_mode(self.settings[1]), torch.set_grad_enabled(self.settings[0]):
            yield World.now() == self


class Chance:
    """The state of torch's generators of random numbers, or of all that models draw from."""

    def __init__(self, of_all: bool = False) -> None:
        self._host = torch.default_generator.get_state()
        self._devices = _offsets()
        self._others = _others() if of_all else None

    def is_untouched(self) -> bool:
        """Whether torch's are as they were."""
        return torch.equal(torch.default_generator.get_state(), self._host) and _offsets() == self._devices

    def others_are_untouched(self) -> bool:
        """Whether Python's and numpy's are as they were."""
        return _others() == self._others


def hooks_on(module: nn.Module) -> tuple[Any, ...]:
    """Hooks on a module that do something of which others may know."""
    if not module._forward_pre_hooks and not module._forward_hooks:
        return ()
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return tuple(hook for hook in hooks if not _is_idle(hook))


def is_looked_into(model: nn.Module) -> bool:
    """Whether there are such hooks inside a model; a scorer may have put some there for the time of its call."""
    inner = (module for module in model.modules() if module is not model)
    return any(map(hooks_on, inner))


def is_patched(module: nn.Module) -> bool:
    """Whether others have put a forward of their own on a module, which may do more than give an output."""
    own = vars(module).get("forward")
    return own is not None and "_hf_hook" not in vars(module) and not _is_of_nnsight(own)


def is_traced(forward: Any) -> bool:
    """Whether this is a forward through which a running trace of nnsight wants to see what each module gives."""
    return _is_of_nnsight(forward) and forward.state.active()[0] is not None


def captured() -> dict[str, int]:
    """How much transformers has captured so far of what it was asked for, such as `output_hidden_states`."""
    capturing = sys.modules.get("transformers.utils.output_capturing")
    collector = getattr(capturing, "_active_collector", None)
    collected = collector.get() if collector is not None else None
    return {name: len(found) for name, found in collected.items()} if collected else {}


def cannot_share(modules: Iterable[nn.Module]) -> str:
    """Why nothing of a model made of these can be answered for, in words; empty: there is no such reason."""
    for module in modules:
        form = runs_as(type(module))
        if form in _FORMS and (form != "copies" or len(vars(module)["device_ids"]) > 1):
            return _FORMS[form]
        if runs_compiled(module):
            return "it is compiled"
    return ""


def cannot_share_here(root: nn.Module) -> str:
    """Why nothing of a model can be answered for in this process as it is, in words; empty: no such reason."""
    if is_blind_to_hooks([root], False):
        return "it is compiled"
    everywhere = nn.modules.module
    if everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks:
        return "there are hooks on all modules of the process"
    return ""


_FORMS = {
    "script": "it is a TorchScript model",
    "sharded": "its weights are sharded over devices",
    "copies": "DataParallel copies it in each pass",
}

# What torch keeps in a module: looked at apart, or of no effect on what a forward gives.
_OF_TORCH = frozenset(vars(nn.Module())) - {"training"} | {
    "forward",
    "_hf_hook",
    "_old_forward",
    "_output_capturing_hooks_installed",
}


def _marks(module: nn.Module) -> tuple[Any, ...]:
    """What tells the hooks on a module apart, but for those of no consequence."""
    own = vars(module)
    before, after = own["_forward_pre_hooks"], own["_forward_hooks"]
    if not before and not after:
        return ()
    return tuple(
        (key, *((entry.token, entry.order) for entry in hook.entries)) if isinstance(hook, Outlet) else (key,)
        for key, hook in (*before.items(), *after.items())
        if not _is_of_no_consequence(hook)
    )


def _version(value: Any) -> int | None:
    return value._version if isinstance(value, torch.Tensor) and not value.is_inference() else None


def _is_empty(value: Any) -> bool:
    """Whether it is a weight that is kept elsewhere between calls."""
    return isinstance(value, torch.Tensor) and value.is_meta


def _is_idle(hook: Any) -> bool:
    if isinstance(hook, Outlet):  # changes what the module gives, and nothing else
        return all(entry.clock is None for entry in hook.entries)
    return _is_of_no_consequence(hook)


def _is_of_no_consequence(hook: Any) -> bool:
    """Whether a hook only looks: a sweep's own, or one of transformers that waits for outputs to be asked for."""
    if isinstance(getattr(hook, "__self__", None), Onlooker):
        return True
    return getattr(hook, "__module__", "") == "transformers.utils.output_capturing"


def _is_of_nnsight(forward: Any) -> bool:
    return type(forward).__name__ == "Controller" and type(forward).__module__.startswith("nnsight.")


def _others() -> tuple[Any, ...]:
    array: Any = np.random.get_state()  # noqa: NPY002 - models draw from the global state
    return random.getstate(), array[1].tobytes(), array[2:]


def _offsets() -> tuple[tuple[int, int], ...]:
    if not torch.cuda.is_initialized():
        return ()
    return tuple((one.initial_seed(), one.get_offset()) for one in torch.cuda.default_generators)
