"""`python -m tests.benchmarks.screening`: could gradients tell which sites are worth evaluating? About 20 minutes.

A gate is put on what each site adds to the residual stream. One forward and one backward pass then estimate, to first
order, how much every sample's margin would change if a gate were closed: minus the margin's derivative by that gate.
This prints how such estimates rank the sites of the embedded models beside the true changes, what a search gains and
costs that evaluates only the sites they rank highest, and how long they take beside a sweep. The library has none of
it: sites that gain are lost in some tasks, and two trained models are too few to know in which.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest, spearmanr
from torch import nn

import layersurgery as ls
from layersurgery.embedded import CHECKPOINTS, TASKS, load, make_samples
from layersurgery.scoring import _inputs
from layersurgery.sweeps._prefix import SharedPrefix
from layersurgery.tasks import LETTERS

ROLES = {"attention": ("attention",), "mlp": ("mlp",), "both": ("attention", "mlp")}
ESTIMATES = {  # name -> where all gates stand, together, when the derivatives are taken; their mean is the estimate
    "gates at 1": (1.0,),
    "gates at 1/2": (0.5,),
    "mean over 3 gates": (1 / 6, 1 / 2, 5 / 6),
    "mean over 5 gates": (0.1, 0.3, 0.5, 0.7, 0.9),
}
FORWARDS = 2  # what one estimate takes, counted in forward passes; its forward is also the unmodified model's
ALPHA = 0.05  # McNemar's exact test, corrected by Bonferroni for the sites of a task
SOLVED = 0.95  # a task that the unmodified model solves so far has nothing to find


def main() -> None:
    """Measure, or read what was measured, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.screening", description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=300, help="test samples per task (300)")
    parser.add_argument("--probes", type=int, default=120, help="how many of them are estimated, and drawn from (120)")
    parser.add_argument("--draws", type=int, default=100, help="searches per task and rule (100)")
    parser.add_argument("--tables", type=Path, help="an .npz file with what was measured; written if it is not there")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.tables and asked.tables.exists():
        with np.load(asked.tables) as stored:
            measured = dict(stored)
    else:
        measured = measure(asked.samples, asked.probes)
        if asked.tables:
            np.savez_compressed(asked.tables, allow_pickle=False, **measured)
    for name, roles in ROLES.items():
        tables = list(_tables(measured, roles))
        if not tables:
            continue
        labels = list(ESTIMATES) if len(roles) == 1 else ["gates at 1"]  # elsewhere, the other role's gates matter
        print_ranks(name, tables, labels)
        print_searches(name, tables, labels, asked.draws)
    print_times()


@dataclass(frozen=True)
class Table:
    """One task of one model: true scores, row 0 unmodified, and estimated changes of the margin by site."""

    model: str
    task: str
    correct: np.ndarray  # [1 + sites, samples]
    margin: np.ndarray  # [1 + sites, samples]
    estimates: dict[str, np.ndarray]  # [sites, probes]

    @property
    def probes(self) -> int:
        """How many samples are estimated; searches draw from these, and the others tell what is true."""
        return self.estimates["gates at 1"].shape[1]

    @property
    def gains(self) -> np.ndarray:
        """[sites] changes of accuracy on the samples that are not drawn from."""
        return (self.correct[1:] - self.correct[0])[:, self.probes :].mean(axis=1)

    @property
    def changes(self) -> np.ndarray:
        """[sites] changes of the margin on the same samples."""
        return (self.margin[1:] - self.margin[0])[:, self.probes :].mean(axis=1)

    @property
    def kind(self) -> str:
        """What there is to find: a planted site, another that gains significantly on all samples, or nothing.

        In the planted task the model is far below chance, so that an MLP's loss gains too: by guesses, up to chance.
        """
        if self.model == "planted" and self.task == "digit_name":
            return "planted"
        won, lost = (np.sum(sign * (self.correct[1:] - self.correct[0]) > 0, axis=1) for sign in (1, -1))
        p = [float(binomtest(w, w + x).pvalue) if w > x else 1.0 for w, x in zip(won, lost, strict=True)]
        return "natural" if min(p) < ALPHA / len(p) else "nothing"


