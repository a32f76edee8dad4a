"""How what a site adds to the residual stream leaves it, and what else leaves it: found by running the shadow changed.

The site is called with its matrices zero, which leaves what it passes on, and with not-a-numbers for parameters, which
shows all that depends on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from layersurgery.sites._example import Call
from layersurgery.sites._probe import fresh, is_states, main_tensor
from layersurgery.sites._recorder import quiet
from layersurgery.sites._shadow import constant

Norm = Callable[[nn.Module], bool]


@dataclass
class Outlet:
    """A place in a shadow whose parameters may be changed: one module, or some of a layer's.

    Args:
        holder: the module that is called.
        parts: the modules inside, by name, whose parameters make up the place; empty: all of the holder.
        adds: as `Site.adds`; filled in by `watch`.
        constant: with all parameters zero, it still adds something.
        leaks: its parameters reach the stream, or other layers, by a way besides what it adds.
    """

    holder: nn.Module
    parts: dict[str, nn.Module] = field(default_factory=dict[str, nn.Module])
    adds: str = ""
    constant: bool = False
    leaks: bool = False

    @property
    def hazards(self) -> dict[str, bool]:
        """What was found, by the names of hazards."""
        return {"adds_constant": self.constant, "feeds_others": self.leaks}

    @property
    def modules(self) -> list[nn.Module]:
        """All modules whose parameters belong to the place."""
        tops = self.parts.values() if self.parts else [self.holder]
        return [module for top in tops for module in top.modules()]


def watch(run: tuple[nn.Module, Call], outlets: Sequence[Outlet], is_norm: Norm) -> None:
    """Run once, and find out how what an outlet adds leaves it, at the first call of one of each kind."""
    kinds = _kinds(outlets)
    waiting = [alike[0] for alike in kinds]

    def look(outlet: Outlet) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            if any(outlet is one for one in waiting):
                waiting[:] = [one for one in waiting if one is not outlet]
                _examine(outlet, arguments, keywords, is_norm)

        return hook

    with ExitStack() as hooks:
        for outlet in list(waiting):
            handle = outlet.holder.register_forward_hook(look(outlet), with_kwargs=True)
            hooks.callback(handle.remove)
        _repeat(run)
    for first, *others in kinds:
        for outlet in others:
            outlet.adds, outlet.constant = first.adds, first.constant


def find_leaks(run: tuple[nn.Module, Call], outlets: Sequence[Outlet], layers: Sequence[nn.Module]) -> None:
    """Fill in `leaks`: one run for each kind of outlet, whose parameters are not-a-numbers and what it adds is not.

    Where its own layer leaks, that may add another entry of what the outlet gives too: then `adds` says which.
    """
    for alike in _kinds(outlets):
        first = alike[0]
        leaking = _leaking(run, first, layers)
        if first.adds == "output" and any(first.holder in set(layer.modules()) for layer in leaking):
            entry = next((at for at in range(1, _MOST_ENTRIES) if not _leaking(run, first, layers, at)), None)
            first.adds, leaking = ("output", leaking) if entry is None else (f"output:{entry}", [])
        for outlet in alike:
            outlet.adds, outlet.leaks = first.adds, bool(leaking)


_MOST_ENTRIES = 5  # of the tuple that a module gives, looked at


def _leaking(
    run: tuple[nn.Module, Call], outlet: Outlet, layers: Sequence[nn.Module], entry: int = 0
) -> list[nn.Module]:
    """The layers that the outlet's parameters reach when what it adds is silent, and that entry of what it gives."""
    found: list[nn.Module] = []
    inside = {id(module) for module in outlet.modules}
    others = [layer for layer in layers if id(layer) not in inside]  # its own layer too: it may add a bias for it
    last = outlet.parts[outlet.adds.partition(":")[2]] if outlet.parts and outlet.adds else outlet.holder
    if outlet.parts and not outlet.adds:
        return []

    def note(module: nn.Module, arguments: Any, output: Any) -> None:
        given = main_tensor(output)
        if given is not None and bool(given.isnan().any()):
            found.append(module)

    def silence(module: nn.Module, arguments: Any, output: Any) -> Any:
        output = _silent(output, True)
        if entry and isinstance(output, tuple) and entry < len(output) and main_tensor(output[entry]) is not None:
            return (*output[:entry], _silent(output[entry], True), *output[entry + 1 :])
        return output

    with ExitStack() as changes:
        changes.enter_context(_parameters(outlet.modules, torch.nan, lambda module: False))
        changes.callback(last.register_forward_hook(silence).remove)
        for layer in others:
            changes.callback(layer.register_forward_hook(note).remove)
        _repeat(run)
    return found


def _repeat(run: tuple[nn.Module, Call]) -> None:
    module, (arguments, keywords) = run
    with quiet():
        try:
            module(*map(fresh, arguments), **{key: fresh(value) for key, value in keywords.items()})
        except Exception:  # a run may end early, now as when it was first seen, or where a branch meets a not-a-number
            return


def _examine(outlet: Outlet, arguments: tuple[Any, ...], keywords: Mapping[str, Any], is_norm: Norm) -> None:
    try:
        if outlet.parts:
            outlet.adds = _last_part(outlet, arguments, keywords, is_norm)
        else:
            outlet.adds, outlet.constant = _whole(outlet.holder, arguments, keywords, is_norm)
    except Exception:  # whatever a module raises on changed inputs: it is not known, and that is what is said
        outlet.adds = ""


