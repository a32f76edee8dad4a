"""The six benchmarks, from rows of their exact schemas to samples: layouts, traps, sources, and every refusal."""

from __future__ import annotations

import pytest
from datasets import DatasetDict, Features, Value, concatenate_datasets
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image as Pictures

from layersurgery.errors import LayerSurgeryWarning, SampleError, TaskError
from layersurgery.scoring._images import load_images
from layersurgery.tasks import _source as reading
from layersurgery.tasks import benchmark, benchmarks
from layersurgery.tasks._options import mmstar_options
from tests.tasks import fixtures as fx


def read(name, data, task=None, **settings):
    return benchmark(name).samples(task, source=data, **settings)


def by_id(samples):
    return {sample.id: sample for sample in samples}


# Each benchmark's traps ---------------------------------------------------------------------------------------------


def test_mmstars_three_layouts():
    samples = by_id(read("mmstar", fx.mmstar()))
    assert samples["0"].question == "What is <image 1>?"
    assert samples["0"].options == ("red", "blue, green", "a, b and c", "none")
    assert samples["0"].letter == "B"
    assert samples["0"].meta["question"].endswith("C: a, b and c, D: none")
    assert samples["1"].question == samples["776"].question == "Hint: Give the letter.\nQuestion: How many?"
    assert (samples["1"].options, samples["1"].answer) == (("1", "2", "3", "4"), 3)
    assert samples["776"].options == ("5", "6", "7", "8")
    assert samples["855"].options == ("x", "y", "z")
    assert samples["1199"].options == ("p", "q", "r", "s")
    assert samples["1280"].options == ("12", "Other Answers", "nan", "nan")
    assert samples["0"].categories == {"category": ("math",), "l2_category": ("geometry",), "source": ("MathVista",)}
    assert {sample.benchmark for sample in samples.values()} == {"mmstar"}
    assert [sample.id for sample in read("mmstar", fx.mmstar(), "Math")] == ["0", "1", "776", "1199"]


OPTION = st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=30)


@given(st.lists(OPTION, min_size=2, max_size=9), st.text(max_size=60))
def test_the_mmstar_parser_gives_back_what_was_written_in_a_line(options, stem):
    joined = ", ".join(f"{letter}: {text}" for letter, text in zip("ABCDEFGHI", options, strict=False))
    marks = [f", {letter}: " for letter in "ABCDEFGHIJ"]
    # what no one could tell apart: an option with the mark of another in it
    assume(sum(f", {joined}".count(mark) for mark in marks) == len(options))
    assert mmstar_options(f"{stem}\nOptions: {joined}") == (stem, tuple(options))


@given(st.lists(OPTION, min_size=2, max_size=9), OPTION, st.booleans())
def test_the_mmstar_parser_gives_back_what_was_written_in_lines(options, stem, heading):
    assume(not any(text != text.lstrip(" ") for text in options))
    lines = "".join(f"\n({letter}) {text}" for letter, text in zip("ABCDEFGHI", options, strict=False))
    assert mmstar_options(f"{stem}{chr(10) + 'Choices:' if heading else ''}{lines}") == (stem, tuple(options))


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("What is it?", "no options in the question"),
        ("What?\nOptions: A: x", "fewer than two options"),
        ("What?\nOptions: A: x, B: y, B: z", "not clear where option B begins"),
        ("What?\nChoices:\n(A) x\n(B) y\n(A) z", "not clear where option A begins"),
    ],
)
def test_options_that_are_not_where_they_should_be(question, message):
    with pytest.raises(SampleError, match=rf"row 1 \(id '5'\): .*{message}"):
        read("mmstar", fx.table([fx.mmstar_row(5, question)], fx.MMSTAR))


