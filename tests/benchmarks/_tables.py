"""Full per-sample score tables of the embedded models: every site on every test sample, made once and kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parents[2] / "build" / "search-tables"  # git ignores it
SAMPLES = 600
BATCH = 100


@dataclass(frozen=True)
class KnownTask:
    """A task of which every cell is known.

    Args:
        name: model and task.
        correct: [sites + 1, n] 0/1 scores; row 0 is the unmodified model.
        margin: [sites + 1, n] margins in nats.
        truth: [sites] mean change of the score by each site.
        kind: "null" (no site helps), "weak" or "strong".
    """

    name: str
    correct: np.ndarray
    margin: np.ndarray
    truth: np.ndarray
    kind: str


def embedded_tasks(samples: int = SAMPLES) -> Iterator[KnownTask]:
    """Every task of both embedded models, from the folder where it is there, else by a sweep."""
    from layersurgery.embedded import CHECKPOINTS, TASKS

    for checkpoint in CHECKPOINTS:
        for task in TASKS:
            path = FOLDER / f"{checkpoint}-{task}-{samples}.npz"
            if not path.exists():
                _make(checkpoint, task, samples, path)
            with np.load(path) as kept:
                yield _known(f"{checkpoint} {task}", kept["correct"], kept["margin"])


def _make(checkpoint: str, task: str, samples: int, path: Path) -> None:
    import torch

    import layersurgery as ls
    from layersurgery.embedded import load, make_samples

    torch.set_num_threads(1)
    model, processor = load(checkpoint)
    table = ls.sweep(
        model, ls.ChoiceScorer(processor), make_samples(task, "test", samples), batch_size=BATCH, progress=path.stem
    )
    save(path, correct=table.correct, margin=table.margin)


def save(path: Path, **arrays: np.ndarray) -> None:
    """Write a table whole or not at all: a command that is killed leaves no half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npz")
    np.savez_compressed(part, allow_pickle=False, **arrays)
    part.replace(path)


def _known(name: str, correct: np.ndarray, margin: np.ndarray) -> KnownTask:
    truth = (correct[1:] - correct[0]).mean(axis=1)
    return KnownTask(name, correct, margin, truth, _kind(correct))


def _kind(correct: np.ndarray) -> str:
    """By the best site: "null" where its gain is below two standard errors, "strong" from ten points on."""
    change = correct[1:] - correct[0]
    gains = change.mean(axis=1)
    best = int(gains.argmax())
    error = change[best].std() / np.sqrt(change.shape[1])
    if gains[best] < 2 * error or gains[best] <= 0:
        return "null"
    return "strong" if gains[best] >= 0.1 else "weak"
