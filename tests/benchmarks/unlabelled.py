"""`python -m tests.benchmarks.unlabelled`: can a site be chosen without labels, or with very few of them?

On the embedded models' own answers: the log-probability of every option, by every site, on 600 test samples a task,
with the options in their order and in the opposite one. They are made once (about ten minutes) and kept in
`build/search-tables/`. Criteria that need no labels (how sure a variant is, with whom it agrees) choose the site that
they raise most over the unmodified model, or keep the model if they raise none. Beside them are rules with a few
labels, both together, and the rules of the library. The library has none of these criteria: `docs/method.md` says why.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from scipy.special import log_softmax, xlogy
from scipy.stats import rankdata

import layersurgery as ls
from layersurgery.embedded import CHECKPOINTS, TASKS, load, make_samples
from layersurgery.errors import SearchError
from layersurgery.scoring import Scores, _choices, _inputs
from layersurgery.search import HalvingRule, PaperRule, Rule, TableOracle, smooth
from layersurgery.tasks import Sample
from tests.benchmarks._simulate import KINDS
from tests.benchmarks._tables import FOLDER, SAMPLES, KnownTask, _known, save
from tests.benchmarks._trials import HARM

UNLABELLED = (20, 100)  # samples without labels that a criterion sees
LABELS = (2, 4, 6, 20)
POOL = 250  # samples that a rule may draw labels from; what is left beside these tells what is true
TOGETHER = "information"  # the criterion that is tried together with labels: the best one by itself
HALVING = "HalvingRule(labels=100)"
SKEW = 6  # where letters are unequally often right: A is seen so many times as often as any other
HELPED = ("weak", "strong")
LOSS = 0.003  # what a criterion may lose on null tasks
HEADER = (
    f"{'rule':31} {'seen':>4} {'labels':>6}  "
    + " ".join(f"{kind:>6}" for kind in (*KINDS, "helped"))
    + f"  {'harm':>4} {'best':>4}  {'rho':>5} {'null':>5}  {'more':>6} {'+-':>4}  {'tuned':>6} {'null':>5}"
)
LEGEND = """
seen    samples without labels that are read on every site; labels: at most
null .. mean gain on samples that were not read, in points, by kind of task; helped: weak and strong; kept: 0
harm    share of the searches on null tasks that knock out a site which does harm
best    how often the best site is found, in tasks where one helps
rho     Spearman's, over sites: what is compared, and the true gain; in tasks where a site helps, and in null tasks
more    mean gain on all tasks less that of HalvingRule(labels=100), +- its standard error, over tasks
tuned   mean gain where a site helps, and on null tasks, if the model is kept below a threshold: the best one for all
        other tasks that loses no more than 0.3 points on the null ones among them
unequal letters: among the samples seen, A is right six times as often as any other letter
elsewhere: by the mean information over the other tasks of the same model, so not by anything of this one
"""


def main(given: Sequence[str] | None = None) -> int:
    """Make what is lacking, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.unlabelled", description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=100, help="searches per task (default: 100)")
    parser.add_argument("--unlabelled", nargs="+", type=int, default=list(UNLABELLED))
    parser.add_argument("--labels", nargs="+", type=int, default=list(LABELS))
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(given)
    tasks = with_elsewhere(list(option_tasks()))
    summaries = [Summary(entry) for entry in entries(asked.unlabelled, asked.labels)]
    for number, task in enumerate(tasks):
        for draw in range(asked.draws):
            place = [asked.seed, number, draw]
            parts = split(task.count, max(asked.unlabelled), np.random.default_rng(place))
            for summary in summaries:
                summary.add(task, parts, np.random.default_rng(place))
    kinds = [task.known.kind for task in tasks]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in KINDS)
    _say(f"{len(tasks)} tasks ({counts}), {asked.draws} searches each\n\n{HEADER}")
    halving = next(each for each in summaries if each.entry.name == HALVING)
    for summary in summaries:
        _say(_line(summary, halving))
    _say(LEGEND)
    return 0


