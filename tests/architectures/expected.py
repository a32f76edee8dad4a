"""What `select` should find in each model, decided by reading the model's source; data, not code.

A token mixer is the smallest module that holds all weights of one mixing of positions (projections included) and leaves
the residual sum outside where it can; the norms inside BERT's `attention` cannot be left outside. A feed-forward is the
same for what works on each position alone. That they do so is checked too (`test_expected`).
"""

from __future__ import annotations

from tests.architectures.layout import Layout

SELF = {"self_attn": "self_attention"}
DENSE = {"mlp": "mlp"}
MOE = {"mlp": "moe"}
EITHER = {"mlp: *MLP": "mlp", "mlp": "moe"}  # some layers dense, others a mixture
FC = {"fc1 + fc2": "mlp"}
BERT = {"intermediate.dense + output.dense": "mlp"}
DELTA = {"linear_attn": "linear_attention", "self_attn": "self_attention"}
SELF_AND_CROSS = {"self_attn": "self_attention", "encoder_attn": "cross_attention"}
NORM_OF_SUM = "output.LayerNorm(hidden_states)"
POST_NORM = {"attention": NORM_OF_SUM}  # the sum and its norm are inside the attention, not inside the feed-forward
NEMOTRON_H = (
    {"mixer: *Mamba2Mixer": "mamba", "mixer: *Attention": "self_attention"},
    {"mixer: *MoE": "moe", "mixer: *MLP": "mlp"},
)
IN_MODEL = "model.layers"
IN_LANGUAGE = "model.language_model.layers"
IN_TEXT = "model.text_model.layers"
IN_DECODER = "model.decoder.layers"

