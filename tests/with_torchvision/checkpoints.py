"""Tiny checkpoints with random weights, in folders like those of a model hub: real classes, real processors.

Each has a byte-level BPE tokenizer that is trained on the spot, with the special tokens of its family, and a chat
template that writes what the family's own one writes.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

FAMILIES = ("llava_next", "qwen2_vl", "internvl")
LAYERS = 3
"""Of the language backbone, in each of them."""

_TEXTS = [
    "What is shown in the picture? Answer with the option's letter from the given choices directly.",
    "Which of the two pictures shows a flower, and which one a building with a roof?",
    "A. a temple\nB. a flower\nC. a river\nD. the sky\nE. nothing of the kind\nAnswer: A B C D E",
    "You are a helpful assistant. system user assistant",
    "Answer the question using a single word or phrase. How many are there? 0 1 2 3 4 5 6 7 8 9",
]
_TEXT_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}


def build(family: str, folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny checkpoint of "llava_next", "qwen2_vl" or "internvl" into `folder`, and return the folder."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, processor = {"llava_next": _llava_next, "qwen2_vl": _qwen2_vl, "internvl": _internvl}[family]()
        with torch.no_grad():
            for parameter in model.parameters():  # far enough from zero that pictures and words differ visibly
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _llava_next() -> tuple[Any, Any]:
    """Llama-3 behind CLIP: an overview and up to four tiles per picture, by the grid that fits its shape."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
    )

    tokenizer = llama3_tokenizer()
    grid = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**vision, image_size=28, patch_size=14, projection_dim=32),
        text_config=LlamaConfig(**_TEXT_SIZES, **_special(tokenizer, bos=True)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    images = LlavaNextImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=grid
    )
    processor = LlavaNextProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token of CLIP, which "default" leaves out again
        image_token="<image>",
        chat_template=_LLAMA3,
    )
    return LlavaNextForConditionalGeneration(config), processor


def _qwen2_vl() -> tuple[Any, Any]:
    """Pictures of any size, cut into patches; four of them make a token."""
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = qwen2_tokenizer(
        ["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
    )
    ids = tokenizer.convert_tokens_to_ids
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}
    config = Qwen2VLConfig(
        text_config={**_TEXT_SIZES, **_special(tokenizer), "rope_parameters": rope},
        vision_config={**vision, "patch_size": 14, "mlp_ratio": 2},
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=4 * 28 * 28, max_pixels=9 * 28 * 28),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=_QWEN2_VL,
    )
    return Qwen2VLForConditionalGeneration(config), processor


def _internvl() -> tuple[Any, Any]:
    """Pictures cut into square tiles, four tokens each, and a small version of the whole."""
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
        InternVLVisionConfig,
        Qwen2Config,
    )

    tokenizer = qwen2_tokenizer(
        ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"],
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(**vision, image_size=[56, 56], patch_size=[14, 14]),
        text_config=Qwen2Config(**_TEXT_SIZES, **_special(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size={"height": 56, "width": 56}, max_patches=4),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(),
        image_seq_length=4,
        chat_template=_INTERNVL,
    )
    return InternVLForConditionalGeneration(config), processor


def llama3_tokenizer() -> Any:
    """In the manner of Llama 3: it puts "<|begin_of_text|>" in front of a text; a turn ends in "<|eot_id|>"."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    headers = ["<|start_header_id|>", "<|end_header_id|>"]
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<pad>", "<image>", *headers]
    backend = _byte_level(tuple(special))
    begin = "<|begin_of_text|>"
    backend.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, backend.token_to_id(begin))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=begin,
        eos_token="<|eot_id|>",
        pad_token="<pad>",
        extra_special_tokens=[*headers, "<image>"],
        model_input_names=["input_ids", "attention_mask"],
    )


def qwen2_tokenizer(more: list[str], **named: str) -> Any:
    """The tokenizer class of Qwen2: ChatML, no token in front. `named` are special tokens that get an attribute."""
    import json

    from transformers import Qwen2Tokenizer

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *more]
    learned = json.loads(_byte_level(tuple(special)).to_str())["model"]
    return Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(merge) for merge in learned["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=special[1:],
        model_specific_special_tokens=named,
    )


def _byte_level(special: tuple[str, ...]) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(_trained(special))


@functools.cache
def _trained(special: tuple[str, ...]) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_TEXTS, trainer)
    return backend.to_str()


def _special(tokenizer: Any, *, bos: bool = False) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id if bos else None,
    }


# What each family's template writes for one turn with pictures; the templates themselves are written for these tests.
_LLAMA3 = (
    "{%- for message in messages -%}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}"
    "{%- if message.content is string -%}{{ message.content }}{%- else -%}"
    "{%- for part in message.content if part.type == 'image' -%}{{ '<image>\n' }}{%- endfor -%}"
    "{%- for part in message.content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}"
    "{%- endif -%}{{ '<|eot_id|>' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif -%}"
)


def _chatml(image: str, before: str = "") -> str:
    return (
        f"{{%- for message in messages -%}}{before}"
        "{{ '<|im_start|>' + message.role + '\n' }}"
        "{%- if message.content is string -%}{{ message.content }}{%- else -%}"
        "{%- for part in message.content -%}"
        f"{{%- if part.type == 'image' -%}}{{{{ '{image}' }}}}{{%- elif part.type == 'text' -%}}{{{{ part.text }}}}"
        "{%- endif -%}{%- endfor -%}{%- endif -%}"
        "{{ '<|im_end|>\n' }}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
    )


_QWEN2_VL = _chatml(
    "<|vision_start|><|image_pad|><|vision_end|>",
    before="{%- if loop.first and message.role != 'system' -%}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{%- endif -%}",
)
_INTERNVL = _chatml("<IMG_CONTEXT>\n")
