"""Prompts word for word as the harnesses build them, and pictures where the text speaks of them."""

from __future__ import annotations

import pickle

import pytest
import torch

from layersurgery.errors import ScoringError
from layersurgery.scoring import (
    ChoiceScorer,
    GenerationScorer,
    Picture,
    PromptTemplate,
    model_family,
    prompt_styles,
    prompt_template,
)
from layersurgery.tasks import Sample
from tests.scoring import tiny

PET = Sample("pet", "What is it?", ("cat", "dog"), 1)
HINTED = Sample("hinted", "What is it?", ("cat", "dog"), 1, hint="It barks.")
OPEN = Sample("open", "What is it?", answer="a dog")
CHINESE = Sample("chinese", "\u8fd9\u662f\u4ec0\u4e48?", ("cat", "dog"), 1)
LETTER = "Answer with the option's letter from the given choices directly."
SELECT = "Please select the correct answer from the options above."


@pytest.mark.parametrize(
    ("style", "family", "sample", "expected"),
    [
        ("vlmevalkit", "default", PET, f"Question: What is it?\nOptions:\nA. cat\nB. dog\n{SELECT} \n"),
        (
            "vlmevalkit",
            "default",
            HINTED,
            f"Hint: It barks.\nQuestion: What is it?\nOptions:\nA. cat\nB. dog\n{SELECT} \n",
        ),
        ("vlmevalkit", "default", OPEN, "Question: What is it?\n"),
        ("vlmevalkit", "llava", PET, f"What is it?\nA. cat\nB. dog\n{LETTER}"),
        ("vlmevalkit", "llava", HINTED, f"It barks.\nWhat is it?\nA. cat\nB. dog\n{LETTER}"),
        ("vlmevalkit", "llava", OPEN, "What is it?\nAnswer the question directly."),
        (
            "vlmevalkit",
            "llava",
            CHINESE,
            "\u8fd9\u662f\u4ec0\u4e48?\nA. cat\nB. dog\n\u8bf7\u76f4\u63a5\u56de\u7b54\u9009\u9879\u5b57\u6bcd\u3002",
        ),
        ("vlmevalkit", "qwen2_vl", PET, f"Question: What is it?\nOptions:\nA. cat\nB. dog\n{SELECT}"),
        (
            "vlmevalkit",
            "qwen2_vl",
            HINTED,
            f"Hint: It barks.\nQuestion: What is it?\nOptions:\nA. cat\nB. dog\n{SELECT}",
        ),
        ("vlmevalkit", "qwen2_vl", OPEN, "Question: What is it?"),
        ("vlmevalkit", "internvl", HINTED, f"It barks.\nWhat is it?\nA. cat\nB. dog\n{LETTER}"),
        ("vlmevalkit", "internvl", OPEN, "What is it?\nAnswer the question directly."),
        ("lmms-eval", "default", PET, f"What is it?\nA. cat\nB. dog\n{LETTER}"),
        ("plain", "qwen2_vl", HINTED, f"It barks.\nWhat is it?\nA. cat\nB. dog\n{LETTER}"),
        ("plain", "default", OPEN, "What is it?\nAnswer the question using a single word or phrase."),
        (
            "plain",
            "default",
            Sample("n", "How long?", answer="1.2", kind="float", precision=1, unit="m"),
            "How long? (unit: m)\nAnswer the question using a single number with one decimal place.",
        ),
    ],
)
def test_the_harnesses_words(style, family, sample, expected):
    assert prompt_template(style, family=family)(sample) == expected


def test_styles():
    assert prompt_styles() == ("plain", "vlmevalkit", "lmms-eval")
    with pytest.raises(ScoringError, match="no prompt style 'vlmeval'; did you mean 'vlmevalkit'"):
        prompt_template("vlmeval")


def test_a_family_without_words_of_its_own_is_asked_as_all_are():
    assert prompt_template("vlmevalkit", family="mine")(PET) == prompt_template("vlmevalkit")(PET)
    assert prompt_template("vlmevalkit", family="mine").name == "vlmevalkit/default"


def test_a_benchmarks_own_words_come_last_and_the_familys_after_the_general_ones():
    own = {"default": {"question": "Q: {question}\n", "end_mcq": "Go."}, "llava": {"end_mcq": "\nGo, llava."}}
    assert prompt_template("vlmevalkit", overrides=own)(PET) == "Q: What is it?\nOptions:\nA. cat\nB. dog\nGo."
    assert prompt_template("vlmevalkit", family="llava", overrides=own)(PET) == (
        "Q: What is it?\n\nA. cat\nB. dog\nGo, llava."
    )


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("llava_next", "llava"), ("qwen2_vl", "qwen2_vl"), ("internvl", "internvl"), ("llama", "default")],
)
def test_families_go_by_the_kind_of_checkpoint(kind, expected):
    model = tiny.llama()
    model.config = model.config.__class__.from_dict({**model.config.to_dict()})
    model.config.model_type = kind
    assert model_family(model) == expected


