"""A server in a thread of this process whose disks are changed while it serves them."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs
from nbd_client import Client
from servedhere import running

import tapcore
from tapcore import DiskId, UnixAddress, nbd_server
from tapcore.live import Live, LiveCalls
from tapcore.nbd.server import NbdServer

MIB = 1 << 20
PAGE = 4096


@attrs.define(eq=False)
class LiveHere:
    """The running server, and the calls that change its disks."""

    server: NbdServer
    live: Live
    calls: LiveCalls

    def client(self, number: int = 0, **how: Any) -> Client:
        """A connection to a disk, past its handshake."""
        return Client(self.server.uris()[number], **how)

    def image(self, name: str) -> str:
        """What is served under a name."""
        return str(self.calls.state(name)["image"])


@contextlib.contextmanager
def live_here(
    *images: str,
    names: Sequence[str] = (),
    renamed: Callable[[str, DiskId], Callable[[], bool] | None] | None = None,
    **how: Any,
) -> Iterator[LiveHere]:
    """Serve images under names (0, 1, ...) until the end, as by a signal."""
    names = names or [str(number) for number in range(len(images))]
    with tempfile.TemporaryDirectory(prefix="tapcore-live-") as where, ExitStack() as stack:
        server = nbd_server(images, UnixAddress(str(Path(where) / "s")), names=names, **how)
        live = Live(server, renamed=renamed)
        calls = LiveCalls(live)
        stack.enter_context(running(server))
        yield LiveHere(server, live, calls)


def made(name: str, size: int = MIB, **how: Any) -> str:
    tapcore.create_image(name, size, **how)
    return name


def filled(name: str, byte: bytes, **how: Any) -> str:
    made(name, **how)
    with tapcore.open(name, readonly=False) as disk:
        disk.pwrite(0, byte * PAGE)
    return name


def first_page(name: str) -> bytes:
    with tapcore.open(name) as disk:
        return disk.pread(0, length=PAGE)


def first_page_of_files(name: str) -> bytes:
    """Whoever has them open."""
    with tapcore.open(name, lock=False) as disk:
        return disk.pread(0, length=PAGE)
