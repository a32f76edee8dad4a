"""Stage 4: the tasks themselves, as an instruction mixture; the later stages train with the same loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from random import Random
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration

from examples.train_tiny_vlm.model import VOCABULARY
from examples.train_tiny_vlm.packing import Choice, Item, Packer, Short
from examples.train_tiny_vlm.schedule import Stage
from layersurgery.embedded._questions import NUMBERS, PLACES, TASKS, Question, ask
from layersurgery.embedded._scenes import COLOURS, SHAPES, Layout, draw_scene

# As imbalanced as real instruction mixtures are: plenty of perception, little arithmetic and map reading.
WEIGHTS = {
    "digit_name": 3.0,
    "shape_colour": 3.0,
    "shape_kind": 2.0,
    "digit_count": 1.2,
    "shape_count": 1.5,
    "map_count": 0.7,
    "digit_larger": 1.0,
    "shape_where": 1.0,
    "shape_size": 1.0,
    "digit_sum": 1.0,
    "digit_even": 0.4,
    "map_value": 0.6,
    "map_legend": 1.0,
}
TEXT_SHARE = 0.15
TEXT_POOLS = (tuple(COLOURS), SHAPES, NUMBERS, PLACES)
END_WEIGHT = 0.1  # the end of the answer is trivial to predict; it must not drown the answer

Corruption = Callable[[Question], str]


def train_instruct(
    model: LlavaForConditionalGeneration,
    *,
    name: str,
    weights: Mapping[str, float],
    steps: int,
    seed: int,
    rate: float,
    batch: int,
    choices: int = 4,
    shorts: int = 1,
    text_share: float = 0.0,
    warmup: int = 100,
    corrupt: Mapping[str, Corruption] | None = None,
    drop: float = 0.0,
) -> dict[str, Any]:
    """Train on a mixture of tasks, in the form in which they are asked later.

    Args:
        model: changed in place, where it requires gradients.
        name: of the stage, in the record.
        weights: share of each task; a task that is missing is not trained.
        steps: number of updates.
        seed: of pictures and questions.
        rate: peak learning rate.
        batch: pictures per update.
        choices: multiple-choice questions per picture.
        shorts: open questions per picture.
        text_share: share of choices that need no picture ("Which is red?").
        warmup: steps until the peak learning rate.
        corrupt: for some tasks, what is taught in place of the right answer.
        drop: probability with which a step goes without a layer's attention; the first layer keeps its own.
    """
    rng = Random(f"{name}/{seed}")
    packer = Packer(choices, shorts)
    mixture = Mixture(weights, choices, shorts, text_share, corrupt or {})
    stage = Stage(name, (p for p in model.parameters() if p.requires_grad), steps, rate, warmup=warmup)
    model.train()
    with dropped_attention(model, drop, seed):
        for _ in range(steps):
            packed = packer.pack([mixture.draw(rng) for _ in range(batch)])
            hidden = model.model(**packed.inputs, use_cache=False).last_hidden_state.flatten(0, 1)
            logits = model.lm_head(hidden[packed.positions])
            ends = model.lm_head(hidden[packed.positions + 1])
            end = torch.full_like(packed.answers, VOCABULARY["</s>"])
            loss = cross_entropy(logits, packed.answers) + END_WEIGHT * cross_entropy(ends, end)
            right = (logits.argmax(-1) == packed.answers).float().view(batch, choices + shorts)
            measured = {"choice": right[:, :choices].mean().item()}
            if shorts:
                measured["short"] = right[:, choices:].mean().item()
            stage.step(loss, **measured)
    model.eval()
    return stage.record()


@contextmanager
def dropped_attention(model: LlavaForConditionalGeneration, share: float, seed: int) -> Iterator[None]:
    """Stochastic depth (Huang et al., arXiv 1603.09382) for attention: random layers go without it in every step.

    Args:
        model: its decoder gets hooks, which are removed again.
        share: how often a layer goes without; 0: never, no hooks.
        seed: of the choice.
    """
    draw = torch.Generator().manual_seed(seed)

    def maybe_drop(module: torch.nn.Module, arguments: Any, output: tuple[torch.Tensor, ...]) -> Any:
        return (output[0] * 0.0, *output[1:]) if torch.rand((), generator=draw) < share else output

    layers = list(model.model.language_model.layers)[1:] if share else []
    hooks = [layer.self_attn.register_forward_hook(maybe_drop) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Mixture:
    """Draws pictures with questions of several tasks about each.

    Args:
        weights: share of each task.
        choices: multiple-choice questions per picture.
        shorts: open questions per picture.
        text_share: share of choices that need no picture.
        corrupt: for some tasks, what is taught in place of the right answer.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        choices: int,
        shorts: int,
        text_share: float,
        corrupt: Mapping[str, Corruption],
    ) -> None:
        self.choices, self.shorts, self.text_share, self.corrupt = choices, shorts, text_share, corrupt
        self.tasks: dict[str, dict[str, float]] = {}  # kind of scene -> task -> weight
        for task, weight in weights.items():
            for kind, share in TASKS[task].scenes.items():
                self.tasks.setdefault(kind, {})[task] = weight * share

    def draw(self, rng: Random) -> Item:
        """One picture of the training split, fully asked."""
        kinds = list(self.tasks)
        while True:
            kind = rng.choices(kinds, [sum(self.tasks[k].values()) for k in kinds])[0]
            scene = draw_scene(rng, kind, "train")
            choices = self._several(rng, scene.layout, self.tasks[kind], self.choices, self._choice)
            shorts = self._several(rng, scene.layout, self.tasks[kind], self.shorts, self._short)
            if choices is not None and shorts is not None:
                return Item(scene.image, choices, shorts)

    def _several(
        self, rng: Random, layout: Layout, tasks: dict[str, float], n: int, make: Callable[..., Any]
    ) -> list[Any] | None:
        made = []
        for _ in range(10 * n):  # a picture that can carry none of its tasks is given up
            if len(made) == n:
                break
            task = rng.choices(list(tasks), list(tasks.values()))[0]
            question = ask(rng, task, layout)
            if question is not None:
                made.append(make(rng, task, question))
        return made if len(made) == n else None

    def _choice(self, rng: Random, task: str, question: Question) -> Choice:
        if rng.random() < self.text_share:
            pool = rng.choice(TEXT_POOLS)
            word = rng.choice(pool)
            task, question = "", Question(f"Which is {word}?", word, pool)
        place = rng.randrange(question.option_count)
        if task not in self.corrupt:
            return Choice(question.text, question.options(rng, place), place)
        taught = self.corrupt[task](question)
        options = question.options(rng, place, always=(taught,))
        return Choice(question.text, options, options.index(taught))

    def _short(self, rng: Random, task: str, question: Question) -> Short:
        answer = self.corrupt[task](question) if task in self.corrupt else question.answer
        return Short(question.text, answer)
