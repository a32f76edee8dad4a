"""`Decision`: what a rule answers, and `Rule`, the form of every rule."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from layersurgery.errors import SearchError
from layersurgery.search._oracle import Oracle


@dataclass(frozen=True)
class Decision:
    """The site to knock out, or None: keep the model.

    Only `site` is needed; the rest is the rule's account of it.

    Args:
        site: index of the chosen site, or None to keep the model as it is.
        reason: why, in words.
        gains: [sites] mean score change of each site on `columns`; nan where it was not evaluated. Not
            compared by `==`.
        columns: the samples that the decision finally rests on.
        base: mean score of the unmodified model on `columns`.
        rounds: how often the sites were evaluated; 0 if never.
        redraws: how many probe sets were discarded because they said nothing.
        candidates: the sites that were still in the running at the end; more than one is a tie.
        smoothed: whether sites were compared by smoothed margins, not by scores.
        ranking: sites as the rule compared them, the best first; empty: as `gains` says.

    Raises:
        SearchError: if `site` is neither None nor an index, 0 or above.

    Examples:
        >>> Decision(3).site, Decision(None, reason="no site gains").site
        (3, None)
    """

    site: int | None
    reason: str = ""
    gains: np.ndarray | None = field(default=None, compare=False)
    columns: tuple[int, ...] = ()
    base: float | None = None
    rounds: int = 0
    redraws: int = 0
    candidates: tuple[int, ...] = ()
    smoothed: bool = False
    ranking: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "site", _site(self.site))
        if self.gains is not None:
            gains = np.array(self.gains, dtype=np.float64)
            gains.flags.writeable = False
            object.__setattr__(self, "gains", gains)
        object.__setattr__(self, "columns", tuple(int(column) for column in self.columns))
        object.__setattr__(self, "candidates", tuple(int(site) for site in self.candidates))
        object.__setattr__(self, "ranking", tuple(int(site) for site in self.ranking))


class Rule(Protocol):
    """Any callable of this form decides: `PaperRule`, or a function of one's own.

    A rule may have a property `labels_needed`, the most samples that it asks for; `talo` then refuses a pool
    that is too small before anything is evaluated. It may have a method `evaluations`, as `PaperRule` has, from
    which a dry run tells how long a search takes.
    """

    def __call__(self, oracle: Oracle, rng: np.random.Generator, /) -> Decision:
        """Read what is needed from the oracle, draw from `rng` only, and decide."""
        ...


def _site(site: object) -> int | None:
    if site is None:
        return None
    try:
        index = -1 if isinstance(site, bool) else operator.index(site)  # pyright: ignore[reportArgumentType]
    except TypeError:
        index = -1
    if index < 0:
        raise SearchError(f"Decision.site is {site!r}; give the index of a site, 0 or above, or None to keep the model")
    return index
