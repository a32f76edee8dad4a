"""`GenerationScorer` against greedy decoding by hand: one sample at a time, no cache, no padding."""

from __future__ import annotations

import functools

import pytest
import torch

from layersurgery.errors import SampleError, ScoringError
from layersurgery.scoring import GenerationScorer, Judgement
from layersurgery.tasks import Sample
from tests.scoring import tiny
from tests.scoring.test_choices import STARTS, TEXT, VISION, message


def decode_by_hand(model, tokenizer, inputs, start, length):
    written: list[int] = []
    for _ in range(length):
        ids = torch.tensor([[*(start or []), *written]], dtype=torch.long)
        with torch.no_grad():
            if start is None:
                extended = dict(inputs, input_ids=torch.cat([inputs["input_ids"], ids], 1))
                for key in ("attention_mask", "mm_token_type_ids"):
                    if key in inputs:
                        extended[key] = torch.cat([inputs[key], torch.full_like(ids, int(key == "attention_mask"))], 1)
                logits = model(**extended).logits
            else:
                logits = model(**inputs, decoder_input_ids=ids).logits
        written.append(int(logits[0, -1].argmax()))
        if written[-1] == 2:
            break
    return tokenizer.decode(written, skip_special_tokens=True).strip()


@functools.cache
def text_case(name):
    make, template, _ = TEXT[name]
    model, tokenizer, samples = getattr(tiny, name)(), make(), tuple(tiny.samples(8))
    start = STARTS.get(name)
    length = 6 if name != "bart" else 5  # BART is forced to begin with a special token, which counts
    texts = []
    for sample in samples:
        inputs = dict(tokenizer(template.format(message(sample)), return_tensors="pt"))
        texts.append(decode_by_hand(model, tokenizer, inputs, start, length))
    return model, make, samples, tuple(texts)


@pytest.mark.parametrize("batch_size", [1, 3, 7])
@pytest.mark.parametrize("name", TEXT)
def test_text_models_write_as_by_hand(name, batch_size):
    model, make, samples, texts = text_case(name)
    scores = GenerationScorer(make(), max_new_tokens=6, batch_size=batch_size)(model, samples)
    assert scores.text == texts
    assert len(set(texts)) > 2


@functools.cache
def vision_case(name):
    model, processor = getattr(tiny, name)(), VISION[name]()
    pictures = lambda n: tuple(tiny.picture(n + k, (16 + 24 * (n % 2), 24 + 8 * k)) for k in range(n % 3))  # noqa: E731
    samples, texts = tuple(tiny.samples(7, pictures)), []
    for sample in samples:
        text = "<user>" + "<image>\n" * len(sample.images) + message(sample) + "\n<assistant>"
        arguments = {"images": [list(sample.images)]} if sample.images else {}
        inputs = dict(processor(text=[text], return_tensors="pt", **arguments))
        if "llava" in name:
            inputs.pop("mm_token_type_ids", None)
        texts.append(decode_by_hand(model, processor.tokenizer, inputs, None, 6))
    return model, samples, tuple(texts)


@pytest.mark.parametrize("batch_size", [1, 3, 7])
@pytest.mark.parametrize("name", VISION)
def test_vision_models_write_as_by_hand(name, batch_size):
    model, samples, texts = vision_case(name)
    assert GenerationScorer(VISION[name](), max_new_tokens=6, batch_size=batch_size)(model, samples).text == texts


class Scripted:
    """In place of `model.generate`: writes the given answers."""

    def __init__(self, tokenizer, answers):
        self.tokenizer, self.answers = tokenizer, list(answers)

    def __call__(self, input_ids, pad_token_id, **_):
        assert not torch.is_grad_enabled()
        rows = [self.tokenizer(self.answers.pop(0))["input_ids"] for _ in input_ids]
        width = max(map(len, rows))
        written = torch.tensor([[*row, *[pad_token_id] * (width - len(row))] for row in rows])
        return torch.cat([input_ids, written], 1)


def scripted(monkeypatch, answers):
    model, tokenizer = tiny.llama(), tiny.tokenizer()
    monkeypatch.setattr(model, "generate", Scripted(tokenizer, answers), raising=False)
    return model, tokenizer


def test_letters_are_compared_and_the_unreadable_is_wrong(monkeypatch):
    model, tokenizer = scripted(monkeypatch, ["B", "The answer is (A).", "a thing", "  C. grey\n"])
    samples = [Sample(f"q{n}", "Which?", ("red", "grey", "brown"), right) for n, right in enumerate([1, 1, 0, 2])]
    scores = GenerationScorer(tokenizer, batch_size=3)(model, samples)
    assert scores.correct.tolist() == [1, 0, 0, 1]
    assert scores.answered is not None
    assert scores.answered.tolist() == [True, True, False, True]
    assert scores.text == ("B", "The answer is (A).", "a thing", "C. grey")
    assert scores.margin is None


def test_open_questions_match_exactly_or_by_value(monkeypatch):
    model, tokenizer = scripted(monkeypatch, ["The answer is 3.0.", "two", "Red.", ""])
    samples = [Sample(f"q{n}", "What?", (), right) for n, right in enumerate(["3", "2", "red", "blue"])]
    scores = GenerationScorer(tokenizer)(model, samples)
    assert scores.correct.tolist() == [1, 0, 1, 0]
    assert scores.answered is not None
    assert scores.answered.tolist() == [True, False, True, False]


def test_another_extractor_decides(monkeypatch):
    model, tokenizer = scripted(monkeypatch, ["red", "grey"])
    samples = [Sample(f"q{n}", "Which?", ("red", "grey"), 1) for n in range(2)]

    def by_colour(text, sample):
        return Judgement(text, correct=sample.options[sample.answer] == text)

    scores = GenerationScorer(tokenizer, extract=by_colour)(model, samples)
    assert scores.correct.tolist() == [0, 1]
    assert scores.answered.tolist() == [True, True]


