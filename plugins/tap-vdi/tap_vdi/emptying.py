"""Forgetting all content, when a commit has brought it to the parent."""

from __future__ import annotations

from tap_vdi.blockmap import page_place, pages
from tap_vdi.image import Image
from tap_vdi.moving import cut
from tapcore import NotSupportedError


def make_empty(image: Image) -> None:
    """As `td_make_empty`.

    Raises:
        NotSupportedError: of an image that has no parent.
        OSError: as the system says.
    """
    header, file = image.header, image.file
    if not header.differs:
        raise NotSupportedError("is a VDI without a parent, which cannot be emptied")
    image.clusters.begin_writing()
    image.clusters.save()
    for index in range(pages(header)):
        place, length = page_place(header, index)
        file.write_metadata(place, b"\xff" * length)
    file.make_safe()
    cut(header, file, 0)
    image.recorded = 0
    image.tables.forget()
    image.clusters.stop_writing()
