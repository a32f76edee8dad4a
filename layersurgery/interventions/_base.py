"""What an intervention is, and the registry through which a saved surgery finds it again."""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from importlib.metadata import entry_points
from typing import Any, ClassVar, Literal, TypeVar

import torch

from layersurgery.errors import InterventionError

What = Literal["parameters", "contribution"]

ENTRY_POINT_GROUP = "layersurgery.interventions"


@dataclass(frozen=True)
class Place:
    """Which tensor is being replaced, for interventions that must differ from tensor to tensor.

    Args:
        site: path of the site (`Site.path`).
        name: name of the parameter, relative to the site.
    """

    site: str
    name: str

    def generator(self, seed: int) -> torch.Generator:
        """A CPU random generator that depends on the seed and the place only, never on order, device or global state.

        Examples:
            >>> here, there = Place("h.0.attn", "weight"), Place("h.1.attn", "weight")
            >>> here.generator(1).initial_seed() == there.generator(1).initial_seed()
            False
        """
        digest = hashlib.blake2b(f"{seed}\0{self.site}\0{self.name}".encode(), digest_size=8).digest()
        return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little") >> 1)


class Intervention:
    """What happens at a site. Subclass as a frozen dataclass with JSON-able fields and a `name`.

    A subclass gives `replace`, which acts on the parameters of a site, or `outcome` with `what = "contribution"`, which
    acts on what the site adds to the residual stream, or both. It is found by its name after `register(cls)`, or
    through the entry-point group `layersurgery.interventions`.

    Attributes:
        name: the name by which a saved surgery finds the class.
        what: the form in which an instance acts: "parameters" or "contribution".
        roles: roles of sites that it is for; empty: all.
    """

    name: ClassVar[str]
    what: What = "parameters"
    roles: ClassVar[tuple[str, ...]] = ()

    def replace(self, tensor: torch.Tensor, place: Place) -> torch.Tensor:
        """The tensor that stands in for `tensor` while the surgery is in force.

        Args:
            tensor: the parameter's values as they are now; must not be written to.
            place: which parameter it is.

        Returns:
            A tensor of the same shape, dtype and device. A scalar expanded to that shape costs no memory.

        Raises:
            InterventionError: if it cannot act on this tensor, or on parameters at all.
        """
        raise InterventionError(f"{self!r} does not act on parameters ({place.site}.{place.name}); see its outcome()")

    def outcome(self, output: torch.Tensor) -> torch.Tensor:
        """What comes out of a module in place of `output`.

        Of a linear module, all of whose parameters are replaced by `replace`, this must be the output; that is how
        weights are reached that are packed, sharded or offloaded.

        Args:
            output: what the module gives, or what it adds to the residual stream; must not be written to.

        Returns:
            A tensor of the same shape, dtype and device.

        Raises:
            InterventionError: if it acts on parameters only.
        """
        raise InterventionError(f"{self!r} acts on parameters only, and not on outputs")

    def to_dict(self) -> dict[str, Any]:
        """Name and settings as JSON-able data."""
        settings = asdict(self) if is_dataclass(self) else {}
        return {"name": self.name, **settings}


Registered = TypeVar("Registered", bound=type[Intervention])

_registry: dict[str, type[Intervention]] = {}


def register(cls: Registered) -> Registered:
    """Class decorator: make an intervention known by its `name`, so that saved surgeries can name it.

    Raises:
        InterventionError: if it is no frozen dataclass with a `name`, or the name is taken by another class.
    """
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not name or not issubclass(cls, Intervention):
        raise InterventionError(f"{cls.__name__} must subclass Intervention and set the class variable `name`")
    if not is_dataclass(cls) or not cls.__dataclass_params__.frozen:  # pyright: ignore[reportAttributeAccessIssue]
        raise InterventionError(
            f"{cls.__name__} must be a frozen dataclass: put @dataclass(frozen=True) below @register"
        )
    other = _registry.get(name)
    if cls.replace is Intervention.replace and cls.outcome is Intervention.outcome:
        raise InterventionError(f"{cls.__name__} must define replace(tensor, place) or outcome(output)")
    if other is not None and other.__qualname__ != cls.__qualname__:
        raise InterventionError(
            f"the name {name!r} is taken by {other.__module__}.{other.__qualname__}; choose another"
        )
    _registry[name] = cls
    return cls


def interventions() -> dict[str, type[Intervention]]:
    """All interventions known by name: this library's, registered ones, and those that other packages declare.

    Raises:
        InterventionError: if a declared entry point cannot be loaded.
    """
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name in _registry:
            continue
        try:
            register(point.load())
        except (ImportError, AttributeError) as error:
            raise InterventionError(f"intervention {point.name!r} ({point.value}) cannot be loaded: {error}") from error
    return dict(_registry)


def intervention_from_dict(data: dict[str, Any]) -> Intervention:
    """The intervention that `Intervention.to_dict` recorded.

    Raises:
        InterventionError: if the name is not known here or a setting is wrong.

    Examples:
        >>> from layersurgery.interventions import Noise
        >>> intervention_from_dict(Noise(seed=3).to_dict())
        Noise(std=None, seed=3)
    """
    settings = dict(data)
    name = settings.pop("name", None)
    known = _registry if name in _registry else interventions()
    if name not in known:
        near = difflib.get_close_matches(str(name), known, 2)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise InterventionError(
            f"unknown intervention {name!r}{hint}; known are {', '.join(known)}. If another package defines it, "
            "install and import that package first"
        )
    cls = known[name]
    known_fields = fields(cls)  # pyright: ignore[reportArgumentType]
    allowed = {field.name for field in known_fields}
    needed = [one.name for one in known_fields if one.init and one.default is one.default_factory is MISSING]
    lacking = next((one for one in needed if one not in settings), None)
    if lacking is not None:
        raise InterventionError(f"intervention {name!r} needs a value for {lacking!r}; there are {sorted(allowed)}")
    unknown = sorted(set(settings) - allowed)
    if unknown:
        raise InterventionError(
            f"intervention {name!r} has no setting {unknown[0]!r}; it has {sorted(allowed) or 'none'}"
        )
    return cls(**settings)


def constant_like(tensor: torch.Tensor, value: torch.Tensor | float) -> torch.Tensor:
    """One value seen as a tensor of that shape, dtype and device, in no more memory than the value's.

    Of stacked matrices (three dimensions: the experts of a mixture), one takes memory: kernels that multiply by many
    matrices at a time want each of them laid out like a matrix.
    """
    solid = tensor.shape[1:] if tensor.dim() == 3 else ()
    if isinstance(value, torch.Tensor):
        scalar = value.to(dtype=tensor.dtype, device=tensor.device)
        return (scalar.expand(solid).contiguous() if solid else scalar).expand(tensor.shape)
    made = torch.full(solid, value, dtype=tensor.dtype, device=tensor.device)
    return made.expand_as(tensor) if type(tensor) is torch.Tensor else made.expand(tensor.shape)  # the first is faster


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """The values in the widest float that the device has: sums over a half-precision tensor must not be taken in it."""
    return plain(tensor).to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The values of a parameter as an ordinary tensor: a quantised one is unpacked."""
    values = tensor.detach()
    packed = type(values) is not torch.Tensor and hasattr(values, "dequantize")
    return values.dequantize().to(values.dtype) if packed else values
