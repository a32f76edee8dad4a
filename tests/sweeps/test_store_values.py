"""Samples, scorers and whatever is in them: the same content gives the same digest, any other content another."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import functools
import io
import pickle
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import layersurgery as ls
from layersurgery.errors import StoreError
from layersurgery.scoring._images import load_images
from layersurgery.sweeps._store_run import scorer_fingerprint
from layersurgery.sweeps._store_values import Digests

# --- samples -----------------------------------------------------------------------------------------------------


def of(value):
    return Digests().of(value)


def picture(colour=(1, 2, 3), size=(4, 3), mode="RGB"):
    return Image.new(mode, size, colour)


def as_file(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer


SAMPLE = ls.Sample("q", "Which?", ("a", "b"), 1, images=(picture(),), meta={"year": 1999})


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "r"},
        {"question": "Which one?"},
        {"options": ("a", "c")},
        {"options": ("a", "b", "c")},
        {"answer": 0},
        {"images": ()},
        {"images": (picture((1, 2, 4)),)},
        {"images": (picture(size=(3, 4)),)},
        {"images": (picture(), picture())},
        {"task": "colours"},
        {"benchmark": "mmstar"},
        {"meta": {"year": 2000}},
        {"meta": {"year": "1999"}},
        {"hint": "Look."},
        {"categories": {"subject": ("art",)}},
        {"variants": (ls.Sample("q-2", "Which?", ("b", "a"), 0),)},
        {"variants": (ls.Sample("q-2", "Which?", ("b", "a"), 0, images=(picture(),)),)},
    ],
    ids=", ".join,  # names alone: a picture shows its address in memory
)
def test_every_field_of_a_sample_counts(changes):
    assert of(dataclasses.replace(SAMPLE, **changes)) != of(SAMPLE)
    assert of(dataclasses.replace(SAMPLE, images=(picture(),))) == of(SAMPLE)


def test_number_kinds_of_samples_count():
    number = ls.Sample("q", "How much?", answer="2.5", kind="float", precision=1, unit="m")
    assert (
        len({of(dataclasses.replace(number, **c)) for c in ({}, {"precision": 2}, {"unit": "s"}, {"answer": "2.50"})})
        == 4
    )


def test_pictures_in_files(tmp_path):
    paths = [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png"]
    for path, colour in zip(paths, ((1, 2, 3), (1, 2, 3), (9, 9, 9)), strict=True):
        picture(colour).save(path)
    first, moved, other = (of(dataclasses.replace(SAMPLE, images=(path,))) for path in paths)
    assert first == moved != other
    assert of(dataclasses.replace(SAMPLE, images=(str(paths[0]),))) == first
    picture((5, 5, 5)).save(paths[0])
    assert of(dataclasses.replace(SAMPLE, images=(paths[0],))) not in (first, other)


def test_opening_and_decoding_a_picture_changes_nothing(tmp_path):
    path = tmp_path / "a.png"
    picture().save(path)
    in_memory = dataclasses.replace(SAMPLE, images=(Image.open(as_file(picture())),))
    on_disk = dataclasses.replace(SAMPLE, images=(Image.open(path),))
    for sample in (in_memory, on_disk):
        before = of(sample)
        load_images(sample)
        assert of(sample) == before
    assert of(on_disk) == of(SAMPLE)  # by its pixels


def test_palettes_and_transparency_count():
    one = picture().convert("P", palette=Image.Palette.ADAPTIVE)
    other = one.copy()
    other.putpalette([9, 9, 9] * 2)
    seen_through = one.copy()
    seen_through.info["transparency"] = 0
    assert len({of(one), of(other), of(seen_through), of(one.convert("RGB"))}) == 4


def test_a_picture_that_is_broken(tmp_path):
    whole = as_file(Image.effect_noise((200, 200), 50)).getvalue()
    path = tmp_path / "half.png"
    path.write_bytes(whole[: len(whole) // 2])
    with Image.open(path) as broken, pytest.raises(StoreError, match="a picture cannot be decoded"):
        of(broken)


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass
class Pair:
    one: object
    other: object = None


class Slots:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


DIFFERENT = [
    None, True, False, 0, 1, 2, -1, 0.0, -0.0, 1.0, float("nan"), float("inf"), 1j, "", "1", "a", b"", b"a", "\ud800",
    (), (1,), [1], [1, 2], [2, 1], [[1], 2], [1, [2]], ["ab", "c"], ["a", "bc"], {1}, frozenset({1}), {}, {1: 2},
    {2: 1}, {"a": None}, np.float32(1), np.float64(1), np.int64(1), np.array([1.0]), np.array([1]), np.array([[1]]),
    np.array([None]), torch.ones(1), torch.ones(1, 1), torch.ones(1).half(), Colour.RED, Colour.BLUE, Pair(1),
    Pair(1, 2), Pair([1]), Slots(1), Slots(2), SimpleNamespace(a=1), SimpleNamespace(b=1), datetime.date(2020, 1, 1),
    datetime.date(2020, 1, 2), decimal.Decimal("1"), decimal.Decimal("1.0"), range(3), range(4), slice(1),
    Path("nowhere"), Path("nowhere/else"), int, float, len, max, [].append, functools.partial(max, 1),
    functools.partial(max, 2), lambda x: x, lambda x: x + 1, "a".upper, "b".upper, np.random.RandomState(0),
    np.random.RandomState(1),
]  # fmt: skip


def test_different_values_differ():
    digests = [of(value) for value in DIFFERENT]
    clashes = [(DIFFERENT[i], DIFFERENT[j]) for i in range(len(digests)) for j in range(i) if digests[i] == digests[j]]
    assert clashes == []


def test_copies_are_the_same():
    for value in DIFFERENT:
        try:
            copy = pickle.loads(pickle.dumps(value))
        except (pickle.PicklingError, AttributeError, TypeError):
            continue
        assert of(copy) == of(value), value


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(values, values)
def test_values_have_one_digest_each(one, other):
    assert of(one) == of(pickle.loads(pickle.dumps(one)))
    assert (of(one) == of(other)) == (pickle_free(one) == pickle_free(other))


def pickle_free(value):
    """A value as nested tuples of type and content."""
    if isinstance(value, dict):
        return dict, frozenset((key, pickle_free(entry)) for key, entry in value.items())
    if isinstance(value, list | tuple):
        return type(value), tuple(map(pickle_free, value))
    return type(value), value.hex() if isinstance(value, float) else value


def test_what_goes_round_in_circles():
    circle: list = [1]
    circle.append(circle)
    other: list = [2]
    other.append(other)
    again: list = [1]
    again.append(again)
    assert of(circle) == of(again) != of(other)
    wide = [[0]]
    for _ in range(60):  # a number of ways through it beyond all bounds
        wide = [wide[0:], wide[0:], [wide, wide]]
    assert of(wide)


@pytest.mark.parametrize("value", [threading.Lock(), (x for x in [1]), [1, {"a": threading.Lock()}], nn.Linear(1, 1)])
def test_what_cannot_be_read_is_refused(value):
    with pytest.raises(StoreError, match=r"cannot be read|is part of it"):
        of(value)


# --- scorers -----------------------------------------------------------------------------------------------------


def test_scorers_are_told_apart_by_code_and_settings():
    model = nn.Sequential(nn.Linear(1, 1))
    table = {"a": 1}

    def one(factor, values=table):
        return lambda model, samples: [factor * values["a"] for _ in samples]

    def recursive(model, samples):
        return recursive(model, samples[1:]) if samples else []

    def shown(processor):
        return lambda model, samples: [len(processor("a")) for _ in samples]

    class Holder:
        def __init__(self, model, number):
            self.model, self.number = model, number

        def __call__(self, model, samples):
            return self.help(samples)

        def help(self, samples):
            return [self.number] * len(samples)

    class Changed(Holder):
        def help(self, samples):
            return [-self.number] * len(samples)

    from layersurgery.embedded import load

    _, processor = load("natural")
    scorers = [
        one(1),
        one(2),
        one(np.arange(5000)),
        one(np.arange(5000) + (np.arange(5000) == 2500)),
        recursive,
        shown(processor),
        shown(ls.ChoiceScorer(processor)),
        shown(ls.ChoiceScorer(processor, candidates="options")),
        Holder(model, 1),
        Holder(model, 2),
        Holder(model[0], 1),
        Changed(model, 1),
        functools.partial(recursive),
        functools.partial(recursive, samples=[]),
        ls.ChoiceScorer(processor),
    ]
    found = [scorer_fingerprint(scorer, model) for scorer in scorers]
    assert len(set(found)) == len(found)
    assert scorer_fingerprint(one(1), model) == found[0]
    processor(text="What is it?", padding="max_length", max_length=20)  # leaves traces in tokenizers
    assert scorer_fingerprint(shown(processor), model) == found[5]
