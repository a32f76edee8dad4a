"""The ways of doing a sweep that the benchmark compares: the plain hook loop, by hand, nnsight, and layersurgery."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import nn

import layersurgery as ls
from layersurgery.sweeps import Result, _prefix
from layersurgery.sweeps._executor import Share
from layersurgery.sweeps._prefix import SharedPrefix
from tests.benchmarks._sweep_shapes import ASKED, Case, Given, Place, together
from tests.benchmarks._sweep_turns import in_turns


class CannotRunError(Exception):
    """A method that is not there, or that does not take this model; the message says why."""


class Method:
    """One way of doing a sweep, on modules of its own with the weights of all.

    Args:
        case: the model and its samples.

    Raises:
        CannotRunError: if it is not there, or does not take this model.
    """

    name: ClassVar[str]
    pace: ClassVar[str] = "any"  # "any": forwards that all cost the same; "all": row by row; "at once"
    generates: ClassVar[bool] = True

    def __init__(self, case: Case) -> None:
        if case.new_tokens and not self.generates:
            raise CannotRunError("not run: here it would generate as the loop does, one forward a token and site")
        self.case = case
        self.batches = case.batches
        self.model = case.copied()
        self.sites = list(ls.select(self.model))

    def output(self, place: Place) -> torch.Tensor:
        """What one micro-batch gives with one row's change."""
        raise NotImplementedError

    def mixer(self, row: int) -> nn.Module:
        """The module that a row knocks out."""
        return self.model.get_submodule(self.sites[row - 1].path)


class HookLoop(Method):
    """A full forward for each row, and a hook that puts zeros in place of what the module gives."""

    name = "hook loop"

    def output(self, place: Place) -> torch.Tensor:
        batch, row = place
        if row == 0:
            return self.case.run(self.model, self.batches[batch])
        handle = self.mixer(row).register_forward_hook(lambda module, given, output: zeroed(output))
        try:
            return self.case.run(self.model, self.batches[batch])
        finally:
            handle.remove()


class ByHand(Method):
    """Weights copied, set to zero, and written back."""

    name = "weights by hand"

    def output(self, place: Place) -> torch.Tensor:
        batch, row = place
        weights = [weight.data for weight in self.mixer(row).parameters()] if row else []
        kept = [weight.clone() for weight in weights]
        for weight in weights:
            weight.zero_()
        try:
            return self.case.run(self.model, self.batches[batch])
        finally:
            for weight, values in zip(weights, kept, strict=True):
                weight.copy_(values)


class NNsightTraces(Method):
    """A trace for each row."""

    name = "nnsight traces"
    generates = False

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        import nnsight

        self.envoy = nnsight.NNsight(self.model)
        self.envoys = [self.envoy.get(site.path) for site in self.sites]

    @torch.no_grad()
    def output(self, place: Place) -> torch.Tensor:
        batch, row = place
        given = {**self.batches[batch], **ASKED}
        if row == 0:
            with self.envoy.trace(**given):
                logits = self.envoy.output.logits.save()
            return logits  # noqa: RET504 - nnsight runs the block, and it must not return
        mixer = self.envoys[row - 1]
        with self.envoy.trace(**given):
            mixer.output[0][:] = 0
            logits = self.envoy.output.logits.save()
        return logits  # noqa: RET504 - nnsight runs the block, and it must not return


class Prefix(Method):
    """`SharedPrefix` alone: what lies below a site is computed once."""

    name = "shared prefix"
    pace = "all"

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.prefix = SharedPrefix(self.model, self.sites)
        self.kept = 0

    def output(self, place: Place) -> torch.Tensor:
        batch, row = place
        site = self.sites[row - 1] if row else None
        change = nullcontext() if site is None else ls.Surgery(at=site, do=ls.Zero())(self.model)
        shares = self.prefix.recording() if site is None else self.prefix.replaying(site)
        with change, shares:
            output = self.case.run(self.model, self.batches[batch])
        self.kept = max(self.kept, self.prefix.nbytes) if row == 0 else self.kept
        if row == len(self.sites):
            self.prefix.forget()
        return output


