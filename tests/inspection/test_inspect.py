"""An anatomy adds up, says what the surgery itself says, folds what is equal, and can be shown anywhere."""

from __future__ import annotations

import copy
import functools
import json
from dataclasses import replace
from html.parser import HTMLParser

import nnsight
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import layersurgery as ls
from layersurgery import testing
from layersurgery.errors import SelectionError
from layersurgery.inspection import Remainder, _fold
from layersurgery.inspection._effects import effect_of
from layersurgery.inspection._text import as_text
from layersurgery.sites import HAZARDS
from tests import models
from tests.architectures import build

LAYERED = [name for name in models.ZOO if name != "plain_cnn"]


@functools.cache
def anatomy_of(name):
    return ls.inspect(models.built(name))


def entries(modules):
    return sum({id(p): p.numel() for module in modules for p in module.parameters()}.values())


@pytest.mark.parametrize("name", LAYERED)
def test_everything_is_counted_once(name):
    model, anatomy = models.built(name), anatomy_of(name)
    assert anatomy.parameters == entries([model])
    for tower in anatomy.towers:
        layers = [model.get_submodule(layer.path) for layer in tower.layers]
        assert tower.parameters == entries(layers)
        assert [layer.index for layer in tower.layers] == list(range(len(layers)))
        for layer, module in zip(tower.layers, layers, strict=True):
            sites = [model.get_submodule(path) for part in layer.sites for path in part.site.modules]
            assert layer.parameters == entries([module]) == entries(sites) + layer.rest
            assert {"attention", "mlp"} <= {part.site.role for part in layer.sites}
    outside = sum(item.parameters for item in anatomy.elsewhere)
    assert anatomy.parameters == outside + sum(tower.parameters for tower in anatomy.towers)


@pytest.mark.parametrize("name", LAYERED)
def test_the_default_tower_is_where_select_looks(name):
    model = models.built(name)
    (default,) = [tower for tower in anatomy_of(name).towers if tower.default]
    inside = {part.site for layer in default.layers for part in layer.sites}
    assert set(ls.select(model)) | set(ls.select(model, "mlp")) <= inside
    assert default.name == ls.select(model)[0].tower


def test_the_model_is_not_touched():
    model = models.built("llava")
    with testing.restored(model):
        assert str(ls.inspect(model))
        assert not ls.status(model)


def test_all_towers_and_what_is_tied():
    anatomy = anatomy_of("llava")
    assert {tower.name for tower in anatomy.towers} == {"language", "vision"}
    outside = {item.path: item for item in anatomy.elsewhere}
    assert outside["lm_head"] == Remainder("lm_head", "Linear", 0, "model.language_model.embed_tokens.weight")
    assert "tied to model.language_model.embed_tokens.weight" in as_text(anatomy, 140)
    bert = anatomy_of("bert")
    assert "partly tied to bert.embeddings.word_embeddings.weight" in as_text(bert, 140)
    assert outside["model.multi_modal_projector"].module == "LlavaMultiModalProjector"
    assert not outside["model.multi_modal_projector"].tied


def test_parameters_between_the_modules_are_not_lost():
    class Prompted(models.PlainTransformer):
        def __init__(self):
            super().__init__()
            self.prompt = nn.Parameter(torch.zeros(1, 1, 32))

    anatomy = ls.inspect(Prompted())
    assert Remainder("", "Prompted", 32) in anatomy.elsewhere
    assert "(the model itself)" in str(anatomy)
    assert "the model itself" in anatomy._repr_html_()


def test_equal_layers_are_one_line_and_unequal_ones_are_not():
    anatomy = ls.inspect(models.llama(num_hidden_layers=28))
    assert "layers 0 to 27: LlamaDecoderLayer" in str(anatomy)
    assert str(anatomy).count("self_attn") == 1
    model = models.llama(num_hidden_layers=6)
    model.model.layers[4].mlp = nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 32))
    (tower,) = ls.inspect(model).towers
    assert [run.title.partition(":")[0] for run in _fold.runs(tower)] == ["layers 0 to 3, 5", "layer 4"]


def test_layers_without_a_module_of_their_own():
    anatomy = ls.inspect(build.build("causal/xlm"))
    (tower,) = anatomy.towers
    assert tower.layers[1].modules[:1] == ("transformer.attentions.1",)
    (run,) = _fold.runs(tower)
    assert [part.name for part in run.first.sites if part.site.role != "norm"] == ["attentions.*", "ffns.*"]
    assert anatomy.parameters == tower.parameters + sum(item.parameters for item in anatomy.elsewhere)


