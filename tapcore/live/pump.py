"""A second engine below a disk that is served: of its parent, which is written meanwhile."""

from __future__ import annotations

from tapcore.engine import Engine
from tapcore.engine.loop import Loop
from tapcore.live.tasks import leave
from tapcore.nbd.polled import PolledDisk


class ParentPump:
    """Drives the engine of a parent in the loop of the disk above it.

    What one of the two finishes may be what the other waits for; what both have done is answered in
    the batch after it.

    Args:
        loop: of both.
        above: engine of the disk that is served.
        parent: engine of its parent, and of what lies below that.
    """

    def __init__(self, loop: Loop, above: Engine, parent: Engine) -> None:
        self._loop = loop
        self._above = above
        self._parent = parent
        self._again = False
        self._polled = PolledDisk(loop, parent)
        parent.share_with(above)
        parent.giving_up.append(above.before_giving_up)
        loop.after_batch.append(self._turn)
        loop.timeouts.append(self._timeout)

    def _turn(self) -> None:
        before = self._in_flight()
        self._parent.turn()
        self._above.turn()
        layers = *self._parent.layers, *self._above.layers
        self._again = before != self._in_flight() or any(layer.dirty for layer in layers)

    def _in_flight(self) -> tuple[int, int]:
        return self._parent.in_flight, self._above.in_flight

    def _timeout(self) -> float | None:
        return 0.0 if self._again else self._parent.timeout

    def stop(self) -> None:
        """The two have no images in common any more."""
        self._parent.share_no_more(self._above)
        self._parent.giving_up.remove(self._above.before_giving_up)
        self._polled.unpoll()
        leave(self._loop, self._turn, self._timeout)
