"""`python -m tests.architectures.bench`: one line per class, and totals.

Columns: built (with weights, and a forward runs) | sites right | feed-forwards right | zeroing all attention sites
changes the output | the model is bit for bit restored, and gives the same output as before.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

import layersurgery as ls
from layersurgery.errors import LayerSurgeryError
from layersurgery.testing import Snapshot, assert_restored
from tests.architectures.build import build, names
from tests.architectures.check import differences
from tests.architectures.expected import REFUSED
from tests.architectures.inputs import inputs

COLUMNS = ("built", "sites right", "mlp right", "zero changes output", "restored")


def check(name: str) -> tuple[dict[str, bool | None], str]:
    """One line of the table (None: not reached), and what went wrong first."""
    row: dict[str, bool | None] = dict.fromkeys(COLUMNS)
    try:
        model, given = build(name), inputs(name)
        before = output_of(model, given)  # the first forward of some models installs hooks: look only after it
        row["built"] = True
    except Exception as error:  # whatever a model class raises is a line of the table
        row["built"] = False
        return row, f"{type(error).__name__}: {error}"
    wrong = {role: differences(name, model, role) for role in ("attention", "mlp")}
    row["sites right"], row["mlp right"] = not wrong["attention"], not wrong["mlp"]
    said = [*wrong["attention"], *wrong["mlp"]]
    try:
        cut = ls.Surgery(at=ls.select(model), do=ls.Zero())
        taken = Snapshot.of(model)
        with cut(model):
            row["zero changes output"] = not torch.equal(output_of(model, given), before)
        assert_restored(model, taken)
        row["restored"] = torch.equal(output_of(model, given), before)
    except AssertionError as error:
        row["restored"] = False
        said.append(str(error))
    except LayerSurgeryError as error:
        said.append(str(error))
    return row, said[0] if said else ""


@torch.no_grad()
def output_of(model: nn.Module, given: Mapping[str, Any]) -> torch.Tensor:
    """The first floating-point tensor that a forward gives."""
    with _same_chance():
        found = _tensor(model(**given))
    if found is None:
        raise TypeError(f"{type(model).__name__} gives no floating-point tensor")
    return found


@contextmanager
def _same_chance() -> Iterator[None]:
    """Some models draw at random in each forward (Reformer, BigBird, MusicGen): always the same, and unseen outside."""
    python, array = random.getstate(), np.random.get_state()  # noqa: NPY002 - the models draw from the global state
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            random.seed(0)
            np.random.seed(0)  # noqa: NPY002
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)  # noqa: NPY002


def _tensor(output: Any) -> torch.Tensor | None:
    if isinstance(output, torch.Tensor):
        return output if output.is_floating_point() else None
    inner: Iterable[Any] = output.values() if isinstance(output, Mapping) else output
    if not isinstance(output, Mapping | list | tuple):
        return None
    return next((found for found in map(_tensor, inner) if found is not None), None)


def main() -> int:
    """Print the table; 0 where every cell is yes."""
    parser = argparse.ArgumentParser(prog="python -m tests.architectures.bench", description=__doc__.splitlines()[0])
    parser.add_argument("begins", nargs="*", help="only names that begin so, such as vlm/llava or causal")
    parser.add_argument("--shard", default="1/1", help="the I-th of N parts, as I/N")
    asked = parser.parse_args()
    part, parts = map(int, asked.shard.split("/"))
    chosen = [name for name in names() if not asked.begins or name.startswith(tuple(asked.begins))][part - 1 :: parts]
    warnings.simplefilter("ignore")
    began, totals = time.perf_counter(), Counter[str]()
    _say(" | ".join(("name".ljust(32), *COLUMNS, "")))
    for name in chosen:
        row, said = check(name)
        totals.update(column for column in COLUMNS if row[column])
        cells = ({True: "yes", False: "NO", None: "-"}[row[column]].ljust(len(column)) for column in COLUMNS)
        _say(" | ".join((name.ljust(32), *cells, said.splitlines()[0][:110] if said else "")))
    counts = (f"{totals[column]}/{_of(column, chosen)}".ljust(len(column)) for column in COLUMNS)
    _say(" | ".join(("total".ljust(32), *counts, f"{time.perf_counter() - began:.0f} s")))
    return 0 if all(totals[column] == _of(column, chosen) for column in COLUMNS) else 1


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _of(column: str, chosen: list[str]) -> int:
    """How many yes a column can have: there is nothing to zero where selection is right to refuse."""
    cutting = column in COLUMNS[3:]
    return sum(not (cutting and name in REFUSED) for name in chosen)


if __name__ == "__main__":
    sys.exit(main())
