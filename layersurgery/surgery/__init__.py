"""How: surgeries on real models, exactly reversible."""

from layersurgery.surgery._status import Status, status
from layersurgery.surgery._step import Step
from layersurgery.surgery._surgery import Handle, Surgery

__all__ = ["Surgery", "Step", "Handle", "status", "Status"]
