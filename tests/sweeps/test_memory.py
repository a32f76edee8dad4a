"""Out of memory: the micro-batch is halved, nothing is lost or done twice, and the model is restored in between."""

from __future__ import annotations

import warnings
import weakref

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import layersurgery as ls
from layersurgery import testing
from layersurgery.errors import LayerSurgeryWarning, ScoringError
from layersurgery.sweeps._memory import ran_out_of_memory
from layersurgery.sweeps._usage import measured, size_of
from tests import models

SAMPLES = [f"sample {index}" for index in range(12)]


@pytest.fixture
def model():
    return models.built("llama")


def score(model, samples):
    with torch.no_grad():
        logits = model(models.tokens(batch=1)).logits[0, -1]
    return [logits[10 + int(sample.split()[1])].item() for sample in samples]


def accelerator():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def host():
    torch.empty(2**50)


def numpy_host():
    np.empty(2**50, dtype=np.uint8)


def cublas():
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def windows():
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried")


def nested():
    try:
        accelerator()
    except torch.OutOfMemoryError as error:
        raise ValueError("generation failed") from error


FAILURES = [accelerator, host, numpy_host, cublas, windows, nested]


class Limited:
    """Fails inside the model's forward for more samples than fit, and notes what it was asked."""

    def __init__(self, most, fail=accelerator, only_changed=False):
        self.most, self.fail, self.only_changed = most, fail, only_changed
        self.asked, self.done = [], []

    def __call__(self, model, samples):
        where = ls.status(model)
        self.asked.append((where, len(samples)))
        if len(samples) > self.most and (where or not self.only_changed):
            handle = model.model.layers[1].register_forward_pre_hook(lambda *_: self.fail())
            try:
                score(model, samples)
            finally:
                handle.remove()
        self.done += [(str(where), sample) for sample in samples]
        return score(model, samples)


def warned(run):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", LayerSurgeryWarning)
        result = run()
    return result, [str(entry.message) for entry in caught if issubclass(entry.category, LayerSurgeryWarning)]


@pytest.mark.parametrize("fail", FAILURES)
def test_the_batch_is_halved_until_it_fits(model, fail):
    limited = Limited(3, fail)
    with testing.restored(model):
        table, said = warned(lambda: ls.sweep(model, limited, SAMPLES, share=False))
    assert [text.split(". ")[0] for text in said] == [
        "out of memory with 12 samples at once; going on with 6",
        "out of memory with 6 samples at once; going on with 3",
    ]
    assert np.array_equal(table.correct, ls.sweep(model, score, SAMPLES, batch_size=3).correct)
    assert len(limited.done) == len(set(limited.done)) == 4 * 12  # each cell once
    assert limited.asked[2:] == [(where, 3) for _ in range(4) for where in status_by_row(model)]


def status_by_row(model):
    rows = [()]
    for site in ls.select(model):
        with ls.Surgery(at=site, do=ls.Zero())(model):
            rows.append(ls.status(model))
    return rows


def test_what_stands_is_not_evaluated_again(model):
    """Memory runs out in the first variant, when the base is known: the base is not scored a second time."""
    limited = Limited(4, only_changed=True)
    with testing.restored(model):
        table, said = warned(lambda: ls.sweep(model, limited, SAMPLES, batch_size=8, share=False))
    assert len(said) == 1
    assert "with 8 samples at once; going on with 4" in said[0]
    assert [count for where, count in limited.asked if not where] == [8, 4]
    assert [count for where, count in limited.asked if where] == [8, *([4] * 9)]
    assert len(limited.done) == len(set(limited.done)) == 4 * 12
    assert np.array_equal(table.correct, ls.sweep(model, score, SAMPLES).correct)


@pytest.mark.parametrize("counts", [(5, 2), (3, 1), (2, 1)])
def test_an_odd_number_is_rounded_down(model, counts):
    many, fewer = counts
    oracle = ls.ModelOracle(model, Limited(fewer), SAMPLES[:many], at=ls.select(model), do=ls.Zero())
    assert oracle.batch_size == 64
    with pytest.warns(LayerSurgeryWarning, match=f"going on with {fewer}"):
        oracle.read([0, 1], range(many))
    assert oracle.batch_size == fewer
    assert oracle.cells == 2 * many


def test_a_later_read_starts_with_what_fitted(model):
    limited = Limited(3)
    oracle = ls.ModelOracle(model, limited, SAMPLES, at=ls.select(model), do=ls.Zero(), batch_size=6)
    with pytest.warns(LayerSurgeryWarning, match="with 6 samples at once; going on with 3"):
        oracle.read([0], range(6))
    limited.asked.clear()
    oracle.read([0, 2], range(12))
    assert {count for _, count in limited.asked} == {3}


