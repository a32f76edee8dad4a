"""A store: nothing is evaluated twice, nothing is mixed up, and every number comes back bit by bit."""

from __future__ import annotations

import signal
import threading
import time
from functools import partial

import numpy as np
import pyarrow.parquet
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import layersurgery as ls
from layersurgery import testing
from layersurgery.errors import ScoringError, StoreError
from layersurgery.sweeps import Store
from tests import models

SAMPLES = [f"sample {index}" for index in range(6)]

# Every cell is then evaluated exactly once; test_sharing.py has what sharing evaluates beside them.
sweep, talo, ModelOracle = (partial(one, share=False) for one in (ls.sweep, ls.talo, ls.ModelOracle))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs.db"


@pytest.fixture
def model():
    return models.built("llama")


def score(model, samples):
    """One real number per sample: how the model likes a token that depends on the sample."""
    with torch.no_grad():
        logits = model(models.tokens(batch=1)).logits[0, -1]
    return [logits[10 + int(sample.split()[1])].item() for sample in samples]


class Counting:
    """Notes every cell that it is asked for; `fail` may raise before it answers."""

    fingerprint = "counting"

    def __init__(self, answer=score, fail=lambda: None):
        self.answer, self.fail = answer, fail
        self.cells = []

    def __call__(self, model, samples):
        self.fail()
        answer = self.answer(model, samples)
        self.cells += [(str(ls.status(model)), sample) for sample in samples]
        return answer


def same(table, other):
    """Bit by bit, and in all that is beside the scores."""
    for name in ("correct", "margin", "answered"):
        one, two = getattr(table, name), getattr(other, name)
        assert (one is None) == (two is None)
        assert one is None or one.tobytes() == two.tobytes()
    names = ("text", "best", "samples", "sites", "surgeries", "per_sample", "constant", "constant_letter", "notes")
    assert [getattr(table, name) for name in names] == [getattr(other, name) for name in names]
    return True


def rich(model, samples):
    values = np.array(score(model, samples))
    return ls.Scores(values > 0, margin=values, text=[f"{s}\n✓" for s in samples], answered=values > -9, best=1.0)


@pytest.mark.parametrize("scorer", [score, rich])
@pytest.mark.parametrize("batch_size", [None, 1, 4])
def test_a_second_run_evaluates_nothing_and_gives_the_same_table(model, path, scorer, batch_size):
    expected = sweep(model, scorer, SAMPLES, batch_size=batch_size)
    first, second = Counting(scorer), Counting(scorer)
    with testing.restored(model):
        assert same(sweep(model, first, SAMPLES, batch_size=batch_size, store=path), expected)
        assert same(sweep(model, second, SAMPLES, batch_size=batch_size, store=str(path)), expected)
    assert len(first.cells) == len(set(first.cells)) == 4 * 6
    assert second.cells == []


def test_only_what_is_new_is_evaluated(model, path):
    sites = ls.select(model)
    sweep(model, score, SAMPLES[:4], at=sites[:2], store=path)
    with Store(path) as store:
        oracle = ModelOracle(model, score, SAMPLES[::-1], at=sites, do=ls.Zero(), store=store)
        reading = oracle.read(range(4), range(6))
    assert (oracle.cells, oracle.recalled) == (24, 12)
    assert np.array_equal(reading.correct[:, ::-1], sweep(model, score, SAMPLES).correct)


def test_a_scorer_of_one_number_in_all(model, path):
    def total(model, samples):
        return float(np.prod(score(model, samples)))

    plain = sweep(model, total, SAMPLES)
    for batch_size, calls in ((2, 1 + 4), (2, 0), (None, 0)):
        scorer = Counting(total)
        assert same(sweep(model, scorer, SAMPLES, batch_size=batch_size, store=path), plain)
        assert len(scorer.cells) == 6 * calls - 4 * (calls > 0)  # the first call, of two samples, tells of which kind
    fewer, order = Counting(total), Counting(total)
    sweep(model, fewer, SAMPLES[:5], store=path)
    sweep(model, order, SAMPLES[::-1], store=path)
    assert len(fewer.cells) == 4 * 5
    assert len(order.cells) == 4 * 6
    with Store(path) as store:
        frame = store.to_pandas()
        assert frame["samples"].value_counts().to_dict() == {6: 8, 5: 4, 2: 1}
        assert set(frame["sample"]) == {"all"}


