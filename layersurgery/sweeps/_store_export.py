"""What is in a store: listed, as one table, as a parquet file, and taken over from another store."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layersurgery.errors import StoreError
from layersurgery.sweeps._store_run import text_of

if TYPE_CHECKING:
    import pyarrow

COLUMNS = {
    **dict.fromkeys(("model", "model_fingerprint", "scorer", "scorer_fingerprint", "site"), "string"),
    "layer": "Int64",
    "intervention": "string",
    "seed": "Int64",
    **dict.fromkeys(("benchmark", "task", "sample", "sample_fingerprint"), "string"),
    "samples": "int64",
    **dict.fromkeys(("correct", "margin", "answered"), "float64"),
    "text": "string",
    "best": "float64",
}
"""What a row of `scores` holds, and of which kind."""


def runs(connection: sqlite3.Connection) -> Iterator[tuple[Any, ...]]:
    """One entry per model, scorer, task and intervention: the fields of a `Run`."""
    for entry in connection.execute(_RUNS):
        yield tuple(map(text_of, entry))


def scores(connection: sqlite3.Connection) -> Iterator[tuple[Any, ...]]:
    """All scores, of single samples first; in an order that depends on the order of evaluation only."""
    for entry in connection.execute(_SCORES):
        yield tuple(map(text_of, entry)) if bytes in map(type, entry) else entry


def write_parquet(connection: sqlite3.Connection, path: Path) -> Path:
    """Write `scores` into a file, which is only there once it is complete.

    Raises:
        StoreError: if it cannot be written.
    """
    import pyarrow
    import pyarrow.parquet

    kinds = {"string": pyarrow.string(), "float64": pyarrow.float64()}
    schema = pyarrow.schema([(name, kinds.get(kind, pyarrow.int64())) for name, kind in COLUMNS.items()])
    part = path.with_name(f"{path.name}.part")
    rows = scores(connection)
    try:
        with pyarrow.parquet.ParquetWriter(part, schema) as writer:
            while some := list(islice(rows, _ROWS)):
                columns = zip(*some, strict=True)
                arrays = [_array(held, field.type) for held, field in zip(columns, schema, strict=True)]
                writer.write_batch(pyarrow.record_batch(arrays, schema=schema))
        part.replace(path)
    except (OSError, pyarrow.ArrowException) as error:
        part.unlink(missing_ok=True)
        raise StoreError(f"{path} cannot be written: {error}. The store is as it was; give another file") from error
    return path


def take_over(connection: sqlite3.Connection) -> tuple[int, int]:
    """From the database attached as `other`: how many scores were new, and how many are in both and differ."""
    for table, columns in _NAMED.items():
        connection.execute(f"INSERT OR IGNORE INTO main.{table} ({columns}) SELECT {columns} FROM other.{table}")
    new = differing = 0
    for table, keys, values, joins in _SCORED:
        mine = f"{', '.join(f'{key}_here.id' for key in joins)}"
        source = f"other.{table} AS there" + "".join(
            f" JOIN other.{named} AS {key}_there ON {key}_there.id = there.{key}"
            f" JOIN main.{named} AS {key}_here ON {key}_here.fingerprint = {key}_there.fingerprint"
            for key, named in joins.items()
        )
        same = " AND ".join(f"here.{key} = {key}_here.id" for key in joins)
        same += "".join(f" AND here.{key} = there.{key}" for key in keys if key not in joins)
        unlike = " OR ".join(f"here.{value} IS NOT there.{value}" for value in values)
        query = f"SELECT count(*) FROM {source} JOIN main.{table} AS here ON {same} WHERE {unlike}"
        differing += connection.execute(query).fetchone()[0]
        rest = "".join(f", there.{name}" for name in (*(key for key in keys if key not in joins), *values))
        new += connection.execute(f"INSERT OR IGNORE INTO main.{table} SELECT {mine}{rest} FROM {source}").rowcount
    return new, differing


def _array(values: Sequence[Any], kind: pyarrow.DataType) -> pyarrow.Array[Any]:
    import pyarrow

    try:
        return pyarrow.array(values, kind)
    except UnicodeEncodeError:  # parquet takes valid Unicode only
        return pyarrow.array([value and value.encode("utf-8", "replace").decode() for value in values], kind)


_ROWS = 65536  # in one piece

_NAMED = {
    "models": "fingerprint, name",
    "scorers": "fingerprint, name",
    "surgeries": "fingerprint, site, layer, intervention, seed",
    "samples": "fingerprint, name, benchmark, task",
}
_JOINS = {"scorer": "scorers", "model": "models", "surgery": "surgeries"}
_SCORED = (
    (
        "cells",
        ("scorer", "model", "surgery", "sample"),
        ("correct", "margin", "answered", "text", "best"),
        {**_JOINS, "sample": "samples"},
    ),
    ("totals", ("scorer", "model", "surgery", "samples"), ("count", "correct"), _JOINS),
)

# A cross join keeps SQLite to this order, which is that of the primary key: rows come sorted without being sorted.
_WITH_NAMES = """
    CROSS JOIN models ON models.id = model
    CROSS JOIN scorers ON scorers.id = scorer
    CROSS JOIN surgeries ON surgeries.id = surgery
"""
_SCORES = f"""
    SELECT models.name, models.fingerprint, scorers.name, scorers.fingerprint,
        surgeries.site, surgeries.layer, surgeries.intervention, surgeries.seed,
        coalesce(samples.benchmark, ''), coalesce(samples.task, ''), samples.name, samples.fingerprint,
        1, correct, margin, answered, text, best
    FROM cells {_WITH_NAMES} CROSS JOIN samples ON samples.id = sample
    UNION ALL
    SELECT models.name, models.fingerprint, scorers.name, scorers.fingerprint,
        surgeries.site, surgeries.layer, surgeries.intervention, surgeries.seed,
        '', '', 'all', totals.samples, count, correct, NULL, NULL, NULL, NULL
    FROM totals {_WITH_NAMES}
"""
_RUNS = f"""
    SELECT models.name, models.fingerprint, scorers.name, scorers.fingerprint,
        coalesce(samples.benchmark, ''), coalesce(samples.task, ''), surgeries.intervention,
        count(DISTINCT surgeries.site), count(DISTINCT sample), count(*)
    FROM cells {_WITH_NAMES} JOIN samples ON samples.id = sample
    GROUP BY model, scorer, samples.benchmark, samples.task, surgeries.intervention
    UNION ALL
    SELECT models.name, models.fingerprint, scorers.name, scorers.fingerprint,
        '', '', surgeries.intervention, count(DISTINCT surgeries.site), max(count), count(*)
    FROM totals {_WITH_NAMES}
    GROUP BY model, scorer, surgeries.intervention
"""
