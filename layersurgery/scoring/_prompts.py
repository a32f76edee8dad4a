"""From a sample to the text that the model reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from layersurgery.errors import SampleError, ScoringError
from layersurgery.tasks import LETTERS, Sample

Prompt = Callable[[Sample], str]

BY_LETTER = "Answer with the option's letter from the given choices directly."
_BY_TEXT = "Answer with the option's text from the given choices directly."
_OPEN = "Answer the question using a single word or phrase."


def letter_prompt(sample: Sample) -> str:
    r"""The default prompt: the question, one lettered line per option, and what to answer with.

    Args:
        sample: with options, or an open question.

    Examples:
        >>> print(letter_prompt(Sample("q1", "Which colour is the sky?", ("red", "blue"), 1)))
        Which colour is the sky?
        A. red
        B. blue
        Answer with the option's letter from the given choices directly.
    """
    return "\n".join([sample.question, *_option_lines(sample), BY_LETTER if sample.options else _OPEN])


def text_prompt(sample: Sample) -> str:
    """The default prompt where the options' texts are the candidates: as `letter_prompt`, but asking for the text.

    Examples:
        >>> print(text_prompt(Sample("q1", "Which colour is the sky?", ("red", "blue"), 1)).splitlines()[-1])
        Answer with the option's text from the given choices directly.
    """
    return "\n".join([sample.question, *_option_lines(sample), _BY_TEXT if sample.options else _OPEN])


@dataclass(frozen=True)
class Rendered:
    """A prompt as the processor takes it, and whether the tokenizer is still to add its special tokens."""

    text: str
    add_special_tokens: bool


def render(processor: Any, sample: Sample, prompt: Prompt) -> Rendered:
    """The sample's prompt inside the processor's (or tokenizer's) chat template, or as plain text without one.

    Args:
        processor: a Hugging Face processor or a bare tokenizer.
        sample: its images become one image part each, before the text.
        prompt: from the sample to the user's message.

    Raises:
        ScoringError: if `prompt` does not return a string.
        SampleError: if there is no way to show the sample's images to this processor.
    """
    message = prompt(sample)
    if not isinstance(message, str):
        raise ScoringError(
            f"prompt returned {type(message).__name__} for sample {sample.id!r}; it must return a string"
        )
    is_processor = hasattr(processor, "tokenizer")
    if sample.images and not hasattr(processor, "image_processor"):
        raise SampleError(
            f"sample {sample.id!r} has {len(sample.images)} image(s), but {type(processor).__name__} takes text only; "
            "give the scorer the model's processor (AutoProcessor.from_pretrained), not its tokenizer"
        )
    if not getattr(processor, "chat_template", None):
        return Rendered(_image_marks(processor, sample) + message + "\nAnswer:", add_special_tokens=True)
    content: Any = message
    if is_processor:  # templates of bare tokenizers expect a string here
        content = [{"type": "image"} for _ in sample.images] + [{"type": "text", "text": message}]
    chat = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    # As transformers does it: a tokenizer's template writes its own special tokens, a processor's only if it
    # opens with the first one.
    bos = processor.tokenizer.bos_token if is_processor else None
    return Rendered(text, add_special_tokens=is_processor and not (bos and text.startswith(bos)))


def _option_lines(sample: Sample) -> list[str]:
    return [f"{letter}. {option}" for letter, option in zip(LETTERS, sample.options, strict=False)]


def _image_marks(processor: Any, sample: Sample) -> str:
    if not sample.images:
        return ""
    mark = getattr(processor, "image_token", None)
    if not isinstance(mark, str):
        raise SampleError(
            f"sample {sample.id!r} has images, but {type(processor).__name__} has neither a chat template nor an "
            "image_token to place them with; set processor.chat_template"
        )
    return mark * len(sample.images) + "\n"
