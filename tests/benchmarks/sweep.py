"""`python -m tests.benchmarks.sweep`: what sharing the prefix saves in a sweep, beside a plain loop of full forwards.

Both knock out each layer's attention in turn on the same micro-batch: the loop runs the whole model for each site, the
other answers for what lies below. Each forward of the one is timed next to the same of the other, in one run, on one
thread, in CPU time; of each, the least of some rounds counts. The bound is what the loop would gain if what need not be
computed took no time: all below a site, and its attention itself.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

import layersurgery as ls
from layersurgery.sweeps._prefix import SharedPrefix

Given = dict[str, Any]
LEAST = 0.97  # of the bound
TEXT = {"vocab_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 4, "pad_token_id": 0}


def main() -> int:
    """Print the table; 0 where nearly every bound is reached and every logit is the loop's."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.sweep", description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(SHAPES), help=f"some of {', '.join(SHAPES)}")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    _say(f"{'model':14} {'forward':>9} {'loop':>8} {'shared':>8} {'ratio':>7} {'bound':>7} {'kept':>9}   difference")
    fine = True
    for name in asked.models:
        model, given = SHAPES[name]()
        sweep = Sweep(model, given)
        times = [sweep.timed() for _ in range(asked.rounds + 1)][1:]  # the first warms up
        loop, shared = (sum(map(min, zip(*column, strict=True))) for column in zip(*times, strict=True))
        bound = sweep.bound()
        _say(
            f"{name:14} {1e3 * loop / (len(sweep.sites) + 1):6.0f} ms {loop:6.2f} s {shared:6.2f} s "
            f"{loop / shared:6.2f}x {bound:6.2f}x {sweep.kept / 2**20:5.1f} MiB   {sweep.difference:g}"
        )
        for note in sweep.prefix.notes:
            _say(f"    {note}")
        fine = fine and loop / shared >= LEAST * bound and sweep.difference == 0
    return int(not fine)


class Sweep:
    """The base and each layer's attention knocked out, on one micro-batch."""

    def __init__(self, model: nn.Module, given: Given) -> None:
        self.model, self.given = model, given
        self.sites = ls.select(model)
        self.prefix = SharedPrefix(model, self.sites)
        self.kept = 0
        self.difference = 0.0
        self._last = torch.empty(0)

    def timed(self) -> tuple[list[float], list[float]]:
        """CPU times of the base and each variant: by full forwards, and by a shared prefix. The two take turns."""
        loop, shared = [self._seconds(nullcontext())], [self._seconds(self.prefix.recording())]
        for site in self.sites:
            loop.append(self._seconds(ls.Surgery(at=site, do=ls.Zero())(self.model)))
            full, began = self._last, time.process_time()
            with ls.Surgery(at=site, do=ls.Zero())(self.model), self.prefix.replaying(site):
                self._last = self._logits()
            shared.append(time.process_time() - began)
            if not torch.equal(self._last, full):
                self.difference = max(self.difference, float((self._last - full).abs().max()))
        self.kept = self.prefix.nbytes
        self.prefix.forget()
        return loop, shared

    def _seconds(self, around: AbstractContextManager[Any]) -> float:
        began = time.process_time()
        with around:
            self._last = self._logits()
        return time.process_time() - began

    def bound(self) -> float:
        """All that the loop computes, over what no exact sweep can do without, from the time that each part takes."""
        mixers = [self.model.get_submodule(site.path) for site in self.sites]
        layers = [self.model.get_submodule(site.path.rpartition(".")[0]) for site in self.sites]
        spent: dict[nn.Module, float] = {}
        ended: dict[nn.Module, float] = {}
        handles = [handle for module in (self.model, *layers, *mixers) for handle in _clock(module, spent, ended)]
        found: list[tuple[float, float]] = []
        for _ in range(5):
            self._logits()
            needed = spent[self.model]
            for number, mixer in enumerate(mixers):
                after = ended[self.model] - ended[layers[-1]]
                needed += sum(spent[layer] for layer in layers[number:]) - spent[mixer] + after
            found.append((spent[self.model], needed))
        for handle in handles:
            handle.remove()
        total, needed = min(found)
        return (len(layers) + 1) * total / needed

    @torch.no_grad()
    def _logits(self) -> torch.Tensor:
        return self.model(**self.given).logits


