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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("do", [ls.Zero(), ls.Uniform(), ls.Mean()], ids=repr)
def test_stacked_experts_can_be_multiplied_and_take_the_memory_of_one(do, dtype):
    experts = torch.randn(4, 16, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    new = do.replace(experts, HERE)
    assert new.unique().numel() == 1
    assert new.untyped_storage().nbytes() == experts[0].nbytes
    states, ends = torch.randn(6, 16).to(dtype), torch.tensor([1, 3, 3, 6], dtype=torch.int32)
    given_ = torch._grouped_mm(states, new, offs=ends)
    torch.testing.assert_close(given_, torch._grouped_mm(states, new.contiguous(), offs=ends))


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


@pytest.mark.parametrize("dtype", DTYPES)
def test_scale_multiplies_and_keeps_the_type(dtype):
    tensor = torch.tensor(MATRIX, dtype=dtype)
    for given_ in (ls.Scale(0.5).replace(tensor, HERE), ls.Scale(0.5).outcome(tensor)):
        assert torch.equal(given_, torch.tensor([[0.5, 1.0, 1.5], [2.0, 2.5, 4.5]], dtype=dtype))
    assert torch.equal(ls.Scale(1).replace(tensor, HERE), tensor)
    assert not ls.Scale(0).replace(tensor, HERE).any()


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (3, 6, 8), (6, 2, 3, 3)], ids=str)
@pytest.mark.parametrize(("fraction", "rank"), [(0.5, 3), (0.1, 1), (0.999, 5), (1, 6)])
def test_low_rank_is_the_best_approximation(shape, fraction, rank):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    new = ls.LowRank(fraction).replace(tensor, HERE)
    as_matrices = (lambda t: t) if len(shape) == 3 else (lambda t: t.flatten(1)[None])
    for was, now in zip(as_matrices(tensor), as_matrices(new), strict=True):
        assert torch.linalg.matrix_rank(now) == rank
        # Eckart-Young: what is left out are just the smallest singular values
        lost = torch.linalg.svdvals(was)[rank:].square().sum().sqrt()
        torch.testing.assert_close(torch.linalg.norm(was - now), lost, atol=1e-9, rtol=1e-9)


def test_low_rank_leaves_vectors_and_full_rank_alone():
    for tensor, fraction in ((torch.tensor(BIAS), 0.5), (torch.tensor(MATRIX), 1)):
        new = ls.LowRank(fraction).replace(tensor, HERE)
        assert torch.equal(new, tensor)
        assert new.data_ptr() != tensor.data_ptr()


def test_an_intervention_must_do_something():
    @dataclass(frozen=True)
    class Idle(ls.Intervention):
        name: ClassVar[str] = "idle"

    with pytest.raises(InterventionError, match=r"must define replace.* or outcome"):
        register(Idle)


@pytest.mark.parametrize("do", [ls.Uniform(), ls.Mean(), ls.Noise(), ls.LowRank(0.5)], ids=repr)
def test_values_of_parameters_have_no_outcome(do):
    with pytest.raises(InterventionError, match="acts on parameters only"):
        do.outcome(torch.ones(2))
    with pytest.raises(InterventionError, match="does not act on parameters"):
        ls.Skip().replace(torch.ones(2), HERE)


@pytest.mark.parametrize(
    ("do", "text"),
    [
        (ls.Zero(), "Zero()"),
        (ls.Zero(what="contribution", steps=1), "Zero(what='contribution', steps=(1,))"),
        (ls.Scale(2.0), "Scale(2.0)"),
        (ls.Scale(0.0, what="contribution"), "Scale(0.0, what='contribution')"),
        (ls.Skip(), "Skip()"),
    ],
)
def test_what_is_printed_makes_it_again(do, text):
    assert repr(do) == text
    assert eval(text, vars(ls)) == do
    assert intervention_from_dict(do.to_dict()) == do