@pytest.mark.parametrize("index", [int, str])
def test_mmbenchs_main_rows(index):
    samples = by_id(read("MMBench-EN", fx.mmbench(index)))
    assert list(samples) == ["3", "8"]
    assert samples["3"].options == ("joy", "fear", "rage")
    assert samples["3"].hint == "Look at the face."
    assert samples["8"].options == ("yes", "no")
    assert samples["8"].hint == ""
    assert [sample.group for sample in samples.values()] == ["3", "8"]
    assert [sample.id for sample in read("mmbench", fx.mmbench(index), "physical property reasoning")] == ["8"]


def test_mmbenchs_rotations_are_variants_of_one_question():
    samples = by_id(read("mmbench", fx.mmbench(), circular=True))
    assert list(samples) == ["3", "8"]
    assert [variant.id for variant in samples["3"].variants] == ["1000003", "2000003"]
    assert {variant.options[variant.answer] for variant in samples["3"].variants} == {"fear"}
    assert [variant.letter for variant in samples["8"].variants] == ["B"]
    one = read("mmbench", fx.mmbench(), circular=True, limit=1)
    assert [(sample.id, len(sample.variants)) for sample in one] == [("3", 2)]
    assert one.origin["circular"] is True


def test_rotations_without_their_main_row_or_too_few():
    rows = fx.mmbench()
    with pytest.raises(SampleError, match="question '3' has rotated rows and no main row"):
        read("mmbench", rows.select([1, 2, 3, 4]), circular=True)
    with pytest.raises(SampleError, match="has no rotated rows; give one that has"):
        read("mmbench", rows.select([0, 1]), circular=True)
    with pytest.warns(LayerSurgeryWarning, match="1 question have fewer rotations than options, such as '3'"):
        read("mmbench", rows.select([0, 1, 2, 4]), circular=True)
    with pytest.raises(SampleError, match="mmstar has no rotated rows; leave circular out"):
        read("mmstar", fx.mmstar(), circular=True)


def test_an_option_gone_from_the_middle_is_refused():
    row = fx.mmbench_row(3, ["joy", "nan", "rage"], "C")
    with pytest.raises(SampleError, match="option C is there and option B is not, so that the letters would shift"):
        read("mmbench", fx.table([row], {"index": fx.WHOLE, **fx.MMBENCH}))


def test_mmmus_pictures_options_and_open_answers():
    samples = by_id(read("mmmu", fx.mmmu()))
    math = samples["validation_Math_19"]
    assert math.question == "In <image 2>, not <image 1>, see <image 2>."
    assert [image.getpixel((0, 0))[0] for image in load_images(math)] == [10, 20]
    assert math.options == ("a", "b", "it's")
    assert samples["validation_Materials_2"].options == ("<image 1>", "<image 2>")
    assert len(samples["validation_Materials_2"].images) == 3
    assert samples["validation_Music_1"].letter == "I"
    letter = samples["validation_Basic_Medical_Science_10"]
    assert (letter.kind, letter.options, letter.answer) == ("open", (), "C")
    assert samples["validation_Chemistry_30"].answer == ("MgS", "Mg S")
    number = samples["validation_Electronics_5"]
    assert (number.kind, number.answer) == ("open", "8.4")
    assert number.categories == {"subject": ("Electronics",), "domain": ("Tech & Engineering",)}
    tech = read("mmmu", fx.mmmu(), "Tech & Engineering")
    assert [sample.id for sample in tech] == ["validation_Materials_2", "validation_Electronics_5"]
    assert {sample.task for sample in tech} == {"tech_engineering"}


