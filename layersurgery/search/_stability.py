"""`stability`: whether the same site is chosen from other samples, and how often it is where none matters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from layersurgery._labels import labels_of
from layersurgery.errors import SearchError
from layersurgery.search._decision import Rule
from layersurgery.search._oracle import TableOracle
from layersurgery.search._paper import PaperRule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHANCE = 0.05  # a share with a larger p is not said to stand out


@dataclass(frozen=True, eq=False)
class Stability:
    """How often each site was chosen (figure 7 of the paper), beside what happens where no site matters.

    `print(found)` says it in words, and `found.plot()` draws it.

    Args:
        chosen: [sites] in how many resamples each site was chosen.
        resamples: how many there were; in those that are missing from `chosen` the model was kept.
        references: [tables, sites] the same in each of some tables in which no site matters.
        undecided: resamples in which the rule lacked samples to decide; the model counts as kept there.
        labels: [sites] layer numbers, or names of the sites; None: they are only numbered.
    """

    chosen: np.ndarray = field(repr=False)
    resamples: int
    references: np.ndarray = field(repr=False)
    undecided: int = 0
    labels: tuple[int | str, ...] | None = field(default=None, repr=False)

    @property
    def site(self) -> int | None:
        """The site chosen most often; None if the model was always kept."""
        return int(self.chosen.argmax()) if self.chosen.any() else None

    @property
    def name(self) -> str | None:
        """What that site is called: "layer 4", its path where layers do not tell sites apart, or "site 4"."""
        if self.site is None:
            return None
        label = f"site {self.site}" if self.labels is None else self.labels[self.site]
        return label if isinstance(label, str) else f"layer {label}"

    @property
    def share(self) -> float:
        """In what share of the resamples it was chosen."""
        return float(self.chosen.max() / self.resamples)

    @property
    def kept(self) -> int:
        """In how many resamples the model was kept."""
        return self.resamples - int(self.chosen.sum())

    @property
    def reference(self) -> np.ndarray:
        """[sites] in how many resamples each site is chosen where no site matters, on average."""
        return self.references.mean(axis=0)

    @property
    def reference_shares(self) -> np.ndarray:
        """[tables] share of the site chosen most often in each of the tables in which no site matters."""
        return self.references.max(axis=1) / self.resamples

    @property
    def p(self) -> float:
        """How often a site is chosen as often as that where none matters; never 0."""
        as_high = int((self.reference_shares >= self.share - 1e-12).sum())
        return (1 + as_high) / (1 + len(self.reference_shares))

    def plot(self, **settings: Any) -> Figure:
        """Bars of `chosen` beside what they are by chance; needs matplotlib (`pip install 'layersurgery[plots]'`)."""
        from layersurgery.report import plot_stability

        return plot_stability(self, **settings)

    def __str__(self) -> str:
        late = f" ({self.undecided} times for lack of samples to decide)" if self.undecided else ""
        if self.name is None:
            usual = 1 - self.references.sum(axis=1).mean() / self.resamples
            return (
                f"The model is kept in all {self.resamples} resamples{late}. Where no site matters, it is kept in "
                f"{100 * usual:.0f} % on average."
            )
        share, kept, usual = self.share, self.kept / self.resamples, self.reference_shares.mean()
        doubt = "" if self.p <= CHANCE else " That the site stands out is not shown."
        return (
            f"Of the sites, {self.name} is chosen most often, in {100 * share:.0f} % of {self.resamples} resamples; "
            f"the model is kept in {100 * kept:.0f} %{late}. Where no site matters, the one chosen most often has "
            f"{100 * usual:.0f} % on average, and a share as large as here has p = {self.p:.2g}.{doubt}"
        )


def stability(
    scores: Any,
    rule: Rule,
    margin: Any = None,
    *,
    labels: Sequence[int | str] | None = None,
    resamples: int = 50,
    references: int = 20,
    seed: int = 0,
) -> Stability:
    """Repeat a rule's choice on bootstrap samples, and on such where no site matters.

    At ten shots the site chosen most often has a large share even if nothing is there to be found: the resamples
    repeat the accidents of the samples. So the same is done with tables in which, sample by sample, base and variant
    trade places with probability one half, for all sites of a sample together: no site gains then, and all else is
    as it was. A share says something only if it is above theirs.

    Args:
        scores: a `ScoreTable` of every site on every sample, as `sweep` makes it; or an array [sites + 1, n], row 0 the
            unmodified model. What a search has read does not suffice, since it leaves cells out.
        rule: the rule; what it draws depends on `seed` alone.
        margin: [sites + 1, n] margins that go with an array of 0/1 scores, for a rule that compares by them. Those of
            a `ScoreTable` are taken where the rule says that it did (`Decision.smoothed`).
        labels: layer numbers, or names of the sites, one each; None: those of a `ScoreTable`, else none.
        resamples: bootstrap samples per table; the paper takes 50.
        references: how many tables where no site matters.
        seed: for everything drawn.

    Raises:
        SearchError: if a cell is missing, shapes do not fit, scores are not of single samples, there are fewer samples
            than the rule needs, or it cannot decide on any resample.

    Examples:
        >>> from layersurgery.search import PaperRule
        >>> rng = np.random.default_rng(0)
        >>> scores = (rng.random((9, 30)) < 0.5).astype(float)            # 8 sites, none of which matters
        >>> found = stability(scores, PaperRule(10))
        >>> found.share > 0.3, found.p > 0.1
        (True, True)
    """
    table = _table(scores, rule, margin, seed)
    for name, value in (("resamples", resamples), ("references", references)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise SearchError(f"stability: {name}={value!r}; give a whole number, 1 or above")
    needed, there = getattr(rule, "labels_needed", 1), table.correct.shape[1]
    if there < needed:
        raise SearchError(f"{rule!r} may need {needed} samples, and there are {there}; give more samples")
    known = _labels(scores, labels, len(table.correct) - 1)
    rng = np.random.default_rng(seed)
    chosen, undecided = _histogram(table, rule, resamples, rng)
    without = np.array([_histogram(each, rule, resamples, rng)[0] for each in _swapped(table, references, rng)])
    return Stability(chosen, resamples, without, undecided, known)


@dataclass(frozen=True, eq=False)
class _Table:
    """Scores [sites + 1, n]; margins only where the rule compares by them."""

    correct: np.ndarray
    margin: np.ndarray | None
    best: float | None = None

    def of(self, columns: np.ndarray) -> TableOracle:
        margin = None if self.margin is None else self.margin[:, columns]
        return TableOracle(self.correct[:, columns], margin, best=self.best)


def _table(scores: Any, rule: Rule, margin: Any, seed: int) -> _Table:
    if not _is_table(scores):
        return _complete(scores, margin)
    if margin is not None:
        raise SearchError("stability: margin= goes with an array; a score table has its own, so leave it out")
    if not scores.per_sample:
        raise SearchError(
            "stability draws single samples, and the scorer of this table gives one number for all of them; score "
            "samples singly, with ChoiceScorer or a function that returns one number each"
        )
    table = _complete(scores.correct, scores.margin, scores.best)
    return table if _compares_by_margins(rule, table, seed) else replace(table, margin=None)


def _is_table(scores: Any) -> bool:
    return hasattr(scores, "correct") and hasattr(scores, "sites")


def _complete(correct: Any, margin: Any, best: float | None = None) -> _Table:
    table = _Table(_numbers(correct), None if margin is None else _numbers(margin), best)
    if table.correct.ndim != 2 or table.correct.shape[0] < 2 or not table.correct.shape[1]:
        raise SearchError(
            f"stability needs a score table, or correct [sites + 1, n] of one sample or more; got shape "
            f"{table.correct.shape}"
        )
    if table.margin is not None and table.margin.shape != table.correct.shape:
        raise SearchError(
            f"stability: margin has shape {table.margin.shape}, correct {table.correct.shape}; give both alike"
        )
    missing = np.isnan(table.correct) if table.margin is None else np.isnan(table.correct) | np.isnan(table.margin)
    if missing.any():
        row, column = np.argwhere(missing)[0].tolist()
        raise SearchError(
            f"stability needs every site on every sample, and row {row}, column {column} is missing. A search reads "
            "only some of them: score all sites on the samples that it had to choose from, table = "
            "layersurgery.sweep(model, score, samples), with the search's at= and do=, and give that table"
        )
    return table


def _numbers(values: Any) -> np.ndarray:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SearchError(
            f"stability needs a score table, as layersurgery.sweep returns it, or an array of numbers [sites + 1, n]; "
            f"got {type(values).__name__}"
        ) from error


def _compares_by_margins(rule: Rule, table: _Table, seed: int) -> bool:
    """As the rule itself says, asked on the whole table."""
    if table.margin is None:
        return False
    try:
        return rule(table.of(np.arange(table.correct.shape[1])), np.random.default_rng(seed)).smoothed
    except SearchError:  # it may decide on other samples all the same; if not, that is said there
        return False


def _labels(scores: Any, labels: Sequence[int | str] | None, sites: int) -> tuple[int | str, ...] | None:
    if labels is None:
        return labels_of(scores) if _is_table(scores) else None
    if isinstance(labels, str) or len(labels) != sites:
        raise SearchError(
            f"stability: labels={labels!r} for {sites} sites; give a list of {sites} layer numbers or names"
        )
    return tuple(int(label) if isinstance(label, (int, np.integer)) else str(label) for label in labels)


def _histogram(table: _Table, rule: Rule, resamples: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """How often each site is chosen, and in how many resamples the rule could not decide."""
    # Pruning saves evaluations, which cost nothing here, and rests on bounds that scores of traded places do not keep.
    decide = replace(rule, prune=False) if isinstance(rule, PaperRule) else rule
    n = table.correct.shape[1]
    chosen, undecided, error = np.zeros(len(table.correct) - 1, dtype=np.intp), 0, None
    for _ in range(resamples):
        try:
            site = decide(table.of(rng.integers(0, n, n)), rng).site
        except SearchError as caught:  # samples that all are solved were discarded, and too few are left
            undecided, error = undecided + 1, caught
            continue
        if site is not None:
            chosen[site] += 1
    if error is not None and undecided == resamples:
        raise SearchError(f"{rule!r} cannot decide on any of {resamples} resamples: {error}") from error
    return chosen, undecided


def _swapped(table: _Table, references: int, rng: np.random.Generator) -> Iterator[_Table]:
    """Tables with the differences of a sample turned round, or not, for all sites alike.

    Rules compare differences, and one row of the base cannot trade places with many. So the base stays, and the variant
    gets the turned difference. A rule that compares by margins also looks at their signs and sizes: there, right and
    wrong trade places in all rows of the sample. That turns the differences too, of smoothed margins as well, and no
    margin changes its size.
    """
    for _ in range(references):
        turned = rng.random(table.correct.shape[1]) < 0.5
        if table.margin is None:
            signs = np.where(turned, -1.0, 1.0)
            base = table.correct[:1]
            yield replace(table, correct=np.vstack([base, base + signs * (table.correct[1:] - base)]))
        else:
            correct = np.where(turned, 1.0 - table.correct, table.correct)
            yield replace(table, correct=correct, margin=np.where(turned, -table.margin, table.margin))
