"""What a module does decides, seen on a copy without weights; the model itself is neither run nor changed."""

from __future__ import annotations

import random
import sys
import threading
import tracemalloc

import nnsight
import numpy as np
import pytest
import torch
from torch import nn

import layersurgery as ls
from layersurgery.errors import SelectionError
from layersurgery.sites import HAZARDS
from layersurgery.sites._shadow import NoShadowError, shadow
from layersurgery.sites._trace import trace
from layersurgery.testing import restored
from tests import models
from tests.architectures.build import build, build_meta
from tests.sites import disguised
from tests.sites.test_select import numbered


def llama_in(names):
    from transformers import LlamaConfig

    return disguised.renamed("transformers.models.llama.modeling_llama", names).LlamaForCausalLM(
        LlamaConfig(**models.TEXT)
    )


def gpt2_in(names):
    return disguised.renamed("transformers.models.gpt2.modeling_gpt2", names).GPT2LMHeadModel(models.gpt2().config)


# name -> (builder, mixer of layer i, its kind, feed-forward of layer i, norms of layer i)
DISGUISED = {
    "llama": (
        lambda: llama_in(disguised.LLAMA),
        ("model.rooms.{}.north", "self_attention"),
        "model.rooms.{}.south",
        ("model.rooms.{}.east", "model.rooms.{}.west"),
    ),
    "gpt2": (
        lambda: gpt2_in(disguised.GPT2),
        ("transformer.rooms.{}.north", "self_attention"),
        "transformer.rooms.{}.south",
        ("transformer.rooms.{}.east", "transformer.rooms.{}.west"),
    ),
    "llama with attention and MLP called after each other": (
        lambda: llama_in(disguised.SWAPPED),
        ("model.layers.{}.mlp", "self_attention"),
        "model.layers.{}.self_attn",
        ("model.layers.{}.input_layernorm", "model.layers.{}.post_attention_layernorm"),
    ),
    "MLP-Mixer": (
        disguised.Mixer,
        ("blocks.{}.mlp_tokens", "mixer"),
        "blocks.{}.mlp_channels",
        ("blocks.{}.norm1", "blocks.{}.norm2"),
    ),
    "MLP-Mixer as wide as long": (
        lambda: disguised.Mixer(16),
        ("blocks.{}.mlp_tokens", "mixer"),
        "blocks.{}.mlp_channels",
        ("blocks.{}.norm1", "blocks.{}.norm2"),
    ),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", DISGUISED)
def test_what_modules_do_decides_where_names_say_nothing_or_the_wrong_thing(name, device):
    make, (mixer, kind), feed_forward, norms = DISGUISED[name]
    with torch.device(device):
        model = make()
    sites = ls.select(model)
    assert sites.paths == numbered(mixer, 3)
    assert {(site.kind, site.adds, site.layer) for site in sites} == {(kind, "output", at) for at in range(3)}
    assert ls.select(model, "mlp").paths == numbered(feed_forward, 3)
    assert ls.select(model, "norm").paths == tuple(norm.format(at) for at in range(3) for norm in norms)
    assert {site.adds for site in ls.select(model, "layer")} == {"input:0"}


def test_layers_that_are_attributes_of_their_own():
    model = disguised.Siblings()
    assert ls.select(model).paths == ("a.r", "b.r", "c.r")
    assert ls.select(model, "mlp").paths == ("a.s", "b.s", "c.s")
    assert ls.select(model, "layer").paths == ("a", "b", "c")


def test_a_norm_of_the_sum_inside_is_seen_without_its_name():
    sites = ls.select(disguised.PostNorm())
    assert sites.paths == ("rooms.0.x", "rooms.1.x")
    assert {(site.adds, site.hazards) for site in sites} == {("module:l", ("norm_inside",))}


def test_what_is_looked_at_and_how_makes_the_kind():
    sites = ls.select(nn.Transformer(16, 2, 2, 2, 32))
    assert [site.kind for site in sites] == ["self_attention", "cross_attention"] * 2
    model = disguised.Siblings()
    model.b.r = Recalls()
    assert [site.kind for site in ls.select(model)] == ["mixer", "recurrent", "mixer"]


class Recalls(nn.Module):
    def __init__(self):
        super().__init__()
        self.u = nn.LSTM(16, 16, batch_first=True)

    def forward(self, x):
        return self.u(x)[0]


def test_no_words_and_no_input_need_an_example():
    model = nn.Sequential(OddDoor(), OddDoor())
    with pytest.raises(SelectionError, match=r"example input may help, select\(model, example=\{\.\.\.\}\)"):
        ls.select(model)
    assert ls.select(model, example={"input": (torch.randn(1, 5, 16), "open")}).paths == ("0.hall.r", "1.hall.r")


class OddDoor(nn.Module):
    """A layer that takes and gives a pair."""

    def __init__(self):
        super().__init__()
        self.hall = disguised.Room()

    def forward(self, pair):
        states, word = pair
        if word != "open":
            raise KeyError(word)
        return self.hall(states), word


@pytest.mark.parametrize("example", [{"input_ids": torch.ones(1, 4, dtype=torch.long)}, (torch.ones(1, 4).long(),)])
def test_an_example_may_be_keywords_or_positions(example):
    model = models.llama()
    assert ls.select(model, example=example) == ls.select(model)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"input_ids": torch.full((1, 4), 10**6)}, r"LlamaForCausalLM cannot run on this example: IndexError"),
        ({"pixels": 3}, r"cannot run on this example.*Give the arguments of one forward"),
        ("a text", r"example must be the arguments of one forward.*got str"),
    ],
)
def test_an_example_that_does_not_fit_is_an_error(example, message):
    with pytest.raises(SelectionError, match=message):
        ls.select(models.llama(), example=example)


