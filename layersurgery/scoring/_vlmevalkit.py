"""Multiple choice as VLMEvalKit read it without a judge, from March 2024 to August 2025."""

from __future__ import annotations

from collections.abc import Sequence

from layersurgery.tasks import LETTERS

FAILED_CALL = "Failed to obtain answer via API"
_REFUSED = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_BLANKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))


def read_choice(text: str, options: Sequence[str]) -> int | None:
    """The option whose letter is the only one among the words, else the one whose text is the only one contained.

    Letters count as capitals that stand alone, also the article "A"; texts count in any case, also inside words. What
    the toolkit files under its class "Z" (refusals, a lone "Z") is no answer, and neither is what it leaves open.

    Args:
        text: the generated answer.
        options: the options' texts; an empty one is only ever named by its letter.

    Returns:
        The option's index.

    Examples:
        >>> read_choice("It is B", ("cat", "dog")), read_choice("a hotdog", ("cat", "dog"))
        (1, 1)
    """
    # A failed call skips the letters only: its text is still searched for the options' texts.
    if FAILED_CALL not in text:
        if any(refusal in text for refusal in _REFUSED):
            return None
        words = set(text.translate(_BLANKS).split())
        named = [index for index, letter in enumerate(LETTERS[: len(options)]) if letter in words]
        if len(named) == 1:
            return named[0]
        if not named and "Z" in words:
            return None
    lowered = text.lower()
    contained = [index for index, option in enumerate(options) if option and option.lower() in lowered]
    return contained[0] if len(contained) == 1 else None
