"""Sweep: the unmodified model and every variant, on the samples, cell by cell."""

from layersurgery.sweeps._answers import Answers
from layersurgery.sweeps._executor import Executor, Job, Result
from layersurgery.sweeps._local import LocalExecutor
from layersurgery.sweeps._oracle import ModelOracle
from layersurgery.sweeps._pairs import PairTable, sweep_pairs
from layersurgery.sweeps._store import Run, Store
from layersurgery.sweeps._sweep import sweep
from layersurgery.sweeps._table import ScoreTable

__all__ = [
    "sweep",
    "sweep_pairs",
    "ScoreTable",
    "PairTable",
    "Answers",
    "ModelOracle",
    "Executor",
    "Job",
    "Result",
    "LocalExecutor",
    "Store",
    "Run",
]
