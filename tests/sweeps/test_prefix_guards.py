"""What cannot be shared is noticed: each model here breaks one assumption, and its variants are still right."""

from __future__ import annotations

import collections
import copy
import random
import threading
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import layersurgery as ls
from layersurgery import testing
from layersurgery.errors import ModelMismatchError
from layersurgery.sweeps._prefix import SharedPrefix
from tests import models
from tests.sweeps.test_prefix import Counting, same

WIDTH, LAYERS = 8, 4


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.mixer = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Linear(WIDTH, WIDTH)

    def forward(self, states, *others):
        states = states + self.mixer(states).tanh()
        return states + self.mlp(states).tanh()


class Tower(nn.Module):
    """A model of a few layers; what is wrong with it is in its layers, or in how it calls them."""

    def __init__(self, layer=Layer, layers=LAYERS):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embed = nn.Linear(WIDTH, WIDTH)
            self.layers = nn.ModuleList(layer() for _ in range(layers))
            self.head = nn.Linear(WIDTH, 3)

    def forward(self, states):
        states = self.embed(states)
        for layer in self.layers:
            states = layer(states)
        return self.head(states)


INPUTS = torch.linspace(-1, 1, 2 * 3 * WIDTH).reshape(2, 3, WIDTH)


@torch.no_grad()
def run(model):
    return model(INPUTS.clone())


def mixers(model):
    return ls.select(model, pattern="layers.*.mixer")


def compared(model, score=run, batches=1, copied=True):
    """Sweeps a copy of the model by full forwards, and the model with a shared prefix; gives that, and layers run."""
    model.eval()
    other = copy.deepcopy(model) if copied else model
    sites = mixers(model)
    prefix = SharedPrefix(model, sites)
    kind = type(model.layers[0])
    for _ in range(batches):
        with prefix.recording():
            base = score(model)
        assert same(base, score(other))
        ran = []
        for site in sites:
            cut = ls.Surgery(at=site, do=ls.Zero())
            with cut(model), Counting(kind) as counting, prefix.replaying(site):
                shared = score(model)
            ran.append(counting.calls)
            with cut(other):
                full = score(other)
            assert same(shared, full), (site, prefix.notes)
    assert not any("forward" in vars(module) for module in model.modules())
    return prefix, ran


IN_FULL, SHARED = [4, 4, 4, 4], [4, 3, 2, 1]


def test_nothing_wrong():
    prefix, ran = compared(Tower())
    assert ran == SHARED
    assert prefix.notes == []


# --- modules that do more than give an output ------------------------------------------------------------------------


class Counts(Layer):
    calls = 0

    def forward(self, states):
        self.calls += 1
        return super().forward(states) * (1 + 0.1 * self.calls)


class CountsInABuffer(Layer):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, states):
        self.count += 1
        return super().forward(states) * (1 + 0.1 * self.count)


class CountsInAList(Layer):
    def __init__(self):
        super().__init__()
        self.seen = []
        self.box = SimpleNamespace(seen=0)

    def forward(self, states):
        self.seen.append(1)
        return super().forward(states) * len(self.seen)


class CountsInAnObject(CountsInAList):
    def forward(self, states):
        self.mixer.tally = getattr(self.mixer, "tally", None) or {}
        self.mixer.tally[len(self.mixer.tally)] = 1
        return Layer.forward(self, states) * len(self.mixer.tally)


class KeepsATensor(Layer):
    """Gives what it was given last time, scaled."""

    last = None

    def forward(self, states):
        before, self.last = self.last, states
        return super().forward(states if before is None else states + before.mean())


@pytest.mark.parametrize("layer", [Counts, CountsInABuffer, CountsInAList, CountsInAnObject, KeepsATensor])
def test_state(layer):
    prefix, ran = compared(Tower(layer), batches=2)
    assert ran == IN_FULL
    assert "its state changes in each call: layers.2 and 2 more" in prefix.notes[0]


class Draws(Layer):
    def forward(self, states):
        return super().forward(states) + torch.rand(states.shape)


class DrawsInPython(Layer):
    def forward(self, states):
        return super().forward(states) + random.random() + np.random.rand()  # noqa: NPY002


