"""The heart, as properties: after any program of surgeries the model and the world are bit for bit what they were."""

from __future__ import annotations

import functools
import gc
import itertools
import signal
import weakref

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from torch import nn

import layersurgery as ls
from layersurgery import testing
from layersurgery.surgery import _taps
from tests import models

FAMILIES = ["llama", "gpt2", "bert", "t5", "llava", "qwen2_vl", "plain_transformer", "plain_cnn"]
PHASES = [phase for phase in Phase if phase is not Phase.explain]  # which traces every line, and takes for ever here
RELAXED = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES)


@functools.cache
def sites_of(name):
    """Sites that overlap: whole modules, parts of them, heads, projections, and what is tied to other places."""
    model = models.built(name)
    if name == "plain_cnn":
        return ls.select(model, pattern=lambda path, module: any(True for _ in module.parameters()))
    attention = ls.select(model)
    finer = ls.Sites([attention[0].heads(1), attention[1].heads([0, 1]), attention[1].projections("o")])
    sites = attention + finer + ls.select(model, "mlp") + ls.select(model, "layer")
    return sites + ls.select(model, pattern=nn.Embedding) if name in ("gpt2", "llava", "t5") else sites


@pytest.mark.parametrize("name", FAMILIES)
@RELAXED
@given(data=st.data())
def test_any_tree_of_surgeries_leaves_no_trace(name, data):
    model = models.built(name)
    block = data.draw(testing.blocks(model, sites=sites_of(name)))
    before = models.run(model, name)
    depths = []
    with testing.restored(model):
        block.run(model, within=lambda: depths.append(len(ls.status(model))))
    assert max(depths) > 0  # something was in force in there
    assert not ls.status(model)
    assert torch.equal(models.run(model, name), before)


@pytest.mark.parametrize("name", ["llama", "llava", "t5"])
@RELAXED
@given(data=st.data())
def test_running_the_model_inside_changes_nothing_either(name, data):
    model = models.built(name)
    block = data.draw(testing.blocks(model, sites=sites_of(name)))
    with testing.restored(model):
        block.run(model, within=lambda: models.run(model, name))


class AnyOrder(RuleBasedStateMachine):
    """Attach and remove in any order: in force is always what is left, applied in order to the original."""

    family = "llava"

    def __init__(self):
        super().__init__()
        self.model = models.built(self.family)
        self.sites = list(sites_of(self.family))
        self.before = testing.Snapshot.of(self.model)
        self.original = {name: p.detach().clone() for name, p in self.slots().items()}
        self.attached = []

    def slots(self):
        return {
            (f"{path}.{name}" if path else name): parameter
            for path, module in self.model.named_modules()
            for name, parameter in module._parameters.items()
            if parameter is not None
        }

    @rule(data=st.data())
    def attach(self, data):
        surgery = data.draw(testing.surgeries(self.model, sites=self.sites))
        self.attached.append((surgery, surgery.attach(self.model)))

    @rule(data=st.data())
    def remove_one(self, data):
        if self.attached:
            _, handle = self.attached.pop(data.draw(st.integers(0, len(self.attached) - 1)))
            handle.remove()
            handle.remove()

    @rule(data=st.data())
    def fail_to_attach(self, data):
        good = data.draw(testing.surgeries(self.model, sites=self.sites))
        bad = ls.Surgery(at=ls.Site("model.no.such"), do=ls.Zero())
        with pytest.raises(ls.errors.ModelMismatchError):
            (good + bad).attach(self.model)

    @invariant()
    def in_force_is_what_is_left(self):
        expected = {name: tensor.clone() for name, tensor in self.original.items()}
        ties = {}
        for name in self.slots():
            ties.setdefault(self.original_id(name), []).append(name)
        outputs = 0
        for surgery, _ in self.attached:
            for step in surgery:
                if step.do.what == "parameters":
                    self.apply_by_hand(step, expected, ties)
                else:
                    outputs += 1
        assert outputs == sum(len(_taps.entries(module)) for module in self.model.modules())
        for name, parameter in self.slots().items():
            assert torch.equal(parameter.detach(), expected[name]), name

    def original_id(self, name):
        return self.before.facts["parameter", name, "identity"]

    def apply_by_hand(self, step, expected, ties):
        done = set()
        for piece in step.site.slices:
            name = f"{step.site.path}.{piece.parameter}"
            place = ls.interventions.Place(step.site.path, f"{piece.parameter}[{piece.dim}:{piece.ranges}]")
            entries = torch.cat([torch.arange(*ends) for ends in piece.ranges])
            for target in ties[self.original_id(name)] if step.tied == "everywhere" else [name]:
                changed = step.do.replace(expected[target].index_select(piece.dim, entries), place)
                expected[target] = expected[target].index_copy(piece.dim, entries, changed)
        if step.site.slices:
            return
        for path in step.site.modules:
            for name in sorted(expected):
                if name.startswith(path + ".") and name not in done:
                    place = ls.interventions.Place(step.site.path, name[len(step.site.path) + 1 :])
                    targets = ties[self.original_id(name)] if step.tied == "everywhere" else [name]
                    for target in targets:
                        expected[target] = step.do.replace(expected[target], place).clone()
                        done.add(target)

    def teardown(self):
        for _, handle in reversed(self.attached):
            handle.remove()
        testing.assert_restored(self.model, self.before)


