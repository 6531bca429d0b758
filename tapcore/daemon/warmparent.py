"""The warm parent: a process of one thread that has everything imported, and forks disk processes.

It is started anew for each change of what is installed, so that drivers that were added, changed or
removed are seen by every disk process that begins afterwards. What it forks is no child of it for
long: that is adopted by the daemon, which hears of its end.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import socket
import sys
from typing import Any, Final, NoReturn

from tapcore.daemon.broker import be_a_broker
from tapcore.daemon.diskprocess import DiskProcess
from tapcore.daemon.diskverbs import DISK_VERBS
from tapcore.daemon.loan import Loan
from tapcore.daemon.warmup import warm_up
from tapcore.errors import describe
from tapcore.interface.registry import Registry, default_registry, set_default_registry
from tapcore.interface.selection import Selection
from tapcore.process.logs import LOG, log_handler
from tapcore.process.naming import name_process

log = logging.getLogger(__name__)

MAX_MESSAGE: Final = 256 << 10
_LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_BYTES_HEAD: Final = sys.getsizeof(b"")
_HOLES: Final = 100
"""Of each size of objects."""

_filling: Final[list[bytes]] = []

_MAX_LOG: Final = 1 << 20
"""Bytes of a process's log, which lies in memory, most often; then it begins anew."""


def main(arguments: list[str]) -> None:
    """Serve orders until whoever gives them is gone.

    Args:
        arguments: number of the socket, level of the log, and handles that are left out.
    """
    orders, level, *without = arguments
    sock = socket.socket(fileno=int(orders))
    sock.set_inheritable(False)
    name_process("tapdisk warm")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    handlers: list[logging.Handler] = [BoundedLog()]  # the daemon tells its last lines
    if (place := os.environ.get(LOG, "stderr")) != "stderr":
        handlers.append(log_handler(place))
        handlers[-1].setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=level.upper(), format=_LOG_FORMAT, handlers=handlers)
    set_default_registry(Registry(selection=Selection.of_environment(without)))
    _send(sock, {"event": "ready", "drivers": _load_all(), "pid": os.getpid()})
    gc.collect()
    _fill_holes()
    gc.freeze()
    gc.disable()  # nothing here makes garbage, and a look at it would copy pages
    while True:
        data, descriptors, _, _ = socket.recv_fds(sock, MAX_MESSAGE, 3)
        if not data:
            return
        _obey(sock, json.loads(data), descriptors)


def _fill_holes() -> None:
    """Fill the holes between objects: a forked process would put its own there, one in each page.

    Each of those pages would be its own then. With the holes full, its objects lie together.
    """
    for size in range(48, 513, 16):
        _filling.extend(bytes(size - _BYTES_HEAD) for _ in range(_HOLES))


class BoundedLog(logging.StreamHandler[Any]):
    """To standard error; where that is a file, it does not grow without end."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        try:
            if os.fstat(2).st_size > _MAX_LOG:
                os.ftruncate(2, 0)
        except OSError:
            pass
        super().emit(record)


def _load_all() -> list[dict[str, Any]]:
    """Import all that disk processes need; returns what there is to tell of each driver."""
    registry = default_registry()
    warm_up(registry)
    return [
        {
            "handle": info.handle,
            "distribution": info.distribution,
            "version": info.version,
            "single_handler": info.single_handler,
            "error": info.error or None,
        }
        for info in registry.table()
    ]


def _obey(sock: socket.socket, order: dict[str, Any], descriptors: list[int]) -> None:
    """Fork a disk process: twice, so that it is nobody's child here."""
    number = order["number"]
    try:
        middle = os.fork()
    except OSError as exc:
        _send(sock, {"event": "failed", "number": number, "error": describe(exc)})
    else:
        if not middle:
            _fork_again(sock, order, descriptors)
        os.waitpid(middle, 0)
        _send(sock, {"event": "adopted", "number": number})
    for descriptor in descriptors:
        os.close(descriptor)


def _fork_again(sock: socket.socket, order: dict[str, Any], descriptors: list[int]) -> NoReturn:
    number, status = order["number"], 1
    try:
        child = os.fork()
        if not child:
            sock.close()
            name_process(f"tapdisk {order['name']}")
            _be(descriptors, order["loan"])
        # nobody has waited for it yet, so that the number is its own
        pidfd = os.pidfd_open(child)
        _send(sock, {"event": "born", "number": number, "pid": child}, pidfd)
        status = 0
    except OSError as exc:
        _send(sock, {"event": "failed", "number": number, "error": describe(exc)})
    finally:
        os._exit(status)


def _send(sock: socket.socket, message: dict[str, Any], *descriptors: int) -> None:
    data = json.dumps(message).encode()
    if descriptors:
        socket.send_fds(sock, [data], descriptors)
    else:
        sock.send(data)


def _be(descriptors: list[int], loan: dict[str, Any] | None) -> NoReturn:
    """Be a disk process, or a broker, to the end."""
    status = 1
    try:
        os.setsid()
        listener, log_file, *others = descriptors
        descriptor, *others = _only_these(log_file, listener, *others)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        gc.enable()
        if loan is None:
            status = _be_a_disk_process(descriptor)
        else:
            (teller,) = others
            be_a_broker(descriptor, teller, Loan.of(loan["of"]), confined=loan["confined"])
            status = 0
    except BaseException:
        log.exception("the process ends")
    finally:
        logging.shutdown()
        os._exit(status)


def _be_a_disk_process(listener: int) -> int:
    sock = socket.socket(fileno=listener)
    sock.setblocking(False)
    process = DiskProcess(sock, DISK_VERBS)
    process.stop_on_signals()
    process.run()
    return int(process.failed)


def _only_these(log_file: int, *others: int) -> range:
    """Close every other descriptor; returns the new numbers of the others."""
    null = os.open(os.devnull, os.O_RDWR)
    kept = (null, log_file, *others)
    above = max(*kept, 2 + len(others)) + 1  # out of the way of the new numbers
    moved = [os.dup2(each, above + n, inheritable=False) for n, each in enumerate(kept)]
    for each, number in zip((moved[0], *moved), range(3), strict=False):
        os.dup2(each, number)
    numbers = range(3, 3 + len(others))
    for each, number in zip(moved[2:], numbers, strict=True):
        os.dup2(each, number, inheritable=False)
    os.closerange(numbers.stop, os.sysconf("SC_OPEN_MAX"))
    return numbers


if __name__ == "__main__":
    main(sys.argv[1:])