@pytest.mark.parametrize("layer", [Draws, DrawsInPython])
def test_chance(layer):
    def score(model):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            random.seed(0)
            np.random.seed(0)  # noqa: NPY002
            return run(model)

    prefix, ran = compared(Tower(layer), score)
    assert ran == IN_FULL
    assert "it draws random numbers" in prefix.notes[0]


LATE = {"drawing": False}


class DrawsLate(Layer):
    def forward(self, states):
        output = super().forward(states)
        return output + torch.rand(states.shape) if LATE["drawing"] else output


def test_chance_that_comes_late():
    """Single calls are looked at only where random numbers were drawn before."""

    def score(model):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return run(model)

    model = Tower()
    model.layers[2] = DrawsLate()
    model.eval()
    sites = mixers(model)
    prefix = SharedPrefix(model, sites)
    counts = []
    for drawing in (False, True, True):
        LATE["drawing"] = drawing
        with prefix.recording():
            score(model)
        with ls.Surgery(at=sites[3], do=ls.Zero())(model):
            full = score(model)
            with Counting(Layer) as counting, prefix.replaying(sites[3]):
                assert same(score(model), full)
        counts.append(counting.calls)
    LATE["drawing"] = False
    assert counts == [1, LAYERS, 2]  # all, and then all that does not end before random numbers are drawn
    assert any("it draws random numbers" in note for note in prefix.notes)


class WritesIntoItsInput(Layer):
    def forward(self, states):
        return states.add_(super().forward(states))


def test_writing_into_what_is_given():
    prefix, ran = compared(Tower(WritesIntoItsInput), batches=2)
    assert ran == IN_FULL
    assert any("it writes into what it is given: layers." in note for note in prefix.notes)


class WritesAfterEachLayer(Tower):
    def forward(self, states):
        states = self.embed(states)
        for layer in self.layers:
            states = layer(states)
            states += 1
        return self.head(states)


def test_writing_into_what_was_given():
    prefix, ran = compared(WritesAfterEachLayer())
    assert ran == IN_FULL
    assert "others write into what it takes or gives" in prefix.notes[0]
    prefix, ran = compared(WritesAfterEachLayer(), batches=2)
    assert ran == SHARED  # from copies


class Same(Layer):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout()

    def forward(self, states):
        return self.drop(super().forward(states))


