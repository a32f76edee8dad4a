"""`load_samples`: a user's own questions, from a file, a folder or a dataset."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

from layersurgery.errors import LayerSurgeryWarning, SampleError, TaskError
from layersurgery.tasks._cells import Row
from layersurgery.tasks._files import TEXT_ONLY
from layersurgery.tasks._pictures import picture
from layersurgery.tasks._sample import KINDS, LETTERS, Kind, Sample
from layersurgery.tasks._samples import Samples
from layersurgery.tasks._schema import did_you_mean
from layersurgery.tasks._source import Source, open_local, open_object

COLUMNS = (
    *("question", "answer", "options", "image", "images", "file_name"),
    *("hint", "id", "task", "group", "kind", "precision", "unit"),
)
_ALSO_SAID = {"choices": "options", "label": "answer", "text": "question", "picture": "image", "file": "file_name"}


def load_samples(source: Any, *, task: str | None = None) -> Samples:
    """Read labelled questions of your own.

    Each row has the columns `question` and `answer`, and may have

    - `options`: a list of texts, or one column for each: `A`, `B`, `C`, ... With options, `answer` is the letter of the
      right one, its text, or its index counted from 0. Without, it is the text, or a list of texts each of which is
      right.
    - `image` or `images`: paths relative to the file, bytes, or what `datasets` stores. `file_name` is the same as
      `image`, as folders of pictures have it.
    - `hint`, `id`, `task`, `group`, `kind`, `precision` and `unit`: see `Sample`.

    In .csv and .tsv files everything is text: a list is written as in JSON, an empty cell is nothing, and a number is
    no index. Other columns are kept in `Sample.meta`.

    Args:
        source: a .jsonl (or .json), .csv, .tsv or .parquet file; a folder of such files; a folder of pictures with a
            metadata.jsonl, .csv or .parquet; a folder that `save_to_disk` wrote; or a `datasets.Dataset`.
        task: keep only the rows of this task; None: all of them.

    Returns:
        The samples, and where they are from.

    Raises:
        SampleError: if the source cannot be read, or a row is malformed; the message names file and row.
        TaskError: if no row has this task; the message lists those there are.

    Examples:
        >>> import tempfile
        >>> row = '{"question": "Which colour is the sky?", "options": ["red", "blue"], "answer": "B"}'
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "sky.jsonl")
        ...     _ = file.write_text(row)
        ...     load_samples(file)[0].answer
        1
    """
    opened = open_local(Path(source)) if isinstance(source, str | PathLike) else open_object(source)
    text_only = opened.label.endswith(TEXT_ONLY)
    samples: list[Sample] = []
    for number, cells in opened.read():
        row = Row(cells, opened.where(number), ("",) if text_only else ())
        if not samples:
            _warn_of_columns(row, opened)
        samples.append(_sample(row, number, opened.folder, text_only))
    if not samples:
        raise SampleError(f"{opened.name} has no rows")
    _check_ids(samples, opened.name)
    kept = samples if task is None else _of_task(samples, task, opened.name)
    origin = {
        "task": task or "",
        "source": opened.label,
        "revision": opened.revision,
        "rows_read": len(samples),
        "samples": len(kept),
    }
    return Samples(kept, origin)


def _sample(row: Row, number: int, folder: Path | None, text_only: bool) -> Sample:
    given = _Given(row)
    question = given.get("question")
    if not isinstance(question, str) or not question.strip():
        raise SampleError(f"{row.where}: question={question!r}; expected a text")
    options = _options(given)
    answer = given.get("answer")
    if answer is None:
        raise SampleError(f"{row.where}: the answer is missing; it has the fields {', '.join(map(str, row.cells))}")
    right = _answer(answer, options, row.where, text_only) if options else _open_answer(answer, given)
    images = given.get("images", given.get("image", given.get("file_name")))
    images = _listed(images) if isinstance(images, str) else images
    images = [] if images is None else images if isinstance(images, list | tuple) else [images]
    used = {*COLUMNS, *given.lettered}
    return Sample(
        id=str(given.get("id", number)),
        question=question,
        options=options,
        answer=right,
        images=tuple(picture(image, folder, row.where) for image in images),
        task=str(given.get("task") or ""),
        group=None if given.get("group") is None else str(given.get("group")),
        meta={str(name): value for name, value in row.cells.items() if name not in used},
        hint=str(given.get("hint", "")),
        kind=_kind(given),
        precision=None if given.get("precision") is None else row.integer("precision"),
        unit=str(given.get("unit", "")),
    )


class _Given:
    """What a row gives: a column that is not there, and one with nothing in it, are the same."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.lettered = [letter for letter in LETTERS if letter in row.cells] if "options" not in row.cells else []

    def get(self, name: str, default: Any = None) -> Any:
        value = self.row.cells.get(name)
        return default if self.row.is_missing(value) else value


