"""letters-v1: the option that an answer names beyond doubt, by its letter, its text, or in passing."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

from layersurgery.scoring import _extract
from layersurgery.scoring._vlmevalkit import FAILED_CALL
from layersurgery.tasks import LETTERS

# The only letters besides A to Z that Python takes for some of them where case is ignored.
_LOOK_ALIKE = str.maketrans({"\u212a": "K", "\u0130": "I"})
# What chat templates and reasoning models put around an answer.
_AROUND = re.compile(r"\A.*</think>|<\|[^<>|]*\|>|</?(?:s|answer)>", re.DOTALL)
# A capital of its own: no "C++", "B-52", "U.S.A." or "D'oh".
_CAPITAL = re.compile(r"(?<![A-Za-z0-9])(?<![A-Za-z0-9][.'-])(?P<letter>[A-Z])(?![A-Za-z0-9'+#]|-\w)")
_ARTICLE = re.compile(r"\s+(?!(?:is|was|because|since|and|or)\b)[a-z]")
_CONCLUDED = re.compile(
    r"(?s:.*)\b(?i:so|therefore|thus|hence|choose)\b(?P<way>[^.!?\n]*?)"
    r"(?<![A-Za-z0-9])(?P<letter>[A-Z])[\s\"'`*_$)\]}>.!]*\Z"
)


def read_choice(text: str, options: Sequence[str]) -> int | None:
    """The option that an answer names, by its letter (as `extract_letter` reads it), its text, or in passing.

    In passing ("line C is longest") counts where just one option is named, be it by its letter or by its text, or where
    a conclusion closes the answer ("... so (B)"). Never the option that looks most like the answer, as MathVista's own
    script takes it: that one credits empty answers.

    Args:
        text: the generated answer.
        options: the options' texts.

    Returns:
        The option's index.

    Examples:
        >>> angles = ("30 degrees", "45 degrees")
        >>> read_choice('The answer is "45 degrees".', angles), read_choice("(A) is small, so (B)", angles)
        (1, 1)
        >>> read_choice("135 degrees", angles), read_choice("", angles)
        (None, None)
    """
    if FAILED_CALL in text:
        return None
    text, options = _cleaned(text), [_cleaned(option) for option in options]
    lettered = _extract.extract_letter(text, len(options))
    if lettered is not None:
        return _letter(lettered, options)
    said = _extract.plain(text)
    same = [index for index, option in enumerate(options) if said and _extract.plain(option) == said]
    if same:
        return same[0] if len(same) == 1 else None
    passing = {*_letters_in_passing(text, options), *_texts_in_passing(text, options)}
    if len(passing) == 1:
        return passing.pop()
    return _concluded(text, options)


def _cleaned(text: str) -> str:
    return unicodedata.normalize("NFKC", _AROUND.sub(" ", text.translate(_LOOK_ALIKE))).translate(_extract.PLAIN_MARKS)


def _letter(index: int, options: Sequence[str]) -> int | None:
    """`index`, unless its letter is also the text of another option: nobody can tell which one was meant."""
    if index >= len(options):
        return None
    twins = (position for position, option in enumerate(options) if option.strip().upper() == LETTERS[index])
    return index if all(position == index for position in twins) else None


def _letters_in_passing(text: str, options: Sequence[str]) -> Iterator[int]:
    for match in _CAPITAL.finditer(text):
        a_word = match["letter"] in "AI" and _ARTICLE.match(text, match.end())
        index = _letter(LETTERS.index(match["letter"]), options)
        if index is not None and not a_word and not _extract.denied(text, match):
            yield index


def _texts_in_passing(text: str, options: Sequence[str]) -> Iterator[int]:
    """The options whose texts stand in `text` as words of their own, and not within the text of a longer one."""
    text = " ".join(text.casefold().split())
    spans: list[tuple[int, int, int]] = []
    for index, option in enumerate(options):
        words = " ".join(option.casefold().split())
        if len(words) == 1 and words.isalpha():
            continue  # "a" is an article first; as letters of options these are read above
        if words:
            found = re.finditer(rf"(?<![\w.,/\-]){re.escape(words)}(?![\w/^]|[.,]\d)", text)
            spans += [(index, *match.span()) for match in found if not _ruled_out(text, *match.span())]
    for index, start, end in spans:
        if not any(a <= start and end <= b and b - a > end - start for _, a, b in spans):
            yield index


def _ruled_out(text: str, start: int, end: int) -> bool:
    return bool(_extract.DENIED.match(text[end:]) or _extract.REFUSED.search(text[:start]))


def _concluded(text: str, options: Sequence[str]) -> int | None:
    match = _CONCLUDED.match(text)
    if match is None or _CAPITAL.search(match["way"]) or _extract.REFUSED.search(match["way"]):
        return None
    return _letter(LETTERS.index(match["letter"]), options)
