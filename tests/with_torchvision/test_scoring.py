"""Scores: what transformers itself would answer to each sample alone, in batches of any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import layersurgery as ls
from layersurgery.errors import ScoringError
from layersurgery.scoring import prompt_template
from layersurgery.tasks import LETTERS
from layersurgery.testing import restored
from tests.with_torchvision.questions import samples

NEW_TOKENS = 10


@pytest.fixture(scope="module")
def questions():
    return samples()


def encoded(processor, sample):
    """As the documentation of transformers does it, without a line of ours but the wording."""
    content = [{"type": "image", "image": image} for image in sample.images]
    content.append({"type": "text", "text": prompt_template("plain")(sample)})
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


def margin_alone(model, processor, sample):
    with torch.no_grad():
        logits = model(**encoded(processor, sample)).logits[0, -1]
    ids = [processor.tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in LETTERS]
    values = logits.log_softmax(-1)[ids[: len(sample.options)]]
    others = [value for index, value in enumerate(values) if index != sample.answer]
    return float(values[sample.answer] - max(others))


def text_alone(model, processor, sample):
    inputs = encoded(processor, sample)
    with torch.no_grad():
        output = model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)
    return processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_margins_are_those_of_each_sample_alone(vlm, questions):
    expected = [margin_alone(*vlm, sample) for sample in questions]
    assert np.std(expected) > 0.01
    for batch_size in (1, 3, 16):
        scores = ls.ChoiceScorer(vlm[1], batch_size=batch_size)(vlm[0], questions)
        np.testing.assert_allclose(scores.margin, expected, atol=2e-4, err_msg=f"batches of {batch_size}")
        assert (scores.correct == (scores.margin > 0)).all()


def test_texts_are_those_of_each_sample_alone(vlm, questions):
    expected = [text_alone(*vlm, sample) for sample in questions]
    assert len(set(expected)) > len(questions) / 2, "the model says the same of everything: nothing is tested"
    for batch_size in (1, 3, 16):
        scores = ls.GenerationScorer(vlm[1], batch_size=batch_size, max_new_tokens=NEW_TOKENS)(vlm[0], questions)
        assert list(scores.text) == expected, f"batches of {batch_size}"


def test_pictures_and_their_order_count(vlm):
    one, two = samples(3)[2].images
    [sample] = samples(1)
    variants = [sample_with(sample, images) for images in ((), (one,), (two,), (one, two), (two, one))]
    margins = ls.ChoiceScorer(vlm[1])(vlm[0], variants).margin
    assert len(set(np.round(margins, 5))) == len(variants)


def sample_with(sample, images):
    return ls.Sample(f"{sample.id}-{len(images)}", sample.question, sample.options, sample.answer, images)


def test_a_template_with_another_mark_for_images_is_refused(folder, vlm):
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    processor.chat_template = processor.chat_template.replace(processor.image_token, "<picture>")
    with pytest.raises(ScoringError, match=r"refused sample 'q1'.* Found total 0 .* tokens and 1 images"):
        ls.ChoiceScorer(processor)(vlm[0], samples(2))


def test_the_model_and_the_processor_stay_as_they_were(vlm, questions):
    model, processor = vlm
    ls.ChoiceScorer(processor)(model, questions[:2])  # transformers sets things up at the first forward
    before = processor.to_json_string(), processor.tokenizer.padding_side
    with restored(model):
        ls.ChoiceScorer(processor)(model, questions[:4])
        ls.GenerationScorer(processor, max_new_tokens=2)(model, questions[:4])
    assert (processor.to_json_string(), processor.tokenizer.padding_side) == before


def test_half_precision_gives_the_same_answers_nearly_always(folder, vlm, questions):
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16).eval()
    assert model.dtype == torch.bfloat16
    exact = ls.ChoiceScorer(vlm[1])(vlm[0], questions)
    rounded = ls.ChoiceScorer(vlm[1])(model, questions)
    np.testing.assert_allclose(rounded.margin, exact.margin, atol=0.3)
    assert np.std(exact.margin) > 0.3
