"""Values that a module is given and gives: copies that do not change, and the same values again."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from layersurgery.sweeps._prefix_reach import UnknownValueError, base_of, contents, count_of_writes, kind_of
from layersurgery.sweeps._store_values import tensor_digest


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor that is kept: itself, as long as nobody writes into it, or a copy of which copies are given out."""

    tensor: torch.Tensor
    version: int | None

    @property
    def is_intact(self) -> bool:
        """Whether it still holds what it held."""
        return self.version is None or self.tensor._version == self.version


@dataclass(frozen=True, slots=True)
class Counted:
    """Tensors that count writes, and their counts at one moment."""

    tensors: list[torch.Tensor]
    versions: list[int | None]

    @classmethod
    def of(cls, held: Iterable[Held]) -> Counted:
        """Of what is kept: those that are kept themselves."""
        counted = [one for one in held if one.version is not None]
        return cls([one.tensor for one in counted], [one.version for one in counted])

    @classmethod
    def now(cls, tensors: list[torch.Tensor]) -> Counted:
        """Of some as they are."""
        return cls(tensors, list(map(count_of_writes, tensors)))

    @property
    def are_intact(self) -> bool:
        """Whether nobody has written into any."""
        return list(map(count_of_writes, self.tensors)) == self.versions


@dataclass(frozen=True, slots=True)
class Print:
    """What tells a tensor from others without its numbers being kept: it can be recognised, not given out."""

    form: tuple[Any, ...]
    digest: bytes

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Print:
        """Of a tensor in the main memory."""
        return cls(_form(tensor), tensor_digest(tensor))

    def is_of(self, value: Any) -> bool:
        """Whether a value is that tensor, or just like it."""
        alike = isinstance(value, torch.Tensor) and _form(value) == self.form
        return alike and tensor_digest(value) == self.digest


@dataclass(frozen=True, slots=True)
class _Given:
    """Something that the call was given, by its number among the holders."""

    number: int


@dataclass(frozen=True, slots=True)
class _Row:
    """A tuple; and itself, where all in it stays as it is unless a count of writes says otherwise."""

    kind: type[tuple[Any, ...]]
    entries: tuple[Any, ...]
    itself: tuple[Any, ...] | None = None

    @classmethod
    def of(cls, value: tuple[Any, ...], entries: tuple[Any, ...]) -> _Row:
        kind = type(value)
        steady = kind is tuple and all(_itself(frozen) is one for frozen, one in zip(entries, value, strict=True))
        return cls(kind, entries, value if steady else None)


@dataclass(slots=True)
class _Made:
    """A list, dictionary, set or object: its entries, its attributes."""

    kind: type[Any]
    entries: tuple[Any, ...] | None = None
    attributes: tuple[tuple[str, Any], ...] = ()


Clones = dict[int, tuple["weakref.ref[torch.Tensor]", Held]]


