"""What the children of one layer do: token mixers, feed-forward, norms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from layersurgery.sites import _names
from layersurgery.sites._names import words

MIXER = "attention"
FEED_FORWARD = "mlp"


@dataclass(frozen=True)
class Part:
    """A piece of a layer with a role; `path` and `parts` are relative to the layer."""

    role: str
    kind: str
    path: str
    parts: tuple[str, ...] = ()


def parts_of(layer: nn.Module) -> list[Part]:
    """The token mixers and the feed-forward of a layer, in the order in which they are registered.

    A feed-forward that is not a module of its own (OPT's `fc1` and `fc2`, torch's `linear1` and `linear2`, BERT's
    `intermediate` and `output`) is one part that names the weight modules it consists of.
    """
    found = list(_named_parts(layer, ""))
    mixers = [part for part in found if part.role == MIXER]
    if mixers and not any(part.role == FEED_FORWARD for part in found):
        loose = tuple(_loose_weights(layer, "", {part.path for part in found}))
        if loose:
            found.append(Part(FEED_FORWARD, "mlp", "", loose))
    return found


def is_norm(name: str, module: nn.Module) -> bool:
    """Whether a module is a normalisation: a leaf that says so by its class or its name."""
    return not _children(module) and bool((words(type(module).__name__) | words(name)) & _names.NORM)


def is_stream_norm(name: str, module: nn.Module) -> bool:
    """Whether a module normalises the residual stream, not just queries and keys."""
    return is_norm(name, module) and not words(name) & _names.PROJECTION_NORM


def has_weights(module: nn.Module) -> bool:
    """Whether there is anything learnt inside (quantised layers keep it in buffers)."""
    return any(True for _ in module.parameters()) or any(buffer.dim() > 1 for buffer in module.buffers())


def _named_parts(module: nn.Module, prefix: str) -> Iterator[Part]:
    for name, child in _children(module):
        if is_norm(name, child):
            continue
        path = f"{prefix}{name}"
        role, kind = _read(name, child)
        if role is not None:
            yield Part(role, kind, _core(child, path))
        else:
            yield from _named_parts(child, path + ".")


def _read(name: str, module: nn.Module) -> tuple[str | None, str]:
    """Role and kind of a child. The class speaks first: NemotronH calls attention and MLP alike `mixer`."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        return None, ""
    for said in (words(type(module).__name__), words(name)):
        both = said | words(name)
        for kind, hints in _names.OTHER_MIXERS.items():
            if said & hints:
                return MIXER, kind
        if said & _names.ATTENTION:
            return MIXER, "cross_attention" if both & _names.CROSS else "self_attention"
        if said & _names.FEED_FORWARD:
            return FEED_FORWARD, "moe" if said & _names.MIXTURE else "mlp"
    if words(name) & _names.MIXER or words(type(module).__name__) & _names.MIXER:
        return MIXER, "mixer"
    return None, ""


def _core(module: nn.Module, path: str) -> str:
    """Go into a wrapper that adds only norms, dropout and the residual sum (T5) to one inner module with a role."""
    while True:
        weighted = [(name, child) for name, child in _children(module) if not is_norm(name, child)]
        own = any(True for _ in module.parameters(recurse=False))
        norms = any(is_norm(name, child) for name, child in _children(module))
        if own or not norms or len(weighted) != 1 or not _children(weighted[0][1]):
            return path
        name, module = weighted[0]
        path = f"{path}.{name}"


def _loose_weights(module: nn.Module, prefix: str, taken: set[str]) -> Iterator[str]:
    for name, child in _children(module):
        path = f"{prefix}{name}"
        if path in taken or is_norm(name, child):
            continue
        if _children(child):
            yield from _loose_weights(child, path + ".", taken)
        elif any(parameter.dim() > 1 for parameter in child.parameters(recurse=False)):
            yield path


def _children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, child) for name, child in module.named_children() if has_weights(child)]
