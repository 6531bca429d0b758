"""The hooks of an open disk: its requests, blktap's way.

Sectors are 512 bytes. A hook may raise OSError or TapError; the core turns it into the errno of the
requests concerned.
"""

from __future__ import annotations

import errno
from typing import Any, Generic

from tapcore.errors import NotSupportedError
from tapcore.interface.hooks.table import Callback, D, hook
from tapcore.interface.places import Places


class RequestHooks(Generic[D]):
    """An open disk, its requests and their answers."""

    __slots__ = ()

    @staticmethod
    @hook(required=True)
    def td_open(dd: D, name: str, flags: int) -> None:
        """Open an image.

        Set `dd.private`, `dd.io_fd` (what is to be polled), `dd.size` (sectors), `dd.sector_size`
        (bytes) and `dd.info`.

        Args:
            dd: the new image; `dd.options` says how.
            name: path, already resolved and allowed; or what stands behind `HANDLE:`.
            flags: `TD_RDONLY` or 0.

        Raises:
            OSError, TapError: the image cannot be opened; everything taken was given back.
        """
        raise NotSupportedError("opens nothing")

    @staticmethod
    @hook(required=True, capability="read")
    def td_queue_read(
        dd: D,
        sector: int,
        nb_sectors: int,
        buf: memoryview,
        cb: Callback[D],
        id: int,
        prv: Any,
    ) -> int:
        """Start, or do, a read.

        Args:
            dd: the image.
            sector: first sector, inside the image.
            nb_sectors: how many; the range lies inside the image.
            buf: exactly `nb_sectors * 512` writable bytes, the driver's until all is answered.
            cb: to be called with disjoint sub-ranges that cover the range, in any order, during the
                call or later, each sector exactly once.
            id: number of the request.
            prv: to be handed back to `cb`.

        Returns:
            0: taken. > 0: that many requests were finished inside the call (what `cb` returned).
            -EBUSY: nothing was taken, and nothing answered; the core tries again later.
            Another negative errno: what was not answered yet has failed with it.
        """
        return -errno.EOPNOTSUPP

    @staticmethod
    @hook("the format is read-only; opening it for writing is refused", capability="write")
    def td_queue_write(
        dd: D,
        sector: int,
        nb_sectors: int,
        buf: memoryview,
        cb: Callback[D],
        id: int,
        prv: Any,
    ) -> int:
        """Start, or do, a write; arguments and results as `td_queue_read`.

        Only the child of a chain is written. `buf` must not be changed.
        """
        return -errno.EROFS

    @staticmethod
    @hook("nothing is held back in a queue")
    def td_submit(dd: D) -> int:
        """The batch is complete: hand what is queued to the kernel, in one call where possible.

        Returns:
            Requests finished inside the call; 0 is always right.

        Raises:
            OSError, TapError: nothing that was queued since the last submit and not answered yet
                will be answered; the core fails all of it.
        """
        return 0

    @staticmethod
    @hook("nothing finishes late")
    def td_do_callbacks(dd: D, sid: int) -> int:
        """`dd.io_fd[sid]` is readable: reap what has finished and call the callbacks.

        Returns:
            The sum of what the callbacks returned.

        Raises:
            InterruptedError, BlockingIOError: try again.
            OSError, TapError: nothing that was submitted and not answered yet will be answered; the
                core fails all of it. `io_fd[sid]` must not stay readable for the same reason.
        """
        return 0

    @staticmethod
    @hook("nothing to release")
    def td_close(dd: D) -> None:
        """Finish what is in flight, flush, release. Called once for each successful `td_open`.

        Raises:
            OSError, TapError: the flush failed; what was taken is released all the same.
        """

    @staticmethod
    @hook("answered at once: right only where a write is on disk when it is answered")
    def td_queue_flush(dd: D, cb: Callback[D], id: int, prv: Any) -> int:
        """Make every write that was answered before this call safe on disk, data and metadata.

        Answered by one `cb(dd, res, 0, 0, id, prv)`. Results as `td_queue_read`.
        """
        return cb(dd, 0, 0, 0, id, prv)

    @staticmethod
    @hook("does nothing, successfully", capability="discard")
    def td_queue_discard(
        dd: D, sector: int, nb_sectors: int, cb: Callback[D], id: int, prv: Any
    ) -> int:
        """The content of these sectors is no longer needed; answers and results as a write."""
        return cb(dd, 0, sector, nb_sectors, id, prv)

    @staticmethod
    @hook("`-EOPNOTSUPP`: the core writes zeroes", capability="zero")
    def td_queue_write_zeroes(
        dd: D,
        sector: int,
        nb_sectors: int,
        may_unmap: bool,
        cb: Callback[D],
        id: int,
        prv: Any,
    ) -> int:
        """Make these sectors read as zeroes, quicker than by writing them.

        Answer (or return, or raise) `-EOPNOTSUPP` where that is not possible, for whole units of
        `dd.sector_size`: the core then writes zeroes, or tells a client that asked for speed.
        Answers and results as a write.

        Args:
            dd: the image.
            sector: first sector.
            nb_sectors: how many.
            may_unmap: space may be given back; otherwise it must stay, or become, reserved.
            cb: as for a write.
            id: as for a write.
            prv: as for a write.
        """
        return -errno.EOPNOTSUPP

    @staticmethod
    @hook(
        "`-EOPNOTSUPP`: the format stores everything plain",
        capability="compress",
        lack="{format} cannot store compressed data",
    )
    def td_queue_write_compressed(
        dd: D,
        sector: int,
        nb_sectors: int,
        buf: memoryview,
        cb: Callback[D],
        id: int,
        prv: Any,
    ) -> int:
        """Store whole clusters compressed; arguments, answers and results as `td_queue_write`.

        What does not become smaller is stored plain. A cluster that is stored already may be
        refused.

        Args:
            dd: the image.
            sector: first sector of a cluster (`dd.cluster_size`).
            nb_sectors: whole clusters; the disk's last one may be cut by its end. At most 1 MiB, or
                one cluster where that is larger.
            buf: the content, not to be changed; the driver's until all is answered.
            cb: as for a write.
            id: as for a write.
            prv: as for a write.
        """
        return -errno.EOPNOTSUPP

    @staticmethod
    @hook("every request goes by way of the driver")
    def td_places(dd: D) -> Places | None:
        """What says where the content lies plain, for a front end that moves the bytes itself.

        Asked once for each open disk, and again when the disk has been resized. A front end that
        finds a place there reads and writes it without the driver, which learns of it in no way;
        what it says is used at once, before any other call of the driver.

        Returns:
            None: nothing of this image lies so.
        """
        return None
