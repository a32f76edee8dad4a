"""A process that is killed loses the micro-batch in flight and nothing else; several processes share one store."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import layersurgery as ls
from layersurgery.sweeps import Store
from tests import models

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="SIGKILL and forking are of POSIX")

SAMPLES = [f"sample {index}" for index in range(30)]
BATCH = 4
CELLS = 4 * len(SAMPLES)
ROOT = Path(__file__).resolve().parents[2]


class Logged:
    """A scorer that writes down each call before it begins, so that no kill hides one."""

    fingerprint = "logged"

    def __init__(self, log):
        self.log = log

    def __call__(self, model, samples):
        with self.log.open("a") as log:
            log.write(json.dumps([str(ls.status(model)), samples, os.getpid()]) + "\n")
        with torch.no_grad():
            values = model(models.tokens(batch=1)).logits[0, -1]
        scores = np.array([values[10 + int(sample.split()[1])].item() for sample in samples])
        return ls.Scores(
            scores > 0,
            margin=scores,
            text=[f"{sample}: {score}" for sample, score in zip(samples, scores, strict=True)],
        )


def swept(store, log, result=None, samples=SAMPLES, share=False):
    torch.set_num_threads(1)
    table = ls.sweep(models.built("llama"), Logged(log), samples, batch_size=BATCH, store=store, share=share)
    if result is not None:
        np.savez(result, correct=table.correct, margin=table.margin, text=np.array(table.text))
    return table


def calls(log):
    lines = log.read_text().split("\n") if log.exists() else [""]
    return [json.loads(line) for line in lines[:-1]]  # another process may be in the middle of the last one


def cells(entries):
    return Counter((where, sample) for where, samples, _ in entries for sample in samples)


def started(*arguments, **settings):
    """A process of its own, with all that is imported here, so that it can be killed many times."""
    models.built("llama")  # made once, before the fork
    process = multiprocessing.get_context("fork").Process(target=swept, args=arguments, kwargs=settings)
    process.start()
    return process


def stored(path):
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return connection.execute("SELECT count(*) FROM cells").fetchone()[0]
    finally:
        connection.close()


def same(result, table):
    found = np.load(result)
    assert found["correct"].tobytes() == table.correct.tobytes()
    assert found["margin"].tobytes() == table.margin.tobytes()
    assert found["text"].tolist() == [list(row) for row in table.text]
    return True


@pytest.mark.parametrize(("seed", "share"), [(0, False), (1, False), (2, True), (3, True)])
def test_killed_at_any_moment(tmp_path, seed, share):
    store, log, result = tmp_path / "runs.db", tmp_path / "log", tmp_path / "result.npz"
    random = np.random.default_rng(seed)
    kills = 0
    for _ in range(100):
        before = len(calls(log))
        process = started(store, log, result, share=share)
        after = before + int(random.integers(0, 9))
        while process.is_alive() and len(calls(log)) < after:
            time.sleep(0.0005)
        time.sleep(random.uniform(0, 0.008))  # in the middle of a forward, a commit, or between them
        process.kill()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
        if not store.exists() or before == len(calls(log)):
            continue
        done = [entry for entry in calls(log) if entry[2] == process.pid]
        kept = stored(store)
        # All but the micro-batch in flight. Where the base ran again, what earlier processes lost is still missing.
        lost = kills * BATCH if share else len(done[-1][1])
        assert kept >= len(cells(calls(log))) - lost
    assert kills > 3
    assert result.exists()
    again = Counter(cells(calls(log)))
    assert len(again) == stored(store) == CELLS
    # Each process runs what was in flight again, and where variants share a base, that base and the check.
    most = 3 * kills + 1 if share else kills
    assert sum(again.values()) - CELLS <= most * BATCH
    assert max(again.values()) <= 1 + most
    assert same(result, swept(None, tmp_path / "of another"))
    finished = len(calls(log))
    assert same(result, swept(store, log))
    assert len(calls(log)) == finished


def test_two_processes_on_one_store(tmp_path):
    store, log = tmp_path / "runs.db", tmp_path / "log"
    results = [tmp_path / f"{number}.npz" for number in range(3)]
    orders = [SAMPLES, SAMPLES[::-1], SAMPLES[10:] + SAMPLES[:10]]
    processes = [started(store, log, *each) for each in zip(results, orders, strict=True)]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert len(cells(calls(log))) == stored(store) == CELLS
    for result, order in zip(results, orders, strict=True):
        assert same(result, swept(None, tmp_path / "of another", samples=order))
    total = len(calls(log))
    swept(store, log)
    assert len(calls(log)) == total


def test_one_is_killed_while_another_goes_on(tmp_path):
    store, log, result = tmp_path / "runs.db", tmp_path / "log", tmp_path / "result.npz"
    first = started(store, log)
    while not calls(log):
        time.sleep(0.001)
    second = started(store, log, result, SAMPLES[::-1])
    time.sleep(0.02)
    first.kill()
    second.join(120)
    assert second.exitcode == 0
    assert same(result, swept(None, tmp_path / "of another", samples=SAMPLES[::-1]))
    assert stored(store) == CELLS


PROGRAM = """
import sys, pathlib
from tests.sweeps.test_store_killed import swept
swept(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
"""


def test_another_interpreter_goes_on(tmp_path):
    """Fingerprints do not depend on the process: not on its hash seed, its working directory or what it imported."""
    store, log = tmp_path / "runs.db", tmp_path / "log"
    swept(store, log, samples=SAMPLES[:16])
    environment = {**os.environ, "PYTHONHASHSEED": "1234", "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-c", PROGRAM, str(store), str(log)], check=True, timeout=300, env=environment, cwd=tmp_path
    )
    assert set(cells(calls(log)).values()) == {1}
    assert stored(store) == CELLS
    assert len(Store(store).runs()) == 2
