"""Whether all of an image can be unpacked; what is compressed has no other metadata."""

from __future__ import annotations

from tap_zraw.image import Image
from tapcore import CheckResult, ImageFormatError

_MOST_SAID = 20


def check(image: Image) -> CheckResult:
    """As `td_check`. Nothing can be repaired.

    Raises:
        OSError: as the system says.
    """
    layout = image.layout
    result = CheckResult(image_end_offset=image.file.size)
    at = 0
    while at < layout.size:
        index = layout.find(at)
        result.total_clusters += 1
        try:
            layout.unpack(index)
        except ImageFormatError as exc:
            result.corruptions += 1
            if result.corruptions <= _MOST_SAID:
                result.messages.append(f"{at}: {exc.message}")
        at = layout.bounds(index)[1]
    result.allocated_clusters = result.compressed_clusters = result.total_clusters
    return result
