"""Values as digests: the same content gives the same one in any process, and other content another one.

A store tells samples, scorers and models apart by these. So what cannot be read to the end is an error, never a guess.
"""

from __future__ import annotations

import copyreg
import functools
import hashlib
import inspect
import math
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch

from layersurgery.errors import StoreError
from layersurgery.scoring._fingerprint import _stable, callable_id, processor_id
from layersurgery.tasks import Sample

PIECE = 64 << 20
"""Bytes of a tensor that are copied at a time."""


class Digests:
    """Digests of values; what was seen before is not read again.

    Args:
        known: objects that are named, in place of read: by `id`, their names.

    Examples:
        >>> one, other = Digests().of({"a": 1, "b": {2.0, 3.0}}), Digests().of({"b": {3.0, 2.0}, "a": 1})
        >>> one == other
        True
        >>> one == Digests().of({"a": True, "b": {2.0, 3.0}})
        False
    """

    def __init__(self, known: Mapping[int, str] | None = None) -> None:
        self._known = known or {}
        self._seen: dict[int, tuple[Any, bytes]] = {}  # with the value, so that its id is not given to another
        self._open: list[int] = []
        self._loops = 0

    def of(self, value: Any) -> bytes:
        """The digest of a value.

        Raises:
            StoreError: if there is something in it whose content cannot be read; the message says what.
        """
        if id(value) in self._known:
            return joined("known", [self._known[id(value)].encode()])
        if (leaf := _leaf(value)) is not None:
            return joined(*leaf)
        if id(value) in self._seen:
            return self._seen[id(value)][1]
        if id(value) in self._open:
            self._loops += 1
            return joined("itself", [str(self._open[::-1].index(id(value))).encode()])
        loops = self._loops
        self._open.append(id(value))
        try:
            found = self._composite(value)
        finally:
            self._open.pop()
        if self._loops == loops:  # an "itself" in it means something else elsewhere
            self._seen[id(value)] = value, found
        return found

    def _composite(self, value: Any) -> bytes:
        if isinstance(own := getattr(value, "fingerprint", None), str):
            return joined(
                "fingerprint", [class_name(value).encode(), self.of(getattr(value, "id", None)), self.of(own)]
            )
        for kinds, read in _READERS:
            if isinstance(value, kinds):
                return read(self, value)
        if hasattr(getattr(value, "tokenizer", value), "get_vocab"):
            return joined("processor", [processor_id(value).encode()])  # its own state changes as it is used
        return self.fields(value, set_fields(value)) if is_dataclass(value) else self._made(value)

    def fields(self, value: Any, entries: Mapping[Any, Any]) -> bytes:
        """Of names and values, in whichever order."""
        pairs = [joined("", [self.of(key), self.of(entry)]) for key, entry in entries.items()]
        return joined(class_name(value), sorted(pairs))

    def _made(self, value: Any) -> bytes:
        """What pickle would write: the recipe by which another process would make it again."""
        from PIL import Image

        if isinstance(value, Image.Image):
            return picture_digest(value)
        try:
            recipe = value.__reduce_ex__(4)
        except Exception as error:  # whatever a class of anyone's raises here
            raise StoreError(f"the content of a {class_name(value)} cannot be read ({error})") from error
        if isinstance(recipe, str):
            return joined("global", [recipe.encode(), self.of(getattr(value, "__wrapped__", None))])
        maker = None if recipe[0] is copyreg.__newobj__ else recipe[0]  # pyright: ignore[reportAttributeAccessIssue]
        listed = [list(part) for part in recipe[3:5] if part is not None]
        return joined(class_name(value), map(self.of, (maker, *recipe[1:3], *listed)))


def joined(name: str, parts: Iterable[bytes | memoryview]) -> bytes:
    """One digest of several parts, each with its length, so that none runs over into the next."""
    hasher = hashlib.sha256()
    for part in (name.encode("utf-8", "surrogatepass"), *parts):
        hasher.update(len(part).to_bytes(8, "little"))
        hasher.update(part)
    return hasher.digest()


