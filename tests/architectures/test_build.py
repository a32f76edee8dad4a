"""The bench's instances: small, the same each time, and without a table of what models look like."""

from __future__ import annotations

import pytest
import torch

from tests.architectures.build import build, build_meta, names
from tests.architectures.exceptions import NOT_BUILT
from tests.architectures.inputs import inputs
from tests.architectures.shrink import VOCABULARY

SOME = ("vlm/qwen2_vl", "causal/jamba", "other/t5")


def test_every_class_of_both_mappings_is_there():
    from transformers.models.auto import modeling_auto

    wanted = {
        *modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values(),
        *modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(),
    }
    missing = wanted - set(names().values())
    assert len(missing) == len(NOT_BUILT), missing


@pytest.mark.parametrize("name", SOME)
def test_an_instance_is_the_same_each_time_and_leaves_chance_alone(name):
    before = torch.get_rng_state()
    one, two = build(name), build(name)
    assert torch.equal(torch.get_rng_state(), before)
    assert one.state_dict().keys() == two.state_dict().keys()
    assert all(torch.equal(weight, two.state_dict()[key]) for key, weight in one.state_dict().items())
    assert any(
        not torch.equal(weight, other)
        for weight, other in zip(build(name, 1).parameters(), one.parameters(), strict=True)
    )


@pytest.mark.parametrize("name", SOME)
def test_an_instance_is_tiny_with_weights_and_without(name):
    model = build_meta(name)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) < 3_000_000


@pytest.mark.parametrize("name", SOME)
def test_text_has_no_special_tokens(name):
    text = inputs(name)["input_ids"]
    special = {value for key, value in vars(build_meta(name).config).items() if key.endswith("_token_id")}
    assert text.max() < VOCABULARY
    assert not special & set(text.flatten().tolist())
