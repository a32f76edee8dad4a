"""`Surgery`: what to change where - frozen data that can be applied to a model, lifted, saved and merged."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

from layersurgery.errors import SurgeryError
from layersurgery.interventions import Intervention
from layersurgery.sites import Site, Sites, unwrap
from layersurgery.surgery import _file, _ledger, _merge, _nnsight
from layersurgery.surgery._resolve import resolve
from layersurgery.surgery._step import Step, Tied

Model = TypeVar("Model")
Given = TypeVar("Given")
Envoy = TypeVar("Envoy")


@dataclass(frozen=True, init=False)
class Surgery:
    """One or more interventions, each at its site. Frozen, hashable, comparable; holds no model and no weight.

    `with surgery(model):` puts the interventions' tensors in place of the sites' parameters and, whatever happens
    inside, the very same parameters back. Original tensors are never written to. Blocks nest and interleave in any
    order: in force is always what the surgeries that are still in force would give if applied, in order, to the
    original.

    Args:
        at: a `Site` or `Sites`, from `layersurgery.select`.
        do: an intervention, such as `Zero()`.
        tied: where a parameter that modules outside the site share is changed: at the "site" only, or "everywhere".

    Raises:
        SurgeryError: if `at` is empty, or one of the arguments is something else.
        SelectionError: if a site is given twice.

    Examples:
        >>> import torch, layersurgery as ls
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
        >>> cut = ls.Surgery(at=ls.select(model, pattern="1"), do=ls.Zero())
        >>> with cut(model):
        ...     model(torch.ones(1, 2)).item()
        0.0
        >>> ls.status(model)
        nothing in force
    """

    steps: tuple[Step, ...]

    def __init__(self, at: Site | Sites | Iterable[Site], do: Intervention, *, tied: Tied = "site") -> None:
        if not isinstance(do, Intervention):
            raise SurgeryError(f"do={do!r} is no intervention; give an instance such as layersurgery.Zero()")
        if tied not in ("site", "everywhere"):
            raise SurgeryError(f"tied={tied!r}: give 'site' or 'everywhere'")
        if isinstance(at, str) or not isinstance(at, Site | Iterable):
            raise SurgeryError(f"at={at!r} is no site; use layersurgery.select(model, pattern={str(at)!r})")
        sites = Sites([at]) if isinstance(at, Site) else Sites(at)
        if not len(sites):
            raise SurgeryError("at= holds no site; a surgery needs at least one")
        object.__setattr__(self, "steps", tuple(Step(site, do, tied) for site in sites))

    @classmethod
    def of(cls, steps: Iterable[Step]) -> Surgery:
        """A surgery of these steps, applied in order.

        Raises:
            SurgeryError: if there is none.
        """
        steps = tuple(steps)
        if not steps:
            raise SurgeryError("a surgery needs at least one step")
        surgery = object.__new__(cls)
        object.__setattr__(surgery, "steps", steps)
        return surgery

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites, in order of application."""
        return tuple(step.site for step in self.steps)

    def __add__(self, other: Surgery) -> Surgery:
        """Both, one after the other: where they meet, the second acts on what the first left."""
        if not isinstance(other, Surgery):
            return NotImplemented
        return Surgery.of(self.steps + other.steps)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def __str__(self) -> str:
        return " + ".join(map(str, self.steps))

    def __call__(self, model: Model) -> AbstractContextManager[Model]:
        """A context manager under which the surgery is in force; it gives the model itself.

        Raises:
            ModelMismatchError: on entry, if a site is not in the model.
            SurgeryError: on entry, if the surgery cannot be done on this model. The model is then unchanged.
        """
        return Block(lambda: self.attach(model), model)

    def attach(self, model: Any) -> Handle:
        """Put the surgery in force until `handle.remove()`; errors as for `with surgery(model):`."""
        plan = resolve(unwrap(model), self.steps)
        return Handle(_ledger.put(plan), plan)

    def edit(self, envoy: Envoy) -> Envoy:
        """The surgery as an intervention of nnsight: a copy of an nnsight model whose traces have it.

        Modules and weights are shared with `envoy` and not touched, so that the surgery is seen in the copy's own
        traces and generations, at each step, and nowhere else. `copy.clear_edits()` takes it off. Interventions that
        change outputs can be expressed so: `Zero`, `Scale`, and all with `what="contribution"`, such as `Skip`.

        Args:
            envoy: an nnsight model, such as `nnsight.NNsight(model)` or a `TransformersModel`; edits that it has are
                kept. Traces of the whole model are meant, not of its children.

        Raises:
            ModelMismatchError: if a site is not in the model.
            SurgeryError: if `envoy` is no nnsight model, or the surgery cannot be done by changing outputs.

        Examples:
            >>> import nnsight, torch, layersurgery as ls
            >>> model = nnsight.NNsight(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)))
            >>> edited = ls.Surgery(at=ls.select(model, pattern="1"), do=ls.Zero()).edit(model)
            >>> with edited.trace(torch.ones(1, 2)):
            ...     result = edited.output.save()
            >>> result.item()
            0.0
        """
        return cast(Envoy, _nnsight.edited(envoy, self.steps))

    def merge_(self, model: Model) -> Model:
        """Make the surgery permanent: the sites' parameters are replaced for good, ready for `model.save_pretrained`.

        The replaced tensors themselves are not written to; the model just no longer refers to them.

        Raises:
            SurgeryError: if a surgery is in force on the model, or a parameter is tied to a place outside the site (a
                reload would tie it again and undo the merge); and as for `with surgery(model):`.
        """
        _merge.merge_(unwrap(model), self.steps)
        return model

    def save_pretrained(self, directory: str | Path) -> Path:
        """Write `surgery.json` into a folder, which is made if need be; returns the file's path."""
        return _file.save(self.steps, Path(directory))

    @classmethod
    def from_pretrained(cls, source: str | Path, *, revision: str | None = None) -> Surgery:
        """Read a surgery from a folder, from a `surgery.json`, or from a Hugging Face hub repository.

        Raises:
            SurgeryFileError: if there is none, it is malformed, or it was written in a newer format.
            InterventionError: if it names an intervention that is not known here.
        """
        return cls.of(_file.load(source, revision))


class Handle:
    """A surgery in force; `remove()` lifts it. Removing twice does nothing more, in any order with others."""

    def __init__(self, token: int, plan: _ledger.Plan) -> None:
        self._token = token
        self._plan = plan

    def remove(self) -> None:
        """Lift the surgery: the very same parameters are back, under whatever else is still in force."""
        if self._plan:
            _ledger.lift(self._token, self._plan)
            self._plan = _ledger.Plan()


class Block(AbstractContextManager[Given], Generic[Given]):
    """One entry into a surgery; lifted, too, when dropped without having been left (an interrupt just at entry).

    Args:
        attach: puts it in force.
        given: what `with` gives.
    """

    def __init__(self, attach: Callable[[], Handle], given: Given) -> None:
        self._attach = attach
        self._given = given
        self._handle: Handle | None = None

    def __enter__(self) -> Given:
        if self._handle is not None:
            raise SurgeryError("this block was entered before; call surgery(model) anew for each `with`")
        self._handle = self._attach()
        return self._given

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        cast(Handle, self._handle).remove()

    def __del__(self) -> None:
        if self._handle is not None and not sys.is_finalizing():
            self._handle.remove()
