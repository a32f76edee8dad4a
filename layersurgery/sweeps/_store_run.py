"""What one oracle takes from a store and puts into it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple

from layersurgery.errors import StoreError
from layersurgery.scoring import Scores
from layersurgery.scoring._fingerprint import callable_id
from layersurgery.sites import unwrap
from layersurgery.surgery import Surgery
from layersurgery.sweeps._store_file import StoreFile
from layersurgery.sweeps._store_model import model_fingerprint, surgery_key
from layersurgery.sweeps._store_values import Digests, class_code, class_name, joined, parts_of


class StoredCell(NamedTuple):
    """What a scorer said of one sample."""

    correct: float
    margin: float | None
    answered: float | None
    text: str | None
    best: float | None


class StoredRun:
    """The part of a store that belongs to one model, scorer, list of samples and list of variants.

    Opening it writes down what it is of, so that a store that cannot be written is found out before anything is run.

    Args:
        file: the store's file.
        model: the model, as it is now.
        score: the scorer.
        samples: the samples, by column.
        names: what they are called.
        surgeries: by row; None: the unmodified model.

    Raises:
        StoreError: if the store cannot be written, or the model, the scorer or a surgery cannot be told from others.
    """

    def __init__(
        self,
        file: StoreFile,
        model: Any,
        score: Any,
        *,
        samples: Sequence[Any],
        names: Sequence[str],
        surgeries: Sequence[Surgery | None],
    ) -> None:
        self._file = file
        self._samples = samples
        self._names = names
        self._fingerprints: dict[int, str] = {}
        self._ids: dict[int, int] = {}
        self._pending: list[tuple[str, tuple[Any, ...]]] = []
        file.check()  # before gigabytes of weights are read
        module = unwrap(model)
        scorer, changed = scorer_fingerprint(score, model), model_fingerprint(module)
        variants = [(surgery_key(surgery), *_told(surgery)) for surgery in surgeries]
        with file.writing() as connection:
            self._scorer = _id_of(connection, "scorers", (scorer, _text(_scorer_name(score))))
            self._model = _id_of(connection, "models", (changed, class_name(module)))
            self._surgeries = [_id_of(connection, "surgeries", variant) for variant in variants]

    def per_sample(self) -> bool | None:
        """Whether the scorer scores single samples, as far as the store knows."""
        with self._file.reading() as connection:
            for table, single in (("cells", True), ("totals", False)):
                found = f"SELECT 1 FROM {table} WHERE scorer = ? AND model = ? LIMIT 1"
                if connection.execute(found, (self._scorer, self._model)).fetchone():
                    return single
        return None

    def cells(self, row: int, columns: Iterable[int]) -> dict[int, StoredCell]:
        """What is stored of a row, by column."""
        self._write()
        columns = list(columns)
        ids = self._sample_ids(columns)
        found: dict[int, StoredCell] = {}
        with self._file.reading() as connection:
            for start in range(0, len(ids), _AT_ONCE):
                some = ids[start : start + _AT_ONCE]
                query = (
                    "SELECT sample, correct, margin, answered, text, best FROM cells "
                    f"WHERE scorer = ? AND model = ? AND surgery = ? AND sample IN ({', '.join('?' * len(some))})"
                )
                for sample, *values in connection.execute(query, (*self._at(row), *some)):
                    found[sample] = _cell(values)
        return {column: found[number] for column, number in zip(columns, ids, strict=True) if number in found}

    def keep(self, row: int, columns: Sequence[int], scores: Scores) -> bool:
        """Store what a scorer said, in one transaction; whether all of it was new.

        What could not be written waits, and is written before anything else is read or written.
        """
        best = None if scores.best is None else _number(scores.best)
        samples = self._sample_ids(columns)
        for index, sample in enumerate(samples):
            text = None if scores.text is None else scores.text[index]
            if not isinstance(text, str | None):
                raise StoreError(
                    f"the scorer's text for sample {self._names[columns[index]]!r} is {text!r:.80}; it must be a text "
                    "or None to be stored"
                )
            values = (
                float(scores.correct[index]),
                None if scores.margin is None else float(scores.margin[index]),
                None if scores.answered is None else float(scores.answered[index]),
                None if text is None else _text(text),
                best,
            )
            self._pending.append((_CELL, (*self._at(row), sample, *values)))
        return self._write() == len(samples)

    def totals(self, rows: Iterable[int], columns: Sequence[int]) -> dict[int, float]:
        """Scores of all these columns together, by row, as far as they are stored."""
        self._write()
        samples = self._set(columns)
        query = "SELECT correct FROM totals WHERE scorer = ? AND model = ? AND surgery = ? AND samples = ?"
        with self._file.reading() as connection:
            found = {row: connection.execute(query, (*self._at(row), samples)).fetchone() for row in rows}
        return {row: float(values[0]) for row, values in found.items() if values is not None}

    def keep_total(self, row: int, columns: Sequence[int], total: float) -> None:
        """Store a score of all these columns together."""
        self._pending.append((_TOTAL, (*self._at(row), self._set(columns), len(columns), total)))
        self._write()

    def _write(self) -> int:
        """Write what waits, and say how much of it was new."""
        if not self._pending:
            return 0
        waiting = self._pending.copy()
        new = 0
        with self._file.writing() as connection:
            for statement in (_CELL, _TOTAL):
                rows = [values for wanted, values in waiting if wanted is statement]
                new += connection.executemany(statement, rows).rowcount if rows else 0
        del self._pending[: len(waiting)]
        return new

    def _at(self, row: int) -> tuple[int, int, int]:
        return self._scorer, self._model, self._surgeries[row]

    def _set(self, columns: Sequence[int]) -> str:
        """A list of samples, in its order: a score of all together may depend on it."""
        return joined("samples", [self._fingerprint(column).encode() for column in columns]).hex()[:32]

    def _sample_ids(self, columns: Sequence[int]) -> list[int]:
        new = {column: self._fingerprint(column) for column in columns if column not in self._ids}
        if new:
            with self._file.writing() as connection:
                found = {c: _id_of(connection, "samples", (f, *self._told_of(c))) for c, f in new.items()}
            self._ids |= found
        return [self._ids[column] for column in columns]

    def _fingerprint(self, column: int) -> str:
        if column not in self._fingerprints:
            try:
                self._fingerprints[column] = Digests().of(self._samples[column]).hex()[:32]
            except (StoreError, RecursionError) as error:
                raise StoreError(
                    f"sample {self._names[column]!r} cannot be told from others: {error}. Give it an `id`, and an "
                    "attribute `fingerprint`: a text that changes with its content"
                ) from error
        return self._fingerprints[column]

    def _told_of(self, column: int) -> Iterator[Any]:
        sample = self._samples[column]
        yield _text(self._names[column])
        for field in ("benchmark", "task"):
            held = sample.get(field) if isinstance(sample, Mapping) else getattr(sample, field, None)
            yield _text(held) if isinstance(held, str) else None


def scorer_fingerprint(score: Any, model: Any) -> str:
    """What a scorer's results depend on: its own `fingerprint`, or its code and all that it holds or closes over.

    Args:
        score: the scorer.
        model: the model that it scores, which it may hold as well.

    Raises:
        StoreError: if it holds something whose content cannot be read.
    """
    own = getattr(score, "fingerprint", None)
    if isinstance(own, str):
        return own.encode("utf-8", "backslashreplace").decode()
    try:
        held = Digests({**parts_of(unwrap(model)), id(model): "the model"}).of(score).hex()[:16]
    except (StoreError, RecursionError) as error:
        raise StoreError(
            f"the scorer {score!r:.80} cannot be told from others: {error}. Give it an attribute `fingerprint`, a text "
            "that changes with all that changes its results"
        ) from error
    code = callable_id(score).encode("utf-8", "backslashreplace").decode()
    return f"{code} {class_code(type(score))} {held}"


def text_of(stored: Any) -> Any:
    """A text as it was before it was stored."""
    return stored.decode("utf-8", "surrogatepass") if isinstance(stored, bytes) else stored


_AT_ONCE = 500  # older SQLite takes at most 999 values in a statement
_CELL = "INSERT OR IGNORE INTO cells VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_TOTAL = "INSERT OR IGNORE INTO totals VALUES (?, ?, ?, ?, ?, ?)"
_COLUMNS = {
    "models": ("fingerprint", "name"),
    "scorers": ("fingerprint", "name"),
    "surgeries": ("fingerprint", "site", "layer", "intervention", "seed"),
    "samples": ("fingerprint", "name", "benchmark", "task"),
}


def _id_of(connection: sqlite3.Connection, table: str, values: Sequence[Any]) -> int:
    find = f"SELECT id FROM {table} WHERE fingerprint = ?"
    found = connection.execute(find, values[:1]).fetchone()
    if found is None:
        columns = _COLUMNS[table]
        marks = ", ".join("?" * len(columns))
        added = connection.execute(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", tuple(values))
        return int(added.lastrowid or 0)
    return int(found[0])


def _told(surgery: Surgery | None) -> tuple[Any, ...]:
    """What a reader of the store is told of a variant."""
    if surgery is None:
        return None, None, None, None
    steps = surgery.steps
    seed: Any = getattr(steps[0].do, "seed", None)
    known = len(steps) == 1 and isinstance(seed, Integral) and abs(int(seed)) < 1 << 63
    sites = " + ".join(str(step.site) for step in steps)
    done = " + ".join(dict.fromkeys(repr(step.do) for step in steps))
    return _text(sites), steps[0].site.layer if len(steps) == 1 else None, _text(done), int(seed) if known else None


def _scorer_name(score: Any) -> str:
    return getattr(score, "__qualname__", None) or class_name(score)


def _cell(values: Sequence[Any]) -> StoredCell:
    correct, margin, answered, text, best = values
    return StoredCell(correct, margin, answered, text_of(text), best)


def _number(value: Any) -> int | float:
    return int(value) if isinstance(value, Integral) and abs(int(value)) < 1 << 63 else float(value)


def _text(value: str) -> str | bytes:
    """A text as SQLite takes it: one that is no valid Unicode goes in as bytes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogatepass")
    return str(value)