class AnyOrderGPT2(AnyOrder):
    family = "gpt2"


TestAnyOrderLlava = AnyOrder.TestCase
TestAnyOrderGPT2 = AnyOrderGPT2.TestCase
TestAnyOrderLlava.settings = TestAnyOrderGPT2.settings = settings(
    max_examples=25, stateful_step_count=12, deadline=None, phases=PHASES
)


@pytest.mark.parametrize("lifted", list(itertools.permutations(range(3))))
def test_what_lies_above_acts_on_what_is_left(lifted):
    """Surgeries on one site, lifted in any order."""
    model = nn.Sequential(nn.Linear(3, 3))
    site, weight = ls.select(model, pattern="0")[0], model[0].weight.detach().clone()
    does = [ls.Scale(0.5), ls.Mean(), ls.Noise(seed=1)]
    handles = {number: ls.Surgery(at=site, do=do).attach(model) for number, do in enumerate(does)}
    for number in lifted:
        handles.pop(number).remove()
        expected = weight
        for left in handles:
            expected = does[left].replace(expected, ls.interventions.Place("0", "weight"))
        assert torch.equal(model[0].weight, expected)


class Failing(ls.Intervention):
    """Fails at the n-th tensor, with any exception."""

    name = "failing"

    def __init__(self, at, error):
        self.left, self.error = at, error

    def replace(self, tensor, place):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return torch.zeros_like(tensor)


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(), GeneratorExit(), MemoryError()])
@pytest.mark.parametrize("at", [0, 1, 5, 10])
def test_failing_while_attaching_the_nth_tensor(error, at):
    model = models.built("llama")
    surgery = ls.Surgery(at=ls.select(model), do=Failing(at, error))
    with testing.restored(model), pytest.raises(type(error)), surgery(model):
        pytest.fail("the block must not be entered")
    with testing.restored(model), ls.Surgery(at=ls.select(model)[0], do=ls.Zero())(model):
        inside = testing.Snapshot.of(model)
        with pytest.raises(type(error)):
            ls.Surgery(at=ls.select(model), do=Failing(at, error)).attach(model)
        testing.assert_restored(model, inside)  # the prior state is not the original here


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_any_exception_in_the_body(error):
    model = models.built("llama")
    with testing.restored(model), pytest.raises(error), ls.Surgery(at=ls.select(model), do=ls.Mean())(model):
        raise error


@pytest.mark.parametrize("after", range(1, 60, 5))
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_moment(after):
    """A real signal, at some moment: while attaching, in the body, or while lifting."""
    model = models.built("gpt2")
    surgery = ls.Surgery(at=ls.select(model) + ls.select(model, "mlp"), do=ls.Noise())
    surgery += ls.Surgery(at=ls.select(model, "layer"), do=ls.Skip(positions=-1))
    before = testing.Snapshot.of(model)
    old = signal.signal(signal.SIGALRM, _interrupt)
    interrupted = False
    try:
        for _ in range(5):  # an interrupt that falls into a garbage collection is swallowed by python itself
            signal.setitimer(signal.ITIMER_REAL, after * 1e-4)
            try:
                for _ in range(100):
                    with surgery(model):
                        pass
            except KeyboardInterrupt:
                interrupted = True
                break
        assert interrupted
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    gc.collect()
    testing.assert_restored(model, before)


def _interrupt(number, frame):
    raise KeyboardInterrupt


@pytest.mark.parametrize("how", ["block", "handle"])
def test_an_interrupt_at_every_step_of_applying_and_lifting(how, monkeypatch):
    """Fail at each single parameter that is put in or back; the second try of the restoration must finish the work."""
    from layersurgery.surgery import _ledger

    model = models.built("llama")
    surgery = ls.Surgery(at=ls.select(model), do=ls.Zero())
    put = _ledger.set_parameter
    slots = 12

    def once():
        if how == "block":
            with surgery(model):
                pass
        else:  # no block that is lifted for being dropped
            surgery.attach(model).remove()

    for moment in range(2 * slots):
        count = 0

        def interrupted(module, name, parameter, moment=moment):
            nonlocal count
            count += 1
            if count == moment + 1:
                raise KeyboardInterrupt
            put(module, name, parameter)

        with testing.restored(model):
            monkeypatch.setattr(_ledger, "set_parameter", interrupted)
            with pytest.raises(KeyboardInterrupt):
                once()
            monkeypatch.setattr(_ledger, "set_parameter", put)
            assert not ls.status(model)


