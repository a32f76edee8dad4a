"""Short forwards of all variants as one: what each of them gives alone, and nothing of the model changed."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

import layersurgery as ls
from layersurgery import testing
from layersurgery.scoring import ChoiceScorer
from layersurgery.sweeps._prefix import SharedPrefix
from layersurgery.sweeps._together import Together
from tests import models
from tests.scoring import tiny
from tests.sweeps import test_together
from tests.sweeps.test_prefix import Counting, tensors


def close(one, other):
    one, other = tensors(one), tensors(other)
    return len(one) == len(other) > 0 and all(
        torch.allclose(a, b, rtol=1e-5, atol=1e-5) and a.dtype == b.dtype for a, b in zip(one, other, strict=True)
    )


check = functools.partial(test_together.check, alike=close)


def forward(batch=2, length=6, **settings):
    @torch.no_grad()
    def run(model, number):
        ids = torch.randint(10, 64, (batch, length), generator=torch.Generator().manual_seed(number))
        mask = torch.ones_like(ids)
        mask[-1, :2] = 0
        return model(input_ids=ids, attention_mask=mask, **settings)

    return run


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("do", [ls.Zero(), ls.Uniform(), ls.Mean(), ls.Scale(0.5), ls.Noise()], ids=repr)
def test_outputs_are_those_of_each_variant_alone(do, batch):
    model = tiny.llama(vocab_size=64, num_hidden_layers=4)
    sites = ls.select(model)
    together, answered = check(model, forward(batch), sites, do)
    assert together.notes == []
    assert answered == list(sites)


@pytest.mark.parametrize("role", ["attention", "mlp", "norm", "layer"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_roles(name, role):
    model = models.fresh(name)
    sites = [site for site in ls.select(model, role) if ".layer" in site.path or ".h." in site.path]
    together, answered = check(model, forward(use_cache=False) if name != "bert" else forward(), sites, ls.Scale(0.4))
    assert together.notes == []
    assert answered == sites


def test_sites_that_are_not_in_their_order():
    model = tiny.llama(vocab_size=64, num_hidden_layers=4)
    sites = [*reversed(list(ls.select(model, "mlp"))), *ls.select(model)]
    _, answered = check(model, forward(1), sites)
    assert answered == sites


def test_work_is_that_of_one_forward():
    model, run = tiny.llama(vocab_size=64, num_hidden_layers=4), forward(1)
    sites = ls.select(model)
    cuts = [ls.Surgery(at=site, do=ls.Zero()) for site in sites]
    together = Together(model, SharedPrefix(model, sites))
    for number in range(2):
        with together.recording():
            run(model, number)
        with Counting(torch.nn.Linear) as counting:
            together.compute(cuts)
    assert counting.calls == 4 * 7 + 1
    with cuts[1](model), together.answering(cuts[1]), Counting(torch.nn.Linear) as counting:
        run(model, 1)
    assert counting.calls == 0


def test_a_site_outside_of_layers_runs_on_its_own():
    model = tiny.llama(vocab_size=64)
    sites = [*ls.select(model), *ls.select(model, pattern="lm_head")]
    together, answered = check(model, forward(), sites)
    assert answered == sites[:-1]
    assert together.notes == ["run on its own, since it is not within a layer: lm_head"]


def test_long_and_other_forwards_are_left_alone():
    model = tiny.llama(vocab_size=64)
    sites = ls.select(model)
    together, answered = check(model, forward(5, 13), sites)
    assert not answered
    assert together.notes == []
    cuts = [ls.Surgery(at=site, do=ls.Zero()) for site in sites]
    run = forward()
    with together.recording():
        run(model, 0)
    together.compute(cuts)
    with cuts[1](model):
        expected = run(model, 7)
        with together.answering(cuts[1]):
            assert close(run(model, 7), expected)


def test_who_writes_into_what_was_given_changes_nothing():
    model, run = tiny.llama(vocab_size=64), forward()
    sites = ls.select(model)
    cuts = [ls.Surgery(at=site, do=ls.Zero()) for site in sites]
    together = Together(model, SharedPrefix(model, sites))
    with together.recording():
        run(model, 0)
    together.compute(cuts)
    for _ in range(2):
        for cut in cuts:
            with cut(model):
                expected = run(model, 0)
                with together.answering(cut):
                    got = run(model, 0)
            assert close(got, expected)
            for tensor in tensors(got):
                tensor.zero_()


def test_a_model_that_mixes_rows_is_noticed():
    model = tiny.llama(vocab_size=64)
    norm = model.model.norm

    class Mixing(type(norm)):
        def forward(self, states):
            return super().forward(states) + len(states)

    norm.__class__ = Mixing
    together, answered = check(model, forward(), ls.select(model))
    assert not answered
    assert together.notes == ["variants are run one by one, since the unmodified model gives something else then"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError, ValueError])
@pytest.mark.parametrize("layer", [0, 2])
def test_errors_leave_nothing_behind(error, layer):
    model, run = tiny.llama(vocab_size=64), forward()
    sites = ls.select(model)
    cuts = [ls.Surgery(at=site, do=ls.Zero()) for site in sites]
    together = Together(model, SharedPrefix(model, sites))
    with together.recording():
        run(model, 0)
    down = model.model.layers[layer].mlp.down_proj
    kind = type(down)
    original = kind.forward

    def failing(module, states):
        if module is down:
            raise error
        return original(module, states)

    kind.forward = failing
    try:
        with testing.restored(model):
            if error is ValueError:
                together.compute(cuts)
            else:
                with pytest.raises(error):
                    together.compute(cuts)
    finally:
        kind.forward = original
    assert not any(map(together.has, cuts))
    assert bool(together.notes) == (error is ValueError)
    with cuts[0](model):
        expected = run(model, 0)
        with together.answering(cuts[0]):
            assert close(run(model, 0), expected)


def test_a_scorer_of_options_one_by_one():
    model, samples = tiny.llama(), tuple(tiny.samples(3))
    scorer = ChoiceScorer(tiny.tokenizer(chat=tiny.TEXT_CHAT), batch_size=1)

    def run(model, number):
        return torch.tensor(scorer(model, samples[number:]).margin)

    check(model, run, ls.select(model))


def options(length=6, calls=1):
    """A scorer of a call or more for each sample: the log-probability of a token after it, or their sum."""

    @torch.no_grad()
    def score(model, samples):
        found = torch.zeros(len(samples))
        for number in range(calls(samples) if callable(calls) else calls):
            chances = [torch.Generator().manual_seed(7 * sample + number) for sample in samples]
            ids = torch.stack([torch.randint(10, 64, (length,), generator=chance) for chance in chances])
            found += model(input_ids=ids, logits_to_keep=1).logits[:, -1].log_softmax(-1)[:, 10]
        return found.tolist()

    return score


def forwards(model, score, samples=6, **settings):
    """The table, and how often the first layer was run for how many rows."""
    rows, first = [], model.model.layers[0]
    plain = type(first).forward

    def noted(layer, states, *given, **named):
        if layer is first:
            rows.append(len(states))
        return plain(layer, states, *given, **named)

    type(first).forward = noted  # a hook would be a reason to run variants one by one
    try:
        table = ls.sweep(model, score, list(range(samples)), at=ls.select(model), batch_size=1, **settings)
    finally:
        type(first).forward = plain
    return table, rows


@pytest.mark.parametrize("calls", [1, 3])
def test_the_unmodified_model_runs_along(calls):
    """From the second samples on, in the same forward; before that, by itself and for the check."""
    model = tiny.llama(vocab_size=64, num_hidden_layers=4)
    full = ls.sweep(model, options(calls=calls), list(range(6)), batch_size=1, share=False)
    with testing.restored(model):
        table, rows = forwards(model, options(calls=calls), share="all")
    assert table.notes == ()
    assert np.allclose(table.scores, full.scores, atol=1e-5)
    assert np.allclose(table.base, full.base, atol=1e-5)
    assert rows[-5 * calls :] == [2] * 5 * calls  # the first layer's rows: the unmodified model's, and one variant's


def test_a_scorer_that_strays_is_followed():
    """Where it calls the model otherwise than on the samples before, these are run as the first ones were."""
    model = tiny.llama(vocab_size=64, num_hidden_layers=4)
    score = options(calls=lambda samples: 2 if samples[0] % 3 == 2 else 1)
    full = ls.sweep(model, score, list(range(6)), batch_size=1, share=False)
    with testing.restored(model):
        table, _ = forwards(model, score, share="all")
    assert table.notes == ()
    assert np.allclose(table.scores, full.scores, atol=1e-5)
    assert np.allclose(table.base, full.base, atol=1e-5)


@pytest.mark.parametrize("when", ["always", "from the second samples on", "in variants"])
def test_a_scorer_that_looks_inside_sees_each_variant_by_itself(when):
    model = tiny.llama(vocab_size=64, num_hidden_layers=4)
    last, plain = model.model.layers[-1], options()

    @torch.no_grad()
    def score(model, samples):
        changed = bool(ls.status(model))
        if (when == "from the second samples on" and samples[0] == 0) or (when == "in variants" and not changed):
            return plain(model, samples)
        seen = []
        handle = last.register_forward_hook(lambda module, given, output: seen.append(output))
        try:
            plain(model, samples)
        finally:
            handle.remove()
        return seen[0][:, -1].double().sum(1).tolist()

    full = ls.sweep(model, score, list(range(4)), batch_size=1, share=False)
    shared = ls.sweep(model, score, list(range(4)), batch_size=1, share="all")
    assert np.allclose(shared.scores, full.scores, atol=1e-5)
    assert np.allclose(shared.base, full.base, atol=1e-5)


@pytest.mark.parametrize("error", [ValueError("no more"), torch.OutOfMemoryError("no memory")], ids=repr)
def test_what_fails_along_is_run_on_its_own(monkeypatch, error):
    from layersurgery.sweeps._together_stack import Stack

    model = tiny.llama(vocab_size=64, num_hidden_layers=4)
    full = ls.sweep(model, options(), list(range(6)), batch_size=1, share=False)
    plain, count = Stack.output, 0

    def failing(self, watched):
        nonlocal count
        count += 1
        if count == 3:
            raise error
        return plain(self, watched)

    monkeypatch.setattr(Stack, "output", failing)
    if isinstance(error, torch.OutOfMemoryError):
        with pytest.raises(ls.errors.ScoringError, match="memory"), testing.restored(model):
            ls.sweep(model, options(), list(range(6)), batch_size=1, share="all")
        return
    with testing.restored(model):
        table = ls.sweep(model, options(), list(range(6)), batch_size=1, share="all")
    assert count == 3
    assert any("no more" in note for note in table.notes)
    assert np.allclose(table.scores, full.scores, atol=1e-5)
