"""Where: towers, layers and roles of any model, and the selectors that find them."""

from layersurgery.sites._hazards import HAZARDS
from layersurgery.sites._select import select
from layersurgery.sites._site import Site, Sites, Slice
from layersurgery.sites._unwrap import unwrap

__all__ = ["select", "Site", "Sites", "Slice", "HAZARDS", "unwrap"]
