"""`Shorts`: the short calls of a scorer, computed for all variants at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from layersurgery.surgery import Surgery
from layersurgery.sweeps._attributes import Attributes
from layersurgery.sweeps._memory import ran_out_of_memory
from layersurgery.sweeps._notes import Notes
from layersurgery.sweeps._prefix import SharedPrefix
from layersurgery.sweeps._prefix_reach import Reach, UnknownValueError
from layersurgery.sweeps._prefix_record import Call, Pass
from layersurgery.sweeps._prefix_state import World, is_looked_into
from layersurgery.sweeps._prefix_values import Freezer, thaw
from layersurgery.sweeps._stand_ins import Forward, StandIns
from layersurgery.sweeps._together_answers import ForwardAnswers
from layersurgery.sweeps._together_generate import under
from layersurgery.sweeps._together_rows import Variant
from layersurgery.sweeps._together_stack import Short, Stack, Stacked, differs, is_short, layer_of
from layersurgery.sweeps._together_values import CannotError, words


class Shorts:
    """Runs the variants of short calls as the rows of one forward.

    On the first samples, the unmodified model runs by itself, and again among these rows, where it must give the same
    but for rounding; so must one of the variants. From then on it runs among them only.

    Args:
        model: the model itself, not wrapped.
        prefix: what its variants share otherwise.
        variant: what a surgery changes; raises CannotError where that cannot be had for some rows.
        room: bytes that may be used.
    """

    def __init__(
        self,
        model: nn.Module,
        prefix: SharedPrefix,
        variant: Callable[[Surgery], Variant],
        room: Callable[[], int],
    ) -> None:
        self._model, self._prefix, self._variant, self._room = model, prefix, variant, room
        self._shorts: list[Short] = []
        self._whole = False
        self._off = False
        self._checked = False
        self._trusted = frozenset[Surgery]()
        self._patterns: list[Pass] = []
        self._bytes = 0.0  # that an output takes for each sample
        self._notes = Notes()

    @property
    def notes(self) -> list[str]:
        """What is computed for each variant on its own, and why, in words; empty: there is nothing of the kind."""
        return list(self._notes)

    def forget(self) -> None:
        """Let go of what is kept."""
        self._shorts, self._whole = [], False

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Around the scorer's call on the unmodified model, inside a recording of the prefix."""
        with StandIns([] if self._off else [self._model], self._noted):
            yield
        self._whole = bool(self._shorts) and len(self._shorts) == len(self._prefix.passes)

    def compute(self, surgeries: Sequence[Surgery], problem: Callable[[], str]) -> None:
        """Run these variants as the rows of one forward, for each call of the scorer; no surgery may be in force.

        Where memory runs out, the error comes through. Whatever else goes wrong leaves the variants to run on their
        own.

        Args:
            surgeries: the variants.
            problem: says why nothing can be done at once on this model, in words.
        """
        if not self._whole:
            return
        try:
            if why := problem():
                raise CannotError(why)
            with self._unchanged():
                variants = [one for surgery in surgeries if (one := self._stackable(surgery)) is not None]
                together = [self._stack(short, variants) for short in self._shorts]
            self._trusted = frozenset(variant.surgery for variant in variants) if all(together) else frozenset()
            self._patterns = [_pattern(short.recorded) for short in self._shorts]
        except Exception as error:
            self._give_up(error)

    def run_along(self, surgeries: Sequence[Surgery]) -> bool:
        """Whether the unmodified model can run as one of the rows: with these, it did so on the samples before."""
        return len(surgeries) > 1 and not self._off and self._trusted.issuperset(surgeries)

    @contextmanager
    def running_along(self, surgeries: Sequence[Surgery]) -> Iterator[None]:
        """Around the scorer's call on the unmodified model: these variants are computed with it, if all goes well."""
        self.forget()
        variants = [self._variant(surgery) for surgery in surgeries]
        waiting = list(self._patterns)
        within = False

        def along(module: nn.Module, forward: Forward, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
            nonlocal within
            if within:
                return forward(*given, **named)
            alike = bool(waiting) and is_short(given, named) and waiting[0].world == World.now()
            if not alike or is_looked_into(self._model):
                waiting.clear()
                return forward(*given, **named)
            within = True
            try:
                return self._along(waiting.pop(0), variants, given, named)
            except Exception as error:
                self._give_up(error)
                waiting.clear()
            finally:
                within = False
            return forward(*given, **named)

        with StandIns([self._model], along):
            yield
        self._whole = len(self._shorts) == len(self._patterns)

    def has(self, surgery: Surgery) -> bool:
        """Whether all calls of the model were computed for a variant."""
        return self._whole and all(one.has(surgery) for one in self._shorts)

    def ran(self, modules: Collection[nn.Module]) -> bool:
        """Whether one of these modules took part."""
        return any(not one.recorded.first.keys().isdisjoint(modules) for one in self._shorts)

    @contextmanager
    def answering(self, surgery: Surgery) -> Iterator[None]:
        """Around the scorer's call on a variant, while its surgery is in force."""
        with StandIns([self._model], ForwardAnswers(self._shorts, surgery)):
            yield

    def _give_up(self, error: Exception) -> None:
        self._shorts, self._whole = [], False
        if ran_out_of_memory(error):
            raise error
        self._off = True
        self._notes.tell(f"variants are run one by one, since {words(error)}")

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        before = Attributes(self._model.modules())
        try:
            with torch.random.fork_rng(devices=[]):
                yield
        finally:
            before.restore()

    def _noted(self, module: nn.Module, forward: Forward, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Keep what the unmodified model gives for a few tokens."""
        number = len(self._prefix.passes)
        output = forward(*arguments, **keywords)
        short = is_short(arguments, keywords) and not is_looked_into(self._model)
        if short and len(self._prefix.passes) == number + 1:
            with suppress(UnknownValueError):
                frozen = Freezer(copies=True).freeze(output)
                self._shorts.append(Short(self._prefix.passes[number], _samples(arguments, keywords), frozen))
        return output

    def _stackable(self, surgery: Surgery) -> Variant | None:
        try:
            variant = self._variant(surgery)
            for short in self._shorts:
                layer_of(self._model, variant, short.recorded)
        except CannotError as error:
            self._notes.tell(f"run on its own, since {error}", surgery.steps[0].site.path)
            return None
        return variant

    def _along(
        self, pattern: Pass, variants: Sequence[Variant], arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> Any:
        """What the unmodified model gives, as one of the rows."""
        recorded = replace(pattern, inputs=Freezer().freeze((arguments, keywords)))
        short = Short(recorded, _samples(arguments, keywords))
        with self._unchanged():
            self._stack(short, variants)
        self._shorts.append(short)
        return short.found[variants[0].surgery][0].part(0)

    def _stack(self, short: Short, variants: Sequence[Variant]) -> bool:
        """Compute a call for these variants; whether all of them went into one forward."""
        recorded = short.recorded
        layers = {variant.surgery: layer_of(self._model, variant, recorded) for variant in variants}
        ordered = sorted(variants, key=lambda variant: recorded.first[layers[variant.surgery]])
        size = self._most(short)
        with under(recorded.world):
            for begin in range(0, len(ordered), size):
                group = ordered[begin : begin + size]
                chosen = [layers[variant.surgery] for variant in group]
                stack = Stack(self._model, recorded, short.samples, group, chosen, tail=self._prefix.tail)
                stacked = Stacked(stack.output(not self._checked), short.samples)
                if short.output is not None and differs(stacked.part(0), thaw(short.output)):
                    raise CannotError("the unmodified model gives something else then")
                short.found.update({one.surgery: (stacked, number) for number, one in enumerate(group, 1)})
                self._check(short, group[len(group) // 2].surgery)
        return len(ordered) <= size

    def _most(self, short: Short) -> int:
        """Variants of a call for which there is memory at a time."""
        if short.output is not None:
            self._bytes = sum(one.nbytes for one in Reach.of(thaw(short.output)).tensors) / short.samples
        return max(2, int(self._room() / max(1.0, 8 * self._bytes * short.samples)))

    def _check(self, short: Short, surgery: Surgery) -> None:
        """The first time, make sure that a variant gives just that on its own."""
        if self._checked:
            return
        arguments, keywords = thaw(short.recorded.inputs)
        with surgery(self._model):
            alone = self._model(*arguments, **keywords)
        if differs(short.answer(surgery), alone):
            raise CannotError(f"a variant gives something else then ({surgery.steps[0].site.path})")
        self._checked = True


def _pattern(recorded: Pass) -> Pass:
    """Which modules ran when in a call, without any of its values."""
    return Pass(
        recorded.module, None, recorded.world, Call(recorded.module, 0), list(recorded.events), dict(recorded.first)
    )


def _samples(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> int:
    return len(Reach.of((arguments, keywords)).tensors[0])
