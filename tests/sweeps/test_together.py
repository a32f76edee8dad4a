"""Variants decoded as one batch: the tokens of each one on its own, and nothing of the model changed."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

import layersurgery as ls
from layersurgery import testing
from layersurgery.scoring import GenerationScorer
from layersurgery.sweeps._prefix import SharedPrefix
from layersurgery.sweeps._together import Together
from tests import models
from tests.scoring import tiny
from tests.scoring.test_choices import TEXT, VISION
from tests.sweeps.test_prefix import Counting


def check(model, run, sites, do=None, together=None, batches=2, alike=None):
    """Base and variants one by one and together; gives `together` and which variants were computed by it."""
    alike = equal if alike is None else alike
    cuts = [ls.Surgery(at=site, do=ls.Zero() if do is None else do) for site in sites]
    together = Together(model, SharedPrefix(model, sites)) if together is None else together
    answered = []
    for number in range(batches):
        full = run(model, number)
        with together.recording():
            assert alike(run(model, number), full)
        with testing.restored(model):
            together.compute(cuts)
        answered = [cut.sites[0] for cut in cuts if together.has(cut)]
        for cut in cuts:
            with cut(model):
                full = run(model, number)
                with testing.restored(model), together.answering(cut):
                    got = run(model, number)
            assert alike(got, full), cut
            assert type(got) is type(full)
    return together, answered


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.stride() == other.stride() and torch.equal(one, other)
    return one == other


def greedy(model, inputs, **settings):
    settings = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0, **settings}
    with torch.no_grad():
        return model.generate(**inputs, **settings)


def prompts(batch=3, length=7, seed=0, padded=True):
    """Two batches of prompts in turn, padded on the left."""

    def made(number):
        ids = torch.randint(10, 64, (batch, length), generator=torch.Generator().manual_seed(seed + number))
        mask = torch.ones_like(ids)
        for row in range(batch if padded else 0):
            mask[row, : row % 3] = 0
        return {"input_ids": ids.where(mask.bool(), 0), "attention_mask": mask}

    return made


@functools.cache
def varied(**changes):
    """A Llama of which each variant writes something else, and all end at different steps."""
    return tiny.llama(**{"vocab_size": 64, **changes})


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("do", [ls.Zero(), ls.Uniform(), ls.Mean(), ls.Scale(0.5), ls.Noise()], ids=repr)
def test_tokens_are_those_of_each_variant_alone(do, batch):
    model, made = varied(), prompts(batch)
    sites = ls.select(model)
    together, answered = check(model, lambda model, number: greedy(model, made(number)), sites, do)
    assert together.notes == []
    assert answered == list(sites)


@pytest.mark.parametrize("role", ["attention", "mlp", "norm", "layer"])
def test_roles(role):
    model, made = varied(), prompts()
    sites = ls.select(model, role)
    together, answered = check(model, lambda model, number: greedy(model, made(number)), sites, ls.Scale(0.3))
    assert together.notes == []
    assert answered == list(sites)


def test_texts_end_at_different_steps():
    model, made = varied(), prompts()
    sites = ls.select(model)
    lengths = []

    def run(model, number):
        written = greedy(model, made(number), eos_token_id=list(range(0, 64, 5)), max_new_tokens=16)
        lengths.append(written.shape[1])
        return written

    _, answered = check(model, run, sites)
    assert answered == list(sites)
    assert len(set(lengths)) > 2


def test_penalties_act_on_each_row():
    model, made = varied(), prompts()
    settings = {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2, "min_new_tokens": 3, "suppress_tokens": [7]}
    sites = ls.select(model)
    _, answered = check(model, lambda model, number: greedy(model, made(number), **settings), sites)
    assert answered == list(sites)


def test_the_model_runs_once_for_each_step():
    model, inputs = varied(), prompts()(0)
    sites = ls.select(model)
    cuts = [ls.Surgery(at=site, do=ls.Zero()) for site in sites]
    together = Together(model, SharedPrefix(model, sites))
    for _ in range(2):
        with together.recording():
            greedy(model, inputs)
        with Counting(nn.Linear) as counting:
            together.compute(cuts)
    alone = 8 * len(list(model.model.layers))
    assert counting.calls < alone * (len(cuts) + 9)
    with cuts[1](model), together.answering(cuts[1]), Counting(nn.Linear) as counting:
        greedy(model, inputs)
    assert counting.calls == 0


@pytest.mark.parametrize("name", [*(name for name in TEXT if name not in VISION), *VISION])
def test_a_scorer_of_texts(name):
    make, count = (VISION[name], 4) if name in VISION else (TEXT[name][0], 6)
    model = getattr(tiny, name)()
    picture = (lambda number: (tiny.picture(number),)) if name in VISION else (lambda number: ())
    samples = tuple(tiny.samples(count, picture))
    scorer = GenerationScorer(make(), max_new_tokens=6, batch_size=2)
    sites = list(ls.select(model, **({"tower": "decoder"} if name in ("t5", "bart") else {})))[:4]

    def run(model, number):
        return scorer(model, samples[number:]).text

    together, answered = check(model, run, sites)
    if name == "mamba":
        assert together.notes
    else:
        assert all("one row for each sample" in note and name == "t5" for note in together.notes if note != NEARLY)
        assert answered


NEARLY = "some variants are decoded on their own, since rounding may decide between two tokens"


def test_several_groups_where_memory_is_small():
    model, made = varied(num_hidden_layers=6), prompts()
    sites = ls.select(model)
    small = Together(model, SharedPrefix(model, sites), limit=200_000)
    together, answered = check(model, lambda model, number: greedy(model, made(number)), sites, together=small)
    assert together.notes == []
    assert answered == list(sites)


REFUSED = {
    "sample": ({"do_sample": True}, "not for greedy search"),
    "beams": ({"num_beams": 2}, "beam search"),
    "dictionary": ({"return_dict_in_generate": True}, "generate gives more than the tokens"),
    "time": ({"max_time": 1e3}, "max_time"),
    "no cache": ({"use_cache": False}, "use_cache=False"),
    "static cache": ({"cache_implementation": "static"}, "cache_implementation"),
    "processor": ({"logits_processor": [lambda ids, scores: scores]}, "logits_processor"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_said(case):
    settings, words = REFUSED[case]
    model, made = varied(), prompts()
    sites = ls.select(model)

    def run(model, number):
        torch.manual_seed(number)
        written = greedy(model, made(number), **settings)
        return written if isinstance(written, torch.Tensor) else written.sequences

    together, answered = check(model, run, sites)
    assert not answered
    assert any(words in note for note in together.notes) or (case == "sample" and "random" in together.notes[0])
    assert len(together.notes) == 1


def test_outputs_that_are_changed_are_decoded_alone():
    model, made = varied(), prompts()
    sites = ls.select(model)
    together, answered = check(
        model, lambda model, number: greedy(model, made(number)), sites, ls.Zero(what="contribution")
    )
    assert not answered
    assert together.notes == [
        "decoded on its own, since what a module gives is changed there, not its weights: "
        f"{sites.paths[0]} and {len(sites) - 1} more"
    ]


def test_half_precision_is_decoded_together_when_asked():
    model, made = tiny.llama(vocab_size=64).to(torch.bfloat16), prompts()
    sites = ls.select(model)
    together, answered = check(model, lambda model, number: greedy(model, made(number)), sites)
    assert not answered
    assert together.notes == ["variants are decoded one by one, since in bfloat16 the size of a batch changes tokens"]
    cuts = [ls.Surgery(at=site, do=ls.Zero()) for site in sites]
    asked = Together(model, SharedPrefix(model, sites), always=True)
    with asked.recording():
        greedy(model, made(0))
    asked.compute(cuts)
    assert all(map(asked.ran, cuts))


def test_other_calls_are_not_answered():
    model, made = varied(), prompts()
    sites = ls.select(model)
    cut = ls.Surgery(at=sites[1], do=ls.Zero())
    together = Together(model, SharedPrefix(model, sites))
    with together.recording():
        greedy(model, made(0))
    together.compute([ls.Surgery(at=site, do=ls.Zero()) for site in sites])
    for inputs, settings in ((made(1), {}), (made(0), {"max_new_tokens": 4})):
        with cut(model):
            expected = greedy(model, inputs, **settings)
            with together.answering(cut):
                assert torch.equal(greedy(model, inputs, **settings), expected)


def test_generate_and_forwards_in_one_scorer():
    model, made = varied(), prompts()
    sites = ls.select(model)

    @torch.no_grad()
    def run(model, number):
        before = model(**made(number)).logits
        first = greedy(model, made(number))
        between = model(**made(number + 1)).logits
        second = greedy(model, made(number + 2), max_new_tokens=3)
        return torch.cat([before.flatten(), first.flatten(), between.flatten(), second.flatten()])

    together, answered = check(model, run, sites)
    assert together.notes in ([], [NEARLY])
    assert answered == list(sites)


@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError, ValueError])
@pytest.mark.parametrize("step", [0, 2, 5, 8])
def test_errors_leave_nothing_behind(error, step):
    model, made = varied(), prompts()
    sites = ls.select(model)
    cuts = [ls.Surgery(at=site, do=ls.Zero()) for site in sites]
    together = Together(model, SharedPrefix(model, sites))
    with together.recording():
        greedy(model, made(0))
    calls = 0

    def fail(module, arguments, output):
        nonlocal calls
        calls += 1
        if calls > step:
            raise error

    last = model.model.norm
    original = type(last).forward

    def forward(module, *arguments):
        if module is last:
            fail(module, arguments, None)
        return original(module, *arguments)

    type(last).forward = forward
    try:
        with testing.restored(model):
            if error is ValueError:
                together.compute(cuts)
            else:
                with pytest.raises(error):
                    together.compute(cuts)
    finally:
        type(last).forward = original
    assert calls == step + 1
    assert not any(map(together.has, cuts))
    assert bool(together.notes) == (error is ValueError)
    with cuts[0](model):
        expected = greedy(model, made(0))
        with together.answering(cuts[0]):
            assert torch.equal(greedy(model, made(0)), expected)


def test_a_model_that_mixes_rows_is_noticed():
    model, made = tiny.llama(vocab_size=64), prompts()
    sites = ls.select(model)

    kind = type(model.model.norm)

    class Mixing(kind):
        def forward(self, states):
            return super().forward(states).roll(len(states) // 2, dims=-1)

    model.model.norm.__class__ = Mixing
    together, answered = check(model, lambda model, number: greedy(model, made(number)), sites)
    assert not answered
    assert together.notes == ["variants are decoded one by one, since the unmodified model's tokens are others then"]


def test_weights_that_are_lent_are_noticed():
    model, made = tiny.llama(vocab_size=64), prompts()

    class Lent(type(model.model.layers[0].self_attn)):
        def forward(self, hidden_states, **keywords):
            output, weights = super().forward(hidden_states, **keywords)
            return output + hidden_states @ self.o_proj.weight, weights

    model.model.layers[1].self_attn.__class__ = Lent
    sites = ls.select(model, pattern="*.self_attn")
    together, answered = check(model, lambda model, number: greedy(model, made(number)), sites)
    assert not answered
    assert "uses the weights of another one" in together.notes[0]


def test_models_that_do_not_generate():
    model = models.fresh("vit")
    sites = ls.select(model)
    together, answered = check(model, lambda model, number: models.run(model, "vit"), sites)
    assert together.notes == []
    assert not answered
