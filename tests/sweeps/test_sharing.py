"""A sweep shares what lies below its sites: the same scores to the last bit, less work, checked in each run."""

from __future__ import annotations

import contextlib
import copy
import inspect
import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import layersurgery as ls
from layersurgery import testing
from layersurgery.errors import LayerSurgeryWarning, ScoringError
from layersurgery.sites import unwrap
from layersurgery.sweeps import Job, LocalExecutor, ModelOracle, Result
from layersurgery.sweeps._prefix import SharedPrefix
from layersurgery.sweeps._usage import Room
from tests import models

SAMPLES = list(range(12))


@pytest.fixture
def model():
    return models.fresh("llama")


def row(sample):
    return torch.randint(10, models.VOCABULARY, (1, 6), generator=torch.Generator().manual_seed(sample))


@torch.no_grad()
def score(model, samples):
    tokens = torch.cat([row(sample) for sample in samples])
    return model(tokens, use_cache=False).logits[:, -1, 10].tolist()


def test_the_same_scores_for_less(model):
    with testing.restored(model):
        full = ls.sweep(model, score, SAMPLES, batch_size=4, share=False)
        shared = ls.sweep(model, score, SAMPLES, batch_size=4)
    assert np.array_equal(full.correct, shared.correct)
    assert full.notes == shared.notes == ()


@pytest.mark.parametrize("share", [True, "all"])
@pytest.mark.parametrize("texts", [False, True], ids=["forwards", "texts"])
def test_a_scorer_that_looks_inside_sees_each_variant_by_itself(model, texts, share):
    """By hooks of its own, there for the time of its call."""

    @torch.no_grad()
    def looking(model, samples):
        seen = []
        handle = model.model.layers[-1].register_forward_hook(lambda module, given, output: seen.append(output))
        tokens = torch.cat([row(sample) for sample in samples])
        try:
            _ = model.generate(tokens, max_new_tokens=4, do_sample=False) if texts else model(tokens, use_cache=False)
        finally:
            handle.remove()
        return torch.stack([states[:, -1].double().sum(1) for states in seen]).sum(0).tolist()

    full = ls.sweep(model, looking, SAMPLES, batch_size=4, share=False)
    shared = ls.sweep(model, looking, SAMPLES, batch_size=4, share=share)
    assert np.array_equal(full.correct, shared.correct)


def test_where_nothing_can_be_shared_one_variant_is_run_twice_at_most(model):
    """The one for the check, of a scorer that says how many samples it takes."""
    calls = []

    class Counting:
        batch_size = 4

        def __call__(self, model, samples):
            calls.append(len(samples))
            return score(model, samples)

    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        table = ls.sweep(model, Counting(), SAMPLES)
    finally:
        handle.remove()
    assert any("hooks on all modules" in note for note in table.notes)
    assert len(calls) == 3 * (len(model.model.layers) + 1) + 1


def layers_run(model, monkeypatch, **settings):
    count = [0]
    kind = type(model.model.layers[0].mlp)
    forward = kind.forward

    def counted(self, *arguments):
        count[0] += 1
        return forward(self, *arguments)

    sites = ls.select(model)  # which runs a copy of the model
    monkeypatch.setattr(kind, "forward", counted)
    ls.sweep(model, score, SAMPLES, at=sites, batch_size=4, **settings)
    monkeypatch.undo()
    return count[0]


def test_layers_below_the_site_run_once(model, monkeypatch):
    layers, batches = len(model.model.layers), 3
    assert layers_run(model, monkeypatch, share=False) == batches * (layers + 1) * layers
    above = sum(layers - number for number in range(layers))
    guard = layers  # one variant of the first batch again, in full
    assert layers_run(model, monkeypatch) == batches * (layers + above) + guard


def test_a_resumed_sweep_runs_the_base_again_and_shares_it(model, monkeypatch, tmp_path):
    layers = len(model.model.layers)
    full = ls.sweep(model, score, SAMPLES[:4], share=False)
    calls = []

    def counting(model, samples):
        calls.append(ls.status(model))
        if len(calls) == 4:  # base, the last site, its check, and then
            raise KeyboardInterrupt
        return score(model, samples)

    counting.fingerprint = "counting"
    store = tmp_path / "runs.db"
    with pytest.raises(KeyboardInterrupt):
        ls.sweep(model, counting, SAMPLES[:4], store=store)
    with testing.restored(model):
        table = ls.sweep(model, counting, SAMPLES[:4], store=store)
    assert np.array_equal(table.correct, full.correct)
    again = calls[4:]
    assert len(again) == layers - 1  # too few to share anything: each once, and no base


