"""Tiny random-weight instances of every class in two mappings of transformers, and of some others.

A name is `<mapping>/<model type>`: "vlm/llava", "causal/gpt2", "other/bert". Every model is built by shrinking the sizes
of its default config (`shrink`), so that nothing here knows what a model looks like.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn

from tests.architectures.exceptions import NEEDS, NOT_BUILT
from tests.architectures.shrink import IMAGE, VOCABULARY, shrink

# Encoders, encoder-decoders, vision and audio models besides the two mappings: model type -> class
OTHERS = {
    "albert": "AlbertForMaskedLM",
    "bart": "BartForConditionalGeneration",
    "bert": "BertForMaskedLM",
    "clip": "CLIPModel",
    "convnext": "ConvNextForImageClassification",
    "deberta-v2": "DebertaV2ForMaskedLM",
    "dinov2": "Dinov2ForImageClassification",
    "distilbert": "DistilBertForMaskedLM",
    "electra": "ElectraForMaskedLM",
    "hubert": "HubertForCTC",
    "pegasus": "PegasusForConditionalGeneration",
    "resnet": "ResNetForImageClassification",
    "roberta": "RobertaForMaskedLM",
    "siglip": "SiglipModel",
    "swin": "SwinForImageClassification",
    "t5": "T5ForConditionalGeneration",
    "vit": "ViTForImageClassification",
    "wav2vec2": "Wav2Vec2ForCTC",
    "whisper": "WhisperForConditionalGeneration",
    "xlm-roberta": "XLMRobertaForMaskedLM",
}


@cache
def names() -> dict[str, str]:
    """Every name that can be built, with the class that it stands for."""
    found = {f"vlm/{kind}": name for kind, name in _mapping("IMAGE_TEXT_TO_TEXT").items()}
    classes = set(found.values())
    for kind, name in _mapping("CAUSAL_LM").items():
        if name not in classes:
            classes.add(name)
            found[f"causal/{kind}"] = name
    found |= {f"other/{kind}": name for kind, name in OTHERS.items()}
    return {name: made for name, made in found.items() if name not in NOT_BUILT}


def build(name: str, seed: int = 0) -> nn.Module:
    """The model of this name with random weights on the CPU, in evaluation mode; the same for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _class(name)(_config(name)).eval()
        for parameter in model.parameters():
            if not parameter.any():  # zeros hide mistakes: a bias of zero is zeroed without being touched
                nn.init.normal_(parameter, std=0.02)
    return model


def build_meta(name: str) -> nn.Module:
    """The model of this name without weights."""
    with torch.device("meta"):
        return _class(name)(_config(name)).eval()


def inputs(name: str) -> dict[str, Any]:
    """Arguments of one forward of this model, always the same: text where it can run on text alone, else what it needs."""
    config, accepted = _config(name), inspect.signature(_class(name).forward).parameters
    draw = torch.Generator().manual_seed(0)
    given: dict[str, Any] = {}
    if "input_ids" in accepted:
        given["input_ids"] = _tokens(draw)
        if config.is_encoder_decoder:
            given["decoder_input_ids"] = _tokens(draw)
    for needed in NEEDS.get(name, () if given else (_class(name).main_input_name,)):
        given[needed] = _TENSORS[needed](config, draw)
    return {argument: value for argument, value in given.items() if value is not None}


def _tokens(draw: torch.Generator) -> torch.Tensor:
    """Two texts without special tokens, which `shrink` has put below 64."""
    return torch.randint(64, VOCABULARY, (2, 6), generator=draw)


def _pictures(config: Any, draw: torch.Generator) -> torch.Tensor:
    vision = getattr(config, "vision_config", None) or getattr(config, "encoder", config)
    size = getattr(vision, "image_size", IMAGE)
    return torch.randn(2, 3, *((size, size) if isinstance(size, int) else size), generator=draw)


_TENSORS: dict[str, Callable[[Any, torch.Generator], torch.Tensor | None]] = {
    "pixel_values": _pictures,
    "input_values": lambda config, draw: torch.randn(2, 2000, generator=draw),
    "input_features": lambda config, draw: torch.randn(
        2, config.num_mel_bins, 2 * config.max_source_positions, generator=draw
    ),
    "flattened_patches": lambda config, draw: torch.randn(2, 8, 2 + 3 * 16 * 16, generator=draw),
    "decoder_input_ids": lambda config, draw: _tokens(draw),
    "bbox": lambda config, draw: torch.zeros(2, 6, 4),
    "lang_ids": lambda config, draw: torch.zeros(2, dtype=torch.long),
    "input_ids": lambda config, draw: None,  # leaves out what the class accepts and cannot use
    "by_codebook": lambda config, draw: None,
}


def _mapping(task: str) -> dict[str, str]:
    from transformers.models.auto import modeling_auto

    return dict(getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES"))


def _class(name: str) -> Any:
    import transformers

    return getattr(transformers, names()[name])


def _config(name: str) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    own, fits = CONFIG_MAPPING[name.split("/", 1)[1]], _class(name).config_class
    return shrink((own if issubclass(own, fits) else fits)())  # Emu3ForCausalLM takes the text part of "emu3" only
