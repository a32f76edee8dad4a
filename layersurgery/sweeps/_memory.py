"""Running out of memory: how it is recognised, and what can be given back."""

from __future__ import annotations

import gc

import torch

# What torch says in a plain RuntimeError. In this order: the allocators of Linux and macOS, and of Windows; Metal and
# asynchronous CUDA calls; cuBLAS and cuDNN, which allocate by themselves.
_WORDS = ("can't allocate memory", "not enough memory", "out of memory", "status_alloc_failed")


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, says that memory ran out: an accelerator's or the host's.

    Examples:
        >>> try:
        ...     torch.empty(2**50)
        ... except RuntimeError as error:
        ...     ran_out_of_memory(error)
        True
        >>> ran_out_of_memory(RuntimeError("shapes do not fit"))
        False
    """
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        if isinstance(link, (torch.OutOfMemoryError, MemoryError)):
            return True
        if isinstance(link, RuntimeError) and any(words in str(link).lower() for words in _WORDS):
            return True
        link = link.__cause__
    return False


def free_memory() -> None:
    """Give back what nothing refers to any more, and what torch keeps of it for later."""
    gc.collect()
    if torch.cuda.is_initialized():  # asking for more would start CUDA in a process that does without
        torch.cuda.empty_cache()


def no_memory_for_one(name: str, where: str, error: BaseException) -> str:
    """What to say where not even a single sample fits."""
    return (
        f"out of memory with a single sample, {name!r}, at {where}: {_first_line(error)}. Load the model in a smaller "
        "dtype (--dtype bfloat16), spread it over the devices there are (--device-map auto), let the processor make "
        "images smaller, take shorter samples, or, where one takes several rows (for its options or variants), give "
        "the scorer a smaller batch size (--batch-size 1)"
    )


def no_memory_for_all(count: int, where: str, error: BaseException) -> str:
    """What to say where a scorer that gives one number in all does not fit: its samples cannot be taken in parts."""
    return (
        f"out of memory with all {count} samples at {where}: {_first_line(error)}. The scorer gives one number for all "
        "samples, so they cannot be taken in smaller parts from here: make it work through them in smaller batches, "
        "load the model in a smaller dtype (--dtype bfloat16), spread it over the devices there are (--device-map "
        "auto), let the processor make images smaller, or take fewer or shorter samples"
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")
