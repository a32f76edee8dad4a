"""`select`: from a model and a description to the sites that fit it."""

from __future__ import annotations

from typing import Any

from layersurgery.errors import SelectionError
from layersurgery.sites._finder import ROLES, Finder
from layersurgery.sites._match import Pattern, quoted
from layersurgery.sites._roles import MIXER
from layersurgery.sites._site import Sites
from layersurgery.sites._unwrap import unwrap


def select(
    model: Any,
    role: str | None = None,
    *,
    tower: str | None = None,
    kind: str | None = None,
    pattern: Pattern | None = None,
    example: Any = None,
) -> Sites:
    """Find sites in a model; without further words, the attention of every layer of the language backbone.

    The model is not run and no weight is read: a model on the meta device is enough. What its modules do is seen by
    running a copy without weights; where that cannot run, names and structure decide.

    Args:
        model: any `torch.nn.Module`, or an nnsight model around one.
        role: "attention" (whatever mixes tokens; the default), "mlp" (whatever works on each token alone), "norm" (the
            norms on the residual stream), or "layer".
        tower: "language", "vision", "audio", "encoder", "decoder", or the path of a list of layers. The default is the
            language backbone (of an encoder-decoder: the decoder), or the only tower there is.
        kind: keep only sites of this kind, such as "self_attention", "cross_attention", "mamba", "moe".
        pattern: instead of a role: a glob over module names ("*.self_attn.o_proj"), a compiled regular expression
            (searched in the name), a module class, or a predicate `f(name, module) -> bool`. With `role` it narrows
            those sites down.
        example: arguments of one forward - a mapping of keywords, a tuple, or one tensor - for a model that does not
            run on what is guessed from its config and first layers. Only shapes matter.

    Returns:
        The sites, in layer order; at least one.

    Raises:
        SelectionError: if nothing matches, a name is unknown, or several towers fit (the message lists near misses), or
            if the model cannot run on the example.

    Examples:
        >>> from torch import nn
        >>> model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False)
        >>> select(model).paths
        ('layers.0.self_attn', 'layers.1.self_attn')
        >>> select(model, pattern="*.linear1").paths
        ('layers.0.linear1', 'layers.1.linear1')
        >>> select(model, pattern=nn.LayerNorm)[0].path
        'layers.0.norm1'
    """
    _check_words(role, kind)
    finder = Finder(unwrap(model), example)
    if pattern is None:
        found = finder.by_role(role or MIXER, tower)
    elif role is not None:
        found = finder.narrowed(finder.by_role(role, tower), pattern)
    else:
        found = finder.by_pattern(pattern, tower)
    kept = [site for site in found if kind is None or site.kind == kind]
    if not kept:
        raise SelectionError(f"no site of kind {kind!r} here; kinds are {quoted(site.kind for site in found)}")
    return Sites(kept)


def _check_words(role: str | None, kind: str | None) -> None:
    if role is not None and role not in ROLES:
        hint = f"; for module names use pattern={role!r}" if isinstance(role, str) else ""
        raise SelectionError(f"unknown role {role!r}; roles are {quoted(ROLES)}{hint}")
    if kind is not None and not isinstance(kind, str):
        raise SelectionError(f"kind must be a word such as 'self_attention', got {kind!r}")
