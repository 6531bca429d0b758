"""Servers in one loop that is somebody else's: each ends alone, and the others go on."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

from nbd_client import Client
from nbdwire import opened

from tapcore import TapError, UnixAddress
from tapcore.engine.loop import Loop
from tapcore.nbd.exports import Export, Exports
from tapcore.nbd.server import NbdServer


def test_one_of_two_servers_ends_and_the_loop_is_as_it_was(tmp_path: Path) -> None:
    loop, ended = Loop(), []
    calls: list[Callable[[], object]] = []
    wake = os.eventfd(0)

    def do(_: int) -> None:
        os.eventfd_read(wake)
        calls.pop(0)()

    def tell(name: str) -> Callable[[list[TapError]], object]:
        return lambda errors: ended.append((name, errors))

    with opened("ram:1M") as first, opened("ram:1M") as second:
        before = (len(loop.timeouts), len(loop.after_batch))
        servers = {
            name: NbdServer(
                Exports([Export.of(disk, name)]),
                UnixAddress(str(tmp_path / name)),
                loop=loop,
                ended=tell(name),
            )
            for name, disk in (("a", first), ("b", second))
        }
        loop.add(wake, do)
        thread = threading.Thread(target=loop.run)
        thread.start()
        with Client(servers["a"].uris()[0]) as one, Client(servers["b"].uris()[0]) as other:
            one.write(0, b"a" * 512)
            calls.append(servers["a"].stop)
            os.eventfd_write(wake, 1)
            assert one.sock.recv(1) == b""
            other.write(0, b"b" * 512)
            assert other.read(0, 512) == b"b" * 512
            calls.append(servers["b"].stop)
            os.eventfd_write(wake, 1)
            assert other.sock.recv(1) == b""
        calls.append(loop.stop)
        os.eventfd_write(wake, 1)
        thread.join(60)
        assert not thread.is_alive()
        assert ended == [("a", []), ("b", [])]
        assert (len(loop.timeouts), len(loop.after_batch)) == before
        loop.remove(wake)
        os.close(wake)
        loop.close()
        assert os.listdir(tmp_path) == []