class Sweep(Method):
    """`ls.sweep`, evaluation by evaluation."""

    name = "layersurgery"
    pace = "at once"
    share: ClassVar[Share] = True

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.notes: tuple[str, ...] = ()
        self.once = 0.0

    def outputs(self, clock: Callable[[], float], turn: Callable[[Place], None]) -> dict[Place, torch.Tensor]:
        """What each micro-batch gives in each row; after each of them others have their turn.

        `once` is then what a run does once, however many samples there are: its check, and the look at what of the last
        layer is needed at scored positions only.
        """
        score = Score(self.case, clock=clock)
        with _timed(_prefix, "find_tail", clock) as looked:
            table = self._table(score, turn)
        self.notes, self.once = table.notes, score.check + sum(looked)
        if table.text is None:
            raise CannotRunError("the table has no texts, which tell the outputs apart")
        size = self.case.batch_size
        found: dict[Place, torch.Tensor] = {}
        for row, texts in enumerate(table.text):
            rows = [score.seen[text or ""] for text in texts]
            for batch in range(len(self.batches)):
                found[batch, row] = torch.stack(rows[batch * size : (batch + 1) * size])
        return found

    def begin(self, calls: int) -> None:
        """Run until the scorer was called so many times: enough to see how much memory it takes."""
        try:
            self._table(Score(self.case, calls))
        except ls.errors.ScoringError as error:
            if not isinstance(error.__cause__, _EnoughError):
                raise
        except _EnoughError:
            pass

    def _table(self, score: Score, turn: Callable[[Place], None] = lambda _: None) -> ls.ScoreTable:
        samples = range(len(self.case.samples))
        size = self.case.batch_size

        def done(result: Result) -> None:
            turn((result.columns[0] // size, result.row))

        return in_turns(self.model, score, samples, self.sites, size, done, self.share)


@contextmanager
def _timed(module: Any, name: str, clock: Callable[[], float]) -> Iterator[list[float]]:
    """What each call of a function takes in this block."""
    plain, seconds = getattr(module, name), list[float]()

    def timed(*given: Any) -> Any:
        began = clock()
        try:
            return plain(*given)
        finally:
            seconds.append(clock() - began)

    setattr(module, name, timed)
    try:
        yield seconds
    finally:
        setattr(module, name, plain)


class SweepAll(Sweep):
    """The same where a last digit may be rounded otherwise: all variants of short calls run at once."""

    name = 'share="all"'
    share = "all"


class Score:
    """Calls the model once per micro-batch and gives the log-probability of one token per sample.

    The text that goes with it tells which output it was, so that these can be compared with the loop's.

    Args:
        case: whose samples, as numbers, it is called with.
        calls: give up after so many calls and keep no outputs; 0: go on.
        clock: gives seconds.
    """

    def __init__(self, case: Case, calls: int = 0, clock: Callable[[], float] = time.process_time) -> None:
        self.seen: dict[str, torch.Tensor] = {}
        self.check = 0.0
        self.batch_size = case.batch_size
        self._case, self._calls, self._clock = case, calls, clock
        self._left = calls
        self._firsts: list[tuple[list[str], float]] = []

    def __call__(self, model: Any, samples: Sequence[int]) -> ls.Scores:
        """The scores of these samples."""
        began = self._clock()
        output = self._case.run(model, self._given(samples))
        if self._calls:
            self._left -= 1
            if not self._left:
                raise _EnoughError
            return ls.Scores(scored(output))
        last = (output if self._case.new_tokens else output[:, -1]).float().cpu()
        texts = [hashlib.sha1(row.numpy().tobytes()).hexdigest() for row in last]
        self.seen.update(zip(texts, output, strict=True))
        if len(self._firsts) < _FIRST:
            self._firsts.append((texts, self._clock() - began))
            if len(self._firsts) == _FIRST and self._firsts[0][0] == texts:
                self.check = self._firsts[0][1]
        return ls.Scores(scored(output), text=texts)

    def _given(self, samples: Sequence[int]) -> Given:
        """The inputs of these samples: as a rule, those of a micro-batch, which are made only once."""
        batch, offset = divmod(samples[0], self._case.batch_size)
        if not offset and len(samples) == self._case.batch_size and list(samples) == sorted(samples):
            return self._case.batches[batch]
        return together([self._case.samples[number] for number in samples])


_FIRST = 3  # calls of a run: a variant in full, for the check; the unmodified model; and the same variant


class _EnoughError(Exception):
    pass


def scored(output: torch.Tensor) -> Any:
    """[n] log-probabilities of one token after each sample; of generated tokens, how many are even."""
    if output.dim() == 2:
        return (output % 2 == 0).sum(1).double().cpu().numpy()
    return output[:, -1].float().log_softmax(-1)[:, 1].double().cpu().numpy()


def zeroed(output: Any) -> Any:
    """The same with zeros in place of what a module adds to the stream: its output, or the first of them."""
    if isinstance(output, tuple):
        return (torch.zeros_like(output[0]), *output[1:])
    return torch.zeros_like(output)
