"""Saving and loading surgeries, and making them permanent."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

import layersurgery as ls
from layersurgery import testing
from layersurgery.errors import InterventionError, ModelMismatchError, SurgeryError, SurgeryFileError
from tests import models


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_round_trip(tmp_path_factory, data):
    surgery = data.draw(testing.surgeries(models.built("bert")))
    folder = tmp_path_factory.mktemp("surgery") / "new" / "folder"
    path = surgery.save_pretrained(folder)
    assert path.stat().st_size < 8000
    assert ls.Surgery.from_pretrained(folder) == surgery
    assert ls.Surgery.from_pretrained(path) == surgery
    assert ls.Surgery.from_pretrained(str(folder)) == surgery


@pytest.fixture
def saved(tmp_path):
    model = models.built("llama")
    cut = ls.Surgery(at=ls.select(model)[1], do=ls.Noise(std=0.5, seed=3))
    return cut.save_pretrained(tmp_path), cut


def rewrite(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda r: r.update(version=99, written_by="layersurgery 9.0"),
            SurgeryFileError,
            r"9\.0.*reads up to 2\. Upgrade",
        ),
        (lambda r: r.update(version="1"), SurgeryFileError, r"version '1'; expected a whole number"),
        (lambda r: r.update(version=0), SurgeryFileError, r"version 0"),
        (lambda r: r.update(format="peft"), SurgeryFileError, r"not a surgery"),
        (lambda r: r.update(steps=[]), SurgeryFileError, r"no steps"),
        (lambda r: r["steps"][0].pop("site"), SurgeryFileError, r"malformed step"),
        (lambda r: r["steps"][0]["site"].update(color="red"), SurgeryFileError, r"malformed step"),
        (lambda r: r["steps"][0].update(tied="maybe"), SurgeryFileError, r"tied='maybe'"),
        (lambda r: r["steps"][0]["do"].update(name="nois"), InterventionError, r"did you mean 'noise'"),
        (lambda r: r["steps"][0]["do"].update(std=-1), InterventionError, r"finite number"),
    ],
)
def test_a_wrong_file_is_a_clear_error(saved, change, error, message):
    path, _ = saved
    rewrite(path, change)
    with pytest.raises(error, match=message):
        ls.Surgery.from_pretrained(path.parent)


def test_no_file(tmp_path):
    with pytest.raises(SurgeryFileError, match=r"holds no surgery\.json"):
        ls.Surgery.from_pretrained(tmp_path)
    with pytest.raises(SurgeryFileError, match=r"neither a folder, nor"):
        ls.Surgery.from_pretrained(tmp_path / "missing")
    with pytest.raises(SurgeryFileError, match=r"the hub gave no surgery\.json"):
        ls.Surgery.from_pretrained("someone/some-surgery")  # offline here
    (tmp_path / "surgery.json").write_text("{")
    with pytest.raises(SurgeryFileError, match="cannot be read as JSON"):
        ls.Surgery.from_pretrained(tmp_path)


def test_a_loaded_surgery_on_the_wrong_model(saved):
    path, cut = saved
    loaded = ls.Surgery.from_pretrained(path)
    with torch.random.fork_rng():
        larger = models.llama(hidden_size=64).eval()
        shallower = models.llama(num_hidden_layers=1).eval()
    for model, message in ((larger, "a model of another size"), (shallower, "no module 'model.layers.1.self_attn'")):
        with testing.restored(model), pytest.raises(ModelMismatchError, match=message), loaded(model):
            pass
    with loaded(models.built("llama")):
        assert ls.status(models.built("llama")) == cut.steps


@pytest.mark.parametrize("name", ["llama", "llava"])
def test_merge_then_save_and_reload(name, tmp_path):
    with torch.random.fork_rng():
        model = models.ZOO[name][0]().eval()
    models.run(model, name)
    cut = ls.Surgery(at=ls.select(model)[1], do=ls.Noise(seed=5)) + ls.Surgery(at=ls.select(model)[2], do=ls.Zero())
    originals = {n: (p, p.detach().clone()) for n, p in model.named_parameters()}
    order = list(model.state_dict())
    with cut(model):
        expected = models.run(model, name)
    assert cut.merge_(model) is model
    assert not ls.status(model)
    assert torch.equal(models.run(model, name), expected)
    assert list(model.state_dict()) == order
    for parameter, values in originals.values():  # who holds the old tensors still has them as they were
        assert torch.equal(parameter, values)
    for parameter in model.parameters():
        assert parameter.is_contiguous()
        assert parameter.requires_grad
    model.save_pretrained(tmp_path)
    auto = AutoModelForImageTextToText if name == "llava" else AutoModelForCausalLM
    assert torch.equal(models.run(auto.from_pretrained(tmp_path).eval(), name), expected)


def test_merge_refuses_what_would_be_lost():
    with torch.random.fork_rng():
        model = models.llava().eval()
    head = ls.select(model, pattern="lm_head")[0]
    with testing.restored(model), pytest.raises(SurgeryError, match=r"tied to .*tied='everywhere'"):
        ls.Surgery(at=head, do=ls.Zero()).merge_(model)
    handle = ls.Surgery(at=ls.select(model)[0], do=ls.Zero()).attach(model)
    with testing.restored(model), pytest.raises(SurgeryError, match="in force on this model"):
        ls.Surgery(at=ls.select(model)[1], do=ls.Zero()).merge_(model)
    handle.remove()
    ls.Surgery(at=head, do=ls.Zero(), tied="everywhere").merge_(model)
    assert not model.lm_head.weight.any()
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


def test_merge_on_a_plain_module():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU()).eval()
    ls.Surgery(at=ls.select(model, pattern="0"), do=ls.Uniform()).merge_(model)
    assert torch.equal(model(torch.ones(1, 2)), torch.ones(1, 3))  # two inputs of 1/3 each, and a bias of 1/3
    torch.nn.init.normal_(model[0].weight)  # memory of its own: it can be trained on
