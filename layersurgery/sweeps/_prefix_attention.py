"""Attention at the end of a forward: queries whose answers nobody needs are not compared with all keys."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_ATTENTION = torch.nn.functional.scaled_dot_product_attention
_FINE = (torch.float32, torch.float64)


class FewQueries(TorchFunctionMode):
    """Leaves out of torch's attention the queries that are not-a-number, as those of other positions are by then.

    Each row of what it gives depends on that row of the queries, and is not-a-number where that is. A kernel may
    compute a row otherwise among fewer rows, so that for each shape it runs in full once, and all must agree to the
    last bit. In half precision all is computed: what it gives is rounded so coarsely there that another order of sums
    shows in a number of some thousands only.

    Args:
        chosen: for [batch, positions], the positions that are kept; empty: all.
        agree: for each shape, whether rows come out as they do among all; what is learnt is written there.

    Attributes:
        has_left_out: whether queries were left out.

    Examples:
        >>> queries = torch.ones(1, 1, 64, 8)
        >>> queries[:, :, :48] = math.nan
        >>> keys = torch.ones(1, 1, 64, 8)
        >>> with FewQueries({(1, 64): tuple(range(48, 64))}, {}) as few:
        ...     for _ in range(2):
        ...         answers = torch.nn.functional.scaled_dot_product_attention(queries, keys, keys, is_causal=True)
        >>> few.has_left_out, answers[0, 0, :, 0].isnan().sum().item(), answers[0, 0, -1, 0].item()
        (True, 48, 1.0)
    """

    def __init__(self, chosen: dict[tuple[int, int], tuple[int, ...]], agree: dict[tuple[Any, ...], bool]) -> None:
        super().__init__()
        self.has_left_out = False
        self._chosen, self._agree = chosen, agree

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, or so much of it as is needed."""
        if func is not _ATTENTION:
            return func(*args, **(kwargs or {}))
        return self._attend(*args, **(kwargs or {}))

    def _attend(  # noqa: PLR0917 - as torch has it
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **others: Any,
    ) -> torch.Tensor:
        def full() -> torch.Tensor:
            return _ATTENTION(query, key, value, attn_mask, dropout_p, is_causal, **others)

        plain = all(type(one) is torch.Tensor for one in (query, key, value, attn_mask) if one is not None)
        batched = plain and query.dim() == 4 and not dropout_p and query.dtype in _FINE
        chosen = self._chosen.get((query.shape[0], query.shape[2]), ()) if batched else ()
        rows = torch.tensor(chosen, device=query.device, dtype=torch.long)
        if not chosen or not _are_only(rows, query):
            return full()
        masked = None if attn_mask is None else (attn_mask.shape, attn_mask.stride(), attn_mask.dtype)
        forms = [(one.shape, one.stride(), one.dtype, one.device) for one in (query, key, value)]
        form = (_ATTENTION, *forms, masked, is_causal, *others.items(), chosen)
        if self._agree.get(form) is False:
            return full()
        mask = _of_rows(rows, key, query.shape[2], attn_mask, is_causal)
        part = _ATTENTION(query.index_select(2, rows), key, value, mask, **others)
        if form not in self._agree:
            output = full()
            self._agree[form] = torch.equal(part, output.index_select(2, rows))
            return output
        self.has_left_out = True
        # In the order of memory in which kernels give it, as heads are put side by side next.
        batch, heads, _, width = part.shape
        whole = part.new_full((batch, query.shape[2], heads, width), math.nan).transpose(1, 2)
        return whole.index_copy_(2, rows, part)


def _are_only(rows: torch.Tensor, query: torch.Tensor) -> bool:
    """Whether all other queries are not-a-number: a single such number makes a row so."""
    missing = query[..., 0].isnan().flatten(0, 1).all(0)
    return bool(missing.index_fill_(0, rows, True).all())


def _of_rows(
    rows: torch.Tensor, key: torch.Tensor, length: int, mask: torch.Tensor | None, is_causal: bool
) -> torch.Tensor | None:
    """The mask of these queries."""
    if is_causal:
        return torch.arange(key.shape[2], device=key.device) <= rows[:, None]
    if mask is None or mask.dim() < 2 or mask.shape[-2] != length:
        return mask
    return mask.index_select(-2, rows)
