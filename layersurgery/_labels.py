"""What the rows of a table, or of an oracle, are called."""

from __future__ import annotations

from typing import Any


def names_of(rows: Any) -> tuple[str, ...]:
    """What tells rows apart: their `sites`, or their `surgeries` where a site was changed in several ways."""
    names = tuple(map(str, getattr(rows, "sites", ())))
    if len(set(names)) == len(names) or not hasattr(rows, "surgeries"):
        return names
    return tuple(map(str, rows.surgeries))


def labels_of(rows: Any) -> tuple[int | str, ...]:
    """The layer numbers of the `sites` where each has its own, else their names."""
    layers = tuple(site.layer for site in rows.sites if site.layer is not None)
    return layers if len(set(layers)) == len(rows.sites) else names_of(rows)
