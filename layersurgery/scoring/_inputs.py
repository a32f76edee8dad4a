"""From samples to the tensors that a model takes: process each sample once, pad, place on the model's device."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from layersurgery.errors import SampleError, ScoringError
from layersurgery.scoring._images import load_images
from layersurgery.scoring._prompts import Picture, Prompt, message_parts, render
from layersurgery.scoring._scores import MOST, BatchSize
from layersurgery.sites._unwrap import unwrap
from layersurgery.tasks import Sample

_PICTURE = 1 << 20

# What tokenizers add for some models and others do not take. Nothing else is ever dropped silently.
_DISPENSABLE = ("attention_mask", "token_type_ids", "mm_token_type_ids")


@dataclass(frozen=True)
class Prepared:
    """One sample, processed: `tokens` holds one entry per token ([n, ...]), `media` whatever belongs to the images."""

    tokens: dict[str, torch.Tensor]
    media: dict[str, Any]
    text: str

    def __len__(self) -> int:
        return len(self.tokens["input_ids"])


def ready(model: Any, samples: Iterable[Sample]) -> tuple[nn.Module, tuple[Sample, ...]]:
    """The module behind `model` and the samples as a tuple, both fit for scoring.

    Raises:
        ScoringError: if the model is in training mode.
        SampleError: if there is no sample, or something else among them.
    """
    module = unwrap(model)
    training = next((name for name, part in module.named_modules() if part.training), None)
    if training is not None:
        where = f"its part {training!r}" if training else type(module).__name__
        raise ScoringError(f"{where} is in training mode, where dropout makes scores random; call model.eval() first")
    if isinstance(samples, Sample):
        raise SampleError("expected a sequence of samples, got a single Sample; put it in a list: [sample]")
    samples = tuple(samples)
    if not samples:
        raise SampleError("there are no samples to score; give at least one")
    for position, sample in enumerate(samples):
        if not isinstance(sample, Sample):
            raise SampleError(
                f"samples[{position}] is {sample!r:.80} of type {type(sample).__name__}; "
                "this scorer takes layersurgery.tasks.Sample objects"
            )
    return module, samples


def tokenizer_of(processor: Any) -> Any:
    """The tokenizer of a processor, or the bare tokenizer itself."""
    return getattr(processor, "tokenizer", processor)


def check_processor(processor: Any, batch_size: BatchSize) -> None:
    """What both scorers check when they are made.

    Raises:
        ScoringError: if `processor` is neither a processor nor a tokenizer, or the batch size neither 1 or more nor
            "auto".
    """
    if not callable(processor) or not hasattr(tokenizer_of(processor), "convert_ids_to_tokens"):
        raise ScoringError(
            f"processor is {processor!r:.80}; give a Hugging Face processor (AutoProcessor.from_pretrained) or, for a "
            "text model, its tokenizer"
        )
    if batch_size != "auto":
        check_count(batch_size, "batch_size", ', or "auto"')


def most_rows(batch_size: BatchSize) -> int:
    """How many rows a scorer runs in one forward pass; with "auto", whoever calls it gives as many samples as fit."""
    return MOST if batch_size == "auto" else batch_size


def check_count(value: int, name: str, other: str = "") -> None:
    """Refuse a setting that is not a whole number of at least 1; `other` says what else it could be.

    Raises:
        ScoringError: naming the setting.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ScoringError(f"{name} is {value!r}; give a whole number, 1 or more{other}")


def pad_id(tokenizer: Any) -> int:
    """The id to pad with; the mask covers it, so that for tokenizers without one the end-of-text token will do."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def forward_names(module: nn.Module) -> frozenset[str]:
    """Names of the arguments that the module's forward spells out."""
    return frozenset(inspect.signature(module.forward).parameters)


def is_encoder_decoder(module: nn.Module) -> bool:
    """Whether the prompt goes to an encoder, and the answer to a decoder."""
    return bool(getattr(getattr(module, "config", None), "is_encoder_decoder", False))


def prepare(processor: Any, sample: Sample, prompt: Prompt, *, encoder: bool) -> Prepared:
    """Render, tokenise and process one sample, images included.

    Args:
        processor: a Hugging Face processor or a bare tokenizer.
        sample: the sample.
        prompt: from the sample to the user's message.
        encoder: whether an encoder reads the prompt; if not, the answer follows the prompt directly, so that special
            tokens which a tokenizer puts at the end are taken off again.

    Raises:
        SampleError: if an image cannot be read or shown.
        ScoringError: if the processor refuses the sample.
    """
    rendered = render(processor, sample, prompt)
    images = load_images(sample) if rendered.pictures else []
    arguments: dict[str, Any] = {"images": [[images[index] for index in rendered.pictures]]} if images else {}
    try:
        with unchanged(tokenizer_of(processor)):
            encoded = processor(
                text=[rendered.text],
                padding=False,
                add_special_tokens=rendered.add_special_tokens,
                return_tensors="pt",
                **arguments,
            )
    except ValueError as error:
        raise ScoringError(f"{type(processor).__name__} refused sample {sample.id!r}: {error}") from error
    tokens, media = _split(dict(encoded))
    if not encoder:
        closing = _closing_specials(tokenizer_of(processor), tokens["input_ids"].tolist(), rendered.text)
        tokens = {key: value[: len(value) - closing] for key, value in tokens.items()}
    if not len(tokens["input_ids"]):
        raise SampleError(f"sample {sample.id!r} has an empty prompt; give it a question")
    return Prepared(tokens, media, rendered.text)


