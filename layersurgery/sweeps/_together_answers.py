"""What a variant's scorer is given in place of what the model would compute: what was computed for all at once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from torch import nn

from layersurgery.surgery import Surgery
from layersurgery.sweeps._prefix import SharedPrefix
from layersurgery.sweeps._prefix_state import World, is_looked_into
from layersurgery.sweeps._prefix_values import same
from layersurgery.sweeps._stand_ins import Forward
from layersurgery.sweeps._together_generate import Writing
from layersurgery.sweeps._together_stack import Short, is_short


class GenerateAnswers:
    """The `generate` of a variant's model: gives what was computed where it is called as on the unmodified model."""

    def __init__(
        self,
        model: Any,
        writings: Sequence[Writing],
        surgery: Surgery,
        prefix: SharedPrefix,
        replaying: ExitStack,
    ) -> None:
        self._model, self._writings, self._surgery = model, writings, surgery
        self._prefix, self._replaying = prefix, replaying
        self._own = model.generate
        self._count = 0

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        number, self._count = self._count, self._count + 1
        writing = self._writings[number] if number < len(self._writings) else None
        text = None if writing is None else writing.texts.get(self._surgery)
        alike = writing is not None and writing.is_same(arguments, keywords) and not is_looked_into(self._model)
        if writing is None or text is None or not alike:
            return self._own(*arguments, **keywords)
        if writing.end < len(self._prefix.passes):
            self._go_on_at(writing.end)
        return text.clone()

    def _go_on_at(self, first: int) -> None:
        """What comes next is answered for from another recorded call on, since those up to it do not come."""
        held = vars(self._model)
        placed = held.pop("generate")  # or it would be taken for something that has changed of the model
        try:
            self._replaying.close()
            self._replaying.enter_context(self._prefix.replaying(self._surgery.steps[0].site, first))
        finally:
            held["generate"] = placed


class ForwardAnswers:
    """The forward of a variant's model: gives what was computed where it is called as on the unmodified model."""

    def __init__(self, shorts: Sequence[Short], surgery: Surgery) -> None:
        self._shorts, self._surgery = list(shorts), surgery

    def __call__(self, model: nn.Module, forward: Forward, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        short = self._shorts[0] if self._shorts else None
        if short is None or not is_short(arguments, keywords) or is_looked_into(model):
            return forward(*arguments, **keywords)
        recorded = short.recorded
        if recorded.world != World.now() or not same(recorded.inputs, (arguments, keywords)):
            self._shorts = []
            return forward(*arguments, **keywords)
        self._shorts.pop(0)
        return short.answer(self._surgery)
