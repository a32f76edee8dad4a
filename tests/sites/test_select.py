"""Selectors against what the models' source says, written down by hand."""

from __future__ import annotations

import copy
import re

import nnsight
import pytest
import torch
from torch import nn

import layersurgery as ls
from layersurgery.errors import SelectionError, SiteIndexError
from tests import models

# model -> (tower, mixer of layer i, feed-forward of layer i); {} is the layer's number
EXPECTED = {
    "llama": ("language", "model.layers.{}.self_attn", "model.layers.{}.mlp"),
    "gpt2": ("language", "transformer.h.{}.attn", "transformer.h.{}.mlp"),
    "bert": ("language", "bert.encoder.layer.{}.attention", "bert.encoder.layer.{}"),
    "vit": ("vision", "vit.layers.{}.attention", "vit.layers.{}.mlp"),
    "llava": ("language", "model.language_model.layers.{}.self_attn", "model.language_model.layers.{}.mlp"),
    "llava_next": ("language", "model.language_model.layers.{}.self_attn", "model.language_model.layers.{}.mlp"),
    "qwen2_vl": ("language", "model.language_model.layers.{}.self_attn", "model.language_model.layers.{}.mlp"),
    "internvl": ("language", "model.language_model.layers.{}.self_attn", "model.language_model.layers.{}.mlp"),
    "plain_transformer": ("language", "encoder.layers.{}.self_attn", "encoder.layers.{}"),
}
VISION = {
    "llava": "model.vision_tower.encoder.layers.{}.self_attn",
    "llava_next": "model.vision_tower.encoder.layers.{}.self_attn",
    "qwen2_vl": "model.visual.blocks.{}.attn",
    "internvl": "model.vision_tower.encoder.layer.{}.attention",
}


def numbered(pattern: str, count: int) -> tuple[str, ...]:
    return tuple(pattern.format(index) for index in range(count))


@pytest.mark.parametrize("name", EXPECTED)
def test_default_is_the_attention_of_the_language_backbone_in_layer_order(name):
    tower, mixer, feed_forward = EXPECTED[name]
    model = models.built(name)
    sites = ls.select(model)
    layers = 2 if name == "vit" else 3
    assert sites.paths == numbered(mixer, layers)
    assert [site.layer for site in sites] == list(range(layers))
    assert {site.tower for site in sites} == {tower}
    assert {site.kind for site in sites} == {"self_attention"}
    assert ls.select(model, "mlp").paths == numbered(feed_forward, layers)
    counts = [sum(p.numel() for p in model.get_submodule(site.path).parameters()) for site in sites]
    assert [site.parameters for site in sites] == counts


@pytest.mark.parametrize("name", VISION)
def test_the_vision_tower_is_never_selected_unless_asked_for(name):
    sites = ls.select(models.built(name), tower="vision")
    assert sites.paths == numbered(VISION[name], 2)
    assert not set(sites) & set(ls.select(models.built(name)))


def test_encoder_decoder():
    model = models.built("t5")
    decoder = ls.select(model)
    assert decoder == ls.select(model, tower="decoder") == ls.select(model, tower="language")
    assert ls.select(model, kind="self_attention").paths == numbered("decoder.block.{}.layer.0.SelfAttention", 3)
    assert ls.select(model, kind="cross_attention").paths == numbered("decoder.block.{}.layer.1.EncDecAttention", 3)
    assert ls.select(model, tower="encoder").paths == numbered("encoder.block.{}.layer.0.SelfAttention", 2)
    assert ls.select(model, "mlp").paths == numbered("decoder.block.{}.layer.2.DenseReluDense", 3)
    assert len(decoder) == 6
    assert [site.layer for site in decoder] == [0, 0, 1, 1, 2, 2]


def test_a_feed_forward_that_is_no_module_is_named_by_its_parts():
    assert ls.select(models.built("plain_transformer"), "mlp")[0].parts == ("linear1", "linear2")
    assert ls.select(models.built("bert"), "mlp")[0].parts == ("intermediate.dense", "output.dense")


def test_whole_layers():
    assert ls.select(models.built("llava"), "layer").paths == numbered("model.language_model.layers.{}", 3)


def test_patterns():
    model = models.built("llama")
    assert ls.select(model, pattern="*.self_attn.o_proj").paths == numbered("model.layers.{}.self_attn.o_proj", 3)
    assert ls.select(model, pattern=re.compile(r"layers\.[02]\.mlp$")).paths == (
        "model.layers.0.mlp",
        "model.layers.2.mlp",
    )
    assert len(ls.select(model, pattern=nn.Embedding)) == 1
    assert ls.select(model, pattern=lambda path, module: path.endswith("1.mlp")).paths == ("model.layers.1.mlp",)
    assert ls.select(model, "attention", pattern="*.1.*").paths == ("model.layers.1.self_attn",)
    known = ls.select(model, pattern="*.self_attn")
    assert known == ls.select(model)  # what has a role keeps it, however it was found
    assert ls.select(model, pattern="*.o_proj")[2].layer == 2
    assert ls.select(models.built("llava"), pattern="*.mlp", tower="vision").paths == numbered(
        "model.vision_tower.encoder.layers.{}.mlp", 2
    )


def test_plain_modules():
    cnn = models.built("plain_cnn")
    assert ls.select(cnn, pattern=nn.Conv2d).paths == ("features.0", "features.3")
    with pytest.raises(SelectionError, match=r"no list of layers.*pattern="):
        ls.select(cnn)


def test_nnsight_models_are_seen_through():
    model = models.built("llama")
    assert ls.select(nnsight.NNsight(model)) == ls.select(model)


