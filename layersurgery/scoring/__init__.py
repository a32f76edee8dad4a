"""Scoring: from a model and samples to one number per sample."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from layersurgery.scoring._prompts import Picture
from layersurgery.scoring._reading import Reading
from layersurgery.scoring._rules import RULES, Judgement, Rule, judge
from layersurgery.scoring._scores import Scores
from layersurgery.scoring._templates import PromptTemplate, model_family, prompt_styles, prompt_template

if TYPE_CHECKING:
    from layersurgery.scoring._choices import ChoiceScorer
    from layersurgery.scoring._generate import GenerationScorer

__all__ = [
    "Scores",
    "Reading",
    "ChoiceScorer",
    "GenerationScorer",
    "prompt_template",
    "prompt_styles",
    "model_family",
    "PromptTemplate",
    "Picture",
    "judge",
    "Judgement",
    "RULES",
    "Rule",
]

# The scorers bring torch with them, which those who only read scores (search, vectors) have no use for.
_WITH_TORCH = {"ChoiceScorer": "_choices", "GenerationScorer": "_generate"}


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module 'layersurgery.scoring' has no attribute {name!r}")
    return getattr(import_module(f"layersurgery.scoring.{_WITH_TORCH[name]}"), name)
