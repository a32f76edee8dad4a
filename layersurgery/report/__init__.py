"""Reports: pictures of interaction vectors, for files and for the terminal."""

from layersurgery.report._dendrogram import dendrogram
from layersurgery.report._heatmap import heatmap
from layersurgery.report._terminal import terminal_heatmap
from layersurgery.report._vector import plot_vector

__all__ = ["dendrogram", "heatmap", "plot_vector", "terminal_heatmap"]
