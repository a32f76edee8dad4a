"""Where: one attention per layer of the language backbone, and never one of the vision tower."""

from __future__ import annotations

import layersurgery as ls
from tests.with_torchvision.checkpoints import LAYERS

TOWERS = {"llava_next": "model.vision_tower.", "qwen2_vl": "model.visual.", "internvl": "model.vision_tower."}


def test_the_default_is_the_language_backbones_attention(vlm):
    sites = ls.select(vlm[0])
    assert sites.paths == tuple(f"model.language_model.layers.{layer}.self_attn" for layer in range(LAYERS))


def test_other_roles_stay_in_the_backbone_too(vlm):
    for role in ("mlp", "norm", "layer"):
        assert all(path.startswith("model.language_model.layers.") for path in ls.select(vlm[0], role).paths)


def test_the_vision_tower_is_there_when_it_is_asked_for(vlm, family):
    paths = ls.select(vlm[0], tower="vision").paths
    assert len(paths) >= 2
    assert all(path.startswith(TOWERS[family]) for path in paths)


def test_inspect_shows_both_towers(vlm):
    shown = str(ls.inspect(vlm[0]))
    assert "vision" in shown
    assert "language" in shown
