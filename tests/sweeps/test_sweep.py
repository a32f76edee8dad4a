"""The sweep: right cells, each once; and everything that can go wrong leaves the model as it was and says where."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import layersurgery as ls
from layersurgery import testing
from layersurgery.errors import SampleError, ScoringError, SelectionError, SurgeryError
from tests import models

SAMPLES = [f"sample {index}" for index in range(6)]


@pytest.fixture
def model():
    return models.built("llama")


def score(model, samples):
    """One real number per sample: how the model likes a token that depends on the sample."""
    with torch.no_grad():
        logits = model(models.tokens(batch=1)).logits[0, -1]
    return [logits[10 + int(sample.split()[1])].item() for sample in samples]


def by_hand(model, surgery):
    if surgery is None:
        return score(model, SAMPLES)
    with surgery(model):
        return score(model, SAMPLES)


@pytest.mark.parametrize("batch_size", [None, 1, 4])
def test_every_cell_is_what_a_plain_loop_gives(model, batch_size):
    sites = ls.select(model)
    with testing.restored(model):
        table = ls.sweep(model, score, SAMPLES, do=ls.Uniform(), batch_size=batch_size)
    expected = [by_hand(model, None), *(by_hand(model, ls.Surgery(at=site, do=ls.Uniform())) for site in sites)]
    assert np.array_equal(table.correct, np.array(expected))
    assert table.base.shape == (6,)
    assert table.scores.shape == (3, 6)
    assert np.allclose(table.vector, (table.scores - table.base).mean(axis=1))
    assert table.sites == sites
    assert table.samples == tuple("012345")
    assert table.per_sample


def test_defaults_and_other_sites(model):
    assert np.array_equal(
        ls.sweep(model, score, SAMPLES).correct, ls.sweep(model, score, SAMPLES, do=ls.Zero()).correct
    )
    assert ls.sweep(model, score, SAMPLES, at=ls.select(model, "mlp")[1]).scores.shape == (1, 6)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_cells_are_evaluated_once_whatever_is_read(data):
    model = models.built("llama")
    full = ls.sweep(model, score, SAMPLES).correct
    asked = []

    def counting(model, samples):
        asked.append(len(samples))
        return score(model, samples)

    oracle = ls.ModelOracle(model, counting, SAMPLES, at=ls.select(model), do=ls.Zero(), batch_size=2, share=False)
    seen = set()
    for _ in range(4):
        rows = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
        columns = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=6))
        assert np.array_equal(oracle.read(rows, columns).correct, full[np.ix_(rows, columns)])
        seen |= {(row, column) for row in rows for column in columns}
        assert oracle.cells == len(seen) == sum(asked)


def test_a_scorer_of_one_number_in_all(model):
    calls = []

    def total(model, samples):
        calls.append(len(samples))
        return float(np.prod(np.abs(score(model, samples))))

    table = ls.sweep(model, total, SAMPLES)
    assert not table.per_sample
    assert table.correct.shape == (4, 1)
    assert table.base[0] == pytest.approx(np.prod(np.abs(by_hand(model, None))))
    assert table.vector.shape == (3,)
    assert set(calls) == {6}
    oracle = ls.ModelOracle(model, total, SAMPLES, at=ls.select(model), do=ls.Zero())
    assert oracle.read([0, 1], [0, 1]).correct.shape == (2, 2)
    few, many = oracle.read([0], [0, 1]).correct, oracle.read([0], [0, 1, 2]).correct
    assert few[0, 0] != many[0, 0]  # a set's score is the set's own, not put together from others


def test_scores_with_margins_and_text(model):
    def rich(model, samples):
        values = np.array(score(model, samples))
        return ls.Scores(values > 0, margin=values, text=samples, answered=values > -9, best=1.0)

    oracle = ls.ModelOracle(model, rich, SAMPLES, at=ls.select(model), do=ls.Zero())
    reading = oracle.read([0, 2], [1, 3])
    assert np.array_equal(reading.correct, reading.margin > 0)
    assert reading.best == 1.0
    table = oracle.table()
    assert table.samples == ("1", "3")
    assert table.text[0] == ("sample 1", "sample 3")
    assert np.isnan(table.vector[[0, 2]]).all()
    assert np.isfinite(table.vector[1])
    assert table.to_pandas().loc["base"].tolist() == table.base.tolist()
    assert "model.layers.1.self_attn" in str(table)


def test_names_of_samples(model):
    table = ls.sweep(model, lambda m, s: np.ones(len(s)) * score(m, ["x 0"])[0], [{"id": "a"}, ls.Sample("b", "?"), 3])
    assert table.samples == ("a", "b", "2")


def test_nnsight_models(model):
    import nnsight

    wrapped = nnsight.NNsight(model)

    def seeing(wrapped, samples):
        return score(wrapped._module, samples)

    assert np.array_equal(ls.sweep(wrapped, seeing, SAMPLES).correct, ls.sweep(model, score, SAMPLES).correct)


# --- bad input ---------------------------------------------------------------------------------------------------


def failing(model, message, error=ScoringError, *, samples=SAMPLES, scorer=score, **arguments):
    with testing.restored(model), pytest.raises(error, match=message):
        ls.sweep(model, scorer, samples, **arguments)


@pytest.mark.parametrize("samples", [[], ()])
def test_empty_samples(model, samples):
    failing(model, "samples is empty", SampleError, samples=samples)


@pytest.mark.parametrize("samples", ["text", 3, {1, 2}])
def test_samples_that_are_no_list(model, samples):
    failing(model, "must be a list of samples", SampleError, samples=samples)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda n: [0.0] * (n + 1), r"scores of shape \(7,\) at the unmodified model, samples '0' to '5'; expected 6"),
        (lambda n: [[0.0] * n], r"scores of shape \(1, 6\)"),
        (lambda n: ls.Scores([0.0] * (n - 1)), r"scores of shape \(5,\)"),
        (lambda n: [0.0, float("nan")] + [0.0] * (n - 2), r"returned nan for sample '1'"),
        (lambda n: float("inf"), r"returned inf"),
        (lambda n: "good", r"returned str"),
        (lambda n: None, r"returned (NoneType|nan)"),
    ],
)
def test_a_scorer_that_returns_nonsense(model, answer, message):
    failing(model, message, scorer=lambda model, samples: answer(len(samples)))


def test_a_scorer_that_raises_in_the_middle_of_a_layer(model):
    def raising(model, samples):
        if ls.status(model) and ls.status(model)[0].site.layer == 1 and "sample 3" in samples:
            layer = model.model.layers[2]
            handle = layer.register_forward_pre_hook(lambda *_: 1 / 0)
            try:
                model(models.tokens())
            finally:
                handle.remove()
        return score(model, samples)

    message = r"failed at site 'model\.layers\.1\.self_attn', samples '2' to '3': ZeroDivisionError"
    failing(model, message, scorer=raising, batch_size=2)


def test_an_error_of_the_librarys_own_keeps_its_kind(model):
    def refusing(model, samples):
        raise SampleError("sample 4 has no options")

    failing(model, r"sample 4 has no options \(at the unmodified model", SampleError, scorer=refusing)


def test_a_scorer_that_changes_its_mind(model):
    def fickle(model, samples):
        scores = score(model, samples)
        return 1.0 if ls.status(model) else scores

    failing(model, "one number in all, after one number per sample", scorer=fickle)

    def fickle_too(model, samples):
        scores = score(model, samples)
        return scores if ls.status(model) else 1.0

    failing(model, "one number per sample, after one in all", scorer=fickle_too)


def test_a_model_in_training_mode(model):
    layer = model.model.layers[1].mlp.train()
    try:
        failing(model, r"model\.layers\.1\.mlp.* is in training mode.*model\.eval\(\)")
    finally:
        layer.eval()
    with torch.random.fork_rng():
        failing(models.llama().train(), "LlamaForCausalLM is in training mode")


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, True])
def test_bad_batch_size(model, batch_size):
    failing(model, "whole number >= 1", SampleError, batch_size=batch_size)


def test_bad_sites_scorers_and_interventions(model):
    sites = ls.select(model)
    failing(model, "is given twice", SelectionError, at=[sites[0], sites[0]])
    failing(model, "holds no site", SurgeryError, at=[])
    failing(model, "is no intervention", SurgeryError, do="zero")
    failing(model, "is not callable", scorer="accuracy")
    failing(model, "no module 'elsewhere'", SurgeryError, at=ls.Site("elsewhere"))


def test_out_of_range_reads(model):
    oracle = ls.ModelOracle(model, score, SAMPLES, at=ls.select(model), do=ls.Zero())
    for rows, columns, message in [([4], [0], "row 4 is out of range"), ([0], [-1], "column -1"), ([], [0], "one row")]:
        with pytest.raises(SampleError, match=message):
            oracle.read(rows, columns)


class Bypassing(nn.Module):
    """Has a layer that its forward never uses."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.used(x)