def test_an_example_for_what_cannot_be_guessed():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = models.PlainTransformer()

        def forward(self, left, right):
            return self.inner(left["ids"]) + self.inner(right)

    anatomy = ls.inspect(Odd(), example=({"ids": models.tokens()}, models.tokens()))
    assert [tower.path for tower in anatomy.towers] == ["inner.encoder.layers"]
    with pytest.raises(SelectionError):
        ls.inspect(Odd(), example=(torch.zeros(1),))


def test_alternating_layers_are_told_apart():
    (tower,) = ls.inspect(build.build("causal/jamba")).towers
    kinds = [{part.site.kind for part in run.first.sites} for run in _fold.runs(tower)]
    assert {"self_attention", "moe"} in [found - {"norm"} for found in kinds]
    assert {"mamba", "mlp"} in [found - {"norm"} for found in kinds]


def test_what_the_surgery_refuses_is_said_in_its_words():
    model = models.llama()
    parametrize.register_parametrization(model.model.layers[1].mlp.up_proj, "weight", nn.Identity())
    with pytest.raises(ls.errors.SurgeryError) as refusal:
        ls.Surgery(at=ls.select(model, "mlp")[1], do=ls.Zero()).attach(model)
    anatomy = ls.inspect(model)
    refused = [part for tower in anatomy.towers for layer in tower.layers for part in layer.sites if part.refusal]
    assert [part.site.layer for part in refused] == [1]
    assert refused[0].refusal == str(refusal.value)
    assert "refused (1)" in str(anatomy)
    assert "(1) " + str(refusal.value) in as_text(anatomy, 10_000)
    assert "refused (1)" in anatomy._repr_html_()


def test_one_reason_for_all_that_are_refused_alike():
    model = models.llama()
    for layer in model.model.layers:
        parametrize.register_parametrization(layer.mlp.up_proj, "weight", nn.Identity())
    anatomy = ls.inspect(model)
    assert len(anatomy.refusals) == 1
    assert "layers 0 to 2" in str(anatomy)
    assert str(anatomy).count("refused (1)") == 1


@pytest.mark.parametrize(
    ("adds", "hazards", "effect"),
    [
        ("output", (), "adds nothing"),
        ("output", ("tied",), "adds nothing; other holders of a tied parameter keep it"),
        ("output", ("adds_constant",), "adds a constant only"),
        ("input:residual", (), "adds nothing; the stream inside passes through"),
        (
            "module:output.dense",
            ("norm_inside",),
            "wipes the stream, whose norm is inside; Zero(what='contribution') adds nothing",
        ),
        ("module:fc2", (), "adds nothing"),
        ("", (), "all its parameters become 0"),
        ("", ("norm_inside",), "all its parameters become 0, those of the norm inside too"),
        ("output", ("feeds_others", "shared"), "adds nothing; changes what later layers read from it; at every place "),
    ],
)
def test_effects_in_words(adds, hazards, effect):
    site = ls.Site("h.0.attn", role="attention", adds=adds, hazards=hazards)
    assert effect_of(site).startswith(effect)
    assert effect_of(replace(site, role="norm", hazards=())) == "its scale and shift become 0"


def test_weights_that_are_reached_through_outputs():
    class Packed(nn.Linear):
        """A linear layer whose own code holds the weights."""

        def __init__(self, size, out):
            super().__init__(size, out, bias=False)
            values = self.weight.detach().to(torch.int8)
            del self.weight
            self.register_buffer("packed", values)

        def forward(self, states):
            return states @ self.packed.to(states.dtype).T

    model = models.llama()
    mlp = model.model.layers[0].mlp
    mlp.up_proj, mlp.gate_proj, mlp.down_proj = Packed(32, 48), Packed(32, 48), Packed(48, 32)
    part = next(part for part in ls.inspect(model).towers[0].layers[0].sites if part.site.role == "mlp")
    assert part.effect.endswith("through what its modules give")
    assert not part.refusal


def test_a_model_without_weights():
    with torch.device("meta"):
        model = models.llama()
    anatomy = ls.inspect(model)
    assert anatomy.is_empty
    assert not anatomy.refusals
    assert "weights are not in memory" in str(anatomy)
    assert "meta" in anatomy.hazards
    for text in (str(anatomy), anatomy._repr_html_()):
        assert "[meta]" not in text  # it is said once, of the whole model
        assert ">meta<" not in text
    real = ls.inspect(models.llama())
    assert not real.is_empty
    assert "not in memory" not in str(real)
    assert real.parameters == anatomy.parameters


def test_without_layers_the_modules_are_listed():
    anatomy = anatomy_of("plain_cnn")
    assert not anatomy.towers
    assert not anatomy.sites
    assert "pattern=" in anatomy.note
    assert [item.path for item in anatomy.elsewhere] == ["features.0", "features.1", "features.3", "head"]
    for text in (str(anatomy), anatomy._repr_html_()):
        assert "roles and towers mean nothing here" in " ".join(text.split())
        assert "features.3" in text
        assert "modules" in text


