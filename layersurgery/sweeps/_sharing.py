"""What the variants of one job share, and the check that it changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from layersurgery.scoring import Scores
from layersurgery.sites import Sites
from layersurgery.surgery import Surgery
from layersurgery.sweeps._executor import Share
from layersurgery.sweeps._prefix import SharedPrefix
from layersurgery.sweeps._prefix_reach import Reach, UnknownValueError
from layersurgery.sweeps._prefix_record import LATER_STEPS
from layersurgery.sweeps._prefix_state import Onlooker
from layersurgery.sweeps._prefix_tail import Tail
from layersurgery.sweeps._store_values import tensor_digest
from layersurgery.sweeps._together import Together

Scored = Callable[[], "Scores | float"]


class Sharing:
    """Runs the base and its variants on a micro-batch, so that they share what is the same.

    The first variant that shares anything is evaluated a second time, in full, and so is the first of which positions
    were left out that are not scored, as a rule the same. Where the two differ in a single bit of what the model gave,
    or in a token of a text that was written along with those of other variants, nothing of the kind is shared from
    there on, and `notes` says so.

    Args:
        module: the model itself.
        sites: where variants differ from it.
        share: whether to share at all; "all": also what may round a last digit otherwise, which `Together` checks.
    """

    def __init__(self, module: nn.Module, sites: Sites, share: Share = True) -> None:
        self._module = module
        self._sites = sites
        self._prefix: SharedPrefix | None = None
        self._together: Together | None = None
        self._enabled = bool(share)
        self._inexact = share == "all"
        self._wrote = False
        self._checked = False
        self._checked_tail: Tail | None = None
        self._in_full: _InFull | None = None
        self._columns: list[int] | None = None
        self._prepared = False
        self._expected = 0
        self._notes: list[str] = []

    @property
    def notes(self) -> tuple[str, ...]:
        """What was not shared, and why."""
        shared = [] if self._prefix is None else self._prefix.notes
        if self._wrote:  # these were decoded together with others
            shared = [note for note in shared if note != LATER_STEPS]
        together = () if self._together is None else self._together.notes
        return (*self._notes, *shared, *together)

    def expect(self, variants: int) -> None:
        """So many more variants of micro-batches are going to be run."""
        self._expected += variants

    def in_order(self, rows: list[int]) -> list[int]:
        """The rows in the order in which to run them: the base first, and before the check the last site but one.

        Of all whose changes are over when the last layer begins, it shares most.
        """
        if not self._enabled or self._checked or len(rows) < 3:
            return rows
        base = rows[:1] if rows[0] == 0 else []
        rest = rows[len(base) :]
        return [*base, rest[-2], *rest[:-2], rest[-1]]

    def lacks(self, columns: list[int]) -> bool:
        """Whether a base on these columns would be of use to their variants."""
        return self._enabled and self._columns != columns

    def base(
        self, columns: list[int], surgeries: Sequence[Surgery], scored: Scored, ahead: Scored | None = None
    ) -> Scores | float:
        """The scorer's answer on the unmodified model, before these variants are run.

        Args:
            columns: the samples, by their numbers.
            surgeries: the variants.
            scored: gives the scorer's answer on the model as it is.
            ahead: the same, for the first of the variants; None: what the check needs of it is computed when it is run.
        """
        self.forget()
        if not self._enabled:
            return scored()
        if ahead is not None and self._prefix is None and not self._inexact:  # at the first base of a run
            self._in_full = _InFull.of(self._module, surgeries[0], columns, ahead)
        if self._together is not None and self._together.runs_along(surgeries):
            with self._together.running_along(surgeries):
                scores = scored()
            if self._together.has_all(surgeries):
                self._columns, self._prepared = columns, True
                return scores
        if self._prefix is None or self._together is None:
            self._prefix = SharedPrefix(self._module, self._sites)
            inexact = self._inexact
            self._together = Together(self._module, self._prefix, always=inexact, stack=inexact)
        self._prefix.trims = self._expected >= _MANY
        with self._together.recording():
            scores = scored()
        self._columns, self._prepared = columns, False
        self._prefix.prepare(surgeries)
        return scores

    def wants_fewer(self) -> bool:
        """Whether what variants share of the last base did not fit: it is let go of, for one of fewer samples."""
        if self._prefix is None or self._columns is None or not self._prefix.lacked_memory:
            return False
        self._prefix.take_fewer()
        self.forget()
        return True

    def prepare(self, columns: list[int], surgeries: Callable[[], Sequence[Surgery]]) -> None:
        """Compute what can be computed for several variants at once, those given; no surgery may be in force."""
        if self._together is not None and self._columns == columns and not self._prepared:
            self._prepared = True
            self._together.compute(surgeries())

    def ran(self, surgery: Surgery, columns: list[int]) -> bool | None:
        """Whether the site of a variant takes part in what the scorer runs, as the base shows; None: none is at hand.

        Up to the site's first call both run the same.
        """
        return None if self._together is None or self._columns != columns else self._together.ran(surgery)

    def variant(self, surgery: Surgery, columns: list[int], scored: Scored) -> Scores | float:
        """The scorer's answer on a variant."""
        if self._prefix is None or self._together is None or self._columns != columns:
            with surgery(self._module):
                return scored()
        self._wrote = self._wrote or self._together.has(surgery)
        with self._prefix.in_force(surgery) as applied:
            if self._checked:
                with self._together.answering(surgery, applied):
                    scores = scored()
                if not self._prefix.has_cut or self._checked_tail is self._prefix.tail:
                    return scores
            with _Outputs.of(self._module) as seen, self._together.answering(surgery):
                scores = scored()
            return self._compared(surgery, columns, scored, scores, seen.digests)

    def _compared(
        self, surgery: Surgery, columns: list[int], scored: Scored, scores: Scores | float, digests: list[list[Any]]
    ) -> Scores | float:
        """The answer on a variant in force, after it was compared with a full forward where that tells anything."""
        if self._prefix is None or self._together is None:
            return scores
        written, cut = self._together.has(surgery), self._prefix.has_cut
        telling = (not self._inexact if written else self._prefix.has_answered) and (cut or not self._checked)
        known, self._in_full = self._in_full, None
        if not telling:
            return scores
        if known is None or known.surgery != surgery or known.columns != columns:
            known = _InFull.of(self._module, surgery, columns, scored, in_force=True)
        full = known.scores
        same = _same_scores(scores, full) and (written or digests == known.digests)
        if not same and cut:
            self._prefix.compute_all_positions(f"it made a difference at {surgery}")
        elif same:
            self._checked, self._checked_tail = True, self._prefix.tail if cut else self._checked_tail
        else:
            self._give_up(surgery, full, scored)
        return full

    def forget(self) -> None:
        """Let go of what is kept of a micro-batch."""
        self._columns = None
        if self._together is not None:
            self._together.forget()

    def _give_up(self, surgery: Surgery, full: Scores | float, scored: Scored) -> None:
        steady = _same_scores(full, scored())
        why = (
            "it gave other outputs than a full forward"
            if steady
            else "two full forwards gave different scores: the scorer or the model is not deterministic"
        )
        self._notes.append(f"nothing is shared between variants, since {why} (checked at {surgery})")
        self._enabled = False
        self.forget()
        self._prefix = self._together = None