LAYOUTS: list[tuple[Layout, str]] = [
    # image-text-to-text
    (
        Layout(IN_LANGUAGE, SELF, DENSE),
        """aya_vision cohere2_vision cohere_compass cosmos3_edge cosmos3_omni deepseek_vl deepseek_vl_hybrid exaone4_5
        fast_vlm fuyu gemma3 gemma3n gemma4 gemma4_unified glm46v glm4v glm_ocr glmga got_ocr2 granite4_vision
        hunyuan_vl hyperclovax_vision_v2 internvl janus lighton_ocr llava llava_next llava_next_video llava_onevision
        mistral3 molmo2 muse_glimmer ovis2 paddleocr_vl paligemma perception_lm pp_chart2table qianfan_ocr
        qwen2_5_omni_thinker qwen2_5_vl qwen2_vl qwen3_vl shieldgemma2 video_llama_3 video_llava vipllava""",
    ),
    (
        Layout(IN_LANGUAGE, SELF, EITHER),
        """deepseek_ocr2 dots3_note ernie4_5_vl_moe glm4v_moe kimi_k25 minimax_m3_vl mistral_large4 step3p7
        unlimited_ocr""",
    ),
    (Layout(IN_LANGUAGE, SELF, MOE), "aria muse_spark qwen3_omni_moe_thinker qwen3_vl_moe"),
    # the short convolutions after attention and mixture refine what these give; they mix nothing into the stream alone
    (Layout(IN_LANGUAGE, SELF, MOE), "inkling2 inkling_mm_model"),
    (Layout(IN_LANGUAGE, DELTA, DENSE), "minicpm_ocr minicpmv4_6 minicpmv4_7 qwen3_5"),
    (Layout(IN_LANGUAGE, DELTA, MOE), "qwen3_5_moe qwen4_exp"),
    (
        Layout(IN_LANGUAGE, {"self_attn: *LinearAttention": "linear_attention", "self_attn": "self_attention"}, EITHER),
        "glm5_next",
    ),
    (Layout(IN_LANGUAGE, {"self_attn": "self_attention", "conv": "conv"}, {"feed_forward": "mlp"}), "lfm2_vl lfm3_vl"),
    (Layout(IN_LANGUAGE, {"self_attn": "self_attention", "cross_attn": "cross_attention"}, DENSE), "mllama"),
    (Layout(IN_TEXT, SELF, DENSE), "emu3 granite_docling idefics2 idefics3 smolvlm"),
    (Layout(IN_MODEL, SELF, DENSE), "chameleon"),
    (Layout(IN_MODEL, SELF, MOE), "mistral4"),
    # between its layers stand `gated_cross_attn_layers`, a second list: layers that were added, not the backbone's
    (Layout(IN_MODEL, SELF, DENSE), "idefics"),
    # the adapter is a cross-attention to a protein with a feed-forward of its own, in some layers
    (Layout(IN_MODEL, {**SELF, "adapter": "cross_attention"}, DENSE, {"adapter": "query_states"}), "evolla"),
    (
        Layout(
            "text_decoder.bert.encoder.layer",
            {"attention": "self_attention", "crossattention": "cross_attention"},
            BERT,
            {**POST_NORM, "crossattention": NORM_OF_SUM},
        ),
        "blip",
    ),
    (
        Layout(
            "decoder.bert.encoder.layer",
            {"attention": "self_attention", "crossattention": "cross_attention"},
            BERT,
            {**POST_NORM, "crossattention": NORM_OF_SUM},
        ),
        "vision-encoder-decoder",
    ),
    (Layout("git.encoder.layer", {"attention": "self_attention"}, BERT, POST_NORM), "git"),
    (Layout("language_model.model.decoder.layers", SELF, FC), "blip-2 instructblip instructblipvideo"),
    (Layout("model.language_model.decoder.layers", SELF_AND_CROSS, FC), "florence2"),
    (Layout("text_model.model.layers", SELF, {"ffn": "mlp"}), "kosmos-2 kosmos-2.5"),
    (
        Layout("language_model.model.layers", SELF, {"feed_forward: *MLP": "mlp", "feed_forward": "moe"}),
        "llama4",
    ),
    (Layout("language_model.model.layers", *NEMOTRON_H), "nemotron_h_omni"),
    # encoder and decoder hold the same weights; the decoder writes
    (Layout(IN_DECODER, SELF, {"mlp": "mlp", "experts": "moe"}), "diffusion_gemma"),
    # `model.dit` is the action expert
    (Layout("model.vlm.language_model.layers", SELF, DENSE), "pi0"),
    (
        Layout(
            "decoder.layer",
            {"self_attention.attention": "self_attention", "encoder_decoder_attention.attention": "cross_attention"},
            {"mlp.DenseReluDense": "mlp"},
        ),
        "pix2struct",
    ),
    (Layout(IN_DECODER, SELF_AND_CROSS, FC), "pp_formulanet"),
    # one attention over the decoder's and the encoder's positions together
    (Layout(IN_DECODER, SELF, DENSE), "t5gemma2"),
    (
        Layout(
            "decoder.block",
            {"layer.0.SelfAttention": "self_attention", "layer.1.EncDecAttention": "cross_attention"},
            {"layer.2.DenseReluDense": "mlp"},
        ),
        "udop other/t5",
    ),
    # causal language models
    (
        Layout(IN_MODEL, SELF, DENSE),
        """causal/apertus causal/arcee causal/bitnet causal/cohere causal/cohere2 causal/cohere_compass_text causal/cwm
        causal/diffllama causal/doge causal/emu3 causal/ernie4_5 causal/exaone4 causal/gemma causal/gemma2
        causal/gemma3_text causal/gemma3n_text causal/gemma4_text causal/gemma4_unified_text causal/glm causal/glm4
        causal/granite causal/granite_swa causal/helium causal/hunyuan_v1_dense causal/hyperclovax causal/llama
        causal/jais2 causal/minicpm3 causal/ministral causal/ministral3 causal/mistral causal/moshi causal/nanochat
        causal/nemotron causal/olmo causal/olmo2 causal/olmo3 causal/persimmon causal/phi causal/phi3
        causal/phi4_multimodal causal/qwen2 causal/qwen3 causal/seed_oss causal/smollm3 causal/stablelm
        causal/starcoder2 causal/vaultgemma causal/youtu""",
    ),
    (
        Layout(IN_MODEL, SELF, EITHER),
        """causal/afmoe causal/axk1 causal/axk2 causal/beam causal/deepseek_v3 causal/deepseek_v32
        causal/dots3_note_text
        causal/ernie4_5_moe causal/exaone_moe causal/flint causal/glm4_moe causal/glm4_moe_lite causal/glm_moe_dsa
        causal/hy_v3 causal/hy_v4 causal/laguna causal/mimo_v2_flash causal/minimax_m3_vl_text""",
    ),
    (
        Layout(IN_MODEL, SELF, MOE),
        """causal/aria_text causal/cohere2_moe causal/deepseek_v2 causal/deepseek_v4 causal/dots1 causal/flex_olmo
        causal/gpt_oss causal/hunyuan_v1_moe causal/kolibri1 causal/mellum causal/minimax_m2 causal/mixtral causal/olmoe
        causal/phimoe causal/qwen2_moe causal/qwen3_moe causal/solar_open causal/zaya""",
    ),
    (Layout(IN_MODEL, SELF, MOE), "causal/inkling2_text causal/inkling_text"),  # as in their multimodal models
    (Layout(IN_MODEL, SELF, {"block_sparse_moe": "moe"}), "causal/granitemoe causal/granitemoe_swa"),
    (Layout(IN_MODEL, SELF, {"block_sparse_moe": "moe", "shared_mlp": "mlp"}), "causal/granitemoeshared"),
    (
        Layout(
            IN_MODEL,
            {"self_attn": "self_attention", "mamba": "mamba"},
            {"block_sparse_moe": "moe", "shared_mlp": "mlp"},
        ),
        "causal/granitemoehybrid",
    ),
    # its experts are inside the attention too
    (Layout(IN_MODEL, {"self_attention": "self_attention"}, MOE), "causal/jetmoe"),
    (Layout(IN_MODEL, SELF, {"feed_forward: *MLP": "mlp", "feed_forward": "moe"}), "causal/llama4_text"),
    (Layout(IN_MODEL, DELTA, DENSE), "causal/olmo_hybrid causal/qwen3_5_text"),
    (Layout(IN_MODEL, DELTA, MOE), "causal/qwen3_5_moe_text causal/qwen3_next causal/qwen4_exp_text"),
    (
        Layout(IN_MODEL, {"self_attn: *DeltaAttention": "linear_attention", "self_attn": "self_attention"}, EITHER),
        "causal/bailing_hybrid causal/kimi_linear",
    ),
    (
        Layout(IN_MODEL, {"self_attn: *LightningAttention": "linear_attention", "self_attn": "self_attention"}, MOE),
        "causal/minimax",
    ),
    (
        Layout(IN_MODEL, {"self_attn": "self_attention", "mamba": "mamba"}, {"feed_forward": "mlp"}),
        "causal/bamba causal/falcon_h1",
    ),
    (
        Layout(
            IN_MODEL,
            {"self_attn": "self_attention", "mamba": "mamba"},
            {"feed_forward: *MLP": "mlp", "feed_forward": "moe"},
        ),
        "causal/jamba",
    ),
    (
        Layout(IN_MODEL, {"self_attn": "self_attention", "conv": "conv"}, {"feed_forward": "mlp"}),
        "causal/lfm2 causal/lfm3",
    ),
    (
        Layout(
            IN_MODEL,
            {"self_attn": "self_attention", "conv": "conv"},
            {"feed_forward: *MLP": "mlp", "feed_forward": "moe"},
        ),
        "causal/lfm2_moe",
    ),
    # two attentions and two dense feed-forwards in each layer, and a mixture across
    (
        Layout(
            IN_MODEL,
            {"self_attn.0": "self_attention", "self_attn.1": "self_attention"},
            {"mlp": "moe", "mlps.0": "mlp", "mlps.1": "mlp"},
        ),
        "causal/longcat_flash",
    ),
    (Layout(IN_MODEL, {"self_attn": "self_attention", "cross_attn": "cross_attention"}, DENSE), "causal/mllama"),
    (Layout(IN_MODEL, {"attn": "self_attention"}, DENSE), "causal/modernbert-decoder"),
    (
        Layout(
            IN_MODEL,
            {"temporal_block: *RecurrentBlock": "recurrent", "temporal_block": "self_attention"},
            {"mlp_block": "mlp"},
        ),
        "causal/recurrent_gemma",
    ),
    # one transformer block, shared by all hybrid layers, before their own mamba
    (
        Layout(
            IN_MODEL,
            {"mamba": "mamba", "mamba_decoder.mamba": "mamba", "shared_transf.self_attn": "self_attention"},
            {"shared_transf.feed_forward": "mlp"},
        ),
        "causal/zamba",
    ),
    (
        Layout(
            IN_MODEL,
            {"mamba": "mamba", "mamba_decoder.mamba": "mamba", "shared_transformer.self_attn": "self_attention"},
            {"shared_transformer.feed_forward": "mlp"},
        ),
        "causal/zamba2",
    ),
    (Layout(IN_MODEL, SELF, FC), "causal/xglm"),
    (Layout("biogpt.layers", SELF, FC), "causal/biogpt"),
    (Layout(IN_DECODER, SELF, FC), "causal/musicgen_melody causal/opt"),
    (
        Layout(IN_DECODER, SELF_AND_CROSS, FC),
        """causal/bart causal/bigbird_pegasus causal/blenderbot causal/blenderbot-small causal/marian causal/mbart
        causal/musicgen causal/mvp causal/pegasus causal/plbart causal/trocr causal/whisper
        other/bart other/pegasus other/whisper""",
    ),
    (
        Layout(
            "prophetnet.decoder.layers",
            {"self_attn": "self_attention", "cross_attn": "cross_attention"},
            {"feed_forward": "mlp"},
        ),
        "causal/prophetnet",
    ),
    (Layout(IN_LANGUAGE, SELF, DENSE), "causal/moss_transcribe_diarize"),
    # the patches' transformer is the language model; encoder, decoder and patcher turn bytes into patches and back
    (Layout("model.global_transformer.layers", SELF, DENSE), "causal/blt"),
    # two stacks that run in turn
    (Layout(("model.L_module.layers", "model.H_module.layers"), SELF, DENSE), "causal/hrm_text"),
    (Layout("transformer.h", {"self_attention": "self_attention"}, DENSE), "causal/falcon"),
    (
        Layout(
            "transformer.h",
            {"self_attention": "self_attention"},
            DENSE,
            {"self_attention": "residual", "mlp": "residual"},
        ),
        "causal/bloom",
    ),
    (
        Layout("transformer.h", {"attn": "self_attention"}, DENSE),
        "causal/codegen causal/gpt2 causal/gpt_bigcode causal/gpt_neo causal/gptj causal/openai-gpt",
    ),
    (Layout("transformer.h", {"multi_head_attention": "self_attention"}, {"ffn": "mlp"}), "causal/ctrl"),
    (Layout("transformer.blocks", {"norm_attn_norm.attn": "self_attention"}, {"ffn": "moe"}), "causal/dbrx"),
    (Layout("transformer.blocks", {"attn": "self_attention"}, {"ffn": "mlp"}, {"ffn": "residual"}), "causal/mpt"),
    (
        Layout(
            "transformer.layer",
            {"rel_attn": "self_attention"},
            {"ff": "mlp"},
            {"rel_attn": "layer_norm(h)", "ff": "layer_norm(inp)"},
        ),
        "causal/xlnet",
    ),
    # no module for a layer: lists of attentions, norms and feed-forwards side by side
    (Layout("transformer.attentions", {"": "self_attention"}, {"/transformer.ffns.{}": "mlp"}), "causal/xlm"),
    (Layout("gpt_neox.layers", {"attention": "self_attention"}, DENSE), "causal/gpt_neox"),
    # the last layer's attention hands out a bias besides its output, and the layer adds both
    (
        Layout("gpt_neox_japanese.layers", {"attention": "self_attention"}, DENSE, {"attention": "*"}),
        "causal/gpt_neox_japanese",
    ),
    (
        Layout("cpmant.encoder.layers", {"self_att.self_attention": "self_attention"}, {"ffn.ffn": "mlp"}),
        "causal/cpmant",
    ),
    (Layout("backbone.layers", {"mixer": "mamba"}), "causal/falcon_mamba causal/mamba causal/mamba2"),
    (Layout("model.layers", *NEMOTRON_H), "causal/nemotron_h"),
    (Layout("backbone.blocks", {"mlstm_layer": "recurrent"}, {"ffn": "mlp"}), "causal/xlstm"),
    # its feed-forward looks one position back, and is a feed-forward all the same
    (Layout("rwkv.blocks", {"attention": "recurrent"}, {"feed_forward": "mlp"}), "causal/rwkv"),
    (Layout("reformer.encoder.layers", {"attention": "self_attention"}, {"feed_forward": "mlp"}), "causal/reformer"),
    # encoders and vision, audio and two-tower models
    (
        Layout("bert.encoder.layer", {"attention": "self_attention"}, BERT, POST_NORM),
        "causal/bert causal/bert-generation causal/big_bird other/bert",
    ),
    # the norm comes first: only the sum is inside
    (
        Layout("bert.encoder.layer", {"attention": "self_attention"}, BERT, {"attention": "hidden_states"}),
        "causal/megatron-bert",
    ),
    (
        Layout("roberta.encoder.layer", {"attention": "self_attention"}, BERT, POST_NORM),
        "causal/camembert causal/roberta causal/xlm-roberta causal/xmod other/roberta other/xlm-roberta",
    ),
    (
        Layout("roberta.encoder.layer", {"attention": "self_attention"}, BERT, {"attention": "hidden_states"}),
        "causal/xlm-roberta-xl",
    ),
    (Layout("data2vec_text.encoder.layer", {"attention": "self_attention"}, BERT, POST_NORM), "causal/data2vec-text"),
    (Layout("electra.encoder.layer", {"attention": "self_attention"}, BERT, POST_NORM), "causal/electra other/electra"),
    (Layout("ernie.encoder.layer", {"attention": "self_attention"}, BERT, POST_NORM), "causal/ernie"),
    (Layout("rembert.encoder.layer", {"attention": "self_attention"}, BERT, POST_NORM), "causal/rembert"),
    (
        Layout(
            "roberta_prelayernorm.encoder.layer",
            {"attention": "self_attention"},
            BERT,
            {"attention": "hidden_states"},
        ),
        "causal/roberta-prelayernorm",
    ),
    (Layout("roc_bert.encoder.layer", {"attention": "self_attention"}, BERT, POST_NORM), "causal/roc_bert"),
    (Layout("roformer.encoder.layer", {"attention": "self_attention"}, BERT, POST_NORM), "causal/roformer"),
    (Layout("deberta.encoder.layer", {"attention": "self_attention"}, BERT, POST_NORM), "other/deberta-v2"),
    # one layer's module runs as every layer
    (
        Layout(
            "albert.encoder.albert_layer_groups.#.albert_layers",
            {"attention": "self_attention"},
            {"ffn + ffn_output": "mlp"},
            {"attention": "LayerNorm(hidden_states)"},
        ),
        "other/albert",
    ),
    (Layout("distilbert.transformer.layer", {"attention": "self_attention"}, {"ffn": "mlp"}), "other/distilbert"),
    (Layout("vit.layers", {"attention": "self_attention"}, DENSE), "other/vit"),
    (Layout("dinov2.encoder.layer", {"attention": "self_attention"}, DENSE), "other/dinov2"),
    (Layout("swin.encoder.layers.#.blocks", {"attention": "self_attention"}, DENSE), "other/swin"),
    (Layout("text_model.encoder.layers", SELF, DENSE), "other/clip other/siglip"),
    (Layout("hubert.encoder.layers", {"attention": "self_attention"}, {"feed_forward": "mlp"}), "other/hubert"),
    (Layout("wav2vec2.encoder.layers", {"attention": "self_attention"}, {"feed_forward": "mlp"}), "other/wav2vec2"),
    # a depth-wise convolution over positions, then a feed-forward on each
    (Layout("convnext.encoder.stages.#.layers", {"dwconv": "conv"}, {"pwconv1 + pwconv2": "mlp"}), "other/convnext"),
]

# Nothing in these mixes positions apart from working on each, so that `select` has to refuse with the reason.
REFUSED = ("other/resnet",)

# What no output of a module holds alone, so that taking it away has to be refused.
NO_CONTRIBUTION = {
    "causal/xlnet": "its output projection is a bare parameter, and the sum with the residual stream follows inside"
}

LAYOUT_OF = {name if "/" in name else f"vlm/{name}": layout for layout, names in LAYOUTS for name in names.split()}
