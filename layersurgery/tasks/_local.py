"""`load_samples`: a user's own questions from a file."""

from __future__ import annotations

import difflib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from layersurgery.errors import SampleError, TaskError
from layersurgery.tasks._sample import LETTERS, Sample


def load_samples(path: str | Path, *, task: str | None = None) -> list[Sample]:
    """Read labelled questions from a `.jsonl` or `.parquet` file.

    Each row has the fields `question` and `answer`, and may have `options` (a list of texts), `image` or `images`
    (paths relative to the file, or the bytes that `datasets` stores), `id`, `task` and `group`. With options, `answer`
    is the letter of the right one, its text, or its index counted from 0.

    Args:
        path: the file.
        task: keep only the rows of this task; None: all of them.

    Raises:
        SampleError: if the file cannot be read, or a row is malformed; the message names file and row.
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
    path = Path(path)
    samples = []
    for number, row in _rows(path):
        where = f"{path}, row {number}"
        if not isinstance(row, Mapping):
            raise SampleError(f"{where}: expected an object with the fields question and answer, got {row!r}")
        samples.append(_sample(row, number, path.parent, where))
    if not samples:
        raise SampleError(f"{path} has no rows")
    _check_ids(samples, path)
    return samples if task is None else _of_task(samples, task, path)


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    if not path.is_file():
        raise SampleError(f"there is no file {path}; give a .jsonl or .parquet file")
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            rows = pyarrow.parquet.read_table(path).to_pylist()
        except (OSError, pyarrow.ArrowException) as error:
            raise SampleError(f"{path} cannot be read as parquet: {error}") from error
        yield from enumerate(rows, start=1)
    elif path.suffix in (".jsonl", ".json"):
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    try:
                        yield number, json.loads(line)
                    except json.JSONDecodeError as error:
                        raise SampleError(
                            f"{path}, row {number}: not JSON ({error}); expected one object a line"
                        ) from error
    else:
        raise SampleError(f"{path} is neither .jsonl nor .parquet; convert it to one of them")


def _sample(row: Mapping[str, Any], number: int, folder: Path, where: str) -> Sample:
    question = row.get("question")
    if not isinstance(question, str) or not question.strip():
        raise SampleError(f"{where}: question={question!r}; expected a text")
    options = row.get("options")
    options = () if options is None else tuple(map(str, options)) if isinstance(options, list | tuple) else None
    if options is None:
        raise SampleError(f"{where}: options={row['options']!r}; expected a list of texts")
    if row.get("answer") is None:
        raise SampleError(f"{where}: the answer is missing; it has the fields {', '.join(map(str, row))}")
    answer = _answer(row["answer"], options, where) if options else str(row["answer"])
    images = row.get("images", row.get("image"))
    images = [] if images is None else images if isinstance(images, list | tuple) else [images]
    return Sample(
        id=str(row.get("id", number)),
        question=question,
        options=options,
        answer=answer,
        images=tuple(_image(image, folder, where) for image in images),
        task=str(row.get("task") or ""),
        group=None if row.get("group") is None else str(row["group"]),
    )


def _answer(answer: Any, options: tuple[str, ...], where: str) -> int:
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
        raise SampleError(
            f"{where}: answer {answer!r} {said} of the options {list(options)}; give the letter, the text or the index "
            "of the right one"
        )
    return meant.pop()


def _image(image: Any, folder: Path, where: str) -> Any:
    if isinstance(image, str):
        return folder / image
    content = image.get("bytes") if isinstance(image, Mapping) else image
    if isinstance(image, Mapping) and content is None and image.get("path"):
        return folder / image["path"]
    if not isinstance(content, bytes):
        raise SampleError(f"{where}: an image of type {type(image).__name__}; expected a path or the bytes of a file")
    from PIL import Image

    try:
        return Image.open(io.BytesIO(content))
    except OSError as error:
        raise SampleError(f"{where}: the image bytes are no picture that can be read: {error}") from error


def _check_ids(samples: list[Sample], path: Path) -> None:
    seen: set[tuple[str, str]] = set()
    for sample in samples:
        if (sample.task, sample.id) in seen:
            raise SampleError(f"{path}: the id {sample.id!r} is there twice; ids must be unique")
        seen.add((sample.task, sample.id))


def _of_task(samples: list[Sample], task: str, path: Path) -> list[Sample]:
    kept = [sample for sample in samples if sample.task == task]
    if kept:
        return kept
    there = list(dict.fromkeys(sample.task for sample in samples if sample.task))
    near = difflib.get_close_matches(task, there, 3)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise TaskError(f"{path} has no row of task {task!r}: {hint}Its tasks: {', '.join(there) or 'none is named'}")
