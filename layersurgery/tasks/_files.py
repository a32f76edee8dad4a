"""Rows of data files, numbered from 1, as plain dictionaries; pictures stay the bytes or paths that they are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from layersurgery.errors import SampleError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # of a folder of pictures, as `datasets` has it
TEXT_ONLY = (".csv", ".tsv")


def rows_of_file(files: Sequence[Path]) -> Iterator[tuple[int, Any]]:
    """Rows of files of one kind, one file after the other.

    Raises:
        SampleError: if a file cannot be read as what its name says.
    """
    suffix = files[0].suffix
    if suffix == ".parquet":
        yield from enumerate(_parquet(files), start=1)
    elif suffix in TEXT_ONLY:
        yield from enumerate(_delimited(files, "\t" if suffix == ".tsv" else ","), start=1)
    else:
        before = 0
        for file in files:
            number = 0
            for number, row in _objects(file):
                yield before + number, row
            before += number


def _parquet(files: Sequence[Path]) -> Iterator[Any]:
    """Read while it goes, so that nothing is copied elsewhere first."""
    import pyarrow
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    names = ", ".join(map(str, files))
    try:
        yield from undecoded(load_dataset("parquet", data_files=_named(files), split="rows", streaming=True))
    except (OSError, ValueError, pyarrow.ArrowException, DatasetsError) as error:
        raise SampleError(f"{names} cannot be read as parquet: {error}") from error


def undecoded(stream: Any) -> Any:
    """A stream of rows whose pictures stay the bytes that they are."""
    from datasets import Image

    stored = Image(decode=False)
    for name, feature in (stream.features or {}).items():
        if isinstance(feature, Image):
            stream = stream.cast_column(name, stored)
        elif isinstance(feature, list) and isinstance(feature[0], Image):  # how older versions write a list
            stream = stream.cast_column(name, [stored])
        elif isinstance(getattr(feature, "feature", None), Image):
            like: Any = type(feature)
            stream = stream.cast_column(name, like(stored))
    return stream


def _delimited(files: Sequence[Path], separator: str) -> Iterator[Any]:
    """Every cell as the text that is there: "NA", "nan" and "007" are not guessed to be anything else."""
    import pandas
    from datasets import Features, Value, load_dataset
    from datasets.exceptions import DatasetsError

    names = ", ".join(map(str, files))
    try:
        columns = pandas.read_csv(files[0], sep=separator, nrows=0).columns
        features = Features({str(column): Value("string") for column in columns})
        yield from load_dataset(
            "csv",
            data_files=_named(files),
            split="rows",
            streaming=True,
            sep=separator,
            keep_default_na=False,
            features=features,
        )
    except (OSError, ValueError, KeyError, DatasetsError) as error:
        kind = "tab" if separator == "\t" else "comma"
        raise SampleError(f"{names} cannot be read as {kind}-separated text with a line of names: {error}") from error


def _named(files: Sequence[Path]) -> dict[str, list[str]]:
    """One split with a name of its own: those of files named `val-...` are not what they seem."""
    return {"rows": [str(file) for file in files]}


def _objects(file: Path) -> Iterator[tuple[int, Any]]:
    """One object a line; or, in a .json file, one list of objects."""
    if file.suffix == ".json":
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError):
            content = None  # several lines of objects are no JSON as a whole
        if isinstance(content, list):
            yield from enumerate(content, start=1)
            return
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, _object(line, f"{file}, row {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise SampleError(f"{file} cannot be read as UTF-8 text: {error}") from error


def _object(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise SampleError(f"{where}: not JSON ({error}); expected one object a line") from error