@dataclass(frozen=True)
class Answers:
    """What a criterion may know.

    Args:
        log_probs: [sites + 1, n, options], normalised over the options; row 0 is the unmodified model.
        turned: the same where the samples were asked with their options in the opposite order.
    """

    log_probs: np.ndarray
    turned: np.ndarray

    def on(self, columns: np.ndarray) -> Answers:
        """Some of the samples."""
        return Answers(self.log_probs[:, columns], self.turned[:, columns])

    @property
    def probs(self) -> np.ndarray:
        """[sites + 1, n, options] probabilities."""
        return np.exp(self.log_probs)

    @property
    def chosen(self) -> np.ndarray:
        """[sites + 1, n] the option that each variant chooses."""
        return self.log_probs.argmax(axis=-1)

    @property
    def voted(self) -> np.ndarray:
        """[n] the option that most variants choose."""
        options = np.arange(self.log_probs.shape[-1])
        return (self.chosen[..., None] == options).sum(axis=0).argmax(axis=-1)


def confidence(of: Answers) -> np.ndarray:
    """Mean probability of the option that is chosen."""
    return of.probs.max(axis=-1).mean(axis=-1)


def gap(of: Answers) -> np.ndarray:
    """Mean log-probability of the option that is chosen, less that of the next."""
    ordered = np.sort(of.log_probs, axis=-1)
    return (ordered[..., -1] - ordered[..., -2]).mean(axis=-1)


def certainty(of: Answers) -> np.ndarray:
    """Minus the mean entropy of the options."""
    return -_entropy(of.probs).mean(axis=-1)


def information(of: Answers) -> np.ndarray:
    """Entropy of the mean prediction, less the mean entropy: sure of each sample, and of no option on the whole."""
    return _entropy(of.probs.mean(axis=1)) + certainty(of)


def unchanged(of: Answers) -> np.ndarray:
    """Share of the unmodified model's answers that a variant gives, too."""
    return (of.chosen == of.chosen[0]).mean(axis=-1)


def majority(of: Answers) -> np.ndarray:
    """Share of the answers that most variants give."""
    return (of.chosen == of.voted).mean(axis=-1)


def ensemble(of: Answers) -> np.ndarray:
    """Share of the answers that the mean of all variants' probabilities gives."""
    return (of.chosen == of.probs.mean(axis=0).argmax(axis=-1)).mean(axis=-1)


def letters(of: Answers) -> np.ndarray:
    """How close the frequencies of the letters are to equal ones: 0 is equal. They are, in the embedded tasks."""
    options = np.arange(of.log_probs.shape[-1])
    shares = (of.chosen[..., None] == options).mean(axis=1)
    return -np.abs(shares - 1 / len(options)).sum(axis=-1) / 2


def turned(of: Answers) -> np.ndarray:
    """Share of the samples on which the same option is chosen in the opposite order."""
    return (of.chosen == of.turned.argmax(axis=-1)).mean(axis=-1)


def _entropy(probs: np.ndarray) -> np.ndarray:
    return -xlogy(probs, probs).sum(axis=-1)


CRITERIA: dict[str, Callable[[Answers], np.ndarray]] = {  # [sites + 1] each, more is better
    "confidence": confidence,
    "gap of the first two": gap,
    "minus entropy": certainty,
    "information": information,
    "agrees with unmodified": unchanged,
    "majority": majority,
    "mean of all variants": ensemble,
    "letters equally often": letters,
    "turned": turned,
}


@dataclass(frozen=True)
class OptionTask:
    """A task of which every option's log-probability is known."""

    known: KnownTask
    answers: Answers
    right: np.ndarray  # [n] the right options
    elsewhere: np.ndarray | None = None  # [sites] mean change of `information` in the other tasks of this model

    @property
    def count(self) -> int:
        """Number of samples."""
        return self.known.correct.shape[1]


@dataclass(frozen=True)
class Parts:
    """Positions of samples: seen without labels, those to draw labels from, and those that tell what is true."""

    unlabelled: np.ndarray
    pool: np.ndarray
    rest: np.ndarray


def split(count: int, unlabelled: int, rng: np.random.Generator) -> Parts:
    """A random one."""
    order = rng.permutation(count)
    return Parts(*np.split(order, [unlabelled, unlabelled + POOL]))


