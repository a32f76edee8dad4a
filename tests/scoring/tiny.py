"""Tiny random-weight models with tokenizers and processors made for them: nothing is downloaded."""

from __future__ import annotations

import functools

import numpy as np
import torch
from PIL import Image

from layersurgery.tasks import Sample

COLOURS = ("red", "dark blue", "light green", "pink and white", "grey", "yellow", "brown")
CHAT = (
    "{% for message in messages %}{{ '<user>' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
TEXT_CHAT = (
    "{% for message in messages %}{{ '<user>' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
_SPECIAL = ["<pad>", "<s>", "</s>", "<user>", "<assistant>", "<image>", "<video>"]
_TEXT = [
    "What is the colour of the thing in the picture ? Answer with the option's letter from the given choices directly.",
    "A. red\nB. dark blue\nC. light green\nD. pink and white\nE. grey\nF. yellow\nG. brown\nAssistant:",
    " ".join(f"Answer: {letter}" for letter in "ABCDEFGABCDEFG"),
    "Which of the two, and how many of them are there, on the left and on the right side?",
]


@functools.cache
def _bpe_json(closing: bool) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_TEXT, trainer)
    if closing:
        backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return backend.to_str()


def tokenizer(*, pad=True, closing=False, chat=None, **settings):
    """Byte-level BPE; `closing` puts "</s>" behind every text, as T5's does."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_bpe_json(closing)),
        pad_token="<pad>" if pad else None,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=_SPECIAL[3:],
        model_input_names=["input_ids", "attention_mask"],
        chat_template=chat,
        **settings,
    )


def llava_processor(**settings):
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    images = CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, do_convert_rgb=True
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=settings.pop("chat_template", CHAT),
    )


def llava_next_processor():
    """Its images come as different numbers of tiles."""
    from transformers import LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 16},
        crop_size={"height": 16, "width": 16},
        image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
    )
    return LlavaNextProcessor(
        image_processor=images,
        tokenizer=tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=CHAT,
    )


def qwen2_vl_processor():
    """The real processor, without its video part (which needs torchvision)."""
    from transformers import Qwen2VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    class ImagesOnly(Qwen2VLProcessor):
        def check_argument_for_proper_class(self, argument_name, argument):
            if argument_name == "video_processor":
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

    words = tokenizer()
    words.image_token, words.video_token = "<image>", "<video>"
    size = {"shortest_edge": 16 * 16, "longest_edge": 48 * 48}
    images = Qwen2VLImageProcessorPil(patch_size=8, temporal_patch_size=2, merge_size=2, size=size)
    return ImagesOnly(image_processor=images, tokenizer=words, video_processor=None, chat_template=CHAT)


_SIZES = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _made(build, seed):
    torch.manual_seed(seed)
    model = build().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far enough from zero that samples and positions differ visibly
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    return model


def llama(seed=0, **changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    return _made(lambda: LlamaForCausalLM(LlamaConfig(**{**_SIZES, **changes})), seed)


def gpt2(seed=0):
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {
        "vocab_size": 400,
        "n_positions": 512,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return _made(lambda: GPT2LMHeadModel(GPT2Config(**sizes)), seed)


def mamba(seed=0):
    from transformers import MambaConfig, MambaForCausalLM

    sizes = {
        "vocab_size": 400,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "state_size": 4,
        "pad_token_id": 0,
        "eos_token_id": 2,
    }
    return _made(lambda: MambaForCausalLM(MambaConfig(**sizes)), seed)


def t5(seed=0):
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {
        "vocab_size": 400,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
        "decoder_start_token_id": 0,
    }
    return _made(lambda: T5ForConditionalGeneration(T5Config(**sizes, pad_token_id=0, eos_token_id=2)), seed)


def bart(seed=0):
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        vocab_size=400,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
    )
    model = _made(lambda: BartForConditionalGeneration(config), seed)
    model.generation_config.forced_bos_token_id = 1
    return model


def qwen2_vl(seed=0):
    """Its rotary positions depend on the images and on the mask."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    config = Qwen2VLConfig(
        text_config={**_SIZES, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
        vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 8, "mlp_ratio": 2},
        image_token_id=5,
        video_token_id=6,
        vision_start_token_id=7,
        vision_end_token_id=8,
    )
    return _made(lambda: Qwen2VLForConditionalGeneration(config), seed)


def llava(seed=0):
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision, image_size=16, patch_size=8, projection_dim=16),
        text_config=LlamaConfig(**_SIZES),
        image_token_id=5,
        vision_feature_layer=-1,
    )
    return _made(lambda: LlavaForConditionalGeneration(config), seed)


def llava_next(seed=0):
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**vision, image_size=16, patch_size=8, projection_dim=16),
        text_config=LlamaConfig(**_SIZES),
        image_token_id=5,
        vision_feature_layer=-1,
        image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
    )
    return _made(lambda: LlavaNextForConditionalGeneration(config), seed)


def picture(seed, size=(20, 24)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8))


def samples(count=11, images=lambda number: ()):
    """Questions of different lengths with two to six options."""
    made = []
    for number in range(count):
        options = COLOURS[: 2 + number % 5]
        question = "What is the colour of" + " the thing" * (number * 7 % 5) + " ?"
        made.append(Sample(f"q{number}", f"{number}: {question}", options, number * 3 % len(options), images(number)))
    return made
