"""`ChoiceScorer`: which option does the model find most likely, and by how much."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from layersurgery.errors import SampleError, ScoringError
from layersurgery.scoring import _inputs
from layersurgery.scoring._fingerprint import VERSION, callable_id, processor_id
from layersurgery.scoring._last_call import LastCall
from layersurgery.scoring._prompts import Prompt
from layersurgery.scoring._scores import BatchSize, Scores
from layersurgery.scoring._templates import BY_TEXT, PLAIN
from layersurgery.scoring._variants import reduced, spread
from layersurgery.tasks import LETTERS, Sample

_TAIL = 32  # characters of the prompt in front of a candidate; no token reaches further back across the boundary


@dataclass(frozen=True, eq=False, repr=False)
class ChoiceScorer:
    """Scores multiple-choice samples by the log-probability of each option at the answer position.

    `correct` is 1 where the right option is the most likely one (of equally likely ones the first counts as chosen),
    else 0. `margin` is its log-probability minus that of the best other option, in nats. A sample takes one row of a
    batch where every candidate is a single token, as letters are; a candidate of several tokens gets a row of its own
    and the **sum** of its tokens' log-probabilities (not the mean: longer options are less likely a priori).

    A sample with `variants` is right where all of them are, and its margin is the smallest of theirs.

    The accuracy by option letters of the paper [A], read off the model's probabilities in place of generated text.
    Processed inputs of the last call are kept (at most 1 GiB) for the next call on the same sample objects.

    Args:
        processor: the model's Hugging Face processor, or the tokenizer of a text model; never changed.
        batch_size: rows in one forward pass; changes no answer beyond float noise. "auto": as many samples as a sweep
            finds memory for; called by itself, 64 rows.
        candidates: "letters" (A, B, ...) or "options" (the options' texts).
        prompt: from a sample to the user's message, for instance a `prompt_template`; None: the question, one "A. text"
            line per option and what to answer with. Goes into the chat template, or in front of "Answer:" where there
            is none.

    Raises:
        ScoringError: for a setting that cannot work. Calling the scorer raises it for a model in training mode, and
            SampleError for samples that are empty, open questions, or have a single option (there is no margin).

    A tokenizer and a model too small to know anything, in place of a checkpoint's:

    Examples:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"?": 0, "A": 1, "B": 2, "Answer": 3}, unk_token="?"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> scorer = ChoiceScorer(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?"))
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=4, n_embd=8, n_layer=1, n_head=1)).eval()
        >>> scores = scorer(model, [Sample("q1", "Which colour is the sky?", ("red", "blue"), 1)])
        >>> bool(scores.correct[0]) == bool(scores.margin[0] > 0)
        True
    """

    processor: Any
    batch_size: BatchSize = field(default=16, kw_only=True)
    candidates: str = field(default="letters", kw_only=True)
    prompt: Prompt | None = field(default=None, kw_only=True)
    _last: LastCall[Any] = field(default_factory=LastCall, init=False)

    def __post_init__(self) -> None:
        _inputs.check_processor(self.processor, self.batch_size)
        if self.candidates not in ("letters", "options"):
            raise ScoringError(f"candidates is {self.candidates!r}; give 'letters' or 'options'")

    def __call__(self, model: Any, samples: Iterable[Sample]) -> Scores:
        """Score `samples`.

        Args:
            model: a Hugging Face causal, image-text-to-text or encoder-decoder model in eval mode, or an nnsight model
                around one.
            samples: with two or more options each.

        Returns:
            `correct` and `margin`, one of each per sample.

        Raises:
            SampleError, ScoringError: see the class.
        """
        module, given = _inputs.ready(model, samples)
        samples = spread(given)
        for sample in samples:
            _check_options(sample)
        start = _decoder_start(module) if _inputs.is_encoder_decoder(module) else None
        found = [np.zeros(len(sample.options)) for sample in samples]
        for batch in self._last.batches(samples, start, lambda: self._batches(samples, start)):
            for (sample, option), value in zip(batch.targets, _log_probs(module, batch), strict=True):
                found[sample][option] += value
        return reduced(given, _scores(samples, found))

    def length(self, sample: Sample) -> int:
        """How long a sample is beside others: a sweep takes those of a length together, so that little is padded."""
        return _inputs.rough_length(sample)

    @cached_property
    def fingerprint(self) -> str:
        """A short string of everything that changes results; what differs in it must not share a store."""
        prompt = callable_id(self.prompt) if self.prompt else "default"
        return (
            f"ChoiceScorer/{VERSION} candidates={self.candidates} prompt={prompt} "
            f"processor={processor_id(self.processor)}"
        )

    def __repr__(self) -> str:
        prompt = f", prompt={callable_id(self.prompt)}" if self.prompt else ""
        return (
            f"ChoiceScorer({type(self.processor).__name__}, batch_size={self.batch_size!r}, "
            f"candidates={self.candidates!r}{prompt})"
        )

    def _batches(self, samples: Sequence[Sample], start: tuple[int, ...] | None) -> Iterator[_Batch]:
        prompt = self.prompt or (PLAIN if self.candidates == "letters" else BY_TEXT)
        fill = _inputs.pad_id(_inputs.tokenizer_of(self.processor))
        most = _inputs.most_rows(self.batch_size)
        for group in _inputs.by_picture_count(samples, prompt):
            rows: list[_Row] = []
            for position in group:
                sample = samples[position]
                prepared = _inputs.prepare(self.processor, sample, prompt, encoder=start is not None)
                rows += _rows(prepared, position, self._candidates(sample, prepared, start is not None))
                while len(rows) >= most:
                    yield _batch(rows[:most], start, fill)
                    rows = rows[most:]
            if rows:
                yield _batch(rows, start, fill)

    def _candidates(self, sample: Sample, prepared: _inputs.Prepared, encoder: bool) -> list[tuple[int, ...]]:
        tokenizer = _inputs.tokenizer_of(self.processor)
        letters = self.candidates == "letters"
        texts = LETTERS[: len(sample.options)] if letters else sample.options
        tail = "" if encoder else prepared.text[-_TAIL:]
        with _inputs.unchanged(tokenizer):
            tokens = [_continuation(tokenizer, tail, text) for text in texts]
        for position, ids in enumerate(tokens):
            problem = None
            if not ids:
                problem = "has no token"
            elif letters and tokenizer.unk_token_id in ids:
                problem = "is unknown"
            elif ids in tokens[:position]:
                problem = f"is the same as option {LETTERS[tokens.index(ids)]}"
            if problem:
                raise ScoringError(
                    f"sample {sample.id!r}: option {LETTERS[position]} ({texts[position]!r}) {problem} to "
                    f"{type(tokenizer).__name__}; "
                    f"use candidates={'options' if letters else 'letters'!r}, or change the options"
                )
        return tokens


@dataclass(frozen=True)
class _Row:
    """A prompt with `fed` after it, and which tokens to read there: (sample, option, offset from its end, token)."""

    prepared: _inputs.Prepared
    fed: tuple[int, ...]
    reads: tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True)
class _Batch:
    """Padded inputs, and where to read: `where` is [row, position, token] per read, `targets` its (sample, option)."""

    inputs: dict[str, Any]
    where: torch.Tensor
    targets: list[tuple[int, int]]


def _check_options(sample: Sample) -> None:
    if not sample.options:
        raise SampleError(
            f"sample {sample.id!r} is an open question, without options to choose from; use GenerationScorer for it"
        )
    if len(sample.options) == 1:
        raise SampleError(
            f"sample {sample.id!r} has a single option, so there is no other to compare it with; give two or more"
        )


def _continuation(tokenizer: Any, tail: str, text: str) -> tuple[int, ...]:
    """The tokens of `text` where it follows `tail`."""

    def ids(string: str) -> list[int]:
        return tokenizer(string, add_special_tokens=False)["input_ids"] if string else []

    # A word begins with a blank, unless a new line or a special token (of a chat template) stands before it.
    joined = not tail or tail[-1].isspace() or any(tail.endswith(token) for token in tokenizer.all_special_tokens)
    before, after = ids(tail), ids(tail + ("" if joined else " ") + text)
    if len(after) > len(before) and after[: len(before)] == before:
        return tuple(after[len(before) :])
    return tuple(ids(text))  # the boundary itself was merged into another token


def _rows(prepared: _inputs.Prepared, sample: int, candidates: Sequence[tuple[int, ...]]) -> list[_Row]:
    """One row for all candidates that feed the same tokens: a single row where each is one token."""
    reads: dict[tuple[int, ...], list[tuple[int, int, int, int]]] = {}
    for option, ids in enumerate(candidates):
        reads.setdefault(ids[:-1], []).extend((sample, option, offset, token) for offset, token in enumerate(ids))
    return [_Row(prepared, fed, tuple(entries)) for fed, entries in reads.items()]


def _batch(rows: Sequence[_Row], start: tuple[int, ...] | None, fill: int) -> _Batch:
    """Padded on the right, so that positions are the natural ones whatever the model makes of its mask."""
    items = [row.prepared for row in rows]
    if start is None:
        inputs = _inputs.collate(items, side="right", fill=fill, extra=[row.fed for row in rows])
        first = [len(item) - 1 for item in items]
    else:  # the prompt is the encoder's, the candidates are the decoder's
        inputs = _inputs.collate(items, side="right", fill=fill)
        fed = [torch.tensor([*start, *row.fed]) for row in rows]
        inputs["decoder_input_ids"] = nn.utils.rnn.pad_sequence(fed, batch_first=True, padding_value=fill)
        first = [len(start) - 1] * len(rows)
    reads = [(row, *read) for row, one in enumerate(rows) for read in one.reads]
    where = torch.tensor([[row, first[row] + offset, token] for row, _, _, offset, token in reads])
    return _Batch(inputs, where.T, [(sample, option) for _, sample, option, _, _ in reads])


def _log_probs(module: nn.Module, batch: _Batch) -> list[float]:
    """The log-probability of each token that the batch reads."""
    inputs = _inputs.place(batch.inputs, module)
    names = _inputs.forward_names(module)
    row, position, token = batch.where
    needed, column = torch.unique(position, return_inverse=True)
    if "use_cache" in names:
        inputs["use_cache"] = False
    if "logits_to_keep" in names:  # never make the whole vocabulary's logits at every position
        inputs["logits_to_keep"] = needed.to(inputs["input_ids"].device)
    with torch.no_grad():
        logits = getattr(module(**inputs), "logits", None)
        if not isinstance(logits, torch.Tensor) or logits.ndim != 3:
            raise ScoringError(
                f"{type(module).__name__} returned no logits [batch, position, vocabulary]; "
                "load the model with its language-model head (AutoModelForCausalLM, AutoModelForImageTextToText)"
            )
        trimmed = "logits_to_keep" in names and logits.shape[1] == len(needed)
        if not trimmed and logits.shape[1] != batch.inputs.get("decoder_input_ids", batch.inputs["input_ids"]).shape[1]:
            raise ScoringError(
                f"{type(module).__name__} returned logits at {logits.shape[1]} positions for "
                f"{batch.inputs['input_ids'].shape[1]} tokens; its processor and model do not belong together"
            )
        row, column = row.to(logits.device), (column if trimmed else position).to(logits.device)
        at = logits[row, column].float()
        picked = at.gather(1, token.to(logits.device)[:, None])[:, 0]
        return (picked - at.logsumexp(-1)).tolist()


def _decoder_start(module: nn.Module) -> tuple[int, ...]:
    """What an encoder-decoder's decoder begins with, as its own `generate` would."""
    sources = [getattr(module, "generation_config", None), getattr(module, "config", None)]

    def setting(*names: str) -> int | None:
        values = (getattr(source, name, None) for name in names for source in sources)
        return next((value for value in values if isinstance(value, int)), None)

    start, forced = setting("decoder_start_token_id", "bos_token_id"), setting("forced_bos_token_id")
    if start is None:
        raise ScoringError(
            f"{type(module).__name__} does not say what its decoder starts with; "
            "set model.config.decoder_start_token_id"
        )
    return (start,) if forced is None else (start, forced)


def _scores(samples: Sequence[Sample], found: Sequence[np.ndarray]) -> Scores:
    correct, margin = np.zeros(len(samples)), np.zeros(len(samples))
    for position, (sample, values) in enumerate(zip(samples, found, strict=True)):
        if not np.isfinite(values).all():
            raise ScoringError(
                f"sample {sample.id!r}: the log-probabilities of its options are {values.tolist()}; the model's output "
                "is not finite (float16 may overflow: load it in bfloat16 or float32)"
            )
        right = LETTERS.index(sample.letter)
        correct[position] = values.argmax() == right
        margin[position] = values[right] - np.delete(values, right).max()
    return Scores(correct, margin=margin)