def test_gaps_between_numbered_pictures_are_said():
    row = fx.mmmu_row("Art_1", "See <image 3>.", ["a", "b"], "A", images=(0, 2))
    with pytest.warns(LayerSurgeryWarning, match=r"validation_Art_1.*has the images 1, 3, with gaps"):
        samples = read("mmmu", fx.table([row], fx.MMMU))
    assert samples[0].meta["image_numbers"] == (1, 3)
    assert len(samples[0].images) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": "['a', 'b'"}, "options=.*expected the text of a list"),
        ({"options": "['a']"}, "it asks for an option and has 1"),
        ({"answer": "E"}, r"answer='E' fits none of the 2 options \['a', 'b'\]; expected a letter"),
        ({"question_type": "essay"}, "question_type='essay'; expected one of multiple-choice, open"),
        ({"id": "validation_Alchemy_1"}, "id='validation_Alchemy_1'; expected one of Art,"),
        ({"id": "7"}, "id='7'; expected a text like"),
        ({"question_type": "open", "answer": "[]"}, "expected at least one answer"),
        ({"image_1": {"bytes": b"no picture", "path": None}}, "the image bytes are no picture"),
    ],
)
def test_mmmu_rows_that_cannot_be_used(change, message):
    row = {**fx.mmmu_row("Art_1", "Which?", ["a", "b"], "A"), **change}
    with pytest.raises(SampleError, match=rf"row 1.*{message}"):
        read("mmmu", fx.table([row], fx.MMMU))


def test_scienceqa_by_picture_topic_and_row():
    samples = read("scienceqa", fx.scienceqa())
    assert [sample.id for sample in samples] == ["1", "2", "3", "5"]
    assert (samples.origin["rows_read"], samples.origin["rows_dropped"], samples.origin["rows_kept"]) == (6, 2, 4)
    maps = read("ScienceQA", fx.scienceqa(), "Maps")
    assert [sample.id for sample in maps] == ["1", "5"]
    assert (maps[0].hint, maps[0].letter, maps[1].letter) == ("North is up.", "C", "E")
    assert maps[0].meta["lecture"] == "Maps have four sides."
    assert [sample.id for sample in read("scienceqa", fx.scienceqa(), "physical geography")] == ["3"]
    assert [sample.id for sample in read("scienceqa", fx.scienceqa(), "category=maps")] == ["1", "2", "5"]


def test_mathvistas_five_kinds_of_answer():
    samples = by_id(read("mathvista", fx.mathvista()))
    seen = {name: (sample.kind, sample.answer, sample.precision, sample.unit) for name, sample in samples.items()}
    assert seen == {
        "1": ("float", "1.2", 1, "years"),
        "2": ("mcq", 2, None, ""),
        "3": ("integer", "-2", None, ""),
        "10": ("mcq", 1, None, ""),
        "225": ("list", "[0.1, 5]", None, ""),
        "587": ("mcq", 1, None, ""),
    }
    assert samples["10"].letter == "B"
    assert samples["10"].options[samples["10"].answer] == "A"
    assert samples["2"].categories["skill"] == ("geometry reasoning", "logical reasoning")
    assert samples["2"].categories["task"] == ("math word problem",)
    assert samples["1"].meta["query"].startswith("Hint: ...")
    assert [image.size for image in load_images(samples["3"])] == [(6, 4)]
    assert list(by_id(read("mathvista", fx.mathvista(), "geometry reasoning"))) == ["2"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (fx.mathvista_row("4", "no such", "text", ["a", "b"]), "answer='no such' fits none of the 2 options"),
        (fx.mathvista_row("4", "1.23", "float", precision=1.5), "precision=1.5; expected a whole number"),
        (fx.mathvista_row("4", "1", "text"), "it asks for an option and has 0"),
        (fx.mathvista_row("4", None, "integer"), "answer=None; expected a text"),
    ],
)
def test_mathvista_rows_that_cannot_be_used(row, message):
    with pytest.raises(SampleError, match=message):
        read("mathvista", fx.table([row], fx.MATHVISTA))


