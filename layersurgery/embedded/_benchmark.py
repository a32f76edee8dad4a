"""`make_samples`: the embedded benchmark, generated on the spot."""

from __future__ import annotations

import difflib
import hashlib
from random import Random

from layersurgery.embedded._digits import SPLITS
from layersurgery.embedded._questions import TASKS, ask
from layersurgery.embedded._scenes import Scene, draw_scene
from layersurgery.errors import SampleError, TaskError
from layersurgery.scoring._templates import BY_LETTER
from layersurgery.tasks import Sample

INSTRUCTION = BY_LETTER  # what the embedded models were trained on is what the scorers ask


def make_samples(task: str, split: str, n: int, seed: int = 0) -> list[Sample]:
    """Samples of one task: the same ones for the same arguments, no picture twice.

    The splits share neither a digit image nor a scene layout, whatever the seeds. Every letter is right
    equally often, among the first few samples too; a larger `n` only adds samples at the end.

    Args:
        task: one of `TASKS`.
        split: "train" (what the model learned from), "probe" (for choosing) or "test" (for reporting).
        n: how many samples; there are enough for any use.
        seed: draws other samples of the same split.

    Returns:
        `n` samples; `images` holds one PIL image of 64 x 64 pixels, `group` tells pictures apart.

    Raises:
        TaskError: for an unknown task.
        SampleError: for an unknown split, or n below 1.

    Examples:
        >>> sample = make_samples("digit_sum", "test", 1)[0]
        >>> sample.question, sample.options[sample.answer], sample.images[0].size
        ('What is the sum of the digits?', '9', (64, 64))
    """
    from PIL import Image

    _check(task, split, n)
    spec = TASKS[task]
    rng = Random(f"{task}/{split}/{seed}")
    kinds, shares = list(spec.scenes), list(spec.scenes.values())
    samples: list[Sample] = []
    seen: set[str] = set()
    places: list[int] = []
    while len(samples) < n:
        scene = draw_scene(rng, rng.choices(kinds, shares)[0], split)
        picture = _digest(scene)
        question = ask(rng, task, scene.layout)
        if question is None or picture in seen:
            continue
        seen.add(picture)
        if not places:
            places = rng.sample(range(spec.option_count), spec.option_count)
        place = places.pop()
        options = question.options(rng, place)
        samples.append(
            Sample(
                id=f"{task}-{_digest(scene, question.text, *options)}",
                question=question.text,
                options=options,
                answer=place,
                images=(Image.fromarray(scene.image),),
                task=task,
                group=picture,
                meta={"layout": scene.layout, "split": split, "family": spec.family},
            )
        )
    return samples


def _digest(scene: Scene, *texts: str) -> str:
    content = scene.image.tobytes() + "\n".join(texts).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def _check(task: str, split: str, n: int) -> None:
    if task not in TASKS:
        near = difflib.get_close_matches(str(task), TASKS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "see the names below."
        raise TaskError(f"the embedded benchmark has no task {task!r}: {hint} Its tasks: {', '.join(TASKS)}")
    if split not in SPLITS:
        raise SampleError(f"split {split!r} is not one of {', '.join(SPLITS)}; report results on 'test'")
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise SampleError(f"n = {n!r} samples of {task!r} cannot be made; ask for a whole number of at least 1")