def test_generators_closed_in_any_order():
    model = models.built("llama")
    sites = ls.select(model)

    def paused(index, do):
        with ls.Surgery(at=sites[index], do=do)(model):
            yield
            pytest.fail("never resumed")

    mean = ls.Mean().replace(model.model.layers[0].self_attn.q_proj.weight, ls.interventions.Place("", ""))
    with testing.restored(model):
        first, second, third = paused(0, ls.Zero()), paused(0, ls.Mean()), paused(1, ls.Noise())
        next(first), next(second), next(third)
        first.close()
        now = model.model.layers[0].self_attn.q_proj.weight
        assert torch.equal(now, mean)  # of the original now, no longer of zeros
        assert now.any()
        del third  # dropped, not closed
        gc.collect()
        second.close()


def test_a_block_dropped_at_entry_is_lifted():
    model = models.built("llama")
    block = ls.Surgery(at=ls.select(model), do=ls.Zero())(model)
    with testing.restored(model):
        block.__enter__()
        assert ls.status(model)
        del block
        gc.collect()


def test_original_bytes_are_never_written():
    model = models.built("llama")
    originals = {name: (p, p.data_ptr(), p._version, p.detach().clone()) for name, p in model.named_parameters()}
    surgery = ls.Surgery(at=ls.select(model) + ls.select(model, "mlp"), do=ls.Noise())
    with surgery(model):
        for p, pointer, version, values in originals.values():
            assert (p.data_ptr(), p._version) == (pointer, version)
            assert torch.equal(p, values)
    assert all(model.get_parameter(name) is p for name, (p, *_) in originals.items())


@pytest.mark.parametrize("do", [ls.Zero(), ls.Uniform(), ls.Mean()])
def test_zero_memory(do):
    model = models.built("llama")
    sites = ls.select(model) + ls.select(model, "mlp")
    with ls.Surgery(at=sites, do=do)(model):
        for site in sites:
            for parameter in model.get_submodule(site.path).parameters():
                assert parameter.untyped_storage().nbytes() <= 8


def test_nothing_grows_over_many_applications():
    model = models.built("gpt2")
    surgery = ls.Surgery(at=ls.select(model), do=ls.Zero())
    with surgery(model):
        pass
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(1000):
        with surgery(model):
            pass
    gc.collect()
    assert len(gc.get_objects()) - before < 200


def test_a_model_with_a_surgery_attached_can_be_freed():
    model = models.PlainCNN()
    handle = ls.Surgery(at=ls.select(model, pattern=nn.Conv2d), do=ls.Zero()).attach(model)
    del handle
    gone = [weakref.ref(module) for module in model.modules()]
    del model
    gc.collect()
    assert all(reference() is None for reference in gone)


def test_noise_is_the_same_on_every_entry():
    model = models.built("llama")
    surgery = ls.Surgery(at=ls.select(model), do=ls.Noise(seed=4))
    outputs = []
    for _ in range(2):
        torch.rand(3)
        with surgery(model):
            outputs.append(models.run(model, "llama"))
    with ls.Surgery(at=list(reversed(ls.select(model))), do=ls.Noise(seed=4))(model):  # another order of sites
        outputs.append(models.run(model, "llama"))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_foreign_hooks_stay():
    model = models.built("llama")
    called = []
    handle = model.model.layers[0].self_attn.register_forward_hook(lambda *arguments: called.append(1))
    try:
        with testing.restored(model), ls.Surgery(at=ls.select(model), do=ls.Zero())(model):
            models.run(model, "llama")
        assert called
    finally:
        handle.remove()


def test_inside_inference_mode():
    model = models.built("llama")
    with testing.restored(model):
        with torch.inference_mode():
            block = ls.Surgery(at=ls.select(model)[0], do=ls.Noise())
            handle = block.attach(model)
            models.run(model, "llama")
        weight = model.model.layers[0].self_attn.q_proj.weight
        assert not weight.is_inference()
        assert weight.requires_grad
        handle.remove()


def test_recurrent_layers():
    model = nn.ModuleDict({"rnn": nn.LSTM(3, 4, num_layers=2)}).eval()
    values = torch.randn(5, 1, 3)
    before = model["rnn"](values)[0]
    with testing.restored(model), ls.Surgery(at=ls.select(model, pattern="rnn"), do=ls.Zero())(model):
        assert not model["rnn"](values)[0].any()
    assert torch.equal(model["rnn"](values)[0], before)