@pytest.mark.parametrize("number", [int, str])
def test_seedbenchs_pictures_and_groups(number):
    samples = by_id(read("seedbench", fx.seedbench(number)))
    assert list(samples) == ["101", "102", "104", "105"]
    assert [sample.group for sample in samples.values()] == ["7", "7", "8", "9"]
    assert len(samples["105"].images) == 2
    assert samples["105"].categories == {"type": ("type 3",)}
    assert samples["101"].options == ("a thing", "b thing", "c thing", "d thing")
    assert list(by_id(read("seed", fx.seedbench(number), "Text Recognition"))) == ["102"]
    assert read("seed", fx.seedbench(number)).origin["rows_dropped"] == 1


def test_seedbench_without_segment_or_with_a_new_type():
    samples = read("seedbench", fx.seedbench().remove_columns("segment"), "visual_reasoning")
    assert [sample.id for sample in samples] == ["101", "104"]
    rows = fx.table([fx.seed_row("1", 77)], {**fx.SEED, "question_type_id": Value("int16")})
    with pytest.raises(SampleError, match="question_type_id=77; expected one of 1, 2, 3"):
        read("seedbench", rows)


# Sources ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(fx.BENCHMARKS))
def test_every_source_gives_the_same_samples(name, tmp_path):
    data = fx.BENCHMARKS[name]()
    expected = benchmark(name).samples(source=data)
    assert expected.origin["revision"].startswith("fingerprint:")
    split = benchmark(name).split
    data.to_parquet(tmp_path / "one.parquet")
    data.select(range(2)).to_parquet(tmp_path / "many" / f"{split}-0.parquet")
    data.select(range(2, len(data))).to_parquet(tmp_path / "many" / f"{split}-1.parquet")
    data.save_to_disk(tmp_path / "saved")
    DatasetDict({"other": data.select([0]), split: data}).save_to_disk(tmp_path / "splits")
    sources = [
        *(tmp_path / name for name in ("one.parquet", "many", "saved", "splits")),
        data.to_iterable_dataset(),
        DatasetDict({split: data}),
        str(tmp_path / "one.parquet"),
    ]
    for source in sources:
        samples = benchmark(name).samples(source=source)
        assert samples == expected
        assert [dict(one.categories) for one in samples] == [dict(one.categories) for one in expected]
        assert [dict(one.meta) for one in samples] == [dict(one.meta) for one in expected]
        pictures = [[image.tobytes() for image in load_images(one)] for one in samples]
        assert pictures == [[image.tobytes() for image in load_images(one)] for one in expected]


def test_nothing_is_decoded_that_is_not_looked_at(tmp_path, monkeypatch):
    """Pictures that are no pictures stand for those that were not opened; of a table, bytes are not even read."""
    rows = [
        {**fx.scienceqa_row("Maps"), "image": {"bytes": b"broken", "path": None}},
        fx.scienceqa_row("Physical Geography"),
    ]
    data = fx.table(rows, fx.SCIENCEQA)
    data.to_parquet(tmp_path / "a.parquet")
    for source in (data, tmp_path / "a.parquet", data.to_iterable_dataset()):
        assert len(read("scienceqa", source, "physical_geography")) == 1
        with pytest.raises(SampleError, match=r"row 1 \(id '0'\): the image bytes are no picture"):
            read("scienceqa", source)
    loaded = []
    load = Pictures.Image.load
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: loaded.append(image) or load(image))
    read("mmstar", fx.mmstar())
    assert not loaded


def test_of_a_table_pictures_that_are_not_wanted_are_not_even_read(monkeypatch):
    """Rows are decided on without the bytes of a picture; those of other tasks never leave the table."""
    seen = []
    plain_rows = reading._plain_rows

    def watched(*arguments):
        for row in plain_rows(*arguments):
            seen.append(row)
            yield row

    monkeypatch.setattr(reading, "_plain_rows", watched)
    assert len(read("scienceqa", fx.scienceqa(), "physical_geography")) == 1
    assert [row["image"] for row in seen[:6]] == [None, True, True, True, None, True]
    assert [type(row["image"]) for row in seen[6:]] == [dict]


