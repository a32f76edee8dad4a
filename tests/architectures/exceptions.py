"""What the size rules of `shrink` cannot know: settings of single config classes, each with its reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.architectures.sizes import Sizes

Settings = dict[str, Any]


def _plain_vision(**settings: Any) -> Any:
    """A vision tower of transformers' own, where the default is one of timm's, which need not be installed."""
    from transformers import SiglipVisionConfig

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    return SiglipVisionConfig(**sizes, image_size=32, patch_size=4, **settings)


_IMAGE_WORDS = {"<image>": 3, "<|extra_200|>": 4, "<|visual token 000001|>": 5, "IMGIMGAA": 5}
_MAMBA_AND_ATTENTION = ["linear_attention", "full_attention"] * 2
_CONVOLUTION_AND_ATTENTION = ["conv", "full_attention"] * 2
_QSA = {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_budget": 8, "indexer_compress_ratio": 4}

# What transformers itself cannot build from any config of its own.
NOT_BUILT = {
    "causal/gemma4_assistant": "its check of layers that share keys and values refuses every config",
    "causal/gemma4_unified_assistant": "its check of layers that share keys and values refuses every config",
}


def _sections(pairs: int) -> list[int]:
    """Three sections of rotary positions, the first two of one size."""
    return [pairs * 3 // 8, pairs * 3 // 8, pairs - 2 * (pairs * 3 // 8)]


_TILING = ("LlavaNext", "LlavaNextVideo", "LlavaOnevision")


def configs(size: Sizes) -> dict[str, Settings]:
    """By name of the config class: what to change besides the rules' doing."""
    mamba_heads = {"mamba_n_heads": 2 * size.heads, "mamba_d_head": size.head_dim}  # they make up the expanded width
    sections = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": _sections(size.head_dim // 2)}
    half = {"partial_rotary_factor": 0.5, "mrope_section": _sections(size.head_dim // 4)}
    return {
        # a vocabulary of image tokens that the default leaves out
        "ChameleonConfig": {"vocabulary_map": _IMAGE_WORDS},
        "Emu3Config": {"vocabulary_map": _IMAGE_WORDS},
        # sections of rotary positions: the default is written in the model's code, for wide heads
        "CohereCompassTextConfig": {"rope_parameters": {"full_attention": sections, "sliding_attention": sections}},
        **{
            f"{family}TextConfig": {"rope_parameters": sections}
            for family in (
                "Ernie4_5_VLMoe",
                "Glm4v",
                "GlmOcr",
                "PaddleOCR",
                "Qwen2VL",
                "Qwen2_5_VL",
                "Qwen2_5Omni",
            )
        },
        "Glm4vMoeTextConfig": {"rope_parameters": {**sections, **half}},
        # settings without a default, although the model cannot be built without them
        "DeepseekV2Config": {"num_experts_per_tok": 2},
        "DeepseekOcr2TextConfig": {
            "num_experts_per_tok": 2,
            "mlp_layer_types": ["dense", *["sparse"] * (size.layers - 1)],
        },
        "Granite4VisionConfig": {
            "deepstack_layer_map": [(-1, 0), (-1, 1)],
            "spatial_target_layers": [1, 2],
            "downsample_rate": "2/4",
        },
        "DiffusionGemmaTextConfig": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 64},
        "HunYuanVLTextConfig": {
            "head_dim": size.head_dim,
            "rope_parameters": {**sections, "mrope_section": [size.head_dim // 8] * 4},
        },
        "HunYuanDenseV1Config": {"head_dim": size.head_dim},
        "HunYuanMoEV1Config": {"head_dim": size.head_dim},
        "MinistralConfig": {"head_dim": size.head_dim},
        "NemotronConfig": {"num_key_value_heads": size.heads // 2},
        "Dots1Config": {
            "n_shared_experts": 1,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 2,
        },
        "Qwen4ExpTextConfig": {**_QSA, "indexer_head_dim": size.head_dim},
        # layers of a kind that the default leaves out
        "BambaConfig": {**mamba_heads, "num_hidden_layers": 4, "attn_layer_indices": [1, 3]},
        "GraniteMoeHybridConfig": {**mamba_heads, "num_hidden_layers": 4, "layer_types": _MAMBA_AND_ATTENTION},
        "GraniteMoeSharedConfig": {"shared_intermediate_size": 128},
        "JambaConfig": {"num_hidden_layers": 4, "attn_layer_period": 3, "attn_layer_offset": 1},
        "Lfm2Config": {"num_hidden_layers": 4, "layer_types": _CONVOLUTION_AND_ATTENTION},
        "Lfm2MoeConfig": {"num_hidden_layers": 4, "layer_types": _CONVOLUTION_AND_ATTENTION},
        "MiniMaxM3VLTextConfig": {"mlp_layer_types": ["dense", *["sparse"] * (size.layers - 1)]},
        # numbers that must fit each other
        "Mamba2Config": {"num_heads": 2 * size.heads},
        "Molmo2AdapterConfig": {"vision_feature_layer": [-1, -2]},
        "Glm5NextTextConfig": {"index_kpool": 4},
        # the later half of the layers reuses keys and values of the earlier ones of the same type
        "Gemma3nTextConfig": {
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            "intermediate_size": 128,
            "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
            "num_kv_shared_layers": 2,
        },
        "ZambaConfig": {"attention_hidden_size": 2 * size.width, "attention_head_dim": 2 * size.head_dim},
        "Zamba2Config": {
            "attention_hidden_size": 2 * size.width,
            "attention_head_dim": 2 * size.head_dim,
            "n_mamba_heads": 2 * size.heads,
        },
        "BlenderbotConfig": {"encoder_layers": size.layers},
        "HrmTextConfig": {
            "num_layers_per_stack": size.layers,
            "H_cycles": 2,
            "L_cycles": 3,
            "num_hidden_layers": 2 * (3 + 1) * size.layers,
        },
        "MistralLarge4TextConfig": {"kv_source_layers": None},
        "UdopConfig": {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128},
        "Blip2Config": {"image_token_index": 5},
        "InstructBlipConfig": {"image_token_index": 5},
        "InstructBlipVideoConfig": {"video_token_index": 5},
        "PI0Config": {"max_state_dim": 16, "max_action_dim": 16, "chunk_size": 4},
        "Dots3NoteVisionConfig": {"mlp_bias": False},  # its experts have none
        "Step3p7TextConfig": {"sliding_window": 8},
        "DbrxAttentionConfig": {"clip_qkv": 8},
        "Pix2StructVisionConfig": {"patch_embed_hidden_size": 768},
        "xLSTMConfig": {"qk_dim_factor": 1.0, "mlstm_round_up_to_multiple_of": size.head_dim},
        "ConvNextConfig": {"image_size": 64},  # four stages of halving
        **{family + "Config": {"image_grid_pinpoints": [[32, 64], [64, 32]]} for family in _TILING},
        "MllamaVisionConfig": {"vision_output_dim": 3 * size.width},  # the last layer's output and two from between
        "VipLlavaConfig": {"vision_feature_layer": [-1, -2]},
        "AriaConfig": {"projector_patch_to_query_dict": {64: 16}},
        # quick to build: the default is wide in lists or multiples that the rules leave alone
        "ChameleonVQVAEConfig": {"base_channels": 32, "channel_multiplier": [1, 2], "num_res_blocks": 1},
        "Emu3VQVAEConfig": {"base_channels": 32, "channel_multiplier": [1, 2], "num_res_blocks": 1},
        "JanusVQVAEConfig": {"base_channels": 32, "channel_multiplier": [1, 2], "num_res_blocks": 1},
        "SwinConfig": {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        "ReformerConfig": {
            "is_decoder": True,
            "hash_seed": 0,
            "axial_pos_shape": (8, 16),
            "axial_pos_embds_dim": (size.width // 2,) * 2,
        },
    }


# Settings put into a finished config, past its checks.
AFTER: dict[str, Callable[[], Settings]] = {
    # a vision tower that needs another library (timm)
    "FastVlmConfig": lambda: {"vision_config": _plain_vision()},
    "PerceptionLMConfig": lambda: {"vision_config": _plain_vision(model_args={"embed_dim": 64})},
    "Gemma3nConfig": lambda: {"vision_config": _plain_vision(vocab_size=128, vocab_offset=128, rms_norm_eps=1e-6)},
    # read by the model, missing in the config
    "Qwen2_5OmniThinkerConfig": lambda: {"vision_start_token_id": 6},
    "Qwen3OmniMoeThinkerConfig": lambda: {"vision_start_token_id": 6},
    "DbrxAttentionConfig": lambda: {"rope_theta": 10000.0},
}
