"""`VectorError`: vectors that do not fit together, or a question that they cannot answer."""

from __future__ import annotations

from layersurgery.errors import LayerSurgeryError


class VectorError(LayerSurgeryError, ValueError):
    """Interaction vectors do not fit together, or cannot answer what was asked of them."""