def test_a_part_that_the_whole_did_not_run_is_run_by_itself():
    sites = ls.select(models.built("llava"), tower="vision")
    assert {site.adds for site in sites} == {"output"}
    assert {site.adds for site in ls.select(models.built("qwen2_vl"), tower="vision")} == {"output"}


# model -> role -> what `adds` says, read from the models' sources
ADDS = {
    "causal/bloom": {"attention": {"input:1"}, "mlp": {"input:1"}},  # both are given the residual stream, and add it
    "causal/xlnet": {"attention": {""}, "mlp": {"module:layer_2"}},  # XLNet's last matrix is a bare parameter
    "other/bert": {"attention": {"module:output.dense"}, "mlp": {"module:output.dense"}},
    "causal/opt": {"attention": {"output"}, "mlp": {"module:fc2"}},
    "causal/xlm": {"attention": {"output"}, "mlp": {"output"}, "layer": {""}},
    "other/t5": {"attention": {"output"}, "layer": {"input:0"}},
}


@pytest.mark.parametrize("name", ADDS)
def test_how_what_a_site_adds_leaves_it(name):
    model = build_meta(name)
    assert {role: {site.adds for site in ls.select(model, role)} for role in ADDS[name]} == ADDS[name]


def hazards(name, role="attention"):
    return [set(site.hazards) - {"meta"} for site in ls.select(build_meta(name), role)]


def test_what_reaches_other_layers_besides_the_stream_is_a_hazard():
    assert hazards("other/t5") == [{"feeds_others"}, set(), set(), set(), set(), set()]  # the position bias
    assert hazards("causal/gemma3n_text") == [{"feeds_others"}, {"feeds_others"}, set(), set()]  # keys and values
    assert all(not found for found in hazards("causal/gemma3n_text", "mlp"))
    assert hazards("causal/bloom") == [{"residual_inside"}] * 2


def test_what_is_added_without_parameters_is_a_hazard():
    class Average(nn.Module):
        """Past and present in equal parts, whatever the matrix is."""

        def __init__(self):
            super().__init__()
            self.w = nn.Linear(16, 16)

        def forward(self, x):
            return self.w(x) + x.mean(1, keepdim=True)

    model = nn.Sequential(*(disguised.Room() for _ in range(2)))
    model[0].r = Average()
    assert [site.hazards for site in ls.select(model)] == [("adds_constant",), ()]


@pytest.mark.parametrize(
    ("end", "adds"),
    [
        (lambda norm, x, new: norm(new), "output"),
        (lambda norm, x, new: x + norm(new), "input:0"),
        (lambda norm, x, new: norm(x + new), "module:w"),
        (lambda norm, x, new: new, "output"),
    ],
)
@pytest.mark.parametrize("kind", [nn.LayerNorm, disguised.Scaler])
def test_a_norm_inside_may_be_anywhere(kind, end, adds):
    class Ends(disguised.Past):
        def __init__(self):
            super().__init__(16)
            self.n = kind(16)

        def forward(self, x):
            return end(self.n, x, super().forward(x))

    model = nn.Sequential(*(disguised.Room() for _ in range(2)))
    model[1].r = Ends()
    assert [site.adds for site in ls.select(model)] == ["output", adds]


def test_every_hazard_is_explained():
    assert all(text[0].islower() and len(text) > 30 for text in HAZARDS.values())
    found = {hazard for name in ("other/t5", "other/bert", "causal/zamba") for each in hazards(name) for hazard in each}
    assert found <= set(HAZARDS)


