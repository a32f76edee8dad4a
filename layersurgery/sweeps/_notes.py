"""What a sweep could not share, in words, without saying the same of each module."""

from __future__ import annotations

from collections.abc import Iterator


class Notes:
    """Reasons, each once, with the first of the modules that it is about and how many more there are.

    Examples:
        >>> notes = Notes()
        >>> for path in ("layers.0", "layers.1", "layers.1"):
        ...     notes.tell("there are hooks inside it", path)
        >>> notes.tell("it is compiled")
        >>> list(notes)
        ['there are hooks inside it: layers.0 and 1 more', 'it is compiled']
    """

    def __init__(self) -> None:
        self._paths: dict[str, list[str]] = {}

    def __iter__(self) -> Iterator[str]:
        for reason, paths in self._paths.items():
            more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            yield f"{reason}: {paths[0]}{more}" if paths else reason

    def tell(self, reason: str, path: str | None = None) -> None:
        """Note a reason, and the module that it is about."""
        paths = self._paths.setdefault(reason, [])
        if path is not None and path not in paths:
            paths.append(path)

    def take_back(self, reason: str) -> None:
        """Note nothing of a reason any more."""
        self._paths.pop(reason, None)
