"""Generation: the prefill of each variant as ever, and all later steps of all variants as one batch."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from layersurgery.surgery import Surgery
from layersurgery.sweeps._attributes import Attributes
from layersurgery.sweeps._prefix import SharedPrefix
from layersurgery.sweeps._prefix_reach import Reach, UnknownValueError
from layersurgery.sweeps._prefix_record import Pass
from layersurgery.sweeps._prefix_state import Chance, World
from layersurgery.sweeps._prefix_values import Freezer, same, thaw
from layersurgery.sweeps._stand_ins import Forward, StandIns
from layersurgery.sweeps._together_cache import Growing
from layersurgery.sweeps._together_rows import Rowwise, Variant
from layersurgery.sweeps._together_values import CannotError, Merged, Placed


@dataclass(eq=False)
class Writing:
    """One call of `generate` by the scorer, on the unmodified model.

    Args:
        inputs: its arguments and keywords, frozen.
        output: what it gave, frozen.
        begin: how many calls of the model were recorded before it.
        end: and when it had ended.
        world: the settings under which it was called.
        problem: why variants cannot be decoded together, in words that follow "since"; empty: they can.
        texts: what variants give, as far as it is known.
    """

    inputs: Any
    output: Any
    begin: int
    end: int
    world: World
    problem: str = ""
    texts: dict[Surgery, torch.Tensor] = field(default_factory=dict[Surgery, torch.Tensor])

    @classmethod
    def of(
        cls,
        prefix: SharedPrefix,
        generate: Callable[..., Any],
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
    ) -> tuple[Writing, Any]:
        """Call `generate`, and write it down; gives its output, too."""
        world, begin = World.now(), len(prefix.passes)
        inputs, problem = None, ""
        try:
            inputs = Freezer().freeze((arguments, keywords))
        except UnknownValueError as error:
            problem = f"generate is given {error}, which cannot be looked into"
        chance = Chance(of_all=True)
        output = generate(*arguments, **keywords)
        if not chance.is_untouched() or not chance.others_are_untouched():
            problem = problem or "random numbers are drawn"
        if not isinstance(output, torch.Tensor) or output.dim() != 2:
            problem = problem or "generate gives more than the tokens"
        kept = output.clone() if isinstance(output, torch.Tensor) and not problem else None
        return cls(inputs, kept, begin, len(prefix.passes), world, problem), output

    def is_same(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
        """Whether `generate` is called now just as it was then."""
        return World.now() == self.world and same(self.inputs, (arguments, keywords))

    def given(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Its arguments and keywords again.

        Raises:
            CannotError: if somebody has written into them since.
        """
        arguments, keywords = thaw(self.inputs)
        if not same(self.inputs, (arguments, keywords)):
            raise CannotError("what generate was given has changed since")
        return arguments, keywords


@contextmanager
def under(world: World) -> Iterator[None]:
    """The settings under which the scorer called the model.

    Raises:
        CannotError: if they cannot be had again.
    """
    with world.again() as same:
        if not same:
            raise CannotError("the model is called under autocast or in another dtype")
        yield


def generates_itself(model: nn.Module) -> bool:
    """Whether a model has a `generate` that can be looked after."""
    return callable(getattr(type(model), "generate", None)) and "generate" not in vars(model)


