"""Every error that layersurgery raises on purpose; each message names the value, the expectation and the next step."""

from __future__ import annotations


class LayerSurgeryError(Exception):
    """Base of all errors below: `except LayerSurgeryError` catches what the library refuses, and nothing else."""


class SelectionError(LayerSurgeryError, LookupError):
    """A selector matched nothing, matched ambiguously, or was not understood."""


class SiteIndexError(SelectionError, IndexError):
    """A position or layer number lies outside the selected sites."""


class SurgeryError(LayerSurgeryError):
    """A surgery cannot be applied to this model; nothing was changed."""


class ModelMismatchError(SurgeryError):
    """The surgery was made for another model: a site is missing here or is something else."""


class SurgeryFileError(LayerSurgeryError, ValueError):
    """A `surgery.json` is missing, malformed, or of a version this library cannot read."""


class InterventionError(LayerSurgeryError, ValueError):
    """An intervention got a bad setting, is not registered, or cannot act on a given tensor."""


class ScoringError(LayerSurgeryError):
    """A scorer failed, or returned something that is not one real number per sample."""


class SampleError(LayerSurgeryError, ValueError):
    """Samples are empty, malformed, overlapping, or fewer than asked for."""


class SearchError(LayerSurgeryError, ValueError):
    """A decision rule was set up or called in a way that cannot work."""


class VectorError(LayerSurgeryError, ValueError):
    """Interaction vectors do not fit together, or cannot answer what was asked of them."""


class TaskError(LayerSurgeryError, LookupError):
    """An unknown task or benchmark."""


class StoreError(LayerSurgeryError):
    """A store cannot be opened, read or written, or what is to be stored cannot be told apart from other things.

    What was stored before is still there.
    """


class LayerSurgeryWarning(UserWarning):
    """Something was done in another way than the caller may expect; the message says how."""
