"""From a sample to the text that the model reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from layersurgery.errors import SampleError, ScoringError
from layersurgery.tasks import Sample


@dataclass(frozen=True)
class Picture:
    """Where in a message one of the sample's images stands.

    Args:
        index: which one, counted from 0.
    """

    index: int


Message: TypeAlias = str | Sequence[str | Picture]
"""What the user says: a text with all of the sample's images before it, or texts and pictures in their order."""

Prompt: TypeAlias = Callable[[Sample], Message]


@dataclass(frozen=True)
class Rendered:
    """A prompt as the processor takes it.

    Args:
        text: with a mark for each image.
        pictures: which of the sample's images are shown, in order; one may be shown several times.
        add_special_tokens: whether the tokenizer is still to add its own.
    """

    text: str
    pictures: tuple[int, ...]
    add_special_tokens: bool


def message_parts(sample: Sample, prompt: Prompt) -> tuple[str | Picture, ...]:
    """The message as texts and pictures in their order.

    Args:
        sample: the sample.
        prompt: from the sample to the message.

    Raises:
        ScoringError: if `prompt` returns something else, or shows a picture that the sample does not have.
    """
    message = prompt(sample)
    if isinstance(message, str):
        return (*(Picture(index) for index in range(len(sample.images))), message)
    parts = tuple(message) if isinstance(message, Sequence) else (message,)
    for part in parts:
        if not isinstance(part, (str, Picture)):
            raise ScoringError(
                f"prompt returned {part!r:.80} for sample {sample.id!r}; it must return a text, or a sequence of texts "
                "and of layersurgery.scoring.Picture"
            )
        if isinstance(part, Picture) and not 0 <= part.index < len(sample.images):
            raise ScoringError(
                f"prompt shows picture {part.index} of sample {sample.id!r}, which has {len(sample.images)}; they are "
                "counted from 0"
            )
    return parts


def render(processor: Any, sample: Sample, prompt: Prompt) -> Rendered:
    """The sample's prompt inside the processor's (or tokenizer's) chat template, or as plain text without one.

    Args:
        processor: a Hugging Face processor or a bare tokenizer.
        sample: the sample.
        prompt: from the sample to the user's message.

    Raises:
        ScoringError: if `prompt` does not return a message.
        SampleError: if there is no way to show the sample's images to this processor.
    """
    parts = message_parts(sample, prompt)
    pictures = tuple(part.index for part in parts if isinstance(part, Picture))
    is_processor = hasattr(processor, "tokenizer")
    if pictures and not hasattr(processor, "image_processor"):
        raise SampleError(
            f"sample {sample.id!r} has {len(sample.images)} image(s), but {type(processor).__name__} takes text only; "
            "give the scorer the model's processor (AutoProcessor.from_pretrained), not its tokenizer"
        )
    if not getattr(processor, "chat_template", None):
        return Rendered(_marked(processor, sample, parts) + "\nAnswer:", pictures, add_special_tokens=True)
    content: Any = "".join(part for part in parts if isinstance(part, str))
    if is_processor:  # templates of bare tokenizers expect a string here
        content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts]
    chat = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    # As transformers does it: a tokenizer's template writes its own special tokens, a processor's only if it
    # opens with the first one.
    bos = processor.tokenizer.bos_token if is_processor else None
    return Rendered(text, pictures, add_special_tokens=is_processor and not (bos and text.startswith(bos)))


def _marked(processor: Any, sample: Sample, parts: Sequence[str | Picture]) -> str:
    mark = getattr(processor, "image_token", None)
    if not isinstance(mark, str) and any(isinstance(part, Picture) for part in parts):
        raise SampleError(
            f"sample {sample.id!r} has images, but {type(processor).__name__} has neither a chat template nor an "
            "image_token to place them with; set processor.chat_template"
        )
    leading = next((position for position, part in enumerate(parts) if isinstance(part, str)), len(parts))
    texts = [part if isinstance(part, str) else str(mark) for part in parts]
    opening = "".join(texts[:leading])
    return (f"{opening}\n" if opening else "") + "".join(texts[leading:])