def test_nothing_is_shared_where_that_does_not_pay(model):
    calls = []

    def counting(model, samples):
        calls.append(len(samples))
        return score(model, samples)

    oracle = ModelOracle(model, counting, SAMPLES, at=ls.select(model), do=ls.Zero(), batch_size=4)
    oracle.read([0, 1], range(8))
    assert calls == [4] * 4
    oracle.read(range(oracle.n_sites + 1), range(8))  # two more sites: the base was read, and is not run again
    assert calls == [4] * 8


def test_a_wrong_answer_is_found_out(model, monkeypatch):
    """The guard: what is given in place of a layer is off by a bit, and the sweep goes on in full."""
    from layersurgery.sweeps import _prefix_replay

    thaw = _prefix_replay.thaw

    def off(frozen, *rest):
        value = thaw(frozen, *rest)
        return torch.nextafter(value, value + 1) if isinstance(value, torch.Tensor) and value.dim() == 3 else value

    full = ls.sweep(model, score, SAMPLES, batch_size=4, share=False)
    monkeypatch.setattr(_prefix_replay, "thaw", off)
    with testing.restored(model):
        table = ls.sweep(model, score, SAMPLES, batch_size=4)
    assert np.array_equal(table.correct, full.correct)
    (note,) = table.notes
    assert "other outputs than a full forward" in note
    assert note in str(table)


def test_a_scorer_that_draws_is_told_apart_from_a_wrong_answer(model):
    chance = np.random.default_rng(0)

    def noisy(model, samples):
        return np.array(score(model, samples)) + chance.normal(size=len(samples))

    (note,) = ls.sweep(model, noisy, SAMPLES, batch_size=4).notes
    assert "not deterministic" in note


def test_a_scorer_that_does_not_run_the_whole_model(model):
    """Only a part of it, in several calls, under inference mode."""

    def parts(model, samples):
        with torch.inference_mode():
            states = [model.model(row(sample)).last_hidden_state for sample in samples]
            return [model.lm_head(state[:, -1]).max().item() for state in states]

    full = ls.sweep(model, parts, SAMPLES, batch_size=4, share=False)
    assert np.array_equal(ls.sweep(model, parts, SAMPLES, batch_size=4).correct, full.correct)


def test_an_nnsight_model(model):
    nnsight = pytest.importorskip("nnsight")
    full = ls.sweep(model, score, SAMPLES, share=False, batch_size=4)

    def through(envoy, samples):
        return score(unwrap(envoy), samples)

    table = ls.sweep(nnsight.NNsight(copy.deepcopy(model)), through, SAMPLES, batch_size=4)
    assert np.array_equal(table.correct, full.correct)


def test_what_does_not_fit_is_computed(model):
    sites = ls.select(model)
    prefix = SharedPrefix(model, sites, limit=10_000)
    tokens = models.tokens(batch=4)
    with torch.no_grad(), prefix.recording():
        model(tokens)
    assert prefix.nbytes <= 10_000
    assert "there is not the memory to keep it" in prefix.notes[0]
    with torch.no_grad(), ls.Surgery(at=sites[-1], do=ls.Zero())(model):
        full = model(tokens).logits
        with prefix.replaying(sites[-1]):
            assert torch.equal(model(tokens).logits, full)


@pytest.mark.parametrize(("room", "size"), [(20_000, 3), (4_000, 1), (100, 1)])
def test_batches_are_as_small_as_what_is_shared_wants(model, monkeypatch, room, size):
    monkeypatch.setattr(Room, "read", lambda self: room)
    asked = []

    def asking(model, samples):
        asked.append(len(samples))
        return score(model, samples)

    shared = ls.sweep(model, asking, SAMPLES, batch_size=12)
    full = ls.sweep(model, score, SAMPLES, batch_size=size, share=False)
    assert np.array_equal(shared.correct, full.correct)
    assert asked[-1] == size
    assert asked[: asked.index(size)] == [12, 6, 3][: asked.index(size)]
    assert bool(shared.notes) == (room == 100)  # a single sample does not fit either


