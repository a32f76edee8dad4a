"""A small model with the parts and the interface of InternVL2's own code."""

import torch
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedModel

from .configuration_internvl_chat import InternVLChatConfig


class InternAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, states):
        rows, length, width = states.shape
        split = self.qkv(states).view(rows, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*split)
        return self.proj(mixed.transpose(1, 2).reshape(rows, length, width))


class InternVisionEncoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        width = config.hidden_size
        self.attn = InternAttention(config)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, states):
        states = states + self.attn(self.norm1(states))
        return states + self.mlp(self.norm2(states))


class InternVisionModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, config.patch_size, config.patch_size)
        self.layers = nn.ModuleList(InternVisionEncoderLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, pixel_values):
        states = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        for layer in self.layers:
            states = layer(states)
        return states


class InternVLChatModel(PreTrainedModel):
    config_class = InternVLChatConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.vision_model = InternVisionModel(config.vision_config)
        self.language_model = LlamaForCausalLM(config.llm_config)
        joined = int(config.vision_config.hidden_size / config.downsample_ratio**2)
        self.mlp1 = nn.Sequential(nn.LayerNorm(joined), nn.Linear(joined, config.llm_config.hidden_size))
        side = (config.force_image_size or config.vision_config.image_size) // config.vision_config.patch_size
        self.num_image_token = int(side**2 * config.downsample_ratio**2)
        self.img_context_token_id = None
        self.post_init()

    def extract_feature(self, pixel_values):
        states = self.vision_model(pixel_values)
        tiles, patches, width = states.shape
        side = int(patches**0.5)
        blocks = states.view(tiles, side // 2, 2, side // 2, 2, width).permute(0, 1, 3, 2, 4, 5)
        return self.mlp1(blocks.reshape(tiles, patches // 4, 4 * width))

    def _embedded(self, input_ids, pixel_values):
        embedded = self.language_model.get_input_embeddings()(input_ids).clone()
        if pixel_values is not None:
            features = self.extract_feature(pixel_values)
            embedded[input_ids == self.img_context_token_id] = features.reshape(-1, features.shape[-1])
        return embedded

    def forward(self, pixel_values=None, input_ids=None, attention_mask=None, **more):
        embedded = self._embedded(input_ids, pixel_values)
        return self.language_model(inputs_embeds=embedded, attention_mask=attention_mask, **more)

    @torch.no_grad()
    def generate(self, pixel_values=None, input_ids=None, attention_mask=None, **settings):
        embedded = self._embedded(input_ids, pixel_values)
        return self.language_model.generate(inputs_embeds=embedded, attention_mask=attention_mask, **settings)

    def chat(
        self,
        tokenizer,
        pixel_values,
        question,
        generation_config,
        history=None,
        return_history=False,
        num_patches_list=None,
        IMG_START_TOKEN="<img>",
        IMG_END_TOKEN="</img>",
        IMG_CONTEXT_TOKEN="<IMG_CONTEXT>",
        verbose=False,
    ):
        if history is None and pixel_values is not None and "<image>" not in question:
            question = "<image>\n" + question
        if num_patches_list is None:
            num_patches_list = [] if pixel_values is None else [len(pixel_values)]
        assert pixel_values is None or len(pixel_values) == sum(num_patches_list)
        self.img_context_token_id = tokenizer.convert_tokens_to_ids(IMG_CONTEXT_TOKEN)
        query = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        for tiles in num_patches_list:
            marks = IMG_START_TOKEN + IMG_CONTEXT_TOKEN * self.num_image_token * tiles + IMG_END_TOKEN
            query = query.replace("<image>", marks, 1)
        inputs = tokenizer(query, return_tensors="pt").to(self.device)
        generation_config["eos_token_id"] = tokenizer.convert_tokens_to_ids("<|im_end|>")
        output = self.generate(
            pixel_values=pixel_values,
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            **generation_config,
        )
        reply = tokenizer.batch_decode(output, skip_special_tokens=True)[0].strip()
        return (reply, [(question, reply)]) if return_history else reply
