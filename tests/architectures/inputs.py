"""Arguments of one forward of a model of the bench: text where it runs on text alone, else what it needs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from tests.architectures.build import class_of, config_of
from tests.architectures.shrink import IMAGE, VOCABULARY
from tests.architectures.sizes import USUAL, Sizes

Arguments = dict[str, Any]


def inputs(name: str, size: Sizes = USUAL) -> Arguments:
    """Arguments of one forward of the model of this name, always the same; two samples."""
    config, made_for = config_of(name, size), class_of(name)
    accepted = inspect.signature(made_for.forward).parameters
    draw = torch.Generator().manual_seed(0)
    given: Arguments = {}
    if "input_ids" in accepted:
        given["input_ids"] = _tokens(draw)
        if "decoder_input_ids" in accepted:
            given["decoder_input_ids"] = _tokens(draw)
    if name in _NEEDS:
        return {**given, **_NEEDS[name](config, draw)}
    return given or _BY_MAIN_INPUT[made_for.main_input_name](config, draw)


def _tokens(draw: torch.Generator, length: int = 6) -> torch.Tensor:
    """Two texts without special tokens, which `shrink` has put below 64."""
    return torch.randint(64, VOCABULARY, (2, length), generator=draw)


def _pictures(config: Any, draw: torch.Generator) -> Arguments:
    vision = getattr(config, "vision_config", None) or getattr(config, "encoder", config)
    size = getattr(vision, "image_size", IMAGE)
    height, width = (size, size) if isinstance(size, int) else size
    return {"pixel_values": torch.randn(2, 3, height, width, generator=draw)}


def _sound(config: Any, draw: torch.Generator) -> Arguments:
    return {"input_values": torch.randn(2, 2000, generator=draw)}


_BY_MAIN_INPUT: dict[str, Callable[[Any, torch.Generator], Arguments]] = {
    "pixel_values": _pictures,
    "input_values": _sound,
}


def _read_off_pictures(config: Any, draw: torch.Generator) -> Arguments:
    return {**_pictures(config, draw), "decoder_input_ids": _tokens(draw)}


def _blip2(config: Any, draw: torch.Generator) -> Arguments:
    return {
        **_pictures(config, draw),
        "input_ids": _with_places(config.image_token_index, config.num_query_tokens, draw),
    }


def _instructblip(config: Any, draw: torch.Generator) -> Arguments:
    return {**_blip2(config, draw), "qformer_input_ids": _tokens(draw)}


def _instructblipvideo(config: Any, draw: torch.Generator) -> Arguments:
    frames = _pictures(config, draw)["pixel_values"].unsqueeze(1).repeat(1, 4, 1, 1, 1)
    text = _with_places(config.video_token_index, 4 * config.num_query_tokens, draw)
    return {"pixel_values": frames, "input_ids": text, "qformer_input_ids": _tokens(draw)}


def _with_places(token: int, places: int, draw: torch.Generator) -> torch.Tensor:
    """Texts that begin with placeholders for an image."""
    return torch.cat([torch.full((2, places), token), _tokens(draw)], dim=1)


def _idefics(config: Any, draw: torch.Generator) -> Arguments:
    seen = torch.randn(2, 1, 5, config.vision_config.embed_dim, generator=draw)
    return {"image_encoder_embeddings": seen, "image_attention_mask": torch.ones(2, 6, 1, dtype=torch.long)}


def _kosmos2(config: Any, draw: torch.Generator) -> Arguments:
    text = _with_places(3, config.latent_query_num, draw)
    places = (text == 3).long()
    return {**_pictures(config, draw), "input_ids": text, "image_embeds_position_mask": places}


def _pi0(config: Any, draw: torch.Generator) -> Arguments:
    vision = config.vlm_config.vision_config
    text = _with_places(config.vlm_config.image_token_id, (vision.image_size // vision.patch_size) ** 2, draw)
    return {
        "input_ids": text,
        "attention_mask": torch.ones_like(text),
        "pixel_values": _pictures(config.vlm_config, draw)["pixel_values"].unsqueeze(1),
        "pixel_attention_mask": torch.ones(2, 1, dtype=torch.bool),
        "state": torch.randn(2, config.max_state_dim, generator=draw),
        "noise": torch.randn(2, config.chunk_size, config.max_action_dim, generator=draw),
        "timestep": torch.tensor([0.3, 0.7]),
    }


def _pix2struct(config: Any, draw: torch.Generator) -> Arguments:
    places = torch.arange(1, 9).view(1, 8, 1).expand(2, 8, 2)  # row and column of each patch stand before its pixels
    pixels = torch.randn(2, 8, config.vision_config.patch_embed_hidden_size, generator=draw)
    return {"flattened_patches": torch.cat([places, pixels], dim=2), "decoder_input_ids": _tokens(draw)}


def _codebooks(config: Any, draw: torch.Generator) -> Arguments:
    return {"input_ids": _tokens(draw).repeat_interleave(config.num_codebooks, dim=0)}


def _speech(config: Any, draw: torch.Generator) -> Arguments:
    sound = torch.randn(2, config.num_mel_bins, 2 * config.max_source_positions, generator=draw)
    return {"input_features": sound, "decoder_input_ids": _tokens(draw)}


_NEEDS: dict[str, Callable[[Any, torch.Generator], Arguments]] = {
    "vlm/blip": _pictures,
    "vlm/blip-2": _blip2,
    "vlm/idefics": _idefics,
    "vlm/instructblip": _instructblip,
    "vlm/instructblipvideo": _instructblipvideo,
    "vlm/kosmos-2": _kosmos2,
    "vlm/pi0": _pi0,
    "vlm/pix2struct": _pix2struct,
    "vlm/pp_formulanet": _read_off_pictures,
    "vlm/udop": lambda config, draw: {"bbox": torch.zeros(2, 6, 4)},
    "vlm/vision-encoder-decoder": _read_off_pictures,
    "causal/blt": lambda config, draw: {"use_cache": False},  # its config does not say how many layers a cache has
    "causal/musicgen": _codebooks,
    "causal/musicgen_melody": _codebooks,
    "causal/xmod": lambda config, draw: {"lang_ids": torch.zeros(2, dtype=torch.long)},
    "other/clip": _pictures,
    "other/siglip": _pictures,
    "other/whisper": _speech,
}
