"""Several questions about one picture in one sequence, each blind to the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from examples.train_tiny_vlm.model import IMAGE_TOKENS, LETTERS, VOCABULARY, to_pixels

PREFIX = 1 + IMAGE_TOKENS  # <s> and the picture
CHOICE_LENGTH = 9 + 4 + 2  # longest question, four options, <answer>, the letter
SHORT_LENGTH = 9 + 2


@dataclass(frozen=True)
class Choice:
    """A multiple-choice question as it is trained on: text, options, index of the answer to learn."""

    text: str
    options: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Short:
    """An open question as it is trained on: text, and the one-word answer to learn."""

    text: str
    answer: str


@dataclass(frozen=True)
class Item:
    """A picture and the questions about it."""

    image: np.ndarray
    choices: list[Choice]
    shorts: list[Short]


@dataclass(frozen=True)
class Batch:
    """Model inputs, and what is to be predicted where.

    Args:
        inputs: keyword arguments of the model.
        positions: [n] places of the answers' predictions in the flattened batch; that of the answer's end is
            one further.
        answers: [n] right tokens; per picture first those of its choices, then those of its short questions.
    """

    inputs: dict[str, torch.Tensor]
    positions: torch.Tensor
    answers: torch.Tensor


class Packer:
    """Packs pictures with a fixed number of questions each.

    The picture comes once; every question sees it and itself, with positions that count on from the picture.
    The result is numerically that of separate prompts, at a third of the cost.

    Args:
        choices: multiple-choice questions per picture.
        shorts: open questions per picture.
    """

    def __init__(self, choices: int, shorts: int) -> None:
        lengths = [CHOICE_LENGTH] * choices + [SHORT_LENGTH] * shorts
        self.starts = (PREFIX + np.cumsum([0, *lengths[:-1]])).tolist()
        self.length = PREFIX + sum(lengths)
        visible = np.tril(np.ones((self.length, self.length), bool))
        positions = np.arange(self.length)
        for start, length in zip(self.starts, lengths, strict=True):
            visible[start : start + length, PREFIX:start] = False
            positions[start : start + length] = PREFIX + np.arange(length)
        self.mask = additive_mask(visible)
        self.positions = torch.from_numpy(positions)[None]

    def pack(self, items: list[Item]) -> Batch:
        """One row per picture."""
        ids = np.full((len(items), self.length), VOCABULARY["<pad>"])
        ids[:, 0] = VOCABULARY["<s>"]
        ids[:, 1:PREFIX] = VOCABULARY["<image>"]
        places, answers = [], []
        for row, item in enumerate(items):
            for start, question in zip(self.starts, [*item.choices, *item.shorts], strict=True):
                tokens = encode(question)
                ids[row, start : start + len(tokens)] = tokens
                places.append(row * self.length + start + len(tokens) - 2)
                answers.append(tokens[-1])
        inputs = {
            "input_ids": torch.from_numpy(ids),
            "pixel_values": to_pixels([item.image for item in items]),
            "attention_mask": self.mask.expand(len(items), -1, -1, -1),
            "position_ids": self.positions.expand(len(items), -1),
        }
        return Batch(inputs, torch.tensor(places), torch.tensor(answers))


def encode(question: Choice | Short) -> list[int]:
    """The question's tokens, the last of which is the answer."""
    words = question.text.replace("?", " ").split()
    if isinstance(question, Short):
        return [VOCABULARY[word] for word in (*words, "<short>", question.answer)]
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, question.options, strict=False)]
    return [VOCABULARY[word] for word in (*words, *lines, "<answer>", LETTERS[question.answer])]


def additive_mask(visible: np.ndarray) -> torch.Tensor:
    """[length, length] booleans -> [1, 1, length, length]: 0 where visible, the lowest float elsewhere."""
    mask = torch.zeros(visible.shape).masked_fill(~torch.from_numpy(visible), torch.finfo(torch.float32).min)
    return mask[None, None]