def test_a_search_goes_on_where_it_was(model, path):
    def right(model, samples):
        return [float(value > 0) for value in score(model, samples)]

    samples = [f"sample {index}" for index in range(40)]
    arguments = {"rule": ls.PaperRule(8), "confirm": 12, "seed": 3}
    expected = talo(model, right, samples, **arguments)
    left = [7]

    def power_cut():
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    interrupted, second, third = Counting(right, power_cut), Counting(right), Counting(right)
    with pytest.raises(KeyboardInterrupt):
        talo(model, interrupted, samples, batch_size=3, **arguments, store=path)
    again = talo(model, second, samples, batch_size=3, **arguments, store=path)
    assert len(interrupted.cells) > 0
    assert not set(interrupted.cells) & set(second.cells)
    last = talo(model, third, samples, **arguments, store=path)
    assert third.cells == []
    for found in (again, last):
        assert same(found.table, expected.table)
        assert (found.surgery, found.gain, found.interval) == (expected.surgery, expected.gain, expected.interval)
        assert found.evaluations == expected.evaluations


# --- bit by bit --------------------------------------------------------------------------------------------------

finite = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(
        st.tuples(finite, finite, st.booleans(), st.one_of(st.none(), st.text(st.characters()))), min_size=1, max_size=9
    ),
    best=st.one_of(st.none(), finite, st.integers(-5, 5), st.just(np.int64(3)), st.just(np.float32(0.1))),
    parts=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_any_scores_come_back_bit_by_bit(tmp_path_factory, rows, best, parts):
    path = tmp_path_factory.mktemp("store") / "runs.db"
    correct, margin, answered, text = zip(*rows, strict=True)
    margin, answered, text = (
        part if there else None for part, there in zip((margin, answered, text), parts, strict=True)
    )
    model = nn.Sequential(nn.Linear(1, 1)).eval()
    asked = []

    def scorer(model, samples):
        asked.append(len(samples))
        model(torch.ones(1))
        return ls.Scores(correct, margin, text, answered, best)

    scorer.fingerprint = "of these"
    tables = [sweep(model, scorer, range(len(rows)), at=ls.select(model, pattern="0"), store=path) for _ in range(2)]
    assert same(*tables)
    assert tables[1].correct[0].tobytes() == np.array(correct).tobytes()
    assert asked == [len(rows)] * 2
    with Store(path) as store:
        frame = store.to_pandas()
        assert len(frame) == pyarrow.parquet.read_table(store.to_parquet(path.with_suffix(".parquet"))).num_rows
        assert frame["correct"].tolist() == [*correct, *correct]


# --- interruptions -----------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_is_read_and_however_it_is_interrupted(tmp_path_factory, data):
    """Reads with and without a store, in any order, broken off by anything: the same cells, none evaluated twice."""
    path = tmp_path_factory.mktemp("store") / "runs.db"
    model = models.built("llama")
    full = sweep(model, score, SAMPLES).correct
    done = []

    def failing():
        if data.draw(st.integers(0, 5)) == 0:
            raise data.draw(st.sampled_from([ValueError, KeyboardInterrupt, SystemExit, OSError]))("planned")

    def oracle(store):
        scorer = Counting(fail=failing)
        scorer.cells = done if store else []
        arguments = {"at": ls.select(model), "do": ls.Zero(), "batch_size": data.draw(st.integers(1, 4))}
        return ModelOracle(model, scorer, SAMPLES, **arguments, store=path if store else None)

    oracles = [oracle(True), oracle(False)]
    for _ in range(data.draw(st.integers(1, 8))):
        if data.draw(st.booleans()):
            oracles[0] = oracle(True)
        one = data.draw(st.sampled_from(oracles))
        rows = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
        columns = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=6))
        with testing.restored(model):
            try:
                reading = one.read(rows, columns)
            except (ScoringError, KeyboardInterrupt, SystemExit):
                continue
        assert np.array_equal(reading.correct, full[np.ix_(rows, columns)])
    assert len(done) == len(set(done))


