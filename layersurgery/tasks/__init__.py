"""Tasks: where samples come from."""

from layersurgery.tasks._local import load_samples
from layersurgery.tasks._sample import LETTERS, Sample

__all__ = ["LETTERS", "Sample", "load_samples"]
