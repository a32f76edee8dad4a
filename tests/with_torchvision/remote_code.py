"""A tiny checkpoint whose code lies beside its weights, with the interface of InternVL2's: `build(folder)`.

The code is in the folder `internvl2_code`. What it shares with the official one: model type, the names of parts and
settings, and the arguments of `chat` and `generate`. The language model is a Llama, as in InternVL2-40B.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.with_torchvision.checkpoints import LAYERS, qwen2_tokenizer

CODE = Path(__file__).resolve().parent / "internvl2_code"


def build(folder: Path, *, seed: int = 0) -> Path:
    """Write the checkpoint into `folder`, and return the folder."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModel

    tokenizer = qwen2_tokenizer(["<img>", "</img>", "<IMG_CONTEXT>"])
    tokenizer.save_pretrained(folder)
    for name in ("configuration_internvl_chat.py", "modeling_internvl_chat.py"):
        shutil.copy(CODE / name, folder)
    code = {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"}
    code["AutoModel"] = "modeling_internvl_chat.InternVLChatModel"
    config = {
        "model_type": "internvl_chat",
        "architectures": ["InternVLChatModel"],
        "auto_map": code,
        "force_image_size": 56,
        "downsample_ratio": 0.5,
        "vision_config": {"model_type": "intern_vit_6b", "image_size": 56},
        "llm_config": {
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": None,
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        loaded = AutoConfig.from_pretrained(folder, trust_remote_code=True)
        model = AutoModel.from_config(loaded, trust_remote_code=True)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.2)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
