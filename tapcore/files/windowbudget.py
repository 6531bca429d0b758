"""How many windows there may be in the process, and which one is given up for another."""

from __future__ import annotations

from threading import Lock
from typing import Final, Protocol

MOST_WINDOWS: Final = 256
"""Of the whole process: 16 GiB. For each GiB that is touched the kernel keeps 2 MiB of page tables,
so that these take 32 MiB at most; the windows' own notes take 4 MiB."""


class HasWindows(Protocol):
    """What has windows of a file."""

    def until(self, number: int) -> float:
        """Up to when one is in use; see `Windows.until`."""

    def give_up(self, number: int | None = None) -> None:
        """One is wanted elsewhere; see `Windows.give_up`."""


class Budget:
    """All windows of the process; threads may share it.

    Args:
        most: so many there may be.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._lock = Lock()
        self._open: dict[tuple[int, int], HasWindows] = {}

    def has_room(self, now: float) -> bool:
        """Whether one more may be opened; one that is not in use is given up for it."""
        with self._lock:
            if len(self._open) < self.most:
                return True
            idle, (owner, number) = min(
                ((windows.until(number), (owner, number)))
                for (owner, number), windows in self._open.items()
            )
            if idle > now:
                return False
            self._open.pop((owner, number)).give_up(number)
            return True

    def opened(self, windows: HasWindows, number: int) -> None:
        """One more is there."""
        with self._lock:
            self._open[id(windows), number] = windows

    def gone(self, windows: HasWindows) -> None:
        """All windows of a file are given up."""
        with self._lock:
            for key in [key for key, each in self._open.items() if each is windows]:
                del self._open[key]


BUDGET: Final = Budget(MOST_WINDOWS)