def test_an_extractor_that_returns_letters_is_refused(monkeypatch):
    model, tokenizer = scripted(monkeypatch, ["red"])
    with pytest.raises(ScoringError, match=r"extract returned 'A' for sample 'q0'; it must return a .*Judgement"):
        GenerationScorer(tokenizer, extract=lambda text, sample: "A")(model, tiny.samples(1))


def test_rules_are_taken_by_name(monkeypatch):
    model, tokenizer = scripted(monkeypatch, ["A dog"] * 2)
    sample = Sample("q", "What is it?", ("cat", "dog"), 1)
    found = {
        rule: GenerationScorer(tokenizer, extract=rule)(model, [sample]).correct.tolist()
        for rule in ("letters-v1", "vlmevalkit-2024")
    }
    assert found == {"letters-v1": [1], "vlmevalkit-2024": [0]}


def test_a_rule_that_cannot_read_a_sample_is_refused_before_anything_is_written(monkeypatch):
    model, tokenizer = scripted(monkeypatch, [])
    with pytest.raises(ScoringError, match="'mmmu-v1' cannot read the answer to sample 'q', which is of kind 'float'"):
        GenerationScorer(tokenizer, extract="mmmu-v1")(model, [Sample("q", "How high?", answer="7")])


def circular(first, second):
    turned = Sample("q-turned", "Which?", ("grey", "red"), 1)
    return Sample(f"q-{first}{second}", "Which?", ("red", "grey"), 0, variants=(turned,))


def test_a_sample_is_right_where_all_of_its_variants_are(monkeypatch):
    answers = [("A", "B"), ("A", "A"), ("B", "B"), ("A", "?")]
    model, tokenizer = scripted(monkeypatch, [answer for pair in answers for answer in pair])
    scores = GenerationScorer(tokenizer, batch_size=3)(model, [circular(*pair) for pair in answers])
    assert scores.correct.tolist() == [1, 0, 0, 0]
    assert scores.answered.tolist() == [True, True, True, False]
    assert scores.text == ("A\nB", "A\nA", "B\nB", "A\n?")


@pytest.fixture
def said(monkeypatch):
    """What transformers logs about generation."""
    from transformers.utils import logging

    messages: list[str] = []
    level = logging.get_verbosity()
    logging.set_verbosity_warning()
    for name in ("generation.utils", "generation.configuration_utils"):
        log = logging.get_logger(f"transformers.{name}")
        monkeypatch.setattr(log, "handle", lambda record: messages.append(record.getMessage()))
    yield messages
    logging.set_verbosity(level)


@pytest.mark.parametrize(
    "saved",
    [
        {"do_sample": True, "temperature": 0.1, "top_p": 0.3, "top_k": 3},
        {"do_sample": True, "temperature": 0.6, "max_length": 10},
        {"do_sample": True, "min_p": 0.2, "typical_p": 0.5},
        {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1},
        {"num_beams": 3, "early_stopping": True, "length_penalty": 3.0, "num_return_sequences": 2},
        {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": 2},
        {"max_length": 500, "max_new_tokens": 2, "min_new_tokens": 9, "min_length": 99, "forced_eos_token_id": 2},
    ],
)
def test_the_checkpoints_generation_settings_neither_matter_nor_warn(saved, recwarn, monkeypatch, said):
    from transformers import GenerationConfig

    model, make, samples, texts = text_case("llama")
    config = GenerationConfig(pad_token_id=0, eos_token_id=2)
    for key, value in saved.items():
        setattr(config, key, value)
    monkeypatch.setattr(model, "generation_config", config)
    before = config.to_dict()
    state = torch.get_rng_state()
    assert GenerationScorer(make(), max_new_tokens=6, batch_size=3)(model, samples).text == texts
    assert said == []
    assert [str(w.message) for w in recwarn if "generat" in str(w.message)] == []
    assert model.generation_config is config
    assert config.to_dict() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_a_plain_call_would_have_warned(said):
    """The test above can fail."""
    from transformers import GenerationConfig

    model = tiny.llama()
    model.generation_config.max_length = 10
    model.generate(torch.tensor([[1, 7]]), generation_config=GenerationConfig(max_new_tokens=2))
    assert "max_length" in said[0]


def test_an_end_token_ends_the_answer(monkeypatch):
    model, make, samples, _ = text_case("llama")
    end = make()(" on")["input_ids"]
    with torch.no_grad():  # always "on": ends at once where that is the end token, else goes on
        model = tiny.llama()
        model.lm_head.weight[end[0]] = 0
        model.model.norm.weight.fill_(1)
        model.lm_head.bias = torch.nn.Parameter(torch.nn.functional.one_hot(torch.tensor(end[0]), 400) * 1e4)
    scorer = GenerationScorer(make(), max_new_tokens=3)
    assert set(scorer(model, samples[:2]).text or ()) == {"on on on"}
    monkeypatch.setattr(model.generation_config, "eos_token_id", end[0])
    assert {text.split().count("on") for text in scorer(model, samples[:2]).text or ()} == {1}


def test_a_model_that_cannot_generate_is_refused():
    with pytest.raises(ScoringError, match="Linear cannot generate"):
        GenerationScorer(tiny.tokenizer())(torch.nn.Linear(2, 2).eval(), tiny.samples(1))


def test_a_sample_without_an_answer_is_refused():
    with pytest.raises(SampleError, match="'q' has no answer"):
        GenerationScorer(tiny.tokenizer())(tiny.llama(), [Sample("q", "What?")])
