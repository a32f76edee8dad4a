"""Short stable strings for what a scorer's results depend on, so that a store never mixes different settings."""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Callable
from typing import Any

VERSION = 1
"""Raised whenever a scorer of this library comes to give other scores for the same settings."""


def callable_id(function: Callable[..., Any]) -> str:
    """A string that names a callable and changes with its code.

    It sees the code, the defaults and plain closed-over values, not globals. A callable whose behaviour depends on more
    can say so itself in an attribute `fingerprint` (a string).

    Examples:
        >>> callable_id(callable_id)
        'layersurgery.scoring._fingerprint.callable_id'
        >>> callable_id(lambda sample: "a") == callable_id(lambda sample: "b")
        False
    """
    own = getattr(function, "fingerprint", None)
    if isinstance(own, str):
        return own
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__qualname__)}"
    if name.startswith("layersurgery.") and "<" not in name:
        return name  # ours: VERSION speaks for its code
    call = "" if isinstance(function, _FUNCTIONS) else _stable(type(function).__call__)
    return f"{name}#{digest(_stable(function) + call)}"


def processor_id(processor: Any) -> str:
    """A string that changes with the processor's chat template, image settings or vocabulary.

    Args:
        processor: a Hugging Face processor or a bare tokenizer.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    image_processor = getattr(processor, "image_processor", None)
    # Settings of images that were given to from_pretrained are kept with the tokenizer's too, and count first.
    given = getattr(tokenizer, "init_kwargs", {}) if image_processor is not None else {}
    parts = (
        type(tokenizer).__name__,
        sorted(tokenizer.get_vocab().items()),
        getattr(processor, "chat_template", None),
        image_processor.to_json_string() if image_processor is not None else None,
        *sorted((key, repr(value)) for key, value in given.items() if key in _IMAGE_SETTINGS),
    )
    return f"{type(processor).__name__}#{digest(repr(parts))}"


def digest(text: str) -> str:
    """Ten hexadecimal digits of a SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:10]


_IMAGE_SETTINGS = frozenset(
    {"size", "crop_size", "min_pixels", "max_pixels", "crop_to_patches", "min_patches", "max_patches"}
    | {"do_resize", "do_rescale", "do_normalize", "do_center_crop", "image_grid_pinpoints"}
)
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial)


def _stable(value: Any, inside: tuple[Any, ...] = ()) -> str:
    """As `repr`, but with a function's code for a function, and never with a memory address in it."""
    if any(value is outer for outer in inside):
        return "itself"  # a function that closes over its own name

    def go(part: Any) -> str:
        return _stable(part, (*inside, value))

    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(go, value))}]"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(map(go, value)))}}}"
    if isinstance(value, dict):
        return f"{{{', '.join(sorted(f'{go(key)}: {go(entry)}' for key, entry in value.items()))}}}"
    parts = _parts(value)
    if parts:
        return f"{type(value).__qualname__}{go(parts)}"
    return type(value).__qualname__ if " at 0x" in repr(value) else repr(value)


def _parts(value: Any) -> list[Any]:
    """What a function consists of, as far as it changes what it does; nothing for other values."""
    if isinstance(value, types.CodeType):
        return [value.co_code.hex(), value.co_names, value.co_consts]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return [value.__code__, value.__defaults__, value.__kwdefaults__, cells]
    return []
