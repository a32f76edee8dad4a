"""From the name of a model to the model: embedded, in a folder, or on the hub."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from layersurgery.errors import LayerSurgeryError

_PLACEMENTS = ("auto", "balanced", "balanced_low_0", "sequential")


class ModelError(LayerSurgeryError):
    """A model cannot be found or loaded."""


@dataclass(frozen=True)
class LoadedAs:
    """What was really loaded, and how: for the record of a result.

    Args:
        name: the name that was asked for.
        architecture: the model's class.
        dtype: the dtype that it computes in.
        device: where it is; of a model on several devices, how many of its parts are on each.
        parameters: how many there are, shared ones counted once.
        bytes: what they and the buffers take, as stored.
        revision: the commit on the hub, or what was asked for; None: not from the hub.
        remote_code: whether code that came with the model was allowed to run.
        transformers: version.
        torch: version.
    """

    name: str
    architecture: str
    dtype: str
    device: str
    parameters: int
    bytes: int
    revision: str | None
    remote_code: bool
    transformers: str
    torch: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data."""
        return asdict(self)


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode, its processor (a tokenizer, for text models), and what was really loaded."""

    model: Any
    processor: Any
    record: LoadedAs


def load_empty(name: str) -> Any:
    """The model without its weights, on the meta device."""
    import torch
    import transformers

    config = _config(name)
    with torch.device("meta"):
        for architecture in config.architectures or ():
            cls = getattr(transformers, architecture, None)
            if cls is not None:
                return cls._from_config(config).eval()  # in the checkpoint's dtype
        return transformers.AutoModel.from_config(config).eval()


def load_model(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    image_settings: str | Mapping[str, Any] | None = None,
) -> Loaded:
    """Load a model and its processor.

    Args:
        name: an embedded model, a folder, or an id on the hub.
        dtype: "auto": the checkpoint's, but float32 for half precision on a CPU, and float16 on an accelerator that
            cannot compute in bfloat16. Else the name of a floating dtype.
        device: "auto": an accelerator if there is one, else the CPU. Else the name of a device.
        device_map: how to spread the model over several devices, in place of `device`: "auto", "balanced",
            "sequential", the name of a device, or which part goes where, as a mapping or as JSON.
        trust_remote_code: whether to run code that comes with the model.
        revision: branch, tag or commit on the hub.
        image_settings: fields of the processor's image processor to set, such as its size, as a mapping or as JSON.

    Raises:
        ModelError: if there is no such model, dtype or device, a package is missing, or the weights do not fit.
    """
    if device_map is not None and device != "auto":
        raise ModelError(f"--device {device} and --device-map {device_map} were both given; give one of the two")
    places = _device_map(device_map)
    place = _device(device)
    asked = None if dtype == "auto" else _dtype(dtype)
    code: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": revision}
    config = _config(name, **code)
    code["revision"] = _commit(name, revision)  # so that the weights are of the same commit, whatever happens there
    processor = _processor(name, config, code)
    _set_images(processor, _image_settings(image_settings))
    settings = {**code, "device_map": places}
    on = _device_of(places, place)
    first = asked or _suitable(config.dtype, on, _is_embedded(name)) or "auto"
    model = _weights(name, config, {**settings, "dtype": first})
    second = None if asked or config.dtype is not None else _suitable(model.dtype, on)
    if second is not None:  # only the weights could tell
        model = _weights(name, config, {**settings, "dtype": second})
    model = _moved(name, model.eval(), place) if places is None else model.eval()
    return Loaded(model, processor, _record(name, model, code))


# --- where, and in which numbers ---------------------------------------------------------------------------------


def _device(name: str) -> Any:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(f"the device {name!r} cannot be used: {_first_sentence(error)}") from error
    return device


def _device_map(value: str | Mapping[str, Any] | None) -> str | dict[str, Any] | None:
    """As transformers takes it."""
    if value is None:
        return None
    expected = f"give {', '.join(_PLACEMENTS)}, the name of a device, or a JSON object of modules and devices"
    places: Any = value
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            places = json.loads(value)
        except json.JSONDecodeError as error:
            raise ModelError(f"--device-map {value!r} is not JSON ({error}); {expected}") from error
    if isinstance(places, Mapping):
        places = dict(places)
        wrong = next((place for place in places.values() if isinstance(place, bool) or not _is_place(place)), None)
        if wrong is not None or not places:
            what = f"has the device {wrong!r}" if places else "is empty"
            raise ModelError(f"--device-map {value!r} {what}; expected for each module a device, its number or 'disk'")
    elif places not in _PLACEMENTS:
        if not isinstance(places, str):
            raise ModelError(f"--device-map {value!r}: {expected}")
        try:
            _device(places)
        except ModelError as error:
            raise ModelError(f"--device-map {value!r}: {expected} ({error})") from error
    if find_spec("accelerate") is None:
        raise ModelError("--device-map needs accelerate, which is not installed: pip install accelerate")
    return places


def _is_place(place: Any) -> bool:
    import torch

    if isinstance(place, int):
        return place >= 0
    try:
        return place == "disk" or isinstance(torch.device(place), torch.device)
    except (RuntimeError, TypeError):
        return False


def _device_of(places: str | dict[str, Any] | None, place: Any) -> Any:
    """Where the model computes. What is offloaded to the host or a disk computes on the accelerator, if one is used."""
    import torch

    if isinstance(places, dict):
        used = [one for one in places.values() if one not in ("cpu", "disk")]
        return torch.device(used[0] if used else "cpu")
    return place if places is None or places in _PLACEMENTS else torch.device(places)


def _dtype(name: str) -> Any:
    import torch

    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ModelError(f"unknown dtype {name!r}; give float32, bfloat16, float16 or auto")
    return dtype


def _suitable(stored: Any, device: Any, embedded: bool = False) -> Any:
    """What to load a checkpoint's dtype as; None: as it is."""
    import torch

    if embedded:
        return torch.float32  # stored in bfloat16 to be small, trained and measured in this
    if device.type == "cpu":  # half precision is slow there, and unsupported in places
        return torch.float32 if stored == torch.float16 else None
    if stored == torch.bfloat16 and not _computes_in_bfloat16(device):
        return torch.float16
    return None


