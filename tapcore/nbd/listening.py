"""Where a server listens: addresses, their URIs, the sockets, and the file of a Unix socket."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import stat
import sys
from contextlib import suppress
from typing import Final, TypeAlias
from urllib.parse import quote

import attrs

from tapcore.errors import UsageError, describe
from tapcore.interface.identity import identity_of

log = logging.getLogger(__name__)

BACKLOG: Final = 1024
"""Clients that may wait to be accepted: where a socket does not block, one too many is refused."""

DEFAULT_PORT: Final = 10809

_DEAD_AFTER: Final = {
    socket.TCP_KEEPIDLE: 60,  # seconds
    socket.TCP_KEEPINTVL: 10,
    socket.TCP_KEEPCNT: 6,
    socket.TCP_USER_TIMEOUT: 120_000,  # milliseconds
}

_HOST_CID: Final = 2

_MAX_PATH: Final = 107
"""Bytes of `sun_path` (unix(7)), less the NUL that ends it."""


EVERYWHERE: Final = ("", "0.0.0.0", "::")
"""Hosts that stand for every address of this machine; none of them can be connected to."""


def own_name() -> str:
    """A name of this machine that leads to it from here; from elsewhere too, where it is known."""
    with suppress(OSError):
        name = socket.gethostname()
        socket.getaddrinfo(name, None)
        return name
    return "localhost"


def _as_text(path: str | os.PathLike[str]) -> str:
    return os.fsdecode(path)


@attrs.frozen
class UnixAddress:
    """Listen on a Unix socket, for its owner only (mode 0600).

    Attributes:
        path: of the socket; removed at the end.
    """

    path: str = attrs.field(converter=_as_text)

    def uri(self, export: str, *, tls: bool = False) -> str:
        """The NBD URI of an export; `tls`: for clients that shall insist on it."""
        where = quote(os.fsencode(os.path.abspath(self.path)))
        scheme = "nbds+unix" if tls else "nbd+unix"
        return f"{scheme}:///{quote(export, safe='')}?socket={where}"


@attrs.frozen
class TcpAddress:
    """Listen on TCP.

    Attributes:
        host: name or address to bind to.
        port: 0 for any free one.
    """

    host: str
    port: int = DEFAULT_PORT

    def uri(self, export: str, *, tls: bool = False) -> str:
        """The NBD URI of an export; `tls`: for clients that shall insist on it."""
        host = own_name() if self.host in EVERYWHERE else self.host
        host = f"[{quote(host, safe=':')}]" if ":" in host else host
        port = "" if self.port == DEFAULT_PORT else f":{self.port}"
        return f"{'nbds' if tls else 'nbd'}://{host}{port}/{quote(export, safe='')}"


@attrs.frozen
class VsockAddress:
    """Listen for the other side of a virtual machine (vsock(7)), whatever its number.

    Attributes:
        port: 0 for any free one.
        cid: of this machine; None: as the kernel says.
    """

    port: int
    cid: int | None = None

    def uri(self, export: str, *, tls: bool = False) -> str:
        """The NBD URI of an export; `tls`: for clients that shall insist on it."""
        scheme = "nbds+vsock" if tls else "nbd+vsock"
        cid = _own_cid() if self.cid is None else self.cid
        return f"{scheme}://{cid}:{self.port}/{quote(export, safe='')}"


def _own_cid() -> int:
    """Of this machine: 2 is a host's."""
    try:
        with open("/dev/vsock", "rb") as device:
            found = fcntl.ioctl(device, socket.IOCTL_VM_SOCKETS_GET_LOCAL_CID, bytes(4))
    except OSError:
        return _HOST_CID
    return int.from_bytes(found, sys.byteorder)


@attrs.frozen
class OpenSockets:
    """Listen on sockets that somebody else has opened, and goes on to own.

    Attributes:
        descriptors: of sockets that listen, on Unix or TCP addresses; closed at the end.
    """

    descriptors: tuple[int, ...]


Address: TypeAlias = UnixAddress | TcpAddress | VsockAddress | OpenSockets


