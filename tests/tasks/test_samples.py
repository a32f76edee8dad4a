"""Samples, and reading a user's own from files."""

from __future__ import annotations

import json

import datasets
import pytest
from PIL import Image

import layersurgery as ls
from layersurgery.errors import SampleError, TaskError
from layersurgery.scoring._images import load_images
from layersurgery.tasks import load_samples

ROW = {"question": "Which colour?", "options": ["red", "blue", "green"], "answer": "B"}


def write(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


@pytest.mark.parametrize("answer", ["B", "b", 1, "blue", " blue "])
def test_an_answer_by_letter_text_or_index(tmp_path, answer):
    sample = load_samples(write(tmp_path / "a.jsonl", {**ROW, "answer": answer}))[0]
    assert sample.answer == 1
    assert sample.letter == "B"
    assert sample.options == ("red", "blue", "green")
    assert sample.id == "1"


def test_open_questions_and_everything_else(tmp_path):
    Image.new("RGB", (3, 2), "red").save(tmp_path / "red.png")
    rows = [
        {"id": "x", "question": "Name it", "answer": 7, "image": "red.png", "task": "naming", "group": 3},
        {**ROW, "images": ["red.png", "red.png"], "task": "colours"},
    ]
    opened, chosen = load_samples(write(tmp_path / "a.jsonl", *rows))
    assert (opened.id, opened.answer, opened.options, opened.group, opened.task) == ("x", "7", (), "3", "naming")
    assert [image.size for image in load_images(chosen)] == [(3, 2), (3, 2)]
    assert load_samples(tmp_path / "a.jsonl", task="colours") == [chosen]


def test_parquet_as_datasets_writes_it(tmp_path):
    image = Image.new("RGB", (4, 4), "blue")
    data = datasets.Dataset.from_dict(
        {
            "question": ["Which?", "What?"],
            "options": [["a1", "b1"], ["a2", "b2"]],
            "answer": [0, 1],
            "image": [image, image],
        },
        features=datasets.Features(
            {
                "question": datasets.Value("string"),
                "options": datasets.List(datasets.Value("string")),
                "answer": datasets.Value("int64"),
                "image": datasets.Image(),
            }
        ),
    )
    data.to_parquet(tmp_path / "a.parquet")
    samples = load_samples(tmp_path / "a.parquet")
    assert [sample.answer for sample in samples] == [0, 1]
    assert load_images(samples[1])[0].getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**ROW, "answer": "D"}, r"row 1: answer 'D' is none of the options"),
        ({**ROW, "answer": 3}, r"answer 3 is no index of 3 options; count from 0"),
        ({**ROW, "answer": -1}, r"answer -1 is no index"),
        ({**ROW, "answer": True}, r"answer True is none of"),
        ({**ROW, "options": ["B", "A"], "answer": "A"}, r"answer 'A' fits several"),
        ({**ROW, "answer": None}, r"the answer is missing"),
        ({"answer": "A"}, r"question=None; expected a text"),
        ({**ROW, "options": "red"}, r"options='red'; expected a list"),
        ({**ROW, "image": 3}, r"an image of type int"),
        ([1], r"expected an object"),
    ],
)
def test_malformed_rows(tmp_path, row, message):
    with pytest.raises(SampleError, match=message):
        load_samples(write(tmp_path / "a.jsonl", row))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(SampleError, match="there is no file"):
        load_samples(tmp_path / "a.jsonl")
    for name, content, message in [
        ("a.txt", "x", "neither .jsonl nor .parquet"),
        ("a.jsonl", "{", "row 1: not JSON"),
        ("b.jsonl", "\n", "has no rows"),
        ("a.parquet", "x", "cannot be read as parquet"),
    ]:
        (tmp_path / name).write_text(content)
        with pytest.raises(SampleError, match=message):
            load_samples(tmp_path / name)
    with pytest.raises(SampleError, match="'q' is there twice"):
        load_samples(write(tmp_path / "c.jsonl", {**ROW, "id": "q"}, {**ROW, "id": "q"}))
    sample = load_samples(write(tmp_path / "d.jsonl", {**ROW, "image": "gone.png"}))[0]
    with pytest.raises(SampleError, match=r"cannot read the image .*gone\.png"):
        load_images(sample)


def test_unknown_task(tmp_path):
    path = write(tmp_path / "a.jsonl", {**ROW, "task": "colours"}, {**ROW, "task": "shapes"})
    with pytest.raises(
        TaskError, match=r"no row of task 'colour': did you mean 'colours'\? Its tasks: colours, shapes"
    ):
        load_samples(path, task="colour")


@pytest.mark.parametrize("answer", [2, -1, "A", None, True, 1.0])
def test_labels_outside_the_options(answer):
    with pytest.raises(SampleError, match=r"is not one of its 2 options; give the index"):
        ls.Sample("q", "Which?", ("red", "blue"), answer)


def test_samples_are_data():
    sample = ls.Sample("q", "Which?", ["red", "blue"], 1, images=[Image.new("RGB", (1, 1))])
    assert sample == ls.Sample("q", "Which?", ("red", "blue"), 1)
    assert hash(sample) == hash(ls.Sample("q", "Which?", ("red", "blue"), 1))
    with pytest.raises(SampleError, match="open question"):
        _ = ls.Sample("q", "Name it", answer="red").letter
    with pytest.raises(SampleError, match="at most 26"):
        ls.Sample("q", "Which?", tuple(map(str, range(27))), 1)
