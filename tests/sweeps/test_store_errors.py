"""A store that cannot be used says so before anything is evaluated, and loses nothing that is in it."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import layersurgery as ls
from layersurgery.errors import StoreError
from layersurgery.sweeps import Store, _store_file
from layersurgery.sweeps._store_file import StoreFile

SITES = "0"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs.db"


def small():
    return nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)).eval()


MODEL = small()
ASKED: list[int] = []


def score(model, samples):
    ASKED.append(len(samples))
    with torch.no_grad():
        return [model(torch.tensor([float(sample)])).item() for sample in samples]


score.fingerprint = "sums"


def sweep(store, samples=range(8), model=MODEL, scorer=score, **arguments):
    ASKED.clear()
    sites = ls.select(model, pattern=SITES)
    return ls.sweep(model, scorer, samples, at=sites, batch_size=2, store=store, **arguments)


def refused(store, message, **arguments):
    """Nothing is evaluated, and the message names the file and what to do."""
    with pytest.raises(StoreError, match=message) as caught:
        sweep(store, **arguments)
    assert ASKED == []
    return str(caught.value)


@pytest.mark.parametrize("store", ["", ":memory:", 3, True, ["runs.db"]])
def test_no_file(store):
    refused(store, "give the name of a file")


def test_folders(tmp_path):
    refused(tmp_path, "is a folder; give the store a file name")
    refused(tmp_path / "missing" / "runs.db", "there is no folder .*missing for the store runs.db; make it first")


def test_what_is_no_store(path):
    path.write_text("model,score\nllama,0.5\n" * 100)
    before = path.read_bytes()
    assert str(path) in refused(path, "is no store: something else is in that file.*another name")
    assert path.read_bytes() == before


def test_a_database_of_something_else(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE orders (id)")
    connection.close()
    before = path.read_bytes()
    refused(path, "is a database of something else, and was not touched")
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["runs.db"]


def test_an_empty_file_becomes_a_store(path):
    path.touch()
    assert sweep(path).correct.shape == (2, 8)


def test_a_newer_store(path):
    sweep(path)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    refused(path, "of version 99, written by a newer layersurgery; this one reads up to 1. Upgrade")
    with pytest.raises(StoreError, match="Upgrade"):
        Store(path).runs()


@pytest.mark.parametrize("way", ["runs", "to_pandas", "to_parquet"])
def test_reading_makes_no_store(path, way):
    with pytest.raises(StoreError, match=r"there is no store .*runs\.db; a sweep with store= makes one"):
        getattr(Store(path), way)(*([path.with_suffix(".parquet")] if way == "to_parquet" else []))
    assert not path.exists()


def damaged(path, change):
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


def overwrite(content):
    content[4096:-100] = b"\xa5" * (len(content) - 4196)


def cut(content):
    del content[len(content) // 2 :]


@pytest.mark.parametrize("change", [overwrite, cut])
def test_a_damaged_store(path, change):
    sweep(path, range(200))
    damaged(path, change)
    before = path.read_bytes()
    assert "sqlite3" in refused(path, r"is damaged.*\.recover", samples=range(300))
    assert path.read_bytes() == before


def test_a_locked_store_is_waited_for(path, monkeypatch):
    sweep(path, range(4))
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.5, lambda: other.execute("ROLLBACK"))
    timer.start()
    start = time.monotonic()
    assert sweep(path).correct.shape == (2, 8)
    assert time.monotonic() - start > 0.2
    timer.join()

    monkeypatch.setattr(_store_file, "PATIENCE", 0.2)
    other.execute("BEGIN IMMEDIATE")
    refused(path, "kept locked by another program.*What was stored before is still there; close that program")
    other.execute("ROLLBACK")
    other.close()
    sweep(path)
    assert ASKED == []


def test_a_store_that_is_locked_in_the_middle(path, monkeypatch):
    monkeypatch.setattr(_store_file, "PATIENCE", 0.2)
    locks = []

    def locking(model, samples):
        if 4 in samples and not locks:
            locks.append(sqlite3.connect(path, isolation_level=None))
            locks[0].execute("BEGIN IMMEDIATE")
        return score(model, samples)

    locking.fingerprint = score.fingerprint
    with pytest.raises(StoreError, match="locked by another program"):
        sweep(path, scorer=locking)
    locks[0].close()
    done = len(ASKED)
    table = sweep(path)
    assert len(ASKED) == 8 - (done - 1)  # only what could not be written is evaluated again
    assert np.array_equal(table.correct, sweep(None).correct)


LONG = [f"{index} {'x' * 5000}" for index in range(64)]


def first(model, samples):
    return ls.Scores(score(model, [sample.split()[0] for sample in samples]), text=samples)


def test_a_full_disk(path):
    """SQLite's own limit: the same error as that of a disk without room."""
    with Store(path) as store:
        sweep(store, LONG[:8], scorer=first)
        connection = store._file._connection(create=True)
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 20}")
        with pytest.raises(StoreError, match=r"has no room left on its disk.*free some space and run again") as caught:
            sweep(store, LONG, scorer=first)
        assert str(path) in str(caught.value)
        done = len(ASKED)
    assert 0 < done < 56
    table = sweep(path, LONG, scorer=first)
    assert len(ASKED) == 56 - (done - 1)
    assert np.array_equal(table.correct, sweep(None, LONG, scorer=first).correct)
    sweep(path, LONG, scorer=first)
    assert ASKED == []


