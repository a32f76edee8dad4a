"""Tasks: where samples come from."""

from layersurgery.tasks._local import load_samples
from layersurgery.tasks._sample import KINDS, LETTERS, Kind, Sample

__all__ = ["KINDS", "Kind", "LETTERS", "Sample", "load_samples"]
