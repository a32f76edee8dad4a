"""`load_samples`: every kind of file and folder, and what cannot be read."""

from __future__ import annotations

import json

import datasets
import pytest

from layersurgery.errors import LayerSurgeryWarning, SampleError, TaskError
from layersurgery.scoring._images import load_images
from layersurgery.tasks import load_samples
from tests.tasks import fixtures as fx

ROWS = [
    {"id": "a", "question": "Which?", "options": ["red", "blue"], "answer": "B", "image": "red.png", "task": "colours"},
    {"id": "b", "question": "How many?", "options": None, "answer": "3", "image": None, "task": "counts"},
]


def lines(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def folder(tmp_path):
    fx.draw("red").save(tmp_path / "red.png")
    return tmp_path


def test_every_kind_of_source_gives_the_same(folder):
    lines(folder / "a.jsonl", ROWS)
    (folder / "list.json").write_text(json.dumps(ROWS, indent=2))
    lines(folder / "lines.json", ROWS)
    text = [{**row, "options": json.dumps(row["options"]) if row["options"] else ""} for row in ROWS]
    fx.write_tsv(folder / "a.tsv", text)
    (folder / "a.csv").write_text(
        "id,question,A,B,answer,image,task\na,Which?,red,blue,B,red.png,colours\nb,How many?,,,3,,counts\n"
    )
    data = datasets.Dataset.from_list(ROWS)
    data.to_parquet(folder / "a.parquet")
    (folder / "parts").mkdir()
    (folder / "parts" / "red.png").write_bytes((folder / "red.png").read_bytes())
    lines(folder / "parts" / "1.jsonl", ROWS[:1])
    lines(folder / "parts" / "2.jsonl", ROWS[1:])
    expected = load_samples(folder / "a.jsonl")
    assert [(one.letter if one.options else one.answer) for one in expected] == ["B", "3"]
    assert [one.kind for one in expected] == ["mcq", "float"]
    for name in ("list.json", "lines.json", "a.tsv", "a.csv", "a.parquet", "parts"):
        samples = load_samples(folder / name)
        assert samples == expected, name
        assert [image.size for image in load_images(samples[0])] == [(6, 4)], name
        assert samples[1].images == ()
        assert samples.origin["revision"].startswith("sha256:")
    pictures = data.add_column("extra", [1, 2])
    assert load_samples(pictures) == expected
    assert load_samples(pictures)[1].meta == {"extra": 2}
    data.save_to_disk(folder / "saved")
    assert load_samples(str(folder / "saved")) == expected
    assert load_samples(datasets.DatasetDict({"only": data})) == expected
    with pytest.raises(SampleError, match="has several splits; give one of them: a, b"):
        load_samples(datasets.DatasetDict({"a": data, "b": data}))


def test_pictures_as_datasets_has_them(folder):
    features = datasets.Features(
        {"question": fx.TEXT, "answer": fx.TEXT, "images": datasets.List(datasets.Image()), "image": datasets.Image()}
    )
    row = {"question": "What?", "answer": "x", "images": [fx.draw("red"), fx.draw("blue")], "image": None}
    data = datasets.Dataset.from_list([row], features=features)
    for source in (data, data.to_iterable_dataset(), data.remove_columns("images")):
        samples = load_samples(source)
        colours = [image.getpixel((0, 0)) for image in load_images(samples[0])]
        assert colours == ([(255, 0, 0), (0, 0, 255)] if "images" in source.column_names else [])


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_folder_of_pictures(folder, suffix):
    rows = [{"file_name": "red.png", "question": "Which?", "answer": "red"}]
    if suffix == "jsonl":
        lines(folder / "metadata.jsonl", rows)
    elif suffix == "csv":
        (folder / "metadata.csv").write_text("file_name,question,answer\nred.png,Which?,red\n")
    else:
        datasets.Dataset.from_list(rows).to_parquet(folder / "metadata.parquet")
    lines(folder / "other.jsonl", ROWS)
    (sample,) = load_samples(folder)
    assert sample.images == (folder / "red.png",)
    assert [image.size for image in load_images(sample)] == [(6, 4)]
    assert load_samples(folder).origin["source"] == f"metadata.{suffix}"


def test_everything_that_a_row_may_say(folder):
    rows = [
        {
            "question": "How far?",
            "answer": "1.50",
            "kind": "float",
            "precision": 1,
            "unit": "km",
            "hint": "Look.",
            "group": 4,
            "task": "t",
            "images": ["red.png", "red.png"],
            "note": "kept",
        },
        {"question": "Who?", "answer": ["Ada", "Ada Lovelace"]},
        {"question": "Which?", "A": "x", "B": "y", "C": None, "answer": "y"},
        {"question": "List?", "answer": [1, 2], "kind": "list"},
    ]
    first, second, third, fourth = load_samples(lines(folder / "a.jsonl", rows))
    assert (first.kind, first.precision, first.unit, first.hint, first.group) == ("float", 1, "km", "Look.", "4")
    assert (len(first.images), first.meta) == (2, {"note": "kept"})
    assert (second.kind, second.answer) == ("open", ("Ada", "Ada Lovelace"))
    assert (third.options, third.answer, third.meta) == (("x", "y"), 1, {})
    assert (fourth.kind, fourth.answer) == ("list", "[1, 2]")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"A": "x", "C": "z", "answer": "A"}, "it has the options A, C; expected A, B, C, ... without a gap"),
        ({"A": "x", "B": None, "C": "z", "answer": "A"}, "it has the options A, C; expected"),
        ({"answer": "x", "kind": "number"}, "kind='number'; Give one of mcq, "),
        ({"answer": "x", "kind": "opne"}, "kind='opne'; did you mean 'open'"),
        ({"answer": "1", "precision": "two"}, "precision='two'; expected a whole number"),
        ({"answer": []}, r"answer=\[\]; expected a text, or at least one"),
        ({"answer": "x", "image": 3}, "an image of type int"),
    ],
)
def test_malformed_rows(row, message, tmp_path):
    with pytest.raises(SampleError, match=rf"a\.jsonl, row 1: {message}"):
        load_samples(lines(tmp_path / "a.jsonl", [{"question": "Which?", **row}]))


