"""Heads of attentions, against an independent oracle: their stretch of the output projection's input set to zero."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import layersurgery as ls
from layersurgery.errors import SelectionError, SiteIndexError
from layersurgery.sites import Slice
from layersurgery.testing import restored
from tests.architectures.build import build, build_meta
from tests.architectures.inputs import inputs

# model -> the output projection inside an attention, written down from the source
OUTPUT = {
    "causal/llama": "o_proj",
    "causal/mistral": "o_proj",
    "causal/mixtral": "o_proj",
    "causal/qwen2": "o_proj",
    "causal/qwen3": "o_proj",
    "causal/qwen3_next": "o_proj",
    "causal/olmo2": "o_proj",
    "causal/gemma2": "o_proj",
    "causal/gemma3_text": "o_proj",
    "causal/gemma3n_text": "o_proj",
    "causal/phi3": "o_proj",
    "causal/gpt2": "c_proj",
    "causal/gpt_bigcode": "c_proj",
    "causal/bloom": "dense",
    "causal/gpt_neox": "dense",
    "causal/mpt": "out_proj",
    "causal/codegen": "out_proj",
    "causal/gptj": "out_proj",
    "causal/opt": "out_proj",
    "causal/bart": "out_proj",
    "causal/prophetnet": "out_proj",
    "causal/deepseek_v3": "o_proj",
    "causal/gpt_oss": "o_proj",
    "causal/doge": "o_proj",
    "causal/minimax_m2": "o_proj",
    "causal/bert": "output.dense",
    "other/albert": "dense",
    "other/vit": "o_proj",
    "other/clip": "out_proj",
    "other/t5": "o",
    "other/whisper": "out_proj",
    "vlm/mllama": "o_proj",
    "vlm/pi0": "o_proj",
}
TOWER = {"other/clip": "vision", "other/vit": "vision"}
TEXT_ONLY = {"causal/prophetnet", "vlm/mllama"}  # whose cross-attention, of another class, needs a second input to run


def attentions(name, model):
    """The attention sites; a mixer of another kind beside them (linear attention) has heads of its own."""
    kinds = ("self_attention",) if name in TEXT_ONLY else ("self_attention", "cross_attention")
    return ls.Sites(site for site in ls.select(model, tower=TOWER.get(name)) if site.kind in kinds)


def floats(output):
    return [t for t in output.values() if isinstance(t, torch.Tensor) and t.is_floating_point()]


def run(model, arguments):
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        return floats(model(**arguments))


def without_stretch(model, path, heads, count, arguments):
    """The model's outputs when these heads' stretch of what `path` reads is zero: nothing of the library is used."""
    calls = []

    def silence(module, args):
        states = args[0].clone()
        width = states.shape[-1] // count
        for head in heads:
            states[..., head * width : (head + 1) * width] = 0
        calls.append(1)
        return (states, *args[1:])

    handle = model.get_submodule(path).register_forward_pre_hook(silence)
    try:
        return run(model, arguments), len(calls)
    finally:
        handle.remove()


@pytest.mark.parametrize("name", sorted(OUTPUT))
def test_zeroed_heads_are_heads_whose_stretch_is_zero(name):
    model, arguments = build(name), inputs(name)
    sites = attentions(name, model)
    before = run(model, arguments)
    count = 4  # what every config of the bench is shrunk to
    ran, changed = 0, False
    for site in sites[:: max(1, len(sites) - 1)]:  # the first and the last
        for heads in ([0], [count - 1], [1, 2], [0, 1], list(range(count))):
            expected, calls = without_stretch(model, f"{site.path}.{OUTPUT[name]}", heads, count, arguments)
            with restored(model), ls.Surgery(at=site.heads(heads), do=ls.Zero())(model):
                found = run(model, arguments)
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=2e-6)
            ran += calls
            changed |= any(not torch.equal(one, other) for one, other in zip(found, before, strict=True))
    assert ran
    assert changed


def rows(site, parameter):
    return next(piece.ranges for piece in site.slices if piece.parameter == parameter)


def small(config, **settings):
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 99}
    return config(**{**sizes, "intermediate_size": 48, **settings})


def test_grouped_queries_own_their_keys_and_values_together():
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(small(LlamaConfig, num_key_value_heads=2)).eval()
    site = ls.select(model)[0]
    assert {piece.parameter for piece in site.heads(1).slices} == {"q_proj.weight", "o_proj.weight"}
    assert rows(site.heads(1), "q_proj.weight") == ((8, 16),)
    assert {piece.parameter for piece in site.heads([1, 2]).slices} == {"q_proj.weight", "o_proj.weight"}
    assert rows(site.heads([2, 3]), "k_proj.weight") == rows(site.heads([2, 3]), "v_proj.weight") == ((8, 16),)
    assert site.heads([0, 1, 2, 3]).parameters == site.parameters
    one = 8 * 32  # a head's rows of q, and as many columns of o
    assert site.heads(3).parameters == 2 * one
    assert site.heads([2, 3]).parameters == 2 * 2 * one + 2 * one


def test_biases_go_with_their_rows_and_that_of_the_output_with_nobody():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    model = Qwen2ForCausalLM(small(Qwen2Config, num_key_value_heads=4)).eval()
    site = ls.select(model)[0].heads(2)
    for letter in "qkv":
        assert rows(site, f"{letter}_proj.bias") == rows(site, f"{letter}_proj.weight") == ((16, 24),)
    assert "out_proj.bias" not in {piece.parameter for piece in ls.select(build("causal/opt"))[0].heads(0).slices}


@pytest.mark.parametrize(
    ("settings", "owned"),
    [
        # [head: q k v], one key and value for all, and [group: q q k v]
        ({"multi_query": False, "new_decoder_architecture": False}, ((24, 48),)),
        ({"multi_query": True, "new_decoder_architecture": False}, ((8, 16),)),
        ({"new_decoder_architecture": True, "num_kv_heads": 2}, ((8, 16),)),
    ],
)
def test_falcons_three_layouts(settings, owned):
    from transformers import FalconConfig, FalconForCausalLM

    model = FalconForCausalLM(small(FalconConfig, alibi=False, **settings)).eval()
    site = ls.select(model)[0]
    assert rows(site.heads(1), "query_key_value.weight") == owned
    arguments = {"input_ids": torch.arange(12).view(2, 6)}
    for heads in ([1], [0, 1], [0, 1, 2, 3]):
        expected, _ = without_stretch(model, f"{site.path}.dense", heads, 4, arguments)
        with ls.Surgery(at=site.heads(heads), do=ls.Zero())(model):
            torch.testing.assert_close(run(model, arguments), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "parameter", "owned"),
    [
        ("causal/gpt2", "c_attn.weight", ((16, 32), (80, 96), (144, 160))),  # [q | k | v], each [head]
        ("causal/bloom", "query_key_value.weight", ((48, 96),)),  # [head: q k v]
        ("causal/gpt_neox", "query_key_value.weight", ((48, 96),)),
        ("causal/mpt", "Wqkv.weight", ((16, 32), (80, 96), (144, 160))),
        ("causal/gpt_oss", "sinks", ((1, 2),)),
        ("causal/olmo2", "q_norm.weight", ((16, 32),)),  # a gain is a head's own; the rows it norms together are not
    ],
)
def test_what_a_head_owns(name, parameter, owned):
    assert rows(ls.select(build(name))[0].heads(1), parameter) == owned


def test_rows_that_are_normed_together_belong_to_no_head_alone():
    site = ls.select(build("causal/olmo2"))[0]
    assert "q_proj.weight" not in {piece.parameter for piece in site.heads([0, 1, 2]).slices}
    assert "q_proj.weight" in {piece.parameter for piece in site.heads(range(4)).slices}


def test_keys_that_later_layers_read_belong_to_no_head():
    owned = {piece.parameter for piece in ls.select(build("causal/gemma3n_text"))[1].heads(range(4)).slices}
    assert not owned & {"k_proj.weight", "v_proj.weight", "k_norm.weight"}


@pytest.mark.parametrize("separate", [False, True])
def test_torchs_own_attention(separate):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(16, 4, batch_first=True, **({"kdim": 12, "vdim": 12} if separate else {})).eval()

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = layer

        def forward(self, x, y):
            return self.mix(x, y, y)[0]

    model = Model().eval()
    nn.init.normal_(layer.in_proj_bias)
    x, y = torch.randn(2, 5, 16), torch.randn(2, 7, 12 if separate else 16)
    site = ls.select(model, pattern="mix", example=(x, y))[0]
    weights = (
        [layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight] if separate else layer.in_proj_weight.chunk(3)
    )
    q, k, v = (
        (states @ weight.T + bias).unflatten(-1, (4, 4)).transpose(1, 2)
        for states, weight, bias in zip((x, y, y), weights, layer.in_proj_bias.chunk(3), strict=True)
    )
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    mixed[:, [1, 3]] = 0
    expected = layer.out_proj(mixed.transpose(1, 2).flatten(-2))
    with torch.no_grad(), ls.Surgery(at=site.heads([1, 3]), do=ls.Zero())(model):
        torch.testing.assert_close(model(x, y), expected, rtol=0, atol=2e-6)


def test_a_transformer_of_torch():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32), 2, enable_nested_tensor=False).eval()
    sites = ls.select(model).heads([0, 3])
    assert [str(site) for site in sites] == [f"layers.{at}.self_attn[heads 0, 3]" for at in (0, 1)]
    assert rows(sites[0], "in_proj_weight") == ((0, 4), (12, 20), (28, 36), (44, 48))
    assert rows(sites[0], "out_proj.weight") == ((0, 4), (12, 16))


@pytest.mark.parametrize("do", [ls.Zero(), ls.Uniform(), ls.Mean(), ls.Noise(seed=1)], ids=lambda do: do.name)
def test_every_intervention_changes_these_entries_only_and_is_lifted(do):
    model = build("causal/llama")
    site = ls.select(model)[1].heads([0, 2])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with restored(model):
        with ls.Surgery(at=site, do=do)(model):
            changed = {name: p.detach() != before[name] for name, p in model.named_parameters()}
        touched = {name for name, entries in changed.items() if entries.any()}
    assert touched == {f"{site.path}.{piece.parameter}" for piece in site.slices}
    for piece in site.slices:
        outside = changed[f"{site.path}.{piece.parameter}"].clone()
        for first, end in piece.ranges:
            outside.narrow(piece.dim, first, end - first).fill_(False)
        assert not outside.any()
    assert sum(int(entries.sum()) for entries in changed.values()) <= site.parameters


def test_two_heads_one_after_the_other_are_the_two_together():
    model, arguments = build("causal/gpt2"), inputs("causal/gpt2")
    site = ls.select(model)[0]
    with ls.Surgery(at=site.heads([1, 3]), do=ls.Zero())(model):
        together = run(model, arguments)
    with ls.Surgery(at=site.heads(3), do=ls.Zero())(model), ls.Surgery(at=site.heads(1), do=ls.Zero())(model):
        assert all(map(torch.equal, run(model, arguments), together))


def test_a_model_without_weights_and_a_large_one():
    from transformers import LlamaConfig, LlamaForCausalLM

    weightless, real = (ls.select(model)[0].heads(1) for model in (build_meta("causal/llama"), build("causal/llama")))
    assert weightless.slices == real.slices
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=4, num_key_value_heads=8))
    site = ls.select(model)[3]
    assert site.heads(31).slices[-1] == Slice("o_proj.weight", 1, ((31 * 128, 32 * 128),))
    assert rows(site.heads([0, 1, 2, 3]), "v_proj.weight") == ((0, 128),)


@pytest.mark.parametrize(
    ("numbers", "error", "says"),
    [
        (4, SiteIndexError, "no head 4: its 4 heads are 0 to 3"),
        ([0, -1], SiteIndexError, "no head -1"),
        ([], SelectionError, "one or more whole numbers"),
        ([1, 1], SelectionError, "given twice"),
        ([0.5], SelectionError, "whole numbers"),
        (True, SelectionError, "whole numbers"),
        (None, SelectionError, "whole numbers"),
    ],
)
def test_numbers_that_are_no_heads(numbers, error, says):
    with pytest.raises(error, match=says):
        ls.select(build("causal/llama"))[0].heads(numbers)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("causal/bitnet", "speak of 4 heads, but"),  # a norm over all heads before the output projection
        ("causal/diffllama", "speak of 4 heads, but"),  # the difference of two heads
        ("causal/mamba", "does not fall into heads"),
        ("causal/xlnet", "no matrix in it reads what its tokens mixed"),
    ],
)
def test_what_cannot_be_told_is_refused_in_words(name, says):
    with pytest.raises(SelectionError, match=says):
        ls.select(build(name))[0].heads(0)


def test_a_feed_forward_has_no_heads():
    with pytest.raises(SelectionError, match=r"heads of .*mlp.* cannot be told apart: no matrix"):
        ls.select(build("causal/llama"), "mlp")[0].heads(0)


def test_a_part_of_a_module_is_not_divided_again():
    with pytest.raises(SelectionError, match="a part of a module already"):
        ls.select(build("causal/llama"))[0].heads(0).heads(0)


def test_sites_stay_plain_data():
    model = build("causal/llama")
    site = ls.select(model)[0]
    part = site.heads([0, 2])
    assert copy.deepcopy(part) == part
    assert copy.deepcopy(site).heads([0, 2]) == part
    assert ls.Site.from_dict(part.to_dict()) == part
    loaded = pickle.loads(pickle.dumps(site))
    assert loaded == site
    assert hash(loaded) == hash(site)
    with pytest.raises(SelectionError, match="loaded or unpickled"):
        loaded.heads(0)


def test_a_saved_surgery_on_heads(tmp_path):
    model, arguments = build("causal/phi3"), inputs("causal/phi3")
    cut = ls.Surgery(at=ls.select(model)[1].heads([0, 3]), do=ls.Zero())
    cut.save_pretrained(tmp_path)
    again = ls.Surgery.from_pretrained(tmp_path)
    assert again == cut
    with cut(model):
        expected = run(model, arguments)
    with again(model):
        assert all(map(torch.equal, run(model, arguments), expected))


def test_the_table_names_the_part_and_explains_its_hazards():
    sites = ls.select(build("causal/bert"))
    assert "\n\nnorm_inside: a norm" in str(sites)
    assert "<dt>norm_inside</dt>" in sites._repr_html_()
    part = sites[:1].heads([0, 2])
    assert "bert.encoder.layer.0.attention[heads 0, 2]" in str(part)
    assert part[0].hazards == ()  # the norm is not among what the heads own
    assert "norm_inside" not in str(part)