class Gate(ls.Intervention):
    """What a site adds, times a factor for each row of the batch."""

    name = "gate"
    what = "contribution"

    def __init__(self, factor: torch.Tensor) -> None:
        self.factor = factor

    def outcome(self, output: torch.Tensor) -> torch.Tensor:
        """`output` times the factor."""
        return output * self.factor.view(-1, *[1] * (output.dim() - 1))


def gradients(
    model: Any, scorer: ls.ChoiceScorer, samples: Sequence[ls.Sample], sites: ls.Sites, gate: float = 1.0
) -> np.ndarray:
    """Estimated change of each sample's margin for each site's gate going from 1 to 0: [sites, samples].

    Args:
        model: takes one row of a batch for each sample, as a decoder does.
        scorer: whose prompts and letters; each option is a single token.
        samples: multiple-choice samples.
        sites: whose contribution is gated.
        gate: where all gates stand.
    """
    found = np.zeros((len(sites), len(samples)))
    for batch in scorer._batches(samples, None):  # pyright: ignore[reportPrivateUsage]
        factors = [torch.full((len(batch.inputs["input_ids"]),), gate, requires_grad=True) for _ in sites]
        rows, positions, tokens = batch.where
        with _gated(sites, factors)(model), torch.enable_grad():
            logits = model(**_inputs.place(batch.inputs, model), use_cache=False).logits
        values = iter(logits[rows, positions, tokens])
        order, margins = [], []
        for sample, targets in groupby(batch.targets, key=lambda target: target[0]):
            options = [next(values) for _ in targets]  # in the order of the letters; the normaliser cancels
            right = options.pop(LETTERS.index(samples[sample].letter))
            order.append(sample)
            margins.append(right - torch.stack(options).max())
        slopes = torch.autograd.grad(torch.stack(margins).sum(), factors)  # nothing is left on the parameters
        found[:, order] = -torch.stack(slopes).numpy()
    return found


def measure(samples: int, probes: int, tasks: Sequence[str] = tuple(TASKS)) -> dict[str, np.ndarray]:
    """True scores and estimates of all tasks of both embedded models, attention and MLPs apart."""
    found: dict[str, np.ndarray] = {}
    for name in CHECKPOINTS:
        model, processor = load(name)
        for role in ROLES["both"]:
            sites = ls.select(model, role)
            for task in tasks:
                key, asked = f"{name}/{role}/{task}", make_samples(task, "test", samples)
                scorer = ls.ChoiceScorer(processor, batch_size=60)
                table = ls.sweep(model, scorer, asked, at=sites, do=ls.Zero())
                assert table.margin is not None
                found |= {f"{key}/correct": table.correct, f"{key}/margin": table.margin}
                for gate in sorted({gate for gates in ESTIMATES.values() for gate in gates}):
                    found[f"{key}/{gate:.3f}"] = gradients(model, scorer, asked[:probes], sites, gate)
                _say(f"measured {key}")
    return found


