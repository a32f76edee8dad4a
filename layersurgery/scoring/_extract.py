"""Reading answers out of generated text: strictly, since a wrong reading looks like a gain or a loss of the model."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from layersurgery.tasks import LETTERS

# Full-width punctuation and typographic dashes, as plain ones.
PLAIN_MARKS = str.maketrans(
    {
        "\uff08": "(",
        "\uff09": ")",
        "\uff1a": ":",
        "\uff0c": ",",
        "\u3002": ".",
        "\u2013": "-",
        "\u2014": "-",
        "\u2212": "-",
    }
    | {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'}
)

_OPEN, _CLOSE = r"[\s\"'`*_$(\[{<]*", r"[\s\"'`*_$)\]}>.,:;!?]*"
_LETTER = r"(?<![A-Za-z0-9])(?P<letter>[A-Za-z])(?![A-Za-z0-9])"
_IS = r"\s*(?:is|are|was|would\s+be|should\s+be|must\s+be|:||=|-)?"
_HEDGE = (
    r"\s*(?:most\s+likely|probably|clearly|definitely|therefore|thus|:)?\s*(?:the\s+)?(?:option|choice|letter)?\s*:?"
)

_ALONE = re.compile(rf"{_OPEN}{_LETTER}{_CLOSE}")
_BOXED = re.compile(rf"\\boxed\{{\s*(?:\\text\{{)?{_OPEN}{_LETTER}")
_ANSWER = re.compile(
    r"\b(?:answer|(?:correct|right|best|final)\s+(?:answer|option|choice|letter))\b"
    rf"(?:\s+(?:to|for)\b[^.:\n]{{0,80}}?\b(?=is\b|:))?{_IS}{_HEDGE}{_OPEN}{_LETTER}",
    re.IGNORECASE,
)
_CHOSEN = re.compile(
    rf"\b(?:option|choice|choose|chose|pick|select|go\s+with|it\s+is|it's){_IS}{_HEDGE}{_OPEN}{_LETTER}", re.IGNORECASE
)
_BRACKETED = re.compile(rf"(?<!\w)[(\[]\s*{_LETTER}\s*[)\]]")
_LINE = re.compile(rf"^[ \t\"'`*_(\[]*{_LETTER}", re.MULTILINE)

_ENDS = re.compile(r"[\"'`*_$)\]}>]*(?:[.,:;!?)\]](?=\W|$)|\s*$|\s*\n|\s+-+\s)")
_REASON = re.compile(r"\s+(?:because|since|as\s+the|due\s+to|is\s+(?:the\s+)?(?:correct|right|best))\b", re.IGNORECASE)
DENIED = re.compile(
    r"[\s\"'`*_)\]]*\b(?:(?:is|was)\s+(?:not|wrong|incorrect|false)|isn't|wasn't|cannot|can't)\b", re.IGNORECASE
)
REFUSED = re.compile(r"(?:\bnot|n't|\bneither|\bnor|\bexcept)\W*(?:option\W*)?$", re.IGNORECASE)
_AND = re.compile(
    r"[\s\"'`*_)\]]*(?:,|/|&|\bor\b|\band\b)\s*(?:option\s+)?[\"'`*_(\[]*(?P<letter>[A-Z])(?![A-Za-z0-9'])"
)

_CUE = (
    r"\b(?:answer|result|total|value)\b(?:\s+(?:to|for|of)\b[^.:=\n]{0,80}?\b(?=is\b))?"
    r"\s*(?:is|are|:|=)\s*[^\w\n.+-]{0,3}"
)
_NUMBER = (
    r"(?<![\w.,/])(?P<number>[-+]?(?=\.?\d)(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?)(?![\d/]|[.,]\d)"
)
_AFTER_CUE = re.compile(_CUE + _NUMBER, re.IGNORECASE)
ANY_NUMBER = re.compile(_NUMBER)
_LEAD = re.compile(r"^(?:the\s+)?(?:(?:final|correct)\s+)?answer\s*(?:is|:)\s*", re.IGNORECASE)


def extract_letter(text: str, n_options: int) -> int | None:
    """The option that an answer names by its letter, or None where that is not beyond doubt.

    Read are a letter alone ("B", "b.", "(B)"), one that opens a line ("B. red", "B because ..."), what is said to be
    the answer ("The answer is B", "Answer: (b)", a boxed letter) and, where nothing is, what is chosen or bracketed
    ("I choose B", "... (B) ..."). Not read are the article "A", the pronoun "I", letters beyond the options, options
    that are ruled out, and texts that name several.

    Args:
        text: the generated answer.
        n_options: how many options there are, lettered A, B, C, ...

    Returns:
        The option's index.

    The paper's option extraction [A] is not given in detail; this one never guesses.

    Examples:
        >>> extract_letter("The answer is (B).", 4), extract_letter("A dog is in the picture.", 4)
        (1, None)
    """
    text = text.translate(PLAIN_MARKS)
    alone = _ALONE.fullmatch(text)
    if alone:
        return _index({alone["letter"].upper()}, n_options)
    opening = {*_said(_LINE, text, opens_line=True)}
    answer = {*_said(_BOXED, text), *_said(_ANSWER, text)}
    # A plain statement of the answer outweighs options that are merely mentioned on the way to it.
    return _index(opening | (answer or {*_said(_CHOSEN, text), *_said(_BRACKETED, text)}), n_options)


def extract_number(text: str) -> float | None:
    """The number that an answer gives: the one said to be the answer, else the only one in the text, else None.

    Args:
        text: the generated answer; thousands may be set off by commas.

    Examples:
        >>> extract_number("The answer is 1,250 apples."), extract_number("between 3 and 4")
        (1250.0, None)
    """
    for pattern in (_AFTER_CUE, ANY_NUMBER):
        found = {value(match["number"]) for match in pattern.finditer(text.translate(PLAIN_MARKS))} - {None}
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def exact_match(text: str, expected: str) -> bool:
    """Whether a generated answer says what was expected, by value for numbers, else word for word.

    Case, blanks, a leading "the answer is", a leading article, quotes and closing punctuation do not count. The metric
    of the paper's open questions [A, MathVista].

    Args:
        text: the generated answer.
        expected: the right one.

    Examples:
        >>> exact_match("The answer is 3.0.", "3"), exact_match('"Red"', "red"), exact_match("dark red", "red")
        (True, True, False)
    """
    number = value(expected.strip())
    if number is not None:
        given = extract_number(text)
        return given is not None and math.isclose(given, number, rel_tol=1e-9, abs_tol=1e-12)
    return plain(text) == plain(expected)


def _said(pattern: re.Pattern[str], text: str, *, opens_line: bool = False) -> Iterator[str]:
    """The letters that `pattern` finds, and those listed after them ("B or C"), as capitals."""
    for match in pattern.finditer(text):
        letter, rest = match["letter"], text[match.end("letter") :]
        if denied(text, match) or not _stands(letter, rest, opens_line):
            continue
        yield letter.upper()
        other = _AND.match(rest)
        while other:
            yield other["letter"]
            rest = rest[other.end("letter") :]
            other = _AND.match(rest)


def denied(text: str, match: re.Match[str]) -> bool:
    before, after = text[: match.start("letter")], text[match.end("letter") :]
    return bool(DENIED.match(after) or REFUSED.search(before))


def _stands(letter: str, rest: str, opens_line: bool) -> bool:
    """Whether a letter before `rest` can be an option's name, and not a word (a, I) or the start of something else."""
    if _ENDS.match(rest) or _REASON.match(rest):
        return True
    # Before a further word, only capitals that are no words themselves: "B red", but neither "A dog" nor "b red".
    return letter.isupper() and letter not in "AI" and re.match(r"\s+\w" if opens_line else r"\s", rest) is not None


def _index(letters: set[str], n_options: int) -> int | None:
    if len(letters) != 1:
        return None
    index = LETTERS.index(letters.pop())
    return index if index < n_options else None


def value(number: str) -> float | None:
    """The number that a text is, or None."""
    try:
        found = float(number.replace(",", ""))
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def plain(text: str) -> str:
    """The words of an answer, without what says that they are one, and without an article, case and marks around."""
    words = _LEAD.sub("", text.translate(PLAIN_MARKS).strip()).strip().strip("\"'`*.!? ").casefold().split()
    if len(words) > 1 and words[0] in ("a", "an", "the"):
        words = words[1:]
    return " ".join(words)
