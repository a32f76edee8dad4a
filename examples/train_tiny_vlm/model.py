"""The tiny LLaVA: its words, tokenizer, processor and untrained weights."""

from __future__ import annotations

import re

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from layersurgery.embedded import INSTRUCTION
from layersurgery.embedded._questions import NUMBERS, PLACES
from layersurgery.embedded._scenes import CELL, CELLS, COLOURS, SHAPES, SIZE

LETTERS = "ABCD"
SHORT_INSTRUCTION = "Answer the question using a single word or phrase."
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "<answer>", "<short>")
QUESTION_WORDS = re.findall(
    r"\w+",
    """Which What Where How Is digit digits is on the left right larger sum of even many are there colour
    shape shapes one from value has marked region regions stands for above below yes no""",
)
VALUES = (*COLOURS, *SHAPES, *NUMBERS, *PLACES, "yes", "no")
WORDS = tuple(dict.fromkeys((*SPECIAL, *QUESTION_WORDS, *LETTERS, *VALUES)))
# One token per option line ("B. red"): with two, one for the letter, training stays at chance for long.
VOCABULARY = {word: i for i, word in enumerate((*WORDS, *(f"{a}. {v}" for a in LETTERS for v in VALUES)))}
IMAGE_TOKENS = CELLS
PIXEL_MEAN, PIXEL_STD = 0.25, 0.3
WIDTH = 96

CHAT_TEMPLATE = (
    "{{ '<s>' }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}"
    "{% endif %}{% endfor %}{% else %} {{ message['content'] if message['content'] is string "
    "else message['content'][0]['text'] }}</s>{% endif %}{% endfor %}"
)


def build_processor() -> LlavaProcessor:
    """Tokenizer, image processor and chat template; the instruction is a single token, `<answer>`."""
    words = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    words.normalizer = normalizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            normalizers.Replace(INSTRUCTION, " <answer> "),
            normalizers.Replace(SHORT_INSTRUCTION, " <short> "),
        ]
    )
    words.pre_tokenizer = pre_tokenizers.Split(  # pyright: ignore[reportAttributeAccessIssue]
        Regex(r"[ABCD]\. [^\n]+|</?[a-z]+>|\w+"), "removed", invert=True
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
    )
    images = CLIPImageProcessor(
        do_resize=True,
        size={"height": SIZE, "width": SIZE},
        do_center_crop=False,
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_STD] * 3,
        do_convert_rgb=True,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=CELL,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    )


def build_model(seed: int) -> LlavaForConditionalGeneration:
    """Untrained: a CLIP vision transformer of 2 layers and a Llama decoder of 8, both 96 wide."""
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=CELL,
        projection_dim=WIDTH,
    )
    text = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=WIDTH,
        intermediate_size=256,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.05,
        pad_token_id=VOCABULARY["<pad>"],
        bos_token_id=VOCABULARY["<s>"],
        eos_token_id=VOCABULARY["</s>"],
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=VOCABULARY["<image>"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=IMAGE_TOKENS,
        tie_word_embeddings=True,
    )
    return LlavaForConditionalGeneration(config)


def to_pixels(images: list[np.ndarray]) -> torch.Tensor:
    """What the processor makes of pictures of 64 x 64: [n, 64, 64, 3] uint8 -> [n, 3, 64, 64] float32."""
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    return stacked.div_(255).sub_(PIXEL_MEAN).div_(PIXEL_STD)


def patch_features(model: LlavaForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """What the vision tower sees in each of the 16 cells, row by row: [n * 16, width]."""
    states = model.model.vision_tower(pixels).last_hidden_state[:, 1:]
    return states.reshape(-1, states.shape[-1])


@torch.no_grad()
def start_decoder(model: LlavaForConditionalGeneration, pixels: torch.Tensor, seed: int) -> None:
    """Give decoder and projector weights that train fast, and freeze the vision tower.

    Matrices get a standard deviation of 0.1 at the model's width, those that write to the residual stream
    less. The projector's first layer whitens the image features.

    Args:
        model: its vision tower is trained already.
        pixels: [n, 3, 64, 64] training pictures of all kinds.
        seed: of the random weights.
    """
    draw = torch.Generator().manual_seed(seed)
    decoder, projector = model.model.language_model, model.model.multi_modal_projector
    for name, weight in [*decoder.named_parameters(), *projector.named_parameters()]:
        if weight.ndim != 2:
            continue
        std = 0.1 if "embed" in name else 0.1 * (WIDTH / weight.shape[1]) ** 0.5
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            std /= (2 * len(decoder.layers)) ** 0.5
        weight.normal_(0, std, generator=draw)
    features = patch_features(model, pixels)
    first = projector.linear_1
    first.weight.div_(features.std(0))
    first.bias.copy_(-(first.weight @ features.mean(0)))
    for weight in model.model.vision_tower.parameters():
        weight.requires_grad_(False)