@pytest.mark.parametrize("name", ["llama", "t5", "llava", "qwen2_vl", "plain_transformer"])
def test_the_model_and_the_world_are_left_alone(name):
    model = models.built(name)
    model.train()
    called = []
    handle = model.register_forward_pre_hook(lambda module, given: called.append(module))
    try:
        with restored(model):
            for role in ("attention", "mlp", "norm", "layer"):
                ls.select(model, role)
            ls.select(model, pattern="*")
    finally:
        handle.remove()
        model.eval()
    assert called == []


def test_the_world_around_may_be_any():
    torch.manual_seed(3), np.random.seed(3), random.seed(3)  # noqa: NPY002
    model = models.llama()
    usual = ls.select(models.llama())
    threads = torch.get_num_threads()
    state = torch.get_rng_state()
    with torch.inference_mode(), torch.autocast("cpu"), torch.device("meta"):
        assert ls.select(model) == usual
        assert torch.is_inference_mode_enabled()
        assert torch.is_autocast_enabled("cpu")
        assert torch.empty(1).is_meta
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_dtype_will_do(dtype):
    assert {site.adds for site in ls.select(models.llama().to(dtype))} == {"output"}


def test_a_model_that_cannot_be_copied_is_read_by_its_names():
    model = models.llama()
    model.model.lock = threading.Lock()
    with pytest.raises(NoShadowError, match="cannot be copied"):
        shadow(model)
    sites = ls.select(model)
    assert sites.paths == ls.select(models.built("llama")).paths
    assert {site.adds for site in sites} == {""}
    with pytest.raises(SelectionError, match="leave example= away"):
        ls.select(model, example={"input_ids": torch.ones(1, 4).long()})


def test_a_closure_over_the_model_is_not_followed():
    model = models.llama()
    layer = model.model.layers[0]
    real = layer.mlp
    layer.extra = lambda states: real(states + 1)
    with pytest.raises(NoShadowError, match="closure over a part of the model"):
        shadow(model)


def test_what_others_put_around_modules_is_seen_through():
    plain = ls.select(models.built("llama"))
    wrapped = models.llama()
    envoy = nnsight.NNsight(wrapped)
    assert ls.select(envoy) == plain
    compiled = models.llama()
    compiled.model.layers[1].self_attn = torch.compile(compiled.model.layers[1].self_attn)
    sites = ls.select(compiled)
    assert [site.layer for site in sites] == [0, 1, 2]
    assert {site.adds for site in sites} == {"output"}
    assert ["compiled" in site.hazards for site in sites] == [False, True, False]
    parallel = ls.select(nn.DataParallel(models.llama()))
    assert parallel.paths == tuple(f"module.{path}" for path in plain.paths)
    assert {site.adds for site in parallel} == {"output"}


def test_offloaded_weights_are_a_hazard(tmp_path):
    from accelerate import cpu_offload

    model = cpu_offload(models.llama(), torch.device("cpu"))
    sites = ls.select(model)
    assert all("offloaded" in site.hazards for site in sites)
    assert {site.adds for site in sites} == {"output"}


def test_packed_linear_layers_are_linear():
    class Packed(nn.Module):
        """Four bits an entry, as bitsandbytes keeps them; runs on a GPU only."""

        def __init__(self, inputs, outputs):
            super().__init__()
            self.in_features, self.out_features = inputs, outputs
            self.weight = nn.Parameter(torch.zeros(inputs * outputs // 2, 1, dtype=torch.uint8), requires_grad=False)

        def forward(self, states):
            raise RuntimeError("needs a GPU")

    model = models.llama()
    for layer in model.model.layers:
        for name, child in list(layer.self_attn.named_children()):
            setattr(layer.self_attn, name, Packed(child.in_features, child.out_features))
    sites = ls.select(model)
    assert sites.paths == ls.select(models.built("llama")).paths
    assert {(site.adds, site.hazards) for site in sites} == {("output", ("quantized",))}


def test_a_large_model_costs_little_time_and_memory():
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=8))
    tracemalloc.start()
    try:
        sites = ls.select(model)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert {site.adds for site in sites} == {"output"}
    assert peak < 50 << 20
    twin, _ = shadow(model)
    held = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in twin.parameters()}
    assert sum(held.values()) <= 4 * len(held)


def test_looking_is_done_once():
    model = models.llama()
    seen = trace(model)
    ls.select(model)
    assert trace(model) is seen
    model.model.layers[1].mlp = nn.Identity()
    assert trace(model) is not seen


def test_a_dropped_model_is_freed():
    import gc
    import weakref

    model = models.llama()
    ls.select(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_weights_do_not_matter():
    assert ls.select(build("causal/mixtral")).paths == ls.select(build_meta("causal/mixtral")).paths


def test_plain_models_do_not_bring_in_the_compiler():
    import subprocess

    code = (
        "import sys, layersurgery as ls; from torch import nn;"
        "ls.select(nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False));"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
