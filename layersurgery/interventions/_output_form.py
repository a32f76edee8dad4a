"""The two forms of an intervention: on what a site holds (its parameters), and on what it adds to the stream."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, get_args

from layersurgery.errors import InterventionError
from layersurgery.interventions._base import Intervention, What


@dataclass(frozen=True, repr=False)
class OutputForm(Intervention):
    """Base of the interventions that have both forms.

    Args:
        what: "parameters": replace all parameters of the site, as the paper does; whatever follows from that follows.
            "contribution": act on what the site adds to the residual stream, whatever sits inside it: norms, residual
            sums and parameters that other layers read stay as they are. The model's own code computes it first.
        positions: with "contribution": only at these token positions, counted from 0 at the first token of the sequence
            (padding included), those before a cache's present end too; negative ones from the end of each forward
            pass, so that -1 is the token whose successor is predicted, under left padding too. None: all.
        steps: with "contribution": only in these forward passes of a generation with a KV cache: 0 reads the prompt and
            gives the first token, 1 the second, ... A pass without a cache is a step 0. None: all.

    Raises:
        InterventionError: if one of them is something else, or positions or steps are given for parameters.
    """

    what: What = field(default="parameters", kw_only=True)
    positions: tuple[int, ...] | None = field(default=None, kw_only=True)
    steps: tuple[int, ...] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.what not in get_args(What):
            raise InterventionError(f"what={self.what!r}: give 'parameters' or 'contribution'")
        for name in ("positions", "steps"):
            value = getattr(self, name)
            if value is None:
                continue
            if self.what == "parameters":
                raise InterventionError(
                    f"{name}={value!r} with what='parameters': parameters are the same for every token; give "
                    "what='contribution'"
                )
            object.__setattr__(self, name, _numbers(name, value))
        if self.steps is not None and min(self.steps) < 0:
            raise InterventionError(f"steps={self.steps!r}: steps are counted from 0, the pass that reads the prompt")

    def __repr__(self) -> str:
        given = [
            f"{item.name}={value!r}" if item.kw_only else repr(value)
            for item in sorted(fields(self), key=lambda item: bool(item.kw_only))
            if (value := getattr(self, item.name)) != item.default or item.default is MISSING
        ]
        return f"{type(self).__name__}({', '.join(given)})"


def _numbers(name: str, value: Any) -> tuple[int, ...]:
    numbers: Iterable[Any] = (value,) if isinstance(value, int) else value
    if isinstance(value, str) or not isinstance(numbers, Iterable):
        raise InterventionError(f"{name}={value!r}: give whole numbers, such as [0, -1] or range(4)")
    found = tuple(numbers)
    if not found or not all(isinstance(number, int) and not isinstance(number, bool) for number in found):
        raise InterventionError(f"{name}={value!r}: give at least one, and whole numbers only; None means all")
    return found