def test_a_model_without_a_configuration_is_of_no_family():
    assert model_family(torch.nn.Linear(1, 1)) == "default"


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ({"questoin": "?"}, "no piece 'questoin'; did you mean 'question'"),
        ({"question": 3}, "question is 3; give a text"),
        ({"images": "after"}, "images is 'after'; give one of before, numbered, interleave"),
        ({"strip": "left"}, "strip is 'left'"),
    ],
)
def test_bad_pieces(pieces, message):
    with pytest.raises(ScoringError, match=message):
        PromptTemplate("mine", pieces)


@pytest.mark.parametrize("text", ["{answer}", "{meta[query]}", "{", "{0}"])
def test_fields_that_are_not_there(text):
    with pytest.raises(ScoringError, match=r"template 'mine', piece 'question'.*sample 'pet'.*fields are question"):
        PromptTemplate("mine", {"question": text})(PET)


def test_braces_in_the_samples_own_words_are_left_alone():
    sample = Sample("set", "Is {1} in {0}?", ("{yes}", "no"), 0, meta={"query": "{q}"})
    ask = PromptTemplate("mine", {"question": "{meta[query]} {question}", "option": " {option}"})
    assert ask(sample) == "{q} Is {1} in {0}? {yes} no"


def test_fingerprints_and_pickles():
    one, other = prompt_template("vlmevalkit"), prompt_template("vlmevalkit", family="llava")
    assert one.fingerprint != other.fingerprint
    assert pickle.loads(pickle.dumps(one)) == one
    assert pickle.loads(pickle.dumps(one)).fingerprint == one.fingerprint


def asked(text, count):
    return Sample("shown", text, ("red", "grey"), 0, images=tuple(tiny.picture(n) for n in range(count)))


INTERLEAVED = PromptTemplate("mine", {"question": "{question}", "images": "interleave"})
NUMBERED = PromptTemplate("mine", {"question": "{question}", "images": "numbered"})


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [
        ("Given <image 1>, look.", 1, ("Given ", Picture(0), ", look.")),
        ("<image 2> then <image 1>", 2, (Picture(1), " then ", Picture(0))),
        ("<image 1>, look at <image 1> again", 1, (Picture(0), ", look at ", Picture(0), " again")),
        ("no mention", 2, (Picture(0), Picture(1), "no mention")),
        ("only <image 2>", 2, (Picture(0), "only ", Picture(1))),
    ],
)
def test_pictures_stand_where_the_text_says(text, count, expected):
    assert INTERLEAVED(asked(text, count)) == expected


def test_a_picture_that_is_not_there_is_an_error():
    with pytest.raises(ScoringError, match=r"'shown' speaks of <image 3>, but has 2 image\(s\)"):
        INTERLEAVED(asked("<image 3>", 2))


def test_several_pictures_are_numbered():
    assert NUMBERED(asked("Which?", 1)) == "Which?"
    assert NUMBERED(asked("Which?", 2)) == ("Image-1: ", Picture(0), "Image-2: ", Picture(1), "Which?")


@pytest.mark.parametrize("scorer", [ChoiceScorer, GenerationScorer])
def test_a_prompt_that_shows_a_picture_too_many(scorer):
    with pytest.raises(ScoringError, match="prompt shows picture 1 of sample 'shown', which has 1"):
        scorer(tiny.llava_processor(), prompt=lambda sample: [Picture(1), "Which?"])(tiny.llava(), [asked("Which?", 1)])


def test_pictures_reach_the_model_in_the_order_of_the_text_and_as_often():
    """Against a sample whose own pictures are in that order, with a prompt that puts each where it is named."""
    processor, model = tiny.llava_processor(chat=tiny.CHAT), tiny.llava()
    first, second = tiny.picture(1), tiny.picture(2)
    told = Sample("told", "At <image 2> and <image 1>, then <image 2>: which?", ("red", "grey"), 0, (first, second))
    laid = Sample("laid", "x", ("red", "grey"), 0, (second, first, second))

    def by_hand(sample):
        return ("At ", Picture(0), " and ", Picture(1), ", then ", Picture(2), ": which?")

    expected = ChoiceScorer(processor, prompt=by_hand)(model, [laid])
    swapped = ChoiceScorer(processor, prompt=by_hand)(
        model, [Sample("laid", "x", ("red", "grey"), 0, (first, second, first))]
    )
    found = ChoiceScorer(processor, prompt=INTERLEAVED)(model, [told])
    assert found.margin.tolist() == expected.margin.tolist()
    assert found.margin.tolist() != swapped.margin.tolist()


def test_samples_that_show_different_numbers_of_pictures_are_scored_together():
    processor, model = tiny.llava_processor(chat=tiny.CHAT), tiny.llava()
    samples = [asked("<image 1> or <image 1>?", 1), asked("Which?", 0), asked("<image 1>?", 1), asked("<image 2>?", 2)]
    samples = [Sample(f"q{n}", s.question, s.options, s.answer, s.images) for n, s in enumerate(samples)]
    scorer = ChoiceScorer(processor, prompt=INTERLEAVED)
    together = scorer(model, samples).margin
    apart = [scorer(model, [sample]).margin[0] for sample in samples]
    assert together == pytest.approx(apart, abs=1e-5)
