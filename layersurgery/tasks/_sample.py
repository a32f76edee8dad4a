"""`Sample`: one question of a task, as the ready scorers read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from layersurgery.errors import SampleError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Sample:
    """One labelled question, with or without images and options.

    Equality and hash look at everything but the images and `meta`, so two samples with the same `id` and text are
    the same sample.

    Args:
        id: unique within its task; search and store tell samples apart by it.
        question: the question's text, without the options.
        options: the options' texts, in the order in which they are lettered A, B, C, ...; empty for an open question.
        answer: index of the right option, or the expected text of an open question.
        images: PIL images, or paths to image files, in the order in which the question shows them.
        task: name of the task (the paper's sub-category of a benchmark).
        group: samples of one group (variants of one question, questions on one image) are never split between probe
            and test; None: a group of its own.
        meta: anything else worth keeping; never read by the library.

    Raises:
        SampleError: if there are options and `answer` is not the index of one of them, or more options than letters.

    Examples:
        >>> Sample("q1", "Which colour is the sky?", ("red", "blue"), 1).letter
        'B'
    """

    id: str
    question: str
    options: tuple[str, ...] = ()
    answer: int | str | None = None
    images: tuple[Any, ...] = field(default=(), compare=False, repr=False)
    task: str = ""
    group: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(self.options))
        object.__setattr__(self, "images", tuple(self.images))
        if len(self.options) > len(LETTERS):
            raise SampleError(
                f"sample {self.id!r} has {len(self.options)} options; at most {len(LETTERS)} can be lettered"
            )
        if not self.options:
            return
        right = self.answer
        if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(self.options):
            raise SampleError(
                f"sample {self.id!r}: answer {right!r} is not one of its {len(self.options)} options; give the index "
                f"of the right option, 0 to {len(self.options) - 1}"
            )

    @property
    def letter(self) -> str:
        """The letter of the right option.

        Raises:
            SampleError: for an open question.
        """
        if not self.options or not isinstance(self.answer, int):
            raise SampleError(f"sample {self.id!r} is an open question: it has no option letters")
        return LETTERS[self.answer]
