"""Definition files: the schema and its refusals, names, other packages' benchmarks, overlaps, and the wheel."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from layersurgery.errors import LayerSurgeryWarning, TaskError
from layersurgery.tasks import Benchmark, Sample, benchmark, benchmarks, overlap_warning, warn_of_overlap
from layersurgery.tasks import _registry as registry
from layersurgery.tasks._sample import KINDS
from tests.tasks import fixtures as fx

ROOT = Path(__file__).parents[2]
SIX = {"mmstar", "mmbench_en", "mmmu_val", "scienceqa_val", "mathvista_mini", "seedbench_img"}

GOOD = """
name = "birds"
version = "1"
title = "Birds"
split = "test"
uid = "id"
question = "asked"
hint = "hint"
images = { kind = "column", columns = ["photo"] }
options = { kind = "list", columns = ["names"] }
gold = { kind = "index", column = "right" }
categories = [{ name = "place", column = "place" }]
filters = [{ column = "year", test = "below", value = 2020 }, { column = "place", test = "one_of", value = ["a", "b"] }]

[tasks.at_sea]
where = { place = "a" }

[prompt.plain.default]
question = "Bird: {question}"

[layouts.tsv]
question = "question"
"""


def write(folder, text):
    path = folder / "birds.toml"
    path.write_text(text)
    return path


def test_the_six_are_there_with_all_that_a_user_must_know():
    known = benchmarks()
    assert set(known) == SIX
    for one in known.values():
        assert one.hub_ids
        assert one.licence
        assert one.notes
        assert one.sources
        assert set(one.layouts) == {"hub", "tsv"}
        assert one.extractor in ("letters-v1", "vlmevalkit-2024", "mmmu-v1", "mathvista-v1")
        assert set(one.overlaps) <= SIX
        assert one.tasks


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("scienceqa", "scienceqa_val"),
        ("ScienceQA-VAL", "scienceqa_val"),
        ("MMMU", "mmmu_val"),
        ("MMStar", "mmstar"),
        ("mathvista", "mathvista_mini"),
        ("MMBench-EN", "mmbench_en"),
        ("SEEDBench-IMG", "seedbench_img"),
        ("seed-bench", "seedbench_img"),
    ],
)
def test_names_and_aliases(name, meant):
    assert benchmark(name).name == meant


def test_names_that_are_none():
    with pytest.raises(TaskError, match=r"no benchmark 'mmstr'; did you mean 'mmstar'.*There are mathvista_mini, "):
        benchmark("mmstr")
    with pytest.raises(TaskError, match=r"is generated, not loaded: use layersurgery\.embedded\.make_samples"):
        benchmark("embedded")
    with pytest.raises(TaskError, match=r"there is no benchmark definition gone\.toml that can be read"):
        benchmark("gone.toml")


def test_a_definition_of_ones_own(tmp_path):
    birds = benchmark(write(tmp_path, GOOD))
    assert birds == benchmark(str(tmp_path / "birds.toml")) == Benchmark.from_toml(tmp_path / "birds.toml")
    assert birds.prompts == {"plain": {"default": {"question": "Bird: {question}"}}}
    assert birds.layouts["tsv"].question == "question"
    assert birds.layouts["tsv"].gold == birds.layouts["hub"].gold
    assert birds.rows == "?"
    rows = [
        {"id": n, "asked": f"Which? {n}", "hint": "", "photo": None, "names": ["gull", "tern"], "right": n % 2}
        | {"year": 2018 + n, "place": place}
        for n, place in enumerate(["a", "c", "b", "a"])
    ]
    import json

    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    samples = birds.samples(source=tmp_path / "rows.jsonl")
    assert samples == [Sample("0", "Which? 0", ("gull", "tern"), 0, benchmark="birds")]
    assert birds.samples("at sea", source=tmp_path / "rows.jsonl")[0].task == "at_sea"
    with pytest.raises(TaskError, match="no row of task 'place=c'"):
        birds.samples("place=c", source=tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('uid = "id"', 'uidd = "id"', r"birds\.toml: unknown field 'uidd'; did you mean 'uid'\? The fields: "),
        ('uid = "id"', "", r"birds\.toml: the field 'uid' is missing; it has question"),
        ('title = "Birds"', "", r"the field 'title' is missing"),
        ('uid = "id"', "uid = 3", r"birds\.toml: uid = 3; expected a text"),
        ('version = "1"', "version = 1", r"version = 1; expected a text"),
        (
            'kind = "column"',
            'kind = "colum"',
            r"images: kind = 'colum'; did you mean 'column'\? Allowed: 'column', 'li",
        ),
        ('columns = ["photo"]', 'columns = "photo"', r"images: columns = 'photo'; expected a list"),
        ('columns = ["photo"]', "columns = [1]", r"images: columns\[0\] = 1; expected a text"),
        ('columns = ["photo"]', 'column = "photo"', r"images: unknown field 'column'; did you mean 'columns'"),
        ('{ kind = "index", column = "right" }', '"right"', r"gold = 'right'; expected a table"),
        (
            'kind = "list", columns = ["names"]',
            'kind = "in_question"',
            r"options: a parser is for kind = 'in_question'",
        ),
        (
            'kind = "list", columns = ["names"]',
            'kind = "list"',
            r"options: columns = \[\] does not go with kind = 'list'",
        ),
        ('kind = "list", columns = ["names"]', 'kind = "none"', r"kind = 'mcq' does not go with options.kind = 'none'"),
        ('test = "below", value = 2020', 'test = "below"', r"filters\[0\]: test = 'below' goes with a value"),
        ('test = "below", value = 2020', 'test = "present", value = 1', r"test = 'present' goes without a value"),
        ('test = "below", value = 2020', 'test = "below", value = "x"', r"'below' compares with a whole number"),
        ('test = "below", value = 2020', 'test = "one_of", value = 3', r"'one_of' takes a list"),
        ('test = "below", value = 2020', 'test = "equals", value = [3]', r"'one_of' takes a list, 'equals' a single"),
        ('name = "place", column = "place"', 'name = "place"', r"categories\[0\]: the field 'column' is missing"),
        ('column = "place" }]', 'column = "place", pattern = "(" }]', r"pattern = '\(' is no regular expression"),
        ('column = "place" }]', 'column = "place", pattern = "x" }]', r"has 0 groups; expected one"),
        (
            'column = "place" }]',
            'column = "a" }, { name = "place", column = "b" }]',
            r"categories: place is there twice",
        ),
        ("{ place = ", "{ plase = ", r"tasks.at_sea: there is no division 'plase'; did you mean 'place'\?"),
        ('{ place = "a" }', "{}", r"tasks.at_sea: where is empty"),
        (
            '{ place = "a" }',
            '{ place = "a" }\ncount = "many"',
            r"count = 'many'; expected a whole number; or .*Allowed: '\?'",
        ),
        ('{ place = "a" }', '{ place = "a" }\npaper = 1', r"paper = 1; expected true or false"),
        ("[tasks.at_sea]", '[tasks.x]\nwhere={place="b"}\ntitle="At sea"\n[tasks.at_sea]', r"share the name 'at_sea'"),
        ("[layouts.tsv]", "[layouts.tvs]", r"layouts.tvs; the only other layout is \[layouts.tsv\]"),
        (
            'question = "question"',
            'qestion = "question"',
            r"layouts.tsv: unknown field 'qestion'; did you mean 'question'",
        ),
        ('question = "Bird: {question}"', "question = 1", r"prompt.plain.default.question = 1; expected a text"),
        ('hint = "hint"', 'kind = "essay"', r"kind = 'essay'; .*Allowed: 'mcq', "),
        (
            'hint = "hint"',
            'kind = { column = "x", names = { a = "essay" } }',
            r"kind: names.a = 'essay'; .*Allowed: 'mcq'",
        ),
        ('hint = "hint"', 'circular = { column = "id", step = 0 }', r"circular: step = 0; expected 1 or more"),
        (
            'hint = "hint"',
            'group = "a"\ncircular = { column = "id", step = 9 }',
            r"group and circular do not go together",
        ),
        ('version = "1"', 'version = "1', r"birds\.toml is no TOML"),
    ],
)
def test_malformed_definitions(old, new, message, tmp_path):
    assert old in GOOD
    with pytest.raises(TaskError, match=message):
        Benchmark.from_toml(write(tmp_path, GOOD.replace(old, new, 1)))


def test_other_packages_benchmarks(tmp_path, monkeypatch):
    path = write(tmp_path, GOOD)
    (tmp_path / "bird_package.py").write_text(
        "from layersurgery.tasks import Benchmark\n"
        f"PATH = {str(path)!r}\n"
        "READY = Benchmark.from_toml(PATH)\n"
        "def make(): return Benchmark.from_toml(PATH)\n"
        "def broken(): return Benchmark.from_toml('gone.toml')\n"
        "NUMBER = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def declare(*values):
        points = [EntryPoint(f"p{n}", value, registry.ENTRY_POINT_GROUP) for n, value in enumerate(values)]
        monkeypatch.setattr(
            registry, "entry_points", lambda group: points if group == registry.ENTRY_POINT_GROUP else []
        )

    for value in ("PATH", "READY", "make"):
        declare(f"bird_package:{value}")
        assert set(benchmarks()) == {*SIX, "birds"}
        assert benchmark("Birds").title == "Birds"
    for value, message in [
        ("NUMBER", "gives a int; expected a Benchmark"),
        ("GONE", r"'p0' \(bird_package:GONE\) cannot be loaded"),
        ("broken", r"'p0' .*there is no benchmark definition gone\.toml"),
    ]:
        declare(f"bird_package:{value}")
        with pytest.raises(TaskError, match=message):
            benchmarks()
    declare("bird_package:make", "bird_package:READY")
    with pytest.raises(TaskError, match="the name 'birds' is taken by 'birds'; choose another"):
        benchmarks()


def test_overlaps_are_said_in_both_directions():
    said = overlap_warning("mathvista", "MMStar")
    assert said is not None
    assert said.startswith("MMStar took 345 of its 1500 questions from where MathVista-MINI is from")
    assert overlap_warning("MMStar", "mathvista") == said
    assert overlap_warning("mmstar", "mmstar") is None
    assert overlap_warning("mmmu", "seedbench") is None
    with pytest.warns(LayerSurgeryWarning, match="MMStar took 366 of its 1500 questions from where MMBench-EN"):
        warn_of_overlap("mmbench", "mmstar")
    warn_of_overlap("mmmu", "seedbench")  # the tests' settings make a warning an error
    with pytest.raises(TaskError, match="no benchmark 'ai2d'"):
        overlap_warning("mmstar", "ai2d")


def test_definitions_name_columns_of_the_fixtures_only():
    """The fixtures have the real schemas; what a definition reads must be in them."""
    for name, make in fx.BENCHMARKS.items():
        assert benchmark(name).layouts["hub"].needed <= set(make().column_names), name


def test_an_installed_wheel_has_the_benchmarks(tmp_path):
    """Unpacked elsewhere and imported from there, as an installed one is."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(tmp_path / "site")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import layersurgery.tasks as t; "
        "print(t.__file__, *sorted(t.benchmarks()), 'torch' in sys.modules, 'datasets' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    file, *names, torch, datasets = done.stdout.split()
    assert Path(file).is_relative_to(tmp_path)
    assert set(names) == SIX
    assert (torch, datasets) == ("False", "False")


def test_kinds_of_the_definitions_are_those_of_samples():
    kinds = {kind for one in benchmarks().values() for kind in getattr(one.layouts["hub"].kind, "names", {}).values()}
    assert kinds == set(KINDS)


def test_the_page_on_benchmarks_says_what_the_definitions_say():
    page = " ".join((ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8").split())
    sections = page.split(" ## ")
    for one in benchmarks().values():
        (section,) = [text for text in sections if text.startswith(f"{one.title} ")]
        said = [one.name, *one.hub_ids, f"split `{one.split}`", f"**Licence**: {one.licence}"]
        said += [f"configuration `{one.configs[0]}`"] if len(one.configs) == 1 else []
        said += [f"{one.rows} rows"] if one.rows != "?" else []
        for task in one.tasks.values():
            if task.paper:
                said += [f"`{task.name}`"] + ([f"{task.count} questions"] if task.count != "?" else [])
        assert [text for text in said if text not in section] == []
    (overlaps,) = [text for text in sections if text.startswith("Overlaps ")]
    for name, rows in benchmark("mmstar").overlaps.items():
        assert f"{name} {rows}" in overlaps
