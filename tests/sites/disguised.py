"""Models whose names say nothing, or the wrong thing: what a part is can only be seen from what it does."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import types

import torch
from torch import nn


def renamed(module_name: str, names: dict[str, str]) -> types.ModuleType:
    """A module of transformers with identifiers replaced throughout its source."""
    genuine = importlib.import_module(module_name)
    source = re.sub(r"\b(" + "|".join(names) + r")\b", lambda word: names[word[0]], inspect.getsource(genuine))
    disguise = types.ModuleType(f"{genuine.__package__}.disguised")
    disguise.__dict__.update(__file__=genuine.__file__, __package__=genuine.__package__)
    sys.modules[disguise.__name__] = disguise  # decorators look their module up
    exec(compile(source, disguise.__name__, "exec"), disguise.__dict__)
    return disguise


LLAMA = {
    "LlamaAttention": "Quark",
    "LlamaMLP": "Gluon",
    "LlamaRMSNorm": "Boson",
    "LlamaDecoderLayer": "Muon",
    "self_attn": "north",
    "mlp": "south",
    "input_layernorm": "east",
    "post_attention_layernorm": "west",
    "layers": "rooms",
    "norm": "zenith",
    "q_proj": "c1",
    "k_proj": "c2",
    "v_proj": "c3",
    "o_proj": "c4",
    "gate_proj": "d1",
    "up_proj": "d2",
    "down_proj": "d3",
}
GPT2 = {
    "GPT2Attention": "Quark",
    "GPT2MLP": "Gluon",
    "GPT2Block": "Muon",
    "attn": "north",
    "mlp": "south",
    "ln_1": "east",
    "ln_2": "west",
    "h": "rooms",
    "c_attn": "c1",
    "c_proj": "c2",
    "c_fc": "c3",
}
SWAPPED = {
    "LlamaAttention": "LlamaMLP",
    "LlamaMLP": "LlamaAttention",
    "self_attn": "mlp",
    "mlp": "self_attn",
}


class MixerBlock(nn.Module):
    """As of MLP-Mixer: one MLP over positions, one over features."""

    def __init__(self, tokens: int, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp_tokens = nn.Sequential(nn.Linear(tokens, 24), nn.GELU(), nn.Linear(24, tokens))
        self.mlp_channels = nn.Sequential(nn.Linear(width, 40), nn.GELU(), nn.Linear(40, width))

    def forward(self, x):
        x = x + self.mlp_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mlp_channels(self.norm2(x))


class Mixer(nn.Module):
    """MLP-Mixer, on pictures; `wide`: as many features as positions, so that no size tells them apart."""

    def __init__(self, width: int = 20):
        super().__init__()
        self.img_size = 16
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.blocks = nn.ModuleList(MixerBlock(16, width) for _ in range(3))
        self.head = nn.Linear(width, 5)

    def forward(self, images):
        x = self.stem(images).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class Siblings(nn.Module):
    """Layers as attributes, called out of order, of parts without a telling name."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Embedding(30, 16)
        self.a, self.b, self.c = (Room() for _ in range(3))

    def forward(self, tokens):
        return self.c(self.b(self.a(self.enter(tokens))))


class Room(nn.Module):
    """Pre-norm, a causal mean instead of an attention, and a two-matrix function of each position."""

    def __init__(self):
        super().__init__()
        self.p, self.q = Scaler(16), Scaler(16)
        self.r, self.s = Past(16), nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))

    def forward(self, x):
        x = x + self.r(self.p(x))
        return x + self.s(self.q(x))


class Scaler(nn.Module):
    """RMSNorm by another name."""

    def __init__(self, width):
        super().__init__()
        self.g = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.g * x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()


class Past(nn.Module):
    """A running mean between two matrices."""

    def __init__(self, width):
        super().__init__()
        self.u, self.w = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)

    def forward(self, x):
        counts = torch.arange(1, x.shape[1] + 1, device=x.device).view(1, -1, 1)
        return self.w(self.u(x).cumsum(1) / counts)


class PostNorm(nn.Module):
    """BERT's way, by other names: the norm of the sum is inside the part."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.enter = nn.Embedding(30, width)
        self.rooms = nn.ModuleList(
            nn.ModuleDict({"x": Summed(Past(width)), "y": Summed(Wide(width))}) for _ in range(2)
        )

    def forward(self, tokens):
        states = self.enter(tokens)
        for room in self.rooms:
            states = room["y"](room["x"](states))
        return states


class Wide(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.i, self.o = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return self.o(self.i(x).relu())


class Summed(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.k, self.l, self.m = inner, nn.Linear(16, 16), nn.LayerNorm(16)

    def forward(self, x):
        return self.m(x + self.l(self.k(x)))


class Needy(nn.Module):
    """Runs on nothing that can be guessed."""

    def __init__(self):
        super().__init__()
        self.rooms = nn.ModuleList(Room() for _ in range(2))

    def forward(self, *, states, factor):
        if factor["by"] != 3 or states.shape[-1] != 16:
            raise ValueError("this is not what I was made for")
        for room in self.rooms:
            states = room(
                states,
            )
        return states
