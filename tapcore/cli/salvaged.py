"""What `--salvage` tells of content that could not be read."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any, Final

from tapcore.errors import printable
from tapcore.sizes import format_size

if TYPE_CHECKING:
    from tapcore.engine.salvage import Salvage

LOST: Final = 3
"""The exit status: it was done, and content is missing."""

_MOST_LINES: Final = 100


def noting_losses(wanted: bool) -> Salvage | None:
    """Where what is lost is to be noted; None where it is an error."""
    if not wanted:
        return None
    from tapcore.engine.salvage import Salvage

    return Salvage()


def print_losses(lost: Salvage) -> None:
    """On standard error, a line for each range of a number that is bounded, and their sum."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    for found in lost.ranges[:_MOST_LINES]:
        reason = printable(f"{found.image}: {found.reason}", 2000)
        line = f"lost {found.length} bytes at {found.start}: {reason}"
        print(f"tapdisk: {line}", file=sys.stderr)
    more = lost.count - min(len(lost.ranges), _MOST_LINES)
    if more:
        print(f"tapdisk: ... and {more} ranges more", file=sys.stderr)
    ranges = "1 range" if lost.count == 1 else f"{lost.count} ranges"
    text = f"{format_size(lost.lost)} in {ranges} could not be read, and are zeroes"
    print(f"tapdisk: {text}", file=sys.stderr, flush=True)


def losses_as_dict(lost: Salvage) -> dict[str, Any]:
    """The fields of `--json`; `lost` holds at most 1000 ranges, `lost_ranges` counts all."""
    return {
        "lost_bytes": lost.lost,
        "lost_ranges": lost.count,
        "lost": [
            {
                "start": found.start,
                "length": found.length,
                "image": found.image,
                "reason": found.reason,
            }
            for found in lost.ranges
        ],
    }
