"""Scoring: from a model and samples to one number per sample."""

from layersurgery.scoring._reading import Reading
from layersurgery.scoring._scores import Scores

__all__ = ["Scores", "Reading"]