class Freezer:
    """Makes copies of values that stay as they are, whatever is done to the values afterwards.

    Containers are copied; tensors are kept themselves, with the count of writes into them, or copied.

    Args:
        given: holders that are not copied but named: those that the call was given.
        copies: copy tensors, too. Tensors of inference mode are copied always: they do not count writes.
        clones: copies that were made before, for use where they still equal the tensor.
        prints: gives what is to be kept in place of a tensor; None: the tensor itself.
    """

    def __init__(
        self,
        given: Sequence[Any] = (),
        copies: bool = False,
        clones: Clones | None = None,
        prints: Callable[[torch.Tensor], Print | None] | None = None,
    ) -> None:
        self.held: list[Held] = []
        self._given = {id(holder): number for number, holder in enumerate(given)}
        self._copies = copies
        self._clones: Clones = {} if clones is None else clones
        self._prints = prints
        self._done: dict[int, Any] = {}
        self._alive: list[Any] = []  # ids are those of living objects only
        self._originals: list[torch.Tensor] = []

    def freeze(self, value: Any) -> Any:
        """A copy that `thaw` makes values of again.

        Raises:
            UnknownValueError: if there is something that cannot be copied.
        """
        kind = kind_of(type(value))
        if kind == "atom":
            return value
        if id(value) in self._given:
            return _Given(self._given[id(value)])
        done = self._done.get(id(value))
        if done is not None:
            return done
        self._alive.append(value)
        made: Any
        if kind == "tensor":
            printed = None if self._prints is None else self._prints(value)
            made = self._done[id(value)] = self._hold(value) if printed is None else printed
        elif kind == "unknown":
            raise UnknownValueError(f"a {type(value).__name__}")
        elif kind == "tuple":
            made = self._done[id(value)] = _Row.of(value, self._each(value))
        else:
            made = self._done[id(value)] = _Made(type(value))
            self.fill(made, value)
        return made

    def fill(self, made: _Made, value: Any) -> None:
        """Freeze what a holder holds now."""
        entries, attributes = contents(value)
        if isinstance(value, dict):
            made.entries = tuple(zip(self._each(value), self._each(value.values()), strict=True))
        elif entries is not None:
            made.entries = self._each(entries)
        made.attributes = tuple((name, self.freeze(one)) for name, one in attributes)

    def _each(self, values: Iterable[Any]) -> tuple[Any, ...]:
        """Each of some values frozen; most are atoms."""
        return tuple([one if kind_of(type(one)) == "atom" else self.freeze(one) for one in values])

    def contents_of(self, value: Any) -> _Made:
        """A copy of what a holder holds, even of one that was given."""
        made = _Made(type(value))
        self.fill(made, value)
        return made

    def copied_any_of(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether a tensor that was copied is one of these, or shares memory with one."""
        return bool(self._originals) and bool(storages(self._originals) & storages(tensors))

    def _hold(self, tensor: torch.Tensor) -> Held:
        counts = not tensor.is_inference()
        if counts and not self._copies:
            held = Held(tensor, tensor._version)
        else:
            held = self._copied(tensor)
            self._originals.append(tensor)
        self.held.append(held)
        return held

    def _copied(self, tensor: torch.Tensor) -> Held:
        original, held = self._clones.get(id(tensor), (None, None))
        if original is not None and held is not None and original() is tensor and equal(held.tensor, tensor):
            return held
        copy = tensor.clone()
        if copy.layout == torch.strided and copy.stride() != tensor.stride():
            raise UnknownValueError("a tensor that shares its memory with itself")
        held = Held(copy, None)
        self._clones[id(tensor)] = (weakref.ref(tensor), held)
        return held


def thaw(frozen: Any, given: Sequence[Any] = (), made: dict[int, Any] | None = None) -> Any:
    """The value again, in fresh containers; `given` stands for what the call was given."""
    made = {} if made is None else made
    if isinstance(frozen, Held):
        if frozen.version is not None:
            return frozen.tensor
        if id(frozen) not in made:
            made[id(frozen)] = frozen.tensor.clone()
        return made[id(frozen)]
    if isinstance(frozen, _Row):
        return _thaw_row(frozen, given, made) if frozen.itself is None else frozen.itself
    if isinstance(frozen, _Given):
        return given[frozen.number]
    if not isinstance(frozen, _Made):
        return frozen
    if id(frozen) not in made:
        made[id(frozen)] = fresh = base_of(frozen.kind).__new__(frozen.kind)
        pour(frozen, fresh, given, made)
    return made[id(frozen)]


def _thaw_row(frozen: _Row, given: Sequence[Any], made: dict[int, Any]) -> tuple[Any, ...]:
    entries = [thaw(entry, given, made) for entry in frozen.entries]
    return frozen.kind(entries) if hasattr(frozen.kind, "n_fields") else tuple.__new__(frozen.kind, entries)


def pour(frozen: _Made, holder: Any, given: Sequence[Any], made: dict[int, Any]) -> None:
    """Let a holder hold what was frozen."""
    if frozen.attributes or getattr(holder, "__dict__", None):
        vars(holder).clear()
        vars(holder).update({name: thaw(one, given, made) for name, one in frozen.attributes})
    if frozen.entries is None:
        return
    if isinstance(holder, dict):
        # past what a class may do besides: an output of transformers writes attributes, and refuses to be cleared
        base: Any = base_of(type(holder))
        base.clear(holder)
        for key, one in frozen.entries:
            base.__setitem__(holder, thaw(key, given, made), thaw(one, given, made))
    elif isinstance(holder, list):
        list.__setitem__(holder, slice(None), [thaw(one, given, made) for one in frozen.entries])
    else:
        set.clear(holder)
        set.update(holder, [thaw(one, given, made) for one in frozen.entries])


def _itself(frozen: Any) -> Any:
    """What was frozen, if that is what is given out again; else something that nothing else is."""
    if isinstance(frozen, Held):
        return frozen if frozen.version is None else frozen.tensor
    if isinstance(frozen, _Row):
        return frozen if frozen.itself is None else frozen.itself
    return frozen


Found = dict[int, tuple[torch.Tensor, int]]


class Inputs:
    """What a call is given, told quickly from other things: nearly always it is the very same again.

    Args:
        arguments: the arguments.
        keywords: the keywords.
        frozen: both, frozen; None: there is nothing among them that can be changed, but tensors that count writes.
    """

    def __init__(self, arguments: tuple[Any, ...], keywords: dict[str, Any], frozen: Any = None) -> None:
        self._names = tuple(keywords)
        self._frozen = frozen
        self._each = self._themselves = (*arguments, *keywords.values())
        if frozen is not None:
            positional, named = frozen.entries
            self._each = (*positional.entries, *(one for _, one in named.entries))
            self._themselves = tuple(map(_itself, self._each))

    def are(
        self, arguments: tuple[Any, ...], keywords: dict[str, Any], found: Found, given: Sequence[Any] | None = None
    ) -> bool:
        """Whether these are just the same, if nobody has written into a tensor that is kept.

        Args:
            arguments: the arguments.
            keywords: the keywords.
            found: as for `same`.
            given: as for `same`; None: there is nothing among them that can be changed, but tensors.
        """
        if given is not None:
            return same(self._frozen, (arguments, keywords), given, found)
        values = (*arguments, *keywords.values())
        if len(values) != len(self._themselves) or tuple(keywords) != self._names:
            return False
        for one, kept, value in zip(self._themselves, self._each, values, strict=True):
            if value is not one and not (_was_found(one, value, found) or self._same(kept, value, found)):
                return False
        return True

    def _same(self, kept: Any, value: Any, found: Found) -> bool:
        frozen = Freezer().freeze(kept) if self._frozen is None else kept
        return same(frozen, value, (), found)


def same(frozen: Any, value: Any, given: Sequence[Any] = (), found: Found | None = None) -> bool:
    """Whether a value is just what was frozen, so that no model could tell.

    Args:
        frozen: what was frozen.
        value: the value.
        given: of these, only which it is matters.
        found: by kept tensors, those that were found to be the same, and how often these had been written into; what is
            found now is written there. A mask goes to every layer, and is compared once.
    """
    return _Comparison(given, {} if found is None else found).same(frozen, value)


class _Comparison:
    def __init__(self, given: Sequence[Any], found: Found) -> None:
        self._given, self._found = given, found
        self._seen: dict[int, int] = {}

    def same(self, frozen: Any, value: Any) -> bool:
        if isinstance(frozen, Held):
            return self._same_tensor(frozen, value)
        if isinstance(frozen, Print):
            return self._same_print(frozen, value)
        if isinstance(frozen, _Row):
            return type(value) is frozen.kind and self._all_same(frozen.entries, value)
        if isinstance(frozen, _Given):
            return frozen.number < len(self._given) and self._given[frozen.number] is value
        if isinstance(frozen, _Made):
            return type(value) is frozen.kind and self._same_holder(frozen, value)
        return frozen is value or (type(frozen) is type(value) and isinstance(frozen, _PLAIN) and frozen == value)

    def _same_holder(self, frozen: _Made, value: Any) -> bool:
        if id(frozen) in self._seen:
            return self._seen[id(frozen)] == id(value)
        self._seen[id(frozen)] = id(value)
        entries, attributes = contents(value)
        if isinstance(value, set):
            return set(frozen.entries or ()) == value
        return (
            (entries is None) == (frozen.entries is None)
            and self._all_same(frozen.entries or (), entries or ())
            and self._all_same(frozen.attributes, attributes)
        )

    def _all_same(self, frozen: Sequence[Any], values: Sequence[Any]) -> bool:
        if len(frozen) != len(values):
            return False
        for one, value in zip(frozen, values, strict=True):
            if type(one) is tuple and one[0] is value[0]:  # a key, and what it stands for
                one, value = one[1], value[1]  # noqa: PLW2901
            if one is value or (type(one) is Held and one.tensor is value and one.version == value._version):
                continue  # nearly always
            if not (self._all_same(one, value) if type(one) is tuple else self.same(one, value)):
                return False
        return True

    def _same_tensor(self, held: Held, value: Any) -> bool:
        kept = held.tensor
        if value is kept:  # nearly always the very same one
            return held.version is None or kept._version == held.version
        if _was_found(kept, value, self._found):
            return held.is_intact
        return self._note(kept, value, _are_equal(held, value))

    def _same_print(self, printed: Print, value: Any) -> bool:
        return _was_found(printed, value, self._found) or self._note(printed, value, printed.is_of(value))

    def _note(self, kept: torch.Tensor | Print, value: Any, alike: bool) -> bool:
        if alike and not value.is_inference():
            self._found[id(kept)] = value, value._version
        return alike


def _was_found(kept: Any, value: Any, found: Found) -> bool:
    """Whether a value was found to be the same as something that is kept before, and nobody has written into it."""
    before = found.get(id(kept))
    return before is not None and before[0] is value and before[1] == value._version


_PLAIN = (bool, int, str, bytes, float, complex, range, slice, torch.Size, torch.dtype, torch.device)


def _are_equal(held: Held, value: Any) -> bool:
    alike = isinstance(value, torch.Tensor) and held.is_intact and _form(value) == _form(held.tensor)
    return alike and equal(value, held.tensor)


def equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors hold the same numbers; torch cannot tell of sparse ones, so that they do not."""
    return one.layout == other.layout == torch.strided and torch.equal(one, other)


def _form(tensor: torch.Tensor) -> tuple[Any, ...]:
    """All but the numbers; where strides differ, kernels may, and with them the last bits."""
    stride = tensor.stride() if tensor.layout == torch.strided else None
    return type(tensor), tensor.shape, tensor.dtype, tensor.device, tensor.layout, stride


def storages(tensors: Sequence[torch.Tensor]) -> set[int]:
    """Where the memory of some tensors begins, of those that have any."""
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.layout == torch.strided} - {0}