class SocketFile:
    """The socket's file, removed once, and only as long as it is this server's.

    Args:
        path: of the socket that was just made; "" where there is none.

    Attributes:
        path: as given.
    """

    __slots__ = ("_identity", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self._identity = identity_of(path, follow=False) if path else None

    def remove(self) -> None:
        """Nobody shall come any more."""
        ours, self._identity = self._identity, None
        if ours is not None and identity_of(self.path, follow=False) == ours:
            with suppress(OSError):
                os.unlink(self.path)


def address_of(sock: socket.socket) -> UnixAddress | TcpAddress | VsockAddress:
    """Where a socket listens.

    Raises:
        UsageError: where no NBD URI leads.
    """
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX and isinstance(name, str) and name:
        return UnixAddress(name)
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        return TcpAddress(name[0], name[1])
    if sock.family == socket.AF_VSOCK:
        return VsockAddress(name[1], None if name[0] == socket.VMADDR_CID_ANY else name[0])
    raise UsageError("is a socket without a path or port", image=f"fd:{sock.fileno()}")


def listeners(address: Address) -> list[socket.socket]:
    """Listening sockets that do not block.

    Raises:
        UsageError: the address cannot be used.
    """
    if isinstance(address, OpenSockets):
        return [_adopt(fd) for fd in address.descriptors]
    return [listen(address)]


def _adopt(fd: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=fd)
    except OSError as exc:
        raise UsageError(f"is not a socket: {describe(exc)}", image=f"fd:{fd}") from None
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise UsageError("is not a socket that listens", image=f"fd:{fd}")
    os.set_inheritable(fd, False)
    sock.setblocking(False)
    expect_life(sock)
    return sock


def listen(address: UnixAddress | TcpAddress | VsockAddress) -> socket.socket:
    """A listening socket that does not block.

    Raises:
        UsageError: the address cannot be used.
    """
    try:
        if isinstance(address, TcpAddress):
            sock = _listen_tcp(address)
        elif isinstance(address, VsockAddress):
            sock = _listen_vsock(address)
        else:
            sock = _listen_unix(address.path)
    except (OSError, UnicodeError) as exc:
        if isinstance(address, TcpAddress):
            where = f"{address.host}:{address.port}"
        elif isinstance(address, VsockAddress):
            where = f"vsock:{address.port}"
        else:
            where = address.path
        if isinstance(exc, UnicodeError):
            raise UsageError("is not the name of a host", image=where) from None
        text = exc.strerror if isinstance(exc, socket.gaierror) else describe(exc)
        raise UsageError(f"cannot listen here: {text}", image=where, errno=exc.errno) from None
    sock.setblocking(False)
    return sock


def _listen_tcp(address: TcpAddress) -> socket.socket:
    family, _, _, _, where = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.create_server(where, family=family, backlog=BACKLOG)
    expect_life(sock)
    return sock


def expect_life(sock: socket.socket) -> None:
    """Connections of a listening socket end when their other end is dead: those of TCP.

    Each accepted one inherits it. One that is idle is asked after a minute, and given up when
    nothing comes back for another; what was sent has to be acknowledged in two minutes.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _DEAD_AFTER.items():
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _listen_vsock(address: VsockAddress) -> socket.socket:
    sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        cid = socket.VMADDR_CID_ANY if address.cid is None else address.cid
        sock.bind((cid, address.port or socket.VMADDR_PORT_ANY))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _listen_unix(path: str) -> socket.socket:
    """A new socket of mode 0600, replacing one that nobody listens on any more."""
    _check_path(path)
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(sock.fileno(), 0o600)  # before bind: there is never a moment with more rights
        sock.bind(path)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _check_path(path: str) -> None:
    size = len(os.fsencode(path))
    if not size or "\0" in path:  # the kernel would choose a name, which is no file's
        raise UsageError("a Unix socket needs a path")
    if size > _MAX_PATH:
        text = f"a Unix socket's path has {_MAX_PATH} bytes at most, and this one {size}"
        raise UsageError(text, image=path, errno=errno.ENAMETOOLONG)
    if len(os.fsencode(os.path.abspath(path))) > _MAX_PATH:
        log.warning("%s: clients can use this socket by its relative path only", path)


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:  # somebody listens, and has more to accept than he does
            pass
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
