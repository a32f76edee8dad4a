"""What belongs beside an accuracy: how often no answer could be read, and what one letter for all would score."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, NamedTuple

from layersurgery._fields import field_of
from layersurgery.tasks import LETTERS


@dataclass(frozen=True)
class Answers:
    """What to know beside the accuracy of the unmodified model and of a variant on the same samples.

    A model that was damaged may answer nothing that can be read, or the same letter always; where that letter is the
    right one often enough, this looks like a gain.

    Args:
        unanswered: share of samples in which no answer could be read: of the unmodified model, and, if there is one, of
            the variant. None: the scorer does not say.
        constant: the score of always answering `letter`, or None: not known.
        letter: the letter that is right most often, or None.
        chance: the score of guessing among the options, or None: not known. Not compared by `==`.

    Examples:
        >>> print(Answers((0.1, 0.5), 0.29, "B"))
        no answer could be read in 10.0 % before and 50.0 % after; always answering B would score 29.0 %
    """

    unanswered: tuple[float, ...] | None = None
    constant: float | None = None
    letter: str | None = None
    chance: float | None = field(default=None, compare=False)

    @property
    def floor(self) -> tuple[str, float] | None:
        """What a model without any skill would score at best, in words and as a number; None: not known."""
        known = [("chance", self.chance), (f"always answering {self.letter}", self.constant)]
        found = [(name, score) for name, score in known if score is not None]
        return max(found, key=lambda one: one[1]) if found else None

    @property
    def fewer_answers(self) -> bool:
        """Whether fewer answers can be read from the variant than from the unmodified model."""
        return self.unanswered is not None and len(self.unanswered) == 2 and self.unanswered[1] > self.unanswered[0]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data."""
        base, changed = (*(self.unanswered or ()), None, None)[:2]
        return {
            "unanswered": base,
            "unanswered_changed": changed,
            "constant": self.constant,
            "constant_letter": self.letter,
            "chance": self.chance,
        }

    def __str__(self) -> str:
        parts: list[str] = []
        if self.unanswered is not None:
            shares = [f"{100 * share:.1f} %" for share in self.unanswered]
            both = (
                f"{shares[0]} before and {shares[-1]} after"
                if len(set(shares)) > 1
                else f"{shares[0]} before and after"
            )
            parts.append(f"no answer could be read in {both if len(shares) > 1 else shares[0]}")
        if self.constant is not None:
            parts.append(f"always answering {self.letter} would score {100 * self.constant:.1f} %")
        return "; ".join(parts)


class ConstantAnswer(NamedTuple):
    """The letter that is right most often, and the share of samples that it is right for."""

    letter: str
    score: float


def chance_level(samples: Sequence[Any]) -> float | None:
    """The score of guessing among the options; None if some sample has none.

    Args:
        samples: as for `constant_answer`; where there are `variants`, all must be guessed right.

    Examples:
        >>> chance_level([{"options": "AB", "answer": "A"}, {"options": "ABCD", "answer": "A"}])
        0.375
    """
    guessed: list[float] = []
    for sample in samples:
        if not _is_question(sample) or not field_of(sample, "options"):
            return None
        asked = (sample, *(field_of(sample, "variants") or ()))
        guessed.append(math.prod(1 / max(1, len(field_of(one, "options") or ())) for one in asked))
    return math.fsum(guessed) / len(guessed) if guessed else None


def constant_answer(samples: Sequence[Any]) -> ConstantAnswer | None:
    """What always answering the same letter would score at best; None if that is not known, or there are no options.

    Args:
        samples: `Sample`s, or dicts or objects with `options` and an `answer` that is an index or a letter. What has
            no options is never answered right by a letter. Where there are `variants`, the letter must be right in all.

    Examples:
        >>> rows = [{"options": ["red", "blue"], "answer": answer} for answer in "ABB"]
        >>> constant_answer(rows)
        ConstantAnswer(letter='B', score=0.6666666666666666)
        >>> constant_answer([1, 2, 3]) is None
        True
    """
    letters: Counter[str] = Counter()
    any_options = False
    for sample in samples:
        if not _is_question(sample):
            return None
        if not field_of(sample, "options"):
            continue
        any_options = True
        right = {_right_letter(one) for one in (sample, *(field_of(sample, "variants") or ()))}
        if None in right:
            return None
        if len(right) == 1:
            letters[str(right.pop())] += 1
    if not any_options:
        return None
    letter, count = min(letters.items(), key=lambda entry: (-entry[1], entry[0]), default=(LETTERS[0], 0))
    return ConstantAnswer(letter, count / len(samples))


def _is_question(sample: Any) -> bool:
    return field_of(sample, "answer") is not None


def _right_letter(sample: Any) -> str | None:
    options, answer = field_of(sample, "options"), field_of(sample, "answer")
    letters = LETTERS[: len(options)] if isinstance(options, (list, tuple)) else ""
    if isinstance(answer, str):
        letter = answer.strip().upper()
        return letter if len(letter) == 1 and letter in letters else None
    known = isinstance(answer, Integral) and not isinstance(answer, bool) and 0 <= int(answer) < len(letters)
    return letters[int(answer)] if known else None
