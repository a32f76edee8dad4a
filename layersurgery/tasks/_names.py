"""How names are compared."""

from __future__ import annotations

import re


def plain(name: str) -> str:
    """A name as it is compared: small letters and digits, whatever is between them, and no "and".

    Examples:
        >>> plain("Tech & Engineering"), plain("Tech and Engineering")
        ('tech_engineering', 'tech_engineering')
    """
    words = re.split(r"[^a-z0-9]+", name.casefold())
    return "_".join(word for word in words if word and word != "and")
