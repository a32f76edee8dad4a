"""What the terminal can show and wants to."""

from __future__ import annotations

import os
import sys


def wants_color() -> bool:
    """Whether standard output is a terminal whose user has not asked for plain text (`NO_COLOR`, `TERM=dumb`)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
