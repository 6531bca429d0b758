"""The extents of a disk that another takes the place of."""

from __future__ import annotations

import os
import re

from tap_vmdk.identity import extent_lines, identify
from tapcore import TD_RDONLY, OpenOptions, TapError, open_image_file


def replaced_extents(name: str) -> list[str]:
    """The files of a disk besides its descriptor, as far as their names can only be theirs.

    A descriptor may be a stranger's, and name any file: only `NAME-flat.vmdk`, `NAME-s001.vmdk` and
    so on beside it are believed.

    Args:
        name: of the descriptor; perhaps no VMDK, or nothing at all.
    """
    folder, base = os.path.split(name)
    stem = re.escape(base.removesuffix(".vmdk"))
    own = re.compile(rf"{stem}-(flat|[fs]\d{{3,6}})\.vmdk")
    named = [extent for extent in _extents(name) if own.fullmatch(extent)]
    paths = [os.path.join(folder, extent) for extent in dict.fromkeys(named)]
    return [path for path in paths if os.path.isfile(path) and not os.path.islink(path)]


def _extents(name: str) -> list[str]:
    if not os.path.isfile(name):
        return []
    try:
        file = open_image_file(name, TD_RDONLY, OpenOptions(locking=False))
    except TapError:
        return []
    try:
        image = identify(file)
        return [] if image.descriptor is None else [line.name for line in extent_lines(image)]
    except (TapError, OSError):
        return []
    finally:
        file.close()
