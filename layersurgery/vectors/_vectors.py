"""`InteractionVectors`: how each task responds to an intervention at each site, for several tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from layersurgery.errors import TaskError, VectorError
from layersurgery.vectors._cluster import LinkageMethod, flat_clusters, merge_tree
from layersurgery.vectors._collect import collect

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Consistency(NamedTuple):
    """Pearson's r between two sets of vectors, its two-sided p-value, and the number of points."""

    r: float
    p: float
    n: int


@dataclass(frozen=True, init=False, eq=False, repr=False)
class InteractionVectors:
    """Task-layer interaction vectors (section 3.2, eq. 1 and 2), one row per task.

    Entry i of a task's vector is the mean score with site i intervened minus the mean score of the unmodified
    model: above 0, the site interferes with the task. The object is frozen and its arrays are read-only.

    Args:
        vectors: task name -> `ScoreTable`, or a flat array of one score change per site (as a fraction: 0.05
            is 5 points). All of the same sites and the same intervention; plain arrays take over the tables'
            sites.

    Attributes:
        tasks: the tasks' names, in the order given.
        matrix: [tasks, sites] score changes.
        sites: the sites' paths, or "0", "1", ... where only plain arrays were given.
        layers: the sites' layer numbers, or their positions where these do not tell them apart.
        base: [tasks] mean score of the unmodified model, nan where it is not known.
        surgeries: what was done at each site, where the tables say so; else None.

    Raises:
        VectorError: if there is no task, a vector is not flat or has a nan, or the vectors differ in their
            number of sites, their sites or their intervention.

    Examples:
        >>> v = InteractionVectors({"sum": [.1, 0, -.4], "count": [.2, 0, -.7], "maps": [-.3, .1, .1]})
        >>> v.correlation().round(2).tolist()[0]
        [1.0, 1.0, -0.65]
        >>> v.cluster(2)
        {'sum': 1, 'count': 1, 'maps': 2}
    """

    tasks: tuple[str, ...]
    matrix: np.ndarray
    sites: tuple[str, ...]
    layers: tuple[int, ...]
    base: np.ndarray
    surgeries: tuple[Any, ...] | None

    def __init__(self, vectors: Mapping[str, Any]) -> None:
        for name, value in collect(vectors).items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, task: str) -> np.ndarray:
        if task not in self.tasks:
            known = ", ".join(map(repr, self.tasks))
            raise TaskError(f"there is no vector of task {task!r}; there are {known}")
        return self.matrix[self.tasks.index(task)]

    def __repr__(self) -> str:
        return f"InteractionVectors({len(self.tasks)} tasks x {len(self.sites)} sites)"

    def correlation(self) -> np.ndarray:
        """Pearson's rho between each two tasks' vectors, [tasks, tasks].

        Raises:
            VectorError: if a vector is constant, or there is a single site: rho is not defined there.
        """
        for task, vector in zip(self.tasks, self.matrix, strict=True):
            if _constant(vector):
                raise VectorError(
                    f"task {task!r} changes by {vector[0]:+.3g} at every one of its {len(vector)} sites: the "
                    "correlation with a constant vector is not defined; leave that task out"
                )
        rho = np.atleast_2d(np.corrcoef(self.matrix))
        rho = np.clip((rho + rho.T) / 2, -1.0, 1.0)
        np.fill_diagonal(rho, 1.0)
        return rho

    def distance(self) -> np.ndarray:
        """1 - rho for each two tasks, [tasks, tasks]: from 0, the same response, to 2, the opposite one.

        Raises:
            VectorError: as `correlation`.
        """
        return 1.0 - self.correlation()

    def cluster(self, k: int, method: LinkageMethod = "average") -> dict[str, int]:
        """Group the tasks into exactly `k` clusters by hierarchical clustering on 1 - rho.

        Args:
            k: number of clusters, 1 to the number of tasks; the paper makes 7 of about 100 tasks (Table 11).
            method: how the distance between two clusters follows from their tasks'. Ward's and the centroid
                methods assume Euclidean distances, which 1 - rho are not, and are not offered.

        Returns:
            Task name -> label, 1 to k, numbered by first appearance.

        Raises:
            VectorError: if `k` or `method` is not one of these, or as `correlation`.
        """
        return dict(zip(self.tasks, flat_clusters(self.distance(), k, method), strict=True))

    def consistency(self, other: InteractionVectors, *, of: Literal["accuracy", "change"] | None = None) -> Consistency:
        """How far two interventions agree: Pearson's r, one point per task and site (section 3.2, Fig. 4).

        Args:
            other: vectors of the same tasks and sites under another intervention; its tasks in any order.
            of: "accuracy" correlates the scores under the two interventions, as the paper does; much of that
                r is that some tasks are easier than others. "change" correlates the changes. None: "accuracy"
                where both sides know all base scores, else "change".

        Raises:
            VectorError: if tasks or sites differ, there are fewer than 3 points, one side is constant, or
                "accuracy" is asked for and a base score is not known.
        """
        if of not in (None, "accuracy", "change"):
            raise VectorError(f'of={of!r}; give "accuracy" or "change"')
        order = self._match(other)
        mine, theirs = self.matrix, other.matrix[order]
        bases = self.base, other.base[order]
        known = all(np.isfinite(base).all() for base in bases)
        if of == "accuracy" and not known:
            raise VectorError(
                'of="accuracy" needs every task\'s base score, which plain arrays do not carry; pass score tables, '
                'or ask for of="change"'
            )
        if known and of != "change":
            mine, theirs = mine + bases[0][:, None], theirs + bases[1][:, None]
        return _pearson(mine.ravel(), theirs.ravel())

    def to_pandas(self) -> pd.DataFrame:
        """The matrix as a data frame: tasks in rows, sites in columns.

        Raises:
            ImportError: if pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_pandas needs pandas: pip install pandas") from error
        return pd.DataFrame(
            self.matrix.copy(),
            index=pd.Index(self.tasks, name="task"),
            columns=pd.Index(self.sites, name="site"),
        )

    def plot_heatmap(self, **options: Any) -> Figure:
        """Tasks x layers in colours; `options` as in `layersurgery.report.heatmap`.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        from layersurgery.report import heatmap

        return heatmap(self, **options)

    def plot_clusters(self, k: int | None = None, method: LinkageMethod = "average", **options: Any) -> Figure:
        """The tree by which `cluster` groups the tasks.

        Args:
            k: colour these many clusters; None: one colour.
            method: as in `cluster`.
            options: as in `layersurgery.report.dendrogram`.

        Raises:
            ImportError: if matplotlib is not installed.
            VectorError: as `cluster`, or if there is only one task.
        """
        from layersurgery.report import dendrogram

        distance = self.distance()
        labels = None if k is None else flat_clusters(distance, k, method)
        return dendrogram(merge_tree(distance, method), self.tasks, labels, **options)

    def _match(self, other: InteractionVectors) -> list[int]:
        """Where in `other` each of this one's tasks is."""
        _same("tasks", set(self.tasks), set(other.tasks))
        if len(self.sites) != len(other.sites):
            raise VectorError(
                f"the vectors have {len(self.sites)} and {len(other.sites)} sites; compare interventions at the same "
                "sites"
            )
        named = [not all(site.isdigit() for site in vectors.sites) for vectors in (self, other)]
        if all(named):
            _same("sites", set(self.sites), set(other.sites))
            if self.sites != other.sites:
                raise VectorError("the vectors have the same sites in another order; sweep both over one selection")
        return [other.tasks.index(task) for task in self.tasks]


def _same(what: str, mine: Iterable[str], theirs: Iterable[str]) -> None:
    differing = sorted(set(mine) ^ set(theirs))
    if differing:
        raise VectorError(
            f"the vectors are of different {what}: {differing[0]!r} is on one side only"
            f"{f', and {len(differing) - 1} more' if len(differing) > 1 else ''}; compare the same {what}"
        )


def _pearson(x: np.ndarray, y: np.ndarray) -> Consistency:
    from scipy.stats import pearsonr

    if len(x) < 3:
        raise VectorError(f"{len(x)} points are too few for a correlation; give more tasks or sites")
    if _constant(x) or _constant(y):
        raise VectorError("all points of one side are equal: the correlation is not defined")
    found: Any = pearsonr(x, y)  # its type stub hides the two numbers
    return Consistency(float(found.statistic), float(found.pvalue), len(x))


def _constant(values: np.ndarray) -> bool:
    """Equal but for rounding."""
    return bool(np.ptp(values) <= 1e-12 * max(1.0, float(np.abs(values).max())))