def test_an_interrupt_at_any_instant(model, path):
    """Also in the middle of what the store does: at most the micro-batch in flight is evaluated again."""
    sweep(model, score, SAMPLES, batch_size=2)  # what is slow the first time
    began = time.perf_counter()
    expected = sweep(model, score, SAMPLES, batch_size=2)
    usual = time.perf_counter() - began
    done, interrupts = [], 0
    random = np.random.default_rng(0)

    def interrupt(number, frame):
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        for attempt in range(200):
            scorer = Counting()
            scorer.cells = done
            try:
                longest = usual * (0.5 + attempt / 20)  # more and more: the machine may be busier by now
                signal.setitimer(signal.ITIMER_REAL, random.uniform(0.1 * usual, longest))
                table = sweep(model, scorer, SAMPLES, batch_size=2, store=path)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupts += 1
                continue
            break
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert same(sweep(model, Counting(), SAMPLES, batch_size=2, store=path), expected)
    assert interrupts > 2
    assert len(done) - len(set(done)) <= 2 * interrupts
    assert len(set(done)) == 24
    assert not ls.status(model)
    if interrupts < 200:
        assert same(table, expected)


def test_what_could_not_be_written_is_written_later(model, path):
    scorer = Counting()
    with Store(path) as store:
        oracle = ModelOracle(model, scorer, SAMPLES, at=ls.select(model), do=ls.Zero(), batch_size=2, store=store)
        oracle.read([0], [0, 1])
        connection = store._file._connection(create=True)
        connection.execute("PRAGMA query_only = ON")
        with pytest.raises(StoreError, match="cannot be written"):
            oracle.read([1], [0, 1])
        connection.execute("PRAGMA query_only = OFF")
        oracle.read(range(4), range(6))
    assert len(scorer.cells) == len(set(scorer.cells)) == 24
    assert same(oracle.table(), sweep(model, score, SAMPLES))


def test_what_another_has_stored_meanwhile_is_taken_over(model, path):
    """Two oracles in turn, and at last both at once: the first to write has the last word."""
    first, second = Counting(), Counting()
    arguments = {"at": ls.select(model), "do": ls.Zero(), "batch_size": 3, "store": path}
    one = ModelOracle(model, first, SAMPLES, **arguments)
    other = ModelOracle(model, second, SAMPLES, **arguments)
    one.read([0, 1], range(6))
    other.read([0, 2], range(6))
    one.read(range(4), range(6))
    other.read(range(4), range(6))
    assert not set(first.cells) & set(second.cells)
    assert same(one.table(), other.table())

    def late(model, samples):
        sweep(model, early, SAMPLES, at=ls.select(model)[0], store=path) if not ls.status(model) else None
        return [0.5 + value for value in score(model, samples)]

    def early(model, samples):
        return score(model, samples)

    early.fingerprint = late.fingerprint = "rounding differs"
    table = sweep(model, late, SAMPLES, at=ls.select(model)[0], store=path)
    assert np.array_equal(table.base, score(model, SAMPLES))
    assert same(table, sweep(model, late, SAMPLES, at=ls.select(model)[0], store=path))


def test_equal_samples_are_one_sample(path, model):
    scorer = Counting()
    table = sweep(model, scorer, [*SAMPLES[:2], SAMPLES[0]], batch_size=2, store=path)
    assert len(scorer.cells) == 8
    assert np.array_equal(table.correct[:, 0], table.correct[:, 2])


def test_an_oracle_in_another_thread(model, path):
    oracle = ModelOracle(model, score, SAMPLES, at=ls.select(model), do=ls.Zero(), store=path)
    found = []
    thread = threading.Thread(target=lambda: found.append(oracle.read(range(4), range(6)).correct))
    thread.start()
    thread.join()
    assert np.array_equal(found[0], sweep(model, score, SAMPLES).correct)
