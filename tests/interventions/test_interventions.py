"""The four interventions on tensors worked out by hand, and the registry."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import layersurgery as ls
from layersurgery.errors import InterventionError
from layersurgery.interventions import Place, _base, constant_like, intervention_from_dict, interventions, register

HERE = Place("layers.0.self_attn", "q_proj.weight")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
MATRIX = [[1.0, 2.0, 3.0], [4.0, 5.0, 9.0]]  # 2 x 3: N is 2, not 3; mean 4
BIAS = [1.0, 2.0, 3.0, 6.0]  # N is 4; mean 3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("do", "values", "expected"),
    [
        (ls.Zero(), MATRIX, 0.0),
        (ls.Zero(), BIAS, 0.0),
        (ls.Uniform(), MATRIX, 1 / 2),
        (ls.Uniform(), BIAS, 1 / 4),
        (ls.Mean(), MATRIX, 4.0),
        (ls.Mean(), BIAS, 3.0),
    ],
)
def test_by_hand(do, values, expected, dtype):
    tensor = torch.tensor(values, dtype=dtype)
    before = tensor.clone()
    new = do.replace(tensor, HERE)
    assert torch.equal(new, torch.full_like(tensor, expected))
    assert (new.dtype, new.shape, new.device) == (tensor.dtype, tensor.shape, tensor.device)
    assert torch.equal(tensor, before)
    assert new.untyped_storage().nbytes() <= 8  # one scalar, however large the tensor


def test_uniform_is_rounded_once():
    third = ls.Uniform().replace(torch.zeros(3, 7, dtype=torch.bfloat16), HERE)
    assert torch.equal(third, torch.full((3, 7), 1 / 3, dtype=torch.float64).to(torch.bfloat16))


def test_mean_is_not_taken_in_half_precision():
    tensor = torch.full((64, 64), 60000.0, dtype=torch.float16)  # the sum overflows float16 by far
    assert torch.equal(ls.Mean().replace(tensor, HERE), tensor)


@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_matches_the_tensors_own_spread(dtype):
    generator = torch.Generator().manual_seed(3)
    tensor = (torch.randn(200, 300, generator=generator) * 0.7 + 5).to(dtype)
    new = ls.Noise().replace(tensor, HERE).double()
    assert abs(new.mean()) < 0.01
    assert abs(new.std() - 0.7) < 0.01
    assert ls.Noise(std=2.0).replace(tensor, HERE).double().std() == pytest.approx(2, abs=0.02)
    assert not ls.Noise(std=0).replace(tensor, HERE).any()


def test_noise_of_one_entry():
    assert ls.Noise().replace(torch.tensor([3.0]), HERE).item() == 0.0


@given(seed=st.integers(-(2**40), 2**40), name=st.text(max_size=20))
def test_noise_depends_on_seed_and_place_only(seed, name):
    place, tensor = Place("a", name), torch.arange(12.0).reshape(3, 4)
    state = torch.get_rng_state()
    first = ls.Noise(seed=seed).replace(tensor, place)
    torch.rand(7)
    again = ls.Noise(seed=seed).replace(tensor, place)
    torch.set_rng_state(state)
    assert torch.equal(first, again)
    assert not torch.equal(first, ls.Noise(seed=seed + 1).replace(tensor, place))
    assert not torch.equal(first, ls.Noise(seed=seed).replace(tensor, Place("b", name)))


def test_bad_settings():
    for bad in (float("nan"), float("inf"), -1, "1", True):
        with pytest.raises(InterventionError, match="finite number"):
            ls.Noise(std=bad)
    with pytest.raises(InterventionError, match="must be an integer"):
        ls.Noise(seed=1.5)
    with pytest.raises(InterventionError, match=r"first dimension.*q_proj\.weight.*Select a narrower"):
        ls.Uniform().replace(torch.tensor(1.0), HERE)
    with pytest.raises(InterventionError, match="no entries"):
        ls.Mean().replace(torch.empty(0, 3), HERE)


def test_equal_settings_are_equal_interventions():
    assert ls.Zero() == ls.Zero()
    assert ls.Noise(seed=1) != ls.Noise(seed=2)
    assert len({ls.Zero(), ls.Zero(), ls.Uniform(), ls.Mean(), ls.Noise(), ls.Noise(seed=0)}) == 4
    with pytest.raises(AttributeError):
        ls.Noise().seed = 3


@pytest.fixture
def clean_registry(monkeypatch):
    monkeypatch.setattr(_base, "_registry", dict(_base._registry))


def test_names_round_trip():
    assert {"zero", "uniform", "mean", "noise"} <= set(interventions())
    for do in (ls.Zero(), ls.Uniform(), ls.Mean(), ls.Noise(std=0.5, seed=9)):
        assert intervention_from_dict(do.to_dict()) == do
    with pytest.raises(InterventionError, match=r"unknown intervention 'zeros' \(did you mean 'zero'\?\)"):
        intervention_from_dict({"name": "zeros"})
    with pytest.raises(InterventionError, match=r"'noise' has no setting 'scale'"):
        intervention_from_dict({"name": "noise", "scale": 1})


def test_registering_ones_own(clean_registry):
    @register
    @dataclass(frozen=True)
    class Half(ls.Intervention):
        name: ClassVar[str] = "half"

        def replace(self, tensor, place):
            return tensor / 2

    assert intervention_from_dict({"name": "half"}) == Half()
    assert register(Half) is Half  # a module that is imported anew

    @dataclass(frozen=True)
    class Other(ls.Intervention):
        name: ClassVar[str] = "half"

        def replace(self, tensor, place):
            return tensor

    with pytest.raises(InterventionError, match="name 'half' is taken"):
        register(Other)

    class NoData(ls.Intervention):
        name = "no-data"

        def replace(self, tensor, place):
            return tensor

    with pytest.raises(InterventionError, match="frozen dataclass"):
        register(NoData)
    with pytest.raises(InterventionError, match="set the class variable `name`"):
        register(type("Nameless", (ls.Intervention,), {"replace": lambda self, tensor, place: tensor}))


@dataclass(frozen=True)
class FromElsewhere(ls.Intervention):
    """What another package would declare as an entry point."""

    name: ClassVar[str] = "elsewhere"

    def replace(self, tensor, place):
        return constant_like(tensor, 2.0)


def test_entry_points_are_found(clean_registry, monkeypatch):
    point = EntryPoint("elsewhere", f"{__name__}:FromElsewhere", _base.ENTRY_POINT_GROUP)
    monkeypatch.setattr(_base, "entry_points", lambda group: [point])
    assert intervention_from_dict({"name": "elsewhere"}) == FromElsewhere()
    broken = EntryPoint("broken", "no_such_module_here:Thing", _base.ENTRY_POINT_GROUP)
    monkeypatch.setattr(_base, "entry_points", lambda group: [broken])
    with pytest.raises(InterventionError, match=r"'broken' \(no_such_module_here:Thing\) cannot be loaded"):
        interventions()