@pytest.mark.parametrize("fail", FAILURES)
def test_when_not_even_one_sample_fits(model, fail):
    def run():
        with pytest.raises(ScoringError) as caught:
            ls.sweep(model, Limited(0, fail), SAMPLES, batch_size=2)
        return " ".join(str(caught.value).split())

    with testing.restored(model):
        message, said = warned(run)
    assert message.startswith("out of memory with a single sample, '0', at the unmodified model: ")
    for advice in ("--dtype bfloat16", "--device-map auto", "images smaller", "shorter samples", "--batch-size 1"):
        assert advice in message
    assert not said  # a batch that is smaller but does not help is no news


def test_the_site_is_named_where_only_the_variant_does_not_fit(model):
    with testing.restored(model), pytest.raises(ScoringError, match=r"at site 'model\.layers\.0\.self_attn'"):
        ls.sweep(model, Limited(0, only_changed=True), SAMPLES, batch_size=1, share=False)


def test_a_scorer_of_one_number_is_not_given_less(model):
    """Its number is that of the whole set: there is nothing to halve."""
    asked = []

    def total(model, samples):
        asked.append(len(samples))
        if len(samples) > 5:
            accelerator()
        return sum(score(model, samples))

    def run(batch_size=4):
        with pytest.raises(ScoringError, match=r"out of memory with all 12 samples at the unmodified model: .*parts"):
            ls.sweep(model, total, SAMPLES, batch_size=batch_size)

    with testing.restored(model):
        _, said = warned(run)
    assert not said
    assert asked == [4, 12]
    asked.clear()
    with testing.restored(model):  # not even before it is known to be one
        _, said = warned(lambda: run(batch_size=None))
    assert not said
    assert asked == [12, 6, 3, 12]


def test_memory_of_the_failed_call_is_given_back_before_the_next(model):
    """The error's frames hold the tensors of the call; they must be gone when it is tried again."""
    left = []

    def holding(model, samples):
        assert not [reference for reference in left if reference() is not None]
        if len(samples) > 3:
            large = torch.ones(1000)
            left.append(weakref.ref(large))
            accelerator()
        return score(model, samples)

    _, said = warned(lambda: ls.sweep(model, holding, SAMPLES))
    assert len(said) == len(left) == 2


def test_ctrl_c_and_other_errors_are_not_mistaken(model):
    def interrupted(model, samples):
        raise KeyboardInterrupt

    with testing.restored(model), pytest.raises(KeyboardInterrupt):
        ls.sweep(model, interrupted, SAMPLES)

    def wrong(model, samples):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(ScoringError, match="failed at the unmodified model, samples '0' to '11'"):
        ls.sweep(model, wrong, SAMPLES)


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(limits=st.lists(st.integers(0, 8), min_size=1, max_size=20), batch_size=st.sampled_from([None, 1, 2, 5, 8]))
def test_whenever_memory_runs_out_the_model_is_restored_and_the_numbers_are_right(limits, batch_size):
    """Other programs come and go: what fits changes from call to call."""
    model, left = models.built("llama"), list(limits)
    samples = SAMPLES[:8]

    def varying(model, samples):
        if left and len(samples) > left.pop(0):
            accelerator()
        return score(model, samples)

    oracle = ls.ModelOracle(model, varying, samples, at=ls.select(model), do=ls.Zero(), batch_size=batch_size)
    failed: list[str] = []
    while oracle.cells < 32:  # each try takes at least one of the limits away
        with testing.restored(model):
            try:
                warned(lambda: oracle.read(range(4), range(8)))
            except ScoringError as error:
                failed.append(str(error))
    assert all("a single sample" in message for message in failed)
    assert len(failed) <= len(limits)
    assert np.array_equal(oracle.table().correct, ls.sweep(model, score, samples).correct)


def test_causes_are_followed_even_in_a_circle():
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert not ran_out_of_memory(first)
    second.__cause__ = MemoryError()
    assert ran_out_of_memory(first)


def test_sizes_count_shared_parameters_once():
    shared = torch.nn.Linear(4, 4, bias=False)
    tied = torch.nn.Sequential(shared, torch.nn.Linear(4, 4, bias=False), torch.nn.BatchNorm1d(4))
    tied[1].weight = shared.weight
    parameters, sizes = size_of(tied)
    assert parameters == 16 + 8
    assert sizes == {"cpu": 4 * (16 + 8 + 8) + 8}  # and the buffers: two of four numbers, and a counter of 8 bytes


def test_what_a_call_takes_is_measured():
    model = torch.nn.Linear(2, 2)
    with measured(model) as memory:
        torch.ones(64 << 18).sum()  # 64 MiB, given back at once
    (part,) = memory
    assert part.device == "cpu"
    assert part.weights == 24
    assert part.work is None or 50 << 20 < part.work < 200 << 20
    assert part.free is None or part.free > 0
