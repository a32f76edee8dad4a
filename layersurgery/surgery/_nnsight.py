"""A surgery as an edit of an nnsight model: its traces change what modules give, and the modules stay as they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from layersurgery.errors import SurgeryError
from layersurgery.interventions import Intervention
from layersurgery.sites import unwrap
from layersurgery.surgery._clock import Clock
from layersurgery.surgery._contribution import numbered
from layersurgery.surgery._elsewhere import silenced_by_zeros
from layersurgery.surgery._resolve import resolve
from layersurgery.surgery._step import Step
from layersurgery.surgery._taps import Tap


def edited(envoy: Any, steps: Iterable[Step]) -> Any:
    """A copy of an nnsight model whose traces have the steps done; see `Surgery.edit`."""
    _check(envoy)
    model = unwrap(envoy)
    for tap in [tap for step in steps for tap in _taps(model, step)]:
        envoy = _with_edit(envoy, tap)
    return envoy


def _with_edit(envoy: Any, tap: Tap) -> Any:
    from nnsight.intervention.interleaver import OutOfOrderError

    place, layer = _find(envoy, tap.module), _find(envoy, tap.layer)
    # nnsight keeps the source of this block, and runs it beside each trace: one block for each tap, so that the order
    # in which they run need not be known. All that is made in it is made anew for each trace.
    with envoy.edit() as (tracer, copy):
        clock = Clock()
        done, before = 0, _passes(layer)
        try:
            for _ in tracer.all():  # each step of a generation, and each call of a module that is called again
                if tap.is_counted:
                    clock(layer._module, *layer.inputs)
                inputs = place.inputs
                place.output = tap.rewrite(place.output, inputs, clock if tap.is_counted else None)
                done += 1
        except OutOfOrderError:  # the model has done all its steps, or does not run this layer for this input
            if not done and _passes(layer) > before:
                raise _passed_by(tap) from None
    return copy


def _taps(model: nn.Module, step: Step) -> Iterator[Tap]:
    """Where the step can be done by changing outputs alone."""
    plan = resolve(model, [step])
    yield from plan.taps
    if not plan.slots:
        return
    if type(step.do).outcome is Intervention.outcome:
        raise _refusal(step, f"{step.do!r} needs the values of the weights", "Zero(), Scale() or Skip() do not")
    if step.site.slices:
        raise _refusal(step, "it is a slice of parameters", "the whole site is not")
    held: dict[nn.Module, set[str]] = {}
    for slot in plan.slots:
        held.setdefault(slot.module, set()).add(slot.name)
    names = {module: name for name, module in model.named_modules()}
    for module, replaced in held.items():
        own = {name for name, parameter in module._parameters.items() if parameter is not None}
        if own != replaced or not silenced_by_zeros(module):
            raise _refusal(
                step,
                f"what {names[module]} ({type(module).__name__}) gives is not simply proportional to its parameters",
                f"{type(step.do).__name__} with what='contribution' changes what the whole site adds",
            )
        yield Tap(module, names[module], step, None, numbered(model, names[module]))


def _find(envoy: Any, module: nn.Module) -> Any:
    """The envoy of a module; by what it is, since nnsight calls a child named `output` otherwise."""
    return envoy.modules(include_fn=lambda inner: inner._module is module)[0]


def _passes(layer: Any) -> int:
    """How often the module of an envoy has run in the present trace and those before it."""
    return layer.interleaver.counts.get(f"{layer.path}.output", 0)


def _check(envoy: Any) -> None:
    if not isinstance(envoy, nn.Module):  # which nnsight need not be imported for
        from nnsight import Envoy

        if isinstance(envoy, Envoy):
            return
    raise SurgeryError(
        f"an edit is for nnsight models, such as nnsight.NNsight(model), and this is a {type(envoy).__name__}; a "
        "module is operated on by `with surgery(model):`"
    )


def _refusal(step: Step, reason: str, way_out: str) -> SurgeryError:
    return SurgeryError(
        f"{step} cannot be an edit of an nnsight model, which changes what modules give, and no weights: {reason}; "
        f"{way_out}. `with surgery(model):` works for traces, too"
    )


def _passed_by(tap: Tap) -> SurgeryError:
    """Code may take a module's weights and multiply by itself, as torch's fast path of TransformerEncoderLayer does."""
    return SurgeryError(
        f"{type(tap.layer).__name__} ran, but {tap.path} was never called, so that the edit for {tap.step} had no "
        "effect: the layer uses these weights in another way, or not at all for this input. Use `with surgery(model):` "
        "around the trace instead"
    )
