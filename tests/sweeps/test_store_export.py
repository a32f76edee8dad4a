"""What is in a store: listed, as a table, as a parquet file, merged with another's."""

from __future__ import annotations

import sqlite3
import warnings

import numpy as np
import pyarrow.parquet
import pytest

import layersurgery as ls
from layersurgery.errors import LayerSurgeryWarning, StoreError
from layersurgery.sweeps import Run, Store
from tests import models
from tests.sweeps.test_store import SAMPLES, rich, score


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs.db"


@pytest.fixture
def model():
    return models.built("llama")


def test_what_is_in_a_store(model, path, tmp_path):
    samples = [ls.Sample(f"q{i}", f"sample {i}", ("a", "b"), 0, task="t", benchmark="b") for i in range(3)]

    def asked(model, samples):
        return rich(model, [sample.question for sample in samples])

    ls.sweep(model, asked, samples, store=path)
    ls.sweep(model, asked, samples, at=ls.select(model)[1], do=ls.Noise(seed=7), store=path)
    with Store(path) as store:
        first, noise, zero = store.runs()
        assert all(isinstance(run, Run) for run in (first, noise, zero))
        assert (first.intervention, first.sites, first.samples, first.cells) == (None, 0, 3, 3)
        assert (noise.intervention, noise.sites, noise.cells) == ("Noise(std=None, seed=7)", 1, 3)
        assert (zero.intervention, zero.sites, zero.cells) == ("Zero()", 3, 9)
        assert (zero.model, zero.benchmark, zero.task) == ("LlamaForCausalLM", "b", "t")
        assert "asked" in zero.scorer
        frame = store.to_pandas()
        assert len(frame) == 15
        assert frame["seed"].dropna().tolist() == [7, 7, 7]
        row = frame[(frame["layer"] == 1) & (frame["seed"] == 7)].iloc[0]
        assert (row["site"], row["sample"], row["samples"]) == ("model.layers.1.self_attn", "q0", 1)
        assert row["text"] == "sample 0\n✓"
        written = pyarrow.parquet.read_table(store.to_parquet(tmp_path / "runs.parquet"))
        assert written.column_names == frame.columns.tolist()
        assert written.column("margin").to_pylist() == frame["margin"].tolist()
        assert written.column("seed").to_pylist() == [
            None if value is None else value for value in _plain(frame["seed"])
        ]
        assert repr(store) == f"Store({str(path)!r})"
        with pytest.raises(StoreError, match=r"nowhere.*cannot be written"):
            store.to_parquet(tmp_path / "nowhere" / "runs.parquet")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["runs.db", "runs.parquet"]


def _plain(column):
    return [None if missing else int(value) for value, missing in zip(column, column.isna(), strict=True)]


def test_merging(model, path, tmp_path):
    sites = ls.select(model)
    other = tmp_path / "other.db"
    ls.sweep(model, score, SAMPLES[:4], at=sites[:2], store=path)
    ls.sweep(model, score, SAMPLES[2:], at=sites[1:], store=other)
    ls.sweep(model, lambda model, samples: sum(score(model, samples)), SAMPLES, at=sites[0], store=other)
    before = Store(other).to_pandas()
    with Store(path) as store:
        assert store.merge(other) == 12 - 4 + 2
        assert store.merge(other) == 0
        assert Store(other).to_pandas().equals(before)
        with pytest.raises(StoreError, match="cannot be merged with itself"):
            store.merge(path)
        with pytest.raises(StoreError, match="there is no store"):
            store.merge(tmp_path / "missing.db")
    oracle = ls.ModelOracle(model, score, SAMPLES, at=sites, do=ls.Zero(), store=path)
    correct = oracle.read(range(4), range(6)).correct
    assert oracle.recalled == 12 + 8
    assert np.array_equal(correct, ls.sweep(model, score, SAMPLES).correct)
    with Store(tmp_path / "new.db") as new:
        assert new.merge(Store(path)) == 24 + 2
        assert len(new.to_pandas()) == 26


def test_merging_stores_that_differ(model, path, tmp_path):
    other = tmp_path / "other.db"
    for where, shift in ((path, 0.0), (other, 1e-9)):

        def shifted(model, samples, shift=shift):
            return [value + shift for value in score(model, samples)]

        shifted.fingerprint = "the same, rounded otherwise"
        ls.sweep(model, shifted, SAMPLES, at=ls.select(model)[0], store=where)
    with Store(path) as store:
        before = store.to_pandas()
        with pytest.warns(LayerSurgeryWarning, match="12 scores are in both stores and differ"):
            assert store.merge(other) == 0
        assert store.to_pandas().equals(before)


def test_a_store_is_closed_when_it_is_done_with(model, path):
    """Nothing lies beside it then, so that it can be copied as one file."""
    ls.sweep(model, score, SAMPLES, store=path)
    assert [file.name for file in path.parent.iterdir()] == ["runs.db"]
    with Store(path) as store:
        ls.sweep(model, score, SAMPLES, store=store)
        assert len(list(path.parent.iterdir())) > 1  # open
    assert [file.name for file in path.parent.iterdir()] == ["runs.db"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        oracle = ls.ModelOracle(model, score, SAMPLES, at=ls.select(model), do=ls.Zero(), store=path)
        del oracle
    assert sqlite3.connect(path).execute("PRAGMA journal_mode").fetchone() == ("wal",)
