"""Tiny random-weight instances of every class in two mappings of transformers, and of some others.

A name is `<mapping>/<model type>`: "vlm/llava", "causal/gpt2", "other/bert". Every model is built by shrinking the
sizes of its default config (`shrink`), so that nothing here knows what a model looks like.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from tests.architectures.exceptions import NOT_BUILT
from tests.architectures.shrink import shrink
from tests.architectures.sizes import USUAL, Sizes

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
    further: dict[str, list[str]] = {}
    for kind, name in _mapping("CAUSAL_LM").items():
        if name not in found.values():
            further.setdefault(name, []).append(kind)
    found |= {f"causal/{_own_kind(kinds, name)}": name for name, kinds in further.items()}
    found |= {f"other/{kind}": name for kind, name in OTHERS.items()}
    return {name: made for name, made in found.items() if name not in NOT_BUILT}


def build(name: str, seed: int = 0, size: Sizes = USUAL) -> nn.Module:
    """The model of this name with random weights on the CPU, in evaluation mode; the same for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = class_of(name)(config_of(name, size)).eval()
        for parameter in model.parameters():
            # zeros hide mistakes (a bias of zero is zeroed without being touched), and so does SAM's start at 1e-10
            if parameter.abs().max() < 1e-6:
                nn.init.normal_(parameter, std=0.02)
    return model


def build_meta(name: str) -> nn.Module:
    """The model of this name without weights."""
    with torch.device("meta"):
        return class_of(name)(config_of(name)).eval()


def class_of(name: str) -> Any:
    """The class that a name stands for."""
    import transformers

    return getattr(transformers, names()[name])


def config_of(name: str, size: Sizes = USUAL) -> Any:
    """The tiny config that this model is built from."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    own, fits = CONFIG_MAPPING[name.split("/", 1)[1]], class_of(name).config_class
    config = shrink((own if issubclass(own, fits) else fits)(), size)  # Emu3ForCausalLM takes the text part of "emu3"
    if name.startswith("causal/") and not config.is_encoder_decoder:
        config.is_decoder = True  # BERT and its like would look ahead
    return config


def _mapping(task: str) -> dict[str, str]:
    from transformers.models.auto import modeling_auto

    return dict(getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES"))


def _own_kind(kinds: list[str], name: str) -> str:
    """Of the model types that share a class, the one that the class was written for ("llama", not "internlm3")."""
    import transformers

    if len(kinds) == 1:  # importing hundreds of modules takes a while
        return kinds[0]
    own = getattr(transformers, name).config_class.model_type
    return own if own in kinds else kinds[0]