def _computes_in_bfloat16(device: Any) -> bool:
    import torch

    if device.type != "cuda":
        return True
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


# --- what from_pretrained gives, and what it says where it gives nothing -----------------------------------------


def _is_embedded(name: str) -> bool:
    from layersurgery.embedded import CHECKPOINTS

    return name in CHECKPOINTS and not Path(name).exists()


def _source(name: str) -> Any:
    from layersurgery.embedded import checkpoint_path

    return checkpoint_path(name) if _is_embedded(name) else name


def _config(name: str, **settings: Any) -> Any:
    import transformers

    from layersurgery.embedded import CHECKPOINTS

    try:
        return transformers.AutoConfig.from_pretrained(_source(name), **settings)
    except (OSError, ValueError) as error:
        _check_trust(name, error)
        raise ModelError(
            f"no model {name!r}: not an embedded one ({', '.join(CHECKPOINTS)}), not a folder with a config.json, and "
            f"the hub gave none ({_first_sentence(error)})"
        ) from error


def _commit(name: str, revision: str | None) -> str | None:
    """The commit on the hub that the configuration was just loaded from, by where it lies in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    if _is_embedded(name) or Path(name).exists():
        return revision
    file = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(file).parent.name if isinstance(file, str) else revision


def _processor(name: str, config: Any, settings: dict[str, Any]) -> Any:
    import transformers

    pictures = _takes_pictures(config) or hasattr(config, "vision_config")
    auto = transformers.AutoProcessor if pictures else transformers.AutoTokenizer
    try:
        return auto.from_pretrained(_source(name), **settings)
    except (OSError, ValueError, ImportError, AttributeError, TypeError, KeyError) as error:
        _check_trust(name, error)
        said = str(error).lower()
        if find_spec("torchvision") is None and ("torchvision" in said or "video" in said):
            raise ModelError(
                f"the processor of {name} needs torchvision, which is not installed: pip install torchvision (of the "
                "same release as torch)"
            ) from error
        raise ModelError(f"the processor of {name} cannot be loaded: {_first_sentence(error)}") from error


def _image_settings(value: str | Mapping[str, Any] | None) -> dict[str, Any]:
    expected = 'give a JSON object such as {"size": {"shortest_edge": 336}}'
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ModelError(f"--image-settings {value!r} is not JSON ({error}); {expected}") from error
    if value is not None and not isinstance(value, Mapping):
        raise ModelError(f"--image-settings {value!r}: {expected}")
    return dict(value or {})


def _set_images(processor: Any, settings: Mapping[str, Any]) -> None:
    """In the image processor: given to from_pretrained, they would also be kept with the tokenizer's settings."""
    if not settings:
        return
    images: Any = getattr(processor, "image_processor", None)
    if images is None:
        raise ModelError(f"--image-settings was given, but {type(processor).__name__} takes no images")
    known = images.to_dict()
    unknown = next((name for name in settings if name not in known), None)
    if unknown is not None:
        raise ModelError(
            f"--image-settings: {type(images).__name__} has no field {unknown!r}; its fields: "
            f"{', '.join(sorted(known))}"
        )
    try:
        processor.image_processor = type(images).from_dict({**known, **settings})
    except (TypeError, ValueError, KeyError) as error:
        raise ModelError(f"--image-settings {dict(settings)}: {type(images).__name__} refused them: {error}") from error


