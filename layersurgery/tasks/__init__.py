"""Tasks: what a labelled question is, benchmarks of them, and your own."""

from layersurgery.tasks._benchmark import Benchmark, Task
from layersurgery.tasks._load import Counts
from layersurgery.tasks._local import load_samples
from layersurgery.tasks._probe import Probe, draw_probe
from layersurgery.tasks._registry import benchmark, benchmarks, overlap_warning, warn_of_overlap
from layersurgery.tasks._sample import KINDS, LETTERS, Kind, Sample
from layersurgery.tasks._samples import Samples

__all__ = [
    "Sample",
    "Samples",
    "KINDS",
    "Kind",
    "LETTERS",
    "load_samples",
    "benchmarks",
    "benchmark",
    "Benchmark",
    "Task",
    "Counts",
    "draw_probe",
    "Probe",
    "overlap_warning",
    "warn_of_overlap",
]
