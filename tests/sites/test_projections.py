"""Single projections, against hooks on what these make, or on parts of it that are written down from the source."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import layersurgery as ls
from layersurgery.errors import SelectionError
from layersurgery.sites import Slice
from layersurgery.testing import restored
from tests.architectures.build import build
from tests.architectures.inputs import inputs
from tests.sites.test_heads import rows, run, small

WIDTH, HEADS, SIZE = 64, 4, 16  # of the bench's models: of the stream, of heads, of a head

# model -> role -> projection -> the module that it is, relative to the site
MODULES = {
    "causal/llama": {
        "attention": {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"},
        "mlp": {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"},
    },
    "causal/qwen2": {"attention": {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}},
    "causal/gemma2": {
        "attention": {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"},
        "mlp": {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"},
    },
    "causal/gemma3n_text": {"mlp": {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}},
    "causal/bitnet": {"mlp": {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}},
    "causal/minimax_m2": {"attention": {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}},
    "causal/gpt2": {"attention": {"o": "c_proj"}, "mlp": {"up": "c_fc", "down": "c_proj"}},
    "causal/opt": {
        "attention": {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"},
        "mlp": {"up": "fc1", "down": "fc2"},
    },
    "causal/bert": {
        "attention": {"q": "self.query", "k": "self.key", "v": "self.value", "o": "output.dense"},
        "mlp": {"up": "intermediate.dense", "down": "output.dense"},
    },
    "causal/bloom": {"mlp": {"up": "dense_h_to_4h", "down": "dense_4h_to_h"}},
    "causal/falcon": {"mlp": {"up": "dense_h_to_4h", "down": "dense_4h_to_h"}},
    "other/t5": {"attention": {"q": "q", "k": "k", "v": "v", "o": "o"}, "mlp": {"up": "wi", "down": "wo"}},
    "other/vit": {"mlp": {"up": "fc1", "down": "fc2"}},
}
BLOCKS = {letter: [(at * WIDTH, (at + 1) * WIDTH)] for at, letter in enumerate("qkv")}  # [q | k | v]
PER_HEAD = {
    letter: [((3 * head + at) * SIZE, (3 * head + at + 1) * SIZE) for head in range(HEADS)]
    for at, letter in enumerate("qkv")
}  # [head: q k v]
# four slices of the width, each of them [q | v | k]
QUARTERS = {
    letter: [((3 * at + nth) * SIZE, (3 * at + nth + 1) * SIZE) for at in range(4)] for nth, letter in enumerate("qvk")
}
# model -> its role, the fused module, and the rows of each projection, from the source's own splits
FUSED = {
    "causal/gpt2": ("attention", "c_attn", BLOCKS),
    "causal/mpt": ("attention", "Wqkv", BLOCKS),
    "causal/openai-gpt": ("attention", "c_attn", BLOCKS),
    "causal/bloom": ("attention", "query_key_value", PER_HEAD),
    "causal/gpt_neox": ("attention", "query_key_value", PER_HEAD),
    "causal/persimmon": ("attention", "query_key_value", PER_HEAD),
    "causal/codegen": ("attention", "qkv_proj", QUARTERS),
    "causal/glm": ("mlp", "gate_up_proj", {"gate": [(0, 128)], "up": [(128, 256)]}),
    "causal/phi3": ("mlp", "gate_up_proj", {"gate": [(0, 128)], "up": [(128, 256)]}),
}


def hooked(model, path, rows_of, arguments):
    """The outputs when these rows of what a module gives are zero."""

    def silence(module, args, output):
        output = output.clone()
        for first, end in rows_of:
            output[..., first:end] = 0
        return output

    handle = model.get_submodule(path).register_forward_hook(silence)
    try:
        return run(model, arguments)
    finally:
        handle.remove()


def same(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "role", "letter"),
    [(name, role, letter) for name, roles in MODULES.items() for role, found in roles.items() for letter in found],
)
def test_a_projection_that_is_a_module(name, role, letter):
    model, arguments = build(name), inputs(name)
    site = ls.select(model, role)[1]
    path = f"{site.path}.{MODULES[name][role][letter]}"
    part = site.projections(letter)
    assert str(part) == f"{site.path}[{', '.join(site.parts) + ' ' if site.parts else ''}{letter}]"
    assert part.parameters == sum(p.numel() for p in model.get_submodule(path).parameters())
    with restored(model), ls.Surgery(at=part, do=ls.Zero())(model):
        found = run(model, arguments)
    same(found, hooked(model, path, [(0, None)], arguments))


@pytest.mark.parametrize(
    ("name", "letter"), [(name, letter) for name, (_, _, parts) in FUSED.items() for letter in parts]
)
def test_a_projection_inside_a_fused_matrix(name, letter):
    role, module, parts = FUSED[name]
    model, arguments = build(name), inputs(name)
    site = ls.select(model, role)[1]
    part = site.projections(letter)
    assert [*rows(part, f"{module}.weight")] == parts[letter]
    with restored(model), ls.Surgery(at=part, do=ls.Zero())(model):
        found = run(model, arguments)
    same(found, hooked(model, f"{site.path}.{module}", parts[letter], arguments))


def test_a_fused_matrix_with_fewer_keys_than_queries():
    from transformers import FalconConfig, FalconForCausalLM, Phi3Config, Phi3ForCausalLM

    model = Phi3ForCausalLM(small(Phi3Config, num_key_value_heads=2, pad_token_id=0)).eval()
    site = ls.select(model)[0]
    ranges = [rows(site.projections(letter), "qkv_proj.weight") for letter in "qkv"]
    assert ranges == [((0, 32),), ((32, 48),), ((48, 64),)]
    model = FalconForCausalLM(small(FalconConfig, alibi=False, new_decoder_architecture=True, num_kv_heads=2)).eval()
    site = ls.select(model)[0]  # [group: q q k v]
    ranges = [rows(site.projections(letter), "query_key_value.weight") for letter in "qkv"]
    assert ranges == [((0, 16), (32, 48)), ((16, 24), (48, 56)), ((24, 32), (56, 64))]


def test_latent_attention_has_keys_in_two_matrices():
    site = ls.select(build("causal/deepseek_v3"))[0]
    keys = {piece.parameter for piece in site.projections("k").slices}
    values = {piece.parameter for piece in site.projections("v").slices}
    assert keys == {"kv_a_proj_with_mqa.weight", "kv_b_proj.weight"}
    assert values == {"kv_b_proj.weight"}


def test_torchs_own_transformer():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32), 2, enable_nested_tensor=False).eval()
    attention, feed_forward = ls.select(model)[1], ls.select(model, "mlp")[1]
    assert rows(attention.projections("k"), "in_proj_weight") == ((16, 32),)
    assert rows(attention.projections("k"), "in_proj_bias") == ((16, 32),)
    assert attention.projections(["q", "k", "v", "o"]).parameters == attention.parameters
    assert feed_forward.projections("down").slices == (
        Slice("linear2.weight", 1, ((0, 32),)),
        Slice("linear2.bias", 0, ((0, 16),)),
    )


@pytest.mark.parametrize(
    ("name", "columns"),
    [("causal/mixtral", slice(0, 128)), ("causal/gpt_oss", slice(0, 128, 2))],  # [gate | up]; gate, up, gate, up, ...
)
def test_gates_of_all_experts(name, columns):
    model, arguments = build(name), inputs(name)
    site = ls.select(model, "mlp")[0]
    experts = model.get_submodule(f"{site.path}.experts")
    with restored(model), ls.Surgery(at=site.projections("gate"), do=ls.Zero())(model):
        found = run(model, arguments)
    size = experts.gate_up_proj.shape[1 if name == "causal/mixtral" else 2] // 2
    columns = slice(columns.start, size if columns.step is None else 2 * size, columns.step)
    kept = experts.gate_up_proj.detach().clone()
    with torch.no_grad():
        if name == "causal/mixtral":
            experts.gate_up_proj[:, columns] = 0
        else:
            experts.gate_up_proj[..., columns] = 0
            experts.gate_up_proj_bias[..., columns] = 0
    assert not torch.equal(kept, experts.gate_up_proj)
    same(found, run(model, arguments))


def test_experts_that_were_not_chosen_are_meant_as_well():
    class Expert(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

        def forward(self, x):
            return self.down(self.up(x).relu())

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(Expert() for _ in range(3))

        def forward(self, x):
            return self.experts[1](x)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.moe = Experts()

        def forward(self, x):
            return x + self.moe(x)

    site = ls.select(Model(), pattern="moe", example=torch.randn(2, 3, 8))[0]
    names = {piece.parameter for piece in site.projections("up").slices}
    assert names == {f"experts.{at}.up.{kind}" for at in range(3) for kind in ("weight", "bias")}


def test_names_say_nothing_where_behaviour_speaks():
    """A gated feed-forward and an attention, every name in them misleading."""

    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.gate, self.k, self.q = (nn.Linear(16, 16) for _ in range(4))

        def forward(self, x):
            q, k, v = (layer(x).unflatten(-1, (4, 4)).transpose(1, 2) for layer in (self.k, self.down, self.q))
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
            return self.gate(mixed.transpose(1, 2).flatten(-2))

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.up, self.o = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)

        def forward(self, x):
            return self.o(self.gate(x) * nn.functional.silu(self.up(x)))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = Mixer(), Gated()

        def forward(self, x):
            x = x + self.a(x)
            return x + self.b(x)

    a, b = ls.select(Model(), pattern=re_ab, example=torch.randn(2, 5, 16))
    assert {letter: a.projections(letter).slices[0].parameter for letter in "qkvo"} == {
        "q": "k.weight",
        "k": "down.weight",
        "v": "q.weight",
        "o": "gate.weight",
    }
    assert {letter: b.projections(letter).slices[0].parameter for letter in ("gate", "up", "down")} == {
        "gate": "up.weight",
        "up": "gate.weight",
        "down": "o.weight",
    }


def re_ab(name, module):
    return name in ("a", "b")


def test_several_projections_and_several_sites():
    model = build("causal/llama")
    parts = ls.select(model).projections(["v", "q"])
    assert [str(part) for part in parts] == [f"model.layers.{at}.self_attn[v, q]" for at in range(len(parts))]
    assert {piece.parameter for piece in parts[0].slices} == {"q_proj.weight", "v_proj.weight"}
    assert len(ls.select(model).projections(iter(["q"]))) == len(parts)


@pytest.mark.parametrize("do", [ls.Uniform(), ls.Mean(), ls.Noise(seed=1)], ids=lambda do: do.name)
def test_other_interventions_on_rows_of_a_fused_matrix(do):
    model = build("causal/bloom")
    part = ls.select(model)[0].projections("k")
    name = f"{part.path}.query_key_value.weight"
    before = model.get_parameter(name).detach().clone()
    with restored(model), ls.Surgery(at=part, do=do)(model):
        changed = (model.get_parameter(name) != before).any(1)
    expected = torch.zeros(3 * WIDTH, dtype=torch.bool)
    for first, end in PER_HEAD["k"]:
        expected[first:end] = True
    assert torch.equal(changed, expected)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ("up", "no projection 'up': it has 'q', 'k', 'v', 'o'"),
        ("qkv", "one or more of 'q', 'k', .* got 'qkv'"),
        ([], "one or more of"),
        (["q", "q"], "given twice"),
        (3, "words out of"),
    ],
)
def test_names_that_are_no_projections(names, says):
    with pytest.raises(SelectionError, match=says):
        ls.select(build("causal/llama"))[0].projections(names)


def test_keys_and_values_from_another_layer_are_not_its_own():
    site = ls.select(build("causal/gemma3n_text"))[-1]
    assert site.projections(["q", "o"]).parameters
    with pytest.raises(SelectionError, match="no projection 'k': it has 'q', 'o'"):
        site.projections("k")


def test_a_model_that_cannot_run_says_so():
    class Picky(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.MultiheadAttention(8, 2)

        def forward(self, x):
            raise RuntimeError("not today")

    with pytest.raises(SelectionError, match="did not run"):
        ls.select(Picky(), pattern="attn")[0].projections("q")
