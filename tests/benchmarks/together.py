"""`python -m tests.benchmarks.together`: variants computed as one batch, beside a plain loop over them.

Both knock out each layer's attention in turn: the loop runs the whole model for each site; the other decodes all
variants of a prompt as one batch, or runs short prompts of all variants as one forward. Each variant of the one is
timed next to the same of the other, in one run, on one thread, in CPU time; of each, the median round counts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch

import layersurgery as ls
from layersurgery.sweeps._prefix import SharedPrefix
from layersurgery.sweeps._together import Together

WANTED = {"generation": 2.8, "short": 3.5}  # times the loop's speed


def main() -> int:
    """Print the table; 0 where the wanted ratios are reached and outputs are the loop's."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.together", description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=list(WANTED), help=f"some of {', '.join(WANTED)}")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = _llama()
    _say(f"{'case':12} {'loop':>9} {'together':>9} {'ratio':>7} {'wanted':>7}   difference")
    fine = True
    for case in asked.cases:
        run = _generation(model) if case == "generation" else _short(model)
        ratio, loop, ours, difference, notes = _timed(model, run, asked.rounds if case == "generation" else 10)
        _say(f"{case:12} {loop:7.2f} s {ours:7.2f} s {ratio:6.2f}x {WANTED[case]:6.2f}x   {difference:g}")
        for note in notes:
            _say(f"    {note}")
        fine = fine and ratio >= WANTED[case] and difference <= (0 if case == "generation" else 1e-5)
    return int(not fine)


def _timed(model, run, rounds):
    sites = ls.select(model)
    cuts = [ls.Surgery(at=site, do=ls.Zero()) for site in sites]
    together = Together(model, SharedPrefix(model, sites))
    found, difference = [], 0.0
    for number in range(rounds + 1):
        loop, ours = _Clock(), _Clock()
        with loop:
            run(number)
        with ours, together.recording():
            run(number)
        with ours:
            together.compute(cuts)
        for cut in cuts:
            with loop, cut(model):
                full = run(number)
            with ours, cut(model), together.answering(cut):
                got = run(number)
            difference = max(difference, float((got.double() - full.double()).abs().max()))
        found.append((loop.spent / ours.spent, loop.spent, ours.spent))
    ratio, loop, ours = (statistics.median(column) for column in zip(*found[1:], strict=True))  # the first warms up
    return ratio, loop, ours, difference, together.notes


class _Clock:
    def __init__(self):
        self.spent = 0.0

    def __enter__(self):
        self._began = time.process_time()

    def __exit__(self, *_):
        self.spent += time.process_time() - self._began


def _llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 1024, "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 24}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=8, num_key_value_heads=4, pad_token_id=0)).eval()


def _generation(model):
    @torch.no_grad()
    def run(number):
        given = {"input_ids": _tokens(256, number), "attention_mask": torch.ones(1, 256, dtype=torch.long)}
        return model.generate(**given, max_new_tokens=16, min_new_tokens=16, do_sample=False)

    return run


def _short(model):
    @torch.no_grad()
    def run(number):
        return model(input_ids=_tokens(16, number)).logits

    return run


def _tokens(length, seed):
    return torch.randint(3, 1024, (1, length), generator=torch.Generator().manual_seed(seed))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
