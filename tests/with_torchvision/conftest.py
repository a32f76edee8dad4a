"""A process of its own, with torchvision: it must be there before anything imports transformers."""

from __future__ import annotations

import pytest

from tests.with_torchvision import checkpoints, shim

shim.install()


@pytest.fixture(scope="session", params=checkpoints.FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="session")
def folder(family, tmp_path_factory):
    """A checkpoint of the family, as a hub id would give it."""
    return checkpoints.build(family, tmp_path_factory.mktemp(family))


@pytest.fixture(scope="session")
def vlm(folder):
    """Its model and processor, loaded as a user does. Tests leave both as they were."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    return AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