def _in_a_small_file(path, report):
    """What a quota does: writes fail beyond a size."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
    try:
        sweep(path, LONG, scorer=first)
    except StoreError as error:
        report.put((str(error), sum(ASKED)))
    else:
        report.put(("no error", sum(ASKED)))


def _without_rights(path, report):
    """As another user, where this one may do anything."""
    if os.geteuid() == 0:
        os.setuid(65534)
    try:
        StoreFile(path).check()
    except StoreError as error:
        report.put(str(error))
    else:
        report.put("written")


def elsewhere(target, *arguments):
    """What a function reports from a process of its own."""
    context = multiprocessing.get_context("fork")
    report = context.Queue()
    process = context.Process(target=target, args=(*arguments, report))
    process.start()
    found = report.get(timeout=120)
    process.join()
    return found


@pytest.mark.skipif(os.name != "posix", reason="limits and users of POSIX")
def test_a_file_that_must_not_grow(path):
    sweep(path, LONG[:6], scorer=first)
    message, done = elsewhere(_in_a_small_file, path)
    assert "run again to go on from it" in message
    assert str(path) in message
    table = sweep(path, LONG, scorer=first)
    assert 2 < done < 116
    assert sum(ASKED) == 116 - (done - 2)  # only what could not be written is evaluated again
    assert np.array_equal(table.correct, sweep(None, LONG, scorer=first).correct)


@pytest.mark.skipif(os.name != "posix", reason="limits and users of POSIX")
@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_store_that_must_not_be_written(what):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.db"
        sweep(path)
        path.chmod(0o444)
        path.parent.chmod(0o777 if what == "file" else 0o555)
        message = elsewhere(_without_rights, path)
        path.parent.chmod(0o700)
        assert "cannot be written. Nothing of it was changed; make the file and its folder writable" in message
        assert str(path) in message
        path.chmod(0o600)
        sweep(path)
        assert ASKED == []


def test_a_store_that_is_read_only_for_the_sweep(path):
    with Store(path) as store:
        sweep(store, range(2))
        store._file._connection(create=True).execute("PRAGMA query_only = ON")
        refused(store, "cannot be written")


@pytest.mark.parametrize("how", [Path.unlink, lambda path: path.rename(path.with_name("moved.db"))])
def test_a_store_that_is_taken_away(path, how):
    def taking(model, samples):
        if 4 in samples:
            how(path)
        return score(model, samples)

    taking.fingerprint = score.fingerprint
    with pytest.raises(StoreError, match="was moved or deleted while it was in use"):
        sweep(path, scorer=taking)
    sweep(path)
    assert len(ASKED) == 8


# --- what cannot be told apart -----------------------------------------------------------------------------------


class Opaque:
    def __init__(self):
        self.lock = threading.Lock()


def test_samples_that_cannot_be_told_apart(path):
    refused(path, r"sample '1' cannot be told from others: .*lock.*`fingerprint`", samples=[1, Opaque()])

    class Named(Opaque):
        def __init__(self, number):
            super().__init__()
            self.id, self.fingerprint, self.number = f"q{number}", f"content {number}", number

        def __float__(self):
            return float(self.number)

    sweep(path, [Named(1), Named(2)])
    assert len(ASKED) == 2
    sweep(path, [Named(2), Named(3)])
    assert sum(ASKED) == 2


def test_scorers_that_cannot_be_told_apart(path):
    lock = threading.Lock()

    def holding(model, samples):
        with lock:
            return score(model, samples)

    refused(path, "the scorer .*holding.*cannot be told from others.*`fingerprint`", scorer=holding)
    other = small()
    refused(path, r"a model \(Sequential\) other than", scorer=lambda model, samples: score(other, samples))
    holding.fingerprint = "a lock changes nothing"
    sweep(path, scorer=holding)
    sweep(path, scorer=lambda model, samples: score(MODEL, samples))  # its own


def test_hooks_that_cannot_be_told_apart(path):
    lock, model = threading.Lock(), small()
    model[1].register_forward_hook(lambda module, given, out: out if lock.locked() else out * 2)
    refused(path, "a hook at '1'.*cannot be told from another.*`fingerprint`", model=model)


def test_interventions_that_cannot_be_told_apart(path):
    class Locked(ls.Zero):
        lock = None

    do = Locked()
    object.__setattr__(do, "__dict__", {**vars(do)})
    sweep(path, do=do)  # a class attribute is its code's

    class Open(ls.interventions.Intervention):
        name = "open"

        def __init__(self):
            self.lock = threading.Lock()

        def replace(self, tensor, place):
            return torch.zeros_like(tensor)

    refused(path, "Open.*cannot be told from another of its kind", do=Open())


def test_weights_that_are_nowhere(path):
    model = small()
    model[1].to("meta")
    refused(path, "'1.bias' cannot be read.*are on the meta device.*leave store= out", model=model)


def test_texts_that_are_none(path):
    def wrong(model, samples):
        return ls.Scores(score(model, samples), text=[{"answer": sample} for sample in samples])

    with pytest.raises(StoreError, match=r"the scorer's text for sample '0' is \{'answer': 0\}; it must be a text"):
        sweep(path, scorer=wrong)