def test_in_a_csv_a_number_is_no_index(tmp_path):
    (tmp_path / "a.csv").write_text("question,A,B,answer\nWhich?,x,y,1\n")
    with pytest.raises(
        SampleError, match=r"answer '1' is none of the options \['x', 'y'\]; give the letter or the text of"
    ):
        load_samples(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("question,A,B,answer\nWhich?,NA,007,007\n")
    assert load_samples(tmp_path / "b.csv")[0].letter == "B"


@pytest.mark.parametrize(("column", "meant"), [("option", "options"), ("Answer", "answer"), ("choices", "options")])
def test_a_misspelt_column_is_said(column, meant, tmp_path):
    row = {"question": "Which?", "answer": "x", column: ["x", "y"]}
    if meant == "answer":
        del row["answer"]
    path = lines(tmp_path / "a.jsonl", [row])
    message = f"the column '{column}' is kept in meta only; if it is meant as '{meant}'"
    if meant == "answer":
        with pytest.warns(LayerSurgeryWarning, match=message), pytest.raises(SampleError, match="answer is missing"):
            load_samples(path)
    else:
        with pytest.warns(LayerSurgeryWarning, match=message):
            load_samples(path)


def test_other_columns_are_no_reason_to_warn(tmp_path):
    row = {"question": "Which?", "options": ["x"], "choices": ["x"], "answer": "x", "year": 1999, "source": "s"}
    assert load_samples(lines(tmp_path / "a.jsonl", [row]))[0].meta["year"] == 1999


def test_tasks_and_origin(folder):
    path = lines(folder / "a.jsonl", ROWS)
    samples = load_samples(path, task="counts")
    assert [sample.id for sample in samples] == ["b"]
    assert samples.origin["rows_read"] == 2
    assert samples.origin["samples"] == 1
    with pytest.raises(TaskError, match=r"no row of task 'count': did you mean 'counts'"):
        load_samples(path, task="count")