@dataclass(frozen=True)
class Choice:
    """What a rule comes to.

    Args:
        site: to knock out; None: keep the model.
        changes: [sites] what it compared, more is better; None: it does not say.
    """

    site: int | None
    changes: np.ndarray | None = None


Changes: TypeAlias = Callable[[OptionTask, Parts], np.ndarray]  # [sites] more is better


@dataclass(frozen=True)
class Entry:
    """A line of the table."""

    name: str
    seen: int
    labels: int
    choose: Callable[[OptionTask, Parts, np.random.Generator], Choice]
    tuned: bool = False


def entries(unlabelled: Sequence[int], labels: Sequence[int]) -> list[Entry]:
    """All lines."""
    most = max(unlabelled)
    halving = _by_rule(HalvingRule(labels=100))
    found = [
        Entry("keep the model", 0, 0, lambda task, parts, rng: Choice(None)),
        Entry("the best site, if one gains", 0, 0, lambda task, parts, rng: _risen(task.known.truth, rng)),
        Entry("PaperRule(10)", 0, PaperRule(10).labels_needed, _by_rule(PaperRule(10))),
        Entry(HALVING, 0, 100, halving),
        Entry("all sites on all labels, gate", 0, 100, _by_margins(100, gate=True)),
        Entry(f"half by {TOGETHER}, same rule", most, 100, _first(_seen(TOGETHER, most), halving)),
    ]
    for count in unlabelled:
        found += [Entry(name, count, 0, _by_criterion(name, count), tuned=True) for name in CRITERIA]
        found += [
            Entry(f"{TOGETHER}, unequal letters", count, 0, _by_criterion(TOGETHER, count, skewed=True)),
            Entry("majority as labels, gate", count, 0, _by_votes(count)),
        ]
    for count in labels:
        gated = _by_margins(count, gate=True)
        found += [
            Entry("0/1 gain", 0, count, _by_gain(count)),
            Entry(f"0/1 gain, ties: {TOGETHER}", most, count, _by_gain(count, _seen(TOGETHER, most))),
            Entry("smoothed margins", 0, count, _by_margins(count)),
            Entry("smoothed margins, gate", 0, count, gated),
            Entry("HalvingRule", 0, count, _by_rule(HalvingRule(labels=count))),
            Entry(f"half by {TOGETHER}, gate", most, count, _first(_seen(TOGETHER, most), gated)),
            Entry(f"best by {TOGETHER}, gate", most, count, _first(_seen(TOGETHER, most), gated, keep=1)),
            Entry("best elsewhere, gate", 0, count, _first(_elsewhere, gated, keep=1)),
        ]
    return found


def _by_criterion(name: str, count: int, *, skewed: bool = False) -> Callable[..., Choice]:
    return lambda task, parts, rng: _risen(_seen(name, count, skewed=skewed)(task, parts), rng)


def _by_votes(count: int) -> Callable[..., Choice]:
    """The most frequent answers of all variants in place of labels, and the gate of `HalvingRule`."""

    def choose(task: OptionTask, parts: Parts, rng: np.random.Generator) -> Choice:
        seen = task.answers.on(parts.unlabelled[:count])
        return _compared(margins(seen.log_probs, seen.voted), rng)

    return choose


def _by_gain(count: int, ties: Changes | None = None) -> Callable[..., Choice]:
    """The largest gain on a few labels; among equal ones, the highest by a criterion, else any."""

    def choose(task: OptionTask, parts: Parts, rng: np.random.Generator) -> Choice:
        correct = task.known.correct[:, parts.pool[:count]]
        gains = (correct[1:] - correct[0]).mean(axis=1)
        lots = ties(task, parts) if ties else np.zeros(len(gains))
        order = np.lexsort([rng.random(len(gains)), lots, gains])
        ranks = rankdata(gains) + rankdata(lots) / (2 * len(gains))  # of equal gains, by the criterion
        return Choice(int(order[-1]) if gains.max() > 0 else None, ranks)

    return choose


