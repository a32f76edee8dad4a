"""From any transformers config to a tiny one: a few size rules by field name, and layers that show each kind once.

The rules know nothing of single architectures; what they cannot know is in `exceptions.configs`, as data.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from tests.architectures.exceptions import AFTER, configs
from tests.architectures.sizes import USUAL, Sizes

VOCABULARY = 128
PATCH = 4
IMAGE = 8 * PATCH
POSITIONS = 128
MOST_LAYERS = 8  # of the main stack, where there are many kinds of layers to be shown

LAYER_COUNTS = re.compile(r"(.*_)?(num_|n_)?(hidden_|encoder_|decoder_)?(layers?|depth|blocks)|num_layers_per_stack")
COUNT_FIELDS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "depth", "layers", "num_blocks")
KEY_VALUE_HEADS = re.compile(r".*(key_value_heads|kv_heads|kv_n_heads)")
BIAS = re.compile(r"(attention|mlp|qkv|attn|use|add|add_qkv|o|lm_head)_bias(es)?|bias|attention_qkv_bias|use_qkv_bias")
TOKEN_ID = re.compile(r".*(token|start|end|newline|patch)_(id|index)s?|im_.*_id|eo[ai]_.*|bo[ai]_.*")


def shrink(default: Any, size: Sizes = USUAL) -> Any:
    """A tiny config of the same class as `default`, which is a config with its usual sizes."""
    name = type(default).__name__
    config = type(default)(**_changes(default, size))
    vars(config).update(AFTER[name]() if name in AFTER else {})
    return config


def _changes(default: Any, size: Sizes) -> dict[str, Any]:
    from transformers import PreTrainedConfig

    fields = {name: value for name, value in vars(default).items() if not name.startswith("_")}
    usual = vars(type(default)())  # `default` may be a part of a larger config, which has its own ideas of its sizes
    layers = _count(fields)
    kept = _kept_layers(fields, layers, size)
    changes: dict[str, Any] = {}
    for name, value in fields.items():
        small = shrink(value, size) if isinstance(value, PreTrainedConfig) else _value(name, value, fields, kept, size)
        if small is not value or (name in usual and repr(value) != repr(usual[name])):
            changes[name] = small
    per_layer = getattr(getattr(default, "_heterogeneity_spec", None), "per_layer_overrides", None)
    if per_layer:
        changes["per_layer_config"] = {
            at: {
                name: _value(name, value, {**fields, **per_layer[layer]}, kept, size)
                for name, value in per_layer[layer].items()
            }
            for at, layer in enumerate(kept)
            if layer in per_layer
        }
    return {**changes, **configs(size).get(type(default).__name__, {})}


def _value(name: str, value: Any, fields: Mapping[str, Any], kept: Sequence[int], size: Sizes) -> Any:
    if value is None or isinstance(value, bool | str | float):
        return size.biases if size.biases is not None and value is False and BIAS.fullmatch(name) else value
    if name in {"rope_parameters", "rope_scaling"}:
        return _rope(value, size)
    if TOKEN_ID.fullmatch(name):
        return _token(name, value)
    if isinstance(value, int):
        return _number(name, value, fields, len(kept), size)
    if isinstance(value, list | tuple):
        return _list(name, value, _count(fields), kept, size)
    return value


def _number(name: str, value: int, fields: Mapping[str, Any], layers: int, size: Sizes) -> int:
    if value <= 2:
        return value
    if KEY_VALUE_HEADS.fullmatch(name):
        return _key_value_heads(value, fields, size)
    if name == "head_dim" and value == fields.get("qk_rope_head_dim"):
        return size.head_dim // 2  # the width of what is rotated
    if LAYER_COUNTS.fullmatch(name) and not name.endswith("_per_layer"):
        return _layer_count(name, value, fields, layers, size)
    small = next((small for pattern, small in _rules(size) if re.fullmatch(pattern, name)), value)
    return small(value) if callable(small) else min(value, small)


def _layer_count(name: str, value: int, fields: Mapping[str, Any], layers: int, size: Sizes) -> int:
    if name in COUNT_FIELDS:
        return layers
    counted = any(isinstance(entry, list | tuple) and len(entry) == value for entry in fields.values())
    return value if counted else min(value, size.layers)  # the number of a list's entries stays what it is


def _key_value_heads(value: int, fields: Mapping[str, Any], size: Sizes) -> int:
    heads = next((fields[key] for key in ("num_attention_heads", "n_head", "n_heads") if key in fields), value)
    return size.heads if value == heads else size.heads // 2


def _token(name: str, value: Any) -> Any:
    """Small and different from each other by name, below the tokens that `build.inputs` draws."""
    if isinstance(value, list | tuple):
        return type(value)(_token(f"{name}{at}", entry) for at, entry in enumerate(value))
    if not isinstance(value, int) or value < 3:
        return value
    return 3 + sum(map(ord, name)) % 60


def _list(name: str, value: Sequence[Any], layers: int, kept: Sequence[int], size: Sizes) -> Any:
    if layers and len(value) == layers:
        return type(value)(_entry(name, value[at], size) for at in kept)
    if _numbers_layers(value, layers):
        return type(value)(at for at, layer in enumerate(kept) if layer in value)
    return type(value)(_entry(name, entry, size) for entry in value)


def _entry(name: str, value: Any, size: Sizes) -> Any:
    return value if isinstance(value, bool) or not isinstance(value, int) else _number(name, value, {}, 0, size)


def _numbers_layers(value: Sequence[Any], layers: int) -> bool:
    """Whether a list names layers by number: rising, and none beyond the last."""
    whole = all(isinstance(entry, int) and not isinstance(entry, bool) for entry in value)
    return bool(value) and whole and list(value) == sorted(set(value)) and value[0] >= 0 and value[-1] < layers


def _rope(value: Any, size: Sizes) -> Any:
    if not isinstance(value, Mapping):
        return value
    small: dict[str, Any] = {}
    for key, entry in value.items():
        if isinstance(entry, Mapping):
            small[key] = _rope(entry, size)
        elif key == "mrope_section":
            pairs = int(size.head_dim * value.get("partial_rotary_factor", 1.0)) // 2
            small[key] = [pairs - (len(entry) - 1) * (pairs // len(entry))] + [pairs // len(entry)] * (len(entry) - 1)
        elif key in ("short_factor", "long_factor"):
            small[key] = [1.0] * (size.head_dim // 2)
        else:
            small[key] = entry
    return small


def _count(fields: Mapping[str, Any]) -> int:
    return next((fields[name] for name in COUNT_FIELDS if isinstance(fields.get(name), int)), 0)


def _kept_layers(fields: Mapping[str, Any], layers: int, size: Sizes) -> list[int]:
    """Layers to keep: the first two of each kind that per-layer lists tell apart, then the earliest others."""
    if not layers:
        return []
    columns = [value for value in fields.values() if isinstance(value, list | tuple) and len(value) == layers]
    marked = [
        {*value} for value in fields.values() if isinstance(value, list | tuple) and _numbers_layers(value, layers)
    ]
    seen: Counter[Any] = Counter()
    kept: list[int] = []
    for layer in range(layers):
        kind = (*(repr(column[layer]) for column in columns), *(layer in mark for mark in marked))
        if seen[kind] < 2 and len(kept) < MOST_LAYERS:
            seen[kind] += 1
            kept.append(layer)
    spare = (layer for layer in range(layers) if layer not in kept)
    while len(kept) < min(layers, size.layers):
        kept.append(next(spare))
    return sorted(kept)


@cache
def _rules(size: Sizes) -> tuple[tuple[str, int | Callable[[int], int]], ...]:
    """The first pattern that fits a field's whole name decides: a number is a cap, a function gets the default."""
    return (
        (
            r".*(initializer|dropout|scale|scaling|_ratio|_mult|multiplier|_factor|max_value_.*|seed)",
            lambda value: value,
        ),
        (r".*vocab(ulary)?(_size)?|.*_vocab|num_embeddings|codebook_size|vocab_size_per_layer_input", VOCABULARY),
        (
            r"(max_|n_|original_max_|max_source_|max_target_)position(s|_embeddings)|max_seq_len|seq_len|n_ctx",
            POSITIONS,
        ),
        (r"model_max_length|context_length|max_num_patches|max_2d_position_embeddings|rel_extent", POSITIONS),
        (r"crop_size|image_size|resolution|max_im(a)?g(e)?_size", IMAGE),
        (r"(encoder_|vision_)?patch_size|patch_stride", PATCH),
        (r"num_position_embeddings|num_patches", (IMAGE // PATCH) ** 2),
        (r"pos_emb_(height|width)|posemb_grid_size", IMAGE // PATCH),
        (r".*sliding_window(_size)?|attention_(window|chunk)_size|attention_window_size|local_attention_window_len", 8),
        (r".*chunk_size|keep_window_size", 16),
        # heads: 4, key-value heads 2 where they were fewer than the heads (see `_key_value_heads`)
        (
            r".*(attention|attn|n|q)_heads|n_heads?|num_heads|.*_heads_num|num_query_groups|.*attention_heads(_per_layer)?",
            lambda value: size.heads if value > 3 else value,
        ),
        (r"mamba_n(um)?_heads|n_mamba_heads|linear_num_value_heads", 2 * size.heads),
        (r"linear_num_(key_)?heads", size.heads),
        (r"qk_(rope|nope)_head_dim|rotary_dim", size.head_dim // 2),  # the two make up a head
        (r".*head_?dim|d_kv|d_head|dim_head|attention_head_size|kv_channels|mamba_d_head|.*_dim_head", size.head_dim),
        (r"(mamba_)?(ssm_|d_)?state(_size)?|mamba_d_state|.*_dt_rank|time_step_rank|.*lowrank|.*_rank", size.head_dim),
        (r".*experts_per_tok(en)?|moe_(top_?)?k|.*top_k(_experts)?|num_experts_per_.*", 2),
        (r"(.*_)?(num|n)_(shared|routed|local)?_?experts|zero_expert_num|moe_num_.*experts|num_.*experts", 4),
        (r"n_group(s)?|topk_group|num_expert_group|mamba_n_?groups|o_groups|upsample_groups", 2),
        (r"first_k_dense_replace|num_dense_layers|num_nextn_predict_layers|num_global_layers", 1),
        (r".*(mlp|intermediate|inner|ffn?|feed_forward).*|.*d_ff|dff", 2 * size.width),
        (r".*(hidden|width|channels|filters|dim|d_model|n_embd|embed|embd|size|features|dims)(_.*)?", size.width),
        (r".*(tokens|latents|quer(y|ies)|buckets|bins|queries)(_.*)?|latent_query_num|.*_seq_length", 16),
        (r".*index_topk.*|.*budget.*|.*window.*", 8),
    )