def test_a_site_that_never_runs_is_an_error():
    model = Bypassing().eval()

    def likes(model, samples):
        return [model(torch.ones(1, 2)).sum().item()] * len(samples)

    sites = ls.select(model, pattern="*used")
    assert ls.sweep(model, likes, [1], at=sites[0]).vector.shape == (1,)
    with testing.restored(model), pytest.raises(ScoringError, match=r"'unused' never ran while samples '0' to '1'"):
        ls.sweep(model, likes, [1, 2], at=sites)


def test_a_module_whose_weights_its_parent_reads_has_run():
    """torch's attention never calls its output projection, but uses its weights."""
    model = models.built("plain_transformer")

    def likes(model, samples):
        return [models.run(model, "plain_transformer").sum().item()] * len(samples)

    sites = ls.select(model, pattern="*.out_proj")
    with testing.restored(model):
        table = ls.sweep(model, likes, [1], at=sites)
    assert (table.vector != 0).all()


def test_the_fused_fast_path_of_torch_is_seen_to_run():
    model = models.built("plain_transformer")

    def likes(model, samples):
        return [models.run(model, "plain_transformer")[0, 0, 0].item()] * len(samples)

    table = ls.sweep(model, likes, [1])
    for site, value in zip(ls.select(model), table.scores[:, 0], strict=True):
        with ls.Surgery(at=site, do=ls.Zero())(model):
            assert likes(model, [1])[0] == pytest.approx(value, abs=1e-5)


