"""Hypothesis strategies: random surgeries, and random programs of them, on a given model."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from layersurgery.interventions import Intervention, LowRank, Mean, Noise, Scale, Skip, Uniform, Zero
from layersurgery.sites import Site, Sites, select
from layersurgery.surgery import Handle, Surgery


class PlannedFailure(Exception):  # noqa: N818 - it is no error
    """Raised inside a block by a `Block` that is meant to fail."""


@dataclass(frozen=True)
class Block:
    """A surgery in force while the blocks inside it run one after the other.

    Args:
        surgery: what is applied.
        how: "with" (a with-statement), "attach" (attach, then remove), "late" (attach, and remove only when the whole
            program is over, out of order), or "generator" (a with-statement in a generator that is closed half-way).
        inside: blocks that run while this one is in force.
        fails: whether it ends by raising `PlannedFailure`.
    """

    surgery: Surgery
    how: str = "with"
    inside: tuple[Block, ...] = ()
    fails: bool = False

    def run(self, model: Any, within: Callable[[], object] = lambda: None) -> None:
        """Run the block on a model and call `within` at each innermost moment. A planned failure ends here."""
        late: list[Handle] = []
        try:
            self._run(model, within, late)
        except PlannedFailure:
            pass
        finally:
            for handle in late:
                handle.remove()

    def _run(self, model: Any, within: Callable[[], object], late: list[Handle]) -> None:
        if self.how == "with":
            with self.surgery(model):
                self._body(model, within, late)
        elif self.how == "generator":
            generator = self._pause(model)
            next(generator)
            try:
                self._body(model, within, late)
            finally:
                generator.close()
        else:
            handle = self.surgery.attach(model)
            try:
                self._body(model, within, late)
            finally:
                if self.how == "late":
                    late.append(handle)
                else:
                    handle.remove()
                    handle.remove()  # twice is once

    def _pause(self, model: Any) -> Generator[None, None, None]:
        with self.surgery(model):
            yield

    def _body(self, model: Any, within: Callable[[], object], late: list[Handle]) -> None:
        for block in self.inside:
            try:
                block._run(model, within, late)
            except PlannedFailure:
                if not self.fails:
                    continue
                raise
        within()
        if self.fails:
            raise PlannedFailure


def interventions() -> st.SearchStrategy[Intervention]:
    """Any intervention on parameters: the paper's four, scaling and lower ranks."""
    seeds = st.integers(0, 2**31)
    scales = st.none() | st.floats(0, 2, width=32)
    return st.one_of(
        st.just(Zero()),
        st.just(Uniform()),
        st.just(Mean()),
        st.builds(Noise, std=scales, seed=seeds),
        st.builds(Scale, st.floats(-2, 2, width=32)),
        st.builds(LowRank, st.floats(0.1, 1)),
    )


def contributions() -> st.SearchStrategy[Intervention]:
    """Any intervention on what a site adds to the residual stream, at all or at some positions and steps."""
    some = st.none() | st.lists(st.integers(-3, 3), min_size=1, max_size=3).map(tuple)
    early = st.none() | st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple)
    where = {"what": st.just("contribution"), "positions": some, "steps": early}
    return st.one_of(st.builds(Zero, **where), st.builds(Scale, st.floats(-2, 2, width=32), **where))


def surgeries(
    model: Any,
    *,
    sites: Sequence[Site] | None = None,
    do: st.SearchStrategy[Intervention] | None = None,
    max_sites: int = 3,
) -> st.SearchStrategy[Surgery]:
    """Surgeries on a model: one to `max_sites` sites, one or two interventions, which may overlap.

    Where it is known how a site adds to the residual stream, on what it adds too, and layers are skipped.

    Args:
        model: the model that they are for.
        sites: sites to draw from; None: `layersurgery.select(model)`.
        do: interventions to draw from; None: `interventions()`, `contributions()` and `Skip`, where they can be done.
        max_sites: most sites at a time.
    """
    there = Sites(select(model) if sites is None else sites)
    tied = st.sampled_from(["site", "everywhere"])

    def at(among: Sequence[Site]) -> st.SearchStrategy[list[Site]]:
        return st.lists(st.sampled_from(among), min_size=1, max_size=max_sites, unique=True)

    one = st.builds(Surgery, at=at(list(there)), do=interventions() if do is None else do, tied=tied)
    if do is None:
        adding = [site for site in there if (site.adds or site.role == "layer") and not site.slices]
        layers = [site for site in there if site.role == "layer"]
        one |= st.builds(Surgery, at=at(adding), do=contributions()) if adding else st.nothing()
        one |= st.builds(Surgery, at=at(layers), do=st.just(Skip())) if layers else st.nothing()
    return st.one_of(one, st.builds(lambda first, second: first + second, one, one))


def blocks(model: Any, **settings: Any) -> st.SearchStrategy[Block]:
    """Random trees of nested, overlapping, interleaved and failing surgeries; settings as for `surgeries`."""
    surgery = surgeries(model, **settings)
    how = st.sampled_from(["with", "attach", "late", "generator"])

    def around(inner: st.SearchStrategy[Block]) -> st.SearchStrategy[Block]:
        inside = st.lists(inner, min_size=1, max_size=3).map(tuple)
        return st.builds(Block, surgery=surgery, how=how, inside=inside, fails=st.booleans())

    leaf = st.builds(Block, surgery=surgery, how=how, fails=st.booleans())
    return st.recursive(leaf, around, max_leaves=5)
