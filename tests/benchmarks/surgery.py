"""`python -m tests.benchmarks.surgery`: what applying and restoring a surgery costs.

Each line applies a surgery to the attention of one layer (or skips a layer) and restores it, beside cloning the
module's parameters, zeroing them and copying them back. All are timed in turns in one run, on one thread.
"""

from __future__ import annotations

import argparse
import gc
import resource
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import layersurgery as ls

LIMIT = 200  # microseconds
CYCLES = 10_000


def main() -> int:
    """Print the tables; 0 where every limit holds."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.surgery", description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1024, help="hidden size of the model (24 layers)")
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = _llama(asked.width)
    fine = _print_times(model, asked.rounds)
    return 0 if _print_growth(model) and fine else 1


def _llama(width: int) -> nn.Module:
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=4,
        vocab_size=256,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    return model.to_empty(device="cpu").eval()


def surgeries(model: nn.Module) -> dict[str, ls.Surgery]:
    """What is timed."""
    attention, layer = ls.select(model)[12], ls.select(model, "layer")[12]
    return {
        "Zero()": ls.Surgery(at=attention, do=ls.Zero()),
        "Uniform()": ls.Surgery(at=attention, do=ls.Uniform()),
        "Zero(what='contribution')": ls.Surgery(at=attention, do=ls.Zero(what="contribution")),
        "Skip() of the layer": ls.Surgery(at=layer, do=ls.Skip()),
    }


def _print_times(model: nn.Module, rounds: int) -> bool:
    named = surgeries(model)
    attention = model.get_submodule(named["Zero()"].sites[0].path)
    jobs: dict[str, Callable[[], None]] = {"clone, zero_, copy_ back": lambda: _clone_and_copy(attention)}
    jobs |= {name: lambda cut=cut: _apply(cut, model) for name, cut in named.items()}
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            repeat = 5 if name.startswith("clone") else 200
            times[name].append(_seconds(job, repeat) * 1e6)
    _say(f"{'apply and restore':28}  {'median':>9}  {'lowest':>9}  {'highest':>9}  new bytes   (us)")
    for name, values in times.items():
        held = _bytes(attention) if name.startswith("clone") else _bytes_in_force(model, named[name])
        _say(f"{name:28}  {statistics.median(values):9.0f}  {min(values):9.0f}  {max(values):9.0f}  {held:9,}")
    return all(min(times[name]) < LIMIT and _bytes_in_force(model, cut) < 64 for name, cut in named.items())


def _print_growth(model: nn.Module) -> bool:
    cuts = surgeries(model)

    def cycle(times: int) -> None:
        for _ in range(times):
            for cut in cuts.values():
                _apply(cut, model)

    cycle(CYCLES // 20)  # caches fill once
    before = _state(model)
    cycle(CYCLES // len(cuts))
    after = _state(model)
    _say(f"\n{CYCLES:,} cycles{'':14}  {'before':>12}  {'after':>12}")
    for name, was in before.items():
        _say(f"{name:28}  {was:12,}  {after[name]:12,}")
    same = all(after[name] == before[name] for name in ("hooks", "tensors"))
    return (
        same
        and after["objects"] - before["objects"] < 50
        and after["peak memory, kB"] - before["peak memory, kB"] < 2048
    )


def _state(model: nn.Module) -> dict[str, int]:
    gc.collect()
    found = gc.get_objects()
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    return {
        "hooks": sum(len(getattr(module, name)) for module in model.modules() for name in hooks),
        "tensors": sum(issubclass(type(one), torch.Tensor) for one in found),  # isinstance would run foreign code
        "objects": len(found),
        "peak memory, kB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def _apply(cut: ls.Surgery, model: nn.Module) -> None:
    with cut(model):
        pass


@torch.no_grad()
def _clone_and_copy(module: nn.Module) -> None:
    kept = [parameter.clone() for parameter in module.parameters()]
    for parameter in module.parameters():
        parameter.zero_()
    for parameter, values in zip(module.parameters(), kept, strict=True):
        parameter.copy_(values)


def _seconds(job: Callable[[], None], repeat: int) -> float:
    began = time.perf_counter()
    for _ in range(repeat):
        job()
    return (time.perf_counter() - began) / repeat


def _bytes(module: nn.Module) -> int:
    return sum({p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in module.parameters()}.values())


def _bytes_in_force(model: nn.Module, cut: ls.Surgery) -> int:
    with cut(model):
        module = model.get_submodule(cut.sites[0].path)
        return _bytes(module) if cut.steps[0].do.what == "parameters" else 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
