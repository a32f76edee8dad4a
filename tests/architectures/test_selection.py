"""`select` against expectations that were read from the models' sources, on every class of the bench."""

from __future__ import annotations

from functools import lru_cache

import pytest

from tests.architectures.build import build_meta, names
from tests.architectures.check import ROLES, differences, known_gaps
from tests.architectures.expected import LAYOUTS, REFUSED


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


def test_every_class_has_exactly_one_expectation():
    written = [name if "/" in name else f"vlm/{name}" for _, group in LAYOUTS for name in group.split()]
    assert sorted([*written, *REFUSED]) == sorted(names())


def test_known_gaps_are_of_classes_that_are_there():
    assert {name for name, _ in known_gaps()} <= set(names())
