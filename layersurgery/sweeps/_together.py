"""`Together`: what takes little work for each variant is computed for all variants at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from layersurgery.surgery import Surgery
from layersurgery.sweeps._attributes import Attributes
from layersurgery.sweeps._memory import ran_out_of_memory
from layersurgery.sweeps._notes import Notes
from layersurgery.sweeps._prefix import SharedPrefix, _modules
from layersurgery.sweeps._prefix_state import Standing, hooks_on, is_looked_into, is_patched
from layersurgery.sweeps._recurring import Applied
from layersurgery.sweeps._together_answers import GenerateAnswers
from layersurgery.sweeps._together_generate import (
    Joint,
    Writing,
    bytes_for_each,
    generates_itself,
    named,
    prefill,
    refused,
    under,
)
from layersurgery.sweeps._together_rows import Variant, Weights
from layersurgery.sweeps._together_shorts import Shorts
from layersurgery.sweeps._together_values import CannotError, Placed, words
from layersurgery.sweeps._usage import Room


class Together:
    """Computes variants of a model as the rows of one batch, where single variants would not use the machine well.

    Texts are written token by token, and each step reads all weights of the model for a few rows. So the variants of a
    micro-batch are decoded as one batch: the first step of each runs as ever, on a shared prefix, and the later steps
    of all run at once, where the modules of a site run with the weights of its variant on its rows. The scorer sees
    nothing of it: its call of `generate` gives what it would have given.

    Tokens are those of the variants one by one. Sizes of a batch differ in rounding, so a variant of which rounding may
    have decided a token is left to run on its own; so is whatever cannot be done row by row, and `notes` says why. The
    unmodified model is decoded along each time, and the first time another variant on its own, and compared.

    Args:
        model: the model itself, not wrapped.
        prefix: what its variants share.
        always: in half precision, too, where rounding may decide between tokens that are nearly equally likely.
        stack: run short forwards of all variants as one, too, which may round a last digit otherwise.
        limit: bytes that may be used for it; None: a quarter of the memory that is free.

    Examples:
        >>> import layersurgery as ls
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)).eval()
        >>> sites = ls.select(model)
        >>> cuts = [ls.Surgery(at=site, do=ls.Zero()) for site in sites]
        >>> together, prompt = Together(model, SharedPrefix(model, sites)), torch.ones(1, 3, dtype=torch.long)
        >>> with together.recording():
        ...     base = model.generate(prompt, max_new_tokens=4, do_sample=False)
        >>> together.compute(cuts)
        >>> with cuts[0](model), together.answering(cuts[0]):
        ...     variant = model.generate(prompt, max_new_tokens=4, do_sample=False)  # was written by then
    """

    def __init__(
        self,
        model: nn.Module,
        prefix: SharedPrefix,
        *,
        always: bool = False,
        stack: bool = True,
        limit: int | None = None,
    ) -> None:
        self._model: Any = model
        self._prefix, self._always, self._limit = prefix, always, limit
        self._free = Room(model)
        self._writings: list[Writing] = []
        self._shorts = Shorts(model, prefix, self._variant, self._room) if stack else None
        self._weights: Weights | None = None
        self._variants: dict[Surgery, Variant] = {}
        self._notes = Notes()
        self._rewrites = False
        self._looked = False
        self._off = False
        self._trusted = False

    @property
    def notes(self) -> list[str]:
        """What is computed for each variant on its own, and why, in words; empty: there is nothing of the kind."""
        return [*self._notes, *(() if self._shorts is None else self._shorts.notes)]

    def forget(self) -> None:
        """Let go of what is kept, of the shared prefix too."""
        self._let_go()
        self._prefix.forget()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Around the scorer's call on the unmodified model; what was computed before is forgotten."""
        self.forget()
        looks = generates_itself(self._model)
        standing = None if self._looked else (Standing(self._model.modules()), Attributes(self._model.modules()))
        try:
            with (
                self._prefix.recording(),
                nullcontext() if self._shorts is None else self._shorts.noting(),
                self._writing_down() if looks else nullcontext(),
            ):
                yield
        except BaseException:
            self._let_go()
            raise
        if standing is not None:
            self._looked = True
            self._rewrites = not standing[0].changes().attributes <= set(standing[1].changed())

    def runs_along(self, surgeries: Sequence[Surgery]) -> bool:
        """Whether the unmodified model can run as one of the rows of what is computed for these variants.

        So it did on the samples before, and was the same by itself.
        """
        if self._weights is None or not self._weights.are_in_place or self._shorts is None:
            return False
        return not self._writings and self._shorts.run_along(surgeries)

    @contextmanager
    def running_along(self, surgeries: Sequence[Surgery]) -> Iterator[None]:
        """Around the scorer's call on the unmodified model: computes these variants with it, where `has_all` after."""
        self.forget()
        if self._shorts is None:
            raise ValueError("nothing was computed along with the unmodified model before")
        with self._shorts.running_along(surgeries):
            yield

    def has_all(self, surgeries: Sequence[Surgery]) -> bool:
        """Whether it is known what the model gives for each of these variants."""
        return self._shorts is not None and all(map(self._shorts.has, surgeries))

    def compute(self, surgeries: Sequence[Surgery]) -> None:
        """Compute these variants, as far as they can be computed at once; no surgery may be in force.

        Where memory runs out, the error comes through. Whatever else goes wrong leaves the variants to run on their
        own.
        """
        if self._weights is not None and not self._weights.are_in_place:
            self._weights, self._variants = None, {}
        if self._shorts is not None and not self._writings and len(surgeries) > 1:
            self._shorts.compute(surgeries, self._problem)
        for writing in self._writings:
            if self._off or len(surgeries) < 2:
                return
            try:
                self._decode(writing, surgeries)
            except Exception as error:
                writing.texts.clear()
                if ran_out_of_memory(error):
                    raise
                self._off = True
                self._notes.tell(f"variants are decoded one by one, since {words(error)}")

    def answering(self, surgery: Surgery, applied: Applied | None = None) -> AbstractContextManager[None]:
        """Around the scorer's call on a variant, while its surgery is in force; `applied` as for the prefix."""
        if self._shorts is not None and self._shorts.has(surgery):
            return self._shorts.answering(surgery)
        if any(surgery in writing.texts for writing in self._writings):
            return self._giving_texts(surgery, applied)
        return self._prefix.replaying(surgery.steps[0].site, applied=applied)

    @contextmanager
    def _giving_texts(self, surgery: Surgery, applied: Applied | None) -> Iterator[None]:
        with ExitStack() as replaying:
            replaying.enter_context(self._prefix.replaying(surgery.steps[0].site, applied=applied))
            with Placed(
                self._model, "generate", GenerateAnswers(self._model, self._writings, surgery, self._prefix, replaying)
            ):
                yield

    def has(self, surgery: Surgery) -> bool:
        """Whether something was computed for a variant here."""
        along = self._shorts is not None and self._shorts.has(surgery)
        return along or any(surgery in writing.texts for writing in self._writings)

    def ran(self, surgery: Surgery) -> bool | None:
        """Whether a variant's sites take part in what the scorer runs; None: that is not known from the base."""
        if self._shorts is not None and self._shorts.has(surgery):
            return self._shorts.ran({module for site in surgery.sites for module in _modules(self._model, site)})
        return self._prefix.ran(surgery.sites)

    def _let_go(self) -> None:
        self._writings = []
        if self._shorts is not None:
            self._shorts.forget()

    @contextmanager
    def _writing_down(self) -> Iterator[None]:
        generate = self._model.generate
        within = False

        def write(*arguments: Any, **keywords: Any) -> Any:
            nonlocal within
            if within or is_looked_into(self._model):
                return generate(*arguments, **keywords)
            within = True
            try:
                writing, output = Writing.of(self._prefix, generate, arguments, keywords)
            finally:
                within = False
            self._writings.append(writing)
            return output

        with Placed(self._model, "generate", write):
            yield

    def _decode(self, writing: Writing, surgeries: Sequence[Surgery]) -> None:
        problem = writing.problem or self._problem()
        if not problem:
            arguments, keywords = writing.given()
            problem = refused(self._model, named(self._model, arguments, keywords))
        if problem:
            raise CannotError(problem)
        with under(writing.world), torch.random.fork_rng(devices=[]):
            each = bytes_for_each(self._model, self._prefix, writing)
            exactly = not self._always or _low(self._model) is None
            for group in self._groups(self._fit(writing, surgeries), each):
                texts, tried = self._joint(writing, group, exactly)
                if len(texts) < tried:
                    self._notes.tell(
                        "some variants are decoded on their own, since rounding may decide between two tokens"
                    )
                self._compare(writing, texts)
                writing.texts.update(texts)

    def _joint(self, writing: Writing, group: list[Variant], exactly: bool) -> tuple[dict[Surgery, torch.Tensor], int]:
        """What these variants write, without those that turn out to be in the way, and how many are left then."""
        while group:
            try:
                return Joint(self._model, self._prefix, writing, group, exactly).texts(), len(group)
            except CannotError as error:
                if error.module is None:
                    raise
                for variant in group:
                    if error.module in variant.weights:
                        self._notes.tell(f"decoded on its own, since {error}", variant.surgery.steps[0].site.path)
                group = [variant for variant in group if error.module not in variant.weights]
        return {}, 0

    def _problem(self) -> str:
        """Why nothing can be done at once on this model, in words; empty: there is no such reason."""
        modules = list(self._model.modules())
        low = _low(self._model)
        if low is not None and not self._always:
            return f"in {str(low).removeprefix('torch.')} the size of a batch changes tokens"
        if any(module.training for module in modules):
            return "it is in training mode"
        if any(map(is_patched, modules)):
            return "a forward was put in place of a module's own"
        if any(map(hooks_on, modules)):
            return "there are hooks on its modules"
        return "its state is written into in each call" if self._rewrites else ""

    def _fit(self, writing: Writing, surgeries: Sequence[Surgery]) -> Iterator[Variant]:
        """The variants that can be decoded with others, one after the other."""
        passes = self._prefix.passes[writing.begin : writing.end]
        before = {module for one in passes[: prefill(passes, self._model)] for module in one.first}
        for surgery in surgeries:
            try:
                variant = self._variant(surgery)
                if not before.isdisjoint(variant.weights):
                    raise CannotError("it changes what runs before the first step")
            except CannotError as error:
                self._notes.tell(f"decoded on its own, since {error}", surgery.steps[0].site.path)
                continue
            yield variant

    def _variant(self, surgery: Surgery) -> Variant:
        """What a surgery changes; of those that take no memory, as it was found before."""
        variant = self._variants.get(surgery)
        if variant is None or self._weights is None:
            self._weights = self._weights or Weights(self._model.modules())
            variant = self._weights.under(self._model, surgery)
            if variant.nbytes < _NEXT_TO_NOTHING:
                self._variants[surgery] = variant
        return variant

    def _groups(self, variants: Iterator[Variant], each: int) -> Iterator[list[Variant]]:
        """As many variants at a time as there is memory for, the unmodified model besides."""
        limit = self._room()
        group, taken = list[Variant](), each
        for variant in variants:
            needed = each + variant.nbytes
            if group and taken + needed > limit:
                yield group
                group, taken = [], each
            group.append(variant)
            taken += needed
            if taken > limit and len(group) == 1:
                raise CannotError("there is not the memory to keep several of them")
        if group:
            yield group

    def _room(self) -> int:
        limit = self._free.read() if self._limit is None else self._limit
        return _SOME if limit is None else limit

    def _compare(self, writing: Writing, texts: dict[Surgery, torch.Tensor]) -> None:
        """The first time, make sure that a variant gives just that on its own."""
        if self._trusted or not texts:
            return
        surgery = list(texts)[len(texts) // 2]
        before = Attributes(self._model.modules())
        arguments, keywords = writing.given()
        try:
            with surgery(self._model):
                alone = self._model.generate(*arguments, **keywords)
        finally:
            before.restore()
        exactly = not self._always or _low(self._model) is None
        if exactly and not torch.equal(alone, texts[surgery]):
            raise CannotError(f"the tokens of a variant are others then ({surgery.steps[0].site.path})")
        self._trusted = True


_NEXT_TO_NOTHING = 2**12  # bytes
_SOME = 2**30


def _low(model: nn.Module) -> torch.dtype | None:
    """The half precision in which a model is; None: in none."""
    return next((one.dtype for one in model.parameters() if one.dtype in (torch.float16, torch.bfloat16)), None)