_MANY = 12  # variants, for which it pays to look at the last layer


@dataclass(frozen=True)
class _InFull:
    """A variant that was computed in full, for the check: before anything is kept, so that less memory is needed.

    Args:
        surgery: the variant.
        columns: the samples, by their numbers.
        scores: the scorer's answer.
        digests: what the model gave.
    """

    surgery: Surgery
    columns: list[int]
    scores: Scores | float
    digests: list[list[Any]]

    @classmethod
    def of(
        cls, module: nn.Module, surgery: Surgery, columns: list[int], scored: Scored, *, in_force: bool = False
    ) -> _InFull:
        """Compute it."""
        with nullcontext() if in_force else surgery(module), _Outputs.of(module) as seen:
            scores = scored()
        return cls(surgery, columns, scores, seen.digests)


class _Outputs(Onlooker):
    """What the model gave, call by call: digests of the tensors that can be found in it, so that none is kept."""

    def __init__(self) -> None:
        self.digests: list[list[Any]] = []

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

    def _note(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        try:
            self.digests.append([_digest(tensor) for tensor in Reach.of(output).tensors])
        except UnknownValueError:
            self.digests.append([])


def _digest(tensor: torch.Tensor) -> Any:
    """Of every bit of it, its shape and its type; of one whose numbers are not in memory, of the latter.

    Examples:
        >>> _digest(torch.zeros(2)) == _digest(-torch.zeros(2))
        False
    """
    if tensor.layout == torch.strided and not tensor.is_meta:
        return tensor_digest(tensor)
    return tensor.dtype, tuple(tensor.shape)


def _same_scores(one: Scores | float, other: Scores | float) -> bool:
    if not isinstance(one, Scores) or not isinstance(other, Scores):
        return one == other
    pairs = ((one.correct, other.correct), (one.margin, other.margin), (one.answered, other.answered))
    return all(_same_array(*pair) for pair in pairs) and one.text == other.text


def _same_array(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other, equal_nan=True)
