"""`ChoiceScorer` against a computation by hand: one sample, one candidate, no padding, all logits."""

from __future__ import annotations

import functools
import inspect

import numpy as np
import pytest
import torch

from layersurgery.errors import SampleError, ScoringError
from layersurgery.scoring import ChoiceScorer
from layersurgery.tasks import LETTERS, Sample
from tests.scoring import tiny

BATCH_SIZES = (1, 3, 7)
# name -> processor, and how it writes a prompt and begins an answer
TEXT = {
    "llama": (functools.partial(tiny.tokenizer, chat=tiny.TEXT_CHAT), "<user>{}\nAssistant:", " "),
    "gpt2": (functools.partial(tiny.tokenizer, pad=False), "{}\nAnswer:", " "),
    "mamba": (tiny.tokenizer, "{}\nAnswer:", " "),
    "qwen2_vl": (tiny.tokenizer, "{}\nAnswer:", " "),
    "t5": (functools.partial(tiny.tokenizer, closing=True), "{}\nAnswer:", ""),
    "bart": (tiny.tokenizer, "{}\nAnswer:", ""),
}
STARTS = {"t5": [0], "bart": [2, 1]}
VISION = {
    "llava": tiny.llava_processor,
    "llava_next": tiny.llava_next_processor,
    "qwen2_vl": tiny.qwen2_vl_processor,
}


def message(sample, last="Answer with the option's letter from the given choices directly."):
    lines = [f"{letter}. {option}" for letter, option in zip("ABCDEFG", sample.options, strict=False)]
    return "\n".join([sample.question, *lines, last])


def candidate_texts(sample, candidates):
    return LETTERS[: len(sample.options)] if candidates == "letters" else sample.options


def log_prob(model, inputs, continuation, start=None):
    """Teacher forcing of one continuation, with everything written out."""
    ids = torch.tensor([continuation])
    with torch.no_grad():
        if start is None:
            extended = dict(inputs, input_ids=torch.cat([inputs["input_ids"], ids], 1))
            for key in ("attention_mask", "mm_token_type_ids"):
                if key in inputs:
                    extended[key] = torch.cat([inputs[key], torch.full_like(ids, int(key == "attention_mask"))], 1)
            logits = model(**extended).logits[0, inputs["input_ids"].shape[1] - 1 : -1]
        else:
            decoder = torch.tensor([[*start, *continuation]])
            logits = model(**inputs, decoder_input_ids=decoder).logits[0, len(start) - 1 : -1]
    return logits.log_softmax(-1)[torch.arange(len(continuation)), ids[0]].sum().item()


def by_hand(samples, found):
    correct = [float(np.argmax(values) == s.answer) for s, values in zip(samples, found, strict=True)]
    margin = [v[s.answer] - max(np.delete(v, s.answer)) for s, v in zip(samples, found, strict=True)]
    return correct, margin


@functools.cache
def text_case(name, candidates):
    make, template, blank = TEXT[name]
    model, tokenizer, samples = getattr(tiny, name)(), make(), tuple(tiny.samples())
    last = (
        f"Answer with the option's {'letter' if candidates == 'letters' else 'text'} from the given choices directly."
    )
    found = []
    for sample in samples:
        inputs = dict(tokenizer(template.format(message(sample, last)), return_tensors="pt"))
        texts = [blank + text for text in candidate_texts(sample, candidates)]
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        found.append([log_prob(model, inputs, each, STARTS.get(name)) for each in ids])
    return model, make, samples, by_hand(samples, found)


@functools.cache
def vision_case(name, candidates):
    make = VISION[name]
    model, processor = getattr(tiny, name)(), make()
    pictures = lambda n: tuple(tiny.picture(n + k, (16 + 24 * (n % 2), 24 + 8 * k)) for k in range(n % 3))  # noqa: E731
    samples = tuple(tiny.samples(9, pictures))
    last = (
        f"Answer with the option's {'letter' if candidates == 'letters' else 'text'} from the given choices directly."
    )
    found = []
    for sample in samples:
        text = "<user>" + "<image>\n" * len(sample.images) + message(sample, last) + "\n<assistant>"
        arguments = {"images": [list(sample.images)]} if sample.images else {}
        inputs = dict(processor(text=[text], return_tensors="pt", **arguments))
        if "llava" in name:
            inputs.pop("mm_token_type_ids", None)
        ids = [processor.tokenizer(t)["input_ids"] for t in candidate_texts(sample, candidates)]
        found.append([log_prob(model, inputs, each) for each in ids])
    return model, make, samples, by_hand(samples, found)


