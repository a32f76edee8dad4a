"""`python -m tests.benchmarks.sweep`: a sweep with layersurgery beside what people use today.

All of them knock out each layer's attention in turn on the same samples. They take turns forward by forward, in one
run on one thread, and processor time counts (on an accelerator the time on the wall). What the plain loop of full
forwards with a hook takes is 1.0. It costs the same at every site, and so do its like: unless asked to run in full,
they are timed at some of the sites only, the loop at more of them. layersurgery runs all of them, always.

The bound is what the loop would gain if all that need not be computed took no time: what lies below a site, and its
attention itself.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import statistics
import sys
from collections.abc import Sequence
from contextlib import suppress

import torch

from tests.benchmarks._sweep_measure import Line, Outcome, in_mib, measure
from tests.benchmarks._sweep_methods import ByHand, HookLoop, Method, NNsightTraces, Prefix, Sweep, SweepAll
from tests.benchmarks._sweep_overhead import FORWARD, LIMIT, overhead
from tests.benchmarks._sweep_parts import clock_of
from tests.benchmarks._sweep_peers import NNterp, Pyvene, TransformerLens, run_in
from tests.benchmarks._sweep_shapes import SHAPES, Shape, llama

METHODS: tuple[type[Method], ...] = (
    HookLoop,
    Sweep,
    SweepAll,
    Prefix,
    ByHand,
    NNsightTraces,
    Pyvene,
    NNterp,
    TransformerLens,
)
OVERHEAD = "overhead"


def main(given: Sequence[str] | None = None) -> int:
    """Print the tables; 0 where all that was measured in full reaches what it should."""
    asked = _arguments(given)
    _quieten()
    _keep_memory()
    if asked.peers_in:
        run_in(asked.peers_in)
    torch.set_num_threads(1)
    clock = clock_of(asked.device)
    size = "quick" if asked.quick else "full" if asked.full else "usual"
    chosen = asked.methods or [kind.name for kind in METHODS if kind is not Prefix or size != "usual"]
    kinds = [kind for kind in METHODS if kind is HookLoop or kind.name in chosen]
    missed: list[str] = []
    for name in asked.shapes:
        if name == OVERHEAD:
            missed += _overhead(asked.device, asked.quick)
        else:
            of_this = [kind for kind in kinds if kind is not SweepAll or SHAPES[name].by == SweepAll.name]
            outcome = measure(SHAPES[name], size, of_this, clock, asked.device, asked.rounds)
            _print(name, outcome, SHAPES[name], size)
            missed += [f"{name}: {one}" for one in outcome.missed]
    _say("all that was to be reached is" if not missed else "missed:")
    for one in missed:
        _say(f"  {one}")
    return int(bool(missed))


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    lines = __doc__.splitlines()
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.sweep", description=lines[0], allow_abbrev=False)
    names = [*SHAPES, OVERHEAD]
    parser.add_argument("--shapes", nargs="+", metavar="SHAPE", choices=names, help=f"some of: {', '.join(names)}")
    methods = [kind.name for kind in METHODS]
    parser.add_argument(
        "--methods", nargs="+", metavar="METHOD", choices=methods, help=f"some of: {', '.join(methods)}"
    )
    parser.add_argument("--rounds", type=int, help="rounds of each shape (default: 2, and 1 for bf16 and generation)")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", action="store_true", help="tiny models, to see that all of it runs; no targets")
    sizes.add_argument("--full", action="store_true", help="every site for every method, and 8 x 256 tokens in bf16")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--peers-in", metavar="DIRECTORY", help="an environment with other libraries to run in; made if it is not there"
    )
    asked = parser.parse_args(given)
    if asked.rounds is not None and asked.rounds < 1:
        parser.error(f"--rounds {asked.rounds}: give a whole number above 0")
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no such device; leave it out, or install a build of torch for it")
    if asked.shapes is None:
        asked.shapes = [name for name in names if name not in SHAPES or SHAPES[name].needs in ("", asked.device)]
    for name in asked.shapes:
        if name in SHAPES and SHAPES[name].needs not in ("", asked.device) and not asked.quick:
            parser.error(f"{name!r} is for --device {SHAPES[name].needs} (or --quick, a tiny one)")
    return asked


def _quieten() -> None:
    """Others' messages of no consequence for what is measured."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler tells of each start and stop
    # torchao cannot load its CUDA kernels and uses something old of torch; token numbers are not in a small vocabulary
    for name in ("torchao", "torch.utils._pytree", "transformers.configuration_utils"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _keep_memory() -> None:
    """Let the process keep memory that is freed, as glibc can: to be given back after each matrix, and to ask for it
    again, takes some percent of a forward at times and nothing at others, whichever method it is.
    """
    with suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        for setting, size in ((_TRIM_THRESHOLD, 1 << 30), (_MMAP_THRESHOLD, 1 << 25)):
            libc.mallopt(setting, size)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def _print(name: str, outcome: Outcome, shape: Shape, size: str) -> None:
    parts = outcome.parts
    _say(f"{name}: {outcome.title}")
    _say(
        f"  a forward takes {1e3 * parts.forward:.0f} ms, {parts.below:.0%} of it before the first layer; it does "
        f"{parts.rate / 1e9:,.0f} GFLOP/s ({parts.rate / parts.matrices:.0%} of what large matrices do)"
    )
    _say(f"  {outcome.timed}")
    last = "tokens" if "new_tokens" in shape.settings else "difference"
    head = f"{'method':16} {'ratio':>6}  {'lowest':>6} {'highest':>7}  {'of bound':>8}  {'ms a cell':>9}  {last:>10}"
    _say(f"  {head}  extra memory")
    for line in outcome.lines:
        _say("  " + _row(line, outcome, shape))
    if shape.bounded:
        _say(f"  bound {parts.bound:.2f} x; the residual stream of one micro-batch: {in_mib(parts.residuals)}")
    if shape.has_targets(size):
        of_bound = f", and {shape.of_bound:.0%} of the bound" if shape.of_bound else ""
        _say(f"  to be reached: {shape.target:g} x{of_bound}")
    elif size != "quick":
        wanted = shape.title.format(**shape.settings)
        _say(f"  not run in full: the {shape.target:g} x to be reached is for: {wanted} (--full)")
    for line in outcome.lines:
        if line.whole != line.ratios:
            alone = f"with that, these few samples alone give {statistics.median(line.whole):.2f}"
            _say(f"  {line.name} checks one variant and looks at the last layer, once in a run: {alone}")
    for note in outcome.notes:
        _say(f"  note: {note}")
    _say("")


def _row(line: Line, outcome: Outcome, shape: Shape) -> str:
    if line.problem:
        return f"{line.name:16} {line.problem}"
    bound = f"{line.ratio / outcome.parts.bound:8.1%}" if shape.bounded else f"{'-':>8}"
    extra = line.peak - outcome.lines[0].peak
    memory = f"{in_mib(extra):>10} over the loop's" if line is not outcome.lines[0] else f"{in_mib(line.peak):>10}"
    kept = f", {in_mib(line.kept)} kept" if line.kept else ""
    cell = statistics.median(line.cells)
    spread = f"{line.ratio:6.2f}  {min(line.ratios):6.2f} {max(line.ratios):7.2f}"
    return f"{line.name:16} {spread}  {bound}  {1e3 * cell:9.1f}  {line.difference:10.2g}  {memory}{kept}"


def _overhead(device: str, quick: bool) -> list[str]:
    settings = {"layers": 4, "width": 64, "tokens": 8} if quick else {"layers": 24, "width": 384, "tokens": 16}
    with torch.device(device):
        case = llama(**settings, samples=12 if quick else 40, batch=1)
    found = overhead(clock_of(device), case)
    shape = "Llama, {layers} layers of width {width}, {tokens} tokens".format(**settings)
    _say(f"overhead: a sweep beside a replay by hand, without any care; {shape}")
    _say(
        f"  a forward takes {1e3 * found.forward:.0f} ms; layersurgery adds {1e3 * found.seconds:.2f} ms to each "
        f"({1e3 * found.lowest:.2f} to {1e3 * found.highest:.2f}), {found.share:.1%}"
    )
    _say("" if quick else f"  to be reached: {LIMIT:.0%} of {1e3 * FORWARD:.0f} ms or more at most\n")
    return [] if quick else [f"{OVERHEAD}: {one}" for one in found.missed]


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
