"""A shared prefix: bit for bit what full forwards give, with less work, and nothing of the model changed."""

from __future__ import annotations

import copy
import inspect
import sys
import weakref
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import layersurgery as ls
from layersurgery import testing
from layersurgery.scoring import ChoiceScorer, GenerationScorer
from layersurgery.sweeps._prefix import SharedPrefix
from tests import models
from tests.scoring import tiny


class Work(TorchDispatchMode):
    """Counts operations of torch."""

    def __init__(self):
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.operations += 1
        return function(*arguments, **(keywords or {}))


def tensors(value):
    """All tensors in what a model gives, its KV cache included."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [found for one in value.values() for found in tensors(one)]
    if isinstance(value, list | tuple):
        return [found for one in value for found in tensors(one)]
    if isinstance(getattr(value, "layers", None), list):
        return [found for layer in value.layers for found in tensors(dict(sorted(vars(layer).items())))]
    return []


def same(one, other):
    """Equal bit for bit, what is not a number included."""
    one, other = tensors(one), tensors(other)
    return len(one) == len(other) > 0 and all(
        a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan()) and _equal_numbers(a, b)
        for a, b in zip(one, other, strict=True)
    )


def _equal_numbers(a, b):
    return torch.equal(a.nan_to_num(), b.nan_to_num()) if a.is_floating_point() else torch.equal(a, b)


def check(model, run, sites, surgery=None, prefix=None, batches=2, snapshot=True):
    """Base and variants by full forwards and by a shared prefix; gives the share of operations that are left."""
    prefix = SharedPrefix(model, sites) if prefix is None else prefix
    surgery = surgery or (lambda site: ls.Surgery(at=site, do=ls.Zero()))
    operations = [0, 0]
    for _ in range(batches):
        full = run(model)
        with testing.restored(model) if snapshot else nullcontext():
            with prefix.recording():
                base = run(model)
            assert same(base, full)
            prefix.prepare(map(surgery, sites))
            for site in sites:
                with prefix.in_force(surgery(site)) as applied:
                    full = run(model)
                    with prefix.replaying(site, applied=applied):
                        shared = run(model)
                assert same(shared, full), site
    for site in sites:
        with surgery(site)(model):
            with Work() as work:
                run(model)
            operations[0] += work.operations
            with prefix.replaying(site), Work() as work:
                run(model)
            operations[1] += work.operations
    return operations[1] / operations[0]


@pytest.fixture(params=["llama", "gpt2", "bert", "vit", "t5", "llava", "qwen2_vl", "internvl"])
def name(request):
    return request.param


@pytest.mark.parametrize("role", ["attention", "mlp", "norm", "layer"])
def test_roles(name, role):
    model = models.built(name)
    sites = ls.select(model, role, tower="decoder" if name == "t5" else None)
    prefix = SharedPrefix(model, sites)
    left = check(model, lambda model: models.run(model, name), sites, prefix=prefix)
    assert left < 0.85
    assert prefix.notes == []


def test_all_that_comes_before_is_left_out():
    model = models.fresh("llava")
    sites = ls.select(model)
    prefix = SharedPrefix(model, sites)
    ran = []
    handles = [
        model.get_submodule(path).register_forward_hook(lambda *_, path=path: ran.append(path))
        for path in ("model.vision_tower", "model.multi_modal_projector", "model.language_model.layers.1.mlp")
    ]
    try:
        with prefix.recording():
            models.run(model, "llava")
    finally:
        for handle in handles:
            handle.remove()
    assert ran == ["model.vision_tower", "model.multi_modal_projector", "model.language_model.layers.1.mlp"]
    with prefix.recording():
        models.run(model, "llava")
    for site, expected in zip(sites, (3, 2, 1), strict=True):
        with ls.Surgery(at=site, do=ls.Zero())(model), Counting(nn.Linear) as counting, prefix.replaying(site):
            models.run(model, "llava")
        # 7 matrices in each layer from the site's on, without the 4 of zeros, and the head
        assert counting.calls == 7 * expected - 4 + 1, site


def test_a_layer_that_runs_in_one_piece():
    """torch's fast path calls nothing inside a layer: the site never begins, and its layer counts."""
    model = models.fresh("plain_transformer")
    sites = ls.select(model)
    prefix = SharedPrefix(model, sites)
    check(model, lambda model: models.run(model, "plain_transformer"), sites, prefix=prefix)
    for number, site in enumerate(sites):
        cut = ls.Surgery(at=site, do=ls.Zero())
        with cut(model), Counting(nn.TransformerEncoderLayer) as counting, prefix.replaying(site):
            models.run(model, "plain_transformer")
        assert counting.calls == 3 - number
    assert prefix.notes == []


