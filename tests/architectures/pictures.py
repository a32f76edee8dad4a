"""A forward with a picture, for the image-text-to-text models whose way of taking one is common enough to be tried."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from tests.architectures.inputs import Arguments, inputs
from tests.architectures.shrink import IMAGE, PATCH, VOCABULARY


def with_picture(name: str, model: nn.Module) -> Arguments | None:
    """Arguments of one forward with one picture and a text, always the same; None where no common form fits.

    The model itself says how many places in the text a picture takes: as many as `get_image_features` gives features.
    """
    usual = inputs(name)
    if "pixel_values" in usual:
        return usual
    if name == "vlm/mllama":
        return {**usual, **_mllama(model.config)}
    features = getattr(model, "get_image_features", None) or getattr(
        getattr(model, "model", None), "get_image_features", None
    )
    if features is None:
        return None
    for form in _FORMS:
        try:
            with torch.no_grad():
                picture = form(getattr(model.config, "vision_config", None))
                given = {**_text(model, _count(features(**picture))), **picture}
                model(**given)
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError, StopIteration):
            continue  # not in this form
        return given
    return None


def _text(model: Any, places: int) -> Arguments:
    token = getattr(model.config, "image_token_id", None) or model.config.image_token_index
    words = torch.randint(64, VOCABULARY, (1, 6), generator=torch.Generator().manual_seed(1))
    text = torch.cat([torch.full((1, places), token), words], dim=1)
    accepted = inspect.signature(model.forward).parameters
    given: Arguments = {"input_ids": text}
    if "mm_token_type_ids" in accepted:
        given["mm_token_type_ids"] = (text == token).long()
    if "decoder_input_ids" in accepted:
        given["decoder_input_ids"] = words
    return given


def _count(features: Any) -> int:
    return sum(part.reshape(-1, part.shape[-1]).shape[0] for part in _tensors(features))


def _tensors(features: Any) -> Iterator[torch.Tensor]:
    if isinstance(features, torch.Tensor):
        yield features
        return
    pooled = getattr(features, "pooler_output", None)
    for part in (
        features if isinstance(features, list | tuple) else [features.last_hidden_state if pooled is None else pooled]
    ):
        yield from _tensors(part)


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _size(vision: Any) -> int:
    size = getattr(vision, "image_size", IMAGE)
    return size if isinstance(size, int) else size[0]


def _whole(vision: Any) -> Arguments:
    return {"pixel_values": _random(1, 3, _size(vision), _size(vision))}


def _whole_of_size(vision: Any) -> Arguments:
    return {**_whole(vision), "image_sizes": torch.tensor([[_size(vision), _size(vision)]])}


def _tiles(vision: Any) -> Arguments:
    """A picture twice as wide as high: an overview and two tiles."""
    size = _size(vision)
    return {"pixel_values": _random(1, 3, 3, size, size), "image_sizes": torch.tensor([[size, 2 * size]])}


def _several(vision: Any) -> Arguments:
    return {"pixel_values": _random(1, 2, 3, _size(vision), _size(vision))}


def _patches(vision: Any) -> Arguments:
    """A picture of 4 x 4 patches, each flattened."""
    patch, times = (getattr(vision, name, 1) for name in ("patch_size", "temporal_patch_size"))
    patch, times = (value if isinstance(value, int) else value[0] for value in (patch or PATCH, times))
    return {"pixel_values": _random(16, 3 * times * patch * patch), "image_grid_thw": torch.tensor([[1, 4, 4]])}


_FORMS: tuple[Callable[[Any], Arguments], ...] = (_whole, _patches, _tiles, _whole_of_size, _several)


def _mllama(config: Any) -> Arguments:
    """Its layers of cross-attention run only with a picture: one tile of four."""
    tiles, size = config.vision_config.max_num_tiles, _size(config.vision_config)
    shown = torch.zeros(2, 1, tiles, dtype=torch.long)
    shown[..., 0] = 1
    return {
        "pixel_values": _random(2, 1, tiles, 3, size, size),
        "aspect_ratio_ids": torch.ones(2, 1, dtype=torch.long),
        "aspect_ratio_mask": shown,
        "cross_attention_mask": shown.unsqueeze(1).expand(2, 6, 1, tiles),
    }
