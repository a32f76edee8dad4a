"""Task-layer interaction vectors of several tasks: correlation, clusters, consistency."""

from layersurgery.vectors._vectors import Consistency, InteractionVectors

__all__ = ["Consistency", "InteractionVectors"]