class Counting:
    """Counts calls of all modules of a class, however they are called."""

    def __init__(self, kind):
        self.kind, self.calls, self.forward = kind, 0, kind.forward

    def __enter__(self):
        def forward(module, *arguments, **keywords):
            self.calls += 1
            return self.forward(module, *arguments, **keywords)

        self.kind.forward = forward
        return self

    def __exit__(self, *_):
        self.kind.forward = self.forward


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_modules_as_sites(data):
    name = data.draw(st.sampled_from(["llama", "t5", "llava", "plain_transformer", "plain_cnn", "gpt2"]))
    model = models.built(name)
    found = ls.select(model, pattern=lambda path, module: any(True for _ in module.parameters()) and path != "")
    sites = data.draw(st.lists(st.sampled_from(list(found)), min_size=1, max_size=5, unique=True))
    do = data.draw(st.sampled_from([ls.Zero(), ls.Uniform(), ls.Noise(), ls.Scale(0.5)]))
    tied = data.draw(st.sampled_from(["site", "everywhere"]))
    check(
        model,
        lambda model: models.run(model, name),
        sites,
        lambda site: ls.Surgery(at=site, do=do, tied=tied),
        batches=1,
    )


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_surgery(data):
    """Several steps at once, contributions, skipped layers: what has changed is found, whatever site is named."""
    name = data.draw(st.sampled_from(["llama", "t5", "llava"]))
    model = models.built(name)
    prefix = SharedPrefix(model, ls.select(model, tower="decoder" if name == "t5" else None))
    cut = data.draw(testing.surgeries(model))
    run = models.run
    with prefix.recording():
        run(model, name)
    with cut(model):
        full = run(model, name)
        with prefix.replaying(cut.sites[0]):
            shared = run(model, name)
    assert same(shared, full)


@pytest.mark.parametrize(
    "do",
    [
        ls.Zero(what="contribution"),
        ls.Zero(what="contribution", positions=[0, -1]),
        ls.Scale(0.5, what="contribution", steps=[0]),
    ],
    ids=str,
)
def test_contributions(do):
    model = models.built("llama")
    assert check(model, lambda model: models.run(model, "llama"), ls.select(model), _of(do)) < 0.8


def test_skipped_layers():
    model = models.built("llama")
    assert check(model, lambda model: models.run(model, "llama"), ls.select(model, "layer"), _of(ls.Skip())) < 0.8


def _of(do):
    return lambda site: ls.Surgery(at=site, do=do)


def test_heads():
    model = models.built("llama")
    sites = [site.heads([0]) for site in ls.select(model)]
    assert check(model, lambda model: models.run(model, "llama"), sites) < 0.8


# --- the scorers -------------------------------------------------------------------------------------------------


def scored(model, scorer, samples, snapshot=True):
    sites = ls.select(model, tower="decoder" if model.config.is_encoder_decoder else None)
    prefix = SharedPrefix(model, sites)

    def run(model):
        scores = scorer(model, samples)
        found = {"correct": torch.from_numpy(np.asarray(scores.correct))}
        if scores.margin is not None:
            found["margin"] = torch.from_numpy(np.asarray(scores.margin))
        if scores.text is not None:
            found["text"] = torch.tensor([float(hash(text) % 2**20) for text in scores.text])
        return found

    return check(model, run, sites, prefix=prefix, snapshot=snapshot), prefix


def pictures(number):
    return (tiny.picture(number),)


@pytest.mark.parametrize("batch_size", [2, 16])
def test_choices_of_a_text_model(batch_size):
    model = tiny.llama()
    left, prefix = scored(model, ChoiceScorer(tiny.tokenizer(), batch_size=batch_size), tiny.samples(5))
    assert left < 0.8
    assert prefix.notes == []