def collate(items: Sequence[Prepared], *, side: str, fill: int, extra: Sequence[Sequence[int]] = ()) -> dict[str, Any]:
    """One batch of prepared samples that show the same number of pictures.

    Args:
        items: prepared samples; one may occur several times.
        side: "right" or "left", where the padding goes.
        fill: token id of the padding.
        extra: token ids that continue each item's prompt; none by default.

    Returns:
        The model's inputs, on the host: [rows, longest] for what goes by tokens, images concatenated.
    """
    extra = extra or [()] * len(items)
    width = max(len(item) + len(more) for item, more in zip(items, extra, strict=True))
    batch: dict[str, Any] = {}
    for key, first in items[0].tokens.items():
        padding = fill if key == "input_ids" else 0
        rows = torch.full((len(items), width, *first.shape[1:]), padding, dtype=first.dtype)
        for row, item, more in zip(rows, items, extra, strict=True):
            values = item.tokens[key]
            if len(more):  # what is said of the prompt's last token (seen, text, ...) holds for its continuation
                added = torch.tensor(more) if key == "input_ids" else values[-1:].expand(len(more), *values.shape[1:])
                values = torch.cat([values, added.to(values.dtype)])
            row[slice(width - len(values), None) if side == "left" else slice(len(values))] = values
        batch[key] = rows
    for key in items[0].media:
        batch[key] = _join([item.media[key] for item in items])
    return batch


def place(inputs: dict[str, Any], module: nn.Module) -> dict[str, Any]:
    """The inputs on the module's device, floating ones in its dtype, without what its forward does not take.

    Raises:
        ScoringError: if there are images for a model that takes none.
    """
    names = forward_names(module)
    if "pixel_values" in inputs and "input_ids" in names and "pixel_values" not in names:
        raise ScoringError(
            f"the samples have images, but {type(module).__name__} takes none; "
            "load the model with AutoModelForImageTextToText"
        )
    device, dtype = _device(module), _dtype(module)

    def move(value: Any) -> Any:
        if isinstance(value, list):
            return [move(entry) for entry in value]
        if not isinstance(value, torch.Tensor):
            return value
        return value.to(device, dtype) if value.is_floating_point() else value.to(device)

    spelled_out = "input_ids" in names  # wrappers that only pass things on are trusted to take everything
    return {
        key: move(value)
        for key, value in inputs.items()
        if not (spelled_out and key in _DISPENSABLE and key not in names)
    }


def rough_length(sample: Sample) -> int:
    """How long a sample's input is beside others': in characters, where each picture weighs more than any text.

    Examples:
        >>> rough_length(Sample("q1", "Which?", ("red", "blue"), 1))
        13
    """
    texts = (sample.question, sample.hint, *sample.options)
    own = sum(map(len, texts)) + _PICTURE * len(sample.images)
    return max([own, *map(rough_length, sample.variants)])


def by_picture_count(samples: Sequence[Sample], prompt: Prompt) -> list[list[int]]:
    """Positions of the samples, in groups that show the same number of pictures: processors take no mixture."""
    groups: dict[int, list[int]] = {}
    for position, sample in enumerate(samples):
        shown = sum(isinstance(part, Picture) for part in message_parts(sample, prompt))
        groups.setdefault(shown, []).append(position)
    return [groups[count] for count in sorted(groups)]


@contextmanager
def unchanged(tokenizer: Any) -> Iterator[None]:
    """Put back the padding and truncation of a fast tokenizer, which transformers switches off at every call."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        yield
        return
    padding, truncation, split = backend.padding, backend.truncation, backend.encode_special_tokens
    try:
        yield
    finally:
        backend.no_padding() if padding is None else backend.enable_padding(**padding)
        backend.no_truncation() if truncation is None else backend.enable_truncation(**truncation)
        backend.encode_special_tokens = split


def _split(encoded: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    length = encoded["input_ids"].shape[1]
    tokens: dict[str, torch.Tensor] = {"attention_mask": torch.ones(length, dtype=torch.long)}
    media: dict[str, Any] = {}
    for key, value in encoded.items():
        by_token = isinstance(value, torch.Tensor) and value.shape[:2] == (1, length)
        if by_token and not key.startswith(("pixel", "image")):
            tokens[key] = value[0]
        elif value is not None:
            media[key] = value
    return tokens, media


def _closing_specials(tokenizer: Any, ids: list[int], text: str) -> int:
    special, count = set(tokenizer.all_special_ids), 0
    while count < len(ids) and ids[-1 - count] in special:
        token = tokenizer.convert_ids_to_tokens(ids[-1 - count])
        if text.rstrip().endswith(token):
            break
        count += 1
    return count


def _join(values: list[Any]) -> Any:
    if not all(isinstance(value, torch.Tensor) for value in values):
        return [entry for value in values for entry in value]
    # Different numbers of tiles, or tiles of different sizes, are filled up with zeros at the end, as processors do.
    shape = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
    padded = []
    for value in values:
        room = [pad for have, want in zip(value.shape[:0:-1], shape[::-1], strict=True) for pad in (0, want - have)]
        padded.append(nn.functional.pad(value, room) if any(room) else value)
    return torch.cat(padded)


def _device(module: nn.Module) -> torch.device:
    # Where the inputs enter; weights that are offloaded (on "meta") say nothing about it.
    for parameter in module.parameters():
        if parameter.device.type != "meta":
            return parameter.device
    return torch.device("cpu")


def _dtype(module: nn.Module) -> torch.dtype:
    declared = getattr(module, "dtype", None)  # quantised weights are not floating; transformers knows
    if isinstance(declared, torch.dtype) and declared.is_floating_point:
        return declared
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.get_default_dtype())
