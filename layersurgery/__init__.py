"""layersurgery: find the parts of a model that hurt a task, and take them out - reversibly.

Everything public can be reached from here; each name is imported when it is first used, so that `import layersurgery`
costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from layersurgery import errors, testing
    from layersurgery.inspection import Anatomy, inspect
    from layersurgery.interventions import Intervention, LowRank, Mean, Noise, Scale, Skip, Uniform, Zero, register
    from layersurgery.scoring import ChoiceScorer, GenerationScorer, Scores, prompt_template
    from layersurgery.search import Decision, Finding, HalvingRule, PaperRule, Prior, TableOracle, stability, talo
    from layersurgery.sites import Site, Sites, select
    from layersurgery.surgery import Surgery, status
    from layersurgery.sweeps import ModelOracle, ScoreTable, sweep, sweep_pairs
    from layersurgery.tasks import Sample, benchmark, load_samples
    from layersurgery.vectors import InteractionVectors

# name -> room, in the order in which the data flows
_ROOMS = {
    "select": "sites",
    "Site": "sites",
    "Sites": "sites",
    "inspect": "inspection",
    "Anatomy": "inspection",
    "Zero": "interventions",
    "Uniform": "interventions",
    "Mean": "interventions",
    "Noise": "interventions",
    "Scale": "interventions",
    "LowRank": "interventions",
    "Skip": "interventions",
    "Intervention": "interventions",
    "register": "interventions",
    "Surgery": "surgery",
    "status": "surgery",
    "Sample": "tasks",
    "benchmark": "tasks",
    "load_samples": "tasks",
    "prompt_template": "scoring",
    "Scores": "scoring",
    "ChoiceScorer": "scoring",
    "GenerationScorer": "scoring",
    "sweep": "sweeps",
    "sweep_pairs": "sweeps",
    "ScoreTable": "sweeps",
    "ModelOracle": "sweeps",
    "talo": "search",
    "Finding": "search",
    "Decision": "search",
    "HalvingRule": "search",
    "PaperRule": "search",
    "Prior": "search",
    "stability": "search",
    "TableOracle": "search",
    "InteractionVectors": "vectors",
}
_MODULES = ("errors", "testing")

__all__ = [
    "__version__",
    "select",
    "Site",
    "Sites",
    "inspect",
    "Anatomy",
    "Zero",
    "Uniform",
    "Mean",
    "Noise",
    "Scale",
    "LowRank",
    "Skip",
    "Intervention",
    "register",
    "Surgery",
    "status",
    "Sample",
    "benchmark",
    "load_samples",
    "prompt_template",
    "Scores",
    "ChoiceScorer",
    "GenerationScorer",
    "sweep",
    "sweep_pairs",
    "ScoreTable",
    "ModelOracle",
    "talo",
    "Finding",
    "Decision",
    "HalvingRule",
    "PaperRule",
    "Prior",
    "stability",
    "TableOracle",
    "InteractionVectors",
    "errors",
    "testing",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"layersurgery.{name}")
    if name not in _ROOMS:
        raise AttributeError(f"module 'layersurgery' has no attribute {name!r}")
    value = getattr(import_module(f"layersurgery.{_ROOMS[name]}"), name)
    globals()[name] = value  # found at once the next time
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
