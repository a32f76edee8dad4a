"""What the variants of one job share, and the check that it changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from layersurgery.scoring import Scores
from layersurgery.sites import Site, Sites
from layersurgery.sweeps._prefix import SharedPrefix
from layersurgery.sweeps._prefix_values import Reach, UnknownValueError
from layersurgery.sweeps._watch import Onlooker

Scored = Callable[[], "Scores | float"]


class Sharing:
    """Runs the base and its variants on a micro-batch, so that they share what is the same.

    The first variant that shares anything is evaluated a second time, in full. Where the two differ in a single bit,
    nothing is shared from there on, and `notes` says so.

    Args:
        module: the model itself.
        sites: where variants differ from it.
        enabled: whether to share at all.
    """

    def __init__(self, module: nn.Module, sites: Sites, enabled: bool = True) -> None:
        self._module = module
        self._sites = sites
        self._prefix: SharedPrefix | None = None
        self._enabled = enabled
        self._checked = False
        self._columns: list[int] | None = None
        self._notes: list[str] = []

    @property
    def notes(self) -> tuple[str, ...]:
        """What was not shared, and why."""
        return (*self._notes, *(self._prefix.notes if self._prefix is not None else ()))

    def in_order(self, rows: list[int]) -> list[int]:
        """The rows in the order in which to run them: the base first, and before the check the one that shares most."""
        if not self._enabled or self._checked or len(rows) < 2:
            return rows
        base = rows[:1] if rows[0] == 0 else []
        return [*base, rows[-1], *rows[len(base) : -1]]

    def lacks(self, columns: list[int]) -> bool:
        """Whether a base on these columns would be of use to their variants."""
        return self._enabled and self._columns != columns

    def base(self, columns: list[int], scored: Scored) -> Scores | float:
        """The scorer's answer on the unmodified model."""
        self.forget()
        if not self._enabled:
            return scored()
        if self._prefix is None:
            self._prefix = SharedPrefix(self._module, self._sites)
        with self._prefix.recording():
            scores = scored()
        self._columns = columns
        return scores

    def variant(self, site: Site, columns: list[int], scored: Scored) -> Scores | float:
        """The scorer's answer on a variant, while its surgery is in force."""
        if self._prefix is None or self._columns != columns:
            return scored()
        if self._checked:
            with self._prefix.replaying(site):
                return scored()
        with _Outputs.of(self._module) as seen, self._prefix.replaying(site):
            scores = scored()
        if not self._prefix.has_answered:
            return scores
        with _Outputs.of(self._module) as expected:
            full = scored()
        self._checked = True
        if not (_same_scores(scores, full) and seen.equal(expected)):
            self._give_up(site, full, scored)
        return full

    def forget(self) -> None:
        """Let go of what is kept of a micro-batch."""
        self._columns = None
        if self._prefix is not None:
            self._prefix.forget()

    def _give_up(self, site: Site, full: Scores | float, scored: Scored) -> None:
        steady = _same_scores(full, scored())
        why = (
            "it gave other outputs than a full forward"
            if steady
            else "two full forwards gave different scores: the scorer or the model is not deterministic"
        )
        self._notes.append(f"nothing is shared between variants, since {why} (checked at {site})")
        self._enabled = False
        self.forget()
        self._prefix = None


class _Outputs(Onlooker):
    """Tensors that the model gave, call by call, as far as they can be found."""

    def __init__(self) -> None:
        self._found: list[list[torch.Tensor]] = []

    @classmethod
    @contextmanager
    def of(cls, module: nn.Module) -> Iterator[_Outputs]:
        """Of all calls of a module in this block."""
        outputs = cls()
        handle = module.register_forward_hook(outputs._note)
        try:
            yield outputs
        finally:
            handle.remove()

    def equal(self, others: _Outputs) -> bool:
        """Whether all are the same, to the last bit."""
        if len(self._found) != len(others._found):
            return False
        return all(map(_all_equal, self._found, others._found))

    def _note(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        try:
            self._found.append([tensor.detach().clone() for tensor in Reach.of(output).tensors])
        except UnknownValueError:
            self._found.append([])


def _all_equal(one: Iterable[torch.Tensor], other: Iterable[torch.Tensor]) -> bool:
    one, other = list(one), list(other)
    return len(one) == len(other) and all(map(_equal, one, other))


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())


def _same_scores(one: Scores | float, other: Scores | float) -> bool:
    if not isinstance(one, Scores) or not isinstance(other, Scores):
        return one == other
    pairs = ((one.correct, other.correct), (one.margin, other.margin), (one.answered, other.answered))
    return all(_same_array(*pair) for pair in pairs) and one.text == other.text


def _same_array(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other, equal_nan=True)