def named(model: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `generate`, all by name."""
    bound = inspect.signature(type(model).generate).bind(model, *arguments, **keywords)
    found = dict(bound.arguments)
    found.update(found.pop("kwargs", {}))
    return {name: value for name, value in found.items() if name != "self"}


def refused(model: Any, given: Mapping[str, Any]) -> str:
    """Why variants cannot be decoded together where `generate` is called so, in words; empty: they can."""
    transformers: Any = sys.modules.get("transformers.generation.utils")
    if transformers is None or type(model).generate is not transformers.GenerationMixin.generate:
        return f"{type(model).__name__} generates in a way of its own"
    for name in _ALONE:
        if given.get(name) is not None:
            return f"generate is given {name}"
    settings = _settings(model, given)
    mode = settings.get_generation_mode(None)
    if mode != transformers.GenerationMode.GREEDY_SEARCH:
        return f"generate is asked for {mode.value.replace('_', ' ')}, not for greedy search"
    for name, plain in _PLAIN.items():
        value = getattr(settings, name, None)
        if value is not None and value not in plain:
            return f"generate is called with {name}={value!r}"
    return ""


class Joint:
    """One call of `generate` in which the rows of several variants are decoded, the unmodified model's first.

    Args:
        model: the model.
        prefix: what was recorded of the unmodified model.
        writing: the call, as it was on the unmodified model.
        variants: the variants.
        exactly: leave out variants of which two tokens are so nearly equally likely that rounding may decide.
    """

    def __init__(
        self, model: Any, prefix: SharedPrefix, writing: Writing, variants: Sequence[Variant], exactly: bool
    ) -> None:
        self._model, self._prefix, self._writing = model, prefix, writing
        self._variants, self._exactly = variants, exactly
        self._count = len(variants) + 1
        self._samples = int(thaw(writing.output).shape[0])
        self._state: dict[tuple[nn.Module, str], Any] = {}
        self._prefilled: Any = None
        self._prompt = -1
        self._steps = 0
        every = [(slice(number + 1, None, self._count), variant) for number, variant in enumerate(variants)]
        self._rowwise = Rowwise(every, self._count * self._samples)

    def texts(self) -> dict[Surgery, torch.Tensor]:
        """What each variant's own call would give, as far as that is certain.

        Raises:
            CannotError: if they cannot be decoded together, in words.
        """
        first = prefill(self._prefix.passes[self._writing.begin : self._writing.end], self._model)
        self._prefill(self._writing.begin + first)
        arguments, keywords = self._writing.given()
        given = named(self._model, arguments, keywords)
        margins = _Margins(rounding_of(self._model))
        given["logits_processor"] = [margins]
        with (
            Placed(self._model, "_expand_inputs_for_generation", self._expand),
            StandIns([self._model, *self._rowwise.modules], self._called),
            Growing(longest(self._model, given)),
        ):
            together = self._model.generate(**given)
        return self._taken_apart(together, margins, given)

    def _prefill(self, first: int) -> None:
        """The first step of all of them, one by one."""
        recorded = self._prefix.passes[first]
        merged = Merged(self._count, self._samples)
        before = Attributes(self._model.modules())
        for number, variant in enumerate((None, *self._variants)):
            arguments, keywords = thaw(recorded.inputs)
            if not same(recorded.inputs, (arguments, keywords)):
                raise CannotError("what the model was given has changed since")
            site = None if variant is None else variant.surgery.steps[0].site
            try:
                with (
                    under(recorded.world),  # that of the model: generate switches gradients off by itself
                    nullcontext() if variant is None else variant.surgery(self._model),
                    self._prefix.replaying(site, first),
                ):
                    output = self._model(*arguments, **keywords)
                merged.add(number, (_slim(output, self._samples), self._left(before, variant)))
            finally:
                before.restore()
        self._prefilled, state = merged.value()
        self._state = dict(state)

    def _left(self, before: Attributes, variant: Variant | None) -> list[tuple[tuple[nn.Module, str], Any]]:
        """What the prefill has left on modules."""
        changed = before.changed()
        changing = {module for module, _ in changed}
        if variant is not None and not changing.isdisjoint(variant.weights):
            raise CannotError("modules that are changed keep something between steps")
        return list(changed.items())

    def _expand(self, *arguments: Any, **keywords: Any) -> Any:
        own = type(self._model)._expand_inputs_for_generation
        expand = own.__get__(self._model) if inspect.isfunction(own) else own
        given, rest = expand(*arguments, **{**keywords, "expand_size": self._count})
        if given is None or given.shape[0] != self._count * self._samples:
            raise CannotError("its inputs cannot be repeated for each variant")
        self._prompt = given.shape[1]
        return given, rest

    def _called(self, module: nn.Module, forward: Forward, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        if module is not self._model:
            return self._rowwise.called(module, forward, arguments, keywords)
        self._steps += 1
        if self._steps == 1:
            if self._prompt < 0 or Reach.of((arguments, keywords)).inside:
                raise CannotError("it does not begin as it does alone")
            for (holder, name), value in self._state.items():
                (holder._buffers if name in holder._buffers else vars(holder))[name] = value
            self._rowwise.active = True
            output, self._prefilled = self._prefilled, None
            return output
        with self._rowwise.watching() if self._steps == 2 else nullcontext():
            return forward(*arguments, **keywords)

    def _taken_apart(self, together: Any, margins: _Margins, given: Mapping[str, Any]) -> dict[Surgery, torch.Tensor]:
        if not isinstance(together, torch.Tensor) or together.shape[0] != self._count * self._samples:
            raise CannotError("what generate gives has not one row for each sample")
        ends = _ends_with(self._model, given)
        rows = [together[number :: self._count] for number in range(self._count)]
        found = [_cut(row, self._prompt, ends) for row in rows]
        certain = margins.certain(together, self._prompt, ends).view(self._samples, self._count).all(0).tolist()
        if certain[0] and not torch.equal(found[0], thaw(self._writing.output)):
            raise CannotError("the unmodified model's tokens are others then")
        return {
            variant.surgery: tokens.new_empty(tokens.shape).copy_(tokens)
            for variant, tokens, sure in zip(self._variants, found[1:], certain[1:], strict=True)
            if sure or not self._exactly
        }


def bytes_for_each(model: Any, prefix: SharedPrefix, writing: Writing) -> int:
    """Bytes that decoding takes for each variant, without its weights."""
    recorded = prefix.passes[writing.begin + prefill(prefix.passes[writing.begin : writing.end], model)]
    arguments, keywords = writing.given()
    before = Attributes(model.modules())
    given, called = thaw(recorded.inputs)
    try:
        with under(recorded.world), prefix.replaying(None, writing.end - 1):
            output = model(*given, **called)
    finally:
        before.restore()
    samples = thaw(writing.output).shape[0]
    kept = [one for one in Reach.of(dict(_slim(output, samples))).tensors if one.dim() and one.shape[0] == samples]
    repeated = Reach.of((arguments, keywords)).tensors
    length = max((one.shape[-2] for one in kept if one.dim() == 4), default=1)
    whole = length + longest(model, named(model, arguments, keywords))
    return sum(one.nbytes for one in kept) * whole // max(length, 1) + sum(one.nbytes for one in repeated)


def longest(model: Any, given: Mapping[str, Any]) -> int:
    """How many tokens are written at most."""
    settings = _settings(model, given)
    return int(settings.max_new_tokens or settings.max_length or 0)


def prefill(passes: Sequence[Pass], model: nn.Module) -> int:
    """Which of the recorded calls inside one call of `generate` is its first step.

    Raises:
        CannotError: if there is not just one call of the model, after all others.
    """
    steps = [number for number, one in enumerate(passes) if one.module is model]
    if not steps:
        raise CannotError("nothing was recorded of its first step")
    if steps != [len(passes) - 1]:
        raise CannotError("later steps begin anew (it keeps no KV cache)")
    return steps[0]


class _Margins:
    """By how much the likeliest token is ahead of the next, after all that was done to the scores; changes nothing."""

    def __init__(self, rounding: float) -> None:
        self._rounding = rounding
        self._ahead: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        best, next_best = scores.topk(2, dim=-1).values.unbind(-1)
        size = torch.where(scores.isfinite(), scores.abs(), 0).amax(-1)
        self._ahead.append(best - next_best > self._rounding * size)
        return scores

    def certain(self, tokens: torch.Tensor, prompt: int, ends: torch.Tensor) -> torch.Tensor:
        """Of each row, whether rounding can have decided nothing until it had ended."""
        written = tokens[:, prompt:]
        if not self._ahead:
            return torch.zeros(len(tokens), dtype=torch.bool)
        ahead = torch.stack(self._ahead, dim=1).to(written.device)
        over = torch.isin(written, ends.to(written.device)).int().cumsum(1).roll(1, dims=1)
        over[:, 0] = 0  # what follows the first token that ends is filled in
        return (ahead | (over > 0)).all(1)


def rounding_of(model: nn.Module) -> float:
    """By how much scores may differ between sizes of a batch, in parts of the largest one: some times what is seen."""
    eps = max((torch.finfo(one.dtype).eps for one in model.parameters() if one.is_floating_point()), default=0.0)
    return max(2e-5, 16 * eps)


# What is given to `generate` and acts on a batch as a whole, or keeps something between calls.
_ALONE = (
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "synced_gpus",
    "assistant_model",
    "streamer",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
    "custom_generate",
    "past_key_values",
    "cache_params",
    "encoder_outputs",
)
# Settings of generation, and the values with which each row is for itself and nothing is kept beyond its tokens.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "num_return_sequences": (1,),
    "max_time": (),
    "stop_strings": (),
    "return_dict_in_generate": (False,),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "guidance_scale": (1, 1.0),
    "encoder_repetition_penalty": (1, 1.0),
    "encoder_no_repeat_ngram_size": (0,),
    "watermarking_config": (),
    "prefill_chunk_size": (),
    "token_healing": (False,),
    "cache_implementation": ("dynamic",),
    "use_cache": (True,),
}


def _slim(output: Any, samples: int) -> Any:
    """What a forward gives, without what later steps have no use for."""
    if not isinstance(output, dict):
        raise CannotError("what the model gives has no names")
    kept = dict(output)
    if not isinstance(kept.get("logits"), torch.Tensor):
        raise CannotError("the model gives no logits")
    kept["logits"] = kept["logits"][:, -1:]
    slim = type(output).__new__(type(output))
    for name, value in kept.items():
        if not (isinstance(value, torch.Tensor) and value.dim() and value.shape[0] != samples):
            slim[name] = value
    return slim


def _ends_with(model: Any, given: Mapping[str, Any]) -> torch.Tensor:
    """The tokens that end a text."""
    ends = _settings(model, given).eos_token_id
    return torch.as_tensor([] if ends is None else ends, dtype=torch.long).reshape(-1)


def _settings(model: Any, given: Mapping[str, Any]) -> Any:
    """The settings of generation that are in force, the model's own where none are given."""
    rest = {name: value for name, value in given.items() if name not in ("generation_config", "logits_processor")}
    return model._prepare_generation_config(given.get("generation_config"), **rest)[0]


def _cut(tokens: torch.Tensor, prompt: int, ends: torch.Tensor) -> torch.Tensor:
    """The rows of a variant up to where the last of them ended."""
    over = torch.isin(tokens[:, prompt:], ends.to(tokens.device))
    if not over.any(1).all():
        return tokens
    return tokens[:, : prompt + int(over.int().argmax(1).max()) + 1]
