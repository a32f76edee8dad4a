"""The sweep benchmark runs on tiny models, and each of its checks can fail."""

from __future__ import annotations

import itertools
import sys
import time
from dataclasses import replace

import pytest
import torch

from tests.benchmarks import sweep as benchmark
from tests.benchmarks._sweep_measure import measure
from tests.benchmarks._sweep_methods import ByHand, HookLoop, NNsightTraces, Prefix, Sweep, SweepAll
from tests.benchmarks._sweep_overhead import LIMIT, Overhead, overhead
from tests.benchmarks._sweep_parts import peak, taken_apart
from tests.benchmarks._sweep_peers import Peer, Pyvene
from tests.benchmarks._sweep_shapes import SHAPES, llama

TINY = {"layers": 2, "width": 64, "samples": 2, "batch": 2, "tokens": 4}
EASY = replace(SHAPES["llama"], settings=TINY, quick=TINY, target=0.0, of_bound=0.0, bounded=False)


def tiny(*kinds, size="quick", **changes):
    return measure(replace(EASY, **changes), size, [HookLoop, *kinds], time.process_time)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "qwen2_vl", "llava_next", "short", "generate"])
def test_every_method_gives_what_the_loop_gives(name):
    outcome = measure(SHAPES[name], "quick", [HookLoop, Sweep, Prefix, ByHand], time.process_time)
    assert [line.name for line in outcome.lines] == ["hook loop", "layersurgery", "shared prefix", "weights by hand"]
    assert all(line.ratio > 0 and line.problem == "" for line in outcome.lines)
    assert all(line.difference == 0 for line in outcome.lines)
    assert outcome.missed == []


def test_traces_are_compared_and_not_where_texts_are_generated():
    (line,) = tiny(NNsightTraces).lines[1:]
    assert (line.difference, line.problem, len(line.ratios)) == (0.0, "", 1)
    (line,) = tiny(NNsightTraces, settings={**TINY, "new_tokens": 2}, size="full").lines[1:]
    assert line.problem.startswith("not run")


def test_a_ratio_below_the_target_is_missed():
    low, far = tiny(Sweep, target=1000.0, of_bound=1000.0, size="full").missed
    assert low.endswith("not 1000 x")
    assert far.endswith("of the bound, not 100000%")


def test_targets_are_for_shapes_that_are_run_in_full():
    smaller = {**TINY, "tokens": 3}
    assert tiny(Sweep, target=1000.0, usual=smaller, size="usual").missed == []
    assert len(tiny(Sweep, target=1000.0, usual=smaller, size="full").missed) == 1


class WrongPrefix(Prefix):
    def output(self, place):
        return super().output(place) + (1e-3 if place[1] else 0.0) * torch.arange(1024)


class WrongAll(SweepAll):
    def outputs(self, clock, turn):
        found = super().outputs(clock, turn)
        return {place: output + 1e-3 * torch.arange(1024) for place, output in found.items()}


def test_other_logits_are_missed():
    exact, close = tiny(WrongPrefix, WrongAll).missed
    assert exact.startswith("shared prefix differs from the loop by 1.02")
    assert close.startswith('share="all": scored log-probabilities differ')


class LostPrefix(Prefix):
    def output(self, place):
        return super().output(place) * float("nan")


def test_logits_that_are_no_numbers_are_missed():
    assert tiny(LostPrefix).missed == ["shared prefix differs from the loop by inf"]


class HungryPrefix(Prefix):
    def output(self, place):
        taken = torch.zeros(2**22)
        return super().output(place) + taken[0]


def test_more_memory_than_the_residual_stream_is_missed():
    larger = {**TINY, "layers": 6, "width": 128, "samples": 8, "batch": 8, "tokens": 64}
    roomy = {"settings": larger, "size": "full", "bounded": True}
    assert not any("more than the loop" in one for one in tiny(Prefix, **roomy).missed)
    (missed,) = tiny(HungryPrefix, **roomy).missed
    assert missed.startswith("shared prefix takes 1")
    assert "more than the loop, and not the residual stream's 1.5 MiB at most" in missed


def test_peak_is_what_is_held_at_a_time():
    def action():
        for _ in range(3):
            held = torch.zeros(1000)
            torch.add(held, 1)

    assert 8000 <= peak(action) < 9000  # and the 1 that is added


def test_the_bound_comes_from_the_time_of_the_parts():
    ticks = itertools.count()
    parts = taken_apart(llama(**TINY), lambda: float(next(ticks)))
    # 9 ticks a forward: 1 before the first layer, 3 for each layer with 1 for its attention, and 1 after the last
    assert parts.forward == 9
    assert parts.below == pytest.approx(1 / 9)
    assert parts.bound == pytest.approx(3 * 9 / (9 + (3 + 3 - 1 + 1) + (3 - 1 + 1)))
    assert parts.residuals == 2 * 2 * 4 * 64 * 4


class Unfit(Peer):
    name = "unfit"
    library = "math"

    def prepare(self, library):
        raise KeyError("LlamaForCausalLM")


def test_a_peer_that_is_not_there_or_does_not_take_the_model_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyvene", None)
    missing, unfit = tiny(Pyvene, Unfit).lines[1:]
    assert missing.problem.startswith("not installed (pip install pyvene")
    assert unfit.problem == "does not take LlamaForCausalLM: KeyError: 'LlamaForCausalLM'"


def test_overhead_is_that_over_layers_called_by_hand():
    found = overhead(time.process_time, llama(layers=2, width=64, samples=8, batch=1, tokens=8))
    assert found.same
    assert found.lowest <= found.seconds <= found.highest
    assert Overhead(0.001, 0.001, 0.001, 0.05, True).missed == []
    assert Overhead(0.001, 0.001, 0.001, 0.03, True).missed == []
    assert len(Overhead(0.050 * LIMIT * 1.1, 0.0, 1.0, 0.05, False).missed) == 2


def test_the_command_prints_a_table_and_says_what_was_missed(monkeypatch, capsys):
    asked = ["--shapes", "llama", "--methods", "layersurgery", "--rounds", "1"]
    monkeypatch.setitem(benchmark.SHAPES, "llama", EASY)
    assert benchmark.main(asked) == 0
    table = capsys.readouterr().out
    assert "hook loop          1.00" in table
    assert "nnsight" not in table
    assert "all that was to be reached is" in table
    monkeypatch.setitem(benchmark.SHAPES, "llama", replace(EASY, target=1000.0))
    assert benchmark.main(asked) == 1
    assert "llama: layersurgery reaches" in capsys.readouterr().out


@pytest.mark.parametrize("asked", [["--rounds", "0"], ["--shapes", "llava_next 8b"], ["--shapes", "unknown"]])
def test_what_cannot_be_run_is_refused(asked):
    with pytest.raises(SystemExit) as refused:
        benchmark.main(asked)
    assert refused.value.code == 2
