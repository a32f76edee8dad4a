"""What the parts of a layer are, by what they were seen to do, with their names as a hint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import nn

from layersurgery.sites import _names
from layersurgery.sites._names import words
from layersurgery.sites._probe import APART, MIXES
from layersurgery.sites._recorder import Record
from layersurgery.sites._roles import (
    FEED_FORWARD,
    MIXER,
    Part,
    children,
    core,
    has_experts,
    has_weights,
    is_norm,
    is_stream_norm,
    loose_weights,
    matrices,
    named_parts,
    wraps_one,
)

Seen = Callable[[nn.Module], Record | None]

BESIDE = "mixes what comes from beside"
WITHIN_CONVOLUTION = {"softmax", "bmm", "baddbmm", "cumsum"}  # none of these: it mixes by its convolutions alone


def parts_of(layer: nn.Module, seen: Seen) -> list[Part]:
    """The token mixers and the feed-forwards of a layer.

    Names are believed where what was seen does not speak against them: a mixer must mix, if something else in its
    layer does; a feed-forward must not, if nothing else does.
    """
    return _Reader(layer, seen).parts()


def normalises(name: str, module: nn.Module, seen: Seen) -> bool:
    """Whether a module is a norm: by its name, or since scaling what goes in changes nothing."""
    record = seen(module)
    return is_norm(name, module) or (record is not None and record.normalises)


def stream_norms(top: nn.Module, seen: Seen, layer: bool = False) -> list[str]:
    """Names of the norms on the residual stream inside a module that the stream goes into, be it a layer or a part."""
    around = seen(top)
    found: list[str] = []
    for path, module in top.named_modules():
        if not path or "parametrizations" in path.split(".") or any(True for _ in children(module)):
            continue
        record, name = seen(module), path.rpartition(".")[2]
        nameless = record is not None and record.normalises and has_weights(module) and not is_norm(name, module)
        placed = (layer and "." not in path) or _at_an_end(top, path, seen)
        if (is_stream_norm(name, module) or nameless) and placed and _as_wide(record, around):
            found.append(path)
    return found


def _as_wide(record: Record | None, around: Record | None) -> bool:
    if record is None or around is None or record.frame is None or around.frame is None:
        return True
    return record.frame.width == around.frame.width


def _at_an_end(top: nn.Module, path: str, seen: Seen) -> bool:
    """Whether a norm is the first or the last to run where it is: one in between is of queries, keys or a state."""
    own = seen(top.get_submodule(path))
    if own is None:
        return True
    around = top.get_submodule(path.rpartition(".")[0])
    orders = [record.order for _, module in children(around) if (record := seen(module)) is not None]
    return own.order in (min(orders, default=own.order), max(orders, default=own.order))


@dataclass(frozen=True)
class _Reader:
    layer: nn.Module
    seen: Seen

    def parts(self) -> list[Part]:
        found = self._corrected(named_parts(self.layer))
        roles = {part.role for part in found}
        taken = [part.path for part in found]
        if FEED_FORWARD not in roles:
            further = [part for part in self._unnamed(self.layer, "", taken) if part.role == FEED_FORWARD]
            loose = loose_weights(self.layer, set(taken)) if MIXER in roles and not further else ()
            found += further or ([Part(FEED_FORWARD, "mlp", "", loose)] if loose else [])
        return self._in_order(found)

    def _corrected(self, named: list[Part]) -> list[Part]:
        named = [self._across(part) for part in named]
        does = {part.path: self._does(part) for part in named}
        mixers = [part for part in named if part.role == MIXER]
        unnamed = list(self._unnamed(self.layer, "", [part.path for part in named]))
        others = [part for part in unnamed if part.role == MIXER]
        if any(does[part.path] in (MIXES, None) for part in mixers):
            others = [part for part in others if matrices(self.layer.get_submodule(part.path)) > 1]
            confirmed = any(does[part.path] == MIXES for part in mixers)
            return [self._feed_forward(part) if confirmed and self._misnamed(part) else part for part in named] + others
        if others:
            return [self._feed_forward(part) if self._misnamed(part) else part for part in named] + others
        if any(does[part.path] == MIXES for part in named):
            return [self._turned(part) for part in named]
        return named  # nothing mixes here: keys of another layer are used again, or nothing was seen

    def _across(self, part: Part) -> Part:
        """An attention without a telling name that looks at something from outside the layer (torch's decoder)."""
        looks_away = part.kind == "self_attention" and self._does(part) == BESIDE
        return replace(part, kind="cross_attention") if looks_away else part

    def _turned(self, part: Part) -> Part:
        if part.role == FEED_FORWARD and self._does(part) == MIXES:
            return Part(MIXER, self._kind(part.path), part.path)
        return self._feed_forward(part) if self._misnamed(part) else part

    def _feed_forward(self, part: Part) -> Part:
        module = self.layer.get_submodule(part.path)
        return replace(part, role=FEED_FORWARD, kind="moe" if has_experts(module) else "mlp")

    def _misnamed(self, part: Part) -> bool:
        """Whether what is called a mixer is seen to be a feed-forward."""
        several = part.role == MIXER and matrices(self.layer.get_submodule(part.path)) > 1
        return several and part.kind != "cross_attention" and self._does(part) == APART

    def _does(self, part: Part) -> str | None:
        record = self.seen(self.layer.get_submodule(part.path))
        if record is None:
            return None
        return BESIDE if record.beside else record.did

    def _unnamed(self, module: nn.Module, prefix: str, taken: Sequence[str]) -> Iterator[Part]:
        """Parts among the modules that are not taken and hold nothing that is."""
        for name, child in children(module):
            path = f"{prefix}{name}"
            if path in taken or self._norm(name, child) or _only_scales(child) or words(name) & _names.ADAPTER:
                continue
            record = self.seen(child)
            if record is None or record.did is None or any(one.startswith(path + ".") for one in taken):
                yield from self._unnamed(child, path + ".", taken)
            elif record.did == MIXES or record.beside:
                inner = list(self._unnamed(child, path + ".", taken))
                if {MIXER, FEED_FORWARD} <= {part.role for part in inner} and self._make_up(inner, child):
                    yield from inner
                elif _may_mix(child, record):
                    where = core(child, path, self._norm)
                    yield Part(MIXER, self._kind(where), where, sure=False)
            elif matrices(child) > 1 and any(True for _ in child.children()) and not wraps_one(child):
                kind = "moe" if has_experts(child) or "aten::topk" in record.operations else "mlp"
                yield Part(FEED_FORWARD, kind, core(child, path, self._norm), sure=False)

    def _norm(self, name: str, module: nn.Module) -> bool:
        return normalises(name, module, self.seen)

    def _make_up(self, parts: list[Part], module: nn.Module) -> bool:
        """Whether parts hold nearly all weights of a module: a block inside a layer, not an attention with a gate."""
        tops = [self.layer.get_submodule(part.path) for part in parts]
        inside = sum(parameter.numel() for top in tops for parameter in top.parameters())
        return inside > 0.9 * sum(parameter.numel() for parameter in module.parameters())

    def _kind(self, path: str) -> str:
        module = self.layer.get_submodule(path)
        record = self.seen(module)
        if any(isinstance(part, nn.RNNBase) for part in module.modules()):
            return "recurrent"
        if record is None:
            return "mixer"
        ran = {operation.rsplit(":", 1)[-1].lstrip("_") for operation in record.operations}
        if record.beside:
            return "cross_attention"
        if ran & {"softmax", "safe_softmax"}:
            return "self_attention"
        return "conv" if "convolution" in ran and not ran & {"exp", "cumsum"} else "mixer"

    def _in_order(self, parts: list[Part]) -> list[Part]:
        """Mixers, then feed-forwards, each as they are registered."""
        places = {path: at for at, (path, _) in enumerate(self.layer.named_modules(remove_duplicate=False))}
        return sorted(parts, key=lambda part: (part.role != MIXER, places.get(part.path, len(places))))


def _only_scales(module: nn.Module) -> bool:
    """Whether a leaf has one number per feature and no more: a norm of some sort, whatever it looks at."""
    leaf = not any(True for _ in module.children())
    return leaf and all(parameter.numel() == max(parameter.shape, default=1) for parameter in module.parameters())


def _may_mix(module: nn.Module, record: Record) -> bool:
    """Not by ordinary convolutions alone, which work on features as much as on positions (ResNet's)."""
    wide = [
        part
        for part in module.modules()
        if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d) and part.groups == 1 and max(part.kernel_size) > 1
    ]
    ran = {operation.rsplit(":", 1)[-1].lstrip("_") for operation in record.operations}
    return not wide or bool(ran & WITHIN_CONVOLUTION)