def test_no_weights_are_needed():
    with torch.device("meta"):
        empty = models.llava()
    sites = ls.select(empty)
    assert sites.paths == ls.select(models.built("llava")).paths
    assert all("meta" in site.hazards for site in sites)


def test_hazards():
    assert all("norm_inside" in site.hazards for site in ls.select(models.built("bert")))
    assert all(site.hazards == () for site in ls.select(models.built("llama")))
    tied = models.built("llava")
    assert ls.select(tied, pattern="lm_head")[0].hazards == ("tied",)
    shared = nn.Sequential(layer := nn.Linear(2, 2), nn.ReLU(), layer)
    assert ls.select(shared, pattern=nn.Linear)[0].hazards == ("shared",)


class Experts(nn.Module):
    """A list of experts inside a layer: not a tower."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(self._layer() for _ in range(2))

    @staticmethod
    def _layer():
        layer = nn.Module()
        layer.attention = nn.MultiheadAttention(4, 1)
        layer.moe = nn.Module()
        layer.moe.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        return layer


def test_experts_are_part_of_a_feed_forward():
    sites = ls.select(Experts(), "mlp")
    assert sites.paths == ("layers.0.moe", "layers.1.moe")
    assert sites[0].kind == "moe"


def test_one_model_with_two_unnamed_stacks_is_ambiguous():
    model = nn.ModuleDict({name: models.PlainTransformer().encoder for name in ("left", "right")})
    with pytest.raises(SelectionError, match=r"ambiguous.*left\.layers.*right\.layers"):
        ls.select(model)
    assert ls.select(model, tower="right.layers").paths == numbered("right.layers.{}.self_attn", 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"role": "attn"}, r"unknown role 'attn'; roles are 'attention', 'mlp', 'norm', 'layer'.*pattern='attn'"),
        ({"tower": "audio"}, r"no tower 'audio'.*'vision' \(model\.vision_tower.*'language'"),
        ({"kind": "mamba"}, r"no site of kind 'mamba' here; kinds are 'self_attention'"),
        ({"pattern": "self_attn"}, r"near misses: .*self_attn.*begin it with"),
        ({"pattern": "*.self_atn"}, r"nothing .* matches pattern='\*\.self_atn'; near misses: .*\.self_attn'"),
        ({"pattern": nn.Conv3d}, r"nothing .*Conv3d"),
        ({"pattern": int}, r"no module class"),
        ({"pattern": 3}, r"must be a glob"),
        ({"pattern": "*", "kind": 7}, r"kind must be a word"),
    ],
)
def test_what_does_not_match_is_an_error_with_a_next_step(arguments, message):
    with pytest.raises(SelectionError, match=message):
        ls.select(models.built("llava"), **arguments)


@pytest.mark.parametrize("thing", ["gpt2", None, 3])
def test_no_model_is_an_error(thing):
    with pytest.raises(SelectionError, match=r"expected a torch\.nn\.Module"):
        ls.select(thing)


def test_slices_picks_and_layers():
    sites = ls.select(models.built("t5"))
    assert isinstance(sites[1:3], ls.Sites)
    assert sites[1:3].paths == sites.paths[1:3]
    assert sites[-1] == sites[5]
    assert sites.layers([2, 0]).paths == (*sites.paths[4:6], *sites.paths[0:2])
    assert sites.layers(1).paths == sites.paths[2:4]
    with pytest.raises(SiteIndexError, match=r"site 6 is out of range: there are 6 sites, 0 to 5"):
        sites[6]
    with pytest.raises(IndexError):
        sites[6]
    with pytest.raises(SiteIndexError, match=r"no site in layer 3; layers with sites are 0 to 2"):
        sites.layers([0, 3])
    with pytest.raises(SelectionError, match=r"is given twice"):
        ls.Sites([sites[0], sites[1], sites[0]])
    with pytest.raises(SelectionError, match=r"expected a Site, got 'lm_head'"):
        ls.Sites(["lm_head"])


def test_a_parametrised_weight_is_its_modules_own():
    plain = models.built("plain_transformer")
    normed = copy.deepcopy(plain)
    nn.utils.parametrizations.weight_norm(normed.encoder.layers[0].linear1)
    for role in ("attention", "mlp", "norm", "layer"):
        assert ls.select(normed, role).paths == ls.select(plain, role).paths
        assert [site.parts for site in ls.select(normed, role)] == [site.parts for site in ls.select(plain, role)]


def test_sites_are_data():
    sites = ls.select(models.built("bert"))
    assert {sites[0]: 1}[ls.select(models.built("bert"))[0]] == 1
    for site in (*sites, ls.select(models.built("plain_transformer"), "mlp")[0]):
        assert ls.Site.from_dict(site.to_dict()) == site
    with pytest.raises(AttributeError):
        sites[0].path = "other"
    with pytest.raises(SelectionError, match="not the record of a site"):
        ls.Site.from_dict({"path": 3, "hazards": [], "parts": []})


def test_the_table_can_be_read():
    sites = ls.select(models.built("bert"))
    lines = str(sites).splitlines()
    assert lines[0].split() == ["layer", "path", "kind", "tower", "parameters", "hazards"]
    assert lines[1].split() == [
        "0",
        "bert.encoder.layer.0.attention",
        "self_attention",
        "language",
        "4,288",
        "norm_inside",
    ]
    assert [line.split()[0] for line in lines[1:4]] == ["0", "1", "2"]
    assert repr(sites) == str(sites)
    page = sites._repr_html_()
    assert page.count("<tr>") == 4
    assert "bert.encoder.layer.2.attention" in page
