"""What a sample says of itself, whatever it is made of."""

from __future__ import annotations

from typing import Any


def field_of(sample: Any, name: str) -> Any:
    """An entry of a dictionary, or an attribute of anything else; None: there is none.

    Examples:
        >>> field_of({"group": "picture 3"}, "group")
        'picture 3'
        >>> field_of("a text", "group") is None
        True
    """
    return sample.get(name) if isinstance(sample, dict) else getattr(sample, name, None)
