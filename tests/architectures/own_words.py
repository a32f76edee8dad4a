"""Which names of architectures the library's own code holds: there should be no table of them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import layersurgery as ls

ROOMS = ("sites", "interventions", "surgery", "inspection")  # what sees models; the rest sees sites


def named_architectures() -> dict[str, set[str]]:
    """Model types and model classes of transformers in the strings of the library, with the files they are in."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    types = {kind.lower().replace("-", "_") for kind in CONFIG_MAPPING_NAMES}
    stems = {name.removesuffix("Config").lower() for name in CONFIG_MAPPING_NAMES.values()}
    classes = {name for name in dir(transformers) if name.lower().startswith(tuple(stems))} - {"AutoModel"}
    found: dict[str, set[str]] = {}
    for file, text in _strings():
        whole = {text} if text.lower().replace("-", "_") in types | stems else set[str]()
        for name in whole | {word for word in re.findall(r"\w+", text) if word in classes}:
            found.setdefault(name, set()).add(file)
    return found


def _strings() -> Iterator[tuple[str, str]]:
    """The strings in the code, docstrings aside."""
    root = Path(ls.__file__).parent
    for path in sorted(file for room in ROOMS for file in (root / room).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        lone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in lone:
                yield path.relative_to(root).as_posix(), node.value
