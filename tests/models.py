"""Tiny random-weight models of real transformers classes, and plain torch modules: the zoo that the tests run on."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import nn

VOCABULARY = 64
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


def llama(**changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**{**TEXT, **changes}))


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=64,
        n_embd=32,
        n_layer=3,
        n_head=4,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return GPT2LMHeadModel(config)


def bert():
    from transformers import BertConfig, BertForMaskedLM

    sizes = {k: v for k, v in TEXT.items() if k not in ("num_key_value_heads", "bos_token_id", "eos_token_id")}
    return BertForMaskedLM(BertConfig(**sizes))


def vit():
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(**VISION))


def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_decoder_layers=3,
        num_heads=4,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=2,
    )
    return T5ForConditionalGeneration(config)


def llava():
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION, projection_dim=16),
        text_config=LlamaConfig(**TEXT, tie_word_embeddings=True),
        image_token_index=5,
        vision_feature_layer=-1,
        image_seq_length=4,
    )
    return LlavaForConditionalGeneration(config)


def llava_next():
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**VISION, projection_dim=16),
        text_config=LlamaConfig(**TEXT),
        image_token_index=5,
        vision_feature_layer=-1,
        image_grid_pinpoints=[[16, 32], [32, 16]],
    )
    return LlavaNextForConditionalGeneration(config)


def qwen2_vl():
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2}
    config = Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": rope},
        vision_config=vision,
        image_token_id=5,
        video_token_id=6,
        vision_start_token_id=7,
        vision_end_token_id=8,
    )
    return Qwen2VLForConditionalGeneration(config)


def internvl():
    from transformers import (
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLVisionConfig,
        Qwen2Config,
    )

    config = InternVLConfig(
        vision_config=InternVLVisionConfig(**{**VISION, "image_size": [16, 16], "patch_size": [8, 8]}),
        text_config=Qwen2Config(**TEXT),
        image_token_id=5,
        image_seq_length=1,
    )
    return InternVLForConditionalGeneration(config)


class PlainTransformer(nn.Module):
    """What a user of torch.nn alone writes."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(32, VOCABULARY)

    def forward(self, tokens):
        return self.head(self.encoder(self.embed(tokens)))


class PlainCNN(nn.Module):
    """No attention, no layers: only patterns and types find something here."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 8, 3, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Linear(8, 10)

    def forward(self, images):
        return self.head(self.features(images).mean((2, 3)))


def tokens(batch=2, length=6):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(10, VOCABULARY, (batch, length), generator=generator)


def _pictures():
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def _image_prompt():
    return torch.cat([torch.full((2, 4), 5), tokens()], dim=1)


# name -> (builder, inputs of one forward)
ZOO: dict[str, tuple[Callable[[], nn.Module], Callable[[], dict]]] = {
    "llama": (llama, lambda: {"input_ids": tokens()}),
    "gpt2": (gpt2, lambda: {"input_ids": tokens()}),
    "bert": (bert, lambda: {"input_ids": tokens()}),
    "vit": (vit, lambda: {"pixel_values": _pictures()}),
    "t5": (t5, lambda: {"input_ids": tokens(), "decoder_input_ids": tokens()}),
    "llava": (llava, lambda: {"input_ids": _image_prompt(), "pixel_values": _pictures()}),
    "llava_next": (llava_next, lambda: {"input_ids": tokens()}),
    "qwen2_vl": (qwen2_vl, lambda: {"input_ids": tokens()}),
    "internvl": (internvl, lambda: {"input_ids": tokens()}),
    "plain_transformer": (PlainTransformer, lambda: {"tokens": tokens()}),
    "plain_cnn": (
        PlainCNN,
        lambda: {"images": torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))},
    ),
}


@functools.cache
def built(name: str) -> nn.Module:
    """A model of the zoo, built once per test run, with weights that do not depend on what was built before."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ZOO[name][0]().eval()
        for buffer_or_parameter in model.parameters():  # no accidental zeros: biases matter to an intervention
            if not buffer_or_parameter.any():
                nn.init.normal_(buffer_or_parameter, std=0.02)
    run(model, name)  # transformers installs hooks of its own at some models' first forward
    return model


def fresh(name: str) -> nn.Module:
    """The same, but a model of one's own: nnsight, for one, leaves forwards of its own on those that are shared."""
    return built.__wrapped__(name)


def inputs(name: str) -> dict:
    return ZOO[name][1]()


@torch.no_grad()
def run(model: nn.Module, name: str) -> torch.Tensor:
    output = model(**inputs(name))
    return output if isinstance(output, torch.Tensor) else output.logits