def _options(given: _Given) -> tuple[str, ...]:
    row = given.row
    if given.lettered:
        found = [given.get(letter) for letter in given.lettered]
        count = found.index(None) if None in found else len(found)
        whole = given.lettered == list(LETTERS[: len(found)]) and not any(one is not None for one in found[count:])
        if not whole:
            there = [letter for letter in given.lettered if given.get(letter) is not None]
            raise SampleError(
                f"{row.where}: it has the options {', '.join(there)}; expected A, B, C, ... without a gap"
            )
        return tuple(map(str, found[:count]))
    options = given.get("options")
    listed = _listed(options) if isinstance(options, str) else options
    if listed is None:
        return ()
    if not isinstance(listed, list | tuple):
        raise SampleError(f"{row.where}: options={options!r}; expected a list of texts")
    return tuple(map(str, listed))


def _listed(text: str) -> Any:
    """The list that a text is in JSON, or the text."""
    try:
        value = json.loads(text) if text.lstrip().startswith("[") else text
    except json.JSONDecodeError:
        return text
    return value if isinstance(value, list) else text


def _kind(given: _Given) -> Kind:
    kind = given.get("kind", "")
    if kind and kind not in KINDS:
        raise SampleError(
            f"{given.row.where}: kind={kind!r}; {did_you_mean(str(kind), KINDS)}Give one of {', '.join(KINDS)}, or "
            "leave it out"
        )
    return kind


def _open_answer(answer: Any, given: _Given) -> str | tuple[str, ...]:
    """The text, or several; a list that is asked for as a list is one text."""
    listed = _listed(answer) if isinstance(answer, str) else answer
    if not isinstance(listed, list | tuple):
        return str(answer)
    if given.get("kind") == "list":
        return answer if isinstance(answer, str) else str(list(listed))
    if not listed:
        raise SampleError(f"{given.row.where}: answer={answer!r}; expected a text, or at least one")
    return tuple(map(str, listed))


def _answer(answer: Any, options: tuple[str, ...], where: str, text_only: bool) -> int:
    if isinstance(answer, int) and not isinstance(answer, bool):
        if 0 <= answer < len(options):
            return answer
        raise SampleError(
            f"{where}: answer {answer} is no index of {len(options)} options; count from 0, or give a letter"
        )
    text = str(answer).strip()
    meant = {index for index, option in enumerate(options) if option.strip() == text}
    if len(text) == 1 and text.upper() in LETTERS[: len(options)]:
        meant.add(LETTERS.index(text.upper()))
    if len(meant) != 1:
        said = "fits several" if meant else "is none"
        ways = "the letter or the text" if text_only else "the letter, the text or the index"
        raise SampleError(
            f"{where}: answer {answer!r} {said} of the options {list(options)}; give {ways} of the right one"
        )
    return meant.pop()


def _warn_of_columns(row: Row, source: Source) -> None:
    """A misspelt column would only be kept in `meta`, and a question with options become one without."""
    there = set(map(str, row.cells))
    for name in sorted(there - set(COLUMNS)):
        meant = _ALSO_SAID.get(name.casefold()) or next(iter(_near(name)), None)
        if meant and meant not in there and name not in LETTERS:
            warnings.warn(
                f"{source.name}: the column {name!r} is kept in meta only; if it is meant as {meant!r}, rename it",
                LayerSurgeryWarning,
                stacklevel=3,
            )


def _near(name: str) -> Iterable[str]:
    import difflib

    return difflib.get_close_matches(name.casefold(), COLUMNS, 1, cutoff=0.8)


def _check_ids(samples: list[Sample], name: str) -> None:
    seen: set[tuple[str, str]] = set()
    for sample in samples:
        if (sample.task, sample.id) in seen:
            raise SampleError(f"{name}: the id {sample.id!r} is there twice; ids must be unique")
        seen.add((sample.task, sample.id))


def _of_task(samples: list[Sample], task: str, name: str) -> list[Sample]:
    kept = [sample for sample in samples if sample.task == task]
    if kept:
        return kept
    there = list(dict.fromkeys(sample.task for sample in samples if sample.task))
    raise TaskError(
        f"{name} has no row of task {task!r}: {did_you_mean(task, there)}Its tasks: "
        f"{', '.join(there) or 'none is named'}"
    )
