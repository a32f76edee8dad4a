"""`InteractionVectors`: what it takes, what it refuses, and what it says of several tasks."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist, squareform

from layersurgery.errors import LayerSurgeryError, TaskError, VectorError
from layersurgery.interventions import Uniform, Zero
from layersurgery.sites import Site, Sites
from layersurgery.surgery import Surgery
from layersurgery.sweeps import ScoreTable
from layersurgery.vectors import InteractionVectors

THREE = {"sum": [0.1, 0.0, -0.4, 0.2], "count": [0.2, 0.0, -0.7, 0.5], "maps": [-0.3, 0.1, 0.1, 0.0]}


def table(correct, *, layers=(4, 5), do=None, role="self_attn"):
    sites = Sites(Site(f"h.{layer}.{role}", layer=layer) for layer in layers)
    surgeries = tuple(Surgery(at=site, do=do or Zero()) for site in sites)
    correct = np.array(correct, dtype=float)
    return ScoreTable(sites, surgeries, tuple(map(str, range(correct.shape[1]))), correct)


def test_score_tables_give_vectors_sites_layers_and_bases():
    v = InteractionVectors({"a": table([[1, 0], [1, 1], [0, 0]]), "b": table([[1, 1], [1, 1], [0, 0]])})
    assert v.tasks == ("a", "b")
    assert v.matrix.tolist() == [[0.5, -0.5], [0, -1]]
    assert v.sites == ("h.4.self_attn", "h.5.self_attn")
    assert v.layers == (4, 5)
    assert v.base.tolist() == [0.5, 1]
    assert v.surgeries is not None
    assert [str(surgery) for surgery in v.surgeries] == ["zero h.4.self_attn", "zero h.5.self_attn"]
    assert len(v) == 2
    assert v["b"].tolist() == [0, -1]


def test_plain_arrays_have_positions_for_sites():
    v = InteractionVectors(THREE)
    assert v.sites == ("0", "1", "2", "3")
    assert v.layers == (0, 1, 2, 3)
    assert np.isnan(v.base).all()
    assert v.surgeries is None


def test_layers_that_do_not_tell_sites_apart_are_replaced_by_positions():
    assert InteractionVectors({"a": table([[1], [0], [0]], layers=(4, None))}).layers == (0, 1)


def test_it_is_frozen_and_does_not_share_memory():
    mine = np.array([0.1, 0.2])
    v = InteractionVectors({"a": mine})
    mine[0] = 9
    assert v.matrix[0, 0] == 0.1
    with pytest.raises(ValueError, match="read-only"):
        v.matrix[0, 0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        v.tasks = ("b",)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ({}, "give a mapping"),
        ([[0.1, 0.2]], "give a mapping"),
        ({"a": [0.1, 0.2], "b": [0.1]}, "task 'a' has 2 sites and task 'b' 1"),
        ({"a": [0.1, np.nan, np.nan]}, "task 'a': 2 of 3 sites have no score change .the first is site 1"),
        ({"a": [[0.1]]}, r"got shape \(1, 1\)"),
        ({"a": []}, r"got shape \(0,\)"),
        ({"a": "maps"}, "expected a score table or a flat array; got 'maps'"),
        (
            {"a": table([[1], [0], [0]]), "b": table([[1], [0], [0]], role="mlp")},
            "task 'a' was swept at h.4.self_attn where task 'b' was at h.4.mlp",
        ),
        (
            {"a": table([[1], [0], [0]]), "b": table([[1], [0], [0]], do=Uniform())},
            "with zero h.4.self_attn where task 'b' was with uniform h.4.self_attn",
        ),
    ],
)
def test_vectors_that_do_not_belong_together_are_refused(vectors, message):
    with pytest.raises(VectorError, match=message) as caught:
        InteractionVectors(vectors)
    assert isinstance(caught.value, LayerSurgeryError)
    assert isinstance(caught.value, ValueError)


def test_an_unknown_task_is_named_beside_the_known_ones():
    with pytest.raises(TaskError, match="no vector of task 'map'; there are 'sum', 'count', 'maps'"):
        InteractionVectors(THREE)["map"]


def test_correlation_is_pearsons_between_tasks():
    rho = InteractionVectors(THREE).correlation()
    x, y = np.array(THREE["sum"]), np.array(THREE["maps"])
    by_hand = np.sum((x - x.mean()) * (y - y.mean())) / np.sqrt(
        np.sum((x - x.mean()) ** 2) * np.sum((y - y.mean()) ** 2)
    )
    assert rho[0, 2] == pytest.approx(by_hand)
    assert np.array_equal(rho, rho.T)
    assert rho.diagonal().tolist() == [1, 1, 1]


def test_distance_is_0_for_the_same_response_and_2_for_the_opposite():
    v = InteractionVectors({"a": [0.1, 0.2, 0.4], "scaled": [0.2, 0.4, 0.8], "opposite": [-0.1, -0.2, -0.4]})
    assert v.distance() == pytest.approx(np.array([[0, 0, 2], [0, 0, 2], [2, 2, 0]]), abs=1e-12)


@pytest.mark.parametrize("ask", [lambda v: v.correlation(), lambda v: v.distance(), lambda v: v.cluster(1)])
def test_a_constant_vector_has_no_correlation(ask):
    with pytest.raises(VectorError, match=r"task 'flat' changes by \+0.1 at every one of its 2 sites"):
        ask(InteractionVectors({"a": [0.1, 0.2], "flat": [0.1, 0.1]}))


def test_tasks_that_respond_alike_share_a_cluster():
    v = InteractionVectors(THREE)
    assert v.cluster(2) == {"sum": 1, "count": 1, "maps": 2}
    assert v.cluster(1) == {"sum": 1, "count": 1, "maps": 1}
    assert v.cluster(3) == {"sum": 1, "count": 2, "maps": 3}


def test_labels_go_by_first_appearance():
    swapped = {task: THREE[task] for task in ("maps", "sum", "count")}
    assert InteractionVectors(swapped).cluster(2) == {"maps": 1, "sum": 2, "count": 2}


def test_ties_still_give_as_many_clusters_as_asked_for():
    same = [0.1, 0.2, 0.4]
    v = InteractionVectors({str(task): same for task in range(5)})
    for k in range(1, 6):
        assert set(v.cluster(k).values()) == set(range(1, k + 1))


@pytest.mark.parametrize("method", ["average", "complete", "single", "weighted"])
@given(seed=st.integers(0, 10**6), k=st.integers(1, 9))
def test_clusters_agree_with_scipys_where_nothing_ties(method, seed, k):
    matrix = np.random.default_rng(seed).normal(size=(9, 6))
    labels = list(InteractionVectors({str(i): row for i, row in enumerate(matrix)}).cluster(k, method).values())
    theirs = fcluster(linkage(squareform(squareform(pdist(matrix, "correlation"))), method), k, "maxclust")
    same = np.equal.outer(labels, labels)
    assert np.array_equal(same, np.equal.outer(theirs, theirs))


@pytest.mark.parametrize("k", [0, 4, -1, 1.5, None, True])
def test_k_must_be_a_number_of_clusters_that_can_be(k):
    with pytest.raises(VectorError, match="whole number from 1 to 3"):
        InteractionVectors(THREE).cluster(k)


def test_methods_that_need_euclidean_distances_are_refused():
    with pytest.raises(VectorError, match="method='ward'; give one of 'average'"):
        InteractionVectors(THREE).cluster(2, "ward")


def test_one_task_is_one_cluster_and_has_no_tree():
    v = InteractionVectors({"a": [0.1, 0.2]})
    assert v.cluster(1) == {"a": 1}
    with pytest.raises(VectorError, match="a single task has no tree"):
        v.plot_clusters()


def test_consistency_of_changes_has_a_point_per_task_and_site():
    v = InteractionVectors(THREE)
    other = InteractionVectors({task: np.array(THREE[task]) * 2 + 0.1 for task in ("maps", "sum", "count")})
    r, p, n = v.consistency(other)
    assert (r, n) == (pytest.approx(1.0), 12)
    assert p < 1e-9


def test_consistency_of_accuracies_adds_the_bases():
    rng = np.random.default_rng(1)
    scores = {do: rng.integers(0, 2, (2, 3, 20)) for do in (Zero(), Uniform())}
    scores[Zero()][1, 0] = 1  # the second task is easy
    for both in scores.values():
        both[:, 0] = scores[Zero()][:, 0]  # the unmodified model is the same one
    zero, uniform = (
        InteractionVectors({"a": table(both[0], do=do), "b": table(both[1], do=do)}) for do, both in scores.items()
    )
    accuracies = [both[:, 1:].mean(axis=2).ravel() for both in scores.values()]
    expected = np.corrcoef(*accuracies)[0, 1]
    assert zero.consistency(uniform).r == pytest.approx(expected)
    assert zero.consistency(uniform, of="accuracy").r == pytest.approx(expected)
    changes = zero.consistency(uniform, of="change").r
    assert changes == pytest.approx(np.corrcoef(zero.matrix.ravel(), uniform.matrix.ravel())[0, 1])
    assert changes != pytest.approx(expected)


@pytest.mark.parametrize(
    ("other", "of", "message"),
    [
        ({**THREE, "map": THREE["maps"]}, None, "different tasks: 'map' is on one side only;"),
        ({task: vector[:3] for task, vector in THREE.items()}, None, "4 and 3 sites"),
        ({task: [0.1, 0.1 + 1e-16, 0.1, 0.1] for task in THREE}, None, "all points of one side are equal"),
        (THREE, "accuracy", "needs every task's base score"),
        (THREE, "gain", 'give "accuracy" or "change"'),
    ],
)
def test_what_cannot_be_compared_is_refused(other, of, message):
    with pytest.raises(VectorError, match=message):
        InteractionVectors(THREE).consistency(InteractionVectors(other), of=of)


def test_other_sites_of_the_same_number_are_not_compared():
    one, other = (InteractionVectors({"a": table([[1], [0], [1]], role=role)}) for role in ("self_attn", "mlp"))
    with pytest.raises(VectorError, match=r"different sites: 'h\.4\.mlp' is on one side only, and 3 more"):
        one.consistency(other)
    turned = InteractionVectors({"a": table([[1], [0], [1]], layers=(5, 4))})
    with pytest.raises(VectorError, match="another order"):
        one.consistency(turned)


def test_two_points_are_too_few():
    v = InteractionVectors({"a": [0.1, 0.2]})
    with pytest.raises(VectorError, match="2 points are too few"):
        v.consistency(v)


def test_the_frame_has_tasks_in_rows_and_sites_in_columns():
    frame = InteractionVectors({"a": table([[1, 0], [1, 1], [0, 0]])}).to_pandas()
    assert frame.loc["a", "h.4.self_attn"] == 0.5
    assert (frame.index.name, frame.columns.name) == ("task", "site")


def test_it_says_how_large_it_is():
    assert repr(InteractionVectors(THREE)) == "InteractionVectors(3 tasks x 4 sites)"
