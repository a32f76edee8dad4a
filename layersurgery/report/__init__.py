"""Reports: pictures of interaction vectors and of how stable a choice is, for files and for the terminal."""

from layersurgery.report._dendrogram import dendrogram
from layersurgery.report._heatmap import heatmap
from layersurgery.report._stability import plot_stability
from layersurgery.report._terminal import terminal_heatmap
from layersurgery.report._vector import plot_vector

__all__ = ["dendrogram", "heatmap", "plot_stability", "plot_vector", "terminal_heatmap"]
