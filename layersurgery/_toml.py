"""The data files of `benchmarks_tasks`, wherever the package is installed."""

from __future__ import annotations

import functools
import sys
from importlib import resources
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]  # the same, for Python 3.10


@functools.cache
def read_toml(name: str) -> dict[str, Any]:
    """What `benchmarks_tasks/<name>.toml` says."""
    return tomllib.loads(resources.files("benchmarks_tasks").joinpath(f"{name}.toml").read_text(encoding="utf-8"))
