"""What the children of one layer do: token mixers, feed-forward, norms, by what they are called.

Names are hints of unequal weight: what a class is called says more than the attribute that holds it, and the family's
name in front of both says nothing. Where hints compete, a module with substance (several weight matrices) wins. What
modules were seen to do decides in the end (see `_behaviour`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from layersurgery.sites import _names
from layersurgery.sites._names import words

MIXER = "attention"
FEED_FORWARD = "mlp"
Norm = Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class Part:
    """A piece of a layer with a role; `path` and `parts` are relative to the layer. `sure`: its class says so."""

    role: str
    kind: str
    path: str
    parts: tuple[str, ...] = ()
    sure: bool = True


def named_parts(layer: nn.Module) -> list[Part]:
    """The token mixers and the feed-forwards of a layer by name, in the order in which they are registered."""
    return _surest(_named_parts(layer, layer, ""))


def loose_weights(layer: nn.Module, taken: set[str]) -> tuple[str, ...]:
    """Names of the matrices of a layer outside the modules that are taken.

    They are the feed-forward where that is not a module of its own: OPT's `fc1` and `fc2`, torch's `linear1` and
    `linear2`, BERT's `intermediate` and `output`.
    """
    return tuple(_loose_weights(layer, "", taken))


def is_norm(name: str, module: nn.Module) -> bool:
    """Whether a module is a normalisation: it is called so, or is a leaf of such a class."""
    leaf = not children(module)
    return bool(words(name) & _names.NORM) or (leaf and bool(words(type(module).__name__) & _names.NORM))


def is_stream_norm(name: str, module: nn.Module) -> bool:
    """Whether a module normalises the residual stream, not just queries and keys."""
    return is_norm(name.rsplit(".", 1)[-1], module) and not words(name.rsplit(".", 1)[-1]) & _names.PROJECTION_NORM


def has_weights(module: nn.Module) -> bool:
    """Whether there is anything learnt inside (quantised layers keep it in buffers)."""
    return any(True for _ in module.parameters()) or any(buffer.dim() > 1 for buffer in module.buffers())


def _named_parts(layer: nn.Module, module: nn.Module, prefix: str) -> Iterator[Part]:
    for name, child in children(module):
        path = f"{prefix}{name}"
        if is_norm(name, child):
            if children(child):  # called a norm, and yet with an attention inside (DBRX)
                wrapped = list(_named_parts(layer, child, path + "."))
                yield from (piece for piece in wrapped if piece.role == MIXER and piece.sure)
            continue
        part = _read(layer, name, child)
        inner = list(_named_parts(layer, child, path + ".")) if part is None or part.role == MIXER else []
        if part is None or {MIXER, FEED_FORWARD} <= {piece.role for piece in inner}:
            yield from inner  # a container, or a whole block inside the layer (Zamba's shared transformer)
        else:
            yield replace(part, path=core(child, path))


def _surest(parts: Iterator[Part]) -> list[Part]:
    """Without what is named after attention or feed-forward (gates, scales, connections), if the real one is there."""
    found = list(parts)
    sure = {part.role for part in found if part.sure}
    return [part for part in found if part.sure or part.role not in sure]


def _read(layer: nn.Module, name: str, module: nn.Module) -> Part | None:
    """Role and kind of a child. The class speaks first: NemotronH calls attention and MLP alike `mixer`."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict | nn.Embedding):
        return None
    family, own = _family_and_own(type(layer).__name__, type(module).__name__)
    by_class, by_name = words(own), words(name)
    for said, sure in ((by_class, True), (by_name, False)):
        role = _role(said)
        if role is None or (role == FEED_FORWARD and not sure and not children(module)):
            continue  # a single projection called "ffn" is half of a feed-forward
        if role == MIXER:
            return Part(role, _mixer_kind(family, said, by_name, module), "", sure=sure and matrices(module) > 1)
        return Part(role, "moe" if said & _names.MIXTURE or has_experts(module) else "mlp", "", sure=sure)
    return None