def _by_margins(count: int, *, gate: bool = False) -> Callable[..., Choice]:
    """All sites on a few labels; with the gate, as `HalvingRule` does it in a single round."""

    def choose(task: OptionTask, parts: Parts, rng: np.random.Generator) -> Choice:
        margin = task.known.margin[:, parts.pool[:count]]
        return _compared(margin, rng) if gate else _risen(_smoothed(margin), rng)

    return choose


def _first(by: Changes, then: Callable[..., Choice], keep: int = 0) -> Callable[..., Choice]:
    """Only the sites that come first by a criterion, the better half of them or `keep`, go on to another choice."""

    def choose(task: OptionTask, parts: Parts, rng: np.random.Generator) -> Choice:
        changes = by(task, parts)
        first = np.lexsort([rng.random(len(changes)), -changes])[: keep or len(changes) // 2]
        site = then(_only(task, first), parts, rng).site
        return Choice(None if site is None else int(first[site]))

    return choose


def _only(task: OptionTask, sites: np.ndarray) -> OptionTask:
    rows, known = [0, *(sites + 1)], task.known
    kept = replace(known, correct=known.correct[rows], margin=known.margin[rows], truth=known.truth[sites])
    return replace(task, known=kept, answers=Answers(task.answers.log_probs[rows], task.answers.turned[rows]))


def _by_rule(rule: Rule) -> Callable[..., Choice]:
    def choose(task: OptionTask, parts: Parts, rng: np.random.Generator) -> Choice:
        oracle = TableOracle(task.known.correct[:, parts.pool], task.known.margin[:, parts.pool])
        try:
            return Choice(rule(oracle, rng).site)
        except SearchError:  # the paper's rule, where the unmodified model solves all samples but a few
            return Choice(None)

    return choose


def _compared(margin: np.ndarray, rng: np.random.Generator) -> Choice:
    """`HalvingRule` in one round: every site on every one of these samples."""
    rule = HalvingRule(budget=margin.size)
    return Choice(rule(TableOracle(margin > 0, margin), rng).site, _smoothed(margin))


def _smoothed(margin: np.ndarray) -> np.ndarray:
    scores = smooth(margin).mean(axis=1)
    return scores[1:] - scores[0]


def _seen(name: str, count: int, *, skewed: bool = False) -> Changes:
    """How much each site raises a criterion on the first samples without labels."""

    def changes(task: OptionTask, parts: Parts) -> np.ndarray:
        columns = parts.unlabelled[:count]
        return _raised(name, task.answers.on(skew(columns, task.right) if skewed else columns))

    return changes


def skew(columns: np.ndarray, right: np.ndarray) -> np.ndarray:
    """All samples of which A is right, and so many of each other letter that A is right `SKEW` times as often."""
    first = columns[right[columns] == 0]
    kept = [columns[right[columns] == letter][: round(len(first) / SKEW)] for letter in range(1, right.max() + 1)]
    return np.concatenate([first, *kept]) if len(first) else columns


def _elsewhere(task: OptionTask, parts: Parts) -> np.ndarray:
    del parts
    assert task.elsewhere is not None
    return task.elsewhere


def with_elsewhere(tasks: Sequence[OptionTask]) -> list[OptionTask]:
    """The same tasks, that know what `TOGETHER` says in the others of their model, the first word of their name."""
    raised = [_raised(TOGETHER, task.answers) for task in tasks]
    models = [task.known.name.split()[0] for task in tasks]
    found: list[OptionTask] = []
    for number, task in enumerate(tasks):
        others = [i for i, model in enumerate(models) if model == models[number] and i != number]
        found.append(replace(task, elsewhere=np.mean([raised[i] for i in others or [number]], axis=0)))
    return found


def _raised(name: str, answers: Answers) -> np.ndarray:
    values = CRITERIA[name](answers)
    return values[1:] - values[0]


def _risen(changes: np.ndarray, rng: np.random.Generator) -> Choice:
    """The site that rises most, any of equal ones, or none if none rises."""
    best = int(np.lexsort([rng.random(len(changes)), changes])[-1])
    return Choice(best if changes[best] > 0 else None, changes)


@dataclass(frozen=True)
class Trial:
    """What one search came to.

    Args:
        task: where.
        gain: on samples that were not read; 0 where the model is kept.
        harm: whether the site that is knocked out does harm.
        best: whether it is the one that gains most.
        rho: rank correlation of what is compared with what is true; nan: nothing to correlate.
        change: what the site is compared by; nan where the model is kept, or it is not said.
    """

    task: KnownTask
    gain: float
    harm: bool
    best: bool
    rho: float
    change: float


@dataclass
class Summary:
    """Means over searches; of none, nan."""

    entry: Entry
    trials: list[Trial] = field(default_factory=list)

    def add(self, task: OptionTask, parts: Parts, rng: np.random.Generator) -> None:
        """One more search."""
        choice = self.entry.choose(task, parts, rng)
        known, site, changes = task.known, choice.site, choice.changes
        rho = np.nan if changes is None else _correlation(changes, known.truth)
        if site is None:
            self.trials.append(Trial(known, 0.0, False, False, rho, np.nan))
            return
        gain = float((known.correct[site + 1] - known.correct[0])[parts.rest].mean())
        harm, best = bool(known.truth[site] < HARM), site == int(known.truth.argmax())
        change = np.nan if changes is None else float(changes[site])
        self.trials.append(Trial(known, gain, harm, best, rho, change))

    def gain(self, *kinds: str) -> float:
        """On tasks of these kinds."""
        return _mean(each.gain for each in self.trials if each.task.kind in kinds)

    @property
    def harm(self) -> float:
        return _mean(each.harm for each in self._null)

    @property
    def best(self) -> float:
        return _mean(each.best for each in self._others)

    def more(self, than: Summary) -> tuple[float, float]:
        """Gain on all tasks less that of another, and the standard error over tasks."""
        pairs: dict[str, list[float]] = {}
        for ours, theirs in zip(self.trials, than.trials, strict=True):
            pairs.setdefault(ours.task.name, []).append(ours.gain - theirs.gain)
        means = [np.mean(values) for values in pairs.values()]
        return float(np.mean(means)), float(np.std(means) / np.sqrt(len(means)))

    def rho(self, *, null: bool) -> float:
        """Of what is compared, with the true gain."""
        return _mean(each.rho for each in (self._null if null else self._others) if np.isfinite(each.rho))

    def tuned(self, *, null: bool) -> float:
        """Gain where a site helps, or where none does, with a threshold for each task that the others set."""
        names = [each.task.name for each in self.trials]
        gains: list[float] = []
        for name in dict.fromkeys(names):
            others = [each for each in self.trials if each.task.name != name]
            threshold = best_threshold(others)
            own = [each for each in self.trials if each.task.name == name]
            gains += [_above(threshold, each) for each in own if (each.task.kind == "null") == null]
        return _mean(gains)

    @property
    def _null(self) -> list[Trial]:
        return [each for each in self.trials if each.task.kind == "null"]

    @property
    def _others(self) -> list[Trial]:
        return [each for each in self.trials if each.task.kind != "null"]


def best_threshold(trials: Sequence[Trial]) -> float:
    """Where to keep the model so as to gain most where a site helps, and lose at most `LOSS` where none does."""
    ordered = sorted((each for each in trials if np.isfinite(each.change)), key=lambda each: -each.change)
    null = np.array([each.task.kind == "null" for each in ordered], dtype=bool)
    gains = np.array([each.gain for each in ordered])
    lost = np.cumsum(np.where(null, -gains, 0)) / max(1, sum(each.task.kind == "null" for each in trials))
    won = np.where(lost <= LOSS, np.cumsum(np.where(null, 0, gains)), -np.inf)
    return float(ordered[int(won.argmax())].change) if len(won) and won.max() > 0 else np.inf


def _above(threshold: float, trial: Trial) -> float:
    return trial.gain if trial.change >= threshold else 0.0


def _correlation(found: np.ndarray, true: np.ndarray) -> float:
    """Spearman's; of equal numbers 0, they rank nothing."""
    if np.ptp(found) == 0 or np.ptp(true) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(found), rankdata(true))[0, 1])


