"""Rules of reading answers, by name and version: two results compare only where one rule read them both."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

from layersurgery.errors import ScoringError
from layersurgery.scoring import _extract, _letters, _mathvista, _mmmu, _vlmevalkit
from layersurgery.tasks import LETTERS, Kind, Sample

Answer: TypeAlias = "int | float | str | tuple[float | str, ...]"


@dataclass(frozen=True)
class Judgement:
    """What was read in an answer, and whether that is right.

    Args:
        answer: an option's index for a choice, a number, the items of a list, or a text (with "mmmu-v1", all that it
            may mean); None: there is no answer, or none beyond doubt.
        correct: whether it is right; never without an answer.

    Raises:
        ScoringError: if it is right without an answer.

    Examples:
        >>> Judgement(1, correct=True).answer
        1
    """

    answer: Answer | None
    correct: bool

    def __post_init__(self) -> None:
        if self.answer is None and self.correct:
            raise ScoringError("a judgement is correct without an answer; what cannot be read is wrong, never guessed")


@dataclass(frozen=True)
class Rule:
    """One way of reading answers, which never changes: what would read another answer gets another name.

    Args:
        name: what it is called, with its version.
        readers: for each kind of question, from a text and its sample to a judgement.

    Examples:
        >>> RULES["mathvista-v1"].kinds
        ('mcq', 'integer', 'float', 'list')
    """

    name: str
    readers: Mapping[Kind, Callable[[str, Sample], Judgement]]

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of questions whose answers it can read."""
        return tuple(self.readers)


def judge(text: str, sample: Sample, rule: str = "letters-v1") -> Judgement:
    """Read a generated answer, and compare it with the right one; never by chance.

    Args:
        text: the generated answer.
        sample: the question; its `variants` are not looked at.
        rule: one of `RULES`. "letters-v1", the strictest, reads what is beyond doubt, for all kinds. "vlmevalkit-2024"
            reads what that toolkit read without a judge when the paper [A] was written, "mmmu-v1" what that benchmark's
            own evaluation does except for its draws by chance, "mathvista-v1" numbers by the benchmark's precision,
            without the language model that it asks.

    Raises:
        ScoringError: for an unknown rule, a kind of question that it does not read, or a right answer that is not of
            that kind.

    Examples:
        >>> pets = Sample("q1", "What is it?", ("cat", "dog"), 1)
        >>> judge("A dog", pets)
        Judgement(answer=1, correct=True)
        >>> judge("A dog", pets, "vlmevalkit-2024")
        Judgement(answer=0, correct=False)
        >>> judge("about 1,250 m", Sample("q2", "How high?", answer="1250", kind="integer"), "mathvista-v1")
        Judgement(answer=1250.0, correct=True)
    """
    return check_rule(rule, sample).readers[sample.kind](text, sample)


def check_rule(name: str, sample: Sample | None = None) -> Rule:
    """The rule called `name`, if there is one and it can read this sample's kind.

    Raises:
        ScoringError: if not.
    """
    if name not in RULES:
        near = difflib.get_close_matches(str(name), RULES, n=2)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ScoringError(f"unknown rule {name!r}; {hint}give one of {', '.join(map(repr, RULES))}")
    rule = RULES[name]
    if sample is not None and sample.kind not in rule.readers:
        others = [other.name for other in RULES.values() if sample.kind in other.readers]
        raise ScoringError(
            f"rule {name!r} cannot read the answer to sample {sample.id!r}, which is of kind {sample.kind!r}, only "
            f"{', '.join(map(repr, rule.kinds))}; {' and '.join(map(repr, others))} can"
        )
    return rule


def _choice(read: Callable[[str, Any], int | None]) -> Callable[[str, Sample], Judgement]:
    def reader(text: str, sample: Sample) -> Judgement:
        answer = read(text, sample.options)
        return Judgement(answer, answer is not None and answer == sample.answer)

    return reader


def _number(read: Callable[[str], float | None]) -> Callable[[str, Sample], Judgement]:
    def reader(text: str, sample: Sample) -> Judgement:
        answer = read(text)
        decimals = sample.precision if sample.kind == "float" else None
        right = [_mathvista.number_of(gold, sample.id) for gold in _golds(sample)]
        return Judgement(answer, answer is not None and any(_mathvista.same(answer, one, decimals) for one in right))

    return reader


def _list(text: str, sample: Sample) -> Judgement:
    answer = _mathvista.read_list(text)
    right = _mathvista.list_of(sample.answer, sample.id)
    return Judgement(answer, answer is not None and _mathvista.same_list(answer, right, sample.precision))


def _words(text: str, sample: Sample) -> Judgement:
    answer = _extract.plain(text) or None
    right = answer is not None and any(_extract.exact_match(text, gold) for gold in _golds(sample))
    return Judgement(answer, right)


def _mmmu_open(text: str, sample: Sample) -> Judgement:
    answer = _mmmu.read_open(text)
    return Judgement(answer, answer is not None and _mmmu.same_open(answer, sample.answer))


def _vlmevalkit_number(kind: type[int] | type[float]) -> Callable[[str, Sample], Judgement]:
    def reader(text: str, sample: Sample) -> Judgement:
        try:
            answer = kind(text)
        except ValueError:
            return Judgement(None, correct=False)
        if not math.isfinite(answer):
            return Judgement(None, correct=False)
        return Judgement(answer, any(answer == _mathvista.number_of(gold, sample.id) for gold in _golds(sample)))

    return reader


def _vlmevalkit_open(text: str, sample: Sample) -> Judgement:
    """The toolkit makes a choice of it, between the right text and "Other Answers", but keeps a letter as right."""
    golds = list(_golds(sample))
    gold = golds[0] if len(golds) == 1 else str(golds)  # it does not look into lists
    answer = _vlmevalkit.read_choice(text, (gold, "Other Answers"))
    letter = gold if len(gold) == 1 and gold in LETTERS else "A"
    return Judgement(answer, answer is not None and LETTERS[answer] == letter)


def _golds(sample: Sample) -> Iterator[str]:
    golds = sample.answer if isinstance(sample.answer, tuple) else (sample.answer,)
    return map(str, golds)


_READ_CHOICE = _choice(_letters.read_choice)

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        rule.name: rule
        for rule in (
            Rule(
                "letters-v1",
                {
                    "mcq": _READ_CHOICE,
                    "integer": _number(_extract.extract_number),
                    "float": _number(_extract.extract_number),
                    "list": _list,
                    "open": _words,
                },
            ),
            Rule(
                "vlmevalkit-2024",
                {
                    "mcq": _choice(_vlmevalkit.read_choice),
                    "integer": _vlmevalkit_number(int),
                    "float": _vlmevalkit_number(float),
                    "list": lambda text, sample: Judgement(None, correct=False),  # it compares a text with a list
                    "open": _vlmevalkit_open,
                },
            ),
            Rule("mmmu-v1", {"mcq": _choice(_mmmu.read_choice), "open": _mmmu_open}),
            Rule(
                "mathvista-v1",
                {
                    "mcq": _READ_CHOICE,
                    "integer": _number(_mathvista.read_number),
                    "float": _number(_mathvista.read_number),
                    "list": _list,
                },
            ),
        )
    }
)
