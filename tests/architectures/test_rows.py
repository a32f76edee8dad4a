"""The bench itself: its answers are yes where the library is right, and no where it is made wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import layersurgery as ls
from tests.architectures.rows import COLUMNS, row
from tests.architectures.subject import Subject
from tests.architectures.twin import Twin, one_over_n, zeros

NAME = "causal/gpt2"


@pytest.fixture(scope="module")
def right():
    return row(NAME)


def _answers(found):
    return {title: cell.answer for title, cell in found.cells.items()}


def test_everything_is_right_with_a_plain_model(right):
    assert _answers(right) == dict.fromkeys(COLUMNS, "yes"), right
    assert not right.failures


def test_other_weights_are_noticed(monkeypatch):
    monkeypatch.setattr(ls.Zero, "replace", lambda self, tensor, place: torch.full_like(tensor, 1e-3))
    answers = _answers(row(NAME))
    assert [answers[title] for title in ("zero", "zero mlp", "nested", "generation")] == ["NO"] * 4
    assert [answers[title] for title in ("uniform", "mean", "noise", "restored")] == ["yes"] * 4


def test_doing_nothing_is_noticed(monkeypatch):
    monkeypatch.setattr(ls.Mean, "replace", lambda self, tensor, place: tensor.clone())
    assert _answers(row(NAME))["mean"] == "NO"


def test_noise_of_another_spread_is_noticed(monkeypatch):
    usual = ls.Noise.replace
    monkeypatch.setattr(ls.Noise, "replace", lambda self, tensor, place: usual(self, 3 * tensor, place))
    assert _answers(row(NAME))["noise"] == "NO"


def test_writing_into_the_original_is_noticed(monkeypatch):
    usual = ls.Mean.replace
    monkeypatch.setattr(ls.Mean, "replace", lambda self, tensor, place: usual(self, tensor.mul_(2), place))
    found = row(NAME)
    assert found.cells["restored"].answer == "NO"
    assert "after mean" in found.cells["restored"].why


def test_a_model_that_cannot_be_built_is_a_row(monkeypatch):
    monkeypatch.setattr(Subject, "__init__", lambda *_: 1 / 0)
    found = row(NAME)
    assert found.failures == ["built"]
    assert {cell.answer for title, cell in found.cells.items() if title != "built"} == {"-"}


def test_a_copy_is_filled_only_in_the_block_and_only_at_the_site():
    model = nn.ModuleDict({"one": nn.Linear(2, 2), "other": nn.Linear(2, 2)})
    model["other"].weight = model["one"].weight
    twin = Twin(model)
    inside, outside = twin.model["one"], twin.model["other"]
    with twin.filled({"one": zeros}):
        assert not inside.weight.any()
        assert not inside.bias.any()
        assert torch.equal(outside.weight, model["other"].weight)
    with twin.filled({"one": one_over_n, "other": zeros}):  # whoever comes first fills what both hold
        assert inside.weight is outside.weight
        assert torch.equal(inside.weight, torch.full((2, 2), 0.5))
    assert inside.weight is outside.weight
    assert torch.equal(inside.weight, model["one"].weight)
    assert torch.equal(inside.bias, model["one"].bias)


@pytest.mark.parametrize(
    ("holds", "expected"),
    [
        ("", lambda site, x: torch.zeros_like(x)),
        ("stream", lambda site, x: x),
        ("norm(stream)", lambda site, x: site.norm(x)),
    ],
)
def test_what_a_module_adds_is_taken_away(holds, expected):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(4)

        def forward(self, stream):
            return self.norm(stream + 1) * 2, "and more"

    twin, x = Twin(nn.ModuleDict({"site": Sum()})), torch.randn(3, 4)
    with twin.silenced({"site": holds}):
        found, more = twin.model["site"](stream=x)
    assert torch.equal(found, expected(twin.model["site"], x))
    assert more == "and more"
    assert not twin.model["site"]._forward_hooks
