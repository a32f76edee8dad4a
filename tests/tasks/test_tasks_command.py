"""What `layersurgery tasks` prints."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from layersurgery.cli._tasks import tasks
from layersurgery.embedded import TASKS
from layersurgery.errors import TaskError
from layersurgery.tasks import benchmarks
from tests.tasks import fixtures as fx


@pytest.fixture
def said(capsys):
    def said(benchmark=None, source=None, as_json=False):
        tasks(SimpleNamespace(benchmark=benchmark, source=source, json=as_json))
        text = capsys.readouterr().out
        return json.loads(text) if as_json else text

    return said


def test_all_benchmarks_with_all_tasks(said):
    text = said()
    for one in benchmarks().values():
        assert one.name in text
        for task in one.tasks.values():
            assert task.rule in text
    assert all(name in text for name in TASKS)
    assert any(line.split()[:5] == ["math", "250", "of", "the", "paper"] for line in text.splitlines())
    assert any(line.split()[:2] == ["maps", "?"] for line in text.splitlines())
    record = said(as_json=True)
    assert {one["name"] for one in record["benchmarks"]} == set(benchmarks())
    assert record["embedded"] == list(TASKS)


def test_one_benchmark_in_detail(said):
    text = said("mmstar")
    assert "seedbench_img (424), mmbench_en (366)" in text
    assert "mmstar (345)" in said("mathvista")
    assert "Lin-Chen/MMStar" in text
    assert "Row 1280" in text
    record = said("mmstar", as_json=True)
    assert record["found"] is None
    assert record["overlaps"]["mathvista_mini"] == 345
    assert record["tasks"][0] == {
        "name": "math",
        "title": "math",
        "where": {"category": "math"},
        "count": 250,
        "paper": True,
        "aliases": [],
        "note": "",
    }


def test_counts_of_a_file(said, tmp_path):
    path = tmp_path / "science.parquet"
    fx.scienceqa().to_parquet(path)
    text = said("scienceqa", str(path))
    assert "6 rows, of which 4 take part" in text
    assert any(line.split()[:3] == ["maps", "?", "2"] for line in text.splitlines())
    assert any(line.split() == ["topic=world-history", "1"] for line in text.splitlines())
    found = said("scienceqa", str(path), as_json=True)["found"]
    assert found["tasks"]["maps"] == 2
    assert found["source"] == str(path)


def test_a_source_needs_a_benchmark(said):
    with pytest.raises(TaskError, match="needs a benchmark to read it as"):
        said(source="a.parquet")
    with pytest.raises(TaskError, match="did you mean 'mmstar'"):
        said("mmstarr")