@pytest.mark.parametrize("fails_at", range(1, 8))
def test_memory_runs_out_anywhere(model, fails_at):
    full = ls.sweep(model, score, SAMPLES[:8], batch_size=4, share=False)
    calls = []

    def failing(model, samples):
        calls.append(1)
        if len(calls) == fails_at:
            handle = model.model.layers[2].register_forward_pre_hook(out_of_memory)
            try:
                return score(model, samples)
            finally:
                handle.remove()
        return score(model, samples)

    with testing.restored(model), pytest.warns(LayerSurgeryWarning, match="going on with 2"):
        table = ls.sweep(model, failing, SAMPLES[:8], batch_size=4)
    assert np.allclose(table.correct, full.correct, atol=1e-5)


def out_of_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("fails_at", range(1, 8))
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_whatever_is_raised_the_model_is_restored(model, fails_at, error):
    calls = []

    def failing(model, samples):
        calls.append(1)
        if len(calls) == fails_at:
            raise error("now")
        return score(model, samples)

    before = [vars(module).get("forward") for module in model.modules()]
    with testing.restored(model), pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else ScoringError):
        ls.sweep(model, failing, SAMPLES[:8], batch_size=4)
    assert all(
        now is was for now, was in zip((vars(one).get("forward") for one in model.modules()), before, strict=True)
    )


def test_short_calls_of_all_variants_at_once(model):
    def one_by_one(model, samples):
        with torch.no_grad():
            return [model(row(sample), use_cache=False).logits[0, -1, 10].item() for sample in samples]

    full = ls.sweep(model, one_by_one, SAMPLES, share=False)
    assert np.array_equal(ls.sweep(model, one_by_one, SAMPLES).correct, full.correct)
    with testing.restored(model):
        table = ls.sweep(model, one_by_one, SAMPLES, share="all")
    assert np.allclose(table.correct, full.correct, atol=1e-5)
    assert not table.notes


@pytest.mark.parametrize("share", [True, "all"])
def test_texts_of_all_variants_are_written_together(model, share, monkeypatch):
    forward, calls = type(model).forward, []

    def counted(*arguments, **keywords):
        calls.append(1)
        return forward(*arguments, **keywords)

    counted.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(type(model), "forward", counted)

    def write(model, samples):
        tokens = torch.cat([row(sample) for sample in samples])
        before = len(calls)
        found = model.generate(tokens, max_new_tokens=5, min_new_tokens=5, do_sample=False)
        counts.append(len(calls) - before)
        return ls.Scores(found[:, -1].double().numpy(), text=[str(text.tolist()) for text in found])

    counts = []
    full = ls.sweep(model, write, SAMPLES, batch_size=4, share=False)
    assert counts == [5] * 12
    counts = []
    with testing.restored(model):
        table = ls.sweep(model, write, SAMPLES, batch_size=4, share=share)
    assert table.text == full.text
    assert np.array_equal(table.correct, full.correct)
    assert counts.count(0) >= 6, "most variants take what was written for them"


def test_what_share_may_be(model):
    with pytest.raises(ScoringError, match="share='none': give True, False or 'all'"):
        ls.sweep(model, score, SAMPLES, share="none")


def test_long_samples_come_first(model):
    asked = []

    class Scorer:
        def length(self, sample):
            return {3: 100, 5: 90}.get(sample, 1)

        def __call__(self, model, samples):
            asked.append(samples)
            return score(model, samples)

    scorer = Scorer()
    table = ls.sweep(model, scorer, SAMPLES, batch_size=2)
    assert asked[0] == [3, 5]
    assert table.samples == tuple(map(str, SAMPLES))
    assert np.allclose(table.correct, ls.sweep(model, score, SAMPLES).correct, atol=1e-5)


class TwoThreads:
    """An executor of another kind: each row on a copy of the model in a thread of its own, in any order."""

    notes = ("evaluated in two threads",)
    batch_size = None

    def __init__(self, job: Job) -> None:
        self.job = job
        self.copies = threading.local()

    def run(self, rows, columns, wanted, *, whole=False):
        with ThreadPoolExecutor(2) as pool:
            tasks = [pool.submit(self.one, row, wanted(row, list(columns)), whole) for row in reversed(list(rows))]
            for task in tasks:
                yield from task.result()

    def one(self, row, columns, whole):
        if not hasattr(self.copies, "local"):
            self.copies.local = LocalExecutor(replace(self.job, model=copy.deepcopy(self.job.model)))
        return list(self.copies.local.run([row], columns, lambda _, some: some, whole=whole))


