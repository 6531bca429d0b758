"""What files say of themselves: signatures of formats, with and without a driver.

The core knows no format's inside. What it has to know is only that a file is *something*: an image
of another program, an archive, compressed data. Taken for a raw disk it would be copied, served and
written as if its container were the disk.
"""

from tapcore.formats.foreign.disks import plain_disk
from tapcore.formats.foreign.sample import HEAD_BYTES, TAIL_BYTES, Sample, read_sample
from tapcore.formats.foreign.signature import Signature
from tapcore.formats.foreign.signatures import (
    SIGNATURES,
    is_part_of_image,
    suffix_owner,
    what_it_says_it_is,
)

__all__ = [
    "HEAD_BYTES",
    "SIGNATURES",
    "TAIL_BYTES",
    "Sample",
    "Signature",
    "is_part_of_image",
    "plain_disk",
    "read_sample",
    "suffix_owner",
    "what_it_says_it_is",
]