def test_ctrl_c_in_the_middle(model):
    """A real SIGINT while a layer is out: KeyboardInterrupt comes through, the model is restored."""

    def slow(model, samples):
        if ls.status(model):
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(5)  # the signal ends this wait
        return score(model, samples)

    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with testing.restored(model), pytest.raises(KeyboardInterrupt):
            ls.sweep(model, slow, SAMPLES)
    finally:
        signal.signal(signal.SIGINT, old)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(when=st.integers(0, 30), error=st.sampled_from([ValueError, KeyboardInterrupt, SystemExit, OSError]))
def test_whatever_a_scorer_raises_whenever_the_model_is_restored(when, error):
    model = models.built("gpt2")
    calls = 0

    def raising(model, samples):
        nonlocal calls
        calls += 1
        if calls > when:
            raise error("planned")
        return [0.5 + models.run(model, "gpt2").mean().item()] * len(samples)

    with testing.restored(model):
        try:
            ls.sweep(model, raising, SAMPLES, at=ls.select(model) + ls.select(model, "mlp"), batch_size=2)
        except (ScoringError, KeyboardInterrupt, SystemExit):
            assert calls == when + 1
        else:
            assert when >= 21


@pytest.mark.parametrize("fails", [False, True])
def test_hooks_on_a_compiled_model_are_gone_after_it(fails):
    """Its modules take no forward of others, so that hooks notice which of them are called."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).eval()
    model.compile(backend="eager")
    hooks = []

    def score(model, samples):
        hooks.append([len(module._forward_pre_hooks) for module in model])
        if fails and ls.status(model):
            raise ValueError("no")
        with torch.no_grad():
            return model(torch.ones(len(samples), 2))[:, 0]

    with testing.restored(model), pytest.raises(ScoringError) if fails else nullcontext():
        ls.sweep(model, score, range(3), at=ls.select(model, pattern="*"))
    assert hooks == [[1, 1]] * (2 if fails else 3)
    assert not any(module._forward_pre_hooks for module in model)
