"""Sketches of disks that are served, made in the loop of who serves them."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import Final, TypeAlias

from tapcore.errors import TapError
from tapcore.interface.models import TdState
from tapcore.process.timer import Put
from tapcore.tools.sketch import Sketch, SketchFailedError, Sketching

log = logging.getLogger(__name__)

PIECE_SECONDS: Final = 0.003
"""Work on a sketch, after which clients are served."""

REST_SECONDS: Final = 0.012
"""Nothing is done for a sketch so long: at most a fifth of the time goes into it."""

Told: TypeAlias = Callable[[Sketch | Exception], object]


class Sketcher:
    """Makes one sketch at a time.

    Args:
        later: in the loop of the disks.
    """

    def __init__(self, later: Put) -> None:
        self._later = later
        self._busy = False

    def begin(self, disk: TdState, told: Told) -> None:
        """Begin a sketch.

        Args:
            disk: open.
            told: called once, with the sketch, or why there is none.

        Raises:
            SketchFailedError: another one is being made, or the disk cannot be sketched.
        """
        if self._busy:
            raise SketchFailedError("busy: a map is being made", errno=errno.EBUSY)
        work = Sketching(disk)
        self._busy = True

        def go_on() -> None:
            try:
                if not work.go_on(PIECE_SECONDS):
                    self._later(REST_SECONDS, go_on)
                    return
                found: Sketch | Exception = work.sketch
            except (TapError, OSError) as exc:
                found = exc
            except Exception as exc:  # of a driver, which must not end the loop
                log.exception("a map could not be made")
                found = exc
            self._busy = False
            told(found)

        self._later(0.0, go_on)
