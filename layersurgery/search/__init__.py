"""Search: decide from a few scored samples which site to knock out, if any. The rules know numpy only."""

from layersurgery.search._decision import Decision, Rule
from layersurgery.search._intervals import Interval, paired_interval
from layersurgery.search._oracle import Oracle, TableOracle
from layersurgery.search._paper import PaperRule

__all__ = [
    "Decision",
    "Interval",
    "Oracle",
    "PaperRule",
    "Rule",
    "TableOracle",
    "paired_interval",
]
