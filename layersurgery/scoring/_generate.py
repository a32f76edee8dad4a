"""`GenerationScorer`: let the model write its answer, and read it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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
from layersurgery.scoring._rules import Judgement, check_rule, judge
from layersurgery.scoring._scores import BatchSize, Scores
from layersurgery.scoring._templates import PLAIN
from layersurgery.scoring._variants import reduced, spread
from layersurgery.tasks import Sample

Extract = Callable[[str, Sample], Judgement]

# Plain greedy decoding, said in full: whatever is left open is filled in from the checkpoint's own settings. None
# switches a setting off, and is ignored by versions of transformers that do not know it.
_GREEDY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    **dict.fromkeys(("temperature", "typical_p", "top_p"), 1.0),
    "top_k": 50,
    **dict.fromkeys(("min_p", "top_h", "epsilon_cutoff", "eta_cutoff", "penalty_alpha", "guidance_scale")),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "length_penalty"), 1.0),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), 0),
    **dict.fromkeys(("exponential_decay_length_penalty", "sequence_bias", "watermarking_config")),
    "early_stopping": False,
    **dict.fromkeys(("max_length", "max_time", "min_length", "min_new_tokens", "stop_strings", "forced_eos_token_id")),
    **dict.fromkeys(("return_dict_in_generate", "output_scores", "output_logits"), False),
    "disable_compile": True,  # the model changes between calls
}


@dataclass(frozen=True, eq=False, repr=False)
class GenerationScorer:
    """Scores samples by the text that the model writes, decoded greedily.

    `extract` reads the answer out of the text, and compares it. What cannot be read is wrong, never guessed: `answered`
    says which. `text` holds the answers, stripped. A sample with `variants` is right where all of them are; its text is
    theirs, a line each. The paper's way of scoring [A].

    Decoding is plain greedy whatever the checkpoint's generation settings say (no sampling, beams, penalties or length
    limits); only its special tokens and those that it must not write are heeded. Processed inputs of the last call are
    kept (at most 1 GiB) for the next call on the same sample objects.

    Args:
        processor: the model's Hugging Face processor, or the tokenizer of a text model; never changed.
        extract: one of `RULES` (see `judge`), or a function from a text and its sample to a `Judgement`.
        max_new_tokens: length limit of an answer, in tokens.
        batch_size: samples that are decoded together; changes no answer beyond float noise. "auto": as many as a sweep
            finds memory for; called by itself, 64.
        prompt: from a sample to the user's message, for instance a `prompt_template`; None: the question, one "A. text"
            line per option, and what to answer with.

    Raises:
        ScoringError: for a setting that cannot work. Calling the scorer raises it for a model in training mode or one
            that cannot generate, and SampleError for samples that are empty or have no answer.

    A tokenizer and a model too small to know anything, in place of a checkpoint's:

    Examples:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"?": 0, "A": 1, "B": 2, "Answer": 3}, unk_token="?"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> scorer = GenerationScorer(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?"), max_new_tokens=3)
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=4, n_embd=8, n_layer=1, n_head=1)).eval()
        >>> scores = scorer(model, [Sample("q1", "Which colour is the sky?", ("red", "blue"), 1)])
        >>> len(scores.text), len(scores.text[0].split()) <= 3
        (1, True)
    """

    processor: Any
    extract: str | Extract = field(default="letters-v1", kw_only=True)
    max_new_tokens: int = field(default=16, kw_only=True)
    batch_size: BatchSize = field(default=16, kw_only=True)
    prompt: Prompt | None = field(default=None, kw_only=True)
    _last: LastCall[Any] = field(default_factory=LastCall, init=False)

    def __post_init__(self) -> None:
        _inputs.check_processor(self.processor, self.batch_size)
        _inputs.check_count(self.max_new_tokens, "max_new_tokens")
        if isinstance(self.extract, str):
            check_rule(self.extract)
        elif not callable(self.extract):
            raise ScoringError(
                f"extract is {self.extract!r}; give the name of a rule, such as 'letters-v1', or a function from "
                "(text, sample) to a Judgement"
            )

    def __call__(self, model: Any, samples: Iterable[Sample]) -> Scores:
        """Score `samples`.

        Args:
            model: a Hugging Face model with `generate`, in eval mode, or an nnsight model around one.
            samples: with options, or open questions with the expected text as their answer.

        Returns:
            `correct`, `text` and `answered`, one of each per sample.

        Raises:
            SampleError, ScoringError: see the class.
        """
        module, given = _inputs.ready(model, samples)
        samples = spread(given)
        if not callable(getattr(module, "generate", None)):
            raise ScoringError(
                f"{type(module).__name__} cannot generate; load the model with its language-model head "
                "(AutoModelForCausalLM, AutoModelForImageTextToText)"
            )
        for sample in samples:
            if sample.answer is None:
                raise SampleError(f"sample {sample.id!r} has no answer to compare with; give it one")
            if isinstance(self.extract, str):
                check_rule(self.extract, sample)
        encoder = _inputs.is_encoder_decoder(module)
        texts = [""] * len(samples)
        for batch in self._last.batches(samples, encoder, lambda: self._batches(samples, encoder)):
            for position, text in zip(batch.positions, self._write(module, batch), strict=True):
                texts[position] = text
        judged = [self._judge(sample, text) for sample, text in zip(samples, texts, strict=True)]
        scores = Scores(
            np.array([judgement.correct for judgement in judged], float),
            text=texts,
            answered=np.array([judgement.answer is not None for judgement in judged]),
        )
        return reduced(given, scores)

    def length(self, sample: Sample) -> int:
        """How long a sample is beside others: a sweep takes those of a length together, so that little is padded."""
        return _inputs.rough_length(sample)

    @cached_property
    def fingerprint(self) -> str:
        """A short string of everything that changes results; what differs in it must not share a store."""
        prompt = callable_id(self.prompt) if self.prompt else "default"
        return (
            f"GenerationScorer/{VERSION} extract={self._rule()} max_new_tokens={self.max_new_tokens} "
            f"prompt={prompt} processor={processor_id(self.processor)}"
        )

    def __repr__(self) -> str:
        prompt = f", prompt={callable_id(self.prompt)}" if self.prompt else ""
        given = self.extract
        name = repr(given) if isinstance(given, str) else getattr(given, "__qualname__", type(given).__qualname__)
        return (
            f"GenerationScorer({type(self.processor).__name__}, extract={name}, max_new_tokens={self.max_new_tokens}, "
            f"batch_size={self.batch_size!r}{prompt})"
        )

    def _batches(self, samples: Sequence[Sample], encoder: bool) -> Iterator[_Batch]:
        prompt = self.prompt or PLAIN
        fill, most = _inputs.pad_id(_inputs.tokenizer_of(self.processor)), _inputs.most_rows(self.batch_size)
        for group in _inputs.by_picture_count(samples, prompt):
            for begin in range(0, len(group), most):
                positions = group[begin : begin + most]
                items = [
                    _inputs.prepare(self.processor, samples[position], prompt, encoder=encoder)
                    for position in positions
                ]
                # A decoder goes on at the end of each row; an encoder's absolute positions count from the left.
                yield _Batch(_inputs.collate(items, side="right" if encoder else "left", fill=fill), positions)

    def _write(self, module: nn.Module, batch: _Batch) -> list[str]:
        tokenizer = _inputs.tokenizer_of(self.processor)
        inputs = _inputs.place(batch.inputs, module)
        given = 1 if _inputs.is_encoder_decoder(module) else inputs["input_ids"].shape[1]
        settings = {**_GREEDY, "max_new_tokens": self.max_new_tokens, "pad_token_id": _inputs.pad_id(tokenizer)}
        if getattr(getattr(module, "generation_config", None), "eos_token_id", None) is None:
            settings["eos_token_id"] = tokenizer.eos_token_id
        with torch.no_grad():
            output = module.generate(**inputs, **settings)  # pyright: ignore[reportCallIssue]
        return [tokenizer.decode(row[given:], skip_special_tokens=True).strip() for row in output]

    def _judge(self, sample: Sample, text: str) -> Judgement:
        if isinstance(self.extract, str):
            return judge(text, sample, self.extract)
        found = self.extract(text, sample)
        if not isinstance(found, Judgement):
            raise ScoringError(
                f"extract returned {found!r} for sample {sample.id!r}; it must return a layersurgery.scoring.Judgement"
            )
        return found

    def _rule(self) -> str:
        return self.extract if isinstance(self.extract, str) else callable_id(self.extract)


@dataclass(frozen=True)
class _Batch:
    """Padded inputs, and the positions of their samples in the call."""

    inputs: dict[str, Any]
    positions: list[int]
