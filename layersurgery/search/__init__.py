"""Search: decide from a few scored samples which site to knock out, if any. The rules know numpy only."""

from layersurgery.search._correct import Corrected, correct_gain
from layersurgery.search._decision import Decision, Rule
from layersurgery.search._finding import Finding
from layersurgery.search._halving import HalvingRule
from layersurgery.search._intervals import Interval, paired_interval
from layersurgery.search._oracle import Oracle, TableOracle
from layersurgery.search._paper import PaperRule
from layersurgery.search._prior import Prior
from layersurgery.search._smooth import smooth
from layersurgery.search._stability import Stability, stability
from layersurgery.search._stage import Stage
from layersurgery.search._talo import talo

__all__ = [
    "talo",
    "Finding",
    "Stage",
    "Decision",
    "Rule",
    "HalvingRule",
    "PaperRule",
    "Prior",
    "Oracle",
    "TableOracle",
    "Interval",
    "paired_interval",
    "Corrected",
    "correct_gain",
    "Stability",
    "stability",
    "smooth",
]
