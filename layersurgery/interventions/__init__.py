"""What: one frozen dataclass per intervention, and the registry that others can join."""

from layersurgery.interventions._base import (
    Intervention,
    Place,
    constant_like,
    intervention_from_dict,
    interventions,
    register,
)
from layersurgery.interventions._mean import Mean
from layersurgery.interventions._noise import Noise
from layersurgery.interventions._uniform import Uniform
from layersurgery.interventions._zero import Zero

__all__ = [
    "Intervention",
    "Place",
    "Zero",
    "Uniform",
    "Mean",
    "Noise",
    "register",
    "interventions",
    "intervention_from_dict",
    "constant_like",
]
