"""`Trace`: a model's shadow, what was seen of it when it ran, and the runs themselves, to be repeated with a change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from layersurgery.errors import SelectionError
from layersurgery.sites._adds import Outlet
from layersurgery.sites._example import Call, given, guesses
from layersurgery.sites._recorder import Record, Recorder
from layersurgery.sites._shadow import NoShadowError, shadow

LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


class Trace:
    """What the modules of one model do.

    Args:
        model: the model; it is not run and not kept.
        example: arguments of one forward; None: guessed.

    Raises:
        SelectionError: if the model cannot run on the example.
    """

    def __init__(self, model: nn.Module, example: Any = None) -> None:
        self.runs: list[tuple[nn.Module, Call]] = []
        self.outlets: dict[tuple[str, tuple[str, ...]], Outlet] = {}  # what was found out at sites, by path and parts
        self.why_not = ""
        self._records: dict[int, tuple[Record, int]] = {}  # by id of the shadow's module: what was seen, in which run
        self._twins: dict[int, nn.Module] = {}
        self._top: nn.Module | None = None
        self._tried: set[int] = set()
        try:
            self._top, self._twins = shadow(model)
        except NoShadowError as error:
            self.why_not = str(error)
            if example is not None:
                raise SelectionError(
                    f"{error}, so an example input is of no use; leave example= away, and names and structure decide"
                ) from error
            return
        self._layers, self._outside = _lists(self._top)
        if example is not None:
            self._given(example)
        else:
            self._try(self._top)
        self._tried = {id(self._top)}

    @property
    def ran(self) -> bool:
        """Whether anything ran."""
        return bool(self.runs)

    def of(self, module: nn.Module) -> Record | None:
        """What was seen of a module of the model; None, if it did not run."""
        twin = self.twin(module)
        return self._records[id(twin)][0] if twin is not None and id(twin) in self._records else None

    def twin(self, module: nn.Module) -> nn.Module | None:
        """The shadow's module for one of the model's."""
        return self._twins.get(id(module))

    def whole(self, module: nn.Module) -> bool | None:
        """Whether a module ran when all of the model did; None, if that never did."""
        whole = next((at for at, (top, _) in enumerate(self.runs) if top is self._top), None)
        twin = self.twin(module)
        return None if whole is None else twin is not None and self._records.get(id(twin), (None, -1))[1] == whole

    def saw_whole(self, modules: Iterable[nn.Module]) -> bool:
        """Whether one of these modules ran within the whole model, and not in a part of it that ran by itself."""
        run = self.run_of(modules)
        return run is not None and run[0] is self._top

    def run_of(self, modules: Iterable[nn.Module]) -> tuple[nn.Module, Call] | None:
        """The run in which the first of these modules that ran did so: what was called, and with what."""
        twins = [self.twin(module) for module in modules]
        return next((self.runs[self._records[id(twin)][1]] for twin in twins if id(twin) in self._records), None)

    def look_at(self, module: nn.Module, inside: nn.Module | None = None) -> bool:
        """Run a part of the model by itself, or else what it consists of, where it has not run yet.

        With `inside`, only what that module is a part of. Returns whether something was seen.
        """
        twin, goal = self.twin(module), None if inside is None else self.twin(inside)
        before = len(self._records)
        if twin is not None:
            self._run_unseen(twin, goal)
        return len(self._records) > before

    def _run_unseen(self, module: nn.Module, goal: nn.Module | None) -> None:
        """From the outside in, down to single layers, but not to what is inside a layer."""
        if id(module) not in self._records and id(module) not in self._tried:
            self._tried.add(id(module))
            self._try(module)
        if id(module) not in self._layers:
            for child in module.children():
                parts = list(child.modules())
                wanted = goal is None or any(part is goal for part in parts) or id(child) in self._layers
                if wanted and any(id(part) in self._layers for part in parts):
                    self._run_unseen(child, goal)

    def _given(self, example: Any) -> None:
        call = given(example)
        assert self._top is not None
        try:
            self._run(self._top, call)
        except Exception as error:
            raise SelectionError(
                f"{type(self._top).__name__} cannot run on this example: {type(error).__name__}: {error}. Give the "
                "arguments of one forward, e.g. example={'input_ids': ...}"
            ) from error

    def _try(self, module: nn.Module) -> None:
        for call in _guessed(module):
            try:
                self._run(module, call)
            except Exception as error:  # whatever a model raises on what it was not made for: the next guess
                self.why_not = f"{type(error).__name__}: {error}"
                continue
            self.why_not = ""
            return

    def _run(self, module: nn.Module, call: Call) -> None:
        recorder = Recorder(module, self._layers, self._outside)
        recorder.run(*call)
        for key, record in recorder.records.items():
            self._records.setdefault(key, (record, len(self.runs)))
        self.runs.append((module, call))


def trace(model: nn.Module, example: Any = None) -> Trace:
    """The trace of a model: made once, as long as the model consists of the same modules.

    Raises:
        SelectionError: if the model cannot run on the example.
    """
    if example is not None:
        return Trace(model, example)
    key = tuple((name, id(module), type(module)) for name, module in model.named_modules())
    known = _traces.get(model)
    if known is None or known[0] != key:
        known = _traces[model] = (key, Trace(model))
    return known[1]


_traces: WeakKeyDictionary[nn.Module, tuple[Any, Trace]] = WeakKeyDictionary()


def _guessed(module: nn.Module) -> Iterator[Call]:
    try:
        yield from guesses(module)
    except Exception:  # a signature or a config that cannot be read: nothing can be guessed
        return


def _lists(top: nn.Module) -> tuple[set[int], set[int]]:
    """Ids of the modules that are elements of lists, and of those that have an outermost list somewhere inside."""
    layers: set[int] = set()
    outside: set[int] = set()

    def walk(module: nn.Module, around: tuple[nn.Module, ...], within: bool) -> None:
        for child in module.children():
            listed = isinstance(module, LISTS) and len(module) > 1 and any(True for _ in child.children())
            if listed:
                layers.add(id(child))
                if not within:
                    outside.update(map(id, (*around, module)))
            walk(child, (*around, module), within or listed)

    walk(top, (), False)
    return layers, outside - layers
