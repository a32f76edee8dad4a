"""What a model is made of, and what a surgery would do where."""

from layersurgery.inspection._anatomy import Anatomy, LayerPart, Remainder, SitePart, TowerPart
from layersurgery.inspection._tree import inspect

__all__ = ["inspect", "Anatomy", "TowerPart", "LayerPart", "SitePart", "Remainder"]
