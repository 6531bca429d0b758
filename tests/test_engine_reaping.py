"""A driver that fails to reap: what it had in hand fails, what comes later does not."""

import errno
import os

import pytest

from tapcore.engine import READ, Request, engine_of
from tapcore.interface.diskinfo import DiskInfo
from tapcore.interface.hooks import hookimpl
from tapcore.interface.registry import Registry
from tapcore.opening.chain import close_disk, open_disk


class NeverReaps:
    """Queues everything, and raises whenever it is to say what has finished."""

    disk_info = DiskInfo(handle="mute", name="never reaps", api=1, file_backed=False)

    @hookimpl
    def td_open(self, dd, name, flags):
        dd.io_fd[0] = os.eventfd(0)
        dd.size = 64

    @hookimpl
    def td_queue_read(self, dd, sector, nb_sectors, buf, cb, id, prv):
        return 0

    @hookimpl
    def td_do_callbacks(self, dd, sid):
        raise OSError(errno.ENODEV, "gone")

    @hookimpl
    def td_close(self, dd):
        os.close(dd.io_fd[0])


@pytest.mark.parametrize("count", [1, 700])
def test_everything_in_hand_fails_with_the_errno(count: int) -> None:
    registry = Registry(discover=False)
    assert not registry.register(NeverReaps()).error
    disk = open_disk("mute:x", registry, flags=1)
    engine = engine_of(disk)
    done: list[int] = []
    for n in range(count):
        buf = memoryview(bytearray(512))
        engine.submit(Request(READ, n % 64 * 512, 512, buf, lambda req: done.append(req.status)))
        engine.turn()
    assert not done
    engine.readable(engine.layers[0].dd, 0)
    engine.turn()
    assert done == [-errno.ENODEV] * count
    assert engine.in_flight == 0
    close_disk(disk)