def test_a_copy_of_a_whole_repository(tmp_path):
    data = fx.mmmu()
    for config, split, rows in [("Math", "validation", [0]), ("Math", "dev", [1]), ("Music", "validation", [5])]:
        data.select(rows).to_parquet(tmp_path / config / f"{split}-00000-of-00001.parquet")
    samples = read("mmmu", tmp_path)
    assert [sample.id for sample in samples] == ["validation_Math_19", "validation_Music_1"]
    parts = ["Math/validation-00000-of-00001.parquet", "Music/validation-00000-of-00001.parquet"]
    assert samples.origin["source"] == ", ".join(parts)
    fx.mmbench().to_parquet(tmp_path / "bench" / "en" / "dev-0.parquet")
    fx.mmbench().to_parquet(tmp_path / "bench" / "cn" / "dev-0.parquet")
    assert read("mmbench", tmp_path / "bench").origin["source"] == "en/dev-0.parquet"


def test_origin_is_a_record_of_what_was_read(tmp_path):
    import hashlib
    import json

    path = tmp_path / "part.parquet"
    fx.mmstar().to_parquet(path)
    samples = benchmark("mmstar").samples("math", source=path, limit=2)
    assert json.loads(json.dumps(samples.origin)) == {
        "benchmark": "mmstar",
        "version": "1",
        "task": "math",
        "source": "part.parquet",
        "revision": "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest(),
        "layout": "hub",
        "rows_read": 2,
        "rows_dropped": 0,
        "rows_kept": 2,
        "samples": 2,
        "circular": False,
        "limit": 2,
    }
    assert samples[:1].origin["part"] == "[0:1]"
    assert samples[-1] == samples[1]
    assert samples == list(samples)
    assert samples != 3
    assert repr(samples) == "Samples(2 from 'mmstar')"


def test_a_limit_stops_the_reading():
    def rows():
        for index in range(10):
            assert index < 5, "more was read than is needed"
            row = fx.mmstar_row(
                index, "Which?\nOptions: A: x, B: y", category="math" if index % 2 else "instance reasoning"
            )
            yield {**row, "image": None}

    from datasets import IterableDataset

    stream = IterableDataset.from_generator(rows, features=Features(fx.MMSTAR))
    assert [sample.id for sample in read("mmstar", stream, "math", limit=2)] == ["1", "3"]


def test_csv_and_jsonl_of_the_hubs_layout(tmp_path):
    import json

    rows = [{**fx.mmstar_row(n, "Which?\nOptions: A: 007, B: NA"), "image": None} for n in range(2)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    samples = read("mmstar", tmp_path / "a.jsonl")
    assert [sample.options for sample in samples] == [("007", "NA")] * 2
    names = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "L2-category", "source", "image"]
    cells = ["3", '"What,\nnow?"', "", "NA", "007", "nan", "nan", "B", "c", "l", "", "p.png"]
    (tmp_path / "a.csv").write_text(",".join(names) + "\n" + ",".join(cells) + "\n")
    fx.draw().save(tmp_path / "p.png")
    sample = read("mmbench", tmp_path / "a.csv")[0]
    assert (sample.question, sample.options, sample.answer) == ("What,\nnow?", ("NA", "007"), 1)
    assert [image.size for image in load_images(sample)] == [(6, 4)]


# The harness's files ------------------------------------------------------------------------------------------------


def test_a_tsv_is_read_in_the_harnesss_layout(tmp_path):
    path = fx.write_tsv(
        tmp_path / "MMBench_DEV_EN.tsv",
        [
            fx.tsv_row(1, fx.encoded("red")),
            fx.tsv_row(2, "1", options=("007", "nan", ""), answer="A") | {"B": "1.0", "C": "", "hint": "H"},
            fx.tsv_row(3, fx.encoded("blue")),
        ],
    )
    samples = benchmark("mmbench").samples("image_emotion", source=path)
    assert samples.origin["layout"] == "tsv"
    assert samples[0].question == 'Which\tone,\n"if any"?'
    assert samples[0].options == ("red", "NA")
    assert (samples[1].options, samples[1].hint) == (("007", "1.0"), "H")
    colours = [load_images(sample)[0].getpixel((0, 0)) for sample in samples]
    assert colours == [(255, 0, 0), (255, 0, 0), (0, 0, 255)]


