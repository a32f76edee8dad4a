"""`layersurgery demo`: the whole way on the embedded model - sites, search, check, answers, map, files, restoration."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layersurgery.cli import _screen as screen

HELD_OUT = 500
MAP_SAMPLES = 100
BATCH = 100


@dataclass(frozen=True)
class Story:
    """One search of the demo."""

    title: str
    checkpoint: str
    task: str
    shots: int


# The paper draws 10 to 20 samples. For a large effect that is enough. To see that no layer helps it is not: the best of
# eight on 20 samples mostly looks like a gain (`docs/method.md`), so the last search draws more.
STORIES = (
    Story("A layer that came to interfere by itself, in narrow fine-tuning", "natural", "digit_even", 20),
    Story("A layer that was planted: inserted, and trained on wrong labels", "planted", "digit_name", 20),
    Story("A task that needs every layer: nothing should be found", "natural", "digit_count", 150),
)


def demo(options: argparse.Namespace) -> None:
    """Run the demo; print what happens, or one JSON object."""
    start = time.perf_counter()
    show = not options.json
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    with _one_thread():
        report = _Demo(folder, options.seed, show).run()
    report["seconds"] = round(time.perf_counter() - start, 1)
    path = folder / "demo.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if options.json:
        print(json.dumps(report))
    else:
        print(f"\nwritten to {folder}/: {', '.join(sorted(entry.name for entry in folder.iterdir()))}")
        print(f"done in {report['seconds']:.0f} s")


@contextmanager
def _one_thread() -> Iterator[None]:
    """On a model this small, threads wait for each other more than they compute, and on a busy machine for minutes."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Demo:
    """The steps, in order; each prints its part and returns its record."""

    def __init__(self, folder: Path, seed: int, show: bool) -> None:
        from layersurgery import ChoiceScorer
        from layersurgery.embedded import CHECKPOINTS, load

        self._folder, self._seed, self._show = folder, seed, show
        self._models, self._scorers, self._processors = {}, {}, {}
        for name in CHECKPOINTS:
            self._models[name], self._processors[name] = load(name)
            self._scorers[name] = ChoiceScorer(self._processors[name], batch_size=BATCH)

    def run(self) -> dict[str, Any]:
        from layersurgery.testing import Snapshot

        self._warm_up()
        before = {name: Snapshot.of(model) for name, model in self._models.items()}
        report: dict[str, Any] = {"sites": self._sites()}
        findings = [self._search(story) for story in STORIES]
        report["findings"] = [
            {"checkpoint": s.checkpoint, "task": s.task, **f.to_dict()} for s, f in zip(STORIES, findings, strict=True)
        ]
        chosen = [(story, found) for story, found in zip(STORIES, findings, strict=True) if found.surgery is not None]
        if chosen:
            story, found = chosen[0]
            report["answers"] = self._answers(story, found.surgery)
            report["file"] = self._file(story, found.surgery)
        report["map"] = self._map()
        report["restored"] = self._restored(before)
        return report

    def _say(self, text: str = "") -> None:
        if self._show:
            print(text)

    def _warm_up(self) -> None:
        """One forward of each model: transformers may install hooks of its own at the first."""
        from layersurgery.embedded import make_samples

        for name, model in self._models.items():
            self._scorers[name](model, make_samples("digit_name", "probe", 1))

    def _sites(self) -> list[str]:
        from layersurgery import select

        model = self._models["natural"]
        sites = select(model)
        self._say(screen.title("Where: the attention of each layer of the language backbone"))
        total = sum(parameter.numel() for parameter in model.parameters())
        self._say(f"{type(model).__name__}, {total:,} parameters, really trained, tiny\n\n{sites}")
        return list(sites.paths)

    def _search(self, story: Story) -> Any:
        from layersurgery import PaperRule, talo
        from layersurgery.embedded import TASKS, make_samples

        self._say(screen.title(story.title))
        self._say(
            f"task {story.task}: {TASKS[story.task].description} Probe: {story.shots} samples, or more on a tie.\n"
        )
        found = talo(
            self._models[story.checkpoint],
            self._scorers[story.checkpoint],
            make_samples(story.task, "probe", 4 * story.shots),
            rule=PaperRule(story.shots),
            confirm=make_samples(story.task, "test", HELD_OUT),
            seed=self._seed,
            progress=self._show,
        )
        self._say(screen.paragraph(str(found)))
        return found

    def _answers(self, story: Story, surgery: Any) -> list[dict[str, str]]:
        """The first questions whose generated answer changes, for better or worse."""
        from layersurgery import GenerationScorer
        from layersurgery.embedded import make_samples

        model = self._models[story.checkpoint]
        scorer = GenerationScorer(self._processors[story.checkpoint], batch_size=BATCH, max_new_tokens=4)
        samples = make_samples(story.task, "test", BATCH, seed=1)
        before = scorer(model, samples)
        with surgery(model):
            after = scorer(model, samples)
        rows = []
        for sample, old, new in zip(samples, before.text or (), after.text or (), strict=True):
            if old != new and len(rows) < 3:
                options = ", ".join(f"{letter} {text}" for letter, text in zip("ABCD", sample.options, strict=False))
                rows.append(
                    {
                        "question": sample.question,
                        "options": options,
                        "right": sample.letter,
                        "before": old,
                        "after": new,
                    }
                )
        self._say(screen.title("Generated answers before and after: the first three that change"))
        self._say(screen.table(rows))
        right = [int(scores.correct.sum()) for scores in (before, after)]
        self._say(f"\nright of {len(samples)}, by generation: {right[0]} before, {right[1]} after")
        return rows

    def _map(self) -> dict[str, Any]:
        """Tasks x layers, each cell the change in accuracy when that layer's attention is zeroed."""
        from layersurgery import InteractionVectors, sweep
        from layersurgery.embedded import TASKS, make_samples
        from layersurgery.report import heatmap, terminal_heatmap

        self._say(screen.title(f"All tasks by all layers: change in points on {MAP_SAMPLES} test samples each"))
        model, scorer = self._models["natural"], self._scorers["natural"]
        tables = {}
        for task in screen.progress(TASKS, "mapping", self._show):
            tables[task] = sweep(model, scorer, make_samples(task, "test", MAP_SAMPLES, seed=2))
        vectors = InteractionVectors(tables)
        self._say(terminal_heatmap(vectors))
        heatmap(vectors, title="Accuracy change by zeroing one layer's attention").savefig(self._folder / "heatmap.png")
        return {"tasks": list(vectors.tasks), "points": (100 * vectors.matrix).round(1).tolist()}

    def _file(self, story: Story, surgery: Any) -> dict[str, Any]:
        from layersurgery import Surgery
        from layersurgery.embedded import make_samples

        self._say(screen.title("Saved, loaded again, and applied"))
        path = surgery.save_pretrained(self._folder)
        loaded = Surgery.from_pretrained(self._folder)
        model, scorer = self._models[story.checkpoint], self._scorers[story.checkpoint]
        samples = make_samples(story.task, "test", BATCH)
        with surgery(model):
            first = scorer(model, samples)
        with loaded(model):
            second = scorer(model, samples)
        same = loaded == surgery and bool((first.margin == second.margin).all())
        self._say(f"{path} ({path.stat().st_size} bytes): {loaded}")
        self._say(f"same surgery, and the same margins on {len(samples)} samples to the last bit: {screen.yes(same)}")
        return {"path": path.name, "bytes": path.stat().st_size, "same": same}

    def _restored(self, before: dict[str, Any]) -> bool:
        from layersurgery.testing import assert_restored

        self._say(screen.title("Restored"))
        for name, model in self._models.items():
            assert_restored(model, before[name])  # raises, and names what differs
            facts = len(before[name].facts)
            self._say(
                f"{name}: all {facts:,} facts (tensors, memory, bytes, hooks, flags, random state) are as before: yes"
            )
        return True
