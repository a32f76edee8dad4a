"""One model through all checks: a row of the bench's table."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

from layersurgery.testing import assert_restored
from tests.architectures.build import names
from tests.architectures.check import ROLES, known_gaps
from tests.architectures.columns import CHECKS, Check
from tests.architectures.sizes import USUAL, Sizes
from tests.architectures.subject import DoesNotApply, Subject, same

# A snapshot reads all bytes; what these leave behind is seen after the check that follows.
LOOKED_AT_WITH_THE_NEXT = ("attention sites", "contribution", "generation", "without cache")

Answer = Literal["yes", "NO", "-"]

BUILT, RESTORED = "built", "restored"
COLUMNS: Mapping[str, str] = {
    BUILT: "A model with random weights is built, and a forward runs.",
    **{title: " ".join((check.__doc__ or "").split()) for title, check in CHECKS.items()},
    RESTORED: "After each of these checks nothing of the model or the random state differs, down to object, address "
    "and bytes; and in the end the model gives the same output as before.",
}


@dataclass(frozen=True)
class Cell:
    """One answer.

    Args:
        answer: "yes", "NO", or "-" where the question does not apply.
        why: what went wrong, why it does not apply, or how a yes is meant.
    """

    answer: Answer
    why: str = ""


@dataclass(frozen=True)
class Row:
    """All answers of one class; `gap`: why selection is known to be wrong there, if it is."""

    name: str
    made_for: str
    cells: Mapping[str, Cell]
    seconds: float
    gap: str = ""

    @property
    def failures(self) -> list[str]:
        """The columns that say NO and should not."""
        return [] if self.gap else [title for title, cell in self.cells.items() if cell.answer == "NO"]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data."""
        return asdict(self)


def row(name: str, seed: int = 0, size: Sizes = USUAL) -> Row:
    """Run all checks on one class; whatever goes wrong is in the row."""
    began = time.perf_counter()
    cells = dict.fromkeys(COLUMNS, Cell("-", "it was not built"))
    try:
        subject = Subject(name, seed, size)
    except Exception as error:  # whatever a model class raises is a line of the table
        cells[BUILT] = _no(error)
    else:
        cells[BUILT] = Cell("yes")
        left: list[str] = []
        for title, check in CHECKS.items():
            cells[title] = _answer(check, subject)
            if title in LOOKED_AT_WITH_THE_NEXT:
                continue
            try:
                assert_restored(subject.model, subject.taken)
            except AssertionError as error:
                left.append(f"after {title}: {error}")
        cells[RESTORED] = _answer(partial(_as_before, left=left), subject)
    gaps = [known_gaps().get((name, role), "") for role in ROLES]
    return Row(name, names()[name], cells, round(time.perf_counter() - began, 2), gaps[0] or gaps[1])


def _answer(check: Check, subject: Subject) -> Cell:
    try:
        return Cell("yes", check(subject) or "")
    except DoesNotApply as reason:
        return Cell("-", str(reason))
    except Exception as error:  # the library's and the model's errors alike: the answer is no
        return _no(error)


def _as_before(subject: Subject, left: list[str]) -> None:
    if left:
        raise AssertionError(left[0])
    if not same(subject.output(), subject.before):
        raise AssertionError("its output is another than before")


def _no(error: Exception) -> Cell:
    kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
    return Cell("NO", f"{kind}{error}")
