"""`crypt:IMAGE`: the disk that is encrypted in any image, behind a LUKS header."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any, Final

from tap_crypt.opening import Image, open_encrypted
from tapcore import (
    SECTOR_SHIFT,
    DiskDriver,
    DiskInfo,
    Hooks,
    TdCallback,
    answer_over,
    implements,
)

disk_info = DiskInfo(
    handle="crypt",
    name="encrypted disk in an image (LUKS)",
    api=1,
    file_backed=False,
    words_before_image=0,
)

_LOCKED: Final = -errno.EACCES
"""Of a disk that was opened for its metadata alone."""


@implements(Hooks.td_open)
def td_open(dd: DiskDriver[Image], name: str, flags: int) -> None:
    """Open the image, find the key of its data."""
    below = dd.open_below(name, expected="luks")
    try:
        locked = dd.options.metadata_only
        dd.private = image = open_encrypted(below, dd.options.keys, name, locked=locked)
    except BaseException:
        below.close()
        raise
    dd.io_fd[0] = below.fileno()
    dd.size = image.size >> SECTOR_SHIFT
    dd.sector_size = image.sector_size


@implements(Hooks.td_queue_read)
def td_queue_read(
    dd: DiskDriver[Image],
    sector: int,
    nb_sectors: int,
    buf: memoryview,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """Read of the image below, then decrypt in place."""
    image = dd.private
    cipher = image.cipher
    if cipher is None:
        return _LOCKED

    def then(res: int) -> int:
        if not res:
            buf[:] = cipher.decrypt(sector, buf)
        return cb(dd, res, sector, nb_sectors, id, prv)

    return image.below.queue_read(image.place(sector), buf, then)


@implements(Hooks.td_queue_write)
def td_queue_write(
    dd: DiskDriver[Image],
    sector: int,
    nb_sectors: int,
    buf: memoryview,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """Encrypt into other memory, write that."""
    image = dd.private
    if image.cipher is None:
        return _LOCKED
    content = memoryview(image.cipher.encrypt(sector, buf))
    then = answer_over(cb, dd, sector, nb_sectors, id, prv)
    return image.below.queue_write(image.place(sector), content, then)


@implements(Hooks.td_queue_flush)
def td_queue_flush(dd: DiskDriver[Image], cb: TdCallback, id: int, prv: Any) -> int:
    """Of all of the image below."""
    return dd.private.below.queue_flush(answer_over(cb, dd, 0, 0, id, prv))


@implements(Hooks.td_submit)
def td_submit(dd: DiskDriver[Image]) -> int:
    """To the image below."""
    dd.private.below.submit()
    return 0


@implements(Hooks.td_do_callbacks)
def td_do_callbacks(dd: DiskDriver[Image], sid: int) -> int:
    """From the image below."""
    dd.private.below.reap()
    return 0


@implements(Hooks.td_other_files)
def td_other_files(dd: DiskDriver[Image]) -> Sequence[str]:
    """Those of the image below."""
    return dd.private.below.files()


@implements(Hooks.td_info)
def td_info(dd: DiskDriver[Image]) -> dict[str, Any]:
    """What the header says."""
    return {"below": dd.private.below.name, **dd.private.info}


@implements(Hooks.td_close)
def td_close(dd: DiskDriver[Image]) -> None:
    """And the image below."""
    dd.private.below.close()
