"""Writing a checkpoint as it is shipped."""

from __future__ import annotations

import copy
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import GenerationConfig, LlavaForConditionalGeneration

from examples.train_tiny_vlm.model import VOCABULARY


@torch.no_grad()
def round_weights(model: LlavaForConditionalGeneration) -> None:
    """Round to what is stored, so that what is measured before saving holds after loading."""
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16().float())


def save(
    model: LlavaForConditionalGeneration,
    processor: Any,
    folder: Path,
    record: dict[str, Any],
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Save model, processor and the record of the training.

    Args:
        model: not changed.
        processor: saved beside it.
        folder: made where it is missing.
        record: what goes into `run.json`, together with the versions used.
        dtype: of the stored weights.
    """
    stored = copy.deepcopy(model)
    stored.to(dtype=dtype)  # pyright: ignore[reportCallIssue]
    stored.generation_config = GenerationConfig(
        bos_token_id=VOCABULARY["<s>"],
        eos_token_id=VOCABULARY["</s>"],
        pad_token_id=VOCABULARY["<pad>"],
        max_new_tokens=2,
    )
    stored.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # the format's writer leaves it readable to its owner alone
    processor.save_pretrained(folder)
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
    }
    text = json.dumps({**record, "versions": versions}, indent=1)
    (folder / "run.json").write_text(text + "\n", encoding="utf-8")
