"""The six benchmarks' questions, word for word as the harnesses put them to each family of models."""

from __future__ import annotations

import pytest

from layersurgery.scoring import Picture, prompt_template
from layersurgery.tasks import Sample, benchmark
from tests.scoring import tiny

LETTER = "Answer with the option's letter from the given choices directly"
SHORT = "Please try to answer the question with short words or phrases if possible."
QUERY = "Hint: Please answer the question requiring an integer answer.\nQuestion: How long?"
TWO = (tiny.picture(0), tiny.picture(1))

PET = Sample(
    "pet", "What is it?", ("cat", "dog"), 1, hint="It barks.", meta={"question": "What is it?\nOptions: A: cat"}
)
EXAM = Sample("exam", "In <image 2>, not <image 1>?", ("yes", "see <image 1>"), 0, TWO)
EXAM_OPEN = Sample("exam", "What is <image 1>?", answer="9", images=TWO[:1], kind="open")
LENGTH = Sample("length", "How long?", answer="3", kind="integer", unit="years", meta={"query": QUERY})
SHAPE = Sample("shape", "Which?", ("1", "2"), 0, meta={"query": "the query"})


@pytest.mark.parametrize(
    ("name", "style", "family", "sample", "expected"),
    [
        ("mmstar", "lmms-eval", "default", PET, f"What is it?\nOptions: A: cat\n{LETTER}"),
        ("mmstar", "vlmevalkit", "llava", PET, f"It barks.\nWhat is it?\nA. cat\nB. dog\n{LETTER}."),
        (
            "mmbench",
            "lmms-eval",
            "default",
            PET,
            f"It barks. What is it? There are several options:\nA. cat\nB. dog\n\n{LETTER}.",
        ),
        ("scienceqa", "lmms-eval", "default", PET, f"Context: It barks.\nWhat is it?\nA. cat\nB. dog\n{LETTER}."),
        ("seedbench", "lmms-eval", "default", PET, f"What is it?\nA. cat\nB. dog\n{LETTER}."),
        ("mathvista", "vlmevalkit", "default", LENGTH, QUERY),
        ("mathvista", "vlmevalkit", "llava", LENGTH, QUERY),
        ("mathvista", "vlmevalkit", "internvl", SHAPE, "the query"),
        ("mathvista", "vlmevalkit", "qwen2_vl", LENGTH, f"{QUERY}\n{SHORT}"),
        ("mathvista", "vlmevalkit", "qwen2_vl", SHAPE, f"the query\n{SHORT}"),
        (
            "mathvista",
            "lmms-eval",
            "default",
            LENGTH,
            "How long? (Unit: years)\nAnswer the question using a single integer number.",
        ),
        ("mathvista", "lmms-eval", "default", SHAPE, f"Which?\nA. 1\nB. 2\n{LETTER}."),
        (
            "mmmu",
            "vlmevalkit",
            "llava",
            EXAM,
            f"In <image 2>, not <image 1>?\nA. yes\nB. see <image 1>\n{LETTER}.",
        ),
        (
            "mmmu",
            "vlmevalkit",
            "internvl",
            EXAM,
            (
                *("Image-1: ", Picture(0), "Image-2: ", Picture(1)),
                f"In <image 2>, not <image 1>?\nA. yes\nB. see <image 1>\n{LETTER}.",
            ),
        ),
        (
            "mmmu",
            "vlmevalkit",
            "default",
            EXAM,
            (
                *("Question: In ", Picture(1), ", not ", Picture(0), "?\nOptions:\nA. yes\nB. see ", Picture(0)),
                "\nPlease select the correct answer from the options above. \n",
            ),
        ),
        (
            "mmmu",
            "lmms-eval",
            "default",
            EXAM_OPEN,
            ("What is ", Picture(0), "?\n\nAnswer the question using a single word or phrase."),
        ),
        ("mmmu", "vlmevalkit", "qwen2_vl", EXAM_OPEN, "Question: What is <image 1>?"),
    ],
)
def test_the_harnesses_words(name, style, family, sample, expected):
    ask = prompt_template(style, family=family, overrides=benchmark(name).prompts.get(style))
    assert ask(sample) == expected


@pytest.mark.parametrize("name", ["mmstar", "mmbench", "mmmu", "scienceqa", "mathvista", "seedbench"])
@pytest.mark.parametrize("style", ["plain", "vlmevalkit", "lmms-eval"])
@pytest.mark.parametrize("family", ["default", "llava", "qwen2_vl", "internvl"])
def test_every_benchmark_can_be_asked_in_every_style(name, style, family):
    ask = prompt_template(style, family=family, overrides=benchmark(name).prompts.get(style))
    sample = Sample("q", "Which?", ("1", "2"), 0, TWO[:1], meta={"question": "Which? A: 1, B: 2", "query": "Which?"})
    message = ask(sample)
    text = message if isinstance(message, str) else "".join(part for part in message if isinstance(part, str))
    assert "Which?" in text