def test_another_executor_behind_the_same_oracle(model):
    settings = {"at": ls.select(model), "do": ls.Zero()}
    oracle = ModelOracle(model, score, SAMPLES, **settings, executor=TwoThreads)
    read = oracle.read(range(oracle.n_sites + 1), range(12))
    assert np.array_equal(read.correct, ls.sweep(model, score, SAMPLES).correct)
    assert oracle.table().notes == ("evaluated in two threads",)
    assert oracle.cells == read.correct.size

    def total(model, samples):
        return float(np.sum(score(model, samples)))

    oracle = ModelOracle(model, total, SAMPLES, **settings, executor=TwoThreads)
    assert np.array_equal(
        oracle.read([0, 2], range(12)).correct[:, :1], ls.sweep(model, total, SAMPLES).correct[[0, 2]]
    )


class Elsewhere:
    """An executor that sends rows to another process, which has a model of its own, and gets scores back."""

    notes = ()
    batch_size = 4

    def __init__(self, job: Job) -> None:
        self.job = job

    def run(self, rows, columns, wanted, *, whole=False):
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            for row in rows:
                some = wanted(row, list(columns))
                surgery = self.job.surgeries[row - 1] if row else None
                yield Result(row, some, pool.apply(_there, (surgery, [self.job.samples[column] for column in some])))


def _there(surgery, samples):
    model = models.built("llama")
    with surgery(model) if surgery is not None else contextlib.nullcontext():
        return ls.Scores(np.array(score(model, samples)))


@pytest.mark.slow
def test_an_executor_in_another_process(model):
    oracle = ModelOracle(model, score, SAMPLES[:4], at=ls.select(model)[:2], do=ls.Zero(), executor=Elsewhere)
    read = oracle.read([0, 1, 2], range(4))
    assert np.allclose(read.correct, ls.sweep(model, score, SAMPLES[:4]).correct[:3], atol=1e-6)


CHANGES_FOR_GOOD = {
    "weights": lambda layer: layer.mlp.down_proj.weight.mul_(2),
    "other weights": lambda layer: setattr(layer.mlp.up_proj, "weight", layer.mlp.gate_proj.weight),
    "an attribute": lambda layer: setattr(layer.self_attn, "scaling", 3.0),
    "a hook": lambda layer: layer.mlp.register_forward_hook(lambda module, given, output: 2 * output),
    "a part": lambda layer: setattr(layer, "mlp", nn.Identity()),
    "the site": lambda layer: setattr(layer.self_attn, "o_proj", copy.deepcopy(layer.self_attn.o_proj)),
}


@pytest.mark.parametrize("change", CHANGES_FOR_GOOD)
@pytest.mark.parametrize("place", [0, 2])
def test_a_scorer_that_changes_the_model_for_good(change, place):
    """In the middle of a micro-batch: what was found out of the model before does not hold any more."""

    class Changing:
        def __init__(self):
            self.done = False

        def __call__(self, model, samples):
            if not self.done and samples[0] >= 4 and "layers.0" in str(ls.status(model)):
                self.done = True
                with torch.no_grad():
                    CHANGES_FOR_GOOD[change](model.model.layers[place])
            return score(model, samples)

    # A site whose weights the surgery took at hand when they were changed comes back with its own.
    attempts = [(models.fresh("llama"), share) for share in (False, True)]
    full, shared = (ls.sweep(model, Changing(), SAMPLES, batch_size=4, share=share) for model, share in attempts)
    assert np.array_equal(full.correct, shared.correct)


@pytest.mark.parametrize("share", [True, False])
def test_no_hook_comes_into_a_model(share):
    """Torch's encoder layers run in another way where there are hooks, and round otherwise."""
    model = models.fresh("plain_transformer")
    seen = set()

    @torch.no_grad()
    def looking(model, samples):
        seen.update(bool(part._forward_pre_hooks or part._forward_hooks) for part in model.encoder.modules())
        return [model(row(sample)).max().item() for sample in samples]

    sites = ls.select(model)
    table = ls.sweep(model, looking, SAMPLES, at=sites, batch_size=4, share=share)
    assert seen == {False}
    assert np.array_equal(table.correct[0], looking(model, SAMPLES))
    for number, site in enumerate(sites, 1):
        with ls.Surgery(at=site, do=ls.Zero())(model):
            assert np.array_equal(table.correct[number], looking(model, SAMPLES))