def print_ranks(name: str, tables: Sequence[Table], labels: Sequence[str]) -> None:
    """How estimates rank the sites, beside real sweeps of as many samples as the same time allows."""
    sites = min(len(table.gains) for table in tables)
    _say(
        f"\n{name}: {len(tables)} tasks, {sites} sites or more. Spearman's rho with what is true of other samples, and"
    )
    _say("how often the best site is among the first 1, 2, 4: in all tasks, and where a site gains significantly")
    _say(f"{'':31} {'margin':>7} {'accuracy':>9}   {'in all tasks':>16}   {'where one gains':>16}")
    for count in (tables[0].probes, 20):
        for label in labels:
            _print_rank(f"{label}, {count} samples", tables, count, [table.estimates[label] for table in tables])
        few = max(1, FORWARDS * count // (1 + sites))
        _print_rank(f"a sweep of {few}: accuracy", tables, few, [t.correct[1:] - t.correct[0] for t in tables])
        _print_rank(f"a sweep of {few}: margin", tables, few, [t.margin[1:] - t.margin[0] for t in tables])


def _print_rank(label: str, tables: Sequence[Table], count: int, scores: Sequence[np.ndarray]) -> None:
    found: list[tuple[float, float, float, bool]] = []
    for table, changes in zip(tables, scores, strict=True):
        best = int(table.gains.argmax())
        for start in range(0, table.probes - count + 1, count):
            score = changes[:, start : start + count].mean(axis=1)
            ahead = float(np.sum(score > score[best]) + (np.sum(score == score[best]) - 1) / 2)  # of a tie, half
            margin, accuracy = (_correlation(score, true) for true in (table.changes, table.gains))
            found.append((margin, accuracy, ahead, table.kind != "nothing"))
    margins, accuracies, ahead, gains = map(np.array, zip(*found, strict=True))
    hits = ["  ".join(f"{np.mean(some < top):4.2f}" for top in (1, 2, 4)) for some in (ahead, ahead[gains])]
    _say(f"{label:31} {margins.mean():7.2f} {accuracies.mean():9.2f}   {hits[0]:>16}   {hits[1]:>16}")


def _correlation(score: np.ndarray, true: np.ndarray) -> float:
    return 0.0 if np.ptp(score) == 0 or np.ptp(true) == 0 else float(spearmanr(score, true)[0])


def print_searches(name: str, tables: Sequence[Table], labels: Sequence[str], draws: int) -> None:
    """What a search gains on samples that it did not see, in points, and what it costs per shot in forwards."""
    kinds = ("planted", "natural", "nothing")
    of = {kind: [table for table in tables if table.kind == kind] for kind in kinds}
    _say(f"\n{name}: gain on samples not drawn, in points, and forwards per shot (in brackets with a shared prefix)")
    heads = "".join(f"{f'{kind} ({len(some)})':>14}" for kind, some in of.items())
    _say(f"{'':40}{heads}   forwards")
    for shots in (10, 20):
        for label, how in SEARCHES.items():
            if how[1] is not None and how[1] not in labels:
                continue
            runs = {kind: _runs(some, draws, shots, how) for kind, some in of.items()}
            means = (100 * np.mean([run[0] for run in some]) if some else np.nan for some in runs.values())
            gains = "".join(f"{'-':>14}" if np.isnan(mean) else f"{mean:+14.2f}" for mean in means)
            loop, shared = (np.mean([run[part] for some in runs.values() for run in some]) / shots for part in (1, 2))
            _say(f"{f'{shots} shots, {label}':40}{gains}   {loop:5.1f} ({shared:.1f})")


How = tuple[float, str | None, bool]
# The share of the sites that is evaluated, what they are chosen by, and whether what cannot win is left out.
SEARCHES: dict[str, How] = {
    "all sites": (1.0, None, False),
    "all sites, pruned": (1.0, None, True),
    "half, gates at 1": (0.5, "gates at 1", False),
    "half, gates at 1, pruned": (0.5, "gates at 1", True),
    "half, gates at 1/2, pruned": (0.5, "gates at 1/2", True),
    "half, mean over 3 gates, pruned": (0.5, "mean over 3 gates", True),
    "quarter, gates at 1, pruned": (0.25, "gates at 1", True),
    "quarter, gates at 1/2, pruned": (0.25, "gates at 1/2", True),
    "random half, pruned": (0.5, None, True),
    "random quarter, pruned": (0.25, None, True),
}


def _runs(tables: Sequence[Table], draws: int, shots: int, how: How) -> list[tuple[float, float, float]]:
    """Every search begins with a random state of its own, the same for all ways of searching."""
    return [_search(t, shots, np.random.default_rng(draw), *how) for t in tables for draw in range(draws)]


def _search(
    table: Table, shots: int, rng: np.random.Generator, share: float, by: str | None, prune: bool
) -> tuple[float, float, float]:
    """Gain on the samples that were not read; forwards in a loop, and where half of each is shared."""
    count = len(table.gains)
    kept = np.arange(count)
    if share < 1:
        probe = _probe(table, shots, deepcopy(rng))
        score = rng.random(count) if by is None else table.estimates[by][:, probe].mean(axis=1)
        kept = np.sort(np.argsort(-score)[: max(1, round(count * share))])
    oracle = ls.TableOracle(table.correct[np.ix_([0, *(kept + 1)], range(table.probes))])
    try:
        decision = ls.PaperRule(shots, prune=prune)(oracle, rng)
    except ls.errors.SearchError:  # solved so often that no samples were left: the model is kept
        decision = ls.Decision(None)
    unseen = np.setdiff1d(np.arange(table.correct.shape[1]), decision.columns)
    site = None if decision.site is None else kept[decision.site]
    gain = 0.0 if site is None else float((table.correct[site + 1] - table.correct[0])[unseen].mean())
    estimate = 0 if by is None else (FORWARDS * len(ESTIMATES[by]) - (1.0 in ESTIMATES[by])) * shots
    return gain, oracle.cells + estimate, shots + (oracle.cells - shots) / 2 + estimate


def _probe(table: Table, shots: int, rng: np.random.Generator) -> np.ndarray:
    """The probe set that the rule is about to draw: the first one that the unmodified model does not solve."""
    order = rng.permutation(table.probes)
    sets = [order[start : start + shots] for start in range(0, table.probes - shots + 1, shots)]
    return next((some for some in sets if table.correct[0, some].min() < 1), sets[0])


def print_times(rounds: int = 2) -> None:
    """CPU time of a sweep, by a loop and with a shared prefix, over that of the estimate of all its sites."""
    model, given = _llama()
    sites = ls.select(model)
    times = [(*_sweep_seconds(model, given, sites), _estimate_seconds(model, given, sites)) for _ in range(rounds + 1)]
    loop, shared, estimate = map(min, zip(*times[1:], strict=True))  # the first warms up
    forwards = estimate / loop * (len(sites) + 1)
    _say(
        f"\nLlama, {len(sites)} layers, 4 x 64 tokens: an estimate takes the time of {forwards:.1f} forward passes, and"
    )
    _say(f"a sweep {loop / estimate:.1f} times as long by a loop, {shared / estimate:.1f} times with a shared prefix")


def _llama() -> tuple[nn.Module, dict[str, Any]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 24, "vocab_size": 1024}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=8, num_key_value_heads=4)).eval()
    return model, {"input_ids": torch.randint(10, 1024, (4, 64)), "use_cache": False}


