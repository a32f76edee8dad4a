"""`Source`: the rows of a file, a folder, a dataset object or a dataset of the hub, one way for all."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from layersurgery.errors import LayerSurgeryError, SampleError
from layersurgery.tasks._files import METADATA, SUFFIXES, rows_of_file, undecoded

BATCH = 256
"""Rows that are taken out of a table at a time, so that a large one never lies in memory as a whole."""

SavedFile = ("state.json", "dataset_dict.json")


@dataclass(frozen=True)
class Source:
    """Rows that can be read again and again, and where they are from.

    Args:
        name: what messages call it.
        label: the hub id, or the names of the files without their folders.
        revision: the commit of a dataset of the hub; of files, their SHA-256; of an object, its fingerprint.
        layout: "hub" or "tsv".
        read: gives an iterator of numbered rows; pictures are not decoded.
        table: the rows as a `datasets.Dataset`, where single columns can be read before others are.
        columns: their names, where they are known before a row is read.
        folder: what paths of pictures are relative to.
        from_hub: whether it is a dataset of the hub.
    """

    name: str
    label: str
    revision: str | None
    layout: Literal["hub", "tsv"]
    read: Callable[[], Iterator[tuple[int, Any]]]
    table: Any = field(default=None, repr=False)
    columns: tuple[str, ...] | None = None
    folder: Path | None = None
    from_hub: bool = False

    def glance(self, columns: Iterable[str], present: Iterable[str]) -> Iterator[tuple[int, Any]]:
        """Numbered rows to decide on: of a table, these columns only, and of some only whether there is something.

        A number counts from 1: it is what messages say.
        """
        if self.table is None:
            yield from self.read()
            return
        table = self.table.select_columns(sorted({*columns, *present}))
        yield from enumerate(_plain_rows(table, frozenset(present) - set(columns)), start=1)

    def take(self, rows: Sequence[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        """Whole rows in place of those that were glanced at."""
        if self.table is None:
            yield from rows
            return
        numbers = [number for number, _ in rows]
        yield from zip(numbers, _plain_rows(self.table.select([number - 1 for number in numbers])), strict=True)

    def where(self, number: int) -> str:
        """What messages call a row."""
        return f"{self.name}, row {number}"


def open_local(source: str | Path, *, split: str = "", configs: Sequence[str] = ()) -> Source:
    """The rows of a file or a folder.

    Args:
        source: a .parquet, .jsonl, .json, .csv or .tsv file; a folder of such files of one kind; a folder that
            `save_to_disk` wrote; or a folder of pictures with a metadata file.
        split: of a folder with several splits, the one to take; nothing: there is only one.
        configs: of a folder with a folder for each configuration, those to take; empty: all files.

    Raises:
        SampleError: if it is none of these, or cannot be read.
    """
    path = Path(source)
    if path.is_dir():
        if any((path / name).is_file() for name in SavedFile):
            return _saved(path, split)
        files = _files_in(path, split, configs)
    elif path.is_file():
        files = [path]
    else:
        raise SampleError(f"there is no file {path}; give {', '.join(SUFFIXES)}, or a folder of such files")
    kinds = sorted({file.suffix for file in files})
    if len(kinds) > 1 or kinds[0] not in SUFFIXES:
        raise SampleError(
            f"{path} is neither .jsonl nor .parquet nor another of {', '.join(SUFFIXES)}; convert it to one of them"
            if len(kinds) == 1
            else f"{path} has files of several kinds ({', '.join(kinds)}); give one of them"
        )
    label = ", ".join(file.relative_to(path).as_posix() if path.is_dir() else file.name for file in files)
    return Source(
        name=str(path),
        label=label,
        revision=_digest(files),
        layout="tsv" if kinds[0] == ".tsv" else "hub",
        read=lambda: rows_of_file(files),
        folder=path if path.is_dir() else path.parent,
    )


def open_object(data: Any, split: str = "") -> Source:
    """The rows of a `datasets.Dataset`, `IterableDataset`, or a dictionary of them.

    Raises:
        SampleError: if it is none of these, or a dictionary without this split.
    """
    import datasets

    if isinstance(data, datasets.DatasetDict | datasets.IterableDatasetDict):
        data = _split_of(data, split, "the dictionary of datasets")
    if isinstance(data, datasets.Dataset):
        return _of_table(data, "the dataset", "datasets.Dataset", f"fingerprint:{data._fingerprint}")
    if isinstance(data, datasets.IterableDataset):
        return _of_stream(data, "the dataset", "datasets.IterableDataset", None)
    raise SampleError(
        f"cannot read rows from {type(data).__name__}; give a file, a folder, or a Dataset of the library datasets"
    )


def open_hub(
    repo: str, configs: Sequence[str], split: str, *, revision: str | None = None, streaming: bool = False
) -> Source:
    """The rows of a dataset of the hub, pinned to the commit that `revision` is now.

    Args:
        repo: its id, such as "Lin-Chen/MMStar".
        configs: its configurations, one after the other; empty: its only one.
        split: which split.
        revision: a branch, tag or commit; None: the newest.
        streaming: read while it is downloaded.

    Raises:
        SampleError: if the hub, or what of it is on this machine, does not have it.
    """
    import datasets

    try:
        commit = _commit(repo, revision)
        if commit is None and streaming:
            raise ConnectionError("HF_HUB_OFFLINE is set, and streaming needs the hub")
        parts: list[Any] = [
            datasets.load_dataset(repo, config, split=split, revision=commit or revision, streaming=streaming)
            for config in configs or (None,)
        ]
        data = parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
    except Exception as error:  # the clients below raise a dozen unrelated classes
        raise SampleError(
            f"{repo} ({', '.join(configs) or 'default'}, {split}) cannot be loaded from the hub: "
            f"{type(error).__name__}: {_brief(error)}. Check the name and the network, or give source= a local file"
        ) from error
    if commit is None:
        commit = _commit_of_cache(parts, repo, revision)
    opened = _of_stream if streaming else _of_table
    return opened(data, repo, repo, commit, from_hub=True)


def plural(count: int, noun: str) -> str:
    """A number and its noun.

    Examples:
        >>> plural(1, "row"), plural(2, "row")
        ('1 row', '2 rows')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _of_table(data: Any, name: str, label: str, revision: str | None, from_hub: bool = False) -> Source:
    return Source(
        name=name,
        label=label,
        revision=revision,
        layout="hub",
        read=lambda: enumerate(_plain_rows(data), start=1),
        table=data,
        columns=tuple(data.column_names),
        from_hub=from_hub,
    )


