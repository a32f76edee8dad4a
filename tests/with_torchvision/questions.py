"""Questions on real photographs, cut to different sizes and shapes."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

from PIL import Image

from layersurgery.tasks import Sample

OPTIONS = ("a temple", "a flower", "a river", "the sky", "nothing of the kind")
# Wide, tall, square, small, and wider than any grid.
_CUTS = ((0, 0, 300, 200), (200, 50, 320, 330), (100, 100, 260, 260), (10, 20, 60, 70), (0, 100, 600, 190))


@functools.cache
def picture(number: int) -> Image.Image:
    """One of the two photographs that come with scikit-learn, cut in one of five ways."""
    from sklearn.datasets import load_sample_images

    return Image.fromarray(load_sample_images().images[number % 2]).crop(_CUTS[number % len(_CUTS)])


def samples(count: int = 12, images=lambda number: number % 3) -> list[Sample]:
    """Questions of different lengths, with two to five options, and none, one or two pictures in turn."""
    made = []
    for number in range(count):
        options = OPTIONS[: 2 + number % 4]
        shown = tuple(picture(number + more) for more in range(images(number)))
        question = f"{number}: What is shown in the picture{', and where' * (number * 7 % 4)}?"
        made.append(Sample(f"q{number}", question, options, number % len(options), shown))
    return made


def write_file(folder: Path, questions: list[Sample]) -> Path:
    """Questions as a user keeps them: a file of rows, and files of pictures."""
    rows = []
    for sample in questions:
        names = [f"{sample.id}-{number}.png" for number in range(len(sample.images))]
        for name, image in zip(names, sample.images, strict=True):
            image.save(folder / name)
        row = {"id": sample.id, "question": sample.question, "options": list(sample.options), "answer": sample.letter}
        rows.append({**row, "images": names, "task": "photographs"})
    path = folder / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def right_without(site, model, score, questions: list[Sample]) -> list[Sample]:
    """The questions with such answers that the model gets all of them right with this site knocked out."""
    import layersurgery as ls

    with ls.Surgery(at=site, do=ls.Zero())(model):
        found = {}
        for answer in range(max(len(sample.options) for sample in questions)):
            asked = [replace(sample, answer=answer) for sample in questions if answer < len(sample.options)]
            for sample, correct in zip(asked, score(model, asked).correct, strict=True):
                if correct:
                    found[sample.id] = sample
    return [found[sample.id] for sample in questions]
