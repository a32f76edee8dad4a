"""How far a long run is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Tells of the cells of one oracle, over all its reads; a run shorter than half a minute leaves no line in a log.

    Args:
        label: what the cells are evaluated for; None: tell nothing.
        stream: where to write; None: standard error.
        clock: seconds that only go forward.
    """

    def __init__(
        self, label: str | None, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._label = label
        self._stream = stream
        self._clock = clock
        self._started: float | None = None
        self._last_line = 0.0
        self._done = 0
        self._total = 0

    @contextmanager
    def over(self, cells: int) -> Iterator[Callable[[int], None]]:
        """While this many more cells are evaluated; call what is given with how many of them are done.

        Examples:
            >>> times = iter([0.0, 20.0, 40.0])
            >>> progress = Progress("search", sys.stdout, lambda: next(times))
            >>> with progress.over(200) as done:
            ...     done(50)
            ...     done(50)
            search: 100 of 200 cells, 0:40 left
        """
        stream = sys.stderr if self._stream is None else self._stream
        if self._label is None or not cells:
            yield _tell_nothing
        elif stream.isatty():
            with _bar(cells, self._label, stream) as bar:
                yield bar.update
        else:
            if self._started is None:
                self._started = self._last_line = self._clock()
            self._total = self._done + cells
            yield self._note

    def _note(self, cells: int) -> None:
        now = self._clock()
        self._done += cells
        if self._started is None or now - self._last_line < SECONDS_BETWEEN_LINES or self._done >= self._total:
            return
        self._last_line = now
        left = (now - self._started) / self._done * (self._total - self._done)
        stream = sys.stderr if self._stream is None else self._stream
        stream.write(f"{self._label}: {self._done} of {self._total} cells, {_clock_time(left)} left\n")
        stream.flush()


def _tell_nothing(cells: int) -> None:
    pass


def _bar(cells: int, label: str, stream: TextIO) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=cells, desc=label, unit="cell", leave=False, dynamic_ncols=True, file=stream)


def _clock_time(seconds: float) -> str:
    """Minutes and seconds, with hours in front where there are any.

    Examples:
        >>> _clock_time(130.2), _clock_time(3723)
        ('2:10', '1:02:03')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
