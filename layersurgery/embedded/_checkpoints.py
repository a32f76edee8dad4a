"""The two trained models that come with the library."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from layersurgery.errors import TaskError

CHECKPOINTS = ("natural", "planted")


def checkpoint_path(name: str = "natural") -> Path:
    """The folder of a packaged checkpoint, as `from_pretrained` reads it.

    Args:
        name: "natural" (layers that came to interfere in narrow fine-tuning) or "planted" (a layer that was
            trained to interfere).

    Raises:
        TaskError: for another name.

    Examples:
        >>> checkpoint_path("planted").name
        'planted'
    """
    if name not in CHECKPOINTS:
        near = difflib.get_close_matches(str(name), CHECKPOINTS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"give one of {', '.join(map(repr, CHECKPOINTS))}."
        raise TaskError(f"there is no embedded checkpoint {name!r}: {hint}")
    return Path(__file__).with_name("checkpoints") / name


def load(name: str = "natural") -> tuple[Any, Any]:
    """Load a packaged checkpoint through the Auto classes, as any other model.

    The weights are stored in bfloat16 and computed with in float32.

    Args:
        name: "natural" or "planted".

    Returns:
        the model (a `LlavaForConditionalGeneration` in eval mode) and its processor.

    Raises:
        TaskError: for another name.

    Examples:
        >>> model, processor = load("natural")
        >>> type(model).__name__, model.dtype, model.training
        ('LlavaForConditionalGeneration', torch.float32, False)
    """
    folder = checkpoint_path(name)
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    with _quiet():
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        processor = AutoProcessor.from_pretrained(folder)
    return model.eval(), processor


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar for a load of a tenth of a second, and no word on optional packages; then as it was."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