def tensor_digest(tensor: torch.Tensor) -> bytes:
    """Of kind, shape and the very bytes of the values, wherever they lie in memory and on whichever device.

    Raises:
        StoreError: if the values are not in memory.
    """
    if tensor.is_meta or tensor.layout is not torch.strided:
        raise StoreError(f"the values of a tensor are {'not in memory' if tensor.is_meta else f'{tensor.layout}'}")
    values = tensor.detach().resolve_conj().resolve_neg()
    hasher = hashlib.sha256(f"{values.dtype} {tuple(values.shape)}".encode())
    for piece in _pieces(values):
        hasher.update(piece.reshape(-1).view(torch.uint8).cpu().numpy().data)
    return hasher.digest()


def picture_digest(image: Any) -> bytes:
    """Of a PIL image: its file's bytes where it lies in memory as an undecoded file, else its pixels.

    Raises:
        StoreError: if it cannot be decoded.
    """
    from PIL import Image

    waiting: Any = getattr(image, "fp", None)  # gone once a picture is decoded
    if hasattr(waiting, "getvalue"):
        return joined("picture file", [waiting.getvalue(), str(image.tell()).encode()])
    try:
        if waiting is not None and image.tell() == 0 and Path(getattr(image, "filename", "")).is_file():
            with Image.open(image.filename) as again:  # decoding the sample's own would keep its pixels in memory
                return _pixels(again)
        return _pixels(image)
    except (OSError, ValueError) as error:
        raise StoreError(f"a picture cannot be decoded ({error})") from error


def file_digest(path: Path) -> bytes:
    """Of a file's bytes.

    Raises:
        StoreError: if it cannot be read.
    """
    hasher = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                hasher.update(piece)
    except OSError as error:
        raise StoreError(f"the file {str(path)!r} cannot be read ({error.strerror})") from error
    return joined("file", [hasher.digest()])


def set_fields(value: Any) -> dict[str, Any]:
    """A dataclass's fields that are not at their default, so that one that is added later changes nothing."""
    return {one.name: getattr(value, one.name) for one in fields(value) if not _at_default(one, value)}


def parts_of(model: torch.nn.Module) -> dict[int, str]:
    """Names for a model and all that it is made of, by `id`: what holds them is not told apart by their content."""
    parts = (*model.named_modules(), *model.named_parameters(), *model.named_buffers())
    return {id(part): f"the model's {path}" for path, part in parts}


@functools.cache
def class_code(cls: type) -> str:
    """A digest of what a class's own functions and those of its bases do; nothing for this library's and torch's.

    Of functions alone: what `callable_id` sees, without what they were given or closed over.
    """
    parts: list[bytes] = []
    for base in cls.__mro__:
        if base.__module__.split(".")[0] in ("torch", "layersurgery", "builtins", "abc", "typing"):
            continue
        for name, held in sorted(vars(base).items()):
            function = inspect.unwrap(getattr(held, "fget", None) or getattr(held, "__func__", held))
            if isinstance(function, types.FunctionType):
                parts.append(f"{base.__qualname__}.{name}={_stable(function.__code__)}".encode())
    return joined("class", parts).hex()[:16] if parts else ""


def class_name(value: Any) -> str:
    """The name of a value's class, without its module: a script is `__main__` today and imported tomorrow.

    Examples:
        >>> class_name(3)
        'int'
    """
    return type(value).__qualname__


def _leaf(value: Any) -> tuple[str, Sequence[bytes]] | None:
    """Name and content of a value with nothing in it; None for others."""
    for kinds, write in _LEAVES:
        if isinstance(value, kinds):
            return class_name(value), [write(value)]
    return None


def _utf8(value: Any) -> bytes:
    return str(value).encode("utf-8", "surrogatepass")


def _path(value: PurePath) -> bytes:
    path = Path(value)
    try:
        there = path.is_file()
    except OSError as error:
        raise StoreError(f"the file {str(path)!r} cannot be read ({error.strerror})") from error
    return file_digest(path) if there else path.as_posix().encode("utf-8", "surrogateescape")


