"""`Sample`: one question of a task, as the ready scorers read it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from layersurgery.errors import SampleError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

Kind: TypeAlias = Literal["mcq", "integer", "float", "list", "open"]
"""What is asked for: one of several options, a whole number, a number, a list, or a text."""

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Sample:
    """One labelled question, with or without images and options.

    Equality and hash look at everything but the images, `categories` and `meta`, so two samples with the same `id` and
    text are the same sample.

    Args:
        id: unique within its task; search and store tell samples apart by it.
        question: the question's text, without the options.
        options: the options' texts, in the order in which they are lettered A, B, C, ...; empty for other kinds.
        answer: index of the right option; else the expected text, or several of which each is right (for a list: its
            items).
        images: PIL images, or paths to image files, in the order in which the question counts them.
        task: name of the task (the paper's sub-category of a benchmark).
        group: samples of one group (questions on one image, say) are never split between probe and test; None: a group
            of its own.
        meta: anything else worth keeping; prompt templates may show it, nothing else reads it.
        hint: what is to be known in addition to the question, or nothing.
        kind: what is asked for, one of `KINDS`; left out: "mcq" where there are options, "float" where the answer is a
            number, else "open".
        precision: decimals of the answer that count, for "float" and "list"; None: all.
        unit: unit of the answer, or nothing.
        categories: what it is filed under: the name of each division, and one or more values.
        benchmark: name of the benchmark it is from, or nothing.
        variants: the same question asked in other ways (its options in another order): it counts as right where these
            are right as well (circular evaluation).

    Raises:
        SampleError: if there are options and `answer` is not the index of one of them, more options than letters, a
            kind that does not go with them, or a precision that is no number of decimals.

    Examples:
        >>> Sample("q1", "Which colour is the sky?", ("red", "blue"), 1).letter
        'B'
        >>> Sample("q2", "How many legs has a spider?", answer="8").kind
        'float'
    """

    id: str
    question: str
    options: tuple[str, ...] = ()
    answer: int | str | tuple[str, ...] | None = None
    images: tuple[Any, ...] = field(default=(), compare=False, repr=False)
    task: str = ""
    group: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    hint: str = field(default="", kw_only=True)
    kind: Kind = field(default="", kw_only=True)  # pyright: ignore[reportAssignmentType]
    precision: int | None = field(default=None, kw_only=True)
    unit: str = field(default="", kw_only=True)
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict, compare=False, repr=False, kw_only=True)
    benchmark: str = field(default="", kw_only=True)
    variants: tuple[Sample, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        for name in ("options", "images", "variants"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.answer, list):
            object.__setattr__(self, "answer", tuple(self.answer))
        if not self.kind:
            object.__setattr__(self, "kind", _kind(self))
        _check_kind(self)
        if self.options:
            _check_options(self)

    @property
    def letter(self) -> str:
        """The letter of the right option.

        Raises:
            SampleError: for a question without options.
        """
        if not self.options or not isinstance(self.answer, int):
            raise SampleError(f"sample {self.id!r} is an open question: it has no option letters")
        return LETTERS[self.answer]


def _kind(sample: Sample) -> Kind:
    if sample.options:
        return "mcq"
    try:
        number = math.nan if isinstance(sample.answer, tuple) else float(str(sample.answer).replace(",", ""))
    except ValueError:
        return "open"
    return "float" if math.isfinite(number) else "open"


def _check_kind(sample: Sample) -> None:
    name = f"sample {sample.id!r}"
    if sample.kind not in KINDS:
        raise SampleError(f"{name}: kind={sample.kind!r}; give one of {', '.join(KINDS)}, or leave it out")
    if (sample.kind == "mcq") != bool(sample.options):
        raise SampleError(
            f"{name} has {len(sample.options)} options and is of kind {sample.kind!r}; options and the kind 'mcq' go "
            "together"
        )
    decimals = sample.precision
    if decimals is not None and (isinstance(decimals, bool) or not isinstance(decimals, int) or decimals < 0):
        raise SampleError(f"{name}: precision={decimals!r}; give how many decimals count, 0 or more, or None for all")
    for variant in sample.variants:
        if not isinstance(variant, Sample) or variant.variants or variant.kind != sample.kind:
            raise SampleError(f"{name}: {variant!r:.80} is no variant of it; give samples of its kind without variants")


def _check_options(sample: Sample) -> None:
    if len(sample.options) > len(LETTERS):
        raise SampleError(
            f"sample {sample.id!r} has {len(sample.options)} options; at most {len(LETTERS)} can be lettered"
        )
    right = sample.answer
    if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(sample.options):
        raise SampleError(
            f"sample {sample.id!r}: answer {right!r} is not one of its {len(sample.options)} options; give the index "
            f"of the right option, 0 to {len(sample.options) - 1}"
        )
