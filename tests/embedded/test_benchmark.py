"""The embedded benchmark: the same everywhere, split down to digits and layouts, balanced, and strict on input."""

import hashlib
import itertools
import random
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from layersurgery.embedded import TASKS, make_samples
from layersurgery.embedded._digits import SPLITS, digit_indices, digits, glyphs
from layersurgery.embedded._scenes import COLOURS, SCENE_KINDS, draw_scene, layout_split
from layersurgery.errors import SampleError, TaskError

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

DEFINITION = Path(__file__).parents[2] / "benchmarks_tasks" / "embedded.toml"
PINNED = {
    "digit_name": "6342aab3d2f07426",
    "shape_colour": "0c223ac4ff597e2a",
    "shape_kind": "b299915c33e36a9a",
    "digit_count": "0f0844d388f8f004",
    "shape_count": "38fabe29e53f95ef",
    "map_count": "8211120df89a9fd9",
    "digit_larger": "c414516624d0320d",
    "shape_where": "d7f34ddc0af267b1",
    "shape_size": "548c3a5d79f84781",
    "digit_sum": "83e2742cb5e044ef",
    "digit_even": "5853cb300959258f",
    "map_value": "bb312bb0052fc07f",
    "map_legend": "e5d2de90d563d3bf",
}


def fingerprint(samples):
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(repr((sample.id, sample.question, sample.options, sample.answer)).encode())
        digest.update(np.asarray(sample.images[0]).tobytes())
    return digest.hexdigest()[:16]


def test_digits_are_scikit_learns():
    images, labels = digits()
    original = load_digits()
    assert np.array_equal(images, original.images)
    assert np.array_equal(labels, original.target)


def test_every_digit_image_is_in_exactly_one_split():
    found = Counter(i for split in SPLITS for value in range(10) for i in digit_indices(split, value))
    assert sorted(found) == list(range(1797))
    assert set(found.values()) == {1}
    assert all(len(digit_indices(split, value)) >= 15 for split in SPLITS for value in range(10))


def test_enlarging_keeps_the_ink():
    images, _ = digits()
    assert glyphs().max() == 255
    small = images.mean(axis=(1, 2)) / 16 * 255
    assert np.allclose(glyphs().mean(axis=(1, 2)), small, atol=3)


@pytest.mark.parametrize("task", TASKS)
def test_samples_are_what_they_always_were(task):
    assert fingerprint(make_samples(task, "test", 5)) == PINNED[task]


def test_a_longer_draw_begins_with_the_shorter_one():
    assert make_samples("map_value", "probe", 30, seed=3)[:7] == make_samples("map_value", "probe", 7, seed=3)


def test_seeds_and_splits_draw_other_samples():
    draws = [{s.id for s in make_samples("digit_sum", split, 50, seed)} for split in SPLITS for seed in (0, 1)]
    assert all(not a & b for a, b in itertools.combinations(draws, 2))


@pytest.mark.parametrize("task", TASKS)
def test_five_hundred_distinct_balanced_samples(task):
    samples = make_samples(task, "test", 500)
    spec = TASKS[task]
    assert len({s.id for s in samples}) == len({s.group for s in samples}) == 500
    assert {len(s.options) for s in samples} == {spec.option_count}
    assert all(len(set(s.options)) == len(s.options) for s in samples)
    counts = Counter(s.answer for s in samples)
    assert set(counts.values()) == {500 // spec.option_count}
    most_frequent = Counter(s.options[s.answer] for s in samples).most_common(1)[0][1]
    assert most_frequent / 500 < max(spec.chance + 0.1, 0.4)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(list(SCENE_KINDS)), split=st.sampled_from(SPLITS))
def test_a_scene_belongs_to_its_split(seed, kind, split):
    scene = draw_scene(random.Random(seed), kind, split)
    assert layout_split(scene.layout) == split
    assert scene.image.shape == (64, 64, 3)
    assert scene.image.dtype == np.uint8


def test_no_layout_is_in_two_splits():
    layouts = [{s.meta["layout"] for task in TASKS for s in make_samples(task, split, 100, seed=5)} for split in SPLITS]
    assert all(layouts)
    assert all(not a & b for a, b in itertools.combinations(layouts, 2))


def colours_of(layout, large):
    return {shape.colour for shape in layout.objects if shape.large == large}


def one_of(layout, colour):
    return next(shape for shape in layout.objects if shape.colour == colour)


