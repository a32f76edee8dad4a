"""Patterns over module names, and the near misses that an error should show."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable

from torch import nn

from layersurgery.errors import SelectionError

Pattern = str | re.Pattern[str] | type[nn.Module] | Callable[[str, nn.Module], bool]


def matcher(pattern: Pattern) -> Callable[[str, nn.Module], bool]:
    """The predicate that a pattern stands for.

    Raises:
        SelectionError: if it is none of the forms.

    Examples:
        >>> matcher("*.o_proj")("layers.0.o_proj", nn.Identity())
        True
    """
    if isinstance(pattern, str):
        return lambda path, module: fnmatch.fnmatchcase(path, pattern)
    if isinstance(pattern, re.Pattern):
        return lambda path, module: pattern.search(path) is not None
    if isinstance(pattern, type):
        if not issubclass(pattern, nn.Module):
            raise SelectionError(f"pattern={pattern.__name__} is no module class; give a subclass of torch.nn.Module")
        return lambda path, module: isinstance(module, pattern)
    if callable(pattern):
        return lambda path, module: bool(pattern(path, module))
    raise SelectionError(f"pattern must be a glob, a compiled regex, a module class or a predicate, got {pattern!r}")


def no_match(pattern: Pattern, paths: list[str], model: nn.Module) -> SelectionError:
    """The error for a pattern that fits none of these names."""
    text = f"nothing in {type(model).__name__} matches pattern={pattern!r}"
    if not isinstance(pattern, str):
        return SelectionError(f"{text}; module names look like {quoted(paths[-3:])}")
    bare = pattern.strip("*.")
    near = [path for path in paths if bare and bare in path][:3]
    by_leaf = {path.rsplit(".", 1)[-1]: path for path in reversed(paths)}
    near += [by_leaf[leaf] for leaf in difflib.get_close_matches(bare.rsplit(".", 1)[-1], by_leaf, 3, 0.5)]
    near += difflib.get_close_matches(pattern, paths, 3, 0.5)
    near = list(dict.fromkeys(near))[:3]
    if not near:
        return SelectionError(f"{text}; module names look like {quoted(paths[-3:])}")
    hint = "; a glob must match the whole name: begin it with '*.'" if "*" not in pattern else ""
    return SelectionError(f"{text}; near misses: {quoted(near)}{hint}")


def quoted(names: Iterable[str]) -> str:
    """Each name once, for a message.

    Examples:
        >>> quoted(["a", "b", "a"])
        "'a', 'b'"
    """
    return ", ".join(map(repr, dict.fromkeys(names))) or "none"
