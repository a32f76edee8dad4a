"""From the name of a model to the model: embedded, in a folder, or on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from layersurgery.errors import LayerSurgeryError


class ModelError(LayerSurgeryError):
    """A model cannot be found or loaded."""


def load_empty(name: str) -> Any:
    """The model without its weights, on the meta device."""
    import torch
    import transformers

    config = _config(name)
    with torch.device("meta"):
        for architecture in config.architectures or ():
            cls = getattr(transformers, architecture, None)
            if cls is not None:
                return cls._from_config(config).eval()  # in the checkpoint's dtype
        return transformers.AutoModel.from_config(config).eval()


def load_model(name: str, *, dtype: str = "auto", device: str = "auto") -> tuple[Any, Any]:
    """The model in evaluation mode, and its processor (a tokenizer, for text models).

    Raises:
        ModelError: if there is no such model, dtype or device.
    """
    import torch
    import transformers

    from layersurgery.embedded import CHECKPOINTS, load

    place = _device(device)
    if name in CHECKPOINTS and not Path(name).exists():
        model, processor = load(name)
        return (model if dtype == "auto" else model.to(_dtype(dtype))).to(place), processor
    config = _config(name)
    pictures = type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    text_to_text = getattr(config, "is_encoder_decoder", False)
    auto = (
        transformers.AutoModelForImageTextToText
        if pictures
        else transformers.AutoModelForSeq2SeqLM
        if text_to_text
        else transformers.AutoModelForCausalLM
    )
    try:
        processor = (transformers.AutoProcessor if pictures else transformers.AutoTokenizer).from_pretrained(name)
        model = auto.from_pretrained(name, dtype="auto" if dtype == "auto" else _dtype(dtype))
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"{name} cannot be loaded: {error}") from error
    if place.type == "cpu" and dtype == "auto" and model.dtype == torch.float16:
        model = model.float()  # half precision is slow on a CPU, and unsupported in places
    return model.eval().to(place), processor


def _config(name: str) -> Any:
    import transformers

    from layersurgery.embedded import CHECKPOINTS, checkpoint_path

    source = checkpoint_path(name) if name in CHECKPOINTS and not Path(name).exists() else name
    try:
        return transformers.AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no model {name!r}: not an embedded one ({', '.join(CHECKPOINTS)}), not a folder with a config.json, and "
            f"the hub gave none ({_first_sentence(error)})"
        ) from error


def _first_sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text.split(". ")[0][:200]


def _dtype(name: str) -> Any:
    import torch

    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ModelError(f"unknown dtype {name!r}; give float32, bfloat16, float16 or auto")
    return dtype


def _device(name: str) -> Any:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(f"the device {name!r} cannot be used: {_first_sentence(error)}") from error
    return device
