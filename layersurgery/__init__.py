"""layersurgery: find the parts of a model that hurt a task, and take them out - reversibly."""

__version__ = "0.1.0"
