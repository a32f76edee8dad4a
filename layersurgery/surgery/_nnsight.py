"""A surgery as an edit of an nnsight model: its traces change what modules give, and the modules stay as they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from layersurgery.errors import SurgeryError
from layersurgery.interventions import Intervention, Zero
from layersurgery.sites import unwrap
from layersurgery.surgery._clock import Clock
from layersurgery.surgery._contribution import contribution
from layersurgery.surgery._elsewhere import silenced_by_zeros
from layersurgery.surgery._ledger import Slot
from layersurgery.surgery._resolve import resolve
from layersurgery.surgery._step import Step
from layersurgery.surgery._taps import Tap


def edited(envoy: Any, steps: Iterable[Step]) -> Any:
    """A copy of an nnsight model whose traces have the steps done; see `Surgery.edit`."""
    _check(envoy)
    model = unwrap(envoy)
    for tap, needed in [pair for step in steps for pair in _taps(model, step)]:
        envoy = _with_edit(envoy, tap, model.get_submodule(tap.path.rpartition(".")[0]), needed)
    return envoy


def _with_edit(envoy: Any, tap: Tap, around: nn.Module, needed: bool) -> Any:
    from nnsight.intervention.interleaver import OutOfOrderError

    place, layer, parent = (_find(envoy, module) for module in (tap.module, tap.layer, around))
    # nnsight keeps the source of this block, and runs it beside each trace: one block for each tap, so that the order
    # in which they run need not be known. All that is made in it is made anew for each trace.
    with envoy.edit() as (tracer, copy):
        clock, watch = Clock(), _Watch(parent, tap)
        try:
            for _ in tracer.all():  # each step of a generation, and each call of a module that is called again
                if tap.is_counted:
                    clock(layer._module, *layer.inputs)
                inputs = place.inputs
                place.output = tap.rewrite(place.output, inputs, clock if tap.is_counted else None)
                watch.called = True
        except OutOfOrderError:  # the model has done all its steps, or has no use for this module with this input
            if needed:
                watch.end()
    return copy


class _Watch:
    """Notices code that takes a module's weights and does the module's work itself: an edit has no effect there."""

    def __init__(self, parent: Any, tap: Tap) -> None:
        self.called = False
        self._tap = tap
        self._parent = parent
        self._before = self._passes()

    def end(self) -> None:
        """The trace is over.

        Raises:
            SurgeryError: if the module around ran, and did its work without the module of the tap.
        """
        before, now = self._before, self._passes()
        ran = [path for path, passes in now.items() if passes > before.get(path, 0)]
        leaf = not any(True for _ in self._tap.module.children())
        # a whole sub-layer that is not called while others are is not wanted (cross-attention without an encoder)
        if self.called or self._parent.path not in ran or not (leaf or ran == [self._parent.path]):
            return
        raise SurgeryError(
            f"{type(self._parent._module).__name__} ran, but {self._tap.path} was never called: other code, such as a "
            f"fused fast path, does its work, and the edit for {self._tap.step} had no effect. Use "
            "`with surgery(model):` around the trace instead"
        )

    def _passes(self) -> dict[str, int]:
        """How often the module around and its children have run, in this trace and those before it."""
        counts = self._parent.interleaver.counts
        return {inner.path: counts.get(f"{inner.path}.output", 0) for inner in (self._parent, *self._parent)}


def _taps(model: nn.Module, step: Step) -> Iterator[tuple[Tap, bool]]:
    """Where the step can be done by changing outputs alone, and whether it comes to nothing where these do not run."""
    plan = resolve(model, [step])
    yield from ((tap, True) for tap in plan.taps)
    silent = bool(plan.slots) and _is_silence(step)
    try:
        weights = list(_of_weights(model, step, plan.slots))
    except SurgeryError:
        if not silent:
            raise
        weights = []
    yield from ((tap, not silent) for tap in weights)
    if silent:
        yield from ((tap, True) for tap in contribution(model, step).taps)


def _is_silence(step: Step) -> bool:
    """Whether the step comes down to a site whose output is zero."""
    site = step.site
    return (
        isinstance(step.do, Zero)
        and site.adds.startswith("output")
        and not site.slices
        and not {"adds_constant", "feeds_others"} & {*site.hazards}
        and step.tied == "site"
    )


def _of_weights(model: nn.Module, step: Step, slots: Sequence[Slot]) -> Iterator[Tap]:
    """The modules that hold the parameters, if what they give changes as the parameters do."""
    if not slots:
        return
    if type(step.do).outcome is Intervention.outcome:
        raise _refusal(step, f"{step.do!r} needs the values of the weights", "Zero(), Scale() and Skip() do not")
    if step.site.slices:
        raise _refusal(step, "it is a slice of parameters", "the whole site is not")
    held: dict[nn.Module, set[str]] = {}
    for slot in slots:
        held.setdefault(slot.module, set()).add(slot.name)
    paths = {module: path for path, module in model.named_modules()}
    for module, replaced in held.items():
        own = {leaf for leaf, parameter in module._parameters.items() if parameter is not None}
        if own != replaced or not silenced_by_zeros(module):
            what = f"what {paths[module]} ({type(module).__name__}) gives is not simply proportional to its parameters"
            raise _refusal(
                step, what, f"{type(step.do).__name__} with what='contribution' changes what the whole site adds"
            )
        yield Tap(module, paths[module], step, None, module)


def _find(envoy: Any, module: nn.Module) -> Any:
    """The envoy of a module; by what it is, since nnsight calls a child named `output` otherwise."""
    return envoy.modules(include_fn=lambda inner: inner._module is module)[0]


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