@torch.no_grad()
def _sweep_seconds(model: nn.Module, given: dict[str, Any], sites: ls.Sites) -> tuple[float, float]:
    """Each forward of the loop next to the same of the shared prefix."""
    prefix = SharedPrefix(model, sites)
    times = [[_seconds(lambda: model(**given))], []]
    with prefix.recording():
        times[1].append(_seconds(lambda: model(**given)))
    for site in sites:
        with ls.Surgery(at=site, do=ls.Zero())(model):
            times[0].append(_seconds(lambda: model(**given)))
            with prefix.replaying(site):
                times[1].append(_seconds(lambda: model(**given)))
    prefix.forget()
    return sum(times[0]), sum(times[1])


def _estimate_seconds(model: nn.Module, given: dict[str, Any], sites: ls.Sites) -> float:
    factors = [torch.ones(len(given["input_ids"]), requires_grad=True) for _ in sites]

    def estimate() -> None:
        logits = model(**given).logits[:, -1]
        torch.autograd.grad((logits[:, 0] - logits[:, 1]).sum(), factors)

    with _gated(sites, factors)(model):
        return _seconds(estimate)


def _gated(sites: ls.Sites, factors: Sequence[torch.Tensor]) -> ls.Surgery:
    return ls.Surgery.of(
        step for site, factor in zip(sites, factors, strict=True) for step in ls.Surgery(at=site, do=Gate(factor)).steps
    )


def _seconds(run: Callable[[], Any]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def _tables(measured: dict[str, np.ndarray], roles: Sequence[str]) -> Iterator[Table]:
    """The tasks that leave something to find; the sites of several roles one after the other."""
    for model in CHECKPOINTS:
        for task in TASKS:
            keys = [f"{model}/{role}/{task}" for role in roles]
            if any(f"{key}/correct" not in measured for key in keys):
                continue
            correct, margin = (_stacked([measured[f"{key}/{what}"] for key in keys]) for what in ("correct", "margin"))
            estimates = {
                name: np.vstack([np.mean([measured[f"{key}/{gate:.3f}"] for gate in gates], axis=0) for key in keys])
                for name, gates in ESTIMATES.items()
            }
            if correct[0].mean() < SOLVED:
                yield Table(model, task, correct, margin, estimates)


def _stacked(scores: Sequence[np.ndarray]) -> np.ndarray:
    """The unmodified model's row once, then all sites'."""
    return np.vstack([scores[0][:1], *(some[1:] for some in scores)])


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
