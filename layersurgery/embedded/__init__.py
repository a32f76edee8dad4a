"""A small benchmark and two really trained vision-language models that come with the library."""

from layersurgery.embedded._benchmark import INSTRUCTION, make_samples
from layersurgery.embedded._checkpoints import CHECKPOINTS, checkpoint_path, load
from layersurgery.embedded._questions import TASKS, EmbeddedTask

__all__ = ["TASKS", "EmbeddedTask", "make_samples", "INSTRUCTION", "CHECKPOINTS", "checkpoint_path", "load"]
