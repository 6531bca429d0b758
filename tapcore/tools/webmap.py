"""Sketches of disks as the maps that a page for a browser shows."""

from __future__ import annotations

import logging
from collections.abc import Callable

from tapcore.errors import TapError, describe
from tapcore.monitor.maps import Draw, Drawn, Tell
from tapcore.nbd.exports import Export
from tapcore.process.timer import Put
from tapcore.tools.picture_svg import svg_of_rows
from tapcore.tools.sketch import Sketch
from tapcore.tools.sketcher import Sketcher

log = logging.getLogger(__name__)


def drawn(found: Sketch | BaseException) -> Drawn:
    """The map, or why there is none."""
    if isinstance(found, BaseException):
        return Drawn(why=describe(found))
    try:
        text = svg_of_rows(found.images, found.rows)
    except Exception as exc:  # whoever told of the disk is not believed that it can be drawn
        log.exception("a map could not be drawn")
        return Drawn(why=describe(exc))
    return Drawn(text[text.index("<svg") :])


def draw_exports(find: Callable[[str], Export | None]) -> Draw:
    """Draws the maps of exports in their own loop.

    Args:
        find: the export of a name.
    """
    sketchers: list[Sketcher] = []

    def draw(name: str, tell: Tell, later: Put) -> None:
        if not sketchers:
            sketchers.append(Sketcher(later))
        export = find(name)
        if export is None:
            tell(Drawn(why="there is no such export"))
            return
        try:
            sketchers[0].begin(export.disk, lambda found: tell(drawn(found)))
        except (TapError, OSError) as exc:
            tell(drawn(exc))

    return draw
