"""Pictures from what is stored of them: bytes, paths, PIL images, base64. None is decoded before it is used."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from layersurgery.errors import SampleError
from layersurgery.tasks._cells import literal_list

REFERENCE = 64
"""A base64 cell of at most so many characters is no picture, but names the row that has it."""


def picture(stored: Any, folder: Path | None, where: str) -> Any:
    """A PIL image that is decoded when it is used, or a path to a file.

    Args:
        stored: bytes of a file, a path, a PIL image, or the table of bytes and path that `datasets` stores.
        folder: what paths are relative to.
        where: the row, for messages.

    Raises:
        SampleError: if it is none of these, or the bytes are no picture.
    """
    from PIL import Image

    if isinstance(stored, Mapping):
        content = stored.get("bytes")
        stored = stored.get("path") if content is None else content
    if isinstance(stored, str | PathLike):
        path = Path(stored)
        return path if folder is None else folder / path
    if isinstance(stored, Image.Image):
        return stored
    if not isinstance(stored, bytes):
        raise SampleError(f"{where}: an image of type {type(stored).__name__}; expected a path or the bytes of a file")
    try:
        return Image.open(io.BytesIO(stored))
    except OSError as error:
        raise SampleError(f"{where}: the image bytes are no picture that can be read: {error}") from error


def base64_pictures(cell: Any, look_up: Callable[[str], Any], where: str) -> list[Any]:
    """Pictures of a base64 cell: one, the text of a list of them, or a reference to the row that has them.

    Raises:
        SampleError: if it is none of these, or refers to a row that refers on.
    """
    if not isinstance(cell, str) or not cell.strip():
        raise SampleError(f"{where}: an image of type {type(cell).__name__}; expected base64 text")
    if is_reference(cell):
        name = cell.strip()
        cell = look_up(name)
        if not isinstance(cell, str) or is_reference(cell):
            raise SampleError(f"{where}: its image is that of row {name!r}, which has none of its own")
    return [picture(_decoded(text, where), None, where) for text in literal_list(cell) or [cell]]


def is_reference(cell: Any) -> bool:
    """Whether a base64 cell names another row instead of holding a picture."""
    return isinstance(cell, str) and 0 < len(cell.strip()) <= REFERENCE


def _decoded(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SampleError(f"{where}: the image is no base64 text ({error})") from error
