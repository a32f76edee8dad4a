"""The expectations against what modules do: a mixer lets positions see each other, a feed-forward does not.

`select` has no part in this: a module is called again with what it was called with, less one position changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch
from torch import nn

from tests.architectures.build import build, names
from tests.architectures.expected import LAYOUT_OF, REFUSED
from tests.architectures.inputs import inputs

MIXES, KEEPS_APART, DOES_NOT_RUN = "mixes positions", "keeps positions apart", "does not run"

# name -> (path, what a site there does although its kind says otherwise); the reason is in the model's source
_REUSED_KEYS = ("*.layers.[23].self_attn", KEEPS_APART)  # attends to keys and values of an earlier layer
_NO_PICTURE = ("*.mlp", DOES_NOT_RUN)  # layers of cross-attention are passed over without a picture
OTHERWISE = {
    "vlm/gemma3n": _REUSED_KEYS,
    "causal/gemma3n_text": _REUSED_KEYS,
    "vlm/mllama": _NO_PICTURE,
    "causal/mllama": _NO_PICTURE,
    "causal/rwkv": ("*.feed_forward", MIXES),  # a shift by one token
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(LAYOUT_OF))
def test_mixers_mix_positions_and_feed_forwards_do_not(name):
    model, layout = build(name), LAYOUT_OF[name]
    kinds = {
        f"{path}.{parts[0]}" if parts else path: kind
        for _, path, parts, kind in layout.expected_mixers(model) | layout.expected_feed_forwards(model)
    }
    done = _what_modules_do(model, kinds, inputs(name))
    assert {path: did for path, did in done.items() if did not in _allowed(name, path, kinds[path])} == {}


def test_every_class_is_expected_or_refused():
    assert set(LAYOUT_OF) | set(REFUSED) == set(names())


def _allowed(name: str, path: str, kind: str) -> tuple[str, ...]:
    where, instead = OTHERWISE.get(name, ("", ""))
    if fnmatchcase(path, where):
        return (instead, KEEPS_APART) if kind == "mlp" else (instead,)
    if kind == "cross_attention":  # each position looks elsewhere, at something that text alone may not give
        return KEEPS_APART, DOES_NOT_RUN
    return (KEEPS_APART,) if kind in ("mlp", "moe") else (MIXES,)


def _what_modules_do(model: nn.Module, kinds: Mapping[str, str], given: Mapping[str, Any]) -> dict[str, str]:
    done = dict.fromkeys(kinds, DOES_NOT_RUN)

    def look(path: str):
        own = kinds[path] != "cross_attention"

        def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            if done[path] == DOES_NOT_RUN:
                done[path] = MIXES if _mixes(module, arguments, named, own) else KEEPS_APART

        return hook

    handles = [model.get_submodule(path).register_forward_hook(look(path), with_kwargs=True) for path in done]
    try:
        with torch.no_grad():
            model(**given)
    finally:
        for handle in handles:
            handle.remove()
    return done


def _mixes(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], own: bool) -> bool:
    """Whether changing one row of the input (one position of one sample) changes another row of the output.

    Rows, so that it does not matter whether samples or positions come first, or both are flattened. With `own`, keys
    and values that are given apart from the queries are of the same positions, and change with them.
    """
    arguments = tuple(_without_memory(value) for value in arguments)
    named = {key: _without_memory(value) for key, value in named.items()}
    states = next(value for value in (*arguments, *named.values()) if _is_states(value))

    def run(change: bool) -> torch.Tensor:
        def changed(value: Any) -> Any:
            if value is not states and not (own and _is_states(value) and value.shape == states.shape):
                return value
            rows = value.clone().reshape(-1, value.shape[-1])
            if change:
                rows[0] = torch.linspace(-1, 1, rows.shape[-1])
            return rows.reshape(value.shape)

        output = module.forward(*map(changed, arguments), **{key: changed(value) for key, value in named.items()})
        first = _first(output)
        return first.reshape(-1, first.shape[-1])

    return not torch.allclose(run(True)[1:], run(False)[1:], rtol=0, atol=1e-7)


def _is_states(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() >= 2 and value.is_floating_point()


def _without_memory(value: Any) -> Any:
    return None if type(value).__name__.endswith("Cache") else value


def _first(output: Any) -> torch.Tensor:
    while not isinstance(output, torch.Tensor):
        output = next(iter(output.values() if isinstance(output, Mapping) else output))
    return output
