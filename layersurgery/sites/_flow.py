"""What flows between the matrices of a model: one forward of a copy without weights, in which every product is noise.

In the copy all parameters are on the meta device. Where activations meet a matrix, the result is random numbers of the
right shape, from which autograd starts anew; parameters that act entry by entry (norms, gains, sinks) get random
values. So a forward costs next to nothing at any size, and what lies between two matrices - the attention itself, an
activation function, a gate - is the model's own code, whose derivatives say which output of one matrix reaches which
input of another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from layersurgery.sites._probe import fresh
from layersurgery.sites._recorder import quiet

_MATRIX_PRODUCTS = {"mm", "matmul", "__matmul__", "bmm", "_grouped_mm", "grouped_mm"}  # activations times matrix
_SUMS = {"addmm", "baddbmm"}  # a bias, and that
_OTHERS = {"__rmatmul__", "addbmm", "bilinear", "einsum", "tensordot", "embedding", "embedding_bag"}
_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
PRODUCTS = {"linear"} | _MATRIX_PRODUCTS | _SUMS | _OTHERS | _CONVOLUTIONS
LARGEST = 1 << 22  # entries of a parameter that is given values; a larger one is only ever multiplied or looked up in
SPREAD = 0.5  # of the noise: attention without scaling must not saturate


@dataclass(frozen=True, eq=False)
class Axis:
    """Where one dimension of a tensor lies in a parameter: the parameter, its dimension there, and where it begins."""

    parameter: nn.Parameter
    dim: int
    start: int = 0

    def __eq__(self, other: object) -> bool:  # parameters are compared by what they are, not number by number
        return isinstance(other, Axis) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[int, int, int]:
        return id(self.parameter), self.dim, self.start


@dataclass(frozen=True)
class Use:
    """One product of activations with a matrix.

    Attributes:
        given: the activations that were multiplied, with their history; [..., in].
        made: the noise that stands for the product, where history starts anew; [..., out].
        into: where `given`'s last dimension lies in the matrix.
        out: where `made`'s last dimension lies in the matrix.
        bias: where it lies in the bias that was added, if a parameter was.
    """

    given: torch.Tensor
    made: torch.Tensor
    into: Axis
    out: Axis
    bias: Axis | None = None


@dataclass(frozen=True)
class Flow:
    """One forward.

    Attributes:
        uses: the products with parameters, in order.
        values: the values that were drawn for parameters that act entry by entry.
        lost: what went into products of other kinds, such as convolutions: what becomes of it there is not known.
    """

    uses: tuple[Use, ...]
    values: tuple[tuple[nn.Parameter, torch.Tensor], ...]
    lost: tuple[torch.Tensor, ...]


@contextmanager
def flow(module: nn.Module, positional: Sequence[Any], keywords: Mapping[str, Any]) -> Iterator[Flow]:
    """What flows between the matrices of a module of a shadow in one forward.

    Inside the block the shadow's parameters are those that the flow speaks of, on the meta device, and derivatives can
    be taken whatever holds outside.
    """
    with _on_meta(module), torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"):
        recorder = _Recorder(module)
        with quiet(), torch.enable_grad(), recorder:
            module(*map(fresh, positional), **{name: fresh(value) for name, value in keywords.items()})
        yield recorder.flow


class _Recorder(TorchFunctionMode):
    """Carries out a forward of a model on the meta device, with noise for every product, and keeps the record."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._parameters = {id(p): p for p in module.parameters()}
        self._draw = torch.Generator().manual_seed(0)
        self._stands_for: dict[int, nn.Parameter] = {}  # tensors made of one parameter, of its shape
        self._values: dict[int, torch.Tensor] = {}
        self._alive: list[torch.Tensor] = []  # so that their ids stay theirs
        self._uses: list[Use] = []
        self._drawn: list[tuple[nn.Parameter, torch.Tensor]] = []
        self._lost: list[torch.Tensor] = []

    @property
    def flow(self) -> Flow:
        """What was recorded so far."""
        return Flow(tuple(self._uses), tuple(self._drawn), tuple(self._lost))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for every function of a tensor."""
        kwargs = kwargs or {}
        if _is_device(func):
            return torch.device("cpu")  # the model's code puts what it makes where its weights seem to be
        if func is functional.multi_head_attention_forward:
            with self:
                return _opened(func)(*args, **kwargs)
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
        meta = [tensor for tensor in tensors if tensor.is_meta]
        if not meta:
            return func(*args, **kwargs)
        if len(meta) == len(tensors):
            return self._of_parameters(func, args, kwargs, meta)
        return self._of_both(func, args, kwargs, meta)

    def _of_both(self, func: Any, args: Any, kwargs: Any, meta: list[torch.Tensor]) -> Any:
        """Activations meet parameters."""
        if func.__name__ in PRODUCTS:
            return self._product(func, args, kwargs)
        if func.__name__ == "__getitem__" and args[0].is_meta and args[0].dim() > 2:
            return self._picked(args[0], args[1])
        return self._with_values(func, args, kwargs, meta)

    def _of_parameters(self, func: Any, args: Any, kwargs: Any, meta: list[torch.Tensor]) -> Any:
        """Something made of parameters alone: known by its shape only, unless it is short, or a view."""
        made = func(*tree_map(_off_cpu, args), **tree_map(_off_cpu, kwargs))
        views = all(leaf._base is not None for leaf in tree_flatten(made)[0] if isinstance(leaf, torch.Tensor))
        if views or func.__name__ in PRODUCTS or not any(map(self._is_vector, meta)):
            return self._kept(made, meta)
        return self._with_values(func, args, kwargs, meta)

    def _with_values(self, func: Any, args: Any, kwargs: Any, meta: list[torch.Tensor]) -> Any:
        if sum(tensor.numel() for tensor in meta) > LARGEST:
            return tree_map(self._noise, func(*_to_meta(args), **_to_meta(kwargs)))
        return func(*tree_map(self._valued, args), **tree_map(self._valued, kwargs))

    def _is_vector(self, tensor: torch.Tensor) -> bool:
        return id(tensor) in self._parameters and sum(size > 1 for size in tensor.shape) <= 1

    def _product(self, func: Any, args: Any, kwargs: Any) -> Any:
        made = func(*_to_meta(args), **_to_meta(kwargs))
        if not isinstance(made, torch.Tensor) or not made.is_floating_point():
            return tree_map(self._noise, made)
        noise = self._noise(made)
        use = self._use(_operands(func.__name__, args, kwargs), noise)
        if use is None:
            inputs = tree_flatten((args, kwargs))[0]
            self._lost += [leaf for leaf in inputs if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
        else:
            self._uses.append(use)
        return noise.clone()  # the caller may write into it, and not into where history starts

    def _use(self, operands: _Operands | None, made: torch.Tensor) -> Use | None:
        if operands is None or operands.given.is_meta:
            return None
        into, out = (self._axis(operands.weight, dim) for dim in (operands.into, operands.out))
        bias = None if operands.bias is None else self._axis(operands.bias, -1)
        return None if into is None or out is None else Use(operands.given.clone(), made, into, out, bias)

    def _noise(self, like: Any) -> Any:
        if not isinstance(like, torch.Tensor) or not like.is_meta:
            return like
        if not like.is_floating_point():
            return torch.zeros(like.shape, dtype=like.dtype)
        drawn = torch.randn(like.shape, generator=self._draw) * SPREAD
        return drawn.to(like.dtype).requires_grad_()

    def _valued(self, tensor: Any) -> Any:
        """Values for what has none: the same ones whenever they are asked for."""
        if not isinstance(tensor, torch.Tensor) or not tensor.is_meta:
            return tensor
        if id(tensor) not in self._values:
            base = tensor._base
            if base is not None and base.numel() <= LARGEST:
                return self._valued(base).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
            value = self._noise(tensor)
            parameter = self._parameter(tensor)
            if parameter is not None and value.requires_grad and value.shape == parameter.shape:
                self._drawn.append((parameter, value))
            self._values[id(tensor)] = value.clone() if value.requires_grad else value
            self._alive.append(tensor)
        return self._values[id(tensor)]

    def _picked(self, table: torch.Tensor, index: Any) -> torch.Tensor:
        """Some matrices out of a stack of them, such as those of the experts that were chosen."""
        if isinstance(index, torch.Tensor) and index.dim() == 0:
            return table[int(index)]
        made = table[tree_map(lambda leaf: leaf.to("meta") if isinstance(leaf, torch.Tensor) else leaf, index)]
        parameter = self._parameter(table)
        if parameter is not None and made.shape[1:] == parameter.shape[1:]:
            self._remember(made, parameter)
        return made

    def _kept(self, made: Any, sources: list[torch.Tensor]) -> Any:
        """A tensor made of parameters alone; of one parameter, and of its shape, it stands for that parameter."""
        origins = {id(found): found for source in sources if (found := self._parameter(source)) is not None}
        if isinstance(made, torch.Tensor) and made.is_meta and made._base is None and len(origins) == 1:
            (parameter,) = origins.values()
            if made.shape == parameter.shape:
                self._remember(made, parameter)
        return made

    def _remember(self, made: torch.Tensor, parameter: nn.Parameter) -> None:
        self._stands_for[id(made)] = parameter
        self._alive.append(made)

    def _parameter(self, tensor: torch.Tensor) -> nn.Parameter | None:
        base = tensor if tensor._base is None else tensor._base
        return self._parameters.get(id(base), self._stands_for.get(id(base)))

    def _axis(self, tensor: torch.Tensor, dim: int) -> Axis | None:
        """Where a dimension of a parameter, or of a view of one, lies in the parameter."""
        parameter = self._parameter(tensor)
        if parameter is None:
            return None
        base = tensor if tensor._base is None else tensor._base
        stride, size = tensor.stride(dim), tensor.shape[dim]
        fits = [at for at in range(base.dim()) if base.stride(at) == stride and base.shape[at] >= size > 1]
        if len(fits) != 1:
            return None
        return Axis(parameter, fits[0], int(tensor.storage_offset()) // stride % base.shape[fits[0]])


class _Operands(NamedTuple):
    """What is multiplied, and which dimensions of the weight face the activations and the product."""

    given: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    into: int
    out: int


def _operands(name: str, args: Any, kwargs: Any) -> _Operands | None:
    values = [*args, *kwargs.values(), None]
    if name == "linear":
        return _Operands(values[0], values[1], values[2], -1, -2)
    if name in _SUMS:
        return _Operands(values[1], values[2], values[0], -2, -1)
    if name in _MATRIX_PRODUCTS and values[1].dim() > 1:
        return _Operands(values[0], values[1], None, -2, -1)
    return None


def _opened(func: Any) -> Any:
    """The same Python function, which goes on to its parts instead of handing itself over as a whole."""
    inside = {**func.__globals__, "has_torch_function": lambda _: False}
    opened = FunctionType(func.__code__, inside, func.__name__, func.__defaults__, func.__closure__)
    opened.__kwdefaults__ = func.__kwdefaults__
    return opened


def _is_device(func: Any) -> bool:
    return func.__name__ == "__get__" and getattr(func.__self__, "__name__", "") == "device"


def _off_cpu(leaf: Any) -> Any:
    """Where a parameter is to be moved: nowhere, it has no values that could be."""
    return torch.device("meta") if isinstance(leaf, torch.device) else leaf


def _to_meta(tree: Any) -> Any:
    return tree_map(lambda leaf: leaf.detach().to("meta") if isinstance(leaf, torch.Tensor) else leaf, tree)


@contextmanager
def _on_meta(top: nn.Module) -> Iterator[None]:
    """Parameters on the meta device in place of a shadow's own; what is shared stays shared."""
    before = [(module, dict(module._parameters)) for module in top.modules()]
    moved: dict[int, nn.Parameter] = {}
    try:
        for module, parameters in before:
            for name, parameter in parameters.items():
                if parameter is not None and parameter.is_floating_point():
                    empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
                    module._parameters[name] = moved.setdefault(id(parameter), nn.Parameter(empty, requires_grad=False))
        yield
    finally:
        for module, parameters in before:
            module._parameters.update(parameters)
