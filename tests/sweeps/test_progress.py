"""Progress: a bar on a terminal; in a log a line every half minute, and none for short runs."""

from __future__ import annotations

import io

import pytest

import layersurgery as ls
from layersurgery.sweeps import _progress
from layersurgery.sweeps._progress import Progress
from tests import models


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run(label, steps, total=None):
    """What is said when batches of cells take these seconds: [(cells, seconds), ...]."""
    clock, stream = Clock(), io.StringIO()
    progress = Progress(label, stream, clock)
    with progress.over(total or sum(cells for cells, _ in steps)) as evaluated:
        for cells, seconds in steps:
            clock.now += seconds
            evaluated(cells)
    return stream.getvalue().splitlines()


def test_a_line_every_half_minute_with_the_time_left():
    lines = run("search", [(10, 10)] * 40 + [(95, 10)])
    assert lines[0] == "search: 30 of 495 cells, 7:45 left"
    assert lines[1] == "search: 60 of 495 cells, 7:15 left"
    assert len(lines) == 13  # 410 seconds
    assert run("search", [(1, 3600), (2, 7200)]) == ["search: 1 of 3 cells, 2:00:00 left"]


@pytest.mark.parametrize("steps", [[(10, 2.9)] * 10, [(100, 29)], [(100, 600)]])
def test_nothing_is_said_of_short_runs_nor_when_it_is_over(steps):
    assert run("search", steps) == []


def test_time_adds_up_over_the_reads_of_a_search():
    clock, stream = Clock(), io.StringIO()
    progress = Progress("search", stream, clock)
    for cells in (20, 100):
        with progress.over(cells) as evaluated:
            for _ in range(2):
                clock.now += 10
                evaluated(cells // 2)
    assert stream.getvalue() == "search: 70 of 120 cells, 0:21 left\n"


def test_a_terminal_gets_a_bar_instead():
    stream = Terminal()
    with Progress("search", stream).over(4) as evaluated:
        evaluated(4)
    assert "search: " in stream.getvalue()
    assert "0/4" in stream.getvalue()
    assert " left" not in stream.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_without_a_label_or_anything_to_do_nothing_is_written(stream):
    for progress, cells in ((Progress(None, stream), 5), (Progress("search", stream), 0)):
        with progress.over(cells) as evaluated:
            evaluated(cells)
    assert stream.getvalue() == ""


def score(model, samples):
    return [model(models.tokens(batch=1)).logits.sum().item()] * len(samples)


@pytest.fixture
def slow(monkeypatch):
    """Each look at the clock finds it ten seconds later."""
    clock = Clock()

    def later():
        clock.now += 10
        return clock.now

    monkeypatch.setattr(_progress.Progress.__init__, "__defaults__", (None, later))


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize(("progress", "label"), [(True, "evaluating"), ("maps", "maps")])
def test_a_sweep_tells_on_standard_error(capsys, progress, label):
    ls.sweep(models.built("llama"), score, range(6), batch_size=2, progress=progress)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[0] == f"{label}: 6 of 24 cells, 1:30 left"
    assert len(said.err.splitlines()) == 3


def first_site(oracle, rng):
    oracle.read([0, 1], range(8))
    return ls.Decision(0)


@pytest.mark.usefixtures("slow")
def test_talo_says_which_stage_it_is_in(capsys):
    model = models.built("llama")
    found = ls.talo(model, score, range(20), rule=first_site, confirm=10, batch_size=2, progress="maps")
    assert found.n_confirm == 10
    lines = capsys.readouterr().err.splitlines()
    assert {tuple(line.split(": ")[:2]) for line in lines} == {("maps", "search"), ("maps", "held-out check")}


@pytest.mark.usefixtures("slow")
def test_without_progress_there_is_no_output(capsys):
    ls.sweep(models.built("llama"), score, range(6), batch_size=2)
    assert capsys.readouterr() == ("", "")