def test_long_lists_of_modules_stay_short():
    model = nn.Sequential(*(nn.Sequential(*(nn.Linear(4, 4) for _ in range(5))) for _ in range(5)))
    anatomy = ls.inspect(model)
    assert 5 <= len(anatomy.elsewhere) <= 12
    assert sum(item.parameters for item in anatomy.elsewhere) == anatomy.parameters


@pytest.mark.parametrize("model", [nn.ReLU(), nn.Linear(2, 3), nn.Sequential(nn.LazyLinear(3))], ids=repr)
def test_hardly_a_model_at_all(model):
    anatomy = ls.inspect(model)
    assert anatomy.parameters == entries([m for m in [model] if isinstance(m, nn.Linear)])
    assert type(model).__name__ in str(anatomy)
    json.dumps(anatomy.to_dict())


def test_what_is_no_model():
    with pytest.raises(SelectionError, match=r"expected a torch\.nn\.Module"):
        ls.inspect("gpt2")


def test_an_nnsight_model_is_the_model_it_wraps():
    model = models.built("gpt2")
    assert ls.inspect(nnsight.NNsight(model)) == ls.inspect(model)


def test_dtypes_and_devices():
    model = models.llama().to(torch.bfloat16)
    model.model.norm.float()
    model.lm_head.to("meta")
    heading = " ".join(str(ls.inspect(model)).split("├")[0].split()) + " "
    assert "bfloat16 99.9%, float32 0.1%" in heading
    assert "cpu " in heading
    assert "meta " in heading


def test_anatomies_are_plain_data():
    model = models.built("t5")
    anatomy = ls.inspect(model)
    assert anatomy == ls.inspect(copy.deepcopy(model))
    record = json.loads(json.dumps(anatomy.to_dict()))
    assert record["parameters"] == anatomy.parameters
    assert record["dtypes"] == {"float32": sum(p.numel() for p in model.parameters())}
    sites = [part["site"] for tower in record["towers"] for layer in tower["layers"] for part in layer["sites"]]
    assert tuple(ls.Site.from_dict(site) for site in sites) == anatomy.sites


@pytest.mark.parametrize("name", models.ZOO)
@pytest.mark.parametrize("width", [50, 80, 110, 140])
def test_text_keeps_to_the_width(name, width):
    for line in as_text(anatomy_of(name), width).splitlines():
        assert len(line) <= width or len(line.strip(" │├└─→").split()) == 1, line


def test_a_long_name_goes_below_rather_than_beyond():
    lines = as_text(anatomy_of("llava"), 110).splitlines()
    (line,) = [line for line in lines if "tied to" in line]
    assert line.strip(" │├└─").startswith("tied to")
    assert len(line) <= 110


def test_every_hazard_has_a_word_in_the_legend():
    anatomy = anatomy_of("bert")
    assert "norm_inside" in anatomy.hazards
    assert f"norm_inside: {HAZARDS['norm_inside']}" in as_text(anatomy, 10_000)
    assert "<b>norm_inside</b>" in anatomy._repr_html_()


def test_no_colour_but_on_a_terminal(monkeypatch):
    anatomy = anatomy_of("gpt2")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    plain = str(anatomy)
    assert "\033" not in plain
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert "\033[1mGPT2LMHeadModel" in str(anatomy)
    monkeypatch.setenv("NO_COLOR", "1")
    assert str(anatomy) == plain


def test_a_terminal_that_knows_ascii_only(monkeypatch):
    anatomy = anatomy_of("gpt2")

    class Plain:
        encoding = "ascii"

        def isatty(self):
            return False

    assert not str(anatomy).isascii()
    monkeypatch.setattr("sys.stdout", Plain())
    assert str(anatomy).isascii()


class _Balanced(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open = []
        self.seen = []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("name", models.ZOO)
def test_html_is_well_formed_and_brings_all_along(name):
    html = anatomy_of(name)._repr_html_()
    reader = _Balanced()
    reader.feed(html)
    assert not reader.open
    assert {"details", "summary", "table", "style"} <= set(reader.seen)
    assert not {"script", "link", "img"} & set(reader.seen)
    assert "http" not in html


def test_html_escapes_names():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module("<b>&", nn.Linear(2, 2))

    Odd.__name__ = "<script>"
    html = ls.inspect(Odd())._repr_html_()
    assert "<script>" not in html
    assert "<b>&amp;" not in html
    assert "&lt;b&gt;&amp;" in html
