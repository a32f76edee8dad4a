"""The checks of models that write text: generation with and without a cache, and left padding."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

import layersurgery as ls
from tests.architectures.subject import DoesNotApply, Subject, apart, output_of, same, same_chance
from tests.architectures.twin import zeros

NEW_TOKENS = 5
BETWEEN_LENGTHS = 1e-4  # other shapes, other orders of summation
SHORTER = 2  # how many tokens the second text has less than the first

Written = tuple[torch.Tensor, torch.Tensor]  # tokens; logits of each step


def generation(subject: Subject) -> None:
    """Under `Zero` at one site, five greedy tokens with a cache and their logits are a zeroed copy's."""
    unmodified = _write_untouched(subject, cache=True)
    found = _write_cut(subject, cache=True)
    _equal(found, _write_twin(subject), "a copy that was changed by hand")
    if same(found[1], unmodified[1]):
        raise AssertionError("the surgery changes nothing in what is written")


def without_cache(subject: Subject) -> None:
    """Without a cache the logits of the steps are the same."""
    _write_untouched(subject, cache=True)
    differ = apart(_write_cut(subject, cache=False)[1], _write_cut(subject, cache=True)[1])
    if differ <= BETWEEN_LENGTHS:
        return
    if apart(_write_untouched(subject, cache=False)[1], _write_untouched(subject, cache=True)[1]) > BETWEEN_LENGTHS:
        raise DoesNotApply("unmodified, it writes something else without a cache")
    raise AssertionError(f"the logits of the steps are {differ:.2g} apart from those with a cache")


def left_padding(subject: Subject) -> None:
    """Under `Zero` at one site, the last logits of two texts padded on the left are those of each text alone."""
    accepted = inspect.signature(subject.model.forward).parameters
    if not _writes(subject.model) or "attention_mask" not in accepted or "decoder_input_ids" in accepted:
        raise DoesNotApply("it does not go on with a text that a mask comes with")
    with ls.Surgery(at=subject.middle, do=ls.Zero())(subject.model):
        differ = _padding_matters(subject)
    if differ <= BETWEEN_LENGTHS:
        return
    if _padding_matters(subject) > BETWEEN_LENGTHS:
        raise DoesNotApply("unmodified, its answer depends on the padding")
    raise AssertionError(f"the padding moves the last logits by {differ:.2g}")


def _padding_matters(subject: Subject) -> float:
    given = {key: value for key, value in subject.given.items() if key not in ("input_ids", "attention_mask")}
    accepted = inspect.signature(subject.model.forward).parameters
    text = subject.given["input_ids"][:2].clone()
    mask = torch.ones_like(text)
    # RoBERTa and its like count positions from tokens that are not padding
    text[1, :SHORTER], mask[1, :SHORTER] = getattr(subject.model.config, "pad_token_id", None) or 0, 0
    counted = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if "position_ids" in accepted else {}
    try:
        padded = output_of(subject.model, {**given, "input_ids": text, "attention_mask": mask, **counted})
        alone = [
            output_of(subject.model, {**given, "input_ids": each, "attention_mask": torch.ones_like(each)})
            for each in (text[:1], text[1:, SHORTER:])
        ]
    except (RuntimeError, TypeError, ValueError, IndexError) as error:  # the surgery changes no shapes: the model's own
        raise DoesNotApply(f"it refuses a padded text: {error}") from error
    return max(apart(padded[at, -1], each[0, -1]) for at, each in enumerate(alone))


def _writes(model: nn.Module) -> bool:
    can: Any = getattr(model, "can_generate", None)
    return can is not None and can() and "input_ids" in inspect.signature(model.forward).parameters


def _write_untouched(subject: Subject, cache: bool) -> Written:
    if not _writes(subject.model):
        raise DoesNotApply("it writes no text")
    try:
        return subject.once(f"untouched {cache}", lambda: _write(subject, subject.model, cache))
    except Exception as error:  # whatever a model class raises, untouched, is the reason
        raise DoesNotApply(f"unmodified, it does not generate: {type(error).__name__}: {error}") from error


def _write_cut(subject: Subject, cache: bool) -> Written:
    def write() -> Written:
        with ls.Surgery(at=subject.middle, do=ls.Zero())(subject.model):
            return _write(subject, subject.model, cache)

    return subject.once(f"cut {cache}", write)


def _write_twin(subject: Subject) -> Written:
    with subject.twin.filled(dict.fromkeys(subject.middle.modules, zeros)):
        return _write(subject, subject.twin.model, cache=True)


@torch.no_grad()
def _write(subject: Subject, model: Any, cache: bool) -> Written:
    given = {
        key: value.clone() if isinstance(value, torch.Tensor) else value  # BLIP writes into the text that it is given
        for key, value in subject.given.items()
        if key not in ("use_cache", "decoder_input_ids")
    }
    begin = {"decoder_start_token_id": 1} if model.config.is_encoder_decoder else {}
    with same_chance():
        written = model.generate(
            **given,
            **begin,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            use_cache=cache,
            return_dict_in_generate=True,
            output_logits=True,
        )
    if not written.logits:
        raise ValueError("it does not write token by token")
    return written.sequences, torch.stack(written.logits)


def _equal(found: Written, wanted: Written, what: str) -> None:
    if not torch.equal(found[0], wanted[0]) or not same(found[1], wanted[1]):
        raise AssertionError(f"tokens {found[0].tolist()}, but {wanted[0].tolist()} of {what}")
