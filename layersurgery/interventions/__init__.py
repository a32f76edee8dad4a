"""What: one frozen dataclass per intervention, and the registry that others can join."""

from layersurgery.interventions._base import (
    Intervention,
    Place,
    constant_like,
    intervention_from_dict,
    interventions,
    register,
)
from layersurgery.interventions._low_rank import LowRank
from layersurgery.interventions._mean import Mean
from layersurgery.interventions._noise import Noise
from layersurgery.interventions._output_form import OutputForm
from layersurgery.interventions._scale import Scale
from layersurgery.interventions._skip import Skip
from layersurgery.interventions._uniform import Uniform
from layersurgery.interventions._zero import Zero

__all__ = [
    "Intervention",
    "OutputForm",
    "Place",
    "Zero",
    "Uniform",
    "Mean",
    "Noise",
    "Scale",
    "LowRank",
    "Skip",
    "register",
    "interventions",
    "intervention_from_dict",
    "constant_like",
]