class WritesIntoAnAlias(Tower):
    """What the dropout gives is what it was given, which is looked at again."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout()

    def forward(self, states):
        states = self.embed(states)
        other = self.drop(states)
        other += 1
        for layer in self.layers:
            states = layer(states)
        return self.head(states)


def test_writing_into_an_alias():
    prefix, _ = compared(WritesIntoAnAlias(), batches=3)
    assert any("which it was given itself: drop" in note for note in prefix.notes)


class WritesLater(Tower):
    """Only when something is changed above does it write into what came out below."""

    def forward(self, states):
        kept = states = self.embed(states)
        for layer in self.layers:
            states = layer(states)
        if not self.layers[3].mixer.weight.any():
            kept.zero_()
        return self.head(states + kept)


def test_a_variant_that_writes_into_the_record():
    model = Tower.__new__(WritesLater)
    Tower.__init__(model)
    model.eval()
    sites = mixers(model)
    prefix = SharedPrefix(model, sites)
    with prefix.recording():
        run(model)
    for site in (sites[3], sites[2], sites[3]):
        with ls.Surgery(at=site, do=ls.Zero())(model):
            full = run(model)
            with prefix.replaying(site):
                assert same(run(model), full)


# --- things that are handed from layer to layer ----------------------------------------------------------------------


class Passes(Layer):
    """Puts what it computes into a list and a dictionary that it is given, and reads what others put there."""

    def forward(self, states, memory):
        states = super().forward(states)
        memory.states.append(states)
        memory.sums[len(memory.states)] = (states.sum(), [len(memory.sums)])
        memory.last = states
        return states + sum(one.mean() for one in memory.states) + memory.sums[1][0], memory


class Memory:
    def __init__(self):
        self.states = []
        self.sums = {}
        self.last = None


class WithMemory(Tower):
    def __init__(self):
        super().__init__(Passes)

    def forward(self, states):
        memory = Memory()
        states = self.embed(states)
        for layer in self.layers:
            states, other = layer(states, memory)
            assert other is memory
        sums = [pair[0] for pair in memory.sums.values()]
        counts = [pair[1][0] for pair in memory.sums.values()]
        return {"head": self.head(states), "states": memory.states, "sums": sums, "counts": torch.tensor(counts)}


def test_what_is_put_into_a_cache_is_put_there_again():
    prefix, ran = compared(WithMemory(), batches=2)
    assert ran == SHARED
    assert prefix.notes == []


class Spreads(Layer):
    """Mixes positions along the edges of a graph."""

    def forward(self, states, edges):
        return super().forward(torch.stack([torch.sparse.mm(edges, one) for one in states]))


class OnAGraph(Tower):
    def __init__(self):
        super().__init__(Spreads)

    def forward(self, states):
        edges = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]]).to_sparse()
        states = self.embed(states)
        for layer in self.layers:
            states = layer(states, edges)
        return self.head(states)


def test_sparse_tensors_are_handed_on():
    prefix, ran = compared(OnAGraph(), batches=2)
    assert ran in (SHARED, IN_FULL)
    assert bool(prefix.notes) == (ran == IN_FULL)


class Queues(Layer):
    def forward(self, states, queue):
        queue.append(states.mean())
        return super().forward(states) + queue[0]


class WithAQueue(Tower):
    def __init__(self):
        super().__init__(Queues)

    def forward(self, states):
        queue = collections.deque()
        states = self.embed(states)
        for layer in self.layers:
            states = layer(states, queue)
        return self.head(states)


def test_things_that_cannot_be_looked_into():
    prefix, ran = compared(WithAQueue())
    assert ran == IN_FULL
    assert "it is given a deque" in prefix.notes[0]


class GivesABox(Layer):
    def forward(self, states):
        return {"states": super().forward(states), "more": [states]}


class TakesFromTheBox(Tower):
    """Changes the containers that its layers give, as transformers does with a vision tower's output."""

    def __init__(self):
        super().__init__(GivesABox)

    def forward(self, states):
        states = self.embed(states)
        for layer in self.layers:
            box = layer(states)
            states = box.pop("states") + box["more"].pop()
            box["more"].append(None)
        return self.head(states)


def test_containers_are_given_out_fresh():
    prefix, ran = compared(TakesFromTheBox(), batches=2)
    assert ran == SHARED
    assert prefix.notes == []


# --- models whose own code does something else -----------------------------------------------------------------------


class LooksAhead(Tower):
    """Uses a later layer's weights before that layer runs."""

    def forward(self, states):
        states = self.embed(states) * (1 + self.layers[2].mixer.weight.mean())
        for layer in self.layers:
            states = layer(states)
        return self.head(states)


def in_inference_mode(model):
    with torch.inference_mode():
        return model(INPUTS)


@pytest.mark.parametrize("score", [run, in_inference_mode])
def test_weights_that_are_used_before_their_module_runs(score):
    prefix, ran = compared(LooksAhead(), score)
    assert ran == [4, 3, 4, 1]
    assert "given other things" in prefix.notes[0]


class Twice(Tower):
    """A part that holds a layer ends before that layer runs, and has made use of its weights."""

    def __init__(self):
        super().__init__()
        self.part = Part(self.layers[2])

    def forward(self, states):
        states = self.part(self.embed(states))
        for layer in self.layers:
            states = layer(states)
        return self.head(states)