@pytest.mark.parametrize(
    ("model", "processor"),
    [
        (tiny.llava, tiny.llava_processor),
        (tiny.llava_next, tiny.llava_next_processor),
        (tiny.qwen2_vl, tiny.qwen2_vl_processor),
    ],
)
def test_choices_of_vision_language_models(model, processor):
    scorer = ChoiceScorer(processor(), batch_size=2)
    left, prefix = scored(model(), scorer, tiny.samples(4, pictures))
    assert left < 0.7
    assert prefix.notes == []


def test_choices_of_an_encoder_decoder():
    left, prefix = scored(tiny.t5(), ChoiceScorer(tiny.tokenizer(closing=True)), tiny.samples(4))
    assert left < 0.6
    assert prefix.notes == []


@pytest.mark.parametrize("built", [tiny.llama, tiny.gpt2, tiny.mamba])
def test_generation_shares_the_reading_of_the_prompt(built):
    scorer = GenerationScorer(tiny.tokenizer(), max_new_tokens=3)
    left, prefix = scored(built(), scorer, tiny.samples(3))
    assert left < 1
    assert any("later steps of a generation" in note for note in prefix.notes)


def test_generation_of_a_vision_language_model():
    left, _ = scored(
        tiny.llava(), GenerationScorer(tiny.llava_processor(), max_new_tokens=3), tiny.samples(3, pictures)
    )
    assert left < 0.9


def test_the_embedded_model():
    from layersurgery import embedded

    model, processor = embedded.load("planted")
    samples = embedded.make_samples("digit_even", "test", 4)
    left, prefix = scored(model, ChoiceScorer(processor), samples)
    assert left < 0.7
    assert prefix.notes == []


# --- what is kept, and what is left behind -------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 32), (8, 64)])
def test_what_is_kept_is_one_residual_for_each_layer(shape):
    layers, width = 6, 64
    model = models.llama(num_hidden_layers=layers, hidden_size=width, num_attention_heads=4).eval()
    prefix = SharedPrefix(model, ls.select(model))
    tokens = models.tokens(*shape)
    with torch.no_grad(), prefix.recording():
        model(tokens, use_cache=False)
    residual = 4 * width * shape[0] * shape[1]
    kept = layers - (residual >= 1 << 17)  # of what enters the first, if it is large, only what tells it from others
    assert kept * residual <= prefix.nbytes <= 1.05 * kept * residual
    prefix.forget()
    assert prefix.nbytes == 0


