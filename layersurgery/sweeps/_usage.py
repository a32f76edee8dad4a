"""How much memory a model takes, and what running it takes on top."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from layersurgery.sites import unwrap


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Args:
        device: its name; "meta" stands for weights that are kept elsewhere and brought in for each call.
        weights: what parameters and buffers take there.
        work: what was needed on top at the highest point; None: cannot be told.
        free: what was left after it; None: cannot be told.

    Examples:
        >>> print(Memory("cuda:0", 16 << 30, 1 << 30, 62 << 30))
        16.0 GiB weights + 1.0 GiB at work, 62.0 GiB free (cuda:0)
    """

    device: str
    weights: int
    work: int | None = None
    free: int | None = None

    def __str__(self) -> str:
        if self.device == "meta":
            return f"{_readable(self.weights)} weights elsewhere, brought in for each call"
        work = "unknown" if self.work is None else _readable(self.work)
        free = "" if self.free is None else f", {_readable(self.free)} free"
        return f"{_readable(self.weights)} weights + {work} at work{free} ({self.device})"


def size_of(model: Any) -> tuple[int, dict[str, int]]:
    """How many parameters a model has, and how many bytes parameters and buffers take on each device.

    Shared ones count once.

    Examples:
        >>> size_of(torch.nn.Linear(3, 2))
        (8, {'cpu': 32})
    """
    module = unwrap(model)
    parameters = list(module.parameters())  # each once, as torch gives them
    sizes: Counter[str] = Counter()
    for tensor in (*parameters, *module.buffers()):
        sizes[str(tensor.device)] += tensor.numel() * tensor.element_size()
    return sum(parameter.numel() for parameter in parameters), dict(sizes)


def free_on(device: torch.device) -> int | None:
    """Bytes that are free on a device; None: cannot be told.

    Examples:
        >>> free_on(torch.device("meta")) is None
        True
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for later
        return torch.cuda.mem_get_info(device)[0] + kept
    return _free_on_host() if device.type == "cpu" else None


class Room:
    """What may be kept besides a model: a quarter of what is free where most of it is.

    Args:
        model: the model; that it stays where it is, is taken for granted.
    """

    def __init__(self, model: Any) -> None:
        _, sizes = size_of(model)
        self._device = torch.device(max(sizes, key=lambda device: sizes[device])) if sizes else None

    def read(self) -> int | None:
        """Bytes of it now; None: cannot be told."""
        free = None if self._device is None else free_on(self._device)
        return None if free is None else free // 4


@contextmanager
def measured(model: Any) -> Iterator[list[Memory]]:
    """What running the model in this block takes on each of its devices; the list is filled when the block ends.

    torch's own record of the highest point on an accelerator starts anew.
    """
    _, weights = size_of(model)
    gauges = {device: _gauge(torch.device(device)) for device in weights}
    found: list[Memory] = []
    yield found
    for device, gauge in gauges.items():
        work, free = gauge.read() if gauge is not None else (None, None)
        found.append(Memory(device, weights[device], work, free))


def _gauge(device: torch.device) -> _CudaGauge | _HostGauge | None:
    if device.type == "cuda":
        return _CudaGauge(device)
    return _HostGauge() if device.type == "cpu" else None


class _CudaGauge:
    def __init__(self, device: torch.device) -> None:
        self._device = device
        torch.cuda.reset_peak_memory_stats(device)
        self._before = torch.cuda.memory_allocated(device)

    def read(self) -> tuple[int | None, int | None]:
        """What was needed at the highest point, and what is free now: to others, or kept by torch for later."""
        work = torch.cuda.max_memory_allocated(self._device) - self._before
        return work, free_on(self._device)


class _HostGauge:
    """Goes by what of the process is resident, since torch keeps no record of what it takes on the host."""

    def __init__(self) -> None:
        self._anew = _forget_peak()
        self._peak_before = _peak_resident()
        self._before = _resident()

    def read(self) -> tuple[int | None, int | None]:
        """What was needed at the highest point, and what is free now."""
        peak, free = _peak_resident(), _free_on_host()
        before = self._peak_before if self._before is None else self._before
        if peak is None or before is None or self._peak_before is None:
            return None, free
        hidden = not self._anew and peak <= self._peak_before  # by a higher point before
        return (None if hidden else max(0, peak - before)), free


def _forget_peak() -> bool:
    """Start the record of the highest point anew, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _resident() -> int | None:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _peak_resident() -> int | None:
    kib = _proc_kib(Path("/proc/self/status"), "VmHWM:")
    if kib is not None:
        return kib * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else highest * 1024


def _free_on_host() -> int | None:
    kib = _proc_kib(Path("/proc/meminfo"), "MemAvailable:")
    return None if kib is None else kib * 1024


def _proc_kib(path: Path, name: str) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), None)


def _readable(size: int) -> str:
    """A size with a unit in which it is neither tiny nor huge.

    Examples:
        >>> _readable(5 << 20), _readable(1536 << 20)
        ('5.0 MiB', '1.5 GiB')
    """
    unit = 30 if size >= 1 << 30 else 20
    return f"{size / (1 << unit):.1f} {'GiB' if unit == 30 else 'MiB'}"