class Part(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.own = nn.Linear(WIDTH, WIDTH)

    def forward(self, states):
        return self.own(states) * (1 + self.layer.mixer.weight.mean())


@pytest.mark.parametrize("score", [run, in_inference_mode])
def test_parts_that_hold_what_is_changed_and_end_before(score):
    _, ran = compared(Twice(), score)
    assert ran == [4, 3, 4, 1]


class NotAlways(Layer):
    """Changes its state only in variants: where a later layer gave something else."""

    seen = 0.0

    def forward(self, states):
        return super().forward(states) * (1 + self.seen)


class Remembers(Tower):
    def __init__(self):
        super().__init__(NotAlways)

    def forward(self, states):
        states = self.embed(states)
        for layer in self.layers:
            states = layer(states)
        self.layers[0].seen = round(float(states.mean()), 4)
        return self.head(states)


def test_state_that_depends_on_what_was_changed():
    _, ran = compared(Remembers(), batches=3)
    assert ran[-1] > 1


def test_a_part_that_is_taken_out_between_base_and_variant():
    model = Tower().eval()
    sites = mixers(model)
    prefix = SharedPrefix(model, sites)
    with prefix.recording():
        run(model)
    model.layers[1].mlp = nn.Identity()
    with ls.Surgery(at=sites[3], do=ls.Zero())(model):
        full = run(model)
        with prefix.replaying(sites[3]):
            assert same(run(model), full)


def test_another_order():
    order = [0, 1, 2, 3]

    class Shuffled(Tower):
        def forward(self, states):
            states = self.embed(states)
            for number in order:
                states = self.layers[number](states)
            return self.head(states)

    model = Shuffled().eval()
    sites = mixers(model)
    prefix = SharedPrefix(model, sites)
    with prefix.recording():
        run(model)
    order[:] = [1, 0, 2, 3]
    with ls.Surgery(at=sites[3], do=ls.Zero())(model):
        full = run(model)
        with prefix.replaying(sites[3]):
            assert same(run(model), full)
    assert "another order" in prefix.notes[0]


def test_a_module_that_runs_several_times():
    class Loop(Tower):
        def forward(self, states):
            states = self.embed(states)
            for _ in range(3):
                for layer in self.layers[:2]:
                    states = layer(states)
            for layer in self.layers[2:]:
                states = self.layers[0](layer(states))
            return self.head(states)

    prefix, ran = compared(Loop())
    assert ran == [10, 9, 4, 2]
    assert prefix.notes == []


def test_a_site_that_takes_no_part():
    class Short(Tower):
        def forward(self, states):
            return self.head(self.layers[0](self.embed(states)))

    _, ran = compared(Short())
    assert ran[0] == 1


# --- scorers ---------------------------------------------------------------------------------------------------------


def test_several_calls_of_the_model():
    @torch.no_grad()
    def score(model):
        return [model(INPUTS), model(2 * INPUTS), model.head(model.embed(INPUTS))]

    prefix, ran = compared(Tower(), score)
    assert ran == [8, 6, 4, 2]
    assert prefix.notes == []


def test_a_scorer_that_goes_on_from_what_the_model_gave():
    @torch.no_grad()
    def score(model):
        first = model(INPUTS)
        second = model(INPUTS + first.mean())
        return [first, second, model(INPUTS)]

    prefix, ran = compared(Tower(), score)
    assert ran == [12, 11, 10, 9]
    assert "other inputs than for the unmodified model" in prefix.notes[0]


def test_a_scorer_that_writes_into_its_inputs():
    shared = INPUTS.clone()

    @torch.no_grad()
    def score(model):
        found = model(shared)
        shared.copy_(INPUTS + found.mean())
        second = model(shared)
        shared.copy_(INPUTS)
        return [found, second]

    compared(Tower(), score)


@pytest.mark.parametrize("change", ["dtype", "stride", "shape", "nan"])
def test_inputs_that_differ(change):
    model = Tower().eval()
    sites = mixers(model)
    prefix = SharedPrefix(model, sites)
    inputs = INPUTS.clone()
    if change == "nan":
        inputs[0, 0, 0] = torch.nan
    with torch.no_grad(), prefix.recording():
        model(inputs)
    other = {
        "dtype": inputs.double(),
        "stride": inputs.transpose(0, 1).contiguous().transpose(0, 1),
        "shape": inputs[:1],
        "nan": inputs.clone(),
    }[change]
    fails = pytest.raises(RuntimeError, match="dtype") if change == "dtype" else nullcontext()
    cut = ls.Surgery(at=sites[3], do=ls.Zero())
    with torch.no_grad(), cut(model), fails, Counting(Layer) as counting, prefix.replaying(sites[3]):
        model(other)
    assert counting.calls == (4 if change != "dtype" else 0)
    assert "other inputs" in prefix.notes[0]


def test_gradients():
    def score(model):
        loss = model(INPUTS).sum()
        loss.backward()
        gradient = model.embed.weight.grad.clone()
        model.zero_grad()
        return [loss.detach(), gradient]

    prefix, ran = compared(Tower(), score)
    assert ran == IN_FULL
    assert "gradients are recorded (score under torch.no_grad())" in prefix.notes[0]


def test_other_settings_than_in_the_base():
    settings = [lambda: torch.autocast("cpu", torch.bfloat16), torch.inference_mode, torch.no_grad]
    model = Tower().eval()
    sites = mixers(model)
    for number, setting in enumerate(settings):
        prefix = SharedPrefix(model, sites)
        with torch.no_grad(), setting(), prefix.recording():
            model(INPUTS)
        for other in settings[:number] + settings[number + 1 :]:
            with torch.no_grad(), other(), ls.Surgery(at=sites[3], do=ls.Zero())(model):
                full = model(INPUTS)
                with Counting(Layer) as counting, prefix.replaying(sites[3]):
                    assert same(model(INPUTS), full)
            assert counting.calls == 4
        with torch.no_grad(), setting(), ls.Surgery(at=sites[3], do=ls.Zero())(model):
            full = model(INPUTS)
            with Counting(Layer) as counting, prefix.replaying(sites[3]):
                assert same(model(INPUTS), full)
        assert counting.calls == 1


@pytest.mark.parametrize("tower", [Tower, WithMemory, WritesAfterEachLayer, WritesIntoAnAlias])
def test_inference_mode(tower):
    def score(model):
        with torch.inference_mode():
            return model(INPUTS)

    _, ran = compared(tower(), score, batches=2)
    assert ran[:2] != [4, 4]


@pytest.mark.parametrize(
    ("tower", "why"),
    [(lambda: Tower(WritesIntoItsInput), "writes into what it is given"), (TakesFromTheBox, "it was given itself")],
)
def test_writes_that_inference_mode_does_not_count(tower, why):
    def score(model):
        with torch.inference_mode():
            return model(INPUTS)

    prefix, ran = compared(tower(), score)
    assert ran == IN_FULL
    assert why in prefix.notes[0]


def test_several_threads():
    @torch.no_grad()
    def score(model):
        found = []
        thread = threading.Thread(target=lambda: found.append(run(model)))
        thread.start()
        thread.join()
        return [*found, run(model)]

    prefix, ran = compared(Tower(), score)
    assert ran == [8, 8, 8, 8]
    assert "several threads" in prefix.notes[0]


def test_what_is_not_finite_is_multiplied_with_zeros():
    def score(model):
        states = INPUTS.clone()
        states[0, 0, 0], states[1, 1, 1] = torch.inf, torch.nan
        with torch.no_grad():
            return model(states)

    compared(Tower(), score)


def test_matrices_of_zeros_are_not_multiplied_with():
    model = Tower().eval()
    site = mixers(model)[3]
    prefix = SharedPrefix(model, [site])
    with prefix.recording():
        run(model)
    for do, expected in ((ls.Zero(), 2), (ls.Uniform(), 3), (ls.Scale(0.0), 2), (ls.Noise(), 3)):
        with ls.Surgery(at=site, do=do)(model):
            full = run(model)
            with Counting(nn.Linear) as counting, prefix.replaying(site):
                assert same(run(model), full)
        assert counting.calls in (expected, 3) if isinstance(do, ls.Scale) else counting.calls == expected


# --- others on the model -----------------------------------------------------------------------------------------


def test_hooks_of_others_run_as_often_as_ever():
    model = Tower().eval()
    ran = []
    model.layers[1].mlp.register_forward_hook(lambda *_: ran.append("inside"))
    model.layers[0].register_forward_hook(lambda module, inputs, output: ran.append("on") or output + 1)
    model.embed.register_forward_pre_hook(lambda *_: ran.append("before"))
    sites = mixers(model)
    prefix = SharedPrefix(model, sites)
    with prefix.recording():
        run(model)
    expected = list(ran)
    for site in sites:
        with ls.Surgery(at=site, do=ls.Zero())(model):
            ran.clear()
            full = run(model)
            assert ran == expected
            ran.clear()
            with prefix.replaying(site):
                assert same(run(model), full)
            assert ran == expected
    assert "there are hooks inside it: layers.1" in prefix.notes[0]


def test_what_others_do_between_base_and_variant():
    model = Tower().eval()
    sites = mixers(model)
    prefix = SharedPrefix(model, sites)
    with prefix.recording():
        run(model)

    def in_full():
        with ls.Surgery(at=sites[3], do=ls.Zero())(model):
            full = run(model)
            with Counting(Layer) as counting, prefix.replaying(sites[3]):
                assert same(run(model), full)
        return counting.calls

    assert in_full() == 1
    handle = model.layers[1].mlp.register_forward_hook(lambda module, inputs, output: 2 * output)
    assert in_full() == 4 - 1
    handle.remove()
    assert in_full() == 1
    with torch.no_grad():
        model.layers[2].mlp.bias += 1
    assert in_full() == 4 - 2
    model.layers[1].factor = 3
    assert in_full() == 4 - 1
    del model.layers[1].factor
    model.layers[0].forward = lambda states: states
    assert in_full() == 4 - 1  # three run their own forward


def _written(layer):
    with torch.no_grad():
        layer.mlp.bias += 1


CHANGES = {
    "weights": _written,
    "other weights": lambda layer: setattr(layer.mlp, "bias", nn.Parameter(torch.ones(WIDTH))),
    "a hook": lambda layer: layer.mlp.register_forward_hook(lambda module, inputs, output: 2 * output),
    "a forward": lambda layer: setattr(layer, "forward", lambda states: states + layer.mlp(states)),
    "an attribute": lambda layer: setattr(layer, "factor", 3),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_others_do_anywhere_in_a_larger_model(change):
    """Only what a variant rests on is looked at: all that begins before it."""
    many = 24
    for number in (0, 5, 20, many - 1):
        model = Tower(layers=many).eval()
        sites = mixers(model)
        prefix = SharedPrefix(model, sites)
        with prefix.recording():
            run(model)
        CHANGES[change](model.layers[number])
        for place, site in enumerate(sites):
            with ls.Surgery(at=site, do=ls.Zero())(model):
                full = run(model)
                with Counting(Layer) as counting, prefix.replaying(site):
                    assert same(run(model), full)
            uncounted = int(change == "a forward")
            assert counting.calls == many - min(place, number) - uncounted


def test_a_forward_put_in_place_of_a_modules_own():
    model = Tower().eval()
    calls = []

    def patched(states):
        calls.append(1)
        return Layer.forward(model.layers[1], states)

    model.layers[1].forward = patched
    sites = mixers(model)
    prefix = SharedPrefix(model, sites)
    with prefix.recording():
        run(model)
    for site in sites:
        with ls.Surgery(at=site, do=ls.Zero())(model):
            full = run(model)
            calls.clear()
            with prefix.replaying(site):
                assert same(run(model), full)
            assert calls == [1]
    assert model.layers[1].forward is patched
    assert "a forward was put in place of its own: layers.1" in prefix.notes[0]


def test_hooks_on_all_modules():
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        prefix, ran = compared(Tower())
    finally:
        handle.remove()
    assert ran == IN_FULL
    assert "hooks on all modules" in prefix.notes[0]


def test_contributions_of_several_sites_whichever_is_named():
    model = Tower().eval()
    sites = mixers(model)
    zero = ls.Zero(what="contribution")
    prefix = SharedPrefix(model, sites)
    for around in (nullcontext(), ls.Surgery(at=sites[0], do=ls.Scale(0.5, what="contribution"))(model)):
        with around:
            with prefix.recording():
                run(model)
            with ls.Surgery(at=[sites[3], sites[0]], do=zero)(model):
                full = run(model)
                with prefix.replaying(sites[3]):
                    assert same(run(model), full)


def test_a_surgery_in_force_all_the_time():
    model = Tower().eval()
    sites = mixers(model)
    for do in (ls.Uniform(), ls.Zero(what="contribution")):
        with ls.Surgery(at=sites[1], do=do)(model):
            prefix, ran = compared(model, copied=False)
        assert ran == SHARED
        assert prefix.notes == []


def test_compiled_models():
    model = Tower().eval()
    whole = torch.compile(model, backend="eager")
    try:
        with torch.no_grad():
            whole(INPUTS)
        for one in (model, whole):
            prefix = SharedPrefix(one, mixers(model))
            with prefix.recording():
                run(one)
            assert "since it is compiled" in prefix.notes[0]
            assert prefix.nbytes == 0
    finally:
        torch._dynamo.reset()


def test_scripted_parts():
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), torch.jit.script(nn.Linear(WIDTH, 2))).eval()
    prefix = SharedPrefix(model, [ls.Site("0")])
    with prefix.recording():
        run(model)
    assert "TorchScript" in prefix.notes[0]
    assert prefix.nbytes == 0


