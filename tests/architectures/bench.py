"""`make bench`: every class of the bench, one line each, and totals; fails where a cell says NO that is no known gap.

`python -m tests.architectures.bench causal/gpt2 --jobs 1` shows a few; `--markdown` writes docs/architectures.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from tests.architectures.build import names
from tests.architectures.own_words import named_architectures
from tests.architectures.page import PAGE, page
from tests.architectures.rows import COLUMNS, Row, row
from tests.architectures.sizes import SIZES, Sizes


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 0 where every cell is yes, does not apply, or is a known gap."""
    asked = _parser().parse_args(arguments)
    part, parts = map(int, asked.shard.split("/"))
    chosen = [name for name in names() if not asked.begins or name.startswith(tuple(asked.begins))][part - 1 :: parts]
    if asked.markdown and len(chosen) < len(names()):
        raise SystemExit("--markdown writes the page of all classes: leave out names and --shard")
    began = time.perf_counter()
    rows = list(_said(_rows(chosen, asked.seed, SIZES[asked.sizes], asked.jobs)))
    _say(f"{len(rows)} classes in {time.perf_counter() - began:.0f} s")
    for title in COLUMNS:
        counts = Counter(each.cells[title].answer for each in rows)
        _say(f"{title:16} " + "   ".join(f"{answer} {counts[answer]:3}" for answer in ("yes", "NO", "-")))
    named = named_architectures()
    _say(f"names of architectures in the library: {len(named)}, words of its vocabulary ({', '.join(sorted(named))})")
    if asked.json:
        Path(asked.json).write_text(json.dumps([each.to_dict() for each in rows], indent=1), encoding="utf-8")
    if asked.markdown:
        PAGE.write_text(page(rows), encoding="utf-8")
    failed = [each.name for each in rows if each.failures]
    _say(f"failed: {', '.join(failed)}" if failed else "no failure that is not a known gap")
    return int(bool(failed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.architectures.bench", description=__doc__.splitlines()[0])
    parser.add_argument("begins", nargs="*", help="only names that begin so, such as vlm/llava or causal")
    parser.add_argument("--jobs", type=int, default=2, help="how many processes (default: 2)")
    parser.add_argument("--shard", default="1/1", help="the I-th of N parts, as I/N")
    parser.add_argument("--seed", type=int, default=0, help="other random weights")
    parser.add_argument("--sizes", choices=SIZES, default="usual", help="other numbers of layers, heads and widths")
    parser.add_argument("--json", metavar="FILE", help="write all answers, with their reasons")
    parser.add_argument("--markdown", action="store_true", help="write docs/architectures.md")
    return parser


def _rows(chosen: Sequence[str], seed: int, size: Sizes, jobs: int) -> Iterator[Row]:
    if jobs == 1:
        _prepare()
        yield from (row(name, seed, size) for name in chosen)
        return
    # not forked: threads of an imported torch would be missing
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _prepare) as pool:
        yield from pool.map(partial(row, seed=seed, size=size), chosen)


def _prepare() -> None:
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")


def _said(rows: Iterable[Row]) -> Iterator[Row]:
    _say(f"{'name':32} {' | '.join(COLUMNS)}")
    for each in rows:
        cells = " | ".join(cell.answer.ljust(len(title)) for title, cell in each.cells.items())
        wrong = [f"{title}: {cell.why}" for title, cell in each.cells.items() if cell.answer == "NO"]
        _say(f"{each.name:32} {cells} | {' '.join(wrong[0].split())[:150] if wrong else ''}")
        yield each


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