def _clock(module: nn.Module, spent: dict[nn.Module, float], ended: dict[nn.Module, float]) -> Iterator[Any]:
    began: list[float] = []

    def end(*_: Any) -> None:
        ended[module] = time.process_time()
        spent[module] = ended[module] - began.pop()

    yield module.register_forward_pre_hook(lambda *_: began.append(time.process_time()))
    yield module.register_forward_hook(end)


def _llama() -> tuple[nn.Module, Given]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**TEXT, hidden_size=512, intermediate_size=1376, num_hidden_layers=24)
    return _made(LlamaForCausalLM, config), {"input_ids": _tokens(4, 64), "use_cache": False}


def _llama_in_bf16() -> tuple[nn.Module, Given]:
    model, _ = _llama()
    return model.to(torch.bfloat16), {"input_ids": _tokens(8, 256), "use_cache": False}


def _qwen2_vl() -> tuple[nn.Module, Given]:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    rope = {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 10000.0}
    config = Qwen2VLConfig(
        text_config={
            **TEXT,
            "hidden_size": 512,
            "intermediate_size": 1376,
            "num_hidden_layers": 20,
            "rope_parameters": rope,
        },
        vision_config={"depth": 12, "embed_dim": 384, "hidden_size": 512, "num_heads": 6, "patch_size": 14},
        image_token_id=5,
        video_token_id=6,
        vision_start_token_id=7,
        vision_end_token_id=8,
    )
    grid = torch.tensor([[1, 16, 16]] * 2)
    pictures = torch.randn(2 * 256, 3 * 2 * 14 * 14, generator=_chance())
    tokens = torch.cat([torch.full((2, 1), 7), torch.full((2, 64), 5), _tokens(2, 48)], dim=1)
    kinds = (tokens == 5).int()
    given = {
        "input_ids": tokens,
        "pixel_values": pictures,
        "image_grid_thw": grid,
        "mm_token_type_ids": kinds,
        "use_cache": False,
    }
    return _made(Qwen2VLForConditionalGeneration, config), given


def _llava_next() -> tuple[nn.Module, Given]:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

    vision = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}
    text = LlamaConfig(**TEXT, hidden_size=512, intermediate_size=1376, num_hidden_layers=24)
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**vision, image_size=56, patch_size=14, projection_dim=64),
        text_config=text,
        image_token_id=5,
        image_grid_pinpoints=[[56, 112], [112, 56], [112, 112]],
    )
    model = _made(LlavaNextForConditionalGeneration, config)
    sizes = torch.tensor([[112, 112]])
    pictures = torch.randn(1, 5, 3, 56, 56, generator=_chance())
    with torch.no_grad():
        found = model.model.get_image_features(pictures, sizes)
    places = sum(len(one) for one in found.pooler_output)
    tokens = torch.cat([torch.full((1, places), 5), _tokens(1, 64)], dim=1)
    return model, {"input_ids": tokens, "pixel_values": pictures, "image_sizes": sizes, "use_cache": False}


SHAPES: dict[str, Callable[[], tuple[nn.Module, Given]]] = {
    "llama": _llama,
    "llama bf16": _llama_in_bf16,
    "qwen2_vl": _qwen2_vl,
    "llava_next": _llava_next,
}


def _made(kind: Any, config: Any) -> Any:
    torch.manual_seed(0)
    return kind(config).eval()


def _tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randint(10, TEXT["vocab_size"], (batch, length), generator=_chance())


def _chance() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
