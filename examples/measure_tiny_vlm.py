"""What every layer's attention does for every task of an embedded model.

`python -m examples.measure_tiny_vlm natural` prints the table; `--markdown FILE` writes it, `--npz FILE` keeps
every single answer.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest

from layersurgery import ChoiceScorer, Sample, Zero, select, sweep
from layersurgery.embedded import TASKS, make_samples
from layersurgery.tasks import LETTERS

ALPHA = 0.05
BATCH = 64


@dataclass(frozen=True)
class Row:
    """One task's line: accuracies and changes in points, p values corrected over all cells of the table."""

    task: str
    family: str
    chance: float
    constant: float
    base: float
    change: np.ndarray
    p: np.ndarray

    @property
    def verdict(self) -> str:
        """Gain: some knock-out helps significantly; harm: none does, and some hurts; null: neither."""
        if np.any((self.p < ALPHA) & (self.change > 0)):
            return "gain"
        return "harm" if np.any(self.p < ALPHA) else "null"

    def brief(self) -> dict[str, Any]:
        """The base accuracy and the layer that gains most, for a record."""
        layer = int(np.argmax(self.change))
        return {
            "base": round(float(self.base), 2),
            "layer": layer,
            "change": round(float(self.change[layer]), 2),
            "p": float(f"{self.p[layer]:.2g}"),
            "class": self.verdict,
        }


def answers(model: Any, processor: Any, samples: list[Sample]) -> np.ndarray:
    """Correctness of the model as it is, and with each decoder layer's attention zeroed.

    Args:
        model: an embedded model, in eval mode.
        processor: its processor.
        samples: of one task.

    Returns:
        [1 + layers, n] booleans: whether the right option's letter is the likeliest.
    """
    score = ChoiceScorer(processor, batch_size=BATCH)
    table = sweep(model, score, samples, at=select(model), do=Zero())
    return np.vstack([table.base, table.scores]) > 0.5


def summarise(samples: dict[str, list[Sample]], tables: dict[str, np.ndarray]) -> list[Row]:
    """Per task: accuracies, changes and p values.

    The p value of a cell is the exact two-sided McNemar test's on the samples whose correctness changed,
    corrected by Holm's method over all tasks and layers.

    Args:
        samples: task -> its samples.
        tables: task -> what `answers` returned for them.
    """
    raw = np.array([[_mcnemar(table[0], row) for row in table[1:]] for table in tables.values()])
    corrected = _holm(raw.ravel()).reshape(raw.shape)
    rows = []
    for p, (task, table) in zip(corrected, tables.items(), strict=True):
        accuracy = 100 * table.mean(axis=1)
        counts = np.bincount([LETTERS.index(sample.letter) for sample in samples[task]])
        rows.append(
            Row(
                task=task,
                family=TASKS[task].family,
                chance=100 * TASKS[task].chance,
                constant=100 * counts.max() / len(samples[task]),
                base=accuracy[0],
                change=accuracy[1:] - accuracy[0],
                p=p,
            )
        )
    return rows


def measure(model: Any, processor: Any, split: str, n: int, seed: int = 0) -> tuple[list[Row], dict[str, np.ndarray]]:
    """All tasks of the benchmark on fresh samples.

    Args:
        model: an embedded model, in eval mode.
        processor: its processor.
        split: "probe" to choose by, "test" to report.
        n: samples per task.
        seed: of the samples.

    Returns:
        what `summarise` says, and per task what `answers` returned.
    """
    samples = {task: make_samples(task, split, n, seed) for task in TASKS}
    tables = {task: answers(model, processor, some) for task, some in samples.items()}
    return summarise(samples, tables), tables


def markdown(rows: list[Row]) -> str:
    """The table as Markdown; significant changes are bold."""
    layers = len(rows[0].change)
    head = ["task", "family", "chance", "best constant letter", "base", *map(str, range(layers))]
    head += ["best layer (p)", "worst layer (p)", "class"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cells = [f"**{c:+.1f}**" if p < ALPHA else f"{c:+.1f}" for c, p in zip(row.change, row.p, strict=True)]
        best, worst = (f"{i} ({row.p[i]:.2g})" for i in (row.change.argmax(), row.change.argmin()))
        accuracy = [f"{value:.1f}" for value in (row.chance, row.constant, row.base)]
        lines.append([row.task, row.family, *accuracy, *cells, best, worst, row.verdict])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m examples.measure_tiny_vlm", description=__doc__)
    parser.add_argument("name", choices=("natural", "planted"), help="which checkpoint")
    parser.add_argument("--samples", type=int, default=600, help="test samples per task (600)")
    parser.add_argument("--seed", type=int, default=0, help="of the test samples (0)")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    parser.add_argument("--npz", type=Path, help="keep the 0/1 tables, [1 + layers, samples] per task")
    options = parser.parse_args()

    from layersurgery.embedded import load

    torch.set_num_threads(1)
    model, processor = load(options.name)
    rows, tables = measure(model, processor, "test", options.samples, options.seed)
    text = markdown(rows)
    print(text)
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")
    if options.npz:
        np.savez_compressed(options.npz, allow_pickle=False, **tables)


def _mcnemar(before: np.ndarray, after: np.ndarray) -> float:
    won, lost = int(np.sum(after & ~before)), int(np.sum(before & ~after))
    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def _holm(p: np.ndarray) -> np.ndarray:
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected


if __name__ == "__main__":
    main()