class Doubling(nn.Module):
    """Adds a table's rows to what it is given, times a factor that no module holds."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 256)) for _ in range(3)])
        self.factor = [1.0]

    def forward(self, states):
        states = states * self.factor[0]
        for layer in self.layers:
            states = states + layer(states)
        return states


@pytest.mark.parametrize("rows", [4, 256])
def test_what_a_part_is_given_is_told_from_others(rows):
    """Where it is large and kept by nobody, by a digest."""
    model = Doubling().eval()
    sites = ls.select(model, pattern="layers.*")
    prefix, given = SharedPrefix(model, sites), torch.randn(1, rows, 256)
    with torch.no_grad(), prefix.recording():
        model(given)
    for factor in (1.0, 1.0 + 2**-20, 1.0):
        model.factor[0] = factor
        # not to be told by what the model holds, but by what its layers are given
        prefix._standing = type(prefix._standing)(prefix._parts.modules)
        with torch.no_grad(), ls.Surgery(at=sites[2], do=ls.Scale(0.5))(model):
            expected = model(given)
            with prefix.replaying(sites[2]):
                assert torch.equal(model(given), expected)
        assert prefix.has_answered == (factor == 1.0)


class Weighted(nn.Module):
    """Gives its parts weights, which it may change on the way."""

    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, states, weights):
            return states + self.linear(states) * weights

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([self.Part() for _ in range(4)])
        self.change = 0.0

    def forward(self, states):
        weights = torch.ones_like(states)
        for number, layer in enumerate(self.layers):
            states = layer(states, weights)
            if number == 0 and self.change:
                weights += self.change
        return states


def test_what_is_written_into_on_the_way_is_seen():
    """All layers are given the same weights, which are compared once: unless they are written into since then."""
    model = Weighted().eval()
    sites = ls.select(model, pattern="layers.?")
    prefix, given = SharedPrefix(model, sites), torch.randn(1, 4, 16)
    with torch.no_grad(), prefix.recording():
        model(given)
    model.change = 0.5
    prefix._standing = type(prefix._standing)(prefix._parts.modules)
    with torch.no_grad(), ls.Surgery(at=sites[3], do=ls.Scale(0.5))(model):
        expected = model(given)
        with prefix.replaying(sites[3]):
            assert torch.equal(model(given), expected)


def test_what_was_kept_is_freed():
    model = models.llama().eval()
    prefix = SharedPrefix(model, ls.select(model))
    seen = []
    handle = model.model.layers[0].register_forward_hook(
        lambda module, inputs, output: seen.append(weakref.ref(output))
    )
    for _ in range(2):
        with torch.no_grad(), prefix.recording():
            model(models.tokens(), use_cache=False)
    handle.remove()
    assert seen[0]() is None
    assert seen[1]() is not None
    prefix.forget()
    assert seen[1]() is None


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["model.layers.0", "model.layers.2.mlp"])
def test_errors_leave_nothing_behind(error, where):
    model = models.built("llama")
    sites = ls.select(model)
    prefix = SharedPrefix(model, sites)
    cut = ls.Surgery(at=sites[1], do=ls.Zero())
    with cut(model):
        full = models.run(model, "llama")

    for _ in range(2):
        with prefix.recording():
            models.run(model, "llama")
        with testing.restored(model), cut(model), prefix.replaying(sites[1]):
            assert same(models.run(model, "llama"), full)
        handle = model.get_submodule("model.layers.2.mlp").register_forward_pre_hook(_raising(error))
        try:
            with testing.restored(model), pytest.raises(error), cut(model), prefix.replaying(sites[1]):
                models.run(model, "llama")
        finally:
            handle.remove()
        handle = model.get_submodule(where).register_forward_pre_hook(_raising(error))
        try:
            with testing.restored(model), pytest.raises(error), prefix.recording():
                models.run(model, "llama")
        finally:
            handle.remove()
        assert prefix.nbytes == 0
        with testing.restored(model), cut(model), prefix.replaying(sites[1]):
            assert same(models.run(model, "llama"), full)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # an interrupt while all is tidied up
@pytest.mark.parametrize("block", ["recording", "replaying"])
def test_an_interrupt_at_any_line_leaves_nothing_behind(block):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).eval()
    sites = ls.select(model, pattern="*")
    prefix = SharedPrefix(model, sites)
    with torch.no_grad(), prefix.recording():
        model(torch.ones(1, 2))
    interrupted = 0
    for number in range(1000):
        lines = [0]

        def trace(frame, event, argument, lines=lines, number=number):
            if frame.f_globals.get("__name__") not in ("layersurgery.sweeps._prefix", "layersurgery.sweeps._stand_ins"):
                return None
            lines[0] += event == "line"
            if lines[0] == number + 1:
                lines[0] += 1
                raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            with torch.no_grad(), prefix.recording() if block == "recording" else prefix.replaying(sites[1]):
                model(torch.ones(1, 2))
        except KeyboardInterrupt:
            interrupted += 1
        else:
            break
        finally:
            sys.settrace(None)
        assert not any("forward" in vars(module) for module in model.modules()), number
    assert interrupted > 30


def _raising(error):
    def hook(*_):
        raise error

    return hook


def test_inside_a_block_the_model_looks_as_ever():
    model = models.built("llama")
    site = ls.select(model)[1]
    prefix = SharedPrefix(model, [site])
    signature, before = inspect.signature(model.forward), models.run(model, "llama")
    with prefix.recording():
        models.run(model, "llama")
        assert inspect.signature(model.forward) == signature
    cut = ls.Surgery(at=site, do=ls.Zero())
    with cut(model), prefix.replaying(site):
        assert inspect.signature(model.forward) == signature
        other = copy.deepcopy(model)
        assert not same(models.run(other, "llama"), before)
    weights = {name: torch.zeros_like(value) for name, value in other.state_dict().items()}
    other.load_state_dict(weights)
    assert not models.run(other, "llama").any()  # a copy answers for itself


def test_without_a_record_all_runs_in_full():
    model = models.built("llama")
    sites = ls.select(model)
    prefix = SharedPrefix(model, sites)
    cut = ls.Surgery(at=sites[2], do=ls.Zero())
    with cut(model), prefix.replaying(sites[2]), Work() as work:
        models.run(model, "llama")
    with cut(model), Work() as full:
        models.run(model, "llama")
    assert work.operations == full.operations
