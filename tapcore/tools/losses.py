"""Looking for what an image has lost, before its content is put in the place of other content."""

from __future__ import annotations

from tapcore.disk import Disk
from tapcore.errors import LostContentError
from tapcore.sizes import format_size


def refuse_missing(disk: Disk, doing: str) -> None:
    """Raise where content is known to be missing: its place lies past the end of a file.

    Args:
        disk: open.
        doing: what would be done with its content, for the message.

    Raises:
        LostContentError: with the image's name, the first place, and how much is missing.
        TapError: the tables cannot be read.
    """
    lost = [run for run in disk.extents() if run.missing]
    if not lost:
        return
    first = lost[0]
    image = list(disk.state.disks.chain())[first.depth]
    where = f", {first.offset:#x} of {first.filename}" if first.filename else ""
    raise LostContentError(
        f"has lost {format_size(sum(run.length for run in lost))} of content, which would lie past "
        f"the end of its file (the first at {first.start} of the disk{where}): nothing was {doing}",
        image=image.name,
    )
