"""Settings, under the names of InternVL2's own code."""

from transformers import LlamaConfig, PretrainedConfig


class InternVisionConfig(PretrainedConfig):
    model_type = "intern_vit_6b"

    def __init__(
        self, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, *, image_size=56, patch_size=14, **more
    ):
        super().__init__(**more)
        self.hidden_size, self.num_hidden_layers = hidden_size, num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.image_size, self.patch_size = image_size, patch_size


class InternVLChatConfig(PretrainedConfig):
    model_type = "internvl_chat"

    def __init__(self, vision_config=None, llm_config=None, downsample_ratio=0.5, force_image_size=None, **more):
        super().__init__(**more)
        self.vision_config = InternVisionConfig(**(vision_config or {}))
        self.llm_config = LlamaConfig(**(llm_config or {}))
        self.downsample_ratio, self.force_image_size = downsample_ratio, force_image_size
