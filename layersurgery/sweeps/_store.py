"""`Store`: what sweeps found, in one file, from which they go on."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from layersurgery.errors import LayerSurgeryWarning, StoreError
from layersurgery.sweeps import _store_export
from layersurgery.sweeps._store_file import StoreFile

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Run:
    """What a store holds of one model, scorer, task and intervention.

    Args:
        model: the class of the model.
        model_fingerprint: what tells the model apart from others of its class.
        scorer: the scorer's name.
        scorer_fingerprint: what tells the scorer apart from others, prompt and processor included.
        benchmark: name of the benchmark that the samples are from, or nothing.
        task: name of their task, or nothing.
        intervention: what was done; None: nothing, this is the unmodified model.
        sites: how many sites it was done at; 0 for the unmodified model.
        samples: how many samples there are scores of.
        cells: how many scores there are: of one sample, or of one set of samples, at one site.
    """

    model: str
    model_fingerprint: str
    scorer: str
    scorer_fingerprint: str
    benchmark: str
    task: str
    intervention: str | None
    sites: int
    samples: int
    cells: int


class Store:
    """Scores of models, variants and samples in a file, an SQLite database in WAL mode.

    `sweep`, `talo` and `ModelOracle` take a store, or the name of its file, as `store=`. They write each micro-batch as
    soon as it was scored, and evaluate nothing that is there already. What is there is told apart by the bytes of the
    model, the surgery with its seed, the content of the sample, and the scorer's fingerprint.

    A process that is killed loses the micro-batch that was being scored; a power cut may take the last seconds before
    it too, but never damages what was written earlier. Several processes may use one store at once, on one machine:
    what one has written, the others do not evaluate.

    Args:
        path: the file; a sweep makes it where there is none.

    Raises:
        StoreError: if that cannot be a file. Using the store raises it if the file cannot be opened, read or written,
            is damaged, no store, or one of a newer layersurgery.

    Examples:
        >>> import tempfile, torch, layersurgery as ls
        >>> from layersurgery.sweeps import Store
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)).eval()
        >>> calls = []
        >>> def score(model, samples):
        ...     calls.append(len(samples))
        ...     return [-abs(model(torch.tensor([x])).item()) for x in samples]
        >>> sites = ls.select(model, pattern="*")
        >>> with tempfile.TemporaryDirectory() as folder, Store(f"{folder}/runs.db") as store:
        ...     first = ls.sweep(model, score, [0.5, 1.0], at=sites, store=store)
        ...     again = ls.sweep(model, score, [0.5, 1.0, 2.0], at=sites, store=store)
        ...     print(calls, [(run.intervention, run.sites, run.samples, run.cells) for run in store.runs()])
        [2, 2, 2, 1, 1, 1] [(None, 0, 3, 3), ('Zero()', 2, 3, 6)]
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = StoreFile(path)

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

    def runs(self) -> list[Run]:
        """What is in the store: for each model, scorer, task and intervention, how much.

        Raises:
            StoreError: if there is no store, or it cannot be read.
        """
        with self._file.reading() as connection:
            return [Run(*entry) for entry in _store_export.runs(connection)]

    def to_pandas(self) -> pandas.DataFrame:
        """All scores as a table, one row for each; needs pandas.

        Columns are `model`, `model_fingerprint`, `scorer`, `scorer_fingerprint`, `site`, `layer`, `intervention`,
        `seed` (nothing in these four: the unmodified model), `benchmark`, `task`, `sample`, `sample_fingerprint`,
        `samples` (how many the score is of: more than 1 where a scorer gives one number in all), `correct`, `margin`,
        `answered`, `text` and `best`.

        Raises:
            StoreError: if there is no store, or it cannot be read.

        Examples:
            >>> import tempfile, torch, layersurgery as ls
            >>> from layersurgery.sweeps import Store
            >>> model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)).eval()
            >>> def score(model, samples):
            ...     return [float(model(torch.tensor([x])).item() > 0) for x in samples]
            >>> with tempfile.TemporaryDirectory() as folder, Store(f"{folder}/runs.db") as store:
            ...     table = ls.sweep(model, score, [0.5, 1.0], at=ls.select(model, pattern="*"), store=store)
            ...     frame = store.to_pandas()
            >>> frame.groupby("site", dropna=False)["correct"].mean().loc["0"] == table.scores[0].mean()
            np.True_
        """
        import pandas as pd

        with self._file.reading() as connection:
            entries = list(_store_export.scores(connection))
        columns = list(_store_export.COLUMNS)
        try:
            frame = pd.DataFrame.from_records(entries, columns=columns)
        except UnicodeEncodeError:  # a text with half a character, which pandas' own strings do not take
            frame = pd.DataFrame(entries, columns=columns, dtype=object)
        return frame.astype({name: kind for name, kind in _store_export.COLUMNS.items() if kind != "string"})

    def to_parquet(self, path: str | os.PathLike[str]) -> Path:
        """Write what `to_pandas` gives into a parquet file, piece by piece; returns its path.

        Raises:
            StoreError: if there is no store, or it cannot be read, or the file cannot be written.

        Examples:
            >>> import tempfile, torch, pyarrow.parquet, layersurgery as ls
            >>> from layersurgery.sweeps import Store
            >>> model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)).eval()
            >>> def score(model, samples):
            ...     return [float(model(torch.tensor([x])).item() > 0) for x in samples]
            >>> with tempfile.TemporaryDirectory() as folder, Store(f"{folder}/runs.db") as store:
            ...     table = ls.sweep(model, score, [0.5, 1.0], at=ls.select(model, pattern="*"), store=store)
            ...     pyarrow.parquet.read_table(store.to_parquet(f"{folder}/runs.parquet")).num_rows
            6
        """
        with self._file.reading() as connection:
            return _store_export.write_parquet(connection, Path(path))

    def merge(self, other: Store | str | os.PathLike[str]) -> int:
        """Take over what another store has and this one has not; the other is not changed.

        Where both have a score, this store's stays; a warning says how many of them differ.

        Args:
            other: a store, or the name of its file.

        Returns:
            How many scores were new.

        Raises:
            StoreError: if the other is this store, or one of them cannot be opened; nothing was taken over then.

        Examples:
            >>> import tempfile, torch, layersurgery as ls
            >>> from layersurgery.sweeps import Store
            >>> model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)).eval()
            >>> def score(model, samples):
            ...     return [float(model(torch.tensor([x])).item() > 0) for x in samples]
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     one, other = f"{folder}/one.db", f"{folder}/other.db"
            ...     for path, samples in ((one, [0.5, 1.0]), (other, [1.0, 2.0])):
            ...         _ = ls.sweep(model, score, samples, at=ls.select(model, pattern="*"), store=path)
            ...     with Store(one) as store:
            ...         store.merge(other)
            3
        """
        with opened(other) as source:
            with source._file.reading():  # whether it is a sound store
                pass
            if self.path.exists() and self.path.samefile(source.path):
                raise StoreError(f"{self.path} cannot be merged with itself; give another store")
            self._file.check()  # makes it, where it is new
            new, differing = self._merged(source)
        if differing:
            warnings.warn(
                f"{differing} scores are in both stores and differ; those of {self.path} stay. Another device, batch "
                "size or version of torch rounds otherwise",
                LayerSurgeryWarning,
                stacklevel=2,
            )
        return new

    def close(self) -> None:
        """Give the file back. Using the store opens it again."""
        self._file.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r})"

    def _merged(self, source: Store) -> tuple[int, int]:
        with self._file.reading() as connection:
            connection.execute("ATTACH DATABASE ? AS other", (str(source.path),))
        try:
            with self._file.writing() as connection:
                return _store_export.take_over(connection)
        finally:
            with self._file.reading() as connection:
                connection.execute("DETACH DATABASE other")


@contextmanager
def opened(store: Store | str | os.PathLike[str]) -> Iterator[Store]:
    """A store that is closed again afterwards, or one that is its user's to close."""
    if isinstance(store, Store):
        yield store
        return
    with Store(store) as own:
        yield own


def file_of(store: Any) -> StoreFile:
    """The file of a store, or of the store of this name.

    Raises:
        StoreError: if it is neither.
    """
    return store._file if isinstance(store, Store) else StoreFile(store)