def _role(said: set[str]) -> str | None:
    if any(said & hints for hints in _names.OTHER_MIXERS.values()) or said & _names.ATTENTION:
        return MIXER
    if said & _names.FEED_FORWARD:
        return FEED_FORWARD
    return MIXER if said & _names.MIXER else None


def _mixer_kind(family: str, said: set[str], by_name: set[str], module: nn.Module) -> str:
    for kind, hints in _names.OTHER_MIXERS.items():
        if said & hints:
            return kind
    inside = set().union(*(words(parameter) for parameter, _ in module.named_parameters()))
    if said & _names.ATTENTION and not inside & _names.DECAY:
        return "cross_attention" if (said | by_name) & _names.CROSS else "self_attention"
    for kind, hints in _names.OTHER_MIXERS.items():
        if (words(family) | by_name) & hints:
            return kind
    return "mixer"


def _family_and_own(layer: str, name: str) -> tuple[str, str]:
    """A class name without what it shares with its layer's: ("NemotronH", "MLP") for a NemotronHBlock's NemotronHMLP.

    Examples:
        >>> _family_and_own("JambaAttentionDecoderLayer", "JambaAttention"), _family_and_own("GPT2Block", "Mixer")
        (('Jamba', 'Attention'), ('', 'Mixer'))
    """
    shared = next(
        (at for at, pair in enumerate(zip(layer, name, strict=False)) if pair[0] != pair[1]), min(len(layer), len(name))
    )
    # the name's own part must begin with a capital and have something left to say
    starts = [at for at in range(1, shared + 1) if at < len(name) and name[at].isupper() and not name[at - 1].isupper()]
    if shared < len(name) and name[shared].isupper():
        starts.append(shared)
    return (name[: max(starts)], name[max(starts) :]) if starts else ("", name)


def matrices(module: nn.Module) -> int:
    """How many weight matrices there are inside."""
    return sum(tensor.dim() > 1 for tensor in (*module.parameters(), *module.buffers()))


def has_experts(module: nn.Module) -> bool:
    """Whether something inside is called an expert or a router."""
    return any(words(name.rsplit(".", 1)[-1]) & _names.EXPERTS for name, _ in module.named_modules())


def core(module: nn.Module, path: str, norm: Norm = is_norm) -> str:
    """Go into a wrapper that adds only norms, dropout and the residual sum (T5) to one inner module with a role."""
    while True:
        weighted = [(name, child) for name, child in children(module) if not norm(name, child)]
        own = any(True for _ in module.parameters(recurse=False))
        norms = any(norm(name, child) for name, child in children(module))
        if own or not norms or len(weighted) != 1 or not children(weighted[0][1]):
            return path
        name, module = weighted[0]
        path = f"{path}.{name}"


def _loose_weights(module: nn.Module, prefix: str, taken: set[str]) -> Iterator[str]:
    for name, child in children(module):
        path = f"{prefix}{name}"
        if path in taken or is_norm(name, child) or words(name) & _names.ADAPTER:
            continue
        if children(child) and not wraps_one(child):
            yield from _loose_weights(child, path + ".", taken)
        elif any(parameter.dim() > 1 for parameter in child.parameters(recurse=wraps_one(child))):
            yield path


def wraps_one(module: nn.Module) -> bool:
    """Whether a module is a single layer: one with an adapter beside it (LoRA's), or with a parametrised weight."""
    if is_parametrized(module) and not children(module):
        return True
    sizes = _sizes(module)
    return None not in sizes and any(_sizes(child) == sizes for child in module.children())


def _sizes(module: nn.Module) -> tuple[object, object]:
    held = vars(module)
    return held.get("in_features"), held.get("out_features")


def children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Children with weights; what a parametrised weight is computed from is the module's own."""
    own = {"parametrizations"} if is_parametrized(module) else set[str]()
    return [(name, child) for name, child in module.named_children() if name not in own and has_weights(child)]