def test_a_site_that_is_not_in_the_model():
    with pytest.raises(ModelMismatchError, match=r"has no module 'layers\.9\.mixer'"):
        SharedPrefix(Tower(), [ls.Site("layers.9.mixer")])


def test_offloaded_weights_of_what_is_left_out_stay_where_they_are():
    from accelerate import cpu_offload

    model = Tower().eval()
    base = run(model)
    with torch.no_grad():
        cpu_offload(model, execution_device="cpu")
    assert torch.equal(run(model), base)
    sites = mixers(model)
    prefix = SharedPrefix(model, sites)
    with prefix.recording():
        run(model)
    brought = []
    usual = model.layers[0].mixer._hf_hook.pre_forward
    model.layers[0].mixer._hf_hook.pre_forward = lambda *arguments, **keywords: (
        brought.append(1) or usual(*arguments, **keywords)
    )
    for site, expected in zip(sites, (1, 0, 0, 0), strict=True):
        with ls.Surgery(at=site, do=ls.Zero())(model):
            full = run(model)
            brought.clear()
            with prefix.replaying(site):
                assert same(run(model), full)
        assert len(brought) == expected
    assert prefix.notes == []


def test_models_that_nnsight_has_wrapped(monkeypatch):
    import nnsight

    products, linear = [], nn.functional.linear
    monkeypatch.setattr(nn.functional, "linear", lambda *arguments: products.append(1) or linear(*arguments))

    model = Tower().eval()
    wrapped = nnsight.NNsight(model)
    sites = mixers(model)
    prefix = SharedPrefix(model, sites)

    def score():
        with torch.no_grad(), wrapped.trace(INPUTS.clone()):
            inside = wrapped.layers[1].output.save()
            found = wrapped.output.save()
        return [inside, found, run(model)]

    with prefix.recording():
        base = score()
    assert same(base, score())
    for number, site in enumerate(sites):
        with ls.Surgery(at=site, do=ls.Zero())(model):
            full = score()
            products.clear()
            with prefix.replaying(site):
                assert same(score(), full)
        # two in each layer and two around them; in the trace without that of zeros, too
        assert len(products) == 9 + 2 * (4 - number)
    assert prefix.notes == ["traces of nnsight run in full"]
    assert same(base, score())


def test_what_transformers_captures_is_complete():
    model = models.llama().eval()
    sites = ls.select(model)
    prefix = SharedPrefix(model, sites)

    @torch.no_grad()
    def everything(model):
        found = model(models.tokens(), output_hidden_states=True, use_cache=True)
        assert len(found.hidden_states) == 4
        return dict(found)

    with torch.no_grad():
        model.set_attn_implementation("eager")
    for capture in (everything, lambda model: dict(torch.no_grad()(model)(models.tokens(), output_attentions=True))):
        with prefix.recording():
            capture(model)
        for site in sites:
            with ls.Surgery(at=site, do=ls.Zero())(model):
                full = capture(model)
                with testing.restored(model), prefix.replaying(site):
                    assert same(capture(model), full)