def assert_scores(scores, expected):
    correct, margin = expected
    np.testing.assert_allclose(scores.margin, margin, atol=1e-4)
    np.testing.assert_array_equal(scores.correct, correct)


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
@pytest.mark.parametrize("candidates", ["letters", "options"])
@pytest.mark.parametrize("name", TEXT)
def test_text_models_score_as_by_hand(name, candidates, batch_size):
    model, make, samples, expected = text_case(name, candidates)
    assert_scores(ChoiceScorer(make(), batch_size=batch_size, candidates=candidates)(model, samples), expected)


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
@pytest.mark.parametrize("candidates", ["letters", "options"])
@pytest.mark.parametrize("name", VISION)
def test_vision_models_score_as_by_hand(name, candidates, batch_size):
    """Zero, one and two images of different sizes in one call."""
    model, make, samples, expected = vision_case(name, candidates)
    assert_scores(ChoiceScorer(make(), batch_size=batch_size, candidates=candidates)(model, samples), expected)


def test_the_cases_tell_right_from_wrong():
    """Options of several tokens, both outcomes, and samples that differ: otherwise the tests above prove little."""
    for name in TEXT:
        correct, margin = text_case(name, "options")[3]
        assert 0 < sum(correct) < len(correct)
        assert np.std(margin) > 0.1
    tokenizer = tiny.tokenizer()
    assert all(len(tokenizer(f" {letter}")["input_ids"]) == 1 for letter in "ABCDEFG")
    assert {len(tokenizer(" " + colour)["input_ids"]) for colour in tiny.COLOURS} >= {1, 2, 4}


