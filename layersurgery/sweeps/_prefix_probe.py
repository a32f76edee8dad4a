"""Which modules of the last layer are needed at scored positions only: tried on the unmodified model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from layersurgery.sweeps._prefix_map import Map
from layersurgery.sweeps._prefix_record import Record
from layersurgery.sweeps._prefix_replay import Moved, Replayer
from layersurgery.sweeps._prefix_tail import Probe, Tail, asked_for, candidates
from layersurgery.sweeps._prefix_values import Reach, thaw
from layersurgery.sweeps._stand_ins import StandIns
from layersurgery.sweeps._together_values import Attributes


def find_tail(parts: Map, record: Record, sites: Sequence[tuple[nn.Module, ...]]) -> Tail | None:
    """The tail of the first recorded call that asks for logits at some positions only; None: no call does.

    The last layer runs once for each of its linear modules, and the model is left as it was.
    """
    for number, recorded in enumerate(record.passes):
        if recorded.problem or asked_for(thaw(recorded.inputs)[1]) is None:
            continue
        found = candidates(recorded, sites, parts)
        later = Record(record.passes[number:], record.watched)
        before = Attributes(parts.modules)
        try:
            with torch.random.fork_rng(devices=[]), recorded.world.again() as same:
                expected = _outputs(parts, later, found, None) if same and found else None
                modules = [one for one in found if expected and _equal(_outputs(parts, later, found, one), expected)]
        except Exception:  # a model that refuses what is no number: all positions are computed then
            modules = []
        finally:
            before.restore()
        return Tail(parts, recorded, modules)
    return None


def _outputs(parts: Map, record: Record, late: Sequence[nn.Linear], hidden: nn.Linear | None) -> list[torch.Tensor]:
    """What the model gives when positions of a module are hidden; what ended before the late ones is not computed."""
    recorded = record.passes[0]
    probe = None if hidden is None else Probe(parts, recorded, [hidden])
    replayer = Replayer(record, Moved(parts, late, ()), _tell_nobody, probe)
    arguments, keywords = thaw(recorded.inputs)
    with StandIns(replayer.watched, replayer.called):
        output = recorded.module(*arguments, **keywords)
    if probe is not None and not replayer.has_cut:
        return []
    return Reach.of(output).tensors


def _equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


def _tell_nobody(_: str) -> None:
    pass
