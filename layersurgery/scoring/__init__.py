"""Scoring: from a model and samples to one number per sample."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from layersurgery.scoring._extract import exact_match, extract_letter, extract_number
from layersurgery.scoring._reading import Reading
from layersurgery.scoring._scores import Scores

if TYPE_CHECKING:
    from layersurgery.scoring._choices import ChoiceScorer
    from layersurgery.scoring._generate import GenerationScorer

__all__ = [
    "Scores",
    "Reading",
    "ChoiceScorer",
    "GenerationScorer",
    "extract_letter",
    "extract_number",
    "exact_match",
]

# The scorers bring torch with them, which those who only read scores (search, vectors) have no use for.
_WITH_TORCH = {"ChoiceScorer": "_choices", "GenerationScorer": "_generate"}


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module 'layersurgery.scoring' has no attribute {name!r}")
    return getattr(import_module(f"layersurgery.scoring.{_WITH_TORCH[name]}"), name)