def test_rows_on_one_picture_are_a_group_in_a_tsv(tmp_path):
    rows = [fx.tsv_row(n, image, category="Visual Reasoning") for n, image in [(1, fx.encoded()), (2, "1"), (3, "1")]]
    samples = benchmark("seedbench").samples(source=fx.write_tsv(tmp_path / "a.tsv", rows))
    assert [sample.group for sample in samples] == ["1", "1", "1"]
    # the row that holds the picture need not be one that was asked for
    rows[0]["category"] = "Scene Understanding"
    samples = benchmark("seedbench").samples("visual_reasoning", source=fx.write_tsv(tmp_path / "b.tsv", rows))
    assert [load_images(sample)[0].size for sample in samples] == [(40, 30)] * 2


def test_several_pictures_up_to_nine_options_and_splits_in_a_tsv(tmp_path):
    nine = {letter: f"o{n}" for n, letter in enumerate("ABCDEFGHI")}
    more = {"id": "validation_Music_1", "question_type": "multiple-choice", "split": "validation"}
    row = fx.tsv_row(1, repr([fx.encoded("red"), fx.encoded("blue")]), "I", **nine, **more)
    row |= {"category": "Music", "l2-category": "Art & Design"}
    rows = [row, {**row, "split": "dev", "id": "dev_Music_1"}]
    (sample,) = benchmark("mmmu").samples("art_design", source=fx.write_tsv(tmp_path / "a.tsv", rows))
    assert (sample.letter, len(sample.options), len(sample.images)) == ("I", 9, 2)


def test_mathvista_and_scienceqa_in_a_tsv(tmp_path):
    columns = {"question_type": "multi_choice", "answer_type": "text", "choices": "['1', '2']", "precision": ""}
    row = fx.tsv_row(1, fx.encoded(), "2", **columns, task="math word problem", skills="['a', 'b']")
    (sample,) = benchmark("mathvista").samples(source=fx.write_tsv(tmp_path / "a.tsv", [row]))
    assert (sample.answer, sample.options) == (1, ("1", "2"))
    assert sample.categories["skill"] == ("a", "b")
    assert sample.meta["query"] == sample.question
    row = fx.tsv_row(1, fx.encoded(), "B", E="", topic="geography") | {"category": "Maps"}
    (sample,) = benchmark("scienceqa").samples("maps", source=fx.write_tsv(tmp_path / "b.tsv", [row]))
    assert sample.letter == "B"
    row = fx.tsv_row(1, fx.encoded(), "A", l2_category="geometry")
    (sample,) = benchmark("mmstar").samples("geometry", source=fx.write_tsv(tmp_path / "c.tsv", [row]))
    assert sample.options == ("red", "NA")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("9", "its image is that of row '9', which has none of its own"),
        ("2", "its image is that of row '2', which has none of its own"),
        ("", "expected base64 text"),
        ("?" * 80, "the image is no base64 text"),
        ("QUJD" * 30, "the image bytes are no picture"),
    ],
)
def test_pictures_of_a_tsv_that_cannot_be_had(image, message, tmp_path):
    rows = [fx.tsv_row(1, image), fx.tsv_row(2, "1")]
    with pytest.raises(SampleError, match=message):
        benchmark("mmbench").samples(source=fx.write_tsv(tmp_path / "a.tsv", rows), limit=1)


# Refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(fx.BENCHMARKS))
def test_a_missing_column_is_named(name, tmp_path):
    data = fx.BENCHMARKS[name]()
    layout = benchmark(name).layouts["hub"]
    assert layout.needed <= set(data.column_names)
    for column in sorted(layout.needed):
        without = data.remove_columns(column)
        for source in (without, without.to_iterable_dataset()):
            with pytest.raises(SampleError, match=rf"there is no column '{column}'; .*The columns: "):
                benchmark(name).samples(source=source)
    data.rename_column(layout.question, "qestion").to_parquet(tmp_path / "a.parquet")
    with pytest.raises(SampleError, match=r"a\.parquet: there is no column 'question'; did you mean 'qestion'"):
        benchmark(name).samples(source=tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("name", "column", "values", "message"),
    [
        ("mmstar", "question", [1], r"row 1 \(id '0'\): question=1; expected a text. The columns: "),
        ("mmstar", "meta_info", ["x"], r"row 1: there is no column 'meta_info.source'"),
        ("mmstar", "answer", [2], r"answer=2; expected a text"),
        ("mmstar", "category", [[1.5]], r"category=\[1.5\]; expected a text or a whole number"),
        ("mmstar", "image", [3], r"an image of type int"),
        ("mmbench_en", "index", ["three"], r"row 1: index='three'; expected a whole number"),
        ("scienceqa_val", "choices", ["a"], r"choices='a'; expected a list"),
        ("scienceqa_val", "answer", ["A"], r"answer='A'; expected a whole number"),
        ("scienceqa_val", "answer", [-1], r"answer=-1 fits none of the 3 options .* an index counted from 0"),
        ("mathvista_mini", "metadata", [None], r"there is no column 'metadata.task'"),
        ("seedbench_img", "image", [3], r"image=3; expected a list"),
        ("seedbench_img", "answer", ["E"], r"answer='E' fits none of the 4 options"),
        ("seedbench_img", "question_id", [None], r"question_id=None; expected a text or a whole number"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(name, column, values, message):
    data = fx.BENCHMARKS[name]()
    data = data.filter(lambda row: row.get("image") is not None, keep_in_memory=True).select([0])
    data = data.remove_columns(column).add_column(column, values)
    with pytest.raises(SampleError, match=message):
        benchmark(name).samples(source=data)


def test_ids_that_are_there_twice():
    data = concatenate_datasets([fx.mmstar(), fx.mmstar()])
    with pytest.raises(SampleError, match="the id '0' is there twice"):
        read("mmstar", data)


def test_sources_that_are_none(tmp_path):
    star = benchmark("mmstar")
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.csv").write_text("x")
    (tmp_path / "mixed" / "a.jsonl").write_text("{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.parquet").write_text("x")
    (tmp_path / "bad.csv").write_bytes(b"\xff\xfe\x00")
    fx.mmstar().save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "dataset_info.json").write_text("{")
    for source, message in [
        (tmp_path / "gone.parquet", "there is no file"),
        (str(tmp_path / "gone" / "x.tsv"), "there is no file"),
        (tmp_path / "a.txt", "neither .jsonl nor .parquet"),
        (tmp_path / "mixed", r"files of several kinds \(\.csv, \.jsonl\)"),
        (tmp_path / "empty", "has no file of"),
        (tmp_path / "bad.parquet", "cannot be read as parquet"),
        (tmp_path / "bad.csv", "cannot be read as comma-separated text"),
        (tmp_path / "saved", "cannot be read as a saved dataset"),
        (DatasetDict({"a": fx.mmstar(), "b": fx.mmstar()}), "no split 'val'; give one of them: a, b"),
        ([{"question": "x"}], "cannot read rows from list"),
        (fx.mmstar().select([]), "no row is left of 0"),
    ]:
        with pytest.raises(SampleError, match=message):
            star.samples(source=source)
    with pytest.raises(
        SampleError, match=r"no row is left of 1; seedbench_img wants rows with data_type equals 'image'"
    ):
        read("seedbench", fx.seedbench().select([2]))
    with pytest.raises(SampleError, match="revision='x' is for the hub"):
        star.samples(source=tmp_path / "a.txt", revision="x")
    for limit in (0, True, 1.5):
        with pytest.raises(SampleError, match="give a number of questions, 1 or more"):
            star.samples(source=fx.mmstar(), limit=limit)


def test_the_hub_must_not_be_asked(monkeypatch):
    """In the tests' environment: nothing is on this machine, and the hub is not to be asked."""
    with pytest.raises(SampleError, match=r"Lin-Chen/MMStar \(val, val\) cannot be loaded from the hub"):
        benchmark("mmstar").samples()
    with pytest.raises(SampleError, match=r"someone/else \(val, val\) .* streaming needs the hub"):
        benchmark("mmstar").samples(source="someone/else", streaming=True)


def test_a_task_that_no_row_is_of():
    with pytest.raises(TaskError, match=r"no row of task 'science_technology' .*There are category: coarse perception"):
        read("mmstar", fx.mmstar(), "science & technology")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("mathh", r"did you mean 'math'\? Its tasks: math, "),
        ("categry=math", r"did you mean 'category'"),
        ("category=", "Give division=value"),
    ],
)
def test_an_unknown_task(task, message):
    with pytest.raises(TaskError, match=message):
        benchmark("mmstar").task(task)


