"""The models, inputs and targets of the sweep benchmark: real classes of transformers with random weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

Given = dict[str, Any]
Place = tuple[int, int]  # a micro-batch, and a row: 0 is the unmodified model, i + 1 the model with site i changed
ASKED: Given = {"use_cache": False, "logits_to_keep": 1}  # as whoever scores options asks it
_WORDS = 1024


@dataclass(frozen=True, eq=False)
class Case:
    """A model in evaluation mode, and the samples of a sweep.

    Args:
        model: the model.
        samples: the inputs of single samples; those of a micro-batch are put one after the other.
        batch_size: samples in a micro-batch.
        new_tokens: how many tokens are generated; 0: forwards only.
    """

    model: nn.Module
    samples: Sequence[Given]
    batch_size: int
    new_tokens: int = 0

    @cached_property
    def batches(self) -> list[Given]:
        """The inputs of each micro-batch."""
        size = self.batch_size
        return [together(self.samples[start : start + size]) for start in range(0, len(self.samples), size)]

    @torch.no_grad()
    def run(self, model: Any, given: Given) -> torch.Tensor:
        """What a scorer looks at: the logits, or the generated tokens."""
        if not self.new_tokens:
            return model(**given, **ASKED).logits
        steps = {"max_new_tokens": self.new_tokens, "min_new_tokens": self.new_tokens}
        tokens = model.generate(**given, attention_mask=torch.ones_like(given["input_ids"]), do_sample=False, **steps)
        return tokens[:, given["input_ids"].shape[1] :]

    def copied(self) -> nn.Module:
        """A copy of the model whose modules are its own, and whose weights are the very same."""
        weights = {id(tensor): tensor for tensor in (*self.model.parameters(), *self.model.buffers())}
        return copy.deepcopy(self.model, weights)


@dataclass(frozen=True)
class Shape:
    """A row of the benchmark: what is measured, and what must be reached.

    Args:
        title: what it is, in words; `{...}` are its settings.
        build: makes the case from settings.
        settings: those that the targets are for.
        usual: those that are others unless the benchmark is asked to run in full.
        quick: those of a trial that takes seconds.
        target: the least ratio to the hook loop.
        of_bound: the least share of the bound.
        by: the method that is to reach it: "layersurgery", or 'share="all"', whose scored log-probabilities may be
            1e-5 from the loop's, with the same most likely tokens. Others give the loop's logits to the last bit.
        bounded: whether each variant runs by itself, so that the bound holds.
        sampled: at how many sites full forwards are timed in each round, unless asked to run in full.
        rounds: rounds, unless asked for a number.
        needs: the device that it is for; empty: any.
    """

    title: str
    build: Callable[..., Case]
    settings: Mapping[str, Any]
    quick: Mapping[str, Any]
    target: float
    usual: Mapping[str, Any] = field(default_factory=dict[str, Any])
    of_bound: float = 0.0
    by: str = "layersurgery"
    bounded: bool = True
    sampled: int = 4
    rounds: int = 2
    needs: str = ""

    def chosen(self, size: str) -> dict[str, Any]:
        """The settings of a run: "full", "usual" or "quick"."""
        return {**self.settings, **({} if size == "full" else self.usual if size == "usual" else self.quick)}

    def has_targets(self, size: str) -> bool:
        """Whether a run of this size is the one that the targets are for."""
        return self.chosen(size) == dict(self.settings)


def together(samples: Sequence[Given]) -> Given:
    """The inputs of some samples as those of one call."""
    return {name: torch.cat([one[name] for one in samples]) for name in samples[0]}


def llama(
    layers: int, width: int, samples: int, batch: int, tokens: int, bf16: bool = False, new_tokens: int = 0
) -> Case:
    """Text only."""
    from transformers import LlamaForCausalLM

    model = _made(LlamaForCausalLM, _text(layers, width))
    model.generation_config.eos_token_id = None  # random weights do not know when to stop
    inputs = _tokens(samples, tokens)
    given = [{"input_ids": inputs[number : number + 1]} for number in range(samples)]
    return Case(model.to(torch.bfloat16) if bf16 else model, given, batch, new_tokens)


def qwen2_vl(layers: int, width: int, samples: int, vision_layers: int, vision_width: int) -> Case:
    """A vision tower that takes a large share of a forward; 64 image tokens and 48 of text a sample."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    text = _text(layers, width).to_dict()
    quarter = width // text["num_attention_heads"] // 4  # rotary positions in time, height and width
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [quarter, quarter // 2, quarter // 2]}
    vision = {"depth": vision_layers, "embed_dim": vision_width, "num_heads": vision_width // 64, "hidden_size": width}
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    text = {name: text[name] for name in (*kept, "num_key_value_heads", "pad_token_id", "bos_token_id", "eos_token_id")}
    config = Qwen2VLConfig(
        text_config={**text, "rope_parameters": rope},
        vision_config={**vision, "patch_size": 14},
        image_token_id=5,
        video_token_id=6,
        vision_start_token_id=7,
        vision_end_token_id=8,
    )
    patches = _noise(samples, 256, 3 * 2 * 14 * 14)
    words = _tokens(samples, 48)
    given = [
        {
            "input_ids": (tokens := torch.cat([torch.tensor([[7, *[5] * 64]]), words[number : number + 1]], dim=1)),
            "mm_token_type_ids": (tokens == 5).int(),
            "pixel_values": patches[number],
            "image_grid_thw": torch.tensor([[1, 16, 16]]),
        }
        for number in range(samples)
    ]
    return Case(_made(Qwen2VLForConditionalGeneration, config), given, samples)


def llava_next(
    layers: int,
    width: int,
    vision_layers: int,
    vision_width: int,
    side: int,
    tokens: int,
    samples: int,
    words: int = _WORDS,
    bf16: bool = False,
) -> Case:
    """One picture of two by two tiles and an overview, and a question, a sample at a time."""
    from transformers import CLIPVisionConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

    vision = {"hidden_size": vision_width, "intermediate_size": 4 * vision_width, "num_hidden_layers": vision_layers}
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(
            **vision, num_attention_heads=vision_width // 64, image_size=side, patch_size=14, projection_dim=64
        ),
        text_config=_text(layers, width, words),
        image_token_id=5,
        image_grid_pinpoints=[[side, 2 * side], [2 * side, side], [2 * side, 2 * side]],
    )
    dtype = torch.bfloat16 if bf16 else torch.float32
    model = _made(LlavaNextForConditionalGeneration, config, dtype)
    sizes = torch.tensor([[2 * side, 2 * side]])
    pictures = _noise(samples, 5, 3, side, side).to(dtype)
    with torch.no_grad():
        found = model.model.get_image_features(pictures[:1], sizes)
    image = torch.full((1, sum(len(one) for one in found.pooler_output)), 5)
    words_of = _tokens(samples, tokens)
    given = [
        {
            "input_ids": torch.cat([image, words_of[number : number + 1]], dim=1),
            "pixel_values": pictures[number : number + 1],
            "image_sizes": sizes,
        }
        for number in range(samples)
    ]
    return Case(model, given, 1)


_TINY = {"layers": 4, "width": 64}
SHAPES: dict[str, Shape] = {
    "llama": Shape(
        "Llama, {layers} layers of width {width}, fp32, {samples} x {tokens} tokens, {batch} at a time",
        llama,
        {"layers": 24, "width": 512, "samples": 8, "batch": 4, "tokens": 64},
        {**_TINY, "tokens": 8},
        target=1.95,
        of_bound=0.97,
    ),
    "llama bf16": Shape(
        "Llama, {layers} layers of width {width}, bf16, {samples} x {tokens} tokens, {batch} at a time",
        llama,
        {"layers": 24, "width": 512, "samples": 8, "batch": 8, "tokens": 256, "bf16": True},
        {**_TINY, "tokens": 8},
        target=1.95,
        usual={"samples": 1, "batch": 1, "tokens": 64},  # processors without bf16 take a minute for 8 x 256
        sampled=3,
        rounds=1,
    ),
    "qwen2_vl": Shape(
        "Qwen2-VL, {layers} layers of width {width}, vision {vision_layers} x {vision_width}, fp32, {samples} x 113 "
        "tokens",
        qwen2_vl,
        {"layers": 20, "width": 512, "samples": 2, "vision_layers": 12, "vision_width": 384},
        {**_TINY, "vision_layers": 2, "vision_width": 64},
        target=2.85,
    ),
    "llava_next": Shape(
        "LLaVA-NeXT, {layers} layers of width {width}, vision {vision_layers} x {vision_width}, fp32, one picture and "
        "{tokens} tokens",
        llava_next,
        # 744 image tokens: a prompt of LLaVA-NeXT is nearly all picture, with 2,900 of them
        {"layers": 24, "width": 512, "vision_layers": 6, "vision_width": 256, "side": 168, "tokens": 64, "samples": 2},
        {**_TINY, "vision_layers": 2, "vision_width": 64, "side": 28, "tokens": 8},
        target=2.1,
    ),
    "short": Shape(
        "Llama, {layers} layers of width {width}, fp32, {samples} prompts of {tokens} tokens one by one",
        llama,
        {"layers": 24, "width": 512, "samples": 8, "batch": 1, "tokens": 16},
        {**_TINY, "tokens": 4},
        target=3.5,
        by='share="all"',
        bounded=False,
        sampled=6,
    ),
    "generate": Shape(
        "Llama, {layers} layers of width {width}, fp32, {new_tokens} tokens generated after {samples} x {tokens}",
        llama,
        {"layers": 24, "width": 512, "samples": 1, "batch": 1, "tokens": 64, "new_tokens": 16},
        {**_TINY, "tokens": 8, "new_tokens": 3},
        target=2.8,
        bounded=False,
        sampled=3,
        rounds=1,
    ),
    "llava_next 8b": Shape(
        "LLaVA-NeXT-8B, {layers} layers of width {width}, vision {vision_layers} x {vision_width}, bf16, one picture "
        "of 5 tiles",
        llava_next,
        {
            "layers": 32,
            "width": 4096,
            "vision_layers": 24,
            "vision_width": 1024,
            "side": 336,
            "tokens": 64,
            "samples": 2,
            "words": 128256,
            "bf16": True,
        },
        {**_TINY, "vision_layers": 2, "vision_width": 64, "side": 28, "tokens": 8, "words": _WORDS},
        target=2.0,
        needs="cuda",
    ),
}


def _text(layers: int, width: int, words: int = _WORDS) -> Any:
    from transformers import LlamaConfig

    heads = max(width // (128 if width > 2048 else 64), 4)
    return LlamaConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=14336 if width == 4096 else round(width * 2.6875 / 16) * 16,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8 if width == 4096 else heads // 2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def _made(kind: Any, config: Any, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return kind(config).eval()
    finally:
        torch.set_default_dtype(before)


def _tokens(batch: int, length: int) -> torch.Tensor:
    return _here(torch.randint(10, _WORDS, (batch, length), generator=_chance(), device="cpu"))


def _noise(*sizes: int) -> torch.Tensor:
    return _here(torch.randn(sizes, generator=_chance(), device="cpu"))


def _here(tensor: torch.Tensor) -> torch.Tensor:
    """On the device that models are made on; the numbers are the same everywhere."""
    return tensor.to(torch.get_default_device())


def _chance() -> torch.Generator:
    return torch.Generator("cpu").manual_seed(0)