def _mean(values: Iterable[float]) -> float:
    listed = [float(value) for value in values]
    return float(np.mean(listed)) if listed else float("nan")


def _line(of: Summary, halving: Summary) -> str:
    gains = " ".join(f"{100 * of.gain(*kinds):+6.2f}" for kinds in (*((kind,) for kind in KINDS), HELPED))
    rhos = " ".join(f"{'-' if np.isnan(rho) else f'{rho:+.2f}':>5}" for rho in (of.rho(null=False), of.rho(null=True)))
    tuned = f"{100 * of.tuned(null=False):+6.2f} {100 * of.tuned(null=True):+5.2f}" if of.entry.tuned else ""
    samples = f"{of.entry.seen or '':>4} {of.entry.labels or '':>6}"
    more, error = (100 * value for value in of.more(halving))
    shares = f"{of.harm:4.2f} {of.best:4.2f}  {rhos}  {more:+6.2f} {error:4.2f}"
    return f"{of.entry.name:31} {samples}  {gains}  {shares}  {tuned}".rstrip()


def option_tasks(samples: int = SAMPLES) -> Iterator[OptionTask]:
    """Every task of both embedded models, from the folder where it is there, else by sweeps."""
    for checkpoint in CHECKPOINTS:
        for task in TASKS:
            path = FOLDER / f"{checkpoint}-{task}-{samples}-options.npz"
            if not path.exists():
                _make(checkpoint, task, samples, path)
            with np.load(path) as kept:
                yield option_task(f"{checkpoint} {task}", kept["log_probs"], kept["turned"], kept["answer"])


