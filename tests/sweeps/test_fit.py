"""As many samples at once as there is memory for."""

from __future__ import annotations

import copy

import accelerate
import numpy as np
import pytest
import torch
from torch import nn

import layersurgery as ls
from layersurgery.cli._main import main
from layersurgery.cli._plan import plan
from layersurgery.embedded import load, make_samples
from layersurgery.errors import SampleError, ScoringError
from layersurgery.sweeps import _fit
from layersurgery.sweeps._fit import most_that_fit
from tests.benchmarks._sweep_parts import peak
from tests.benchmarks._sweep_shapes import SHAPES

WIDTH = 1000
EACH = 3 * 4 * WIDTH  # bytes: what the first matrix is given, what it gives, and what the second gives
MODEL = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)).eval()
SITES = ls.select(MODEL, pattern="*")


class Counting:
    """A scorer that notes how many samples it was asked for, with and without a surgery."""

    def __init__(self, batch_size=None, fail=None):
        self.asked, self.fail = [], fail
        if batch_size is not None:
            self.batch_size = batch_size

    def __call__(self, model, samples):
        self.asked.append((bool(ls.status(model)), len(samples)))
        if self.fail is not None:
            raise self.fail
        with torch.no_grad():
            return model(torch.ones(len(samples), WIDTH) * torch.tensor([[float(one)] for one in samples]))[:, 0]


@pytest.fixture(autouse=True)
def free(monkeypatch):
    """What is free, in samples; half of it is for what they take."""

    def so_many(samples):
        monkeypatch.setattr(_fit, "free_on", lambda device: None if samples is None else int(2 * samples * EACH))

    so_many(5.5)
    return so_many


def run_one():
    with torch.no_grad():
        MODEL(torch.ones(1, WIDTH))


@pytest.mark.parametrize(
    ("samples", "most", "expected"),
    [(0.5, 64, 1), (1, 64, 1), (3.9, 64, 2), (4, 64, 4), (1e6, 64, 64), (1e6, 50, 50), (49, 50, 32), (None, 64, 64)],
)
def test_a_power_of_two_that_fits(free, samples, most, expected):
    free(samples)
    assert most_that_fit(MODEL, run_one, most) == expected


@pytest.mark.parametrize("name", ["llama", "llama bf16", "qwen2_vl", "llava_next", "generate"])
def test_what_is_taken_is_what_torch_allocates(name):
    """And what was there before and is looked at through another tensor, as inputs are."""
    case = SHAPES[name].build(**SHAPES[name].chosen("quick"))
    inputs = sum(one.nbytes for one in case.batches[0].values())

    def run():
        case.run(case.model, case.batches[0])

    run()
    with _fit._Alive(case.model) as alive:
        run()
    allocated = peak(run)
    assert 0.95 * allocated <= alive.highest[torch.device("cpu")] <= 1.05 * allocated + inputs


def test_weights_and_their_views_are_not_counted():
    with _fit._Alive(MODEL) as alive, torch.no_grad():
        MODEL[0].weight.t()[:10].detach()
        MODEL[0].bias.mul_(1)
    assert not alive.highest


def test_a_sweep_tries_one_sample_and_takes_as_many_as_fit():
    scorer = Counting()
    table = ls.sweep(MODEL, scorer, range(10), at=SITES, batch_size="auto", share=False)
    assert scorer.asked == [(False, 1), *[(False, 4), (True, 4), (True, 4)] * 2, (False, 2), (True, 2), (True, 2)]
    assert np.array_equal(table.correct, ls.sweep(MODEL, Counting(), range(10), at=SITES, batch_size=4).correct)


def test_it_is_tried_once():
    scorer = Counting()
    oracle = ls.ModelOracle(MODEL, scorer, range(20), at=SITES, do=ls.Zero(), batch_size="auto")
    assert oracle.batch_size == 64  # not known yet
    oracle.read([0], [0])
    assert scorer.asked == [(False, 1)]  # of one sample there is nothing to find out
    oracle.read([0], range(10))
    assert oracle.batch_size == 4
    assert scorer.asked[1:] == [(False, 1), (False, 3), (False, 4), (False, 2)]
    oracle.read([0], range(20))
    assert [count for _, count in scorer.asked[5:]] == [2, 4, 4]


def test_nothing_is_tried_where_all_is_known(tmp_path):
    class Known(Counting):
        fingerprint = "counting"

    for runs in (True, False):
        scorer = Known("auto")
        ls.sweep(MODEL, scorer, [1.0, 2.0, 3.0], at=SITES, store=tmp_path / "runs.db")
        assert bool(scorer.asked) == runs


