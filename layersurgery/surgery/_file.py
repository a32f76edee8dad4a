"""`surgery.json`: a surgery as a small file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from layersurgery import __version__
from layersurgery.errors import SelectionError, SurgeryFileError
from layersurgery.interventions import intervention_from_dict
from layersurgery.sites import Site
from layersurgery.surgery._step import Step

FILE_NAME = "surgery.json"
FORMAT = "layersurgery.surgery"
VERSION = 2  # 2: slices of parameters, and interventions on contributions


def save(steps: Iterable[Step], directory: Path) -> Path:
    """Write the steps to `directory/surgery.json`."""
    record = {
        "format": FORMAT,
        "version": VERSION,
        "written_by": f"layersurgery {__version__}",
        "steps": [{"site": s.site.to_dict(), "do": s.do.to_dict(), "tied": s.tied} for s in steps],
    }
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / FILE_NAME
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return path


def load(source: str | Path, revision: str | None) -> list[Step]:
    """Read the steps from a folder, a file or a hub repository."""
    path = _locate(source, revision)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SurgeryFileError(f"{path} cannot be read as JSON: {error}") from error
    return _steps(record, path)


def _locate(source: str | Path, revision: str | None) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        if (path / FILE_NAME).is_file():
            return path / FILE_NAME
        raise SurgeryFileError(f"the folder {path} holds no {FILE_NAME}; Surgery.save_pretrained writes one")
    name = str(source)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise SurgeryFileError(f"{name!r} is neither a folder, nor a {FILE_NAME}, nor a hub id such as 'owner/name'")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, FILE_NAME, revision=revision))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise SurgeryFileError(f"no folder {name!r} here, and the hub gave no {FILE_NAME} for it: {error}") from error


def _steps(record: Any, path: Path) -> list[Step]:
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise SurgeryFileError(f"{path} is not a surgery: its 'format' must be {FORMAT!r}")
    version = record.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise SurgeryFileError(f"{path} has version {version!r}; expected a whole number from 1 to {VERSION}")
    if version > VERSION:
        raise SurgeryFileError(
            f"{path} has version {version} ({record.get('written_by', 'of a newer layersurgery')}); this layersurgery "
            f"{__version__} reads up to {VERSION}. Upgrade layersurgery"
        )
    steps = record.get("steps")
    if not isinstance(steps, list) or not steps:
        raise SurgeryFileError(f"{path} holds no steps; write it with Surgery.save_pretrained")
    return [_step(entry, path) for entry in steps]


def _step(entry: Any, path: Path) -> Step:
    try:
        site, do, tied = Site.from_dict(entry["site"]), intervention_from_dict(entry["do"]), entry["tied"]
    except (KeyError, TypeError, SelectionError) as error:
        raise SurgeryFileError(f"{path} has a malformed step {entry!r}: {error}") from error
    if tied not in ("site", "everywhere"):
        raise SurgeryFileError(f"{path} has a step with tied={tied!r}; expected 'site' or 'everywhere'")
    return Step(site, do, tied)