def _of_stream(data: Any, name: str, label: str, revision: str | None, from_hub: bool = False) -> Source:
    data = undecoded(data)
    return Source(
        name=name,
        label=label,
        revision=revision,
        layout="hub",
        read=lambda: enumerate(iter(data), start=1),
        columns=None if data.column_names is None else tuple(data.column_names),
        from_hub=from_hub,
    )


def _plain_rows(table: Any, present: frozenset[str] = frozenset()) -> Iterator[dict[str, Any]]:
    """Rows as they are stored: what Arrow is asked for directly is not decoded."""
    for batch in table.with_format("arrow").iter(BATCH):
        for name in present:
            column = batch.schema.get_field_index(name)
            batch = batch.set_column(column, name, _is_there(batch[name]))  # noqa: PLW2901  (the same batch, lighter)
        yield from batch.to_pylist()


def _is_there(column: Any) -> Any:
    """True or nothing, of a column that is too large to look at; a picture is bytes, or a path, or both."""
    import numpy as np
    import pyarrow

    there = np.asarray(column.is_valid())
    if pyarrow.types.is_struct(column.type):
        parts = [np.asarray(part.is_valid()) for part in column.combine_chunks().flatten()]
        there &= np.any(parts, axis=0)
    return pyarrow.array([True if one else None for one in there], pyarrow.bool_())


def _saved(path: Path, split: str) -> Source:
    import datasets

    try:
        data = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise SampleError(f"{path} cannot be read as a saved dataset: {_brief(error)}") from error
    if isinstance(data, datasets.DatasetDict):
        data = _split_of(data, split, str(path))
    return _of_table(data, str(path), path.name, _digest(sorted(path.rglob("*.arrow"))))


def _split_of(data: Any, split: str, name: str) -> Any:
    if split in data:
        return data[split]
    if not split and len(data) == 1:
        return next(iter(data.values()))
    wanted = f"no split {split!r}" if split else "several splits"
    raise SampleError(f"{name} has {wanted}; give one of them: {', '.join(data)}")


def _files_in(folder: Path, split: str, configs: Sequence[str]) -> list[Path]:
    """A folder's data files; of a copy of a whole repository, those of the split and the configurations."""
    for name in METADATA:
        if (folder / name).is_file():
            return [folder / name]
    files = sorted(file for file in folder.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    if not files:
        raise SampleError(
            f"the folder {folder} has no file of {', '.join(SUFFIXES)}; pictures need a metadata.jsonl with file_name"
        )
    named = [file for file in files if split and re.split(r"[-.]", file.name)[0] == split]
    files = named or files
    placed = [file for file in files if set(file.relative_to(folder).parts[:-1]) & set(configs)]
    return placed or files


def _digest(files: Sequence[Path]) -> str:
    """Of one file its SHA-256, of several that of theirs in the order in which they are read."""
    digests: list[str] = []
    for file in files:
        digest = hashlib.sha256()
        with file.open("rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
        digests.append(digest.hexdigest())
    return "sha256:" + (digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest())


def _commit(repo: str, revision: str | None) -> str | None:
    """The commit that a revision is now; None where the hub must not be asked."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        return HfApi().dataset_info(repo, revision=revision).sha
    except OfflineModeIsEnabled:
        return None


def _commit_of_cache(parts: Sequence[Any], repo: str, revision: str | None) -> str:
    """The commit of what is kept on this machine: `datasets` names the folder after it."""
    found = {
        part
        for data in parts
        for file in data.cache_files
        for part in Path(file["filename"]).parts
        if re.fullmatch(r"[0-9a-f]{40}", part)
    }
    if len(found) != 1 or (revision is not None and {revision} != found):
        raise SampleError(
            f"{repo}: the hub must not be asked (HF_HUB_OFFLINE), and the copy on this machine is of "
            f"{' and '.join(sorted(found)) or 'no known commit'}, not of {revision or 'one'}; load it once while the "
            "hub can be reached"
        )
    return found.pop()


def _brief(error: BaseException) -> str:
    if isinstance(error, LayerSurgeryError):
        return str(error)
    return " ".join(str(error).split())[:300].rstrip(".")
