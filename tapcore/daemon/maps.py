"""Maps of disks for a browser: their processes look, the daemon draws.

What a process tells is numbers and names, each of which is checked: it may be in the hands of
whoever made an image.
"""

from __future__ import annotations

from typing import Any, Final

from tapcore.daemon.changes import forward
from tapcore.daemon.daemon import Daemon
from tapcore.errors import TapError
from tapcore.monitor.maps import Draw, Tell
from tapcore.process.timer import Put
from tapcore.tools.sketch import Sketch
from tapcore.tools.webmap import drawn

ASK_SECONDS: Final = 120.0
"""How long a process is waited for: ten seconds of work, in a fifth of its time."""


def draw_disks(daemon: Daemon) -> Draw:
    """Draws the maps of a daemon's disks."""

    def draw(name: str, tell: Tell, later: Put) -> None:
        def told(found: Any, error: BaseException | None) -> None:
            try:
                tell(drawn(Sketch.from_dict(found) if error is None else error))
            except TapError as exc:
                tell(drawn(exc))

        try:
            asked = forward(daemon, "map", daemon.disk(name), {"name": name}, seconds=ASK_SECONDS)
        except TapError as exc:
            tell(drawn(exc))
        else:
            asked.then(told)

    return draw