def expected_place(a, b):
    across, down = a.column - b.column, a.row - b.row
    assert (across == 0) != (down == 0)
    return {(True, False): "left", (False, False): "right", (True, True): "above", (False, True): "below"}[
        (across + down < 0, across == 0)
    ]


EXPECTED = {
    "digit_name": lambda at, w: str(at.values[0] if w[-1] == "left" else at.values[1]),
    "digit_larger": lambda at, w: "left" if at.values[0] > at.values[1] else "right",
    "digit_sum": lambda at, w: str(at.values[0] + at.values[1]),
    "digit_even": lambda at, w: ["yes", "no"][(at.values[0] + at.values[1]) % 2],
    "digit_count": lambda at, w: str(len(at.cells)),
    "shape_colour": lambda at, w: next(shape.colour for shape in at.objects if shape.kind == w[-1]),
    "shape_kind": lambda at, w: one_of(at, w[-1]).kind,
    "shape_count": lambda at, w: str(len({(shape.column, shape.row) for shape in at.objects})),
    "shape_where": lambda at, w: expected_place(one_of(at, w[3]), one_of(at, w[7])),
    "map_count": lambda at, w: str([at.colours[place] for place in at.regions].count(w[-1])),
    "map_value": lambda at, w: str(at.values[at.regions[at.marked]]),
    "map_legend": lambda at, w: at.colours[at.values.index(int(w[-1]))],
}


@pytest.mark.parametrize("task", EXPECTED)
def test_right_answers_are_right(task):
    for sample in make_samples(task, "probe", 60, seed=2):
        words = sample.question.rstrip("?").split()
        right = EXPECTED[task](sample.meta["layout"], words)
        assert sample.options[sample.answer] == right
        assert sample.options.count(right) == 1


def test_the_larger_shape_is_the_large_one_of_the_two():
    for sample in make_samples("shape_size", "probe", 60, seed=2):
        layout = sample.meta["layout"]
        assert sample.options[sample.answer] in colours_of(layout, large=True)
        assert sample.options[1 - sample.answer] in colours_of(layout, large=False)


def test_pictures_show_their_layout():
    """Shapes have their colour, a map's mark is white, and there is ink where digits are and nowhere else."""
    rng = random.Random(0)
    for _ in range(20):
        scene = draw_scene(rng, "shapes", "train")
        for shape in scene.layout.objects:
            cell = scene.image[shape.row * 16 :, shape.column * 16 :][:16, :16].reshape(-1, 3).astype(int)
            pixel = cell[np.ptp(cell, axis=1).argmax()]  # the background is grey
            nearest = min(COLOURS, key=lambda c: np.abs(pixel - COLOURS[c]).sum())
            assert nearest == shape.colour
        scene = draw_scene(rng, "map", "train")
        row, column = divmod(scene.layout.marked, 4)
        assert (scene.image[row * 16 + 8, column * 16 + 8] == 255).all()
        scene = draw_scene(rng, "digits", "train")
        ink = scene.image[..., 0].reshape(4, 16, 4, 16)[:, 4:12, :, 4:12].max(axis=(1, 3)) > 100
        assert {c * 4 + r for r, c in zip(*np.nonzero(ink), strict=True)} == set(scene.layout.cells)


def test_the_definition_says_what_the_code_does():
    definition = tomllib.loads(DEFINITION.read_text(encoding="utf-8"))
    assert definition["splits"] == list(SPLITS)
    assert list(definition["tasks"]) == list(TASKS)
    for name, task in TASKS.items():
        assert definition["tasks"][name] == {
            "family": task.family,
            "description": task.description,
            "options": task.option_count,
            "chance": task.chance,
        }


def test_five_families():
    assert Counter(task.family for task in TASKS.values()) == {
        "perception": 3,
        "counting": 3,
        "relation": 3,
        "arithmetic": 2,
        "map": 2,
    }


def test_an_unknown_task_is_named_with_its_neighbours():
    with pytest.raises(TaskError, match=r"no task 'shape_colours': did you mean 'shape_colour'"):
        make_samples("shape_colours", "test", 5)
    with pytest.raises(TaskError, match=r"digit_name, shape_colour"):
        make_samples("zzz", "test", 5)


def test_an_unknown_split_is_refused():
    with pytest.raises(SampleError, match=r"'dev' is not one of train, probe, test"):
        make_samples("digit_sum", "dev", 5)


@pytest.mark.parametrize("n", [0, -3, 2.5, True, "7"])
def test_a_bad_number_of_samples_is_refused(n):
    with pytest.raises(SampleError, match=r"at least 1"):
        make_samples("digit_sum", "test", n)
