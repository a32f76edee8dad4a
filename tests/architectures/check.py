"""What selection finds in a model of the bench, beside what it should find."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

import layersurgery as ls
from layersurgery.errors import SelectionError
from tests.architectures.expected import LAYOUT_OF, REFUSED
from tests.architectures.layout import Expected

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it where Python has none

ROLES = ("attention", "mlp")


def differences(
    name: str, model: nn.Module, role: str, select: Callable[[nn.Module, str], Iterable[ls.Site]] = ls.select
) -> list[str]:
    """What `select(model, role)` misses or finds too much, one line each; empty where it is right."""
    wanted = wanted_sites(name, model, role)
    try:
        found = {(site.layer or 0, site.path, site.parts, site.kind) for site in select(model, role)}
    except SelectionError as error:
        return [f"refused: {error}"] if wanted else []
    return [
        *(f"missing {_shown(site)}" for site in sorted(wanted - found)),
        *(f"too much: {_shown(site)}" for site in sorted(found - wanted)),
    ]


def wanted_sites(name: str, model: nn.Module, role: str) -> set[Expected]:
    """The sites that a model has by its source; none: a refusal is right."""
    if name in REFUSED:
        return set()
    layout = LAYOUT_OF[name]
    return layout.expected_mixers(model) if role == "attention" else layout.expected_feed_forwards(model)


@cache
def known_gaps() -> dict[tuple[str, str], str]:
    """(name, role) -> why selection is known to be wrong there."""
    path = Path(__file__).with_name("known_gaps.toml")
    gaps: list[dict[str, Any]] = tomllib.loads(path.read_text(encoding="utf-8")).get("gap", [])
    return {(name, role): gap["cause"] for gap in gaps for role in ROLES for name in gap.get(role, [])}


def _shown(site: Expected) -> str:
    number, path, parts, kind = site
    return f"{path}[{', '.join(parts)}] ({kind}, layer {number})" if parts else f"{path} ({kind}, layer {number})"