@pytest.mark.parametrize(
    ("own", "given", "expected"), [(2, "auto", 2), ("auto", None, 4), ("auto", 3, 3), (3, None, 3), (None, None, 10)]
)
def test_a_number_is_a_limit(own, given, expected):
    scorer = Counting(own)
    ls.sweep(MODEL, scorer, range(10), at=SITES, batch_size=given, share=False)
    assert max(count for _, count in scorer.asked) == expected


def test_a_scorer_of_one_number_is_given_all():
    asked = []

    def total(model, samples):
        asked.append(len(samples))
        with torch.no_grad():
            return model(torch.ones(len(samples), WIDTH)).sum()

    oracle = ls.ModelOracle(MODEL, total, range(10), at=SITES, do=ls.Zero(), batch_size="auto")
    oracle.per_sample = False
    oracle.read([0, 1], range(10))
    assert set(asked) == {10}


def test_where_one_sample_is_too_much_the_run_says_so():
    with pytest.raises(ScoringError, match="out of memory with a single sample"):
        ls.sweep(
            MODEL, Counting(fail=torch.OutOfMemoryError("CUDA out of memory")), range(3), at=SITES, batch_size="auto"
        )


def test_what_else_goes_wrong_comes_through():
    with pytest.raises(ScoringError, match="the scorer failed at the unmodified model, samples '0'"):
        ls.sweep(MODEL, Counting(fail=KeyError("no")), range(3), at=SITES, batch_size="auto")


@pytest.mark.parametrize("size", ["many", 0, True, 2.0])
def test_others_are_refused(size):
    with pytest.raises(SampleError, match='"auto"'):
        ls.sweep(MODEL, Counting(), range(3), at=SITES, batch_size=size)
    with pytest.raises(ScoringError, match='"auto"'):
        ls.ChoiceScorer(load("natural")[1], batch_size=size)


@pytest.mark.parametrize("kind", [ls.ChoiceScorer, ls.GenerationScorer])
def test_scorers_that_come_along(kind, free):
    vlm, processor = load("natural")
    samples = make_samples("digit_even", "probe", 20)
    free(1e9)
    scorer = kind(processor, batch_size="auto")
    oracle = ls.ModelOracle(vlm, scorer, samples, at=ls.select(vlm), do=ls.Zero())
    oracle.read(range(3), range(20))
    assert oracle.batch_size == 64
    free(10)
    assert plan(vlm, scorer, samples, rule=ls.PaperRule(5)).batch_size == 1
    assert np.array_equal(scorer(vlm, samples).correct, kind(processor, batch_size=4)(vlm, samples).correct)


def test_the_command_takes_it(capsys, free):
    free(10)
    assert main(["talo", "natural", "--task", "digit_even", "--batch-size", "auto", "--dry-run"]) == 0
    assert "per second, 1 sample at once" in capsys.readouterr().out
    assert main(["talo", "natural", "--batch-size", "all"]) == 2
    assert "'all' is neither a whole number of at least 1 nor auto" in capsys.readouterr().err


def called(model, samples):
    with torch.no_grad():
        return model(torch.ones(len(samples), WIDTH))[:, 0]


def sizes_of(model, score):
    """Of the samples that a sweep of one site gives a scorer."""
    sizes = []

    def noting(model, samples):
        sizes.append(len(samples))
        return score(model, samples)

    ls.sweep(model, noting, range(6), at=ls.select(model, pattern="*")[:1], batch_size="auto", share=False)
    return sizes


def quantised():
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = copy.deepcopy(MODEL)
    quantize_(model, Int8WeightOnlyConfig())
    return model


def offloaded():
    return accelerate.cpu_offload(copy.deepcopy(MODEL), execution_device=torch.device("cpu"))


@pytest.mark.parametrize("make", [quantised, offloaded])
def test_models_whose_weights_are_no_plain_tensors(make):
    sizes = sizes_of(make(), called)
    assert sizes[0] == 1
    assert sum(sizes[1:]) == 2 * 6


def test_models_that_are_wrapped_or_compiled():
    import nnsight

    def traced(model, samples):
        with torch.no_grad(), model.trace(torch.ones(len(samples), WIDTH)):
            output = model.output.save()
        return output[:, 0]

    for model, score in ((nnsight.NNsight(MODEL), traced), (torch.compile(MODEL, backend="eager"), called)):
        assert sizes_of(model, score) == [1, 4, 4, 2, 2]
