"""Models that see: a forward with a picture runs, and the picture matters."""

from __future__ import annotations

import pytest
import torch

from tests.architectures.build import build
from tests.architectures.pictures import with_picture
from tests.architectures.subject import output_of

SEEING = [
    "aria",
    "aya_vision",
    "blip",
    "blip-2",
    "cohere2_vision",
    "cohere_compass",
    "cosmos3_edge",
    "cosmos3_omni",
    "deepseek_ocr2",
    "deepseek_vl",
    "dots3_note",
    "ernie4_5_vl_moe",
    "exaone4_5",
    "fast_vlm",
    "florence2",
    "gemma3",
    "glm46v",
    "glm4v",
    "glm4v_moe",
    "glm5_next",
    "glm_ocr",
    "glmga",
    "got_ocr2",
    "hunyuan_vl",
    "hyperclovax_vision_v2",
    "idefics2",
    "idefics3",
    "instructblip",
    "instructblipvideo",
    "internvl",
    "janus",
    "kosmos-2",
    "lfm3_vl",
    "lighton_ocr",
    "llava",
    "llava_next",
    "llava_next_video",
    "llava_onevision",
    "minimax_m3_vl",
    "mistral3",
    "mistral_large4",
    "mllama",
    "ovis2",
    "paligemma",
    "perception_lm",
    "pi0",
    "pp_chart2table",
    "pp_formulanet",
    "qianfan_ocr",
    "qwen2_5_omni_thinker",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_omni_moe_thinker",
    "qwen3_vl",
    "qwen3_vl_moe",
    "qwen4_exp",
    "shieldgemma2",
    "smolvlm",
    "step3p7",
    "t5gemma2",
    "unlimited_ocr",
    "video_llava",
    "vipllava",
    "vision-encoder-decoder",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEING)
def test_a_picture_matters(name):
    model = build(f"vlm/{name}")
    given = with_picture(f"vlm/{name}", model)
    assert given is not None
    other = {**given, "pixel_values": given["pixel_values"].flip(0, -1)}
    assert not torch.equal(output_of(model, given), output_of(model, other))
