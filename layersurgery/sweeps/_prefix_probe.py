"""Which modules of the last layer are needed at scored positions only: tried on the unmodified model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from layersurgery.sweeps._attributes import Attributes
from layersurgery.sweeps._prefix_course import Course, Moved
from layersurgery.sweeps._prefix_map import Map
from layersurgery.sweeps._prefix_reach import Reach
from layersurgery.sweeps._prefix_record import Record
from layersurgery.sweeps._prefix_replay import Replayer
from layersurgery.sweeps._prefix_tail import Probe, Tail, asked_for, candidates
from layersurgery.sweeps._prefix_values import thaw
from layersurgery.sweeps._prefix_zeros import Silence, SilentParts
from layersurgery.sweeps._stand_ins import StandIns


def find_tail(parts: Map, record: Record, sites: Sequence[tuple[nn.Module, ...]]) -> Tail | None:
    """The tail of the first recorded call that asks for logits at some positions only; None: no call does.

    The last layer runs some seven times, and the model is left as it was.
    """
    for number, recorded in enumerate(record.passes):
        if recorded.problem or asked_for(thaw(recorded.inputs)[1]) is None:
            continue
        found = candidates(recorded, sites, parts)
        trial = _Trial(parts, Record(record.passes[number:], record.watched), found)
        before = Attributes(parts.modules)
        try:
            with torch.random.fork_rng(devices=[]), recorded.world.again() as same:
                modules = trial.unneeded() if same and found else []
        except Exception:  # a model that refuses what is no number: all positions are computed then
            modules = []
        finally:
            before.restore()
        return Tail(parts, recorded, modules, trial.agree)
    return None


class _Trial:
    """Runs the end of the unmodified model, with some of it hidden; all that ended before is known.

    Args:
        parts: how the model's modules are nested.
        record: the call, and those after it.
        late: the modules with which the end begins, latest first, and what is made of others before these.
    """

    def __init__(self, parts: Map, record: Record, late: Sequence[nn.Module]) -> None:
        self._parts, self._record, self._late = parts, record, late
        self.agree: dict[tuple[Any, ...], bool] = {}

    def unneeded(self) -> list[nn.Module]:
        """Those of the late modules that are not needed at all positions, the outermost of them."""
        expected, rowwise = self._outputs(None)
        modules, in_turn = list[nn.Module](), 0
        for module in self._late:
            if not expected or in_turn > _IN_TURN:  # a layer before the last, as it seems
                break
            if module not in rowwise or not self._parts.above([module]).isdisjoint(modules):
                continue
            if _equal(self._outputs(module)[0], expected):
                modules.append(module)
                in_turn = 0
            elif modules:
                in_turn += 1
        return modules

    def _outputs(self, hidden: nn.Module | None) -> tuple[list[torch.Tensor], set[nn.Module]]:
        """What the model gives when positions of a module are not-a-number; nothing where that cannot be told.

        And of which modules positions can be hidden.
        """
        recorded = self._record.passes[0]
        probe = Probe(self._parts, recorded, self._late, hidden, self.agree)
        course = Course(self._record, Moved(self._parts, frozenset(self._late), ()), SilentParts(), probe)
        replayer = Replayer(course, Silence(SilentParts(), None), _tell_nobody)
        arguments, keywords = thaw(recorded.inputs)
        operations = _Operations(probe)
        with StandIns(course.watched, replayer.called), operations if hidden is None else nullcontext():
            output = recorded.module(*arguments, **keywords)
        if operations.mixing or (hidden is not None and not replayer.has_cut):
            return [], set()
        return Reach.of(output).tensors, probe.rowwise


_IN_TURN = 2  # modules that are needed, such as those of keys and values


class _Operations(TorchDispatchMode):
    """Looks for operations in which what is in one row may decide how another is computed.

    Args:
        probe: tells when the end of the model begins.
    """

    def __init__(self, probe: Probe) -> None:
        super().__init__()
        self._probe = probe
        self.mixing = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._probe.has_begun:
            self.mixing = self.mixing or _mixes(func, args)
        return func(*args, **(kwargs or {}))


def _mixes(operation: Any, arguments: Sequence[Any]) -> bool:
    name = operation._schema.name.partition("::")[2].rstrip("_")
    if name == "index":  # the positions asked for; a mask would choose by numbers
        return any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in arguments[1])
    foreign = operation.namespace not in ("aten", "prim", "prims")
    return foreign or name in _MIXING or not _TAGS.isdisjoint(operation.tags)


# Numbers decide: how many rows something has, which branch is taken, where rows go (as in a mixture of experts).
_TAGS = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape})
_MIXING = (
    {"argmax", "argmin", "argsort", "kthvalue", "msort", "multinomial", "searchsorted", "sort", "topk", "unique"}
    | {"index_add", "index_copy", "index_put", "masked_scatter", "scatter", "scatter_add", "scatter_reduce"}
    | {"_grouped_mm", "bincount", "cummax", "cumsum", "histc"}
)


def _equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


def _tell_nobody(_: str) -> None:
    pass
