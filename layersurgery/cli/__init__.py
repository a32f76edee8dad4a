"""The command line: `layersurgery inspect`, `layersurgery talo`, `layersurgery demo`."""

from layersurgery.cli._main import main

__all__ = ["main"]
