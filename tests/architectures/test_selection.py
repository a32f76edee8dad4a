"""`select` against expectations that were read from the models' sources, on every class of the bench."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
import transformers

import layersurgery as ls
from tests.architectures.build import build_meta, names
from tests.architectures.check import ROLES, differences, known_gaps
from tests.architectures.expected import LAYOUTS, REFUSED
from tests.architectures.shrink import shrink


@lru_cache(maxsize=1)  # both roles of a model come one after the other: it is built and looked at once
def _model(name):
    return build_meta(name)


def _cases():
    for name in names():
        for role in ROLES:
            cause = known_gaps().get((name, role))
            marks = [pytest.mark.xfail(reason=cause, strict=True)] if cause else []
            yield pytest.param(name, role, id=f"{name}-{role}", marks=marks)


@pytest.mark.parametrize(("name", "role"), list(_cases()))
def test_select_finds_what_the_source_says(name, role):
    wrong = differences(name, _model(name), role)
    assert not wrong, "\n".join(wrong)


# further classes, in which stacks of other things stand beside the one that counts: by their sources
BESIDE = {
    "CanineModel": "encoder.layer",  # and encoders of characters, one layer each
    "CsmForConditionalGeneration": "backbone_model.layers",  # and a decoder of codebooks, and a codec
    "Data2VecAudioForCTC": "data2vec_audio.encoder.layers",  # and convolutions for positions
    "KyutaiSpeechToTextForConditionalGeneration": "model.layers",  # and a codec
    "SeamlessM4TForTextToText": "text_decoder.layers",  # and an encoder of text, which is no backbone
    "VoxtralForConditionalGeneration": "model.language_model.layers",
}


@pytest.mark.parametrize("made_for", BESIDE)
def test_the_stack_that_counts_is_chosen(made_for):
    kind = getattr(transformers, made_for)
    with torch.device("meta"):
        model = kind(shrink(kind.config_class())).eval()
    layers = len(model.get_submodule(BESIDE[made_for]))
    found = {site.path.rpartition(".layer")[0] or site.path for site in ls.select(model)}
    assert found == {BESIDE[made_for].rpartition(".layer")[0]}
    assert {site.layer for site in ls.select(model)} == set(range(layers))


def test_every_class_has_exactly_one_expectation():
    written = [name if "/" in name else f"vlm/{name}" for _, group in LAYOUTS for name in group.split()]
    assert sorted([*written, *REFUSED]) == sorted(names())


def test_known_gaps_are_of_classes_that_are_there():
    assert {name for name, _ in known_gaps()} <= set(names())
