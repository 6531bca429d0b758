"""What files say of themselves: signatures of formats, with and without a driver.

The core knows no format's inside. What it has to know is only that a file is *something*: an image
of another program, an archive, compressed data. Taken for a raw disk it would be copied, served and
written as if its container were the disk.

Everything is loaded when it is first used: of a file that a driver recognises nothing is asked.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as in tapcore
if TYPE_CHECKING:
    from typing import Any

    from tapcore.formats.foreign.disks import plain_disk
    from tapcore.formats.foreign.sample import HEAD_BYTES, TAIL_BYTES, Sample, read_sample
    from tapcore.formats.foreign.signature import Signature
    from tapcore.formats.foreign.signatures import (
        SIGNATURES,
        is_part_of_image,
        suffix_owner,
        what_it_says_it_is,
    )

_HOMES = {
    "disks": "plain_disk",
    "sample": "HEAD_BYTES TAIL_BYTES Sample read_sample",
    "signature": "Signature",
    "signatures": "SIGNATURES is_part_of_image suffix_owner what_it_says_it_is",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

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


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'tapcore.formats.foreign' has no attribute '{name}'")
    module = importlib.import_module(f"tapcore.formats.foreign.{_HOME_OF[name]}")
    return getattr(module, name)
