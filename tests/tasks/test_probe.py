"""Probe sets: whole groups, the same for the same seed whatever the order, kept as ids."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layersurgery.errors import LayerSurgeryWarning, SampleError
from layersurgery.tasks import Probe, Sample, Samples, benchmark, draw_probe
from tests.tasks import fixtures as fx


def questions(groups):
    return [Sample(str(n), "?", answer="x", group=group) for n, group in enumerate(groups)]


GROUPS = st.lists(st.none() | st.sampled_from("abcdef"), min_size=2, max_size=40)


@pytest.mark.filterwarnings("ignore::layersurgery.errors.LayerSurgeryWarning")
@given(GROUPS, st.data())
def test_groups_stay_whole_and_the_order_does_not_matter(groups, data):
    samples = questions(groups)
    shots = data.draw(st.integers(1, len(samples)))
    seed = data.draw(st.integers(0, 99))
    if shots < min(1 if group is None else groups.count(group) for group in groups):
        with pytest.raises(SampleError, match="the smallest group has"):
            draw_probe(samples, shots, seed=seed)
        return
    drawn = draw_probe(samples, shots, seed=seed)
    assert 1 <= len(drawn.probe) <= shots
    assert {*drawn.probe, *drawn.rest} == set(samples)
    assert not set(drawn.probe) & set(drawn.rest)
    assert not {one.group for one in drawn.probe if one.group} & {one.group for one in drawn.rest if one.group}
    if all(group is None for group in groups):
        assert len(drawn.probe) == shots
    shuffled = random.Random(seed).sample(samples, len(samples))
    assert set(draw_probe(shuffled, shots, seed=seed).ids) == set(drawn.ids)


def test_seeds_give_other_draws_and_every_sample_is_drawn_equally_often():
    samples = questions([None] * 10)
    drawn = [draw_probe(samples, 3, seed=seed).ids for seed in range(400)]
    assert len(set(drawn)) > 50
    often = [sum(sample.id in ids for ids in drawn) for sample in samples]
    assert all(80 <= count <= 160 for count in often), often


def test_groups_that_do_not_add_up_are_said():
    with pytest.warns(LayerSurgeryWarning, match="2 samples are drawn and not 3: groups are not split"):
        draw_probe(questions("aabb"), 3)
    with pytest.raises(SampleError, match="shots=1: the smallest group has 2 samples"):
        draw_probe(questions("aabb"), 1)


@pytest.mark.parametrize("shots", [0, 5, True, 1.0])
def test_shots_out_of_range(shots):
    with pytest.raises(SampleError, match="give a number from 1 to 4"):
        draw_probe(questions("aabb"), shots)


def test_a_probe_is_saved_as_ids_and_found_again(tmp_path):
    samples = benchmark("mmstar").samples(source=fx.mmstar())
    drawn = draw_probe(samples, 2, seed=7)
    record = json.loads(drawn.save(tmp_path / "probe.json").read_text())
    assert record["ids"] == list(drawn.ids)
    assert record["origin"]["benchmark"] == "mmstar"
    again = Probe.load(tmp_path / "probe.json", Samples(list(samples)[::-1], samples.origin))
    assert set(again.ids) == set(drawn.ids)
    assert (again.shots, again.seed) == (2, 7)
    assert again.probe.origin["part"] == "probe of 2, seed 7"
    assert again.rest.origin["part"] == "all but the probe of 2, seed 7"
    with pytest.raises(SampleError, match=r"of its 2 samples are not among the .* given, such as '.*It was drawn from"):
        Probe.load(tmp_path / "probe.json", again.rest)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as a saved probe set"),
        ("[]", "is no probe set that this library saved"),
        ('{"layersurgery_probe": 2}', "is no probe set"),
        ('{"layersurgery_probe": 1, "ids": 3}', "ids=3; expected a list"),
        ('{"layersurgery_probe": 1, "ids": [], "shots": 1, "seed": 0}', "origin=None; expected a dict"),
    ],
)
def test_files_that_are_no_probes(content, message, tmp_path):
    (tmp_path / "probe.json").write_text(content)
    with pytest.raises(SampleError, match=message):
        Probe.load(tmp_path / "probe.json", questions("ab"))


def test_samples_of_several_tasks_are_refused():
    with pytest.raises(SampleError, match="the id '1' is there twice; give the samples of one task"):
        draw_probe([Sample("1", "?", answer="x", task="a"), Sample("1", "?", answer="x", task="b")], 1)