def option_task(name: str, log_probs: np.ndarray, other_order: np.ndarray, answer: np.ndarray) -> OptionTask:
    """A task from all that is known of it: both [sites + 1, n, options] in the same order, and the [n] right ones."""
    answers = Answers(log_softmax(log_probs.astype(np.float64), axis=-1), log_softmax(other_order, axis=-1))
    correct = (answers.chosen == answer).astype(np.float64)
    return OptionTask(_known(name, correct, margins(answers.log_probs, answer)), answers, answer)


def margins(log_probs: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """[rows, n] log-probability of these options, less that of the best other one."""
    right = np.arange(log_probs.shape[-1]) == answer[:, None]
    return np.where(right, log_probs, -np.inf).max(axis=-1) - np.where(right, -np.inf, log_probs).max(axis=-1)


def _make(checkpoint: str, task: str, samples: int, path: Path) -> None:
    import torch

    torch.set_num_threads(1)
    model, processor = load(checkpoint)
    asked = make_samples(task, "test", samples)
    log_probs = option_table(model, processor, asked, path.stem)
    again = option_table(model, processor, [turn(sample) for sample in asked], f"{path.stem}, turned")[:, :, ::-1]
    answer = np.array([sample.answer for sample in asked])
    save(path, log_probs=log_probs.astype(np.float32), turned=again.astype(np.float32), answer=answer)


def turn(sample: Sample) -> Sample:
    """The same question with its options in the opposite order."""
    assert isinstance(sample.answer, int)
    last = len(sample.options) - 1
    return replace(sample, id=f"{sample.id}-turned", options=sample.options[::-1], answer=last - sample.answer)


def option_table(model: Any, processor: Any, samples: Sequence[Sample], progress: str | bool = False) -> np.ndarray:
    """[sites + 1, n, options] log-probabilities; row 0 is of the unmodified model."""
    table = ls.sweep(model, OptionScorer(processor, batch_size=60), samples, batch_size=60, progress=progress)
    assert table.text is not None
    return np.array([[json.loads(text or "") for text in row] for row in table.text])


class OptionScorer(ls.ChoiceScorer):
    """A `ChoiceScorer` that also tells the log-probability of every option: as a list in each sample's `text`."""

    def __call__(self, model: Any, samples: Iterable[Sample]) -> Scores:
        """Score `samples`, which have no variants."""
        module, given = _inputs.ready(model, samples)
        found = [np.zeros(len(sample.options)) for sample in given]
        for batch in self._last.batches(given, None, lambda: self._batches(given, None)):
            for (sample, option), value in zip(batch.targets, _choices._log_probs(module, batch), strict=True):
                found[sample][option] += value
        scores = _choices._scores(given, found)
        return Scores(scores.correct, scores.margin, [json.dumps(values.tolist()) for values in found])


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
