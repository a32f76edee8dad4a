"""A store never mixes up models, prompts, samples, interventions, seeds or versions of the scoring."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import layersurgery as ls
from layersurgery import testing
from layersurgery.scoring import _choices
from layersurgery.sweeps import Store
from tests.sweeps.test_store import same


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs.db"


class Toy(nn.Module):
    def __init__(self, gain=1.0):
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 1)
        self.gain = gain
        self.register_buffer("offset", torch.zeros(1))

    def forward(self, x):
        return self.second(self.first(x)) * self.gain + self.offset


class OtherCode(Toy):
    def forward(self, x):
        return self.second(self.first(x).relu()) * self.gain + self.offset


OtherCode.__qualname__ = Toy.__qualname__


def toy(cls=Toy, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cls(**settings).eval()


def changed(change):
    model = toy()
    change(model)
    return model


def one_bit(model):
    with torch.no_grad():
        model.second.bias.view(torch.int32)[0] ^= 1


def hooked(model):
    model.first.register_forward_hook(lambda module, given, out: out * 2)


CALLS: list[int] = []


def sums(model, samples):
    CALLS.append(len(samples))
    with torch.no_grad():
        return [model(torch.tensor([sample["x"], 1.0])).item() for sample in samples]


def negative_sums(model, samples):
    CALLS.append(len(samples))
    return [-value for value in sums(model, samples)]


def scaled_by(factor):
    def scaled(model, samples):
        return [factor * value for value in sums(model, samples)]

    return scaled


class Scaled:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, model, samples):
        return [self.factor * value for value in sums(model, samples)]

    def method(self, model, samples):
        return self(model, samples)


class LocalZero(ls.Zero):
    """An intervention of a user's own, under the same name."""

    def replace(self, tensor, place):
        return torch.ones_like(tensor)


ROWS = ({"x": 0.5, "id": "a"}, {"x": 1.5, "id": "b"})
SAME = {"model": toy, "scorer": lambda: sums, "samples": lambda: ROWS, "do": lambda: ls.Noise(seed=1)}
OTHERS = {
    "a bit of a weight": {"model": lambda: changed(one_bit)},
    "a buffer": {"model": lambda: changed(lambda model: model.offset.fill_(-0.0))},
    "a setting": {"model": lambda: toy(gain=2.0)},
    "the dtype": {"model": lambda: toy().double()},
    "the code of a class": {"model": lambda: toy(OtherCode)},
    "a hook": {"model": lambda: changed(hooked)},
    "a replaced forward": {"model": lambda: changed(lambda model: setattr(model.first, "forward", lambda x: x + 1))},
    "a surgery in force": {
        "model": lambda: changed(lambda m: ls.Surgery(ls.select(m, pattern="second"), ls.Scale(2.0)).attach(m))
    },
    "a content of a sample": {"samples": lambda: ({"x": 0.25, "id": "a"}, {"x": 1.25, "id": "b"})},
    "a kind of number": {"samples": lambda: ({"x": np.float32(0.5), "id": "a"}, {"x": np.float32(1.5), "id": "b"})},
    "the scorer's code": {"scorer": lambda: negative_sums},
    "what the scorer closes over": {"scorer": lambda: scaled_by(2.0)},
    "the scorer's settings": {"scorer": lambda: Scaled(2.0)},
    "the settings behind a method": {"scorer": lambda: Scaled(2.0).method},
    "the seed": {"do": lambda: ls.Noise(seed=2)},
    "a setting of the intervention": {"do": lambda: ls.Noise(std=0.5, seed=1)},
    "the intervention": {"do": ls.Uniform},
    "the code of an intervention": {"do": LocalZero},
}
PAIRS = {  # against each other, not against `SAME`
    "what the scorer closes over": {"scorer": lambda: scaled_by(3.0)},
    "the scorer's settings": {"scorer": lambda: Scaled(3.0)},
    "the settings behind a method": {"scorer": lambda: Scaled(3.0).method},
    "the code of an intervention": {"do": ls.Zero},
}


def swept(path, **parts):
    made = {name: make() for name, make in {**SAME, **parts}.items()}
    torch_kind = next(made["model"].parameters()).dtype

    def run(store):
        CALLS.clear()
        with testing.restored(made["model"]):
            table = ls.sweep(
                made["model"],
                made["scorer"],
                made["samples"],
                at=ls.select(made["model"], pattern="first"),
                do=made["do"],
                store=store,
            )
        return table, len(CALLS)

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch_kind)
    try:
        expected, plain_calls = run(None)
        table, calls = run(path)
        again, no_calls = run(path)
    finally:
        torch.set_default_dtype(before)
    assert same(table, expected)
    assert same(again, expected)
    assert no_calls == 0
    return calls, plain_calls


@pytest.mark.parametrize("what", OTHERS)
def test_what_changes_results_is_never_mixed_up(path, what):
    other = PAIRS.get(what, {})
    calls, full = swept(path, **other)
    assert calls == full
    calls, full = swept(path, **OTHERS[what])
    of_the_intervention_only = "do" in OTHERS[what]
    assert calls == (full // 2 if of_the_intervention_only else full)  # the base is the same model
    calls, _ = swept(path, **other)
    assert calls == 0  # what was there is still there


def test_a_model_made_anew_is_the_same_model(path):
    assert swept(path)[0] > 0
    assert swept(path) == (0, 2)


def test_scorers_of_the_library_by_prompt_and_version(path, monkeypatch):
    from layersurgery.embedded import load, make_samples

    model, processor = load("natural")
    samples = make_samples("digit_even", "probe", 4)

    def evaluated(scorer):
        oracle = ls.ModelOracle(model, scorer, samples, at=ls.select(model)[:1], do=ls.Zero(), store=path)
        oracle.read([0, 1], range(4))
        return oracle.cells - oracle.recalled

    assert evaluated(ls.ChoiceScorer(processor)) == 8
    assert evaluated(ls.ChoiceScorer(processor, batch_size=2)) == 0
    asked = ls.ChoiceScorer(processor, prompt=lambda sample: f"{sample.question} Yes or no?")
    assert evaluated(asked) == 8
    monkeypatch.setattr(_choices, "VERSION", _choices.VERSION + 1)
    assert evaluated(ls.ChoiceScorer(processor)) == 8


def test_generated_answers_and_samples_with_pictures(path):
    from layersurgery.embedded import load, make_samples

    model, processor = load("natural")
    samples = make_samples("digit_even", "probe", 6)
    scorer = ls.GenerationScorer(processor, max_new_tokens=2)
    expected = ls.sweep(model, scorer, samples, at=ls.select(model)[:2])
    assert same(ls.sweep(model, scorer, samples, at=ls.select(model)[:2], store=path), expected)
    again = ls.ModelOracle(
        model, scorer, make_samples("digit_even", "probe", 6), at=ls.select(model)[:2], do=ls.Zero(), store=path
    )
    again.read(range(3), range(6))
    assert again.recalled == 18
    assert same(again.table(), expected)
    assert set(Store(path).to_pandas()["task"]) == {"digit_even"}