def count_forwards(model, monkeypatch):
    shapes = []
    forward = type(model).forward

    def counted(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        shapes.append((tuple(kwargs["input_ids"].shape), tuple(output.logits.shape)))
        return output

    counted.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(type(model), "forward", counted)
    return shapes


def test_letters_take_one_forward_per_batch_and_only_the_needed_logits(monkeypatch):
    model, samples = tiny.llama(), tiny.samples(7)
    shapes = count_forwards(model, monkeypatch)
    ChoiceScorer(tiny.tokenizer(), batch_size=4)(model, samples)
    assert [ids[0] for ids, _ in shapes] == [4, 3]
    assert all(logits[1] <= ids[0] for ids, logits in shapes)


def test_one_token_options_share_a_row(monkeypatch):
    model, tokenizer = tiny.llama(), tiny.tokenizer()
    assert len(tokenizer(" yellow")["input_ids"]) == len(tokenizer(" grey")["input_ids"]) == 1
    assert len(tokenizer(" dark blue")["input_ids"]) > 1
    shapes = count_forwards(model, monkeypatch)
    ChoiceScorer(tokenizer, candidates="options")(model, [Sample("q", "Which?", ("yellow", "grey", "dark blue"), 0)])
    assert [ids[0] for ids, _ in shapes] == [2]


def test_a_model_without_logits_to_keep_scores_the_same(monkeypatch):
    model, make, samples, expected = text_case("llama", "letters")
    forward = type(model).forward

    def plain(self, input_ids=None, attention_mask=None, use_cache=None):
        return forward(self, input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    monkeypatch.setattr(type(model), "forward", plain)
    assert_scores(ChoiceScorer(make(), batch_size=3)(model, samples), expected)


def test_other_letters_of_the_batch_do_not_matter():
    """A sample scores the same alone, and between samples with more and fewer options."""
    model, _, samples, (_, margin) = text_case("gpt2", "letters")
    scorer = ChoiceScorer(tiny.tokenizer(pad=False))
    for sample, expected in zip(samples, margin, strict=True):
        assert scorer(model, [sample]).margin[0] == pytest.approx(expected, abs=1e-4)


def test_closing_tokens_do_not_come_between_prompt_and_answer():
    """A tokenizer that ends every text, in front of a model that goes on from there."""
    model, _, samples, expected = text_case("mamba", "letters")
    assert_scores(ChoiceScorer(tiny.tokenizer(closing=True), batch_size=3)(model, samples), expected)


def test_equally_likely_options_count_as_the_first():
    model = tiny.llama()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    samples = [Sample("first", "Which?", ("red", "grey"), 0), Sample("second", "Which?", ("red", "grey"), 1)]
    scores = ChoiceScorer(tiny.tokenizer())(model, samples)
    assert scores.correct.tolist() == [1, 0]
    assert scores.margin.tolist() == [0, 0]


def test_a_sample_with_variants_is_as_good_as_the_worst_of_them():
    model, tokenizer = tiny.llama(), tiny.tokenizer()
    first, second, third = tiny.samples(3)
    both = Sample(first.id, first.question, first.options, first.answer, variants=(second,))
    scorer = ChoiceScorer(tokenizer, batch_size=2)
    apart, together = scorer(model, [first, second, third]), scorer(model, [both, third])
    assert together.margin.tolist() == [min(apart.margin[:2]), apart.margin[2]]
    assert together.correct.tolist() == [min(apart.correct[:2]), apart.correct[2]]


def test_prompt_replaces_the_question():
    model, tokenizer = tiny.llama(), tiny.tokenizer()
    samples = tiny.samples(4)
    scorer = ChoiceScorer(tokenizer, prompt=lambda sample: "always the same")
    inputs = tokenizer("always the same\nAnswer:", return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1].log_softmax(-1)
    letters = [tokenizer(f" {letter}")["input_ids"][0] for letter in "ABCDEFG"]
    for sample, margin in zip(samples, scorer(model, samples).margin, strict=True):
        values = logits[letters[: len(sample.options)]].numpy()
        assert margin == pytest.approx(values[sample.answer] - np.delete(values, sample.answer).max(), abs=1e-4)


def test_pixels_get_the_models_dtype(monkeypatch):
    _, make, samples, _ = vision_case("llava", "letters")
    model, seen = tiny.llava().to(torch.bfloat16), set()
    features = model.model.get_image_features

    def spy(pixel_values, **kwargs):
        seen.add(pixel_values.dtype)
        return features(pixel_values, **kwargs)

    monkeypatch.setattr(model.model, "get_image_features", spy)
    ChoiceScorer(make(), batch_size=3)(model, samples)
    assert seen == {torch.bfloat16}


@pytest.mark.parametrize(
    ("sample", "complaint"),
    [
        (Sample("open", "How many?", (), "3"), "'open' is an open question"),
        (Sample("single", "Which?", ("red",), 0), "'single' has a single option"),
    ],
)
def test_samples_without_a_choice_are_refused(sample, complaint):
    with pytest.raises(SampleError, match=complaint):
        ChoiceScorer(tiny.tokenizer())(tiny.llama(), [*tiny.samples(2), sample])


def test_candidates_that_are_the_same_tokens_are_refused():
    twins = Sample("twins", "Which?", ("red", "grey", "red"), 0)
    with pytest.raises(ScoringError, match=r"'twins': option C \('red'\) is the same as option A"):
        ChoiceScorer(tiny.tokenizer(), candidates="options")(tiny.llama(), [twins])
    ChoiceScorer(tiny.tokenizer())(tiny.llama(), [twins])  # their letters differ


def test_letters_that_the_tokenizer_does_not_know_are_refused():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"?": 0, "A": 1, "Answer": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?", model_input_names=["input_ids"])
    with pytest.raises(ScoringError, match=r"'q0': option B \('B'\) is unknown"):
        ChoiceScorer(tokenizer)(tiny.llama(), tiny.samples(1))


def test_output_that_is_not_finite_names_the_sample():
    model = tiny.llama()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(ScoringError, match=r"'q0'.*not finite"):
        ChoiceScorer(tiny.tokenizer())(model, tiny.samples(2))


def test_a_model_without_a_head_is_refused():
    with pytest.raises(ScoringError, match="LlamaModel returned no logits"):
        ChoiceScorer(tiny.tokenizer())(tiny.llama().model, tiny.samples(2))