def _weights(name: str, config: Any, settings: dict[str, Any]) -> Any:
    from layersurgery.sweeps._memory import ran_out_of_memory

    try:
        return _auto_class(config).from_pretrained(_source(name), **settings)
    except (OSError, ValueError, ImportError, RuntimeError, MemoryError) as error:
        _check_trust(name, error)
        if ran_out_of_memory(error):
            raise ModelError(_does_not_fit(name)) from error
        raise ModelError(f"{name} cannot be loaded: {_first_sentence(error)}") from error


def _moved(name: str, model: Any, place: Any) -> Any:
    from layersurgery.sweeps._memory import ran_out_of_memory

    try:
        return model.to(place)
    except RuntimeError as error:
        if not ran_out_of_memory(error):
            raise
        raise ModelError(_does_not_fit(name)) from error


def _does_not_fit(name: str) -> str:
    return (
        f"{name} does not fit into memory; load it in a smaller dtype (--dtype bfloat16) or spread it over the devices "
        "there are (--device-map auto)"
    )


def _takes_pictures(config: Any) -> bool:
    import transformers

    return type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def _auto_class(config: Any) -> Any:
    import transformers

    own = getattr(config, "auto_map", None) or {}
    order = ("AutoModelForImageTextToText", "AutoModelForSeq2SeqLM", "AutoModelForCausalLM", "AutoModel")
    if type(config).__module__.startswith("transformers_modules."):  # the model came with code of its own
        return getattr(transformers, next((auto for auto in order if auto in own), "AutoModelForCausalLM"))
    if _takes_pictures(config):
        return transformers.AutoModelForImageTextToText
    text_to_text = getattr(config, "is_encoder_decoder", False)
    return transformers.AutoModelForSeq2SeqLM if text_to_text else transformers.AutoModelForCausalLM


def _check_trust(name: str, error: Exception) -> None:
    if "trust_remote_code" in str(error):
        raise ModelError(
            f"{name} comes with code of its own, which is not run unless you say so: read it, then give "
            "--trust-remote-code (and --revision COMMIT, so that it stays the code that you read)"
        ) from error


def _record(name: str, model: Any, settings: dict[str, Any]) -> LoadedAs:
    import torch
    import transformers

    from layersurgery.sweeps._usage import size_of

    parameters, sizes = size_of(model)
    return LoadedAs(
        name=name,
        architecture=type(model).__name__,
        dtype=str(model.dtype).removeprefix("torch."),
        device=_where(model),
        parameters=parameters,
        bytes=sum(sizes.values()),
        revision=settings["revision"],
        remote_code=settings["trust_remote_code"],
        transformers=transformers.__version__,
        torch=torch.__version__,
    )


def _where(model: Any) -> str:
    """The device, or for several of them how many modules of the map are on each."""
    placed = Counter(str(place) for place in getattr(model, "hf_device_map", {}).values())
    if len(placed) < 2:
        return str(model.device)
    named = {place: f"cuda:{place}" if place.isdecimal() else place for place in placed}
    counts = {place: "1 module" if count == 1 else f"{count} modules" for place, count in placed.items()}
    return ", ".join(f"{named[place]} ({counts[place]})" for place in placed)


def _first_sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text.split(". ")[0][:200]
