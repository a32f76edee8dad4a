"""One model of the bench with its inputs, what it gives untouched, and a copy that is changed by hand."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

import layersurgery as ls
from layersurgery.testing import Snapshot
from tests.architectures.build import build
from tests.architectures.expected import REFUSED
from tests.architectures.inputs import inputs
from tests.architectures.sizes import USUAL, Sizes
from tests.architectures.twin import Twin, zeros

Kept = TypeVar("Kept")


class DoesNotApply(Exception):
    """A check has nothing to say about a model; the message is the reason."""


class Subject:
    """A model of the bench, built and run once; its twin never meets the library."""

    def __init__(self, name: str, seed: int = 0, size: Sizes = USUAL) -> None:
        self.name = name
        self._kept: dict[str, Any] = {}
        self.model = build(name, seed, size)
        self.twin = Twin(self.model)  # before the first forward, at which some models install hooks
        self.given = inputs(name, size)
        self.before = output_of(self.model, self.given)
        self.taken = Snapshot.of(self.model)
        if not same(output_of(self.twin.model, self.given), self.before):
            raise AssertionError("a copy of the model gives another output: nothing could be compared")

    @cached_property
    def sites(self) -> ls.Sites:
        """The attention sites that `select` finds by default."""
        return self._chosen("attention")

    @cached_property
    def feed_forwards(self) -> ls.Sites:
        """The feed-forward sites."""
        return self._chosen("mlp")

    @cached_property
    def middle(self) -> ls.Site:
        """The attention site nearest to the middle that has a say in the output; some run only with other inputs."""
        half = len(self.sites) // 2
        for site in sorted(self.sites, key=lambda site: abs(self.sites.index(site) - half)):
            with self.twin.filled(dict.fromkeys(site.modules, zeros)):
                if not same(self.twin_output(), self.before):
                    return site
        raise AssertionError("no attention site has a say in the output")

    @cached_property
    def running(self) -> ls.Sites:
        """The attention sites that run with these inputs: cross-attention may wait for others.

        They are selected with the inputs as example where selection could not make up inputs with which all run.
        """
        last = {site.path: site.modules[-1] for site in self.sites}
        ran: set[str] = set()
        hooks = [
            self.twin.model.get_submodule(path).register_forward_hook(lambda *_, path=path: ran.add(path))
            for path in last.values()
        ]
        self.twin_output()
        for hook in hooks:
            hook.remove()
        found = ls.Sites(site for site in self.sites if last[site.path] in ran)
        if all(site.adds for site in found):
            return found
        return ls.Sites(site for site in self.with_example if last[site.path] in ran)

    @cached_property
    def with_example(self) -> ls.Sites:
        """The attention sites, selected with the inputs as example."""
        sites = ls.select(self.model, example=self.given)
        if sites.paths != self.sites.paths:
            raise AssertionError(f"with an example other sites are selected: {sites.paths}")
        return sites

    def once(self, what: str, make: Callable[[], Kept]) -> Kept:
        """What `make` gives, made the first time only."""
        if what not in self._kept:
            self._kept[what] = make()
        return self._kept[what]

    def selected(self, role: str) -> ls.Sites:
        """What `select(model, role)` gives."""
        return self.once(f"select {role}", lambda: ls.select(self.model, role))

    def output(self) -> torch.Tensor:
        """What the model gives now."""
        return output_of(self.model, self.given)

    def twin_output(self) -> torch.Tensor:
        """What the copy gives now."""
        return output_of(self.twin.model, self.given)

    def _chosen(self, role: str) -> ls.Sites:
        if self.name in REFUSED:
            raise DoesNotApply("nothing in it mixes positions apart from working on each, so selection refuses")
        return self.selected(role)


@torch.no_grad()
def output_of(model: nn.Module, given: Mapping[str, Any]) -> torch.Tensor:
    """The first floating-point tensor that a forward gives."""
    with same_chance():
        found = _tensor(model(**given))
    if found is None:
        raise TypeError(f"{type(model).__name__} gives no floating-point tensor")
    return found


@contextmanager
def same_chance() -> Iterator[None]:
    """Some models draw at random in each forward (Reformer, BigBird, MusicGen): always the same, and unseen outside."""
    python, array = random.getstate(), np.random.get_state()  # noqa: NPY002 - the models draw from the global state
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            random.seed(0)
            np.random.seed(0)  # noqa: NPY002
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)  # noqa: NPY002


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two outputs are equal bit for bit; an overflow in both, too."""
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference of two outputs, relative to the largest value where that is above 1."""
    if one.shape != other.shape:
        return float("inf")
    return float((one - other).abs().max()) / max(1.0, float(other.abs().max()))


def _tensor(output: Any) -> torch.Tensor | None:
    if isinstance(output, torch.Tensor):
        return output if output.is_floating_point() else None
    inner: Iterable[Any] = output.values() if isinstance(output, Mapping) else output
    if not isinstance(output, Mapping | list | tuple):
        return None
    return next((found for found in map(_tensor, inner) if found is not None), None)
