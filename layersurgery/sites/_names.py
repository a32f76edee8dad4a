"""What names say: the vocabulary of hints by which classes and attributes are read.

All knowledge about naming lives in these sets. There is no table of architectures: names are a hint, structure decides
(see `_anatomy` and `_roles`).
"""

from __future__ import annotations

import re
from itertools import pairwise

ATTENTION = {"attention", "attn", "attentions", "crossattention", "selfattention", "encdecattention", "mha", "mla"}
OTHER_MIXERS = {
    "mamba": {"mamba", "ssm", "ssd"},
    "linear_attention": {
        "delta",
        "deltanet",
        "linearattn",
        "linearattention",
        "retention",
        "gla",
        "lightning",
    },
    "recurrent": {"rwkv", "rglru", "lru", "xlstm", "mlstm", "slstm", "recurrent", "timemix"},
    "conv": {"shortconv", "hyena"},
}
MIXER = {"mixer"}
FEED_FORWARD = {"mlp", "ffn", "ff", "feedforward", "moe", "experts", "ffw"}
MIXTURE = {"moe", "experts"}
EXPERTS = {"experts", "router"}
CROSS = {"cross", "crossattention", "crossattn", "encdec", "encdecattention", "encoderattn"}
NORM = {"norm", "layernorm", "ln"}
DECAY = {"decay"}  # a state that fades: recurrent, whatever the class calls it
LOCAL = {"local", "patcher"}  # of bytes or samples, beside a transformer of what they make up
ADAPTER = {"adapter", "adapters", "lora"}
PROJECTION_NORM = {
    "q",
    "k",
    "v",
    "qk",
    "query",
    "key",
    "value",
    "kv",
}  # norms on heads, not on the residual stream

TOWERS = {
    "projector": {
        "qformer",
        "resampler",
        "perceiver",
        "projector",
        "merger",
        "connector",
        "abstractor",
        "aligner",
    },
    "vision": {"vision", "visual", "vit", "image", "img", "pixel", "siglip", "video", "sam"},
    "audio": {"audio", "speech", "wav", "acoustic", "whisper"},
    "language": {"language", "text", "llm", "lm"},
}


def words(name: str) -> set[str]:
    """The lower-case words of an attribute or class name without digits, single and in adjacent pairs.

    Examples:
        >>> sorted(words("Qwen3MoeAttention"))
        ['attention', 'moe', 'moeattention', 'qwen', 'qwenmoe']
        >>> sorted(words("feed_forward"))
        ['feed', 'feedforward', 'forward']
    """
    parts = [part.lower() for part in _WORD.findall(name)]
    return {*parts, *(first + second for first, second in pairwise(parts))}


_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