def test_counts_of_a_source():
    found = benchmark("scienceqa").count(fx.scienceqa())
    assert (found.rows, found.samples) == (6, 4)
    assert {name: count for name, count in found.tasks.items() if count} == {
        "maps": 2,
        "physical_geography": 1,
        "social_science": 4,
        "geography": 3,
    }
    assert found.others["topic=world-history"] == 1
    assert "topic=earth-science" not in found.others
    assert benchmark("seedbench").count(fx.seedbench().to_iterable_dataset()).tasks["visual_reasoning"] == 2


def test_the_papers_tasks_are_there_under_their_names():
    paper = {
        ("mmstar", "math"): "math",
        ("mmbench_en", "physical_property_reasoning"): "physical_property_reasoning",
        ("mmbench_en", "image_emotion"): "image_emotion",
        ("scienceqa_val", "Maps"): "maps",
        ("scienceqa_val", "Physical Geography"): "physical_geography",
        ("seedbench_img", "Visual Reasoning"): "visual_reasoning",
        ("seedbench_img", "Text Understanding"): "text_understanding",
        ("mmmu_val", "Tech & Engineering"): "tech_engineering",
        ("mmmu_val", "Health & Medicine"): "health_medicine",
        ("mmstar", "Instance Reasoning"): "instance_reasoning",
    }
    for (name, spelling), short in paper.items():
        for spelt in (spelling, spelling.upper(), short):
            assert benchmark(name).task(spelt).name == short
    marked = {(one.name, task.name) for one in benchmarks().values() for task in one.tasks.values() if task.paper}
    assert marked == {(name, short) for (name, _), short in paper.items()}


def test_counts_add_up():
    for name, division, total in [
        ("mmstar", "category", 1500),
        ("mmstar", "l2_category", 1500),
        ("mmbench_en", "category", 1164),
        ("mmbench_en", "l2_category", 1164),
        ("mmmu_val", "subject", 900),
        ("mmmu_val", "domain", 900),
        ("mathvista_mini", "task", 1000),
        ("mathvista_mini", "context", 1000),
        ("mathvista_mini", "grade", 1000),
        ("mathvista_mini", "category", 1000),
        ("mathvista_mini", "language", 1000),
        ("mathvista_mini", "answer_type", 1000),
        ("seedbench_img", "type", 14233),
    ]:
        tasks = [task for task in benchmark(name).tasks.values() if set(task.where) == {division} and task.count != "?"]
        assert sum(task.count for task in tasks) == total, (name, division)
        assert benchmark(name).samples_expected in (total, "?")
