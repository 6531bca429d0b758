"""Several pages that are looked at again and again, while disks come and go."""

from __future__ import annotations

import os
from collections.abc import Sequence

import attrs

from tapcore.metrics.publishing import SUFFIX
from tapcore.metrics.reading import NotAPageError, Snapshot, read_page


class PageSet:
    """The pages at some places.

    Args:
        places: pages, or directories in which they lie.
    """

    def __init__(self, places: Sequence[str]) -> None:
        self._places = places
        self._before: dict[str, Snapshot] = {}

    @staticmethod
    def any_in(directory: str) -> bool:
        """Whether a directory has pages."""
        return bool(_in(directory))

    def look(self) -> list[tuple[Snapshot, Snapshot]]:
        """Each disk as it was at the last look, and as it is; the first time, since it was opened.

        Disks whose process has ended are left out, where their page lies in a directory.

        Raises:
            OSError: a page that was named cannot be read.
            NotAPageError: it is none.
        """
        found: dict[str, Snapshot] = {}
        for place in self._places:
            if os.path.isdir(place):
                found |= {path: seen for path in _in(place) if (seen := _running(path))}
            else:
                found[place] = read_page(place)
        pairs = [(self._before.get(path) or _nothing(seen), seen) for path, seen in found.items()]
        self._before = found
        return pairs


def _in(directory: str) -> list[str]:
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return []
    return [os.path.join(directory, name) for name in names if name.endswith(SUFFIX)]


def _running(path: str) -> Snapshot | None:
    """A page whose writer is there."""
    try:
        seen = read_page(path)
    except (OSError, NotAPageError):  # it goes just now
        return None
    return seen if os.path.exists(f"/proc/{seen.process}") else None


def _nothing(seen: Snapshot) -> Snapshot:
    """The disk when it was opened."""
    return attrs.evolve(seen, updated=seen.started, cells={})