def _whole(
    holder: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any], is_norm: Norm
) -> tuple[str, bool]:
    draw = torch.Generator().manual_seed(1)
    given = {where: _random(value, draw) for where, value in (*enumerate(arguments), *keywords.items())}
    with _parameters(holder.modules(), 0.0, is_norm):
        silent = _call(holder, given)
        again = _call(holder, {where: _random(value, draw) for where, value in given.items()})
    with _parameters(holder.modules(), 0.0, lambda module: False):
        left = _call(holder, given)
    held = next((where for where, value in given.items() if _same(value, left)), None)
    if held is not None:
        return f"input:{held}", False
    if left.any():
        return "output", True
    if not silent.any() or torch.equal(silent, again):  # a norm's own bias does not depend on what goes in
        return "output", False
    return _before_the_norm(holder, given, silent, is_norm), False


def _before_the_norm(holder: nn.Module, given: Mapping[Any, Any], silent: torch.Tensor, is_norm: Norm) -> str:
    """The last module through which all parameters act on what comes out, norms aside."""
    names = {id(module): name for name, module in holder.named_modules() if name}
    ended: list[nn.Module] = []
    with ExitStack() as hooks:
        for module in holder.modules():
            if id(module) in names and not is_norm(module) and any(True for _ in module.parameters()):
                hooks.callback(module.register_forward_hook(lambda m, a, o: ended.append(m)).remove)
        _call(holder, given)
    for module in reversed(ended):
        with _parameters(holder.modules(), torch.nan, is_norm), ExitStack() as hooks:
            hooks.callback(module.register_forward_hook(lambda m, a, output: _silent(output)).remove)
            if torch.equal(_call(holder, given), silent):
                return f"module:{names[id(module)]}"
    return ""


def _last_part(outlet: Outlet, arguments: tuple[Any, ...], keywords: Mapping[str, Any], is_norm: Norm) -> str:
    ended: list[str] = []
    given = dict([*enumerate(arguments), *keywords.items()])
    with ExitStack() as hooks:
        for name, part in outlet.parts.items():
            hooks.callback(part.register_forward_hook(lambda m, a, o, name=name: ended.append(name)).remove)
        _call(outlet.holder, given)
    if not ended:
        return ""
    with _parameters(outlet.modules, torch.nan, is_norm), ExitStack() as hooks:
        last = outlet.parts[ended[-1]]
        hooks.callback(last.register_forward_hook(lambda m, a, output: _silent(output)).remove)
        clean = not bool(_call(outlet.holder, given).isnan().any())
    return f"module:{ended[-1]}" if clean else ""


def _call(module: nn.Module, given: Mapping[Any, Any]) -> torch.Tensor:
    """The main tensor that `module.forward` gives; arguments by position or keyword."""
    arguments = [fresh(value) for where, value in given.items() if isinstance(where, int)]
    keywords = {where: fresh(value) for where, value in given.items() if not isinstance(where, int)}
    found = main_tensor(module.forward(*arguments, **keywords))
    if found is None:
        raise TypeError(f"{type(module).__name__} gives no floating-point tensor")
    return found


def _random(value: Any, draw: torch.Generator) -> Any:
    return torch.randn(value.shape, generator=draw) if is_states(value) else value


def _same(value: Any, output: torch.Tensor) -> bool:
    """Whether the output is that argument, in whatever arrangement of its rows."""
    fits = isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel() == output.numel()
    return fits and torch.equal(value.reshape(-1), output.reshape(-1))


def _silent(output: Any, only_nan: bool = False) -> Any:
    """The output with its main tensor zero, or zero where it is not a number."""
    if isinstance(output, torch.Tensor):
        return output.nan_to_num(0.0) if only_nan else torch.zeros_like(output)
    if isinstance(output, Mapping):
        changed = dict(output)
        first = next(key for key, value in output.items() if main_tensor(value) is not None)
        changed[first] = _silent(output[first], only_nan)
        return type(output)(**changed)  # pyright: ignore[reportCallIssue]
    at = next(at for at, value in enumerate(output) if main_tensor(value) is not None)
    values = [*output[:at], _silent(output[at], only_nan), *output[at + 1 :]]
    return type(output)(*values) if hasattr(output, "_fields") else type(output)(values)


@contextmanager
def _parameters(modules: Iterable[nn.Module], value: float, is_norm: Norm) -> Iterator[None]:
    """All parameters of these modules a number; those of norms one."""
    before: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for module in modules:
        held = module._parameters
        before.append((held, dict(held)))
        number = 1.0 if is_norm(module) else value
        for name, parameter in held.items():
            if parameter is not None and parameter.is_floating_point():
                held[name] = nn.Parameter(constant(parameter.shape, number), requires_grad=False)
    try:
        yield
    finally:
        for held, values in reversed(before):
            held.update(values)


def _kinds(outlets: Iterable[Outlet]) -> list[list[Outlet]]:
    """Outlets that must do the same, one beside the other."""
    kinds: dict[Any, list[Outlet]] = {}
    for outlet in outlets:
        key = (*outlet.parts, *map(_settings, outlet.holder.modules()))
        kinds.setdefault(key, []).append(outlet)
    return list(kinds.values())


def _settings(module: nn.Module) -> Any:
    """What makes modules alike: class, shapes, and settings that are no numbers (a layer's number is one)."""
    shapes = tuple((name, None if value is None else value.shape) for name, value in module._parameters.items())
    plain = tuple((name, value) for name, value in vars(module).items() if isinstance(value, str | bool | None))
    return type(module), shapes, plain