def _array(digests: Digests, value: np.ndarray) -> bytes:
    if value.dtype.hasobject:
        return joined("objects", [str(value.shape).encode(), digests.of(value.tolist())])
    return joined("array", [f"{value.dtype.str} {value.shape}".encode(), np.ascontiguousarray(value).tobytes()])


def _sample(digests: Digests, value: Sample) -> bytes:
    images = [Path(image) if isinstance(image, str) else image for image in value.images]
    return digests.fields(value, {**set_fields(value), "images": images})


def _function(digests: Digests, value: Any) -> bytes:
    """A function's code, and what it was given beyond it."""
    inner, given = value, ()
    if isinstance(value, functools.partial):
        inner, given = value.func, (value.func, value.args, value.keywords)
    elif isinstance(value, types.MethodType):
        inner, given = value.__func__, (value.__func__, value.__self__)
    elif isinstance(value, types.FunctionType):
        given = tuple(_captured(value))
    elif not isinstance(value.__self__, types.ModuleType | None):
        given = (value.__self__,)
    return joined("function", [callable_id(inner).encode("utf-8", "surrogatepass"), *map(digests.of, given)])


def _model(digests: Digests, value: torch.nn.Module) -> bytes:
    raise StoreError(f"a model ({class_name(value)}) other than the one that is changed is part of it")


def _captured(function: types.FunctionType) -> Iterator[Any]:
    yield function.__defaults__
    yield function.__kwdefaults__
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not filled yet
            yield name, None


def _pieces(values: torch.Tensor) -> Iterator[torch.Tensor]:
    """Contiguous parts, so that neither a stretched scalar nor what lies on an accelerator is copied as a whole."""
    if values.numel() == 0:
        return
    rows = values.reshape(1) if values.dim() == 0 else values
    size = max(1, PIECE // (rows[0].numel() * rows.element_size()))
    for start in range(0, len(rows), size):
        yield rows[start : start + size].contiguous()


def _pixels(image: Any) -> bytes:
    palette = image.getpalette("RGBA") if image.mode in ("P", "PA") else None
    kind = f"{image.mode} {image.size} {image.info.get('transparency')!r}"
    return joined("pixels", [kind.encode(), bytes(palette or ()), image.tobytes()])


def _at_default(one: Field[Any], value: Any) -> bool:
    if one.default_factory is not MISSING:
        default: Any = one.default_factory()
    elif one.default is not MISSING:
        default = one.default
    else:
        return False
    held = getattr(value, one.name)
    plain = isinstance(held, str | int | float | None) or (isinstance(held, tuple | list | dict) and not held)
    return plain and type(held) is type(default) and held == default


_LEAVES: tuple[tuple[Any, Callable[[Any], bytes]], ...] = (
    (bool | complex | None, lambda value: repr(value).encode()),
    (np.generic, lambda value: f"{value.dtype.str} ".encode() + value.tobytes()),
    (int, lambda value: str(int(value)).encode()),
    (float, lambda value: b"nan" if math.isnan(value) else float(value).hex().encode()),
    (str, _utf8),
    (bytes | bytearray, bytes),
    (PurePath, _path),
    (type | types.ModuleType, lambda value: _utf8(getattr(value, "__qualname__", value.__name__))),
    (torch.dtype | torch.device, _utf8),
)
_READERS: tuple[tuple[Any, Callable[[Digests, Any], bytes]], ...] = (
    ((list, tuple), lambda digests, value: joined(class_name(value), map(digests.of, value))),
    ((set, frozenset), lambda digests, value: joined(class_name(value), sorted(map(digests.of, value)))),
    (Mapping, lambda digests, value: digests.fields(value, value)),
    (np.ndarray, _array),
    (torch.Tensor, lambda digests, value: tensor_digest(value)),
    (torch.nn.Module, _model),
    ((types.FunctionType, types.MethodType, functools.partial), _function),
    ((types.BuiltinFunctionType, types.MethodWrapperType), _function),
    (Sample, _sample),
)
